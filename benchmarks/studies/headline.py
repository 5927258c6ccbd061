"""Make the report in ``docs/``: ``python -m benchmarks.studies.headline PHOTOS VIDEOS --out DIR``.

It compares every teacher, student, scheme and runtime on persons never seen in training: photos filmed by the demo's
moving camera, and real videos. The frame teacher (EfficientNet-Lite0 from ImageNet weights) and the frame student learn
from single frames; the clip student starts from the frame student and learns from clips of 20. DINOv2-base, Megatron
and the depth network of real size have random weights (no hub here): they are timed, and never scored.
"""

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from benchmarks.bench import bench
from benchmarks.reference import reference
from benchmarks.studies.faces import imagenet_weights
from benchmarks.studies.teachers import SMALL, save_random_depth
from command import run_as_script
from compress.distill import distill
from compress.quantize import quantize
from compress.teach import teach
from data.demo import FPS, Camera, Portrait
from data.faces import DlibHog, whole
from data.picture import Picture
from data.prepare import prepare
from data.video import write_video
from export.export import export
from files import written_whole
from processes import in_processes
from stage import LowPrecision, StageError, say

STUDENT, TEACHER, LARGE_TEACHER = "repvit_m0_9", "tf_efficientnet_lite0", "vit_base_patch14_dinov2"
SIZE, FRAMES = 224, 20
SHARES = {"train": 76, "val": 12, "test": 12}
"""Per cent of persons."""
CLIP_PERSONS = 9
"""One in so many training persons is in the clips too; few suffice after training on single frames."""
SCHEMES: tuple[LowPrecision, ...] = ("fp16", "int8")


def split_of(person: str) -> str:
    """Return a person's split, the same in every store."""
    draw = int(hashlib.sha256(person.encode()).hexdigest(), 16) % 100
    return "train" if draw < SHARES["train"] else "val" if draw < SHARES["train"] + SHARES["val"] else "test"


def film(photo: Path, target: Path) -> None:
    """Write a video of a photo of one face, if a face is found in it."""
    pixels = cv2.imread(str(photo), cv2.IMREAD_COLOR_RGB)
    picture = Picture.of(np.asarray(pixels, np.uint8)) if pixels is not None else None
    faces = DlibHog().detect(picture, whole(picture), 1.0) if picture else []
    if not faces:
        say(f"{photo}: no face is found, so it is not filmed", everywhere=True)
        return
    camera = Camera.draw(np.random.default_rng(int(hashlib.sha256(photo.name.encode()).hexdigest()[:8], 16)))
    frames = [frame for frame, _ in camera.film(Portrait(np.asarray(pixels, np.uint8), max(faces, key=_score).box))]
    with written_whole(target) as aside:
        write_video(aside, frames, FPS)


def _score(face: Any) -> float:
    return float(face.score)


