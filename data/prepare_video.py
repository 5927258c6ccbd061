"""One video to its clips: what ``prepare`` does with each input file, here or on a cluster."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.augment import generator
from data.clips import FaceClip, face_clips
from data.crops import CropRule
from data.faces import DETECTORS
from data.forge import Forgery
from data.layouts import FAKE, REAL, Source
from data.modalities import Modalities
from data.photo import Photo
from data.picture import Frame, Picture, UnreadableVideo
from data.png import encode_png
from data.remote import NotFetched, fetched
from data.store import FORGED, Start, Status, StoreSettings
from data.tracks import STRIDE, Tracker
from data.video import Video, recompressed
from stage import StageError

NOT_SEEN = f"no face was seen (of a video, every {STRIDE}th frame is looked at)"
Row = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What to make of every video."""

    settings: StoreSettings
    modalities: Modalities


@dataclass
class VideoTally:
    """What was found in one video, and why stretches of it gave no clip."""

    clips: int = 0
    forged_clips: int = 0
    stretches: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Status and reason."""
    frames_without_face: int = 0
    damaged: int = 0
    """Frames that could be decoded in part only."""


def _row(source: Source, split: str) -> Row:
    return {
        "video_id": source.video_id,
        "path": source.name,
        "label": source.label,
        "method": source.method,
        "split": split,
        "identities": list(source.identities),
    }


def without_clips(source: Source, split: str, status: Status, reason: str) -> Row:
    """Return the row of a file that is not opened, or whose process died of it."""
    none = {"clips": 0, "forged_clips": 0, "frames_without_face": 0}
    return _row(source, split) | {"status": status, "reason": reason} | none


def prepare_video(source: Source, split: str, recipe: Recipe, keep: Callable[[Row], None]) -> Row:
    """Prepare one video or photo: give the row of each of its clips to ``keep``, return that of ``videos.parquet``.

    Holds the pictures of one clip in memory, whatever the length of the video.
    """
    row, found, broken = _row(source, split), VideoTally(), ""
    # A video whose face is seen, or which can be read, only before the frame that was drawn is not lost.
    for start in dict.fromkeys((recipe.settings.start, "first")):
        if found.clips:
            break
        try:
            with fetched(source.path) as path, Photo(path) if source.is_photo else Video(path) as video:
                row |= {"fps": video.info.fps, "width": video.info.width, "height": video.info.height}
                try:
                    _find_clips(video, row, recipe, start, found, keep)
                finally:
                    found.damaged = video.damaged
        except NotFetched as error:
            raise StageError(f"{error}: what is done is kept, call the command again to go on") from error
        except UnreadableVideo as error:
            # Not the path, so that a store does not depend on where its sources lay; in one line, whatever the name.
            broken = " ".join(f"{source.name} {error.what}".splitlines())
    status, reason = _status(found, broken, recipe.settings)
    row |= {"status": status, "reason": reason, "clips": found.clips, "forged_clips": found.forged_clips}
    return row | {"frames_without_face": found.frames_without_face}


def _status(found: VideoTally, broken: str, settings: StoreSettings) -> tuple[str, str]:
    """Return a file's status and its reason, with how much of it is damaged."""
    status, reason = _outcome(found, broken, settings)
    damaged = f"damaged frames: {found.damaged}" if found.damaged else ""
    return status, "; ".join(filter(None, (reason, damaged)))


def _outcome(found: VideoTally, broken: str, settings: StoreSettings) -> tuple[str, str]:
    if found.stretches >= settings.clips_per_video:
        return "ok", ""
    why = broken or (found.refused[0][1] if found.refused else "")
    if found.stretches:
        return "ok", f"{found.stretches} of {settings.clips_per_video} stretches{': ' if why else ''}{why}"
    if broken:
        return "unreadable", broken
    return found.refused[0] if found.refused else ("no_face", NOT_SEEN)


def _starts(video: Video | Photo, start: Start, clips: int, length: int, rng: np.random.Generator) -> list[int]:
    """Return the frames from which clips are sought: so far apart that they do not overlap, as far as there is room."""
    if start == "first":
        return [0]
    count = video.count()  # which may have to decode the file
    clips = min(clips, max(1, count))
    room = count - clips * length
    if room < 0:
        return [n * length for n in range(clips)]
    shares = (np.arange(clips) + 0.5) / clips if start == "spread" else np.sort(rng.random(clips))
    return [int(share * (room + 1)) + n * length for n, share in enumerate(shares)]


class _Reader:
    """Pictures from any frame on, also from one that the tracker has read ahead."""

    def __init__(self, video: Video | Photo) -> None:
        self._video = video
        self._ahead: deque[tuple[int, Picture]] = deque(maxlen=STRIDE)

    def pictures(self, start: int) -> Iterator[Picture]:
        """Yield the pictures from frame ``start`` on, at most STRIDE frames before what was read."""
        yield from [picture for number, picture in self._ahead if number >= start]
        for picture in self._video.pictures(max(start, self._video.position)):
            self._ahead.append((self._video.position - 1, picture))
            yield picture


