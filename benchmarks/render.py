"""A report as pages to read: Markdown, one HTML file that loads nothing from outside, a table for the terminal.

A figure that was not measured is a dash, and the row's reason stands beside its status.
"""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.comparing import LEAST_BOUND, MOST_LOST
from benchmarks.picture import RUNTIMES, Mark, noise_picture, picture
from benchmarks.report import Report, Row
from compress.fidelity import Diagnosis
from stage import written_whole

DASH = "–"
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


def _figure(value: float | None, unit: str = "") -> str:
    """Return three significant digits, without an exponent from 1000 on."""
    if value is None:
        return DASH
    return (f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")) + unit


def _fixed(value: float | None, form: str = ".4f") -> str:
    return DASH if value is None else format(value, form)


def _auc_interval(row: Row) -> str:
    return "–".join(_fixed(end, ".3f") for end in row.auc_interval) if row.auc_interval else DASH


def _milliseconds(row: Row, percentile: str) -> str:
    return DASH if row.latency_ms is None else _figure(getattr(row.latency_ms, percentile))


def _status(row: Row) -> str:
    reason = row.reason or ("" if row.status == "measured" else "no reason given")
    return f"{row.status}: {reason}" if reason else row.status


def _earned(row: Row) -> str:
    verdict = {True: "yes: ", False: "no: ", None: f"{DASH} " if row.earned_because else DASH}[row.earned]
    return f"{verdict}{row.earned_because}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "Row": lambda row: row.name,
    "Status": _status,
    "Model": lambda row: row.model,
    "Runtime": lambda row: RUNTIMES[row.runtime][0],
    "Scheme": lambda row: row.scheme,
    "Device": lambda row: row.device,
    "Threads": lambda row: str(row.threads),
    "Input, px": lambda row: str(row.input_size),
    "Size, MB": lambda row: _figure(row.bytes / 1e6),
    "Load, ms": lambda row: _figure(row.load_ms),
    "p50, ms": lambda row: _milliseconds(row, "p50"),
    "p90, ms": lambda row: _milliseconds(row, "p90"),
    "p99, ms": lambda row: _milliseconds(row, "p99"),
    "Frames/s": lambda row: _figure(row.throughput),
    "Peak, MB": lambda row: _figure(row.peak_memory_mb),
    "Over idle, MB": lambda row: _figure(row.peak_memory_over_idle_mb),
    "AUC": lambda row: _fixed(row.auc),
    "AUC, 95%": _auc_interval,
    "Frame AUC": lambda row: _fixed(row.frame_auc),
    "EER": lambda row: _fixed(row.eer, ".1%"),
    "Delta AUC": lambda row: _fixed(row.delta_auc, "+z.4f"),
    "Verdict flips": lambda row: _fixed(row.verdict_flips, ".1%"),
    "Flips at EER": lambda row: _fixed(row.equal_error_flips, ".1%"),
    "Control AUC": lambda row: _fixed(row.control_auc),
    "Speedup": lambda row: _figure(row.speedup, "×"),
    "Size ratio": lambda row: _figure(row.size_ratio, "×"),
    "Earned its slot": _earned,
}
WORDS = ("Row", "Status", "Model", "Runtime", "Scheme", "Device", "Earned its slot")
"""Columns of words; the others hold numbers and are set to the right."""
TERMINAL = ("Row", "Runtime", "Scheme", "Threads", "Size, MB", "p50, ms", "Peak, MB", "AUC", *list(COLUMNS)[-7:-1])


def _threads(row: Row) -> str:
    return f"{row.threads} thread{'' if row.threads == 1 else 's'}"


def _label(row: Row, rows: list[Row]) -> str:
    """Return the row's name, with whatever tells it from other rows of that name."""
    same = [other for other in rows if other.name == row.name]
    texts = [*(COLUMNS[title] for title in ("Model", "Runtime", "Scheme", "Device")), _threads]
    return ", ".join([row.name, *(text(row) for text in texts if len({text(other) for other in same}) > 1)])


def _headline(report: Report) -> str:
    """Say what the fastest int8 artifact with a measured accuracy costs and keeps, at the fewest threads."""
    candidates = [
        (row.threads, row.latency_ms.p50, row.bytes, index)
        for index, row in enumerate(report.rows)
        if (row.kind, row.status) == ("artifact", "measured") and row.scheme.startswith("int8")
        if row.latency_ms and row.auc is not None
    ]
    if not candidates:
        return "No int8 artifact was measured for both latency and accuracy."
    best = report.rows[min(candidates)[-1]]
    text = {title: value(best) for title, value in COLUMNS.items()}
    cost = f"{best.name} ({text['Runtime']}, {best.scheme}, {best.device}, {_threads(best)})"
    cost += f" takes {text['p50, ms']} ms per frame and {text['Size, MB']} MB ({best.bytes:,} bytes)"
    if best.speedup is not None:
        cost += f": {text['Speedup']} as fast as the fp32 teacher {report.speedup_over}"
    if best.size_ratio is not None:
        cost += f" and {text['Size ratio']} smaller"
    kept = f"Its AUC is {text['AUC']}; the reference's is {_fixed(report.reference.auc)}"
    for student in [row for row in report.rows if (row.name, row.scheme) == (best.student, "fp32")][:1]:
        kept += f" and the fp32 student's {_fixed(student.auc)}"
    if best.verdict_flips is not None:
        kept += f"; {text['Verdict flips']} of its verdicts differ from the fp32 student's"
    return f"{cost}. {kept}."


