"""A report as pages to read: Markdown, one HTML file that loads nothing from outside, a table for the terminal.

A figure that was not measured is a dash, and the row's reason stands beside its status.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.report import Report, Row
from stage import written_whole

DASH = "–"
INK = "#010203"
"""Drawn in this colour, a line or letter of the picture takes the colour of the page's text."""
RUNTIMES = {
    "torch": ("PyTorch", "o", "#0072b2"),
    "executorch": ("ExecuTorch", "s", "#d55e00"),
    "onnxruntime": ("ONNX Runtime", "^", "#009e73"),
    "coreml": ("Core ML", "D", "#cc79a7"),
}
"""Name, mark and colour; the colours can be told apart with any colour vision and on light and dark."""
PICTURE_STYLE = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **{"axes.grid": True, "grid.alpha": 0.15, "svg.fonttype": "none", "svg.hashsalt": "report"},
}
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


def _milliseconds(row: Row, percentile: str) -> str:
    return DASH if row.latency_ms is None else _figure(getattr(row.latency_ms, percentile))


def _status(row: Row) -> str:
    reason = row.reason or ("" if row.status == "measured" else "no reason given")
    return f"{row.status}: {reason}" if reason else row.status


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
    "Frame AUC": lambda row: _fixed(row.frame_auc),
    "EER": lambda row: _fixed(row.eer, ".1%"),
    "Delta AUC": lambda row: _fixed(row.delta_auc, "+z.4f"),
    "Verdict flips": lambda row: _fixed(row.verdict_flips, ".1%"),
    "Control AUC": lambda row: _fixed(row.control_auc),
    "Speedup": lambda row: _figure(row.speedup, "×"),
    "Size ratio": lambda row: _figure(row.size_ratio, "×"),
}
WORDS = ("Row", "Status", "Model", "Runtime", "Scheme", "Device")
"""Columns of words; the others hold numbers and are set to the right."""
TERMINAL = ("Row", "Runtime", "Scheme", "Threads", "Size, MB", "p50, ms", "Peak, MB", "AUC", *list(COLUMNS)[-5:])


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
        if row.kind == "artifact" and row.scheme.startswith("int8") and row.latency_ms and row.auc is not None
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
    students = [row for row in report.rows if row.name == report.flips_against and row.auc is not None]
    if students:
        kept += f" and the fp32 student's {_fixed(students[0].auc)}"
    if best.verdict_flips is not None:
        kept += f"; {text['Verdict flips']} of its verdicts differ from the fp32 student's"
    return f"{cost}. {kept}."


