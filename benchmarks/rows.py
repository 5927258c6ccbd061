"""The rows of a report: how they are listed before the measurement, and filled after it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import get_args

import numpy as np
import torch

from benchmarks.figures import Latency, MethodFigures, spread_of
from benchmarks.robustness import robustness_of
from benchmarks.schema import Row
from benchmarks.task import Measurement, Timing
from compress.auc import auc_change
from compress.metrics import Metrics, Threshold
from compress.provenance import student_of
from compress.runs import check_length, check_size, own_threshold, takes
from compress.scoring import ClipScores, Takes
from data.perturb import PERTURBATIONS
from data.store import ClipStore
from export.bundle import Bundle, is_bundle
from export.manifest import Artifact
from export.runtimes import ComputeUnits, evaluated_by
from files import bytes_of, shortest_names
from models.run import Run
from models.schemes import fast_dtype
from stage import PALETTES, STATIC_INT8, Scheme, StageError


@dataclass
class Subject:
    """One row, and the facts about its model that the measurement needs or finds."""

    row: Row
    path: Path
    teacher: bool
    threshold: Threshold | None
    """The model's own threshold; None for autocast until its validation scores are measured (``share_thresholds``)."""
    meaningless: str | None
    """Why the scores would mean nothing, for example untrained weights; None if they mean something."""
    student: str | None
    """Hash of the fp32 run that this row is, or was made from."""
    random_start: bool = False
    """Whether its training started from random weights."""
    takes: Takes = field(default_factory=Takes)
    frames: int | None = None
    """The length of the clips that a clip artifact takes, or that a clip run was trained on."""
    artifact: Artifact | None = None
    times_a_frame: float = 1.0
    """How often a frame is run where clips overlap as the manifest says: more than once by a file of whole clips."""
    units: ComputeUnits = "all"
    """Compute units that Core ML may use."""
    threshold_store: str | None = None
    """Fingerprint of the store on which the model's own threshold was set."""
    crops: str | None = None
    """How the pictures that the model was trained on were made (``StoreSettings.made``); None if that is not known."""
    persons: tuple[str, ...] = ()
    """Persons that the model was trained and validated on (``DataSource.persons``)."""
    scores: ClipScores | None = None

    @property
    def form(self) -> tuple[object, ...]:
        """The properties that distinguish artifacts of one student, scheme and runtime; empty for a run."""
        artifact = self.artifact
        if artifact is None:
            return ()
        return artifact.method, artifact.batch, artifact.delegate, PurePath(artifact.programs[0].file).suffix

    @property
    def fp32_run(self) -> bool:
        """Whether this is a run in fp32, to which the verdict flips of what was made from it refer."""
        return self.row.kind == "run" and self.row.scheme == "fp32"


def _macs_a_frame(artifact: Artifact, frames: int) -> int:
    """Return an artifact's multiply-accumulates per frame; where a program takes a clip, a frame's share of them."""
    return sum(program.macs // (1 if program.of_frame else frames) for program in artifact.programs)


def _units(artifact: Artifact) -> tuple[ComputeUnits | None, ...]:
    """Return every choice of compute units if Core ML runs here; else ``(None,)``, which means the CPU."""
    return get_args(ComputeUnits) if artifact.runtime == "coreml" and not evaluated_by("coreml") else (None,)


def _artifact_subject(
    bundle: Bundle, artifact: Artifact, machine: str, threads: int, units: ComputeUnits | None
) -> Subject:
    path, clip = bundle.checked_path(artifact), bundle.manifest.clip
    evaluator = evaluated_by(artifact.runtime)
    obstacle = artifact.cannot_run()
    row = Row(
        name=path.name,
        kind="artifact",
        model=bundle.manifest.backbone,
        runtime=artifact.runtime,
        scheme=artifact.scheme,
        machine=machine,
        device=units or ("all" if artifact.in_core_ml and not evaluator else "cpu"),
        threads=threads,
        batch=artifact.batch or 1,
        whole_clip=artifact.method == "clip",
        input_size=bundle.manifest.crop.rule.size,
        status="not measured" if obstacle else "evaluated" if evaluator else "measured",
        reason=obstacle or evaluator or "",
        bytes=artifact.bytes,
        sha256=artifact.sha256,
        delegated_fraction=artifact.delegated_fraction,
        macs=_macs_a_frame(artifact, clip.frames),
        threshold=artifact.threshold.value,
    )
    return Subject(
        row=row,
        path=path,
        teacher=False,
        threshold=artifact.threshold,
        meaningless=None,
        student=artifact.student,
        random_start=bundle.manifest.weights.source == "random",
        takes=Takes(per=clip.per),
        frames=clip.frames if clip.per == "clip" else None,
        artifact=artifact,
        times_a_frame=clip.frames / clip.hop if artifact.method == "clip" else 1.0,
        units=units or "all",
        threshold_store=bundle.manifest.data.fingerprint,
        crops=bundle.manifest.trained_on.crops,
        persons=tuple(bundle.manifest.trained_on.persons),
    )


def _in_torch(scheme: Scheme) -> tuple[str, str]:
    """Return why torch cannot measure a scheme here, and why its figures mean less than they seem to; "" if neither."""
    if scheme in STATIC_INT8:
        return "", "int8 arithmetic simulated in float32 by torch: its latency and size say nothing"
    if scheme in PALETTES:
        return "", "torch keeps the weights in float32: its latency and size say nothing"
    if scheme == "autocast" and fast_dtype(torch.device("cpu")) is None:
        # With emulated bfloat16 DINOv2-base takes a hundred times as long as in float32.
        return "this CPU has no bfloat16 instructions", ""
    return "", ""


def _run_subjects(path: Path, machine: str, threads: int) -> Iterator[Subject]:
    """Yield a run's rows: in its own scheme and, for a float run, under autocast."""
    run = Run(path)
    info = run.info
    student, sha256 = student_of(run), run.sha256
    schemes: tuple[Scheme, ...] = ("fp32", "autocast") if info.scheme == "fp32" else (info.scheme,)
    for scheme in schemes:
        obstacle, caveat = _in_torch(scheme)
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
            status="not measured" if obstacle else "measured",
            reason=obstacle or info.meaningless or caveat,
            bytes=bytes_of(path / "model.safetensors"),
            sha256=sha256,
        )
        model_takes = takes(info)
        subject = Subject(
            row=row,
            path=path,
            teacher=info.kind == "teacher",
            threshold=None,
            meaningless=info.meaningless,
            student=student,
            random_start=info.weights.source == "random",
            takes=model_takes,
            frames=info.data.frames if model_takes.per == "clip" else None,
            crops=info.data.crops,
            persons=tuple(info.data.persons),
        )
        if scheme == info.scheme and not info.meaningless:
            subject.threshold, subject.threshold_store = own_threshold(run), info.data.fingerprint
        yield subject


