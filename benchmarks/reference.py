"""The reference: scores, latency and memory of the unquantized teacher on the best device at hand, in one file.

The file can be copied to other machines, whose reports compare with it.
"""

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from benchmarks.figures import Latency
from benchmarks.machine import Machine, describe_machine
from benchmarks.measuring import measure_apart, refuse_changed, refuse_changed_store, write_timed_crops
from benchmarks.schema import ReferenceSummary
from benchmarks.task import BatchTiming, Measurement, Scores, Task, Timing
from command import run_as_script
from compress.metrics import Metrics
from compress.provenance import crops_notes, seen_note
from compress.runs import check_store, own_threshold, takes
from data.store import ClipStore
from files import refuse_existing, scratch_beside, written_whole
from models.origin import Parent
from models.run import Run
from models.schemes import fast_dtype
from parsing import read_json
from resuming import alone
from stage import StageError, counted, heed_quota, refuse_tf32, say

SCHEMA_VERSION = 3


class Reference(BaseModel):
    """``reference.json``: everything that a report on another machine compares with."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    created: str
    run: Parent
    backbone: str
    device: str
    precision: str
    tf32: bool
    """Whether float32 convolutions or matrix products may round to TF32 (NVIDIA GPUs only)."""
    machine: Machine
    split: str
    fingerprint: str
    """Fingerprint of the store that was scored."""
    latency_ms: Latency
    """Milliseconds per frame, one frame at once; for a clip model one clip at once, divided by its frames."""
    repeats: int
    batches: list[BatchTiming]
    """Timings of growing batches."""
    best_batch: PositiveInt
    """The batch of the most frames a second."""
    throughput: PositiveFloat
    """Frames a second in ``best_batch``."""
    load_ms: float
    peak_memory_mb: float
    """Largest resident set of the process in MiB, with one sample at once."""
    device_memory_mb: float | None
    """Largest sum of tensors on the GPU in MiB, with one sample at once; None on a CPU."""
    metrics: Metrics
    """Accuracy at the run's own threshold."""
    scores: Scores
    notes: list[str]

    def summary(self) -> ReferenceSummary:
        """Return the part of this reference that a report holds."""
        return ReferenceSummary(
            run=self.run.name,
            sha256=self.run.sha256,
            backbone=self.backbone,
            device=self.device,
            precision=self.precision,
            clips=len(self.scores.labels),
            auc=self.metrics.auc,
            latency_ms=self.latency_ms,
            throughput=self.throughput,
            best_batch=self.best_batch,
            tf32=self.tf32,
            peak_memory_mb=self.peak_memory_mb,
            device_memory_mb=self.device_memory_mb,
            notes=self.notes,
        )


def read_reference(path: Path) -> Reference:
    """Read a ``reference.json``. Raises StageError if it is missing, damaged or of another version."""
    missing = f"{path} cannot be read: make it with pocketproof reference"
    return read_json(path, Reference, SCHEMA_VERSION, missing, "measure it again")


