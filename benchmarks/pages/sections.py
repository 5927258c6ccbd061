"""The sections of a report in their order, for the HTML page and for Markdown."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from benchmarks.figures import Budget, Peak, Sustained
from benchmarks.pages.charts import budget_chart, noise_chart, speed_chart
from benchmarks.pages.columns import COLUMNS, DASH, PLACES, differing, figure, fixed, label, status_of
from benchmarks.pages.how import how
from benchmarks.pages.pareto import Mark, pareto_chart
from benchmarks.pages.svg import shortened
from benchmarks.pages.tables import (
    Table,
    accuracy_table,
    budget_label,
    budget_tables,
    clip_of,
    cost_table,
    methods_of,
    methods_table,
    not_profiled,
    place_of,
    profile_tables,
    robustness_tables,
    stability_table,
    sustained_table,
    worst_layers,
)
from benchmarks.schema import ReferenceSummary, Report, Row
from compress.fidelity import Diagnosis
from stage import counted

Drawn = TypeVar("Drawn", Budget, Sustained)
OPTIONS = {
    "Clip budget": "bench --video FILE gives it.",
    "Sustained speed": "bench --sustain SECONDS gives it.",
    "Slowest operations": "bench --profile gives them.",
    "Crops cut otherwise": "bench --sources FOLDER gives it.",
}
"""Sections that a report may lack, and the option that adds each."""


@dataclass(frozen=True)
class Chart:
    """A chart, and the caption that explains it."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with sentences, terms with their texts (``facts``), charts and tables, in this order."""

    title: str
    about: str = ""
    """The run or machine that the section is about; empty if it is about all."""
    sentences: tuple[str, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()


def _latency_caption(rows: Sequence[Row], place: str, several: bool, report: Report) -> str:
    """Return the caption of one machine's rows; ``several``: whether some are on more threads than are drawn."""
    caption = (
        f"Rows on {place}{'; those on more threads are in the table alone' if several else ''}. Up and to the left "
    )
    caption += "is better. No other row is both as fast and as accurate as one on the Pareto front. Upright bars are "
    caption += "intervals of 95%."
    if whole := [label(row, report.rows) for row in rows if row.whole_clip and row.latency_ms]:
        caption += f" Of whole clips, and where clips overlap slower than drawn: {', '.join(whole)}."
    left_out = [row for row in rows if not row.latency_ms or row.simulated]
    if missing := [f"{label(row, report.rows)} ({status_of(row)})" for row in left_out]:
        caption += f" Without a latency that counts, and so not in the picture: {'; '.join(missing)}."
    return caption


def _latency_chart(machine: str, report: Report) -> Chart | None:
    """Return a chart of latency against AUC of one session's rows on the fewest threads.

    None if no row has a latency that counts.
    """
    rows = [row for row in report.rows if row.machine == machine]
    timed = [row for row in rows if row.latency_ms and not row.simulated]
    if not timed:
        return None
    threads = {row.threads for row in timed}
    drawn = [row for row in timed if row.threads == min(threads)]
    marks = [
        Mark(
            row.latency_ms.p50,
            row.auc,
            row.auc_interval,
            row.runtime,
            f"{shortened(label(row, drawn))}, {figure(row.bytes / 1e6)} MB",
        )
        for row in drawn
        if row.latency_ms
    ]
    own = " (Core ML: threads and units of its own)" if any(row.own_threads for row in drawn) else ""
    place = f"{counted(min(threads), 'thread')} of {drawn[0].place}{own}"  # a session times in one place
    svg = pareto_chart(marks, "Median latency per frame, ms", f"Median latency and AUC, one mark per row on {place}")
    return Chart(svg, _latency_caption(rows, place, len(threads) > 1, report))


def _size_chart(report: Report) -> Chart | None:
    """Return a chart of size against AUC with each file once; None if no accuracy was measured."""
    files: dict[tuple[str, str, str], Row] = {}
    for row in sorted(report.rows, key=lambda row: (row.status != "measured", row.device != "all", row.threads)):
        if row.auc is not None and not row.simulated:
            files.setdefault((row.sha256 or row.name, row.runtime, row.scheme), row)
    drawn = list(files.values())
    if not drawn:
        return None
    marks = [
        Mark(row.bytes / 1e6, row.auc, row.auc_interval, row.runtime, shortened(label(row, drawn))) for row in drawn
    ]
    caption = "Each artifact and run whose accuracy was measured, once. Up and to the left is better. "
    caption += "No other is both as small and as accurate as one on the Pareto front."
    return Chart(pareto_chart(marks, "Size, MB", "Size and AUC, one mark per artifact or run"), caption)


def _pictures(report: Report) -> Iterator[Section]:
    latency_charts = [_latency_chart(session.machine, report) for session in report.sessions]
    charts = tuple(chart for chart in latency_charts if chart)
    sentences = () if charts else ("No row has a latency that counts, so there is no picture.",)
    yield Section("Latency and accuracy", sentences=sentences, charts=charts)
    if size := _size_chart(report):
        yield Section("Size and accuracy", charts=(size,))


def _accuracy(report: Report) -> Iterator[Section]:
    if (table := accuracy_table(report.rows)).rows:
        sentence = "Rows that differ in threads alone, and say the same, are told once."
        yield Section("Accuracy", sentences=(sentence,), tables=(table,))
    methods = methods_of(report.rows)
    if len(methods) > 1:
        sentence = "AUC of each method's fake clips against all real ones, with its interval of 95%."
        yield Section("By method of forgery", sentences=(sentence,), tables=(methods_table(report.rows),))
    elif methods:
        sentence = f"All fake clips are of one method, {next(iter(methods))}: its AUC is that of all clips."
        yield Section("By method of forgery", sentences=(sentence,))


def _times(report: Report) -> Iterator[Section]:
    if report.rows:
        common = [title for title in PLACES if not differing(title, report.rows)]
        sentences = [f"{title} of all rows: {COLUMNS[title].text(report.rows[0])}." for title in common]
        yield Section("Time, memory and size", sentences=tuple(sentences), tables=(cost_table(report.rows),))
    if (table := stability_table(report.rows)).rows:
        yield Section("Stability", tables=(table,))


def _budgets(budgets: list[Budget]) -> Iterator[Section]:
    if not budgets:
        return
    places, clips = ("; ".join(filter(None, dict.fromkeys(map(text, budgets)))) for text in (place_of, clip_of))
    clip = f"A clip here: {clips}." if clips else "No clip was measured."
    sentence = f"From the video file to P(fake), on {places}. {clip}"
    caption = (
        "A bar ends at the total, on a logarithmic axis; inside a bar, a step's length is its share of that bar's "
        "total, so that steps are compared within a bar and totals between bars."
    )
    by_place: dict[str, list[Budget]] = {}
    for budget in (budget for budget in budgets if budget.ms > 0):
        by_place.setdefault(f"{place_of(budget)}: {clip_of(budget)}", []).append(budget)
    drawn = {place: [(budget_label(budget, own), budget) for budget in own] for place, own in by_place.items()}
    charts = _charts_by_place(drawn, budget_chart, caption)
    yield Section("Clip budget", sentences=(sentence,), charts=charts, tables=budget_tables(budgets))


def _charts_by_place(
    drawn: dict[str, list[tuple[str, Drawn]]], draw: Callable[[list[tuple[str, Drawn]]], str], caption: str
) -> tuple[Chart, ...]:
    """Return a chart for each place, which its caption names, of what was measured there by its label."""
    return tuple(Chart(draw(own), f"On {place}. {caption}") for place, own in drawn.items())


def _sustained(rows: list[Row]) -> Iterator[Section]:
    if not any(row.sustained for row in rows):
        return
    drawn: dict[str, list[tuple[str, Sustained]]] = {}
    for row in rows:
        if row.sustained and row.sustained.frames_per_second:
            own = [other for other in rows if other.place == row.place]
            drawn.setdefault(row.place, []).append((label(row, own), row.sustained))
    caption = "A level line keeps its speed; the last point may stand for less than a second."
    yield Section(
        "Sustained speed", charts=_charts_by_place(drawn, speed_chart, caption), tables=(sustained_table(rows),)
    )


def _profiles(rows: list[Row]) -> Iterator[Section]:
    if any(row.profile for row in rows):
        yield Section("Slowest operations", facts=not_profiled(rows), tables=profile_tables(rows))


def _diagnosis_facts(diagnosis: Diagnosis) -> dict[str, str]:
    """Return the figures of an int8 run's diagnosis as terms with their texts."""
    observers = ", ".join(f"{name} {figure(snr)}" for name, snr in diagnosis.observers.items())
    islands = ", ".join(f"{count} {name}" for name, count in diagnosis.islands.items())
    return {
        "Logit SNR": f"{figure(diagnosis.logit_snr_db)} dB on {diagnosis.samples} validation {diagnosis.per}s",
        "By observer, dB, before training and before layers were kept in fp32": observers,
        "In fp32": ", ".join(["the head", *diagnosis.float_layers]),
        "Operations that leave int8": islands or "none",
    }


def _diagnoses(report: Report) -> Iterator[Section]:
    for name, diagnosis in report.diagnoses.items():
        chart = Chart(noise_chart(diagnosis, name), "What rounding a layer adds to the logit, on a logarithmic axis.")
        yield Section("What int8 cost", name, (), _diagnosis_facts(diagnosis), (chart,), (worst_layers(diagnosis),))


def _robustness(report: Report) -> Iterator[Section]:
    if tables := robustness_tables(report):
        sentence = "Each artifact against itself on the same clips cut as the manifest says."
        yield Section("Crops cut otherwise", sentences=(sentence,), tables=tables)


def _reference(reference: ReferenceSummary) -> Section:
    latency = reference.latency_ms
    percentiles = ", ".join(map(figure, (latency.p50, latency.p90, latency.p99)))
    facts = {
        "Run": f"{reference.run} ({reference.backbone})",
        "Device": f"{reference.device}, {reference.precision}",
        "TF32": "allowed" if reference.tf32 else "not used",
        "AUC": f"{fixed(reference.auc)} over {reference.clips} clips",
        "Latency p50, p90, p99": f"{percentiles} ms per frame",
        "Best throughput": f"{figure(reference.throughput)} frames/s in batches of {reference.best_batch} samples",
        "Peak memory": figure(reference.peak_memory_mb, " MB of the process")
        + ("" if reference.device_memory_mb is None else f", {figure(reference.device_memory_mb)} MB on the GPU"),
        "Notes": " ".join(reference.notes) or "none",
    }
    return Section("Reference", facts=facts)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path of keys (``a / b``) and the text of each value in nested dicts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path} / {key}" if path else key)
    else:
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else DASH if value is None else str(value)