def _how(report: Report) -> dict[str, str]:
    """Say how each figure was measured."""
    repeats = sorted({row.repeats for row in report.rows if row.latency_ms} or {0})
    span = " to ".join(str(count) for count in repeats[:: max(1, len(repeats) - 1)])
    clips = " and ".join(f"{count} {label}" for label, count in report.clips.items())
    students = ", ".join(sorted({row.student for row in report.rows if row.student}))
    return {
        "Process": "Each row is measured in a fresh process that loads nothing else.",
        "Latency": "Milliseconds per frame at batch 1, or as a file's name states. "
        "Runs before the clock starts warm it up and do not count. "
        f"p50, p90 and p99 are percentiles over {span} repeats. "
        "A model of whole clips is timed on clips, and each time divided by their frames.",
        "Load; frames/s": "From the file on disk to a model that is ready to run, once its runtime is imported. "
        "Runs in torch are fused, and converted to their scheme, while they load, and the peak has that in it. "
        "Frames per second at batch 1.",
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
        "What int8 cost": "Measured on validation crops, in torch. A layer's share is the variance that its rounding "
        "alone adds to the fake-minus-real logit, as a share of that logit's variance (first order).",
        "Control AUC": f"AUC on forgeries with the identity transform ({report.control_clips or 'no'} clips): 0.5 when "
        "the forgery was learned, higher when traces of how the file was made were.",
        "Speedup; size ratio": "Median latency and bytes of the fp32 teacher divided by the row's, "
        f"for the same number of threads. The fp32 teacher is {report.speedup_over or 'missing, so there are none'}.",
        "Only in report.json": "First run, delegated fraction, thresholds, AP, accuracy, TPR at low FPR, frame flips.",
    }


NOISE_COLUMNS = ("Layer", "Share of the logit's variance", "SNR of its output, dB")
WORST_LAYERS = 8
"""Told by name."""


def _diagnosis_facts(diagnosis: Diagnosis) -> dict[str, str]:
    """Say what int8 cost a run."""
    observers = ", ".join(f"{name} {_figure(snr)}" for name, snr in diagnosis.observers.items())
    islands = ", ".join(f"{count} {name}" for name, count in diagnosis.islands.items())
    return {
        "Logit SNR": f"{_figure(diagnosis.logit_snr_db)} dB on {diagnosis.samples} validation {diagnosis.per}s",
        "By observer, dB, before logits were matched": observers,
        "In fp32": ", ".join(["the head", *diagnosis.float_layers]),
        "Operations that leave int8": islands or "none",
    }


def _worst_layers(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    """Return name, share of the logit's variance, and SNR of the layers that hurt most."""
    return [
        (noise.layer, _fixed(noise.logit_noise, ".3%"), _figure(noise.snr_db))
        for noise in diagnosis.worst()[:WORST_LAYERS]
    ]


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
        "AUC": f"{_fixed(reference.auc)} over {reference.clips} clips",
        "Latency p50, p90, p99": f"{_figure(latency.p50)}, {_figure(latency.p90)}, {_figure(latency.p99)} ms per frame",
        "Peak memory": _figure(reference.peak_memory_mb, " MB"),
        "Notes": " ".join(reference.notes) or "none",
    }
    environment = {"Made": report.created, "Command": report.command, **dict(_flat(report.machine))}
    return {"Reference": of_reference, "Environment": environment, "How each figure was measured": _how(report)}


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
        lines += [f"- **{term}**: {_escaped(text)}" for term, text in _diagnosis_facts(diagnosis).items()]
        lines += ["", f"| {' | '.join(NOISE_COLUMNS)} |", "| --- | --: | --: |"]
        lines += [f"| {' | '.join(map(_escaped, cells))} |" for cells in _worst_layers(diagnosis)]
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
    reasons = [f"{_label(row, report.rows)}: {_status(row)}" for row in report.rows if _status(row) != "measured"]
    return "\n".join([_headline(report), file.getvalue(), *reasons])


def html(report: Report) -> str:
    """Return the report as one HTML file that loads nothing from outside."""
    report = _cleaned(report)
    templates = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=templates, autoescape=True, undefined=StrictUndefined).get_template("report.html.j2")
    drawn = [(row.latency_ms.p50, row) for row in report.rows if row.latency_ms]
    # Of a long path the end tells most, and more would not fit in the picture.
    marks = [
        Mark(p50, row.auc, row.runtime, f"{_label(row, report.rows)[-48:]}, {_figure(row.bytes / 1e6)} MB")
        for p50, row in drawn
    ]
    return page.render(
        headline=_headline(report),
        notes=report.notes,
        columns=COLUMNS,
        words=WORDS,
        rows=report.rows,
        picture=picture(marks) if marks else None,
        not_drawn=[f"{_label(row, report.rows)} ({_status(row)})" for row in report.rows if not row.latency_ms],
        diagnoses={
            name: (_diagnosis_facts(found), _worst_layers(found), noise_picture(found))
            for name, found in report.diagnoses.items()
        },
        noise_columns=NOISE_COLUMNS,
        sections=_sections(report),
    )


def write_report(report: Report, out: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html`` into the new folder ``out``, all or none."""
    pages = {"json": report.model_dump_json(indent=2) + "\n", "md": markdown(report), "html": html(report)}
    with written_whole(out) as folder:
        folder.mkdir()
        for ending, text in pages.items():
            (folder / f"report.{ending}").write_text(text, encoding="utf-8")
