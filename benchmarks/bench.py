"""Measure bundles and runs, each in a fresh process, and write the report."""

import datetime
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.baseline import Baseline, BaselineOptions
from benchmarks.clip_budget import BudgetOptions
from benchmarks.comparing import against_peaks, compare_rows, share_thresholds
from benchmarks.figures import Budget, Peak
from benchmarks.kept import KeptMeasurements
from benchmarks.machine import Machine, describe_machine
from benchmarks.notes import not_cut, not_exported, notes_of
from benchmarks.on_phone import DeviceOptions, PhoneTimer
from benchmarks.pages.render import table_text, write_report
from benchmarks.processor import Products, measure_products
from benchmarks.reference import Reference, read_reference
from benchmarks.rounds import Corpora, Effort, measure_all
from benchmarks.rows import Subject, check_fits, list_subjects
from benchmarks.schema import Report, Session
from command import run_as_script, takes_options
from compress.fidelity import Diagnosis
from compress.runs import diagnosis_of
from data.perturb import perturbed_stores
from data.store import ClipStore
from export.bundle import Bundle, is_bundle
from files import refuse_existing, shortest_names
from models.run import Run
from stage import StageError, WrongArgument, counted, say, usable_cores


def _diagnoses(paths: list[Path]) -> dict[str, Diagnosis]:
    """Return the diagnoses of int8 runs in bundles and runs, by run name; by bundle and run where these disagree."""
    entries: list[tuple[str, str, Diagnosis]] = []  # run, bundle/run, diagnosis
    for path, name in shortest_names(paths).items():
        if is_bundle(path):
            entries += [(run, f"{name}/{run}", diagnosis) for run, diagnosis in Bundle(path).manifest.diagnoses.items()]
        elif diagnosis := diagnosis_of(Run(path)):
            entries.append((name, name, diagnosis))
    diagnoses: dict[str, Diagnosis] = {}
    for run, qualified, diagnosis in entries:
        agree = all(other == diagnosis for other_run, _, other in entries if other_run == run)
        diagnoses[run if agree else qualified] = diagnosis
    return diagnoses


def _peaks(before: dict[int, Products]) -> list[Peak]:
    """Measure the matrix products again; return the faster figures of both times, and the drift of float32's.

    ``before``: by number of threads, what ``measure_products`` returned before the rows were measured.
    """
    peaks = []
    for threads, first in before.items():
        again = measure_products(threads)
        fp32 = sorted((first.fp32, again.fp32))
        int8 = max(first.int8, again.int8)
        drift = (fp32[1] - fp32[0]) / fp32[1]
        peaks.append(Peak(threads=threads, fp32_gmacs=fp32[1], int8_gmacs=int8, drift=drift))
    return peaks


def _measure_here(
    subjects: list[Subject],
    corpora: Corpora,
    sources: list[Path] | None,
    reference_auc: float | None,
    effort: Effort,
    kept: KeptMeasurements,
) -> list[Peak]:
    """Measure and fill every row on this machine; return the fastest matrix products, measured before and after."""
    products = {count: measure_products(count) for count in sorted({subject.row.threads for subject in subjects})}
    with kept.scratch() as folder:
        workers = usable_cores()
        stores = perturbed_stores(corpora.store, corpora.split, sources, Path(folder), workers) if sources else ()
        corpora.perturbed.update({perturbation.name: path for perturbation, path in stores})
        measure_all(subjects, corpora, reference_auc, effort, kept)
    peaks = _peaks(products)
    against_peaks(subjects, peaks)
    return peaks


def _parse_threads(text: str, most: int | None) -> list[int]:
    """Return the counts in a text as ``2,1``, sorted. Raises WrongArgument if one is below 1 or above ``most``."""
    if not all(part.isdecimal() and int(part) > 0 for part in text.split(",")):
        raise WrongArgument(f"--threads {text!r}: give one or more counts, as 1 or 1,2")
    counts = sorted({int(part) for part in text.split(",")})
    if most is not None and max(counts) > most:
        raise WrongArgument(f"--threads {text}: this machine has {counted(most, 'core')}")
    return counts


def _list_checked(paths: list[Path], threads: list[int], corpora: Corpora, machine: str) -> list[Subject]:
    """Return the rows to measure. Raises StageError, before anything is measured, if one cannot score the clips."""
    subjects = list_subjects(paths, threads, machine)
    share_thresholds(subjects, corpora.store.info.fingerprint)
    for subject in subjects:
        check_fits(subject, corpora.store)
        if corpora.control is not None and subject.row.kind == "artifact":
            check_fits(subject, corpora.opened(corpora.control))
    splits = {entry for subject in subjects for entry in corpora.of(subject, first_threads=True).values()}
    for path, split in sorted({*splits, (corpora.store.path, corpora.split)}):
        corpora.opened(path).clips(split)  # raises now, not after the measurement, if a split holds a single label
    return subjects


def _refuse(options: dict[str, object], kind: str) -> None:
    """Raise WrongArgument for options, given by name, of a kind of rows that is not timed here."""
    if given := [option for option, value in options.items() if value]:
        raise WrongArgument(f"{', '.join(given)}: for {kind} that are timed here, and there is none: leave it out")


