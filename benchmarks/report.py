"""Reports of several machines, or of several calls, in one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.pages.render import write_report
from benchmarks.schema import Report, machine_of, read_report
from compress.fidelity import Diagnosis
from files import refuse_existing, sha256_of
from stage import StageError, run_as_script, say


def _renamed(report: Report, taken: set[str]) -> Report:
    """Return a report whose sessions' names are none of those taken: a second call on a machine gets a number."""
    report = report.model_copy(deep=True)
    names: dict[str, str] = {}
    for session in report.sessions:
        before, number = session.machine, 1
        while session.machine in taken:
            number += 1
            session.machine = f"{machine_of(before)} ({number})"
        taken.add(session.machine)
        names[before] = session.machine
    for row in report.rows:
        row.machine = names[row.machine]
    for budget in report.budgets:
        budget.machine = names[budget.machine]
    report.notes = [_of_session(note, names) for note in report.notes]
    report.diagnoses = {_of_session(name, names): own for name, own in report.diagnoses.items()}
    return report


def _of_session(text: str, names: dict[str, str]) -> str:
    """Return a note, or the name of a diagnosis, that begins with its session with the session's new name."""
    for before, after in names.items():
        if text.startswith(f"{before}: "):
            return f"{after}{text.removeprefix(before)}"
    return text


def _diagnoses(parts: Sequence[Report]) -> dict[str, Diagnosis]:
    """Return all diagnoses; those of other runs of the same name are told apart by their session."""
    found: dict[str, Diagnosis] = {}
    for part in parts:
        for name, own in part.diagnoses.items():
            found[name if found.get(name, own) == own else f"{part.sessions[0].machine}: {name}"] = own
    return found


def _notes(part: Report, parts: Sequence[Report]) -> list[str]:
    """Return a report's notes: those that are not of all reports name its session."""
    everywhere = set.intersection(*(set(other.notes) for other in parts))
    alone = part.sessions[0].machine if len(part.sessions) == 1 else ""
    return [f"{alone}: {note}" if alone and note not in everywhere else note for note in part.notes]


def _refuse_twice(reports: Sequence[Report]) -> None:
    """Raise StageError if a measurement is there twice: figures of two measurements are never equal."""
    seen: set[str] = set()
    for row in (row for report in reports for row in report.rows if row.latency_ms):
        figures = row.model_dump_json(exclude={"machine"}) + machine_of(row.machine)
        if figures in seen:
            raise StageError(
                f"{row.name} of {machine_of(row.machine)} is there twice with the same figures: one report holds "
                "another, give the rows of each machine once"
            )
        seen.add(figures)


def merge(reports: Sequence[Report]) -> Report:
    """Return one report with the rows of all, which must be on the same clips and against the same reference.

    What was compared within one report (speedups, flips, what earned its slot) stays as it was measured there.
    Raises StageError if they differ in what they were measured on.
    """
    first = reports[0]
    for report in reports[1:]:
        if (report.fingerprint, report.split) != (first.fingerprint, first.split):
            raise StageError("the reports are of different stores or splits, and cannot be compared: measure one again")
        if report.reference != first.reference:
            one, other = (f"{own.run} ({own.precision} on {own.device})" for own in (first.reference, report.reference))
            raise StageError(
                f"the reports have different references, {one} and {other}: measure one again with --reference of the "
                "other"
            )
    controls = {report.control_fingerprint for report in reports} - {None}
    if len(controls) > 1:
        raise StageError("the reports have different controls: measure one again with --control of the other")
    _refuse_twice(reports)
    taken: set[str] = set()
    parts = [_renamed(report, taken) for report in reports]
    controlled = max(parts, key=lambda part: (bool(part.control_fingerprint), bool(part.control_clips)))
    return first.model_copy(
        update={
            "sessions": [session for part in parts for session in part.sessions],
            "control_clips": controlled.control_clips,
            "control_fingerprint": controlled.control_fingerprint,
            "diagnoses": _diagnoses(parts),
            "notes": list(dict.fromkeys(note for part in parts for note in _notes(part, parts))),
            "rows": [row for part in parts for row in part.rows],
            "budgets": [budget for part in parts for budget in part.budgets],
        }
    )


def report(
    path: Annotated[
        list[Path], typer.Argument(help="Files report.json, or their folders, of several machines or calls.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for report.json, report.md and report.html.")],
) -> Report:
    """Put reports into one: a phone's rows beside this machine's.

    Example: **pocketproof report here/report.json phone/report.json --out report**
    """
    refuse_existing(out)
    files = [own / "report.json" if own.is_dir() else own for own in path]
    if len({sha256_of(file) for file in files if file.is_file()}) < sum(file.is_file() for file in files):
        raise StageError("two of the reports are the same: give each once")
    merged = merge([read_report(file) for file in files])
    write_report(merged, out)
    say(f"{out}: {len(merged.rows)} rows of {len(merged.sessions)} sessions")
    return merged


if __name__ == "__main__":
    run_as_script(report)
