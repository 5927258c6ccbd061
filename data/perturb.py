"""A store's clips cut again from their videos as an app with other habits would: what a detector makes of it.

Another detector's boxes, moved and scaled boxes, other resize kernels, wrong colour matrices, a picture that lies on
its side, JPEG. Each gives a store of its own, which is scored like any other.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.augment import generator
from data.clips import bridge
from data.faces import DETECTORS, Face, FaceDetector, iou
from data.layouts import is_photo
from data.parquet import RowWriter, read_rows
from data.photo import Photo
from data.picture import Frame, Picture
from data.png import encode_png
from data.prepare_video import forged, surroundings
from data.schemas import CLIP_SCHEMA, VIDEO_SCHEMA
from data.store import Clip, ClipStore, StoreSettings
from data.unfinished import counted
from data.video import Video, recompressed, through_jpeg
from files import sha256_of
from stage import StageError, in_processes

REACH = 0.5
"""Share of a square's side by which frames are kept around it, so that moved boxes still lie in the picture."""
BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)
"""Weights of red and blue in luma (ITU-R BT.601-7, BT.709-6)."""
Boxes = NDArray[np.float32]


@dataclass(frozen=True)
class Perturbation:
    """One way to cut a crop other than the manifest says."""

    name: str
    shift: float = 0.0
    """Of the box, as a share of its width, in a direction drawn for each clip."""
    scale: float = 1.0
    """Of the box about its centre."""
    other_detector: bool = False
    kernel: int | None = None
    """OpenCV's, for resizing the square."""
    frames: Callable[[Frame], Frame] | None = None
    crops: Callable[[Frame], Frame] | None = None

    def boxes(self, boxes: Boxes, clip_id: str) -> Boxes:
        """Return the boxes, float32 [T, 4] in pixels, moved and scaled."""
        direction = generator(0, f"shift {clip_id}", 0).uniform(0.0, 2 * np.pi)
        centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * self.scale
        widths = boxes[:, 2:3] - boxes[:, :1]
        centres = centres + self.shift * widths * np.array([np.cos(direction), np.sin(direction)])
        moved: Boxes = np.concatenate([centres - halves, centres + halves], axis=1).astype(np.float32)
        return moved


def colours_mixed_up(pixels: Frame) -> Frame:
    """Return RGB pixels whose luma and chroma were made by BT.601 and read by BT.709 (full range)."""
    red, blue = BT601
    rgb = pixels.astype(np.float64)
    luma = rgb @ np.array([red, 1 - red - blue, blue])
    chroma_blue, chroma_red = (rgb[..., 2] - luma) / (2 * (1 - blue)), (rgb[..., 0] - luma) / (2 * (1 - red))
    red, blue = BT709
    back_red, back_blue = luma + 2 * (1 - red) * chroma_red, luma + 2 * (1 - blue) * chroma_blue
    back_green = (luma - red * back_red - blue * back_blue) / (1 - red - blue)
    mixed = np.stack([back_red, back_green, back_blue], axis=-1)
    return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)


def on_its_side(pixels: Frame) -> Frame:
    """Return a picture turned by 90 degrees clockwise."""
    return np.ascontiguousarray(np.rot90(pixels, -1))


UNCHANGED = Perturbation("unchanged")
PERTURBATIONS = (
    UNCHANGED,
    Perturbation("box moved by 5 %", shift=0.05),
    Perturbation("box moved by 10 %", shift=0.1),
    Perturbation("box 5 % smaller", scale=0.95),
    Perturbation("box 10 % smaller", scale=0.9),
    Perturbation("box 5 % larger", scale=1.05),
    Perturbation("box 10 % larger", scale=1.1),
    Perturbation("another detector's boxes", other_detector=True),
    Perturbation("resized by nearest neighbour", kernel=cv2.INTER_NEAREST),
    Perturbation("resized bilinearly", kernel=cv2.INTER_LINEAR),
    Perturbation("resized bicubically", kernel=cv2.INTER_CUBIC),
    Perturbation("resized by Lanczos", kernel=cv2.INTER_LANCZOS4),
    Perturbation("BT.601 read as BT.709", crops=colours_mixed_up),
    Perturbation("turned by 90 degrees", crops=on_its_side),
    Perturbation("JPEG 75", frames=lambda frame: through_jpeg(frame, 75)),
    Perturbation("JPEG 50", frames=lambda frame: through_jpeg(frame, 50)),
)


