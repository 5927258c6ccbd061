"""Measure how fast and how well faces are found: ``python -m benchmarks.studies.prepare FOLDER``.

The baseline is the loop that everybody writes first: decode with OpenCV, and run dlib's detector on every full frame. A
face of the loop counts as found at IoU >= 0.5. A box of the tracker that the loop lacks counts as extra unless MTCNN
sees a face there.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from command import run_as_script
from data.crops import CropRule
from data.faces import DlibHog, Face, Mtcnn, iou, whole
from data.layouts import Source
from data.modalities import Modalities
from data.parquet import RowWriter
from data.picture import Picture
from data.prepare import prepare
from data.prepare_video import Recipe, prepare_video
from data.schemas import CLIP_SCHEMA
from data.settings import StoreSettings
from data.tracks import Tracker
from data.video import Video
from stage import StageError, progress, say

FOUND_IOU = 0.5
CLIP_FRAMES = 20
REPEATS = 3
COPIES = 4
"""Copies of each video, so that starting a worker process does not outweigh its work."""


def naive_loop(path: Path) -> list[list[NDArray[np.float64]]]:
    """Return dlib's boxes on every full frame as OpenCV decodes it: float64 [4] each, left, top, right, bottom.

    In pixels as ``Video`` shows them, which are square.
    """
    import dlib

    detector, capture = dlib.get_frontal_face_detector(), cv2.VideoCapture(str(path))
    with Video(path) as video:
        width = video.info.width
    boxes = []
    while (frame := capture.read())[0]:
        rectangles, _, _ = detector.run(cv2.cvtColor(frame[1], cv2.COLOR_BGR2GRAY), 0, 0.0)
        stretched = np.array([width / frame[1].shape[1], 1.0] * 2)
        boxes.append([stretched * (r.left(), r.top(), r.right() + 1, r.bottom() + 1) for r in rectangles])
    return boxes


def decode(path: Path) -> int:
    """Decode a video and return its number of frames."""
    with Video(path) as video:
        return sum(1 for _ in video.pictures())


def track(path: Path) -> list[list[Face]]:
    """Return the faces that Pocketproof finds on every frame."""
    with Video(path) as video:
        return [list(frame.faces.values()) for frame in Tracker(DlibHog(), every_face=True).follow(video.pictures())]


def whole_prepare(path: Path, frames: int) -> None:
    """Prepare and write every whole clip of a video of ``frames`` frames."""
    settings = StoreSettings(
        frames=CLIP_FRAMES,
        crop=CropRule(),
        clips_per_video=frames // CLIP_FRAMES,
        ratios=(1.0, 0.0, 0.0),
        seed=0,
        sources_sha256="",
    )
    source = Source(path, path.name, 0, "real", ("a",))
    with tempfile.TemporaryDirectory() as folder, RowWriter(Path(folder) / "clips.parquet", CLIP_SCHEMA) as clips:
        prepare_video(source, "train", Recipe(settings, Modalities()), clips.write)


def seconds_of(function: Callable[..., Any], *arguments: Any, repeats: int = REPEATS) -> tuple[float, Any]:
    """Return the median seconds of a call, and its result."""
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        result = function(*arguments)
        times.append(time.perf_counter() - before)
    return statistics.median(times), result


def _extra(path: Path, faces: list[list[Face]], boxes: list[list[NDArray[np.float64]]]) -> Iterator[tuple[int, Face]]:
    """Yield the frame number and face of every box of the tracker that neither the loop nor MTCNN has."""
    candidates = {
        number: unmatched
        for number, (frame_faces, frame_boxes) in enumerate(zip(faces, boxes, strict=True))
        if (unmatched := [face for face in frame_faces if all(iou(face.box, box) < FOUND_IOU for box in frame_boxes)])
    }
    if not candidates:
        return
    with Video(path) as video:
        for number, picture in enumerate(video.pictures()):
            confirmed = _mtcnn_boxes(picture) if number in candidates else []
            for face in candidates.get(number, []):
                if all(iou(face.box, box) < FOUND_IOU for box in confirmed):
                    yield number, face


def _mtcnn_boxes(picture: Picture) -> list[NDArray[np.float64]]:
    return [face.box for face in Mtcnn().detect(picture, whole(picture), min(1.0, 720 / picture.size[0]))]


def measure(path: Path) -> dict[str, Any]:
    """Return the times and the counts of faces of one video, by name."""
    naive_seconds, boxes = seconds_of(naive_loop, path, repeats=1)
    decode_seconds, frames = seconds_of(decode, path)
    track_seconds, faces = seconds_of(track, path)
    prepare_seconds, _ = seconds_of(whole_prepare, path, frames)
    matched = sum(
        max((iou(face.box, box) for face in frame_faces), default=0.0) >= FOUND_IOU
        for frame_faces, frame_boxes in zip(faces, boxes, strict=True)
        for box in frame_boxes
    )
    with Video(path) as video:
        size = f"{video.info.width}x{video.info.height}"
    return {
        "video": path.name,
        "size": size,
        "frames": frames,
        "naive_ms": 1e3 * naive_seconds / frames,
        "decode_ms": 1e3 * decode_seconds / frames,
        "track_ms": 1e3 * track_seconds / frames,
        "prepare_ms": 1e3 * prepare_seconds / frames,
        "speedup": naive_seconds / track_seconds,
        "prepare_speedup": naive_seconds / prepare_seconds,
        "over_decoding": track_seconds / decode_seconds,
        "faces": sum(map(len, boxes)),
        "found": matched,
        "boxes": sum(map(len, faces)),
        "extra": sum(1 for _ in _extra(path, faces, boxes)),
    }


def worker_speedup(folder: Path) -> float:
    """Return how many times faster two workers prepare a corpus of copies than one: medians of runs in turn."""
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "real"
        corpus.mkdir()
        for path in sorted(folder.glob("*.mp4")):
            for copy in range(COPIES):
                (corpus / f"{path.stem}-{copy}.mp4").symlink_to(path.resolve())
        for repeat in range(REPEATS):
            for workers, seconds in times.items():
                before = time.perf_counter()
                out = Path(scratch) / f"store-{repeat}-{workers}"
                prepare([corpus], out, label="real", clips_per_video=5, workers=workers)
                seconds.append(time.perf_counter() - before)
    return statistics.median(times[1]) / statistics.median(times[2])


COLUMNS = ("video", "size", "naive_ms", "decode_ms", "track_ms", "prepare_ms", "speedup", "prepare_speedup")


def study(
    videos: Annotated[Path, typer.Argument(help="A folder of .mp4 files with faces.")],
    min_height: Annotated[int, typer.Option(help="Only videos whose shorter side has so many pixels.")] = 0,
) -> None:
    """Measure face finding and prepare against dlib on every full frame.

    Example: **python -m benchmarks.studies.prepare videos --min-height 720**
    """
    rows = []
    for path in progress(sorted(videos.glob("*.mp4")), "measure"):
        with Video(path) as video:
            if min(video.info.width, video.info.height) < min_height:
                continue
            if video.count() < CLIP_FRAMES:
                say(f"{path}: it has no clip of {CLIP_FRAMES} frames, so it is not measured")
                continue
        rows.append(measure(path))
    if not any(row["faces"] for row in rows):
        raise StageError(f"{videos} holds no .mp4 with a face whose shorter side has {min_height} pixels or more")
    table = Table(*COLUMNS, "over_decoding", "found", "extra")
    for row in rows:
        cells = [f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in COLUMNS]
        shares = f"{row['found']}/{row['faces']}", f"{row['extra']}/{row['boxes']}"
        table.add_row(*cells, f"{row['over_decoding']:.2f}", *shares)
    Console(width=160).print(table)
    total = {name: sum(row[name] for row in rows) for name in ("faces", "found", "boxes", "extra")}
    say(f"found {total['found'] / total['faces']:.4f}, extra {total['extra'] / total['boxes']:.4f}")
    machine = describe_machine().model_dump()
    print(json.dumps({"machine": machine, "videos": rows} | total | {"two_workers": worker_speedup(videos)}))


if __name__ == "__main__":
    run_as_script(study)