def _stretches(
    video: Video | Photo, settings: StoreSettings, starts: list[int], found: VideoTally
) -> Iterator[tuple[int, list[FaceClip]]]:
    """Yield whole stretches with a steady face, with the number of the frame from which they count."""
    reader, end = _Reader(video), 0
    for start in starts:
        begin = max(start, end)
        tracker = Tracker(DETECTORS[settings.detector](), settings.all_faces)
        for clips in face_clips(tracker.follow(reader.pictures(begin)), settings.frames):
            end = begin + clips[0].start + len(clips[0])
            if refusal := _refusal(clips[0], settings.frames):
                found.refused.append(refusal)
                continue
            yield begin, clips
            if len(starts) > 1:
                break
        else:
            end = video.position


def _refusal(clip: FaceClip, length: int) -> tuple[str, str] | None:
    if len(clip) < length:
        return "too_short", f"{len(clip)} frames from the first face on, {length} are needed"
    if not clip.steady:
        return "no_face", f"the face is seen in {int(clip.valid.sum())} of the clip's {length} frames"
    return None


def _find_clips(
    video: Video | Photo, row: Row, recipe: Recipe, start: Start, found: VideoTally, keep: Callable[[Row], None]
) -> None:
    settings = recipe.settings
    rng = generator(settings.seed, f"start {row['video_id']}", 0)
    starts = _starts(video, start, settings.clips_per_video, settings.frames, rng)
    for begin, clips in _stretches(video, settings, starts, found):
        for clip in [clip for clip in clips if clip.steady] if settings.all_faces else clips[:1]:
            found.frames_without_face += sum(face is None for face in clip.faces)
            for made in _clip_rows(row, found.clips, begin, clip, recipe):
                keep(made)
                found.clips += 1
                found.forged_clips += made["method"] == FORGED
        found.stretches += 1
        if found.stretches == settings.clips_per_video:
            return


def _clip_rows(row: Row, number: int, begin: int, clip: FaceClip, recipe: Recipe) -> Iterator[Row]:
    """Yield the rows of a clip and of its forgeries; ``number`` is that of the video's next clip."""
    settings = recipe.settings
    about = {name: row[name] for name in ("video_id", "label", "method", "split", "identities", "fps")} | {
        "track": clip.track,
        "start_frame": begin + clip.start,
        "boxes": clip.boxes.tolist(),
        "detector_score": clip.scores.tolist(),
        "valid": clip.valid.tolist(),
    }
    frames, boxes = [picture.rgb for picture in clip.pictures], clip.boxes
    if settings.forge:
        frames, boxes = surroundings(frames, boxes, settings.crop)
    for forgery in range(1 + _forgeries(row, settings)):
        clip_id = f"{row['video_id']}-{number + forgery}"
        made = frames if forgery == 0 else forged(frames, boxes, clip_id, settings)
        pictures = recipe.modalities.pictures(
            recompressed(made) if settings.forge else made, boxes, clip.valid, settings.crop
        )
        kind = {"label": FAKE, "method": FORGED} if forgery else {}
        encoded = {name: [encode_png(picture) for picture in pictures[name]] for name in settings.modalities}
        yield {"clip_id": clip_id} | about | kind | encoded


def _forgeries(row: Row, settings: StoreSettings) -> int:
    """Return how many forgeries a clip gets: training draws its own, unless they need depth or flow made anew."""
    drawn_in_training = row["split"] == "train" and settings.modalities == ("rgb",)
    return 0 if row["label"] != REAL or drawn_in_training else settings.forge


def surroundings(
    frames: list[Frame], boxes: NDArray[np.float32], rule: CropRule, reach: float = 0.0
) -> tuple[list[Frame], NDArray[np.float32]]:
    """Cut the rectangle that holds all squares of a clip out of its frames, and return the boxes in it.

    It goes beyond each square by ``reach`` of its side. boxes: float32 [T, 4] in pixels.
    """
    squares = np.array([rule.square(box) for box in boxes])
    beyond = np.ceil(reach * squares[:, 2:]).astype(int)
    corners = np.concatenate([squares[:, :2] - beyond, squares[:, :2] + squares[:, 2:] + beyond], axis=1)
    height, width = frames[0].shape[:2]
    x0, y0 = np.maximum(corners[:, :2].min(axis=0), 0).tolist()
    x1, y1 = np.minimum(corners[:, 2:].max(axis=0), (width, height)).tolist()
    return [frame[y0:y1, x0:x1] for frame in frames], boxes - np.array([x0, y0, x0, y0], np.float32)


def forged(frames: list[Frame], boxes: NDArray[np.float32], clip_id: str, settings: StoreSettings) -> list[Frame]:
    """Return the frames of the forgery that a store of these settings has as ``clip_id``."""
    rng = generator(settings.seed, f"forge {clip_id}", 0)
    forgery = Forgery.draw(rng, settings.weakest_forgery)
    return [forgery.jitter(rng).blend(frame, box) for frame, box in zip(frames, boxes, strict=True)]