def _source_of(roots: Sequence[Path], name: str) -> Path:
    """Return the file by its name in the store. Raises StageError if it is in none of the folders, or in several."""
    found = [root / name for root in roots if (root / name).is_file()]
    if len(found) != 1:
        where = ", ".join(map(str, roots))
        raise StageError(f"{name} of the store is {'in none' if not found else 'in more than one'} of {where}")
    return found[0]


def _frames_of(path: Path, start: int, length: int) -> list[Frame]:
    with Photo(path) if is_photo(path) else Video(path) as video:
        found = [picture.rgb for picture, _ in zip(video.pictures(start), range(length), strict=False)]
    if len(found) < length:
        raise StageError(f"{path} has no {length} frames from {start} on: it is not the file that was prepared")
    return found


def _as_prepared(
    frames: list[Frame], boxes: Boxes, clip_id: str, is_forgery: bool, settings: StoreSettings, reach: float
) -> tuple[list[Frame], Boxes]:
    """Return frames as prepare cut crops from them, kept ``reach`` around the squares, and the boxes in them."""
    if settings.forge or reach:
        frames, boxes = surroundings(frames, boxes, settings.crop, reach)
    if is_forgery:
        frames = forged(frames, boxes, clip_id, settings)
    return recompressed(frames) if settings.forge else frames, boxes


def _other_detector(own: str) -> FaceDetector | None:
    """Return the detector that a store was not prepared with, or None if it is not installed."""
    (other,) = set(DETECTORS) - {own}
    try:
        return DETECTORS[other]()
    except StageError:
        return None


def _found_by(detector: FaceDetector, frames: list[Frame], boxes: Boxes) -> tuple[Boxes, NDArray[np.bool_]] | None:
    """Return another detector's boxes of a face, and which frames count; None where it never finds the face."""
    faces: list[Face | None] = []
    for frame, box in zip(frames, boxes, strict=True):
        picture, width = Picture.of(frame), float(box[2] - box[0])
        region = np.array([0.0, 0.0, frame.shape[1], frame.shape[0]])
        seen = detector.detect(picture, region, min(2.0, detector.followed_width / width))
        near = [face for face in seen if iou(face.box, box.astype(np.float64)) > 0.3]
        faces.append(max(near, key=lambda face: face.score, default=None))
    if all(face is None for face in faces):
        return None
    found, _, valid = bridge(faces)
    return found, valid


