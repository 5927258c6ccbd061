"""A clip student against Megatron: ``python -m benchmarks.studies.clips VIDEOS --backbone RUN --out DIR``.

Megatron sees RGB and depth, the student RGB alone. Both start from the RepViT of a frame detector that was trained on
photos (``benchmarks.studies.losses`` makes some). Megatron learns from the depth of a small network with random
weights, because trained weights cannot be had here, so its accuracy is that of RGB. The cost of depth is timed with a
network of the size of Depth Anything V2 Small, with random weights too, which do not change the time.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.bench import bench
from benchmarks.reference import reference
from benchmarks.schema import Row, read_report
from benchmarks.studies.teachers import SMALL, save_random_depth
from command import run_as_script
from compress.distill import distill
from compress.teach import teach
from data.depth import DepthAnything
from data.prepare import prepare
from data.store import ClipStore
from export.export import export
from models.run import Run

LOSS = "classification,kl,dense=2,embedding-cosine"
TIMED_FRAMES = 3


def depth_ms(folder: Path, store: ClipStore) -> float:
    """Return the median milliseconds of one frame's depth on one thread; ``folder``: the network, made if missing."""
    if not folder.exists():
        save_random_depth(folder, SMALL)
    network = DepthAnything(folder=folder)
    crops = store.pixels(store.clips("test")[0])
    torch.set_num_threads(1)
    times_ms = []
    for frame in range(1 + TIMED_FRAMES):
        started = time.perf_counter()
        network(crops[[frame]])
        times_ms.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times_ms[1:])


def make_runs(videos: Path, backbone: Path, out: Path, epochs: int) -> tuple[Path, Path, Path, Path]:
    """Make what is missing; return the store and the runs of Megatron, its student, and one without a teacher."""
    store, megatron, student, alone = (out / name for name in ("store", "megatron", "student", "student-alone"))
    frame = Run(backbone).info.architecture
    if not (out / "depth").exists():
        save_random_depth(out / "depth")
    if not store.exists():
        prepare(
            [videos], store, label="real", identity_pattern=r"([^/]+)\.[^.]+$", modalities="rgb,depth", forge=2,
            depth_weights=out / "depth", ratios="0.5,0.25,0.25", clips_per_video=5, start="spread", size=frame.size,
            workers=2,
        )  # fmt: skip
    if not megatron.exists():
        teach("megatron", store, megatron, backbone=frame.backbone, weights=backbone, epochs=epochs, batch_size=8)
    common: dict[str, Any] = {
        "student": frame.backbone, "kind": "clip", "weights": str(backbone), "epochs": epochs, "batch_size": 4,
        "learning_rate": 2e-4,
    }  # fmt: skip
    if not student.exists():
        distill(store, student, megatron, loss=LOSS, **common)
    if not alone.exists():
        distill(store, alone, loss="classification", **common)
    return store, megatron, student, alone


def clips(
    videos: Annotated[Path, typer.Argument(help="Folder of videos of real faces, one person in each.")],
    backbone: Annotated[Path, typer.Option(help="The run of a frame detector on RGB, from which both start.")],
    out: Annotated[Path, typer.Option(help="Folder for everything that is made; a second call goes on with it.")],
    epochs: Annotated[int, typer.Option(help="Passes over the clips, for Megatron and for the students.")] = 20,
) -> None:
    """Teach Megatron, distill it into a clip student, export that, and measure both.

    Example: **python -m benchmarks.studies.clips ../shared/data/talking --backbone runs/student --out studies/clips**
    """
    path, megatron, student, alone = make_runs(videos, backbone, out, epochs)
    store = ClipStore(path)
    if not (out / "bundle").exists():
        export([student], path, out / "bundle")
    if not (out / "reference.json").exists():
        reference(megatron, path, out / "reference.json", repeats=10)
    if not (out / "report").exists():
        bench([out / "bundle", megatron, student, alone], path, out / "reference.json", out / "report")
    report = read_report(out / "report" / "report.json")
    depth = depth_ms(out / "depth-small-size", store)
    table = Table("row", "AUC", "parameters", "MACs a clip", "ms a clip", "with depth")
    figures = [describe(row, store.frames, depth, out) for row in report.rows if row.latency_ms]
    for row_figures in figures:
        values = row_figures.values()
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values))
    Console(width=120).print(table)
    print(
        json.dumps(
            {
                "rows": figures,
                "depth_ms_a_frame": depth,
                "clips": report.clips,
                "machine": report.sessions[0].environment,
            }
        )
    )


def describe(row: Row, frames: int, depth: float, out: Path) -> dict[str, Any]:
    """Return a row's figures per clip; ``depth``: milliseconds a frame, which only teachers need."""
    assert row.latency_ms is not None
    run = out / (row.name if row.kind == "run" else "student")
    cost = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["cost"]
    clip = row.latency_ms.p50 * frames
    return {
        "name": f"{row.name} ({row.runtime} {row.scheme})",
        "auc": row.auc,
        "parameters": cost["parameters"],
        "macs": cost["macs"],
        "ms_a_clip": clip,
        "ms_with_depth": clip + frames * depth if Run(run).info.kind == "teacher" else clip,
    }


if __name__ == "__main__":
    run_as_script(clips)