def list_subjects(paths: list[Path], threads: list[int], machine: str) -> list[Subject]:
    """Return the rows of the report, not measured yet: every artifact of the bundles and every run, per thread count.

    Raises StageError if a bundle or run is named twice, or a bundle is not as it was exported.
    """
    resolved = [path.resolve() for path in paths]
    if twice := next((path for path in paths if resolved.count(path.resolve()) > 1), None):
        raise StageError(f"{twice} is named twice: name each bundle and run once")
    subjects: list[Subject] = []
    for path in paths:
        bundle = Bundle(path) if is_bundle(path) else None
        if bundle:
            bundle.check_files()
        for count in threads:
            if bundle:
                subjects += [
                    _artifact_subject(bundle, artifact, machine, count, units)
                    for artifact in bundle.manifest.artifacts
                    if count == threads[0] or not artifact.in_core_ml  # Core ML chooses its own number of threads
                    for units in _units(artifact)
                ]
            else:
                subjects += _run_subjects(path, machine, count)
    names = shortest_names({subject.path for subject in subjects})
    for subject in subjects:
        subject.row.name = names[subject.path]
    return subjects


def check_fits(subject: Subject, store: ClipStore) -> None:
    """Raise StageError if a subject cannot score a store's clips: another size, length or modality."""
    check_size(subject.path, subject.row.input_size, store)
    if subject.frames is not None:
        check_length(subject.path, subject.frames, store)
    store.require(subject.takes.modalities)


def _fill_times(row: Row, timings: Sequence[Timing]) -> None:
    """Put the latency of all rounds into a row; loading and memory are the first round's."""
    first = timings[0]
    rounds_ms = [timing.times_ms for timing in timings]
    times_ms = np.concatenate(rounds_ms)
    if len(rounds_ms) == 1:
        rounds_ms = [third.tolist() for third in np.array_split(times_ms, 3)]
    row.latency_ms, row.repeats = Latency.of(times_ms), len(times_ms)
    row.medians_ms = [float(np.median(round_ms)) for round_ms in rounds_ms]
    row.spread = spread_of(row.medians_ms)
    row.throughput = 1e3 / float(times_ms.mean())
    row.load_ms, row.first_run_ms, row.cores = first.load_ms, first.first_run_ms, first.cores
    row.peak_memory_mb, row.runtime_bytes = first.peak_memory_mb, first.runtime_bytes
    row.peak_memory_over_idle_mb = first.peak_memory_mb - first.idle_memory_mb


def _methods(metrics: Metrics) -> dict[str, MethodFigures]:
    return {
        name: MethodFigures(fake=figures.fake, auc=figures.auc, auc_interval=figures.intervals.get("auc"))
        for name, figures in metrics.methods.items()
    }


def fill_row(subject: Subject, rounds: Sequence[Measurement], reference_auc: float | None, split: str) -> None:
    """Put a row's measurements into it: the times of all rounds, everything else of the first one.

    Also sets ``subject.scores`` and, where it is None, ``subject.threshold``.
    """
    row, first = subject.row, rounds[0]
    if timings := [measurement.timing for measurement in rounds if measurement.timing]:
        _fill_times(row, timings)
    row.sustained, row.profile = first.sustained, first.profile
    row.macs = first.macs or row.macs
    if first.delegated_fraction is not None:
        row.delegated_fraction = first.delegated_fraction
    row.reason = "; ".join(reason for reason in (row.reason, first.reason) if reason)
    if split not in first.scores:
        return
    if "val" in first.scores:
        subject.threshold = first.scores["val"].to_clip_scores().choose_threshold()
    assert subject.threshold is not None
    row.threshold = subject.threshold.value
    subject.scores = first.scores[split].to_clip_scores()
    metrics = subject.scores.metrics(row.threshold)
    row.auc, row.auc_interval, row.frame_auc = metrics.auc, metrics.auc_interval, metrics.frame_auc
    row.eer, row.ap, row.accuracy = metrics.clip.eer, metrics.clip.ap, metrics.clip.accuracy
    row.tpr_at_fpr, row.video_auc, row.methods = metrics.clip.tpr_at_fpr, metrics.video.auc, _methods(metrics)
    if row.auc is not None and reference_auc is not None:
        row.delta_auc = auc_change(row.auc, reference_auc)
    if "control" in first.scores:
        row.control_auc = first.scores["control"].to_clip_scores().metrics(row.threshold, intervals=False).auc
    names = [perturbation.name for perturbation in PERTURBATIONS if perturbation.name in first.scores]
    perturbed = {name: first.scores[name].to_clip_scores() for name in names}
    if perturbed:
        row.robustness = robustness_of(perturbed, subject.scores, subject.threshold)
