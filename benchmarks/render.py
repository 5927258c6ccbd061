"""A report as pages to read: Markdown, one HTML file that loads nothing from outside, a table for the terminal.

A figure that was not measured is a dash, and the row's reason stands beside its status.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.columns import COLUMNS, DASH, TERMINAL, WORDS, figure, fixed, label, status_of, threads_of
from benchmarks.comparing import LEAST_BOUND, MOST_LOST
from benchmarks.picture import Mark, noise_picture, picture
from benchmarks.report import Report
from benchmarks.sections import (
    NOISE_COLUMNS,
    ROBUSTNESS_COLUMNS,
    diagnosis_facts,
    peak_text,
    robustness_rows,
    worst_layers,
)
from stage import written_whole

MARKDOWN_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {sign: f"\\{sign}" for sign in "\\`*[]|~#$"}
)


def _clean(value: Any) -> Any:
    """Put every text in nested lists and dicts on one line, without codes that move a cursor or turn a line around."""
    if isinstance(value, dict):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, str):
        return "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(value.split()))
    return value


def _cleaned(report: Report) -> Report:
    return Report.model_validate(_clean(report.model_dump()))


def _headline(report: Report) -> str:
    """Say what the fastest int8 artifact with a measured accuracy costs and keeps, at the fewest threads."""
    candidates = [
        (row.threads, row.latency_ms.p50, row.bytes, index)
        for index, row in enumerate(report.rows)
        if (row.kind, row.status, row.batch) == ("artifact", "measured", 1) and row.scheme.startswith("int8")
        if row.latency_ms and row.auc is not None
    ]
    if not candidates:
        return "No int8 artifact was measured for both latency and accuracy."
    best = report.rows[min(candidates)[-1]]
    text = {title: value(best) for title, value in COLUMNS.items()}
    cost = f"{best.name} ({text['Runtime']}, {best.scheme}, {best.device}, {threads_of(best.threads)})"
    cost += f" takes {text['p50, ms']} ms per frame and {text['Size, MB']} MB ({best.bytes:,} bytes)"
    if best.speedup is not None:
        cost += f": {text['Speedup']} as fast as the fp32 teacher {best.speedup_over}"
    if best.size_ratio is not None:
        cost += f" and {text['Size ratio']} smaller"
    kept = f"Its AUC is {text['AUC']}; the reference's is {fixed(report.reference.auc)}"
    for student in [row for row in report.rows if (row.name, row.scheme) == (best.student, "fp32")][:1]:
        kept += f" and the fp32 student's {fixed(student.auc)}"
    if best.verdict_flips is not None:
        kept += f"; {text['Verdict flips']} of its verdicts differ from the fp32 student's"
    return f"{cost}. {kept}."


def _how(report: Report) -> dict[str, str]:
    """Say how each figure was measured."""
    repeats = sorted({row.repeats for row in report.rows if row.latency_ms} or {0})
    span = " to ".join(str(count) for count in repeats[:: max(1, len(repeats) - 1)])
    clips = " and ".join(f"{count} {label}" for label, count in report.clips.items())
    students = ", ".join(sorted({row.student for row in report.rows if row.student}))
    teachers = ", ".join(sorted({row.speedup_over for row in report.rows if row.speedup_over}))
    return {
        "Process": "Each row is measured in a fresh process that loads nothing else.",
        "Latency": "Milliseconds per frame. "
        "Runs before the clock starts warm it up and do not count. "
        f"p50, p90 and p99 are percentiles over {span} repeats. "
        "A model of whole clips is timed on clips, and each time divided by their frames. Where clips overlap, as the "
        "manifest's do by half, a file in steps runs score twice as often, and a whole-clip file takes twice as long.",
        "Load; frames/s": "From the file on disk to a model that is ready to run, once its runtime is imported. "
        "Runs in torch are fused, and converted to their scheme, while they load, and the peak has that in it. "
        "Frames per second in such runs.",
        "Memory": "Peak is the largest resident set of the whole process up to the end of the timing. "
        "Over idle is the same less a process with the runtime imported and nothing loaded. An MB here has 2^20 bytes.",
        "Size": "Bytes of the artifact, or of the run's weights. An MB here has 10^6 bytes.",
        "AUC": f"Area under the ROC curve over the clips of the split {report.split} ({clips}). "
        "95% is its bootstrap interval, which draws persons anew; it needs 10 of them. "
        "Frame AUC takes each frame alone. EER is the equal error rate over the same clips.",
        "Delta AUC": f"AUC less that of the reference {report.reference.run} on the same clips.",
        "Threshold": "Each row has its own, set on its own scores of validation clips.",
        "Verdict flips": "Share of clips whose verdict differs from that of the fp32 student that a row was made from, "
        "each at its own threshold; at EER: each at the equal-error threshold of its own validation clips. "
        f"Fp32 students: {students or 'none, so there are no flips'}.",
        "Earned its slot": "A scheme has, on this device, if its median latency is below that of fp32 of the same "
        f"student in the same runtime, and its AUC at most {MOST_LOST} lower, with an interval of the difference "
        f"(persons drawn anew) from {LEAST_BOUND} on; where there are too few persons for an interval, the difference "
        "alone decides.",
        "Crops cut otherwise": "Clips of the same split, cut again from their videos as an app with other habits "
        "would; delta and flips are against the same clips cut as the manifest says. Moved boxes go in a direction "
        "drawn for each clip. Of another detector's boxes, clips count in which it finds the face. "
        + ("" if any(row.robustness for row in report.rows) else "Not measured here: bench --sources gives it."),
        "What int8 cost": "Measured on validation crops, in torch. A layer's share is the variance that its rounding "
        "alone adds to the fake-minus-real logit, as a share of that logit's variance (first order).",
        "Control AUC": f"AUC on forgeries with the identity transform ({report.control_clips or 'no'} clips): 0.5 when "
        "the forgery was learned, higher when traces of how the file was made were.",
        "Speedup; size ratio": "Median latency and bytes of the fp32 teacher divided by the row's, "
        f"for the same number of threads. The fp32 teacher is {teachers or 'missing, so there are none'}.",
        "Only in report.json": "First run, delegated fraction, thresholds, AP, accuracy, TPR at low FPR, frame flips.",
    }


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each value of nested dicts with the way to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path} / {key}" if path else key)
    else:
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else DASH if value is None else str(value)


def _sections(report: Report) -> dict[str, dict[str, str]]:
    """Return the terms and texts that follow the rows, by section."""
    reference, latency = report.reference, report.reference.latency_ms
    of_reference = {
        "Run": f"{reference.run} ({reference.backbone})",
        "Device": f"{reference.device}, {reference.precision}",
        "TF32": "allowed" if reference.tf32 else "not used",
        "AUC": f"{fixed(reference.auc)} over {reference.clips} clips",
        "Latency p50, p90, p99": f"{figure(latency.p50)}, {figure(latency.p90)}, {figure(latency.p99)} ms per frame",
        "Best throughput": f"{figure(reference.throughput)} frames/s in batches of {reference.best_batch}",
        "Peak memory": figure(reference.peak_memory_mb, " MB of the process")
        + ("" if reference.device_memory_mb is None else f", {figure(reference.device_memory_mb)} MB on the GPU"),
        "Notes": " ".join(reference.notes) or "none",
    }
    sessions = {
        f"Environment: {session.machine}": {
            "Made": session.created,
            "Command": session.command,
            **dict(_flat(session.environment)),
            **{f"Matrix products, {threads_of(peak.threads)}": peak_text(peak) for peak in session.peaks},
        }
        for session in report.sessions
    }
    return {"Reference": of_reference, **sessions, "How each figure was measured": _how(report)}


def _escaped(text: str) -> str:
    """Return the text so that Markdown shows it as it is, in a table too."""
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text.translate(MARKDOWN_ESCAPES))


def markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    report = _cleaned(report)
    lines = ["# Pocketproof report", "", _escaped(_headline(report)), "", "## Notes", ""]
    lines += [f"- {_escaped(note)}" for note in report.notes] or ["None."]
    lines += ["", "## Rows", "", f"{DASH} was not measured; the status says why.", "", f"| {' | '.join(COLUMNS)} |"]
    lines += [f"| {' | '.join('---' if title in WORDS else '--:' for title in COLUMNS)} |"]
    lines += [f"| {' | '.join(_escaped(text(row)) for text in COLUMNS.values())} |" for row in report.rows]
    lines += ["", "The pictures are in report.html."]
    for name, diagnosis in report.diagnoses.items():
        lines += ["", f"## What int8 cost {_escaped(name)}", ""]
        lines += [f"- **{term}**: {_escaped(text)}" for term, text in diagnosis_facts(diagnosis).items()]
        lines += ["", f"| {' | '.join(NOISE_COLUMNS)} |", "| --- | --: | --: |"]
        lines += [f"| {' | '.join(map(_escaped, cells))} |" for cells in worst_layers(diagnosis)]
    for row in report.rows:
        if row.robustness:
            lines += ["", f"## Crops cut otherwise: {_escaped(label(row, report.rows))}", ""]
            lines += [f"| {' | '.join(ROBUSTNESS_COLUMNS)} |", "| --- | --: | --: | --: | --: | --: |"]
            lines += [f"| {' | '.join(map(_escaped, cells))} |" for cells in robustness_rows(row)]
    for title, facts in _sections(report).items():
        lines += ["", f"## {title}", "", *(f"- **{_escaped(term)}**: {_escaped(text)}" for term, text in facts.items())]
    return "\n".join(lines) + "\n"


def table_text(report: Report) -> str:
    """Return the headline, the main columns and each row's reason as plain text; the table is 150 signs wide."""
    report = _cleaned(report)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in TERMINAL:
        width = {"Row": None, "Runtime": 12, "Scheme": 12}.get(title, 7)
        table.add_column(title, justify="left" if title in WORDS else "right", width=width, overflow="fold")
    for row in report.rows:
        table.add_row(*(Text(COLUMNS[title](row)) for title in TERMINAL))
    file = io.StringIO()
    Console(file=file, width=150, color_system=None).print(table)
    reasons = [f"{label(row, report.rows)}: {status_of(row)}" for row in report.rows if status_of(row) != "measured"]
    return "\n".join([_headline(report), file.getvalue(), *reasons])


