"""Measure bundles and runs, each in a fresh process, and write the report."""

import datetime
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.comparing import Subject, compare_rows
from benchmarks.machine import describe_machine
from benchmarks.measuring import Corpora, clip_scores, measure_apart, task_of, write_timed_crops
from benchmarks.reference import Reference, read_reference
from benchmarks.render import write_report
from benchmarks.report import Report, Row
from benchmarks.robustness import robustness_of
from benchmarks.worker import Measurement
from compress.fidelity import Diagnosis
from compress.metrics import choose_threshold
from compress.runs import check_length, check_size, diagnosis_of, student_of, takes
from compress.scoring import Takes
from data.perturb import PERTURBATIONS, perturbed_stores
from data.store import ClipStore
from export.bundle import Artifact, Bundle, is_bundle
from export.runtimes import evaluated_by
from models.run import Run
from models.schemes import fast_dtype
from stage import PALETTES, Scheme, StageError, bytes_of, progress, refuse_existing, run_as_script


def _artifact_subject(bundle: Bundle, artifact: Artifact, threads: int) -> Subject:
    path = bundle.checked_path(artifact)
    by = evaluated_by(artifact.runtime)
    cannot = artifact.cannot_run() or (artifact.not_checked if by else "")
    row = Row(
        name=artifact.file,
        kind="artifact",
        model=bundle.manifest.backbone,
        runtime=artifact.runtime,
        scheme=artifact.scheme,
        device="cpu",
        threads=threads,
        batch=artifact.batch or 1,
        input_size=bundle.manifest.crop.rule.size,
        status="not measured" if cannot else "evaluated" if by else "measured",
        reason=cannot or by or "",
        bytes=artifact.bytes,
        delegated_fraction=artifact.delegated_fraction,
        threshold=artifact.threshold.value,
    )
    clip = bundle.manifest.clip
    looks, length = Takes(per=clip.per), clip.frames if clip.per == "clip" else None
    return Subject(row, path, False, artifact.threshold, None, artifact.student, looks, length, artifact)


def _run_subjects(path: Path, threads: int) -> Iterator[Subject]:
    """Yield a run's rows: in its own scheme and, for a float run, under autocast."""
    run = Run(path)
    info = run.info
    student = student_of(run)
    schemes: tuple[Scheme, ...] = ("fp32", "autocast") if info.scheme == "fp32" else (info.scheme,)
    for scheme in schemes:
        slow = ""
        if info.integer:
            slow = "int8 arithmetic simulated in float32 by torch: its latency says nothing"
        elif scheme in PALETTES:
            slow = "torch keeps the weights in float32: its latency and size say nothing"
        elif scheme == "autocast" and fast_dtype(torch.device("cpu")) is None:
            slow = "this CPU has no bfloat16 instructions: emulated"
        row = Row(
            name=path.name,
            kind="run",
            model=info.architecture.backbone,
            runtime="torch",
            scheme=scheme,
            device="cpu",
            threads=threads,
            input_size=info.architecture.size,
            status="measured",
            reason=info.meaningless or slow,
            bytes=bytes_of(path / "model.safetensors"),
        )
        yield Subject(row, path, info.kind == "teacher", None, info.meaningless, student, takes(info))


def list_subjects(paths: list[Path], threads: list[int]) -> list[Subject]:
    """Return the rows of the report before they are measured: every artifact of bundles, every run."""
    subjects: list[Subject] = []
    for path in paths:
        for count in threads:
            if is_bundle(path):
                bundle = Bundle(path)
                subjects += [
                    _artifact_subject(bundle, artifact, count)
                    for artifact in bundle.manifest.artifacts
                    if count == threads[0] or not evaluated_by(artifact.runtime)
                ]
            else:
                subjects += _run_subjects(path, count)
    return subjects


def fill_row(subject: Subject, found: Measurement, reference: Reference, split: str) -> None:
    """Put a measurement into its row."""
    row = subject.row
    if timing := found.timing:
        row.load_ms, row.first_run_ms = timing.load_ms, timing.first_run_ms
        row.latency_ms, row.repeats, row.throughput = timing.latency_ms, timing.repeats, timing.throughput
        row.peak_memory_mb = timing.peak_memory_mb
        row.peak_memory_over_idle_mb = timing.peak_memory_mb - timing.idle_memory_mb
    if split not in found.scores:
        return
    if "val" in found.scores:
        val = clip_scores(found.scores["val"])
        subject.threshold = choose_threshold(val.labels, val.clips)
    assert subject.threshold is not None
    row.threshold = subject.threshold.value
    subject.scores = clip_scores(found.scores[split])
    metrics = subject.scores.metrics(row.threshold)
    row.auc, row.auc_interval, row.frame_auc = metrics.auc, metrics.auc_interval, metrics.frame_auc
    row.eer, row.ap, row.accuracy = metrics.clip.eer, metrics.clip.ap, metrics.clip.accuracy
    row.tpr_at_fpr = metrics.clip.tpr_at_fpr
    if row.auc is not None and reference.metrics.auc is not None:
        row.delta_auc = row.auc - reference.metrics.auc
    if "control" in found.scores:
        row.control_auc = clip_scores(found.scores["control"]).metrics(row.threshold, intervals=False).auc
    otherwise = {how.name: clip_scores(found.scores[how.name]) for how in PERTURBATIONS if how.name in found.scores}
    if otherwise:
        row.robustness = robustness_of(otherwise, subject.threshold)


