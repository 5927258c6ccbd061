"""The notes of a report: what a reader must know before believing its figures."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.comparing import has_flips, runtimes_apart
from benchmarks.machine import slow_int8
from benchmarks.on_phone import PhoneTimer
from benchmarks.reference import Reference
from benchmarks.rows import Subject
from benchmarks.schema import MOST_SPREAD
from compress.provenance import crops_notes, seen_note
from data.perturb import PERTURBATIONS
from data.store import ClipStore
from export.bundle import Bundle, is_bundle
from export.manifest import OWN_SCORES
from files import name_of
from stage import counted


def _named(subjects: Iterable[Subject]) -> str:
    """Return the names of rows, each once."""
    return ", ".join(dict.fromkeys(subject.row.name for subject in subjects))


def _on_latency(subjects: list[Subject]) -> Iterator[str]:
    """Yield notes on rows whose latency is less than what a frame takes in use."""
    if multimodal := [s for s in subjects if s.takes.modalities != ("rgb",)]:
        names = ", ".join(dict.fromkeys(f"{s.row.name} ({'+'.join(s.takes.modalities)})" for s in multimodal))
        yield (
            f"Latency, throughput and speedup of {names} leave out the time to make depth or flow of a frame, which is "
            "longer than some networks take (--video times it)."
        )
    for times in sorted({s.times_a_frame for s in subjects if s.times_a_frame > 1}):
        whole = _named(s for s in subjects if s.times_a_frame == times)
        yield (
            "A file that takes a whole clip runs a frame once for every clip that it is in. As the manifest's clips "
            f"overlap, that is {times:.3g} times, and so are its milliseconds per frame in use; a file in steps runs "
            f"a frame once. Of whole clips: {whole}."
        )


def _on_comparisons(subjects: list[Subject]) -> Iterator[str]:
    """Yield notes on comparisons that are missing, because a run was not among the rows or has another threshold."""
    scored = {s.student for s in subjects if s.fp32_run and s.scores is not None}
    without = [s for s in subjects if has_flips(s) and s.row.verdict_flips is None]
    if alone := [s for s in without if s.student not in scored]:
        yield f"No verdict flips, as the fp32 run is not among the rows, or was not scored: {_named(alone)}."
    if apart := [s for s in without if s.student in scored]:
        yield f"No verdict flips, as the threshold and that of the fp32 run are of two stores: {_named(apart)}."
    if any(s.row.latency_ms for s in subjects) and not any(s.row.speedup_over for s in subjects):
        yield "No speedup or size ratio, as no teacher's fp32 run was timed beside these rows."


def _on_reference(subjects: list[Subject], reference: Reference) -> Iterator[str]:
    """Yield a note if the runs of the reference's name among the rows are others."""
    same_name = [s.row.sha256 for s in subjects if s.row.kind == "run" and name_of(s.path) == reference.run.name]
    if same_name and not {None, reference.run.sha256}.intersection(same_name):
        yield (
            f"The reference was measured on another run of the name {reference.run.name} than the one in the rows: "
            "Delta AUC is against that one."
        )


def notes_of(
    subjects: list[Subject], store: ClipStore, split: str, reference: Reference, phone: PhoneTimer | None
) -> list[str]:
    """Return the notes on the store and the reference, on missing or substituted figures, and on doubtful latencies."""
    notes = [*store.info.notes, *reference.notes, *(phone.notes if phone else ())]
    notes += _on_reference(subjects, reference)
    for subject in subjects:
        if subject.teacher and subject.meaningless:
            notes.append(f"{subject.row.name} ({subject.row.model}): {subject.meaningless}.")
    if from_nothing := [s for s in subjects if s.random_start and not s.meaningless]:
        notes.append(f"Trained from random weights: {_named(from_nothing)}.")
    lost = {status: count for status, count in store.info.videos.items() if status != "ok" and count}
    if lost:
        counts = ", ".join(f"{count} {status}" for status, count in lost.items())
        notes.append(f"Input files that gave no clip: {counts}; the reasons are in {store.name}/videos.parquet.")
    if set_elsewhere := [s for s in subjects if s.threshold_store not in (None, store.info.fingerprint)]:
        notes.append(f"Thresholds were set on another store than {store.name}: {_named(set_elsewhere)}.")
    for artifact in (subject.artifact for subject in subjects if subject.artifact):
        if artifact.threshold_from != OWN_SCORES:
            notes.append(f"The threshold of {artifact.file} is not its own: {artifact.threshold_from}.")
    for made in dict.fromkeys((subject.crops, subject.takes.modalities) for subject in subjects):
        alike = [subject for subject in subjects if (subject.crops, subject.takes.modalities) == made]
        notes += crops_notes([_named(alike)], *made, store)
    rows_by_persons: dict[tuple[str, ...], list[str]] = {}
    for subject in subjects:
        rows_by_persons.setdefault(subject.persons, []).append(subject.row.name)
    for persons, row_names in rows_by_persons.items():
        notes += seen_note(dict.fromkeys(row_names), persons, store.clips(split), split)
    notes += [*_on_latency(subjects), *_on_comparisons(subjects)]
    unmeasured: dict[str, list[str]] = {}
    for row in (subject.row for subject in subjects if subject.row.status != "measured"):
        status = "Evaluated" if row.status == "evaluated" else "Not measured:"
        unmeasured.setdefault(f"{status} {row.reason}", []).append(f"{row.name} ({row.scheme})")
    notes += [f"{reason}: {', '.join(dict.fromkeys(row_names))}." for reason, row_names in unmeasured.items()]
    notes += runtimes_apart(subjects)
    if unstable := [subject.row for subject in subjects if subject.row.unstable]:
        on = [row.device if row.own_threads else counted(row.threads, "thread") for row in unstable]
        names = ", ".join(f"{row.name} ({row.scheme}, {where})" for row, where in zip(unstable, on, strict=True))
        notes.append(f"Unstable: medians at different times lie more than {MOST_SPREAD:.0%} apart: {names}.")
    if (slow := slow_int8()) and any(subject.row.device == "cpu" for subject in subjects):
        notes.append(slow)
    return list(dict.fromkeys(notes))


def not_exported(paths: Iterable[Path]) -> list[str]:
    """Return a note for each artifact that was asked of a bundle, among ``paths``, and is not in it."""
    bundles = [Bundle(path) for path in paths if is_bundle(path)]
    entries = [(name_of(bundle.path), entry) for bundle in bundles for entry in bundle.manifest.absent]
    return [f"Not in {bundle}: {entry.file}: {entry.reason}." for bundle, entry in entries]


def not_cut(perturbed: dict[str, Path] | None) -> list[str]:
    """Return a note for each perturbation without a clip; none if ``perturbed``, its stores by name, is None."""
    if perturbed is None:
        return []
    missing = [perturbation.name for perturbation in PERTURBATIONS if perturbation.name not in perturbed]
    return [f"No clip could be cut with {name}: none is found, or its package is not installed." for name in missing]