def _peak_text(peak: Peak) -> str:
    """Return the machine's speed of matrix products, and its drift, as text."""
    speeds = f"float32 {figure(peak.fp32_gmacs)}, bytes {figure(peak.int8_gmacs)} GMAC/s"
    return f"{speeds}; float32 moved by {peak.drift:.1%} from before the rows to after them"


def _environments(report: Report) -> Iterator[Section]:
    for session in report.sessions:
        peaks = {f"Matrix products, {counted(peak.threads, 'thread')}": _peak_text(peak) for peak in session.peaks}
        origin = {"Made": session.created, "Command": session.command}
        yield Section("Environment", session.machine, facts=origin | peaks | dict(_flat(session.environment)))


def sections(report: Report) -> list[Section]:
    """Return the sections that follow the table of rows; missing ones are listed with the option that adds them."""
    measured = [
        *_pictures(report),
        *_accuracy(report),
        *_times(report),
        *_budgets(report.budgets),
        *_sustained(report.rows),
        *_profiles(report.rows),
        *_robustness(report),
        *_diagnoses(report),
    ]
    titles = {section.title for section in measured}
    if missing := {title: option for title, option in OPTIONS.items() if title not in titles}:
        measured.append(Section("Not measured here", facts=missing))
    methods = Section("How each figure was measured", facts=how(report))
    return [*measured, _reference(report.reference), *_environments(report), methods]
