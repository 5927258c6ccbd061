"""Prepare one video: cut its clips, in a local process or on a cluster."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data.augment import generator
from data.clips import FaceClip, face_clips
from data.crops import CropRule
from data.faces import DETECTORS
from data.forge import Forgery
from data.layouts import FAKE, REAL, Source
from data.modalities import Modalities
from data.parquet import Row
from data.photo import Photo
from data.picture import Frame, Picture, UnreadableVideo
from data.png import encode_png
from data.remote import NotFetched, fetched
from data.settings import ClipStart, StoreSettings
from data.store import FORGED, Status
from data.tracks import STRIDE, Tracker
from data.video import Video, flaws, recompressed
from stage import StageError

NOT_SEEN = f"no face was seen (of a video, every {STRIDE}th frame is looked at)"


@dataclass(frozen=True)
class Recipe:
    """How to prepare every video: settings, and the modalities to make."""

    settings: StoreSettings
    modalities: Modalities


@dataclass
class VideoTally:
    """Counts of what was found in one video, and why stretches of it gave no clip."""

    clips: int = 0
    forged_clips: int = 0
    stretches: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Status and reason of each stretch that was refused."""
    frames_without_face: int = 0
    damaged: int = 0
    """Number of frames that could be decoded only in part."""
    remarks: dict[str, None] = field(default_factory=dict)
    """What its frames are (``Picture.remarks``)."""


def _row(source: Source, split: str) -> Row:
    """Return the columns of a video's row that are known before it is opened."""
    return {
        "video_id": source.video_id,
        "path": source.name,
        "label": source.label,
        "method": source.method,
        "split": split,
        "identities": list(source.identities),
    }


def without_clips(source: Source, split: str, status: Status, reason: str) -> Row:
    """Return the ``videos.parquet`` row of a file that is not opened, or that killed its process."""
    none = {"clips": 0, "forged_clips": 0, "frames_without_face": 0}
    return _row(source, split) | {"status": status, "reason": reason} | none


def prepare_video(source: Source, split: str, recipe: Recipe, keep: Callable[[Row], None]) -> Row:
    """Prepare one video or photo: pass the row of each clip to ``keep``, return its row of ``videos.parquet``.

    Holds the pictures of one clip in memory, whatever the length of the video. Raises StageError if the file of a URL
    cannot be fetched; whatever is wrong with a file itself is in its row.
    """
    row = _row(source, split)
    tally = VideoTally()
    decode_error = ""
    # If a video shows a face, or can be read, only before the drawn start, it is tried again from the first frame.
    for start in dict.fromkeys((recipe.settings.start, "first")):
        if tally.clips:
            break
        try:
            with fetched(source.path) as path, Photo(path) if source.is_photo else Video(path) as video:
                row |= {"fps": video.info.fps, "width": video.info.width, "height": video.info.height}
                try:
                    _find_clips(video, row, recipe, start, tally, keep)
                finally:
                    tally.damaged = video.damaged
                    tally.remarks |= video.remarks
        except NotFetched as error:
            raise StageError(f"{error}: what is done is kept, call the command again to go on") from error
        except UnreadableVideo as error:
            # The name, not the path: a store must not depend on where its sources lay. In one line, whatever the name.
            decode_error = " ".join(f"{source.name} {error.what}".splitlines())
    status, reason = _status(tally, decode_error, recipe.settings)
    row |= {"status": status, "reason": reason, "clips": tally.clips, "forged_clips": tally.forged_clips}
    return row | {"frames_without_face": tally.frames_without_face}


def _status(tally: VideoTally, decode_error: str, settings: StoreSettings) -> tuple[str, str]:
    """Return a file's status and the reason for it, with the number of damaged frames and what its frames are."""
    status, reason = _outcome(tally, decode_error, settings)
    return status, "; ".join(filter(None, (reason, flaws(tally.damaged, tally.remarks))))


def _outcome(tally: VideoTally, decode_error: str, settings: StoreSettings) -> tuple[str, str]:
    """Return a file's status and the reason for it."""
    if tally.stretches >= settings.clips_per_video:
        return "ok", ""
    reason = decode_error or (tally.refused[0][1] if tally.refused else "")
    if tally.stretches:
        return "ok", f"{tally.stretches} of {settings.clips_per_video} stretches{': ' if reason else ''}{reason}"
    if decode_error:
        return "unreadable", decode_error
    return tally.refused[0] if tally.refused else ("no_face", NOT_SEEN)


def _starts(video: Video | Photo, start: ClipStart, clips: int, length: int, rng: np.random.Generator) -> list[int]:
    """Return the frame numbers from which clips are sought, so far apart that clips do not overlap if there is room."""
    if start == "first":
        return [0]
    count = video.count()  # may have to decode the file
    clips = min(clips, max(1, count))
    spare_frames = count - clips * length
    if spare_frames < 0:
        return [n * length for n in range(clips)]
    shares = (np.arange(clips) + 0.5) / clips if start == "spread" else np.sort(rng.random(clips))
    return [int(share * (spare_frames + 1)) + n * length for n, share in enumerate(shares)]


class _Reader:
    """Reads pictures from any frame on, also from one that the tracker has already read."""

    def __init__(self, video: Video | Photo) -> None:
        self._video = video
        self._recent: deque[tuple[int, Picture]] = deque(maxlen=STRIDE)

    def pictures(self, start: int) -> Iterator[Picture]:
        """Yield the pictures from frame ``start`` on, which may lie at most STRIDE frames before the last one read."""
        yield from [picture for number, picture in self._recent if number >= start]
        for picture in self._video.pictures(max(start, self._video.position)):
            self._recent.append((self._video.position - 1, picture))
            yield picture


