"""The time that caching the teacher's outputs saves: ``python -m benchmarks.studies.distill STORE``.

Times training steps of the same student on the same batches, reading included: without a teacher, with cached teacher
outputs, and with the teacher computed at every step. The variants take turns, so that a slow moment of the machine hits
all of them. Weights are random, which does not change the time. Filling the cache costs about as much as one pass of
the teacher over the clips, and is done once.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from command import run_as_script
from compress.compute import Compute, Precision, prepare_compute
from compress.distill import DEFAULT_LOSS, student_task
from compress.objective import CLASSIFICATION, StudentObjective, parse_losses
from compress.teach import teach
from compress.teacher_outputs import TeacherOutputs
from compress.training import Task
from data.batches import Batch, balanced_batches
from data.store import ClipStore
from data.views import ViewRule, Views
from models.detector import Architecture, Detector
from models.outputs import example_outputs
from models.pixels import PixelDetector, Preprocessing
from models.run import Run

STUDENT = "repvit_m0_9"
ALONE, CACHED, LIVE = "no teacher", "cached teacher", "live teacher"


def task_of(loss: str, teacher: Run | None, views: Views, compute: Compute, cache: Path | None) -> Task:
    """Return the training task of a fresh student, always from the same weights; ``cache``: None for a live teacher."""
    torch.manual_seed(0)
    detector = Detector(Architecture(backbone=STUDENT, size=views.store.size))
    weights = parse_losses(loss)
    outputs = example_outputs(detector, 1, "dense" in weights)
    teacher_outputs = None
    if teacher:
        teacher_views = Views(views.store, views.rule)
        teacher_outputs = TeacherOutputs(teacher, views, teacher_views, outputs, compute, cache)
    layout = teacher_outputs.layout if teacher_outputs else None
    objective = StudentObjective(detector, weights, None, layout, outputs).train()
    model = PixelDetector(detector, Preprocessing.of(STUDENT))
    return student_task(model, objective, teacher_outputs, views, compute)


def take_turns(
    tasks: dict[str, Task], batches: list[Batch], compute: Compute
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Train each task on each batch in turn; return the seconds of steps after the first, and all losses, by task."""
    optimizers = {name: torch.optim.AdamW(task.objective.parameters(), 1e-4) for name, task in tasks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    losses: dict[str, list[float]] = {name: [] for name in tasks}
    for batch in batches:
        for name, task in tasks.items():
            started = time.perf_counter()
            with compute.context():
                loss = task.objective(*task.inputs_of(batch))
            loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            losses[name].append(float(loss.detach()))
            seconds[name].append(time.perf_counter() - started)
    return {name: step_seconds[1:] for name, step_seconds in seconds.items()}, losses


def distill(
    data: Annotated[Path, typer.Argument(help="A ClipStore.")],
    teacher: Annotated[str, typer.Option(help="The teacher's backbone.")] = "vit_base_patch14_dinov2",
    loss: Annotated[str, typer.Option(help="As of pocketproof distill.")] = DEFAULT_LOSS,
    precision: Annotated[Precision, typer.Option()] = "autocast",
    steps: Annotated[int, typer.Option(help="Timed steps of each variant.", min=3)] = 8,
) -> None:
    """Time steps of a student without a teacher, with a cached and with a live one.

    Example: **python -m benchmarks.studies.distill store**
    """
    store = ClipStore(data)
    compute, views = prepare_compute(precision), Views(store, ViewRule())
    batches = (list(balanced_batches(views, 16, (0,))) * (steps + 1))[: steps + 1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher"
        teach("dino", data, path, backbone=teacher, random_weights=True, epochs=0)
        run = Run(path)
        tasks = {
            ALONE: task_of(CLASSIFICATION, None, views, compute, None),
            CACHED: task_of(loss, run, views, compute, Path(folder) / "cache"),
            LIVE: task_of(loss, run, views, compute, None),
        }
        seconds, losses = take_turns(tasks, batches, compute)
    loss_pairs = zip(losses[CACHED], losses[LIVE], strict=True)
    figures = {
        "seconds": {name: statistics.median(step_seconds) for name, step_seconds in seconds.items()},
        "cached_over_alone": statistics.median(c / a for c, a in zip(seconds[CACHED], seconds[ALONE], strict=True)),
        "live_over_cached": statistics.median(v / c for v, c in zip(seconds[LIVE], seconds[CACHED], strict=True)),
        "largest_loss_difference": max(abs(cached - live) for cached, live in loss_pairs),
    }
    table = Table("a step", "seconds", title=f"{STUDENT} from {teacher}, {loss}, {precision}, {store.size} px")
    for name, step_seconds in seconds.items():
        table.add_row(name, f"{statistics.median(step_seconds):.3f}")
    Console(width=110).print(table)
    print(json.dumps({"loss": loss, "precision": precision} | figures | {"machine": describe_machine().model_dump()}))


if __name__ == "__main__":
    run_as_script(distill)
