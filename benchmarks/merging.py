"""Reports of several machines, or of several calls, in one."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.render import write_report
from benchmarks.report import Report, read_report
from files import refuse_existing
from stage import StageError, run_as_script, say


def _renamed(report: Report, taken: set[str]) -> Report:
    """Return a report whose sessions' names are none of those taken: a second call on a machine gets a number."""
    report = report.model_copy(deep=True)
    names: dict[str, str] = {}
    for session in report.sessions:
        before, number = session.machine, 1
        machine = re.sub(r" \(\d+\)$", "", before)
        while session.machine in taken:
            number += 1
            session.machine = f"{machine} ({number})"
        taken.add(session.machine)
        names[before] = session.machine
    for row in report.rows:
        row.machine = names[row.machine]
    for budget in report.budgets:
        budget.machine = names[budget.machine]
    return report


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
    taken: set[str] = set()
    parts = [_renamed(report, taken) for report in reports]
    diagnoses = {name: diagnosis for part in reversed(parts) for name, diagnosis in part.diagnoses.items()}
    return first.model_copy(
        update={
            "sessions": [session for part in parts for session in part.sessions],
            "control_clips": next((part.control_clips for part in parts if part.control_clips), None),
            "diagnoses": diagnoses,
            "notes": list(dict.fromkeys(note for part in parts for note in part.notes)),
            "rows": [row for part in parts for row in part.rows],
            "budgets": [budget for part in parts for budget in part.budgets],
        }
    )


def report(
    path: Annotated[list[Path], typer.Argument(help="Files report.json, of several machines or calls.")],
    out: Annotated[Path, typer.Option(help="The folder for report.json, report.md and report.html.")],
) -> Report:
    """Put reports into one: a phone's rows beside this machine's.

    Example: **pocketproof report here/report.json phone/report.json --out report**
    """
    refuse_existing(out)
    merged = merge([read_report(file) for file in path])
    write_report(merged, out)
    say(f"{out}: {len(merged.rows)} rows of {len(merged.sessions)} sessions")
    return merged


if __name__ == "__main__":
    run_as_script(report)