def html(report: Report) -> str:
    """Return the report as one HTML file that loads nothing from outside."""
    report = _cleaned(report)
    templates = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=templates, autoescape=True, undefined=StrictUndefined).get_template("report.html.j2")
    drawn = [(row.latency_ms.p50, row) for row in report.rows if row.latency_ms]
    # Of a long path the end tells most, and more would not fit in the picture.
    marks = [
        Mark(p50, row.auc, row.runtime, f"{label(row, report.rows)[-48:]}, {figure(row.bytes / 1e6)} MB")
        for p50, row in drawn
    ]
    return page.render(
        headline=_headline(report),
        notes=report.notes,
        columns=COLUMNS,
        words=WORDS,
        rows=report.rows,
        picture=picture(marks) if marks else None,
        not_drawn=[f"{label(row, report.rows)} ({status_of(row)})" for row in report.rows if not row.latency_ms],
        diagnoses={
            name: (diagnosis_facts(found), worst_layers(found), noise_picture(found))
            for name, found in report.diagnoses.items()
        },
        noise_columns=NOISE_COLUMNS,
        robustness=[(label(row, report.rows), robustness_rows(row)) for row in report.rows if row.robustness],
        robustness_columns=ROBUSTNESS_COLUMNS,
        sections=_sections(report),
    )


def write_report(report: Report, out: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html`` into the new folder ``out``, all or none."""
    pages = {"json": report.model_dump_json(indent=2) + "\n", "md": markdown(report), "html": html(report)}
    with written_whole(out) as folder:
        folder.mkdir()
        for ending, text in pages.items():
            (folder / f"report.{ending}").write_text(text, encoding="utf-8")
