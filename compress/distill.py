"""Distill a teacher into a student, which imitates the teacher's outputs; these are computed once per picture."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from torch import Tensor

from command import run_as_script, takes_options
from compress.caches import CacheFolder, default_cache
from compress.checkpoints import asked_of
from compress.compute import Compute, prepare_compute, samples_of_part
from compress.objective import CLASSIFICATION, StudentObjective, check_related, parse_losses
from compress.provenance import crops_notes, data_source, say_notes
from compress.runs import check_measured_splits, check_store, finish_run, torch_scorer
from compress.schedule import BatchSize, Schedule, class_weights
from compress.scoring import Takes, from_pixels
from compress.teacher_outputs import TeacherOutputs
from compress.training import Task, fit
from data.batches import Batch, read_batch
from data.store import ClipStore
from data.views import ViewRule, Views
from files import refuse_existing
from models.detector import Architecture, check_backbone
from models.outputs import example_outputs
from models.pixels import PixelDetector
from models.run import Run, UnfinishedRun
from models.start import Start
from models.temporal import TemporalSettings
from stage import Modality, Per, Seed, StageError, WrongArgument

DEFAULT_LOSS = "classification,kl,embedding-kl"
BATCH = {"frame": 16, "clip": 4}
"""Default batch size in frames or clips, by kind of student."""


def load_teacher(path: Path, store: ClipStore, kind: str) -> Run:
    """Return the teacher run at ``path``.

    Raises StageError if it has no trained fp32 network, if it does not score what the ``kind`` of student scores (frame
    or clip), or if the store does not hold its inputs.
    """
    run = Run(path)
    architecture = run.info.architecture
    if run.info.meaningless:
        raise StageError(f"{path} has nothing to teach: {run.info.meaningless}")
    if run.info.scheme != "fp32":
        raise StageError(f"{path} is quantized ({run.info.scheme}): distill from the run that it came from")
    if architecture.per != kind:
        other = "teach megatron" if kind == "clip" else "teach dino"
        raise StageError(
            f"{path} scores {architecture.per}s: a {kind} student learns from a teacher of {kind}s, {other}"
        )
    check_store(run, store)
    say_notes(crops_notes([str(path)], run.info.data.crops, architecture.modalities, store))
    return run


def _losses(text: str, teacher: Path | None) -> dict[str, float]:
    """Return the weight of each loss.

    Raises WrongArgument if a loss needs a teacher and there is none, or if no loss uses the teacher.
    """
    weights = parse_losses(text)
    imitated = [name for name in weights if name != CLASSIFICATION]
    if imitated and teacher is None:
        raise WrongArgument(
            f"--loss {', '.join(imitated)} imitates a teacher: give --teacher, or --loss {CLASSIFICATION}"
        )
    if teacher is not None and not imitated:
        raise WrongArgument(
            f"--loss {text} asks nothing of {teacher}: leave --teacher out, or add a loss that imitates it"
        )
    return weights


def _check_options(
    balance: str, loss_weights: dict[str, float], teacher: Path | None, live_teacher: bool, cache: Path | None
) -> None:
    """Raise WrongArgument for an option without effect: of labels without a loss of them, of a teacher without one."""
    if balance == "weights" and CLASSIFICATION not in loss_weights:
        raise WrongArgument(
            f"--balance weights weighs labels in the loss {CLASSIFICATION}: add it to --loss, or leave --balance out"
        )
    if live_teacher and teacher is None:
        raise WrongArgument("--live-teacher asks a teacher at every step: give --teacher, or leave it out")
    if cache and (live_teacher or teacher is None):
        raise WrongArgument("--cache keeps what a teacher says: leave it out with --live-teacher and without --teacher")


def _architecture(
    student: str, kind: str, modality: Modality, activation: Literal["gelu", "relu"], size: int
) -> Architecture:
    return Architecture(
        backbone=check_backbone(student),
        size=size,
        modalities=(modality,),
        temporal=TemporalSettings() if kind == "clip" else None,
        activation=None if activation == "gelu" else activation,
    )


def student_task(
    student: PixelDetector, objective: StudentObjective, taught: TeacherOutputs | None, views: Views, compute: Compute
) -> Task:
    """Return the training task of a student.

    ``student`` wraps the detector of ``objective``; ``taught``: the teacher's outputs that it imitates, if any.
    """
    architecture = objective.student.architecture
    device, per = compute.device, architecture.per
    student.to(device).to(memory_format=torch.channels_last)

    def inputs_of(batch: Batch) -> tuple[Tensor, ...]:
        read = read_batch(views, batch, per)
        teacher_rows: tuple[Tensor, ...] = ()
        if taught:
            rows, read = taught(read)
            teacher_rows = (rows,)
        pictures = student.pictures(torch.from_numpy(read.pixels).to(device))
        if pictures.ndim == 4:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        valid = () if read.valid is None else (torch.from_numpy(read.valid).to(device),)
        return torch.from_numpy(batch.labels).to(device), pictures, *valid, *teacher_rows

    clip_scorer = from_pixels(torch_scorer(student, device), views.store, Takes(architecture.modalities, per))
    return Task(objective.to(device), inputs_of, clip_scorer, views, per)


@takes_options
def distill(
    data: Annotated[Path, typer.Option(help="The ClipStore to train on.")],
    out: Annotated[Path, typer.Option(help="The run to write.")],
    teacher: Annotated[
        Path | None, typer.Option(help="The run to learn from; none only with --loss classification.")
    ] = None,
    student: Annotated[str, typer.Option(help="Any timm backbone.")] = "repvit_m0_9",
    kind: Annotated[
        Per,
        typer.Option(help="frame: one crop -> P(fake); clip: all crops of a clip, from a megatron teacher."),
    ] = "frame",
    modality: Annotated[
        Modality, typer.Option(help="What the student looks at, whatever the teacher does; a phone has rgb.")
    ] = "rgb",
    loss: Annotated[
        str, typer.Option(help="Weighted sum, as classification=0.5,kl=1,dense=2; an unknown name lists all.")
    ] = DEFAULT_LOSS,
    activation: Annotated[
        Literal["gelu", "relu"], typer.Option(help="relu: in place of GELUs, for which int8 runtimes leave int8.")
    ] = "gelu",
    weights: Annotated[
        str | None, typer.Option(help="Starting weights: a run, a file, a folder from the hub, or the word hub.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Times that every view of a clip is seen.", min=1)] = 20,
    batch_size: BatchSize = None,
    learning_rate: Annotated[float, typer.Option(min=1e-7, max=1.0)] = 2e-3,
    schedule: Schedule = Schedule(),
    rule: ViewRule = ViewRule(),
    live_teacher: Annotated[
        bool, typer.Option("--live-teacher", help="Ask the teacher at every step: slow, but takes no disk.")
    ] = False,
    cache: CacheFolder = None,
    seed: Seed = 0,
) -> None:
    """Distill a teacher into a student small enough for a phone. An interrupted one goes on when it is called again.

    Without --weights the student starts from scratch; the run says so.

    Example: **pocketproof distill --teacher runs/dino --data store --out runs/student**
    """
    refuse_existing(out)
    loss_weights = _losses(loss, teacher)
    _check_options(schedule.balance, loss_weights, teacher, live_teacher, cache)
    store = ClipStore(data)
    if kind == "clip" and store.frames == 1:
        raise StageError(f"{data} holds single pictures: a clip student needs clips; prepare videos, or --kind frame")
    architecture = _architecture(student, kind, modality, activation, store.size)
    rule = rule.seeded(seed)
    training = Views(store, rule, modalities=[modality])
    check_measured_splits(store)
    run = load_teacher(teacher, store, kind) if teacher else None
    teacher_views = Views(store, rule, modalities=run.info.architecture.modalities) if run else None
    schedule = replace(schedule, epochs=epochs, batch_size=batch_size or BATCH[kind], learning_rate=learning_rate)
    start = Start.of(architecture, Path(weights) if weights not in (None, "hub") else None, weights is None, seed)
    parents = [parent for parent in (run, start.run) if parent]
    info = start.info("student", data_source(store, [modality], *parents), seed, *parents)
    compute = prepare_compute(schedule.precision)
    asked = asked_of(info, training, compute) | {"schedule": schedule.asked(), "loss": loss_weights}
    check_related(loss_weights, samples_of_part(schedule.batch_size, schedule.accumulate, compute.processes))
    example = example_outputs(start.detector, store.frames, "dense" in loss_weights and kind == "frame")
    with UnfinishedRun(out, asked) as unfinished:
        cache_folder = None if live_teacher else cache or default_cache(data)
        teacher_outputs = None
        if run and teacher_views:
            teacher_outputs = TeacherOutputs(run, training, teacher_views, example, compute, cache_folder)
        objective = StudentObjective(
            start.detector,
            loss_weights,
            class_weights(schedule.balance, training, kind),
            teacher_outputs.layout if teacher_outputs else None,
            example,
        )
        pixels_in = PixelDetector(start.detector, info.preprocessing)
        task = student_task(pixels_in, objective, teacher_outputs, training, compute)
        history = fit(compute, task, schedule, seed, unfinished)
        finish_run(unfinished, info, pixels_in, store, history | {"loss": loss_weights})


if __name__ == "__main__":
    run_as_script(distill)