def _how(report: Report) -> dict[str, str]:
    """Say how each figure was measured."""
    repeats = [row.repeats for row in report.rows if row.latency_ms] or [0]
    clips = " and ".join(f"{count} {label}" for label, count in report.clips.items())
    return {
        "Process": "Each row is measured in a fresh process that loads nothing else.",
        "Latency": "Milliseconds per frame at batch 1. Runs before the clock starts warm it up and do not count. "
        f"p50, p90 and p99 are percentiles over the repeats ({min(repeats)} to {max(repeats)} of them).",
        "Load; frames/s": "From the file on disk to a model that is ready to run; frames per second at batch 1.",
        "Memory": "Peak is the largest resident set of the whole process up to the end of the timing. "
        "Over idle is the same less a process with the runtime imported and nothing loaded.",
        "Size": "Millions of bytes.",
        "AUC": f"Area under the ROC curve over the clips of the split {report.split} ({clips}). "
        "Frame AUC takes each frame alone. EER is the equal error rate over the same clips.",
        "Delta AUC": f"AUC less that of the reference {report.reference.run} on the same clips.",
        "Threshold": "Each row has its own, set on its own scores of validation clips.",
        "Verdict flips": "Share of clips whose verdict differs from the fp32 student's, each at its own threshold. "
        f"The fp32 student is {report.flips_against or 'missing, so there are none'}.",
        "Control AUC": f"AUC on forgeries with the identity transform ({report.control_clips or 'no'} clips): 0.5 when "
        "the forgery was learned, higher when traces of how the file was made were.",
        "Speedup; size ratio": "Median latency and bytes of the fp32 teacher divided by the row's. "
        f"The fp32 teacher is {report.speedup_over or 'missing, so there are none'}.",
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
    lines += ["", "The picture of latency and accuracy is in report.html."]
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


class _Mark(NamedTuple):
    """One row of the picture."""

    p50: float
    auc: float | None
    runtime: str
    label: str


def _write_labels(axes: Axes, marks: list[_Mark]) -> None:
    """Write each mark's label beside it, at the nearest height where it covers no mark and no other label."""
    axes.autoscale_view()
    places = [axes.transData.transform((mark.p50, mark.auc or 0)) for mark in marks]
    taken = [(x - 6, x + 6, y) for x, y in places]
    for mark, (x, y) in zip(marks, places, strict=True):
        side = 1 if x < axes.bbox.x0 + 0.6 * axes.bbox.width else -1
        left, right = sorted((x + 9 * side, x + (9 + 5.2 * len(mark.label)) * side))
        free = [
            rise
            for rise in range(-12 * len(marks), 12 * len(marks) + 1, 3)
            if axes.bbox.y0 + 6 < y + rise < axes.bbox.y1 - 6
            and all(abs(y + rise - other) >= 12 or right < start or left > end for start, end, other in taken)
        ]
        rise = min(free, key=abs, default=0)
        taken.append((left, right, y + rise))
        line = {"arrowstyle": "-", "color": INK, "alpha": 0.5, "linewidth": 0.6, "relpos": (side < 0, 0.5)}
        arrow = line if rise else None
        text = axes.annotate(
            mark.label, (mark.p50, mark.auc or 0), (9 * side, rise), textcoords="offset points", arrowprops=arrow
        )
        text.set(ha="left" if side > 0 else "right", va="center_baseline", fontsize=9, parse_math=False)


def _draw_front(axes: Axes, marks: list[_Mark]) -> None:
    """Join the marks than which no other is both as fast and as accurate."""
    front: list[tuple[float, float]] = []
    for p50, minus_auc in sorted((mark.p50, -(mark.auc or 0)) for mark in marks):
        if not front or -minus_auc > front[-1][1]:
            front.append((p50, -minus_auc))
    axes.step(*zip(*front, strict=True), where="post", color=INK, linewidth=1, linestyle="--", label="Pareto front")


def _draw(axes: Axes, marks: list[_Mark]) -> None:
    """Draw marks that all have an AUC, or all have none."""
    for mark in marks:
        name, shape, colour = RUNTIMES[mark.runtime]
        axes.plot(mark.p50, mark.auc or 0, shape, color=colour, markersize=8, label=name, zorder=3)
    if marks[0].auc is None:
        axes.set_yticks([])
        axes.set_ylabel("AUC not\nmeasured", rotation=0, ha="right", va="center")
    else:
        axes.set_ylabel("AUC")
        axes.margins(y=0.2)
        _draw_front(axes, marks)
    _write_labels(axes, marks)


def _draw_bands(bands: list[list[_Mark]]) -> Figure:
    """Draw one band above the other over one axis of latency."""
    heights = [1 + 0.25 * len(band) + 2.5 * (band[0].auc is not None) for band in bands]
    height = sum(heights) + 1
    figure = Figure((11, height), dpi=72)
    figure.subplots_adjust(left=0.08, right=0.99, bottom=0.6 / height, top=1 - 0.4 / height, hspace=0.06)
    panels = figure.subplots(len(bands), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    latencies = [mark.p50 for band in bands for mark in band]
    panels[-1].set(xscale="log", xlim=(min(latencies) / 1.5, max(latencies) * 1.5))
    panels[-1].set_xlabel("Median latency per frame, ms (logarithmic)")
    panels[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[-1].xaxis.set_minor_locator(NullLocator())
    for axes, band in zip(panels, bands, strict=True):
        _draw(axes, band)
    legends = [axes.get_legend_handles_labels() for axes in panels]
    entries = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="upper right", ncols=6, frameon=False)
    return figure


def _picture(marks: list[_Mark]) -> Markup:
    """Draw median latency against AUC as SVG in the page's text colour; marks without an AUC in a strip below."""
    bands = [[mark for mark in marks if mark.auc is not None], [mark for mark in marks if mark.auc is None]]
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context(PICTURE_STYLE), warnings.catch_warnings():
        # The browser brings the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        _draw_bands([band for band in bands if band]).savefig(file, format="svg", metadata=no_metadata)
    svg = file.getvalue().partition("<svg")[2].replace(f": {INK}", ": currentColor")
    return Markup('<svg role="img" aria-label="Median latency and AUC, one mark per row of the table"' + svg)


def html(report: Report) -> str:
    """Return the report as one HTML file that loads nothing from outside."""
    report = _cleaned(report)
    templates = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=templates, autoescape=True, undefined=StrictUndefined).get_template("report.html.j2")
    drawn = [(row.latency_ms.p50, row) for row in report.rows if row.latency_ms]
    # Of a long path the end tells most, and more would not fit in the picture.
    marks = [
        _Mark(p50, row.auc, row.runtime, f"{_label(row, report.rows)[-48:]}, {_figure(row.bytes / 1e6)} MB")
        for p50, row in drawn
    ]
    return page.render(
        headline=_headline(report),
        notes=report.notes,
        columns=COLUMNS,
        words=WORDS,
        rows=report.rows,
        picture=_picture(marks) if marks else None,
        not_drawn=[f"{_label(row, report.rows)} ({_status(row)})" for row in report.rows if not row.latency_ms],
        sections=_sections(report),
    )


def write_report(report: Report, out: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html`` into the new folder ``out``, all or none."""
    pages = {"json": report.model_dump_json(indent=2) + "\n", "md": markdown(report), "html": html(report)}
    with written_whole(out) as folder:
        folder.mkdir()
        for ending, text in pages.items():
            (folder / f"report.{ending}").write_text(text, encoding="utf-8")
