"""Merge the reports of several machines, or of several calls of ``bench``, into one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.pages.render import write_report
from benchmarks.schema import Report, Row, machine_of, read_report
from command import run_as_script
from compress.fidelity import Diagnosis
from files import refuse_existing, sha256_of
from stage import StageError, say, some_of


def _renamed(report: Report, taken: set[str]) -> Report:
    """Return a copy of a report with unique session names: a second session on a machine gets a number.

    ``taken``: names used so far; those of the copy are added.
    """
    report = report.model_copy(deep=True)
    new_names: dict[str, str] = {}
    for session in report.sessions:
        old_name, number = session.machine, 1
        while session.machine in taken:
            number += 1
            session.machine = f"{machine_of(old_name)} ({number})"
        taken.add(session.machine)
        new_names[old_name] = session.machine
    for row in report.rows:
        row.machine = new_names[row.machine]
    for budget in report.budgets:
        budget.machine = new_names[budget.machine]
    report.notes = [_with_new_name(note, new_names) for note in report.notes]
    report.diagnoses = {_with_new_name(name, new_names): diagnosis for name, diagnosis in report.diagnoses.items()}
    return report


def _with_new_name(text: str, new_names: dict[str, str]) -> str:
    """Return a note, or the name of a diagnosis; a session at its beginning is replaced by its new name."""
    for old_name, new_name in new_names.items():
        if text.startswith(f"{old_name}: "):
            return f"{new_name}{text.removeprefix(old_name)}"
    return text


def _diagnoses(parts: Sequence[Report]) -> dict[str, Diagnosis]:
    """Return the diagnoses of all reports; one that differs from an earlier one of its name gets its session's name."""
    merged: dict[str, Diagnosis] = {}
    for part in parts:
        for name, diagnosis in part.diagnoses.items():
            same = merged.get(name, diagnosis) == diagnosis
            merged[name if same else f"{part.sessions[0].machine}: {name}"] = diagnosis
    return merged


def _notes(part: Report, parts: Sequence[Report]) -> list[str]:
    """Return a report's notes; one that is not in all reports, and names no session yet, names those of its report.

    A merged report's note that names no session is of all its sessions: it was in all reports that were merged.
    """
    shared = set.intersection(*(set(other.notes) for other in parts))
    sessions = [session.machine for session in part.sessions]
    notes: list[str] = []
    for note in part.notes:
        named = note in shared or any(note.startswith(f"{session}: ") for session in sessions)
        notes += [note] if named else [f"{session}: {note}" for session in sessions]
    return notes


def _refuse_twice(reports: Sequence[Report]) -> None:
    """Raise StageError if a timed row is in the reports twice: figures of two measurements are never all equal."""
    seen: set[str] = set()
    for row in (row for report in reports for row in report.rows if row.latency_ms):
        figures = row.model_dump_json(exclude={"machine"}) + machine_of(row.machine)
        if figures in seen:
            raise StageError(
                f"{row.name} of {machine_of(row.machine)} is there twice with the same figures: one report holds "
                "another, give the rows of each machine once"
            )
        seen.add(figures)


NOT_THE_SAME = "figures of one do not hold for another"


def _other_files(rows: Sequence[Row]) -> list[str]:
    """Return a note for each artifact or run of one name that is another file on another machine."""
    machines: dict[tuple[str, str, str, str], dict[str, list[str]]] = {}
    for row in (row for row in rows if row.sha256):  # reports of before it was noted do not tell
        by_hash = machines.setdefault((row.kind, row.name, row.runtime, row.scheme), {})
        by_hash.setdefault(row.sha256 or "", []).append(row.place)
    notes = []
    for (kind, name, _, scheme), by_hash in machines.items():
        if len(by_hash) > 1:
            places = " and ".join(some_of(list(dict.fromkeys(names))) for names in by_hash.values())
            notes.append(f"{name} ({scheme}) is not the same {kind} on {places}: {NOT_THE_SAME}.")
    return notes


def merge(reports: Sequence[Report]) -> Report:
    """Return one report with the rows of all, which must have the same clips and the same reference.

    Comparisons within one report (speedups, flips, what earned its slot) stay as they were measured there. Raises
    StageError if the stores, splits, references or controls differ, or if a measurement is there twice.
    """
    first = reports[0]
    for report in reports[1:]:
        if (report.fingerprint, report.split) != (first.fingerprint, first.split):
            raise StageError("the reports are of different stores or splits, and cannot be compared: measure one again")
        if report.reference != first.reference:
            one, other = (f"{ref.run} ({ref.precision} on {ref.device})" for ref in (first.reference, report.reference))
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
    rows = [row for part in parts for row in part.rows]
    # What an earlier merge noted of its rows is told anew, of all.
    notes = [note for part in parts for note in _notes(part, parts) if not note.endswith(f": {NOT_THE_SAME}.")]
    controlled = max(parts, key=lambda part: (bool(part.control_fingerprint), bool(part.control_clips)))
    return first.model_copy(
        update={
            "sessions": [session for part in parts for session in part.sessions],
            "control_clips": controlled.control_clips,
            "control_fingerprint": controlled.control_fingerprint,
            "diagnoses": _diagnoses(parts),
            "notes": list(dict.fromkeys([*_other_files(rows), *notes])),
            "rows": rows,
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
    files = [entry / "report.json" if entry.is_dir() else entry for entry in path]
    existing = [file for file in files if file.is_file()]
    if len({sha256_of(file) for file in existing}) < len(existing):
        raise StageError("two of the reports are the same: give each once")
    merged = merge([read_report(file) for file in files])
    write_report(merged, out)
    say(f"{out}: {len(merged.rows)} rows of {len(merged.sessions)} sessions")
    return merged


if __name__ == "__main__":
    run_as_script(report)
