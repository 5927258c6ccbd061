"""Perturbed crops: a store's clips cut again from their videos with the deviations that an app may have.

These are another detector's boxes, moved and scaled boxes, other resize kernels, wrong colour matrices, a picture
turned by 90 degrees, and JPEG. Each perturbation gives a store of its own, which is scored like any other.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.augment import generator
from data.clips import bridge
from data.faces import DETECTORS, Face, FaceDetector, iou, whole
from data.layouts import is_photo
from data.parquet import Row, RowWriter, read_rows
from data.photo import Photo
from data.picture import Frame, Picture
from data.png import encode_png
from data.prepare_video import forged, surroundings
from data.schemas import CLIP_SCHEMA, VIDEO_SCHEMA
from data.settings import StoreSettings
from data.store import Clip, ClipStore, clip_file
from data.tracks import LARGEST_SCALE, SAME_FACE_IOU
from data.unfinished import store_info
from data.video import Video, recompressed, through_jpeg
from files import sha256_of
from processes import in_processes
from stage import Modality, StageError

REACH = 0.5
"""Share of a square's side that is kept of the frame around it, so that moved boxes still lie in the picture."""
BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)
"""Weights of red and blue in luma (ITU-R BT.601-7, BT.709-6); green has the rest."""
Boxes = NDArray[np.float32]
UNPICTURED = [name for name in CLIP_SCHEMA.names if name not in get_args(Modality)]
"""Columns of a clip file that hold no pictures."""


@dataclass(frozen=True)
class Perturbation:
    """One way of cutting crops that deviates from the manifest's rule."""

    name: str
    shift: float = 0.0
    """Distance by which boxes are moved, as a share of their width; its direction is drawn for each clip."""
    scale: float = 1.0
    """Factor on the box's size, about its centre."""
    other_detector: bool = False
    kernel: int | None = None
    """OpenCV interpolation flag for resizing the square; None for the rule's own."""
    frames: Callable[[Frame], Frame] | None = None
    """Applied to each frame before the crop is cut."""
    crops: Callable[[Frame], Frame] | None = None
    """Applied to each crop."""

    def boxes(self, boxes: Boxes, clip_id: str) -> Boxes:
        """Return the boxes, float32 [T, 4] in pixels, moved and scaled."""
        direction = generator(0, f"shift {clip_id}", 0).uniform(0.0, 2 * np.pi)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        half_sizes = (boxes[:, 2:] - boxes[:, :2]) / 2 * self.scale
        widths = boxes[:, 2:3] - boxes[:, :1]
        centres = centres + self.shift * widths * np.array([np.cos(direction), np.sin(direction)])
        moved: Boxes = np.concatenate([centres - half_sizes, centres + half_sizes], axis=1).astype(np.float32)
        return moved


def colours_mixed_up(pixels: Frame) -> Frame:
    """Return RGB pixels encoded to luma and chroma by BT.601 and decoded by BT.709 (full range), uint8 [..., 3]."""
    red, blue = BT601
    rgb = pixels.astype(np.float64)
    luma = rgb @ np.array([red, 1 - red - blue, blue])
    chroma_blue = (rgb[..., 2] - luma) / (2 * (1 - blue))
    chroma_red = (rgb[..., 0] - luma) / (2 * (1 - red))
    red, blue = BT709
    decoded_red = luma + 2 * (1 - red) * chroma_red
    decoded_blue = luma + 2 * (1 - blue) * chroma_blue
    decoded_green = (luma - red * decoded_red - blue * decoded_blue) / (1 - red - blue)
    mixed = np.stack([decoded_red, decoded_green, decoded_blue], axis=-1)
    return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)


def on_its_side(pixels: Frame) -> Frame:
    """Return a picture, uint8 [H, W, 3], turned by 90 degrees clockwise."""
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
    """Return the path of a source by its name in the store. Raises StageError unless exactly one folder holds it."""
    paths = [root / name for root in roots if (root / name).is_file()]
    if len(paths) != 1:
        folders = ", ".join(map(str, roots))
        raise StageError(f"{name} of the store is {'in none' if not paths else 'in more than one'} of {folders}")
    return paths[0]


def _frames_of(path: Path, start: int, length: int) -> list[Frame]:
    """Return ``length`` frames from number ``start`` on. Raises StageError if there are fewer."""
    with Photo(path) if is_photo(path) else Video(path) as video:
        frames = [picture.rgb for picture, _ in zip(video.pictures(start), range(length), strict=False)]
    if len(frames) < length:
        raise StageError(f"{path} has no {length} frames from {start} on: it is not the file that was prepared")
    return frames


def _as_prepared(
    frames: list[Frame], boxes: Boxes, clip_id: str, is_forgery: bool, settings: StoreSettings, reach: float
) -> tuple[list[Frame], Boxes]:
    """Return the frames from which prepare cut crops, with a margin of ``reach`` around squares, and their boxes."""
    if settings.forge or reach:
        frames, boxes = surroundings(frames, boxes, settings.crop, reach)
    if is_forgery:
        frames = forged(frames, boxes, clip_id, settings)
    return recompressed(frames) if settings.forge else frames, boxes


def _other_detector(detector: str) -> FaceDetector | None:
    """Return the detector that a store was not prepared with, or None if it is not installed."""
    (other,) = set(DETECTORS) - {detector}
    try:
        return DETECTORS[other]()
    except StageError:
        return None