def _stretches(
    video: Video | Photo, settings: StoreSettings, starts: list[int], tally: VideoTally
) -> Iterator[tuple[int, list[FaceClip]]]:
    """Yield the clips of whole stretches with a steady face, each with the frame number from which they count."""
    reader, next_frame = _Reader(video), 0
    for start in starts:
        first_frame = max(start, next_frame)
        tracker = Tracker(DETECTORS[settings.detector](), settings.all_faces)
        for clips in face_clips(tracker.follow(reader.pictures(first_frame)), settings.frames):
            next_frame = first_frame + clips[0].start + len(clips[0])
            if refusal := _refusal(clips[0], settings.frames):
                tally.refused.append(refusal)
                continue
            yield first_frame, clips
            if len(starts) > 1:
                break
        else:
            next_frame = video.position


def _refusal(clip: FaceClip, length: int) -> tuple[str, str] | None:
    """Return status and reason if a clip is too short or its face not steady, else None."""
    if len(clip) < length:
        return "too_short", f"{len(clip)} frames from the first face on, {length} are needed"
    if not clip.steady:
        return "no_face", f"the face is seen in {int(clip.valid.sum())} of the clip's {length} frames"
    return None


def _find_clips(
    video: Video | Photo, row: Row, recipe: Recipe, start: ClipStart, tally: VideoTally, keep: Callable[[Row], None]
) -> None:
    """Pass the rows of a video's clips to ``keep`` and count them in ``tally``."""
    settings = recipe.settings
    rng = generator(settings.seed, f"start {row['video_id']}", 0)
    starts = _starts(video, start, settings.clips_per_video, settings.frames, rng)
    for first_frame, clips in _stretches(video, settings, starts, tally):
        for clip in [clip for clip in clips if clip.steady] if settings.all_faces else clips[:1]:
            tally.frames_without_face += sum(face is None for face in clip.faces)
            for clip_row in _clip_rows(row, tally.clips, first_frame, clip, recipe):
                keep(clip_row)
                tally.clips += 1
                tally.forged_clips += clip_row["method"] == FORGED
        tally.stretches += 1
        if tally.stretches == settings.clips_per_video:
            return


def _clip_rows(row: Row, number: int, first_frame: int, clip: FaceClip, recipe: Recipe) -> Iterator[Row]:
    """Yield the rows of a clip and of its forgeries. ``number``: how many clips of the video came before."""
    settings = recipe.settings
    common = {name: row[name] for name in ("video_id", "label", "method", "split", "identities", "fps")} | {
        "track": clip.track,
        "start_frame": first_frame + clip.start,
        "boxes": clip.boxes.tolist(),
        "detector_score": clip.scores.tolist(),
        "valid": clip.valid.tolist(),
    }
    frames, boxes = [picture.rgb for picture in clip.pictures], clip.boxes
    if settings.forge:
        frames, boxes = surroundings(frames, boxes, settings.crop)
    for draw in range(1 + _forgeries(row, settings)):
        clip_id = f"{row['video_id']}-{number + draw}"
        clip_frames = frames if draw == 0 else forged(frames, boxes, clip_id, settings)
        pictures = recipe.modalities.pictures(
            recompressed(clip_frames) if settings.forge else clip_frames, boxes, clip.valid, settings.crop
        )
        forged_label = {"label": FAKE, "method": FORGED} if draw else {}
        encoded = {name: [encode_png(picture) for picture in pictures[name]] for name in settings.modalities}
        yield {"clip_id": clip_id} | common | forged_label | encoded


def _forgeries(row: Row, settings: StoreSettings) -> int:
    """Return how many forgeries a clip gets: none for RGB training clips, as training draws its own."""
    drawn_in_training = row["split"] == "train" and settings.modalities == ("rgb",)
    return 0 if row["label"] != REAL or drawn_in_training else settings.forge


def surroundings(
    frames: list[Frame], boxes: NDArray[np.float32], rule: CropRule, reach: float = 0.0
) -> tuple[list[Frame], NDArray[np.float32]]:
    """Return a clip's frames cut to the rectangle that holds all its squares, and the boxes in it.

    The rectangle extends beyond each square by ``reach`` of its side. boxes: float32 [T, 4] in pixels.
    """
    squares = np.array([rule.square(box) for box in boxes])
    margins = np.ceil(reach * squares[:, 2:]).astype(int)
    corners = np.concatenate([squares[:, :2] - margins, squares[:, :2] + squares[:, 2:] + margins], axis=1)
    height, width = frames[0].shape[:2]
    x0, y0 = np.maximum(corners[:, :2].min(axis=0), 0).tolist()
    x1, y1 = np.minimum(corners[:, 2:].max(axis=0), (width, height)).tolist()
    return [frame[y0:y1, x0:x1] for frame in frames], boxes - np.array([x0, y0, x0, y0], np.float32)


def forged(frames: list[Frame], boxes: NDArray[np.float32], clip_id: str, settings: StoreSettings) -> list[Frame]:
    """Return the frames, uint8 [H, W, 3] RGB, of the forgery that a store of these settings names ``clip_id``."""
    rng = generator(settings.seed, f"forge {clip_id}", 0)
    forgery = Forgery.draw(rng, settings.weakest_forgery)
    return [forgery.jitter(rng).blend(frame, box) for frame, box in zip(frames, boxes, strict=True)]