def _notes(subjects: list[Subject], store: ClipStore, reference: Reference) -> list[str]:
    notes = [*store.info.notes, *reference.notes]
    for subject in subjects:
        if subject.teacher and subject.meaningless:
            notes.append(f"{subject.row.name} ({subject.row.model}): {subject.meaningless}.")
    lost = {status: count for status, count in store.info.videos.items() if status != "ok" and count}
    if lost:
        said = ", ".join(f"{count} {status}" for status, count in lost.items())
        notes.append(f"Input files that gave no clip: {said}; the reasons are in {store.path.name}/videos.parquet.")
    for subject in subjects:
        if subject.row.status != "measured":
            said = "evaluated" if subject.row.status == "evaluated" else "not measured:"
            notes.append(f"{subject.row.name} was {said} {subject.row.reason}.")
    return list(dict.fromkeys(notes))


def _not_cut(perturbed: dict[str, Path] | None) -> list[str]:
    """Say of which ways to cut crops otherwise there is no clip."""
    missing = [how.name for how in PERTURBATIONS if perturbed is not None and how.name not in perturbed]
    return [f"No clip could be cut with {name}: none is found, or its package is not installed." for name in missing]


def _diagnoses(paths: list[Path]) -> dict[str, Diagnosis]:
    """Return what int8 cost each int8 run, as the bundles and runs say."""
    found: dict[str, Diagnosis] = {}
    for path in paths:
        if is_bundle(path):
            found |= Bundle(path).manifest.diagnoses
        elif diagnosis := diagnosis_of(Run(path)):
            found[path.name] = diagnosis
    return found


def _measure_all(subjects: list[Subject], corpora: Corpora, reference: Reference, repeats: int) -> None:
    """Measure every row that can be: those with a latency one after another, the others side by side."""
    first = subjects[0].row.threads

    def measured(subject: Subject, crops: Path) -> None:
        try:
            found = measure_apart(task_of(subject, crops, repeats, corpora, subject.row.threads == first))
        except StageError as error:
            subject.row.status, subject.row.reason = "failed", str(error)
        else:
            fill_row(subject, found, reference, corpora.split)

    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            (subject, write_timed_crops(corpora.store, corpora.split, Path(folder), subject.takes))
            for subject in subjects
            if subject.row.status != "not measured"
        ]
        timed = [task for task in tasks if task[0].row.status == "measured"]
        evaluated = [task for task in tasks if task[0].row.status == "evaluated"]
        for task in progress(timed, "bench"):
            measured(*task)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            futures = [pool.submit(measured, *task) for task in evaluated]
            try:
                for future in progress(futures, "evaluate"):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def check_fits(subject: Subject, store: ClipStore) -> None:
    """Raise StageError if a subject cannot score a store's clips."""
    check_size(subject.path, subject.row.input_size, store)
    if subject.frames is not None:
        check_length(subject.path, subject.frames, store)
    store.require(subject.takes.modalities)


def _parse_threads(text: str) -> list[int]:
    if not all(part.isdecimal() and int(part) > 0 for part in text.split(",")):
        raise StageError(f"--threads {text!r}: give one or more counts, as 1 or 1,2")
    return [int(part) for part in text.split(",")]


def bench(
    path: Annotated[list[Path], typer.Argument(help="Bundles and runs; speedups refer to the first teacher run.")],
    data: Annotated[Path, typer.Option(help="The ClipStore whose test split is scored.")],
    reference: Annotated[Path, typer.Option(help="The teacher's reference.json.")],
    out: Annotated[Path, typer.Option(help="The folder for report.json, report.md and report.html.")],
    threads: Annotated[str, typer.Option(help="Threads, one or more counts: 1 or 1,2.")] = "1",
    repeats: Annotated[int, typer.Option(help="Timed frames; slow models stop after 5 s and 10 frames.", min=10)] = 50,
    control: Annotated[
        Path | None, typer.Option(help="A ClipStore of identity forgeries: timed artifacts must score AUC 0.5 on it.")
    ] = None,
    sources: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that the store was prepared from: adds what crops cut otherwise cost. Repeatable."),
    ] = None,
) -> Report:
    """Measure latency, memory and accuracy of every artifact and run, each in a fresh process.

    Example: **pocketproof bench bundle runs/dino runs/student --data store --reference reference.json --out report**
    """
    refuse_existing(out)
    counts = _parse_threads(threads)
    store, against = ClipStore(data), read_reference(reference)
    if against.fingerprint != store.info.fingerprint:
        raise StageError(f"{reference} was measured on another store than {data}: measure it again")
    subjects = list_subjects(path, counts)
    for subject in subjects:
        check_fits(subject, store)
        if control is not None and subject.row.kind == "artifact":
            check_fits(subject, ClipStore(control))
    split, diagnoses = against.split, _diagnoses(path)
    for scored in (split, "val"):
        store.clips(scored)  # says now, and once, if one holds one label alone
    with tempfile.TemporaryDirectory() as folder:
        cut = perturbed_stores(store, split, sources, Path(folder), os.cpu_count() or 1) if sources else ()
        perturbed = {how.name: path for how, path in cut}
        _measure_all(subjects, Corpora(store, split, control, perturbed), against, repeats)
    over = compare_rows(subjects)
    controls = ClipStore(control).info.clips["test"] if control else None
    report = Report(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=shlex.join(["pocketproof", *sys.argv[1:]]),
        machine=describe_machine().model_dump(),
        split=split,
        clips=store.info.clips[split],
        control_clips=sum(controls.values()) if controls else None,
        reference=against.summary(),
        speedup_over=over,
        diagnoses=diagnoses,
        notes=[*_notes(subjects, store, against), *_not_cut(perturbed if sources else None)],
        rows=[subject.row for subject in subjects],
    )
    write_report(report, out)
    failed = [subject.row.name for subject in subjects if subject.row.status == "failed"]
    if failed:
        raise StageError(f"the report is in {out}, but these rows failed: {', '.join(failed)}")
    return report


if __name__ == "__main__":
    run_as_script(bench)