def _found_by(detector: FaceDetector, frames: list[Frame], boxes: Boxes) -> tuple[Boxes, NDArray[np.bool_]] | None:
    """Return another detector's boxes, float32 [T, 4], and valid frames, bool [T]; None if it never finds the face."""
    faces: list[Face | None] = []
    for frame, box in zip(frames, boxes, strict=True):
        picture, width = Picture.of(frame), float(box[2] - box[0])
        detected = detector.detect(picture, whole(picture), min(LARGEST_SCALE, detector.followed_width / width))
        matching = [face for face in detected if iou(face.box, box.astype(np.float64)) > SAME_FACE_IOU]
        faces.append(max(matching, key=lambda face: face.score, default=None))
    if all(face is None for face in faces):
        return None
    found_boxes, _, valid = bridge(faces)
    return found_boxes, valid


def _perturbed(
    clip: Clip, frames: list[Frame], boxes: Boxes, perturbation: Perturbation, settings: StoreSettings
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | None:
    """Return a clip's crops, uint8 [T, S, S, 3], and valid frames, bool [T]; None if another detector sees no face."""
    rule, valid = settings.crop, clip.valid
    if perturbation.frames:
        frames = [perturbation.frames(frame) for frame in frames]
    if perturbation.other_detector:
        detector = _other_detector(settings.detector)
        boxes_and_valid = _found_by(detector, frames, boxes) if detector else None
        if boxes_and_valid is None:
            return None
        boxes, valid = boxes_and_valid[0], boxes_and_valid[1] & clip.valid
        if not valid.any():
            return None
    crops = rule.cut_clip(frames, perturbation.boxes(boxes, clip.clip_id), kernel=perturbation.kernel)
    if perturbation.crops:
        crops = np.stack([perturbation.crops(crop) for crop in crops])
    return crops, valid


@functools.cache
def _open_store(path: Path) -> ClipStore:
    """Open a store, once in each process."""
    return ClipStore(path)


@functools.cache
def _clips_by_video(path: Path, split: str) -> dict[str, list[Clip]]:
    """Return the clips of a split by video_id, in their order."""
    by_video: dict[str, list[Clip]] = {}
    for clip in _open_store(path).clips(split, both=False):
        by_video.setdefault(clip.video_id, []).append(clip)
    return by_video


def _cut_again(store_path: Path, video: Row, path: Path, folders: list[Path]) -> None:
    """Cut the clips of one video again with every perturbation, each into a file in its folder.

    Raises StageError if the clip file is damaged, or if the unperturbed crops differ from those of the store.
    """
    cv2.setNumThreads(1)
    store = _open_store(store_path)
    settings = store.info.settings
    clips = _clips_by_video(store_path, video["split"])[video["video_id"]]
    entries = read_rows(store.file_of(video["video_id"]), CLIP_SCHEMA, UNPICTURED)
    with contextlib.ExitStack() as stack:
        files = [clip_file(folder, video["video_id"]) for folder in folders]
        writers = [stack.enter_context(RowWriter(file, CLIP_SCHEMA)) for file in files]
        for clip, entry in zip(clips, entries, strict=True):
            source_frames = _frames_of(path, entry["start_frame"], settings.frames)
            frames, boxes = _as_prepared(source_frames, clip.boxes, clip.clip_id, clip.draw > 0, settings, 0.0)
            if not np.array_equal(settings.crop.cut_clip(frames, boxes), store.pixels(clip)):
                raise StageError(
                    f"{path} does not give the crops of {store_path}: it is not the file that was prepared"
                )
            frames, boxes = _as_prepared(source_frames, clip.boxes, clip.clip_id, clip.draw > 0, settings, REACH)
            for perturbation, writer in zip(PERTURBATIONS, writers, strict=True):
                if crops_and_valid := _perturbed(clip, frames, boxes, perturbation, settings):
                    crops, valid = crops_and_valid
                    columns = {"rgb": [encode_png(crop) for crop in crops], "valid": valid.tolist()}
                    writer.write(entry | columns | {"depth": None, "flow": None})


def perturbed_stores(
    store: ClipStore, split: str, roots: Sequence[Path], folder: Path, workers: int
) -> Iterator[tuple[Perturbation, Path]]:
    """Write a store of RGB crops for every perturbation into ``folder``; yield each that holds clips, with its path.

    roots: the folders that the store was prepared from. Raises StageError if a video is missing there, or is not the
    one that was prepared.
    """
    videos = [row for row in read_rows(store.path / "videos.parquet", VIDEO_SCHEMA) if row["split"] == split]
    videos = [video for video in videos if video["clips"]]
    folders = [folder / str(number) for number in range(len(PERTURBATIONS))]
    for store_folder in folders:
        (store_folder / "clips").mkdir(parents=True)
    jobs = [(store.path, video, _source_of(roots, video["path"]), folders) for video in videos]
    in_processes(_cut_again, jobs, workers, "cut again")
    for perturbation, store_folder in zip(PERTURBATIONS, folders, strict=True):
        if any((store_folder / "clips").iterdir()):
            _finish(store_folder, store, videos)
            yield perturbation, store_folder


def _finish(folder: Path, store: ClipStore, videos: list[Row]) -> None:
    """Write ``videos.parquet`` and ``store.json``, which make a folder of clips a store."""
    rows = []
    for video in videos:
        clips = clip_file(folder, video["video_id"])
        if clips.exists():
            labels = pq.read_table(clips, columns=["label"])["label"].to_pylist()
            counts = {"clips": len(labels), "forged_clips": 0 if video["label"] else sum(labels)}
            rows.append(video | counts | {"clips_sha256": sha256_of(clips)})
    with RowWriter(folder / "videos.parquet", VIDEO_SCHEMA) as file:
        file.write(*rows)
    settings = store.info.settings.model_copy(update={"modalities": ("rgb",)})
    info = store_info(settings, [], rows, sha256_of(folder / "videos.parquet"))
    (folder / "store.json").write_text(info.model_dump_json(), encoding="utf-8")
