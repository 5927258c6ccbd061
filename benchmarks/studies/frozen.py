"""The time that caching the frozen part of a teacher saves: ``python -m benchmarks.studies.frozen STORE``.

Times a training step from cached features against the same step that computes the frozen part anew, on the same
batches, reading included. Weights are random, which does not change the time. Filling the cache costs about as much as
one pass of the frozen part over the clips, and is done once.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import describe_machine
from command import run_as_script
from compress.compute import Precision, prepare_compute
from compress.features import Cut, Features
from compress.teach import HEAD_HIDDEN, TeacherObjective
from data.batches import Batch, balanced_batches, read_batch
from data.store import ClipStore
from data.views import ViewRule, Views
from models.detector import Architecture, Detector
from models.freezing import freeze
from models.pixels import PixelDetector, Preprocessing

STEPS = 3
UNFREEZE = ("1", "0")


def seconds_of_steps(
    objective: TeacherObjective, features_of: Callable[[Batch], Tensor], batches: list[Batch], context: torch.autocast
) -> float:
    """Return the median seconds of STEPS training steps, after one to warm up."""
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], fused=True)
    seconds = []
    for batch in batches[: STEPS + 1]:
        started = time.perf_counter()
        with context:
            features = features_of(batch)
            loss = objective(torch.from_numpy(batch.labels).to(features.device), features)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def compare(store: ClipStore, backbone: str, unfreeze: str, precision: Precision) -> tuple[float, float]:
    """Return the seconds of a step that computes the frozen part, and of a step from the cache."""
    torch.manual_seed(0)
    compute, views = prepare_compute(precision), Views(store, ViewRule())
    detector = Detector(Architecture(backbone=backbone, size=store.size, head_hidden=HEAD_HIDDEN))
    model = PixelDetector(detector, Preprocessing.of(backbone)).to(memory_format=torch.channels_last)
    model.to(compute.device)
    frozen, top = freeze(detector.backbone, unfreeze)
    cut = Cut(detector, model, frozen, top, unfreeze)
    objective = TeacherObjective(cut, None).train()
    batches = list(balanced_batches(views, 16, (0,))) * (STEPS + 1)

    def live(batch: Batch) -> Tensor:
        with torch.no_grad():
            pictures = model.pictures(torch.from_numpy(read_batch(views, batch).pixels).to(compute.device))
            outputs: Tensor = frozen.eval()(pictures.contiguous(memory_format=torch.channels_last))
        return outputs

    with tempfile.TemporaryDirectory() as folder:
        features = Features(cut, views, compute, Path(folder))
        cached = seconds_of_steps(objective, lambda batch: features(batch)[0], batches, compute.context())
    return seconds_of_steps(objective, live, batches, compute.context()), cached


def frozen(
    data: Annotated[Path, typer.Argument(help="A ClipStore.")],
    backbone: Annotated[str, typer.Option(help="A vision transformer of timm.")] = "vit_base_patch14_dinov2",
    precision: Annotated[Precision, typer.Option()] = "fp32",
) -> None:
    """Time steps with one block and with the head alone in training, with and without the cache.

    Example: **python -m benchmarks.studies.frozen store**
    """
    seconds = {unfreeze: compare(ClipStore(data), backbone, unfreeze, precision) for unfreeze in UNFREEZE}
    table = Table("trained", "seconds a step", "from the cache", "ratio")
    for unfreeze, (live, cached) in seconds.items():
        trained = "head" if unfreeze == "0" else "last block"
        table.add_row(trained, f"{live:.2f}", f"{cached:.3f}", f"{live / cached:.1f}")
    Console(width=100).print(table)
    machine = describe_machine().model_dump()
    print(json.dumps({"backbone": backbone, "precision": precision, "seconds": seconds, "machine": machine}))


if __name__ == "__main__":
    run_as_script(frozen)