def make_corpus(photos: Path, videos: Path, out: Path) -> Path:
    """Film the photos, copy the videos beside them, and write the tables of persons and splits; return the folder."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(photo, out / f"{photo.stem}.mp4") for photo in sorted(photos.glob("*.jpg"))]
    in_processes(film, [(photo, target) for photo, target in jobs if not target.exists()], 1, "film")
    for video in sorted(videos.glob("*.mp4")):
        if not (out / video.name).exists():
            with written_whole(out / video.name) as aside:
                aside.write_bytes(video.read_bytes())
    rows = [(path.name, path.stem.partition("_")[0]) for path in sorted(out.glob("*.mp4"))]
    training_persons = sorted({person for _, person in rows if split_of(person) == "train"})
    left_out = set(training_persons) - set(training_persons[::CLIP_PERSONS])
    tables = {out / "frames.csv": rows, out / "clips.csv": [row for row in rows if row[1] not in left_out]}
    for table, entries in tables.items():
        with written_whole(table) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "identity", "split"])
            writer.writerows([name, "real", person, split_of(person)] for name, person in entries)
    return out


def make_runs(corpus: Path, out: Path) -> dict[str, Path]:
    """Prepare, teach and distill what is missing; return the paths of the stores and runs by name."""
    if not (out / "depth-tiny-random").exists():
        save_random_depth(out / "depth-tiny-random")
    if not (out / "depth-small-random").exists():
        save_random_depth(out / "depth-small-random", SMALL)
    common: dict[str, Any] = {"size": SIZE, "start": "spread"}
    steps: dict[str, Callable[[Path], object]] = {
        "frames": lambda to: prepare([corpus / "frames.csv"], to, frames=1, clips_per_video=4, forge=1, **common),
        "clips": lambda to: prepare(
            [corpus / "clips.csv"], to, frames=FRAMES, forge=1, modalities="rgb,depth",
            depth_weights=out / "depth-tiny-random", **common,
        ),
        "frame-teacher": lambda to: teach(
            "dino", out / "frames", to, backbone=TEACHER, weights=imagenet_weights(TEACHER, out), unfreeze="all",
            epochs=1, views=3, batch_size=32, learning_rate=5e-4, forge=True,
        ),
        "student-first": lambda to: distill(
            out / "frames", to, out / "frame-teacher", student=STUDENT, epochs=1, views=10, batch_size=32,
            learning_rate=1e-3, patience=4, forge=True, live_teacher=True,
        ),
        "student": lambda to: distill(
            out / "frames", to, out / "frame-teacher", student=STUDENT, weights=str(out / "student-first"),
            epochs=1, views=12, batch_size=32, learning_rate=7e-4, ema=0.98, forge=True, live_teacher=True,
        ),
        "clip-student": lambda to: distill(
            out / "clips", to, student=STUDENT, kind="clip", loss="classification", weights=str(out / "student"),
            epochs=1, batch_size=4, learning_rate=2e-4, forge=True,
        ),
        "megatron-random": lambda to: teach(
            "megatron", out / "clips", to, backbone=STUDENT, random_weights=True, epochs=0,
        ),
        "dinov2-base-random": lambda to: teach(
            "dino", out / "clips", to, backbone=LARGE_TEACHER, random_weights=True, epochs=0,
        ),
    }  # fmt: skip
    paths = {name: out / name for name in steps}
    for name, step in steps.items():
        if not paths[name].exists():
            say(f"== {name}")
            step(paths[name])
    return paths


def make_bundles(made: dict[str, Path], out: Path) -> list[Path]:
    """Quantize and export what is missing; return the bundles of the frame student and of the clip student.

    ``made``: the stores and runs of ``make_runs``.
    """
    bundles = []
    for student, store in (("student", made["frames"]), ("clip-student", made["clips"])):
        runs = [made[student]]
        for scheme in SCHEMES:
            runs.append(out / f"{student}-{scheme}")
            if not runs[-1].exists():
                quantize(made[student], store, runs[-1], scheme)
        bundles.append(out / f"bundle-{student}")
        if not bundles[-1].exists():
            export(runs, made["clips"], bundles[-1])
    return bundles


def headline(
    photos: Annotated[Path, typer.Argument(help="Photos of real faces; the person is pNNN at the start of a name.")],
    videos: Annotated[Path, typer.Argument(help="Folder of videos of real faces, one person in each.")],
    out: Annotated[Path, typer.Option(help="Folder for everything that is made; a second call goes on with it.")],
) -> None:
    """Train, quantize and export every kind of teacher and student, and measure them in one report.

    Example: **python -m benchmarks.studies.headline ../shared/data/faces ../shared/data/talking --out headline**
    """
    if not any(videos.glob("*.mp4")):
        raise StageError(f"{videos} holds no .mp4: give a folder of videos")
    paths = make_runs(make_corpus(photos, videos, out / "corpus"), out)
    bundles = make_bundles(paths, out)
    if not (out / "reference.json").exists():
        reference(paths["frame-teacher"], paths["clips"], out / "reference.json")
    runs = [paths[name] for name in ("dinov2-base-random", "megatron-random", "student", "clip-student")]
    runs += [out / f"student-{scheme}" for scheme in SCHEMES]
    video = max(videos.glob("*.mp4"), key=lambda path: path.stat().st_size)
    options: dict[str, Any] = {"video": video, "depth_weights": out / "depth-small-random"}
    options |= {"sustain": 5, "profile": True}
    bench([*bundles, *runs], paths["clips"], out / "reference.json", out / "report", **options)


if __name__ == "__main__":
    run_as_script(headline)
