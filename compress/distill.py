"""Distill a teacher into a student: classification + KL on logits + KL between embeddings."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from compress import losses
from compress.caches import (
    CacheFolder,
    CacheKey,
    FrameCache,
    default_cache,
    shared_cache,
    weights_fingerprint,
)
from compress.compute import Compute, Precision, check_batch, prepare_compute
from compress.runs import data_source, finish_run
from compress.scoring import Takes, from_pixels
from compress.training import Accumulate, Balance, BatchSize, Curve, Patience, Schedule, Task, class_weights, fit
from data.augment import DEFAULT_POLICY
from data.batches import Batch, batch_pixels
from data.forge import WEAKEST
from data.store import ClipStore
from data.views import Forge, Policy, ViewCount, ViewRule, Views, WeakestForgery
from models.detector import Architecture, Detector, PixelDetector, Preprocessing, check_backbone, classify, per_picture
from models.run import Run, RunInfo, UnfinishedRun
from models.weights import backbone_with_weights
from stage import Seed, StageError, refuse_existing, run_as_script


def load_teacher(path: Path, store: ClipStore) -> tuple[Run, Detector]:
    """Load the run to learn from. Raises StageError if it is not one, or looks at what the store does not hold."""
    run = Run(path)
    architecture = run.info.architecture
    if run.info.meaningless:
        raise StageError(f"{path} has nothing to teach: {run.info.meaningless}")
    if run.info.scheme != "fp32":
        raise StageError(f"{path} is quantized ({run.info.scheme}): distill from the run that it came from")
    if architecture.per != "frame":
        raise StageError(f"{path} scores whole clips: a frame student learns from a teacher of frames, teach dino")
    if architecture.size != store.size:
        raise StageError(f"{path} takes {architecture.size} px crops, {store.path} holds {store.size} px")
    store.require(architecture.modalities)
    return run, run.detector()


def cache_teacher(teacher: Detector, info: RunInfo, views: Views, compute: Compute, cache: Path) -> FrameCache:
    """Compute the teacher once per training frame: rows are its embedding followed by its two logits.

    Views of which it sees a modality that cannot be read are marked in ``views``, and drawn no more.
    """
    device, architecture = compute.device, info.architecture
    seen = Views(views.store, views.rule, views.split, architecture.modalities)
    pixels_in = PixelDetector(teacher, info.preprocessing).to(device).to(memory_format=torch.channels_last).eval()

    def outputs(pixels: NDArray[np.uint8]) -> torch.Tensor:
        pictures = pixels_in.pictures(torch.from_numpy(pixels).to(device))
        with torch.inference_mode(), compute.context():
            embedding = per_picture(teacher.backbone, pictures)
            logits = classify(teacher.head, embedding)
            return torch.cat([embedding.flatten(1).float(), logits.float()], dim=-1)

    key = CacheKey(
        of="teacher outputs",
        store=views.store.info.fingerprint,
        weights=weights_fingerprint(teacher),
        network=architecture.model_dump_json(),
        precision=str(compute.dtype),
        modalities=architecture.modalities,
        rule=views.rule,
    )
    filled = shared_cache(cache, key, seen, outputs, compute)
    views.unreadable |= seen.unreadable
    return filled


class StudentObjective(nn.Module):
    """Classification, and the teacher's logits and embedding imitated: scalar loss."""

    def __init__(self, student: Detector, teacher_width: int, weights: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: Tensor | None
        self.student = student
        self.projector = nn.Linear(teacher_width, student.embedding_size)

    def forward(self, labels: Tensor, pictures: Tensor, taught: Tensor) -> Tensor:
        """Return the mean loss. labels: int64 [B]; pictures: [B, 3, S, S]; taught: [B, D + 2], see cache_teacher."""
        embedding = self.student.backbone(pictures)
        logits = self.student.head(embedding)
        return (
            losses.classification(logits, labels, self.class_weights)
            + losses.kl_logits(logits, taught[:, -2:])
            + losses.kl_embeddings(embedding, self.projector(taught[:, :-2]))
        )


def student_task(
    student: PixelDetector, objective: StudentObjective, taught: FrameCache, views: Views, compute: Compute
) -> Task:
    """Return what trains: ``student`` holds the detector of ``objective``, which imitates what the teacher said."""
    device = compute.device
    student.to(device).to(memory_format=torch.channels_last)

    def inputs_of(batch: Batch) -> tuple[Tensor, ...]:
        pixels = torch.from_numpy(batch_pixels(views, batch)).to(device)
        pictures = student.pictures(pixels).contiguous(memory_format=torch.channels_last)
        return torch.from_numpy(batch.labels).to(device), pictures, taught[batch.rows].to(device)

    def scorer(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = student(torch.from_numpy(pixels).to(device)).float().cpu().numpy()
        return scores

    return Task(objective.to(device), inputs_of, from_pixels(scorer, views.store, Takes()), views)


def distill(
    teacher: Annotated[Path, typer.Option(help="The run to learn from.")],
    data: Annotated[Path, typer.Option(help="The ClipStore to train on.")],
    out: Annotated[Path, typer.Option(help="The run to write.")],
    student: Annotated[str, typer.Option(help="Any timm backbone.")] = "repvit_m0_9",
    kind: Annotated[Literal["frame"], typer.Option(help="frame: one crop -> P(fake).")] = "frame",  # noqa: ARG001
    weights: Annotated[Path | None, typer.Option(help="Starting weights: a file, or a folder from the hub.")] = None,
    epochs: Annotated[int, typer.Option(help="Times that every view of a clip is seen.", min=1)] = 20,
    batch_size: BatchSize = None,
    accumulate: Accumulate = 1,
    learning_rate: Annotated[float, typer.Option(min=1e-7, max=1.0)] = 2e-3,
    curve: Curve = "cosine",
    patience: Patience = 10,
    balance: Balance = "batches",
    precision: Precision = "autocast",
    views: ViewCount = 1,
    augment: Policy = DEFAULT_POLICY,
    forge: Forge = False,
    weakest_forgery: WeakestForgery = WEAKEST,
    cache: CacheFolder = None,
    seed: Seed = 0,
) -> None:
    """Distill a teacher into a student small enough for a phone. An interrupted one goes on when it is called again.

    Without --weights the student starts from scratch; the run says so.

    Example: **pocketproof distill --teacher runs/dino --data store --out runs/student**
    """
    refuse_existing(out)
    store = ClipStore(data)
    training = Views(
        store, ViewRule(views=views, augment=augment, forge=forge, weakest_forgery=weakest_forgery, seed=seed)
    )
    store.clips("val"), store.clips("test")
    check_backbone(student)
    run, network = load_teacher(teacher, store)
    schedule = Schedule(
        epochs,
        batch_size=batch_size or 16,
        accumulate=accumulate,
        learning_rate=learning_rate,
        curve=curve,
        patience=patience,
        balance=balance,
        precision=precision,
    )
    torch.manual_seed(seed)
    body, source = backbone_with_weights(student, store.size, weights, random=weights is None)
    detector = Detector(Architecture(backbone=student, size=store.size), body)
    info = RunInfo(
        kind="student",
        architecture=detector.architecture,
        preprocessing=Preprocessing.of(student),
        weights=source,
        trained_steps=0,
        parents=[run.as_parent()],
        data=data_source(store),
        seed=seed,
    )
    asked = {"run": info.model_dump(), "rule": training.rule.model_dump(), "schedule": asdict(schedule)}
    with UnfinishedRun(out, asked) as unfinished:
        compute = prepare_compute(precision)
        check_batch(schedule.batch_size, accumulate, compute.processes)
        taught = cache_teacher(network, run.info, training, compute, cache or default_cache(data))
        width = network.embedding_size * len(run.info.architecture.modalities)
        objective = StudentObjective(detector, width, class_weights(balance, training, "frame"))
        pixels_in = PixelDetector(detector, info.preprocessing)
        task = student_task(pixels_in, objective, taught, training, compute)
        history = fit(compute, task, schedule, seed, unfinished)
        finish_run(unfinished, info, pixels_in, store, history)


if __name__ == "__main__":
    run_as_script(distill)