@takes_options
def bench(
    path: Annotated[list[Path], typer.Argument(help="Bundles and runs; speedups refer to the first teacher run.")],
    data: Annotated[Path, typer.Option(help="The ClipStore whose test split is scored.")],
    reference: Annotated[Path, typer.Option(help="The teacher's reference.json.")],
    out: Annotated[Path, typer.Option(help="The folder for report.json, report.md and report.html.")],
    threads: Annotated[str, typer.Option(help="Threads, one or more counts: 1 or 1,2.")] = "1",
    effort: Effort = Effort(),
    control: Annotated[
        Path | None, typer.Option(help="A ClipStore of identity forgeries: timed artifacts must score AUC 0.5 on it.")
    ] = None,
    sources: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that the store was prepared from: adds what crops cut otherwise cost. Repeatable."),
    ] = None,
    clip: BudgetOptions = BudgetOptions(),
    where: DeviceOptions = DeviceOptions(),
    gate: BaselineOptions = BaselineOptions(),
) -> Report:
    """Measure latency, memory and accuracy of every artifact and run, each in fresh processes.

    An interrupted bench goes on with what it has measured when it is called again.

    On a phone, latency and what else its runners tell.

    Example: **pocketproof bench bundle runs/dino runs/student --data store --reference reference.json --out report**
    """
    refuse_existing(out)
    only_here = {"--control": control, "--sources": sources, "--video": clip.video}
    phone = where.phone(only_here | {"--sustain": effort.sustain, "--profile": effort.profile})
    machine = describe_machine()
    counts = _parse_threads(threads, None if phone else machine.cores)
    store, against = ClipStore(data), read_reference(reference)
    if against.fingerprint != store.info.fingerprint:
        raise StageError(f"{reference} was measured on another store than {data}: measure it again")
    baseline = gate.read(phone.phone.name if phone else machine.name, store.info.fingerprint)
    corpora = Corpora(store, against.split, control)
    subjects = _list_checked(path, counts, corpora, machine.name)
    timed = [subject.row for subject in subjects if subject.row.status == "measured"]
    if not phone and not any(row.kind == "artifact" for row in timed):
        _refuse({"--control": control, "--sources": sources}, "artifacts")
    if not phone and not timed:
        _refuse({"--sustain": effort.sustain}, "rows")
    clip.check(subjects, store)
    diagnoses = _diagnoses(path)
    with KeptMeasurements(out, machine.model_dump_json()) as kept:
        if phone:
            phone.measure(subjects, effort, kept)
            peaks = []
        else:
            peaks = _measure_here(subjects, corpora, sources, against.metrics.auc, effort, kept)
        budgets = clip.measure(subjects, store, kept)
        compare_rows(subjects)
        notes = notes_of(subjects, store, corpora.split, against, phone)
        notes += not_exported(path)
        notes += not_cut(corpora.perturbed if sources else None)
        report = _report(_session(machine, peaks, phone), corpora, against, subjects, budgets, diagnoses, notes)
        write_report(report, out)
    print(table_text(report))
    say(f"{out / 'report.html'}: {len(report.rows)} rows")
    check_measured(report, out)
    _check_not_worse(report, out, baseline)
    return report


def command_of_this_process() -> str:
    """Return the command line of this process: ``pocketproof``, or ``python -m MODULE`` for a study."""
    module = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")
    program = ["python", "-m", module] if module.startswith("benchmarks.") else ["pocketproof"]
    return shlex.join([*program, *sys.argv[1:]])


def _session(machine: Machine, peaks: list[Peak], phone: PhoneTimer | None) -> Session:
    return Session(
        machine=machine.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command_of_this_process(),
        environment=machine.model_dump() | ({"phone": phone.properties} if phone else {}),
        peaks=peaks,
    )


def _report(
    session: Session,
    corpora: Corpora,
    against: Reference,
    subjects: list[Subject],
    budgets: list[Budget],
    diagnoses: dict[str, Diagnosis],
    notes: list[str],
) -> Report:
    """Put together what was measured."""
    store = corpora.store.info
    controls = corpora.opened(corpora.control).info if corpora.control else None
    return Report(
        sessions=[session],
        fingerprint=store.fingerprint,
        split=corpora.split,
        clips=store.clips[corpora.split],
        control_clips=sum(controls.clips["test"].values()) if controls else None,
        control_fingerprint=controls.fingerprint if controls else None,
        reference=against.summary(),
        diagnoses=diagnoses,
        notes=notes,
        rows=[subject.row for subject in subjects],
        budgets=budgets,
    )


def check_measured(report: Report, out: Path) -> None:
    """Raise StageError if a row or a clip budget failed."""
    failed = [f"{row.name} ({row.scheme}, {row.device})" for row in report.rows if row.status == "failed"]
    failed += [f"{budget.row} (clip budget)" for budget in report.budgets if not budget.stages]
    if failed:
        raise StageError(f"the report is in {out}, but these rows failed: {', '.join(failed)}")


def _check_not_worse(report: Report, out: Path, baseline: Baseline | None) -> None:
    """Raise StageError if a row is worse than the baseline allows."""
    if baseline and (regressions := baseline.regressions(report.rows)):
        raise StageError(f"the report is in {out}, and is worse than {baseline.path}: {'; '.join(regressions)}")


if __name__ == "__main__":
    run_as_script(bench)
