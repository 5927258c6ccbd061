"""The rows of a report: what is to be measured, and how what was measured fills them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import get_args

import numpy as np
import torch

from benchmarks.figures import Latency, MethodFigures
from benchmarks.robustness import robustness_of
from benchmarks.schema import Row
from benchmarks.task import Measurement, Timing, clip_scores
from compress.auc import auc_change
from compress.metrics import Metrics, Threshold
from compress.runs import check_length, check_size, own_threshold, student_of, takes
from compress.scoring import ClipScores, Takes
from data.perturb import PERTURBATIONS
from data.store import ClipStore
from export.bundle import Bundle, is_bundle
from export.manifest import Artifact
from export.runtimes import ComputeUnits, evaluated_by
from files import bytes_of, shortest_names
from models.run import Run
from models.schemes import fast_dtype
from stage import PALETTES, Scheme, StageError


@dataclass
class Subject:
    """One row to be measured, and what belongs to it before and after."""

    row: Row
    path: Path
    teacher: bool
    threshold: Threshold | None
    """Its own; None of autocast, which gets one on its validation scores while it is measured."""
    meaningless: str | None
    student: str | None
    """The hash of the fp32 run that this is, or was made from."""
    takes: Takes = field(default_factory=Takes)
    frames: int | None = None
    """The length of the clips that a clip artifact takes, or that a clip run was trained on."""
    artifact: Artifact | None = None
    units: ComputeUnits = "all"
    """What Core ML may use."""
    threshold_store: str | None = None
    """Fingerprint of the store on which its own threshold was set."""
    persons: tuple[str, ...] = ()
    """Whom it has seen (``DataSource``)."""
    scores: ClipScores | None = None

    @property
    def form(self) -> tuple[object, ...]:
        """What tells artifacts of one student, scheme and runtime apart."""
        own = self.artifact
        return (own.method, own.batch, own.delegate, PurePath(own.programs[0].file).suffix) if own else ()

    @property
    def student_fp32(self) -> bool:
        """Whether verdict flips may refer to this row."""
        return self.row.kind == "run" and not self.teacher and self.row.scheme == "fp32"


def _macs_a_frame(artifact: Artifact, frames: int) -> int:
    """Return an artifact's multiply-accumulates for a frame; of what scores clips, a frame's share of a clip's."""
    per_frame = artifact.programs[0].name in ("forward", "embed")
    first, *rest = (program.macs for program in artifact.programs)
    return (first if per_frame else first // frames) + sum(rest) // frames


def _units(artifact: Artifact) -> tuple[ComputeUnits | None, ...]:
    """Return each choice of what Core ML may use, where it runs; None for what runs on the CPU."""
    return get_args(ComputeUnits) if artifact.runtime == "coreml" and not evaluated_by("coreml") else (None,)


def _artifact_subject(
    bundle: Bundle, artifact: Artifact, machine: str, threads: int, units: ComputeUnits | None
) -> Subject:
    path, clip = bundle.checked_path(artifact), bundle.manifest.clip
    by = evaluated_by(artifact.runtime)
    cannot = artifact.cannot_run() or (artifact.not_checked if by else "")
    row = Row(
        name=path.name,
        kind="artifact",
        model=bundle.manifest.backbone,
        runtime=artifact.runtime,
        scheme=artifact.scheme,
        machine=machine,
        device=units or "cpu",
        threads=threads,
        batch=artifact.batch or 1,
        input_size=bundle.manifest.crop.rule.size,
        status="not measured" if cannot else "evaluated" if by else "measured",
        reason=cannot or by or "",
        bytes=artifact.bytes,
        sha256=artifact.sha256,
        delegated_fraction=artifact.delegated_fraction,
        macs=_macs_a_frame(artifact, clip.frames),
        threshold=artifact.threshold.value,
    )
    looks, length = Takes(per=clip.per), clip.frames if clip.per == "clip" else None
    student, threshold = artifact.student, artifact.threshold
    set_on = bundle.manifest.data.fingerprint
    seen = tuple(bundle.manifest.data.persons)
    return Subject(row, path, False, threshold, None, student, looks, length, artifact, units or "all", set_on, seen)


def _run_subjects(path: Path, machine: str, threads: int) -> Iterator[Subject]:
    """Yield a run's rows: in its own scheme and, for a float run, under autocast."""
    run = Run(path)
    info = run.info
    student, sha256 = student_of(run), run.sha256
    schemes: tuple[Scheme, ...] = ("fp32", "autocast") if info.scheme == "fp32" else (info.scheme,)
    for scheme in schemes:
        slow = cannot = ""
        if info.integer:
            slow = "int8 arithmetic simulated in float32 by torch: its latency says nothing"
        elif scheme in PALETTES:
            slow = "torch keeps the weights in float32: its latency and size say nothing"
        elif scheme == "autocast" and fast_dtype(torch.device("cpu")) is None:
            # Emulated, DINOv2-base takes a hundred times as long as in float32.
            cannot = "this CPU has no bfloat16 instructions"
        row = Row(
            name=path.name,
            kind="run",
            model=info.architecture.backbone,
            runtime="torch",
            scheme=scheme,
            machine=machine,
            device="cpu",
            threads=threads,
            input_size=info.architecture.size,
            status="not measured" if cannot else "measured",
            reason=cannot or info.meaningless or slow,
            bytes=bytes_of(path / "model.safetensors"),
            sha256=sha256,
        )
        looks = takes(info)
        length = info.data.frames if looks.per == "clip" else None
        subject = Subject(row, path, info.kind == "teacher", None, info.meaningless, student, looks, length)
        subject.persons = tuple(info.data.persons)
        if scheme == info.scheme and not info.meaningless:
            subject.threshold, subject.threshold_store = own_threshold(run), info.data.fingerprint
        yield subject


def list_subjects(paths: list[Path], threads: list[int], machine: str) -> list[Subject]:
    """Return the rows of the report before they are measured: every artifact of bundles, every run.

    Raises StageError if a bundle or run is named twice.
    """
    resolved = [path.resolve() for path in paths]
    if twice := next((path for path in paths if resolved.count(path.resolve()) > 1), None):
        raise StageError(f"{twice} is named twice: name each bundle and run once")
    subjects: list[Subject] = []
    for path in paths:
        for count in threads:
            if is_bundle(path):
                bundle = Bundle(path)
                subjects += [
                    _artifact_subject(bundle, artifact, machine, count, units)
                    for artifact in bundle.manifest.artifacts
                    if count == threads[0] or artifact.runtime != "coreml"  # which chooses its own number
                    for units in _units(artifact)
                ]
            else:
                subjects += _run_subjects(path, machine, count)
    names = shortest_names({subject.path for subject in subjects})
    for subject in subjects:
        subject.row.name = names[subject.path]
    return subjects


def check_fits(subject: Subject, store: ClipStore) -> None:
    """Raise StageError if a subject cannot score a store's clips."""
    check_size(subject.path, subject.row.input_size, store)
    if subject.frames is not None:
        check_length(subject.path, subject.frames, store)
    store.require(subject.takes.modalities)


def _fill_times(row: Row, timings: Sequence[Timing]) -> None:
    """Put the latency of all rounds into a row; loading and memory are the first round's."""
    first, times = timings[0], np.concatenate([timing.times_ms for timing in timings])
    parts = [timing.times_ms for timing in timings]
    if len(parts) == 1:
        parts = [part.tolist() for part in np.array_split(times, 3)]
    row.latency_ms, row.repeats = Latency.of(times), len(times)
    row.medians_ms = [float(np.median(part)) for part in parts]
    row.spread = (max(row.medians_ms) - min(row.medians_ms)) / float(np.median(row.medians_ms))
    row.throughput = 1e3 / float(times.mean())
    row.load_ms, row.first_run_ms, row.cores = first.load_ms, first.first_run_ms, first.cores
    row.peak_memory_mb, row.runtime_bytes = first.peak_memory_mb, first.runtime_bytes
    row.peak_memory_over_idle_mb = first.peak_memory_mb - first.idle_memory_mb


def _methods(metrics: Metrics) -> dict[str, MethodFigures]:
    return {
        name: MethodFigures(fake=figures.fake, auc=figures.auc, auc_interval=figures.intervals.get("auc"))
        for name, figures in metrics.methods.items()
    }


def fill_row(subject: Subject, rounds: Sequence[Measurement], reference_auc: float | None, split: str) -> None:
    """Put into a row what its processes measured: the times of all, everything else of the first."""
    row, found = subject.row, rounds[0]
    if timings := [measured.timing for measured in rounds if measured.timing]:
        _fill_times(row, timings)
    row.sustained, row.profile = found.sustained, found.profile
    row.macs = found.macs or row.macs
    if found.delegated_fraction is not None:
        row.delegated_fraction = found.delegated_fraction
    row.reason = "; ".join(reason for reason in (row.reason, found.reason) if reason)
    if split not in found.scores:
        return
    if "val" in found.scores:
        subject.threshold = clip_scores(found.scores["val"]).choose_threshold()
    assert subject.threshold is not None
    row.threshold = subject.threshold.value
    subject.scores = clip_scores(found.scores[split])
    metrics = subject.scores.metrics(row.threshold)
    row.auc, row.auc_interval, row.frame_auc = metrics.auc, metrics.auc_interval, metrics.frame_auc
    row.eer, row.ap, row.accuracy = metrics.clip.eer, metrics.clip.ap, metrics.clip.accuracy
    row.tpr_at_fpr, row.video_auc, row.methods = metrics.clip.tpr_at_fpr, metrics.video.auc, _methods(metrics)
    if row.auc is not None and reference_auc is not None:
        row.delta_auc = auc_change(row.auc, reference_auc)
    if "control" in found.scores:
        row.control_auc = clip_scores(found.scores["control"]).metrics(row.threshold, intervals=False).auc
    otherwise = {how.name: clip_scores(found.scores[how.name]) for how in PERTURBATIONS if how.name in found.scores}
    if otherwise:
        row.robustness = robustness_of(otherwise, subject.scores, subject.threshold)