def _perturbed(
    clip: Clip, frames: list[Frame], boxes: Boxes, how: Perturbation, settings: StoreSettings
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | None:
    """Return a clip's crops, uint8 [T, S, S, 3], and which count; None where another detector sees no face."""
    rule, valid = settings.crop, clip.valid
    if how.frames:
        frames = [how.frames(frame) for frame in frames]
    if how.other_detector:
        detector = _other_detector(settings.detector)
        found = _found_by(detector, frames, boxes) if detector else None
        if found is None:
            return None
        boxes, valid = found[0], found[1] & clip.valid
        if not valid.any():
            return None
    crops = rule.cut_clip(frames, how.boxes(boxes, clip.clip_id), kernel=how.kernel)
    return (np.stack([how.crops(crop) for crop in crops]) if how.crops else crops), valid


@functools.cache
def _opened(path: Path) -> ClipStore:
    """Open a store once a process."""
    return ClipStore(path)


@functools.cache
def _clips_by_video(path: Path, split: str) -> dict[str, list[Clip]]:
    """Return the clips of a split by their video, in order."""
    found: dict[str, list[Clip]] = {}
    for clip in _opened(path).clips(split, both=False):
        found.setdefault(clip.video_id, []).append(clip)
    return found


def _cut_again(store_path: Path, video: dict[str, Any], path: Path, folders: list[Path]) -> None:
    """Cut the clips of one video again, in every way, each into its store's file.

    Raises StageError if what was prepared does not come out when nothing is changed.
    """
    cv2.setNumThreads(1)
    store = _opened(store_path)
    settings = store.info.settings
    entries = read_rows(store_path / "clips" / f"{video['video_id']}.parquet", CLIP_SCHEMA)
    clips = _clips_by_video(store_path, video["split"])[video["video_id"]]
    with contextlib.ExitStack() as stack:
        files = [folder / "clips" / f"{video['video_id']}.parquet" for folder in folders]
        writers = [stack.enter_context(RowWriter(file, CLIP_SCHEMA)) for file in files]
        for clip, entry in zip(clips, entries, strict=True):
            raw = _frames_of(path, entry["start_frame"], settings.frames)
            is_forgery = bool(clip.label) and not video["label"]
            frames, boxes = _as_prepared(raw, clip.boxes, clip.clip_id, is_forgery, settings, 0.0)
            if not np.array_equal(settings.crop.cut_clip(frames, boxes), store.pixels(clip)):
                raise StageError(
                    f"{path} does not give the crops of {store_path}: it is not the file that was prepared"
                )
            frames, boxes = _as_prepared(raw, clip.boxes, clip.clip_id, is_forgery, settings, REACH)
            for how, writer in zip(PERTURBATIONS, writers, strict=True):
                if found := _perturbed(clip, frames, boxes, how, settings):
                    crops, valid = found
                    kept = {"rgb": [encode_png(crop) for crop in crops], "valid": valid.tolist()}
                    writer.write(entry | kept | {"depth": None, "flow": None})


def perturbed_stores(
    store: ClipStore, split: str, roots: Sequence[Path], folder: Path, workers: int
) -> Iterator[tuple[Perturbation, Path]]:
    """Write a store of RGB crops for every perturbation into ``folder``; yield them, with their paths, that hold clips.

    roots: the folders that the store was prepared from. Raises StageError if a video is missing there or is another.
    """
    videos = [row for row in read_rows(store.path / "videos.parquet", VIDEO_SCHEMA) if row["split"] == split]
    videos = [video for video in videos if video["clips"]]
    folders = [folder / str(number) for number in range(len(PERTURBATIONS))]
    for own in folders:
        (own / "clips").mkdir(parents=True)
    jobs = [(store.path, video, _source_of(roots, video["path"]), folders) for video in videos]
    in_processes(_cut_again, jobs, workers, "cut again")
    for how, own in zip(PERTURBATIONS, folders, strict=True):
        if any((own / "clips").iterdir()):
            _finish(own, store, videos)
            yield how, own


def _finish(folder: Path, store: ClipStore, videos: list[dict[str, Any]]) -> None:
    """Write what makes a folder of clips a store."""
    kept = []
    for video in videos:
        clips = folder / "clips" / f"{video['video_id']}.parquet"
        if clips.exists():
            labels = pq.read_table(clips, columns=["label"])["label"].to_pylist()
            own = {"clips": len(labels), "forged_clips": 0 if video["label"] else sum(labels)}
            kept.append(video | own | {"clips_sha256": sha256_of(clips)})
    with RowWriter(folder / "videos.parquet", VIDEO_SCHEMA) as file:
        file.write(*kept)
    settings = store.info.settings.model_copy(update={"modalities": ("rgb",)})
    info = counted(settings, [], kept, sha256_of(folder / "videos.parquet"))
    (folder / "store.json").write_text(info.model_dump_json())