def choose_device(device: str) -> str:
    """Return ``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``. Raises StageError if ``cuda`` is not available."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise StageError("--device cuda: this machine has no GPU that torch can use; give --device cpu")
    return device


def reference(
    run: Annotated[Path, typer.Argument(help="The teacher's run.")],
    data: Annotated[Path, typer.Option(help="The ClipStore to score.")],
    out: Annotated[Path, typer.Option(help="The file to write, for example reference.json.")],
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")] = "auto",
    precision: Annotated[Literal["fp32", "autocast"], typer.Option(help="What the teacher computes in.")] = "fp32",
    repeats: Annotated[int, typer.Option(help="Timed frames.", min=10)] = 50,
) -> Reference:
    """Measure a teacher: scores of every test clip, latency and memory.

    Example: **pocketproof reference runs/dino --data store --out reference.json**
    """
    refuse_existing(out)
    store, source = ClipStore(data), Run(run)
    torch_device = choose_device(device)
    refuse_tf32()  # as the worker does, so that ``tf32`` below is true of the worker too
    _check(source, store, torch_device, precision)
    heed_quota()
    threads = torch.get_num_threads()
    with alone(out):
        with scratch_beside(out) as folder:
            measurement = _measure(source, store, torch_device, precision, threads, repeats, folder)
        result = _reference_of(measurement, source, store, torch_device, precision, threads)
        with written_whole(out) as aside:
            aside.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    batch = f"in batches of {result.best_batch} samples"
    cost = f"{result.latency_ms.p50:.1f} ms a frame, {result.throughput:.0f} frames/s {batch}"
    say(f"{out}: {result.backbone} on {result.device}, AUC {result.metrics.auc:.3f}, {cost}")
    return result


def _reference_of(
    measurement: Measurement,
    source: Run,
    store: ClipStore,
    torch_device: str,
    precision: Literal["fp32", "autocast"],
    threads: int,
) -> Reference:
    """Return the reference of a measured run."""
    assert measurement.timing is not None
    test = measurement.scores["test"].to_clip_scores()
    machine = describe_machine()
    return Reference(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        run=source.as_parent(),
        backbone=source.info.architecture.backbone,
        device=machine.accelerators[0] if torch_device == "cuda" else f"{counted(threads, 'thread')} of {machine.name}",
        precision=precision,
        tf32=torch_device == "cuda" and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
        machine=machine,
        split="test",
        fingerprint=store.info.fingerprint,
        metrics=test.metrics(own_threshold(source).value),
        scores=measurement.scores["test"],
        notes=_notes(source, store, torch_device),
        **_cost(measurement.timing),
    )


def _check(source: Run, store: ClipStore, device: str, precision: str) -> None:
    """Raise StageError, before anything is measured, if the run, store or precision cannot give a reference."""
    if source.info.scheme != "fp32":
        raise StageError(f"{source.path} is in {source.info.scheme}: the reference is the run that it came from")
    if reason := source.info.meaningless:
        raise StageError(f"{source.path} cannot be a reference: {reason}")
    own_threshold(source)
    check_store(source, store)
    store.clips("test")
    if precision == "autocast" and fast_dtype(torch.device(device)) is None:
        raise StageError("--precision autocast: this CPU has no bfloat16 instructions to compute in; give fp32")


def _measure(
    source: Run,
    store: ClipStore,
    device: str,
    precision: Literal["fp32", "autocast"],
    threads: int,
    repeats: int,
    folder: Path,
) -> Measurement:
    """Time a run, on pictures written to ``folder``, and score the test clips, in a fresh process.

    Raises StageError if that fails or a file changes.
    """
    model_takes, sha256 = takes(source.info), source.sha256
    task = Task(
        path=source.path,
        runtime="torch",
        scheme=precision,
        device=device,
        threads=threads,
        repeats=repeats,
        grown=True,
        size=source.info.architecture.size,
        modalities=model_takes.modalities,
        per=model_takes.per,
        frames=store.frames,
        crops=write_timed_crops(store, "test", folder, model_takes),
        scored={"test": (store.path, "test")},
    )
    measurement = measure_apart(task)
    refuse_changed(source.path, sha256)
    refuse_changed_store(store)
    return measurement


def _notes(run: Run, store: ClipStore, device: str) -> list[str]:
    notes = list(store.info.notes)
    notes += crops_notes([run.name], run.info.data.crops, run.info.architecture.modalities, store)
    notes += seen_note([run.name], run.info.data.persons, store.clips("test"), "test")
    if device == "cpu":
        notes.append("The reference was measured on the CPU, not on a GPU.")
    if run.info.weights.source == "random":
        notes.append(f"The reference teacher ({run.info.architecture.backbone}) was trained from random weights.")
    return notes


def _cost(timing: Timing) -> dict[str, Any]:
    """Return the fields of a reference that hold time or memory."""
    best = max(timing.batches, key=lambda batch: batch.frames_per_second)
    return {
        "latency_ms": Latency.of(timing.times_ms),
        "repeats": len(timing.times_ms),
        "batches": timing.batches,
        "best_batch": best.batch,
        "throughput": best.frames_per_second,
        "load_ms": timing.load_ms,
        "peak_memory_mb": timing.peak_memory_mb,
        "device_memory_mb": timing.device_memory_mb,
    }


if __name__ == "__main__":
    run_as_script(reference)
