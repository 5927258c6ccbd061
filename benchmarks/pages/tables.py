"""The tables of a report besides the table of rows; the HTML page and Markdown show the same ones."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmarks.figures import Budget, MethodFigures, Profile
from benchmarks.pages.charts import STEPS
from benchmarks.pages.columns import (
    ACCURACY,
    COLUMNS,
    DASH,
    DECIDING,
    PLACES,
    TELLING,
    difference,
    figure,
    fixed,
    label,
    percent,
    spaced,
    times,
    words,
)
from benchmarks.schema import Report, Row
from compress.fidelity import Diagnosis
from stage import counted

WORST_LAYERS = 8
"""Number of layers in the table of a diagnosis."""


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of each line names the line's subject."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    words: tuple[str, ...] = ()
    """Columns of words besides the first; the others hold numbers and are aligned to the right."""
    folded: bool = False
    """Whether the page shows only the title until the reader opens the table."""


def _of_columns(titles: Sequence[str], rows: Sequence[Row], timed: bool = False) -> Table:
    """Return a table with one line per row; ``timed``: see ``label``."""
    lines = tuple((label(row, rows, timed), *(COLUMNS[title].text(row) for title in titles)) for row in rows)
    return Table(("Row", *titles), lines, words=words(titles))


def _without_repeats(rows: Sequence[Row], content: Callable[[Row], object]) -> list[Row]:
    """Return the rows, without those that have the same content as an earlier one and differ in threads alone."""
    unique: list[Row] = []
    keys: list[object] = []
    for row in rows:
        key = (row.name, *(COLUMNS[title].text(row) for title in TELLING), content(row))
        if key not in keys:
            keys.append(key)
            unique.append(row)
    return unique


def accuracy_table(rows: Sequence[Row]) -> Table:
    """Return the table of all accuracy figures, of the rows that have an AUC."""
    titles = [title for title in COLUMNS if title in ACCURACY]
    scored = [row for row in rows if row.auc is not None]
    unique = _without_repeats(scored, lambda row: [COLUMNS[title].text(row) for title in titles])
    return _of_columns(titles, unique)


def cost_table(rows: Sequence[Row]) -> Table:
    """Return the table of time, memory and size: the columns that the narrow table of rows leaves out."""
    titles = [title for title in COLUMNS if title not in (*ACCURACY, *DECIDING, *PLACES)]
    return _of_columns(titles, rows, timed=True)


def stability_table(rows: Sequence[Row]) -> Table:
    """Return the table of each timed row's medians, spread and verdict: stable, unstable or not known."""
    lines = [
        (
            label(row, rows, timed=True),
            "not known" if row.spread is None else "unstable" if row.unstable else "stable",
            percent(row.spread),
            ", ".join(map(figure, row.medians_ms)) or DASH,
            str(row.repeats),
            ", ".join(map(str, row.cores)) if row.cores else DASH,
        )
        for row in rows
        if row.latency_ms
    ]
    columns = ("Row", "Verdict", "Spread", "Medians, ms", "Repeats", "Cores")
    return Table(columns, tuple(lines), words=("Verdict",))


def methods_of(rows: Iterable[Row]) -> dict[str, int]:
    """Return the number of fake clips of each method of forgery in the rows."""
    return {name: figures.fake for row in rows for name, figures in row.methods.items()}


def _method(figures: MethodFigures | None) -> str:
    if figures is None or figures.auc is None:
        return DASH
    return fixed(figures.auc) + (f" ({spaced(figures.auc_interval)})" if figures.auc_interval else "")


def methods_table(rows: Sequence[Row]) -> Table:
    """Return the table of AUC by method of forgery, one column each."""
    methods = methods_of(rows)
    unique = _without_repeats([row for row in rows if row.methods], lambda row: row.methods)
    lines = [(label(row, unique), *(_method(row.methods.get(name)) for name in methods)) for row in unique]
    return Table(("Row", *(f"{name} ({fake} fake)" for name, fake in methods.items())), tuple(lines))


def clip_of(budget: Budget) -> str:
    """Return what clip a budget was measured on, as text; nothing where none was."""
    width, height = budget.picture
    return f"{budget.frames} frames of {budget.video} ({width} by {height} pixels)" if budget.stages else ""


def place_of(budget: Budget) -> str:
    """Return where a budget was measured, as text."""
    return f"{counted(budget.threads, 'thread')} of {budget.machine}"


def budget_label(budget: Budget, every: Sequence[Budget]) -> str:
    """Return the name of a budget's row, what distinguishes it from namesakes, and its place and clip of several."""
    namesakes = [other for other in every if other.row == budget.row]
    telling = [field for field in ("runtime", "scheme") if len({getattr(other, field) for other in namesakes}) > 1]
    shared = [text for text in (place_of, clip_of) if len({text(other) for other in every} - {""}) > 1]
    details = [*(getattr(budget, field) for field in telling), *(text(budget) for text in shared)]
    return ", ".join(filter(None, [budget.row, *details]))


def _against(budget: Budget, every: Sequence[Budget]) -> str:
    """Return the total of the first teacher on the same machine and threads divided by the budget's, as text."""
    place = place_of(budget)
    teacher = next((other for other in every if other.teacher and place_of(other) == place), None)
    return times(teacher.ms / budget.ms) if teacher and teacher.stages and budget.stages else DASH


def _step(budget: Budget, name: str) -> str:
    """Return a step's milliseconds and its share of the total, as text."""
    ms = next((step.ms for step in budget.stages if step.name == name), None)
    return DASH if ms is None else f"{figure(ms)} ({ms / budget.ms:.0%})"


def _peak(budget: Budget, name: str = "") -> str:
    """Return the largest resident set during a step, or during any step, in MiB as text."""
    peaks = [step.peak_memory_mb for step in budget.stages if name in ("", step.name)]
    return figure(max((peak for peak in peaks if peak is not None), default=None))


def budget_tables(budgets: Sequence[Budget]) -> tuple[Table, Table]:
    """Return the tables of milliseconds a clip and of peak memory, by step."""
    steps = [name for name in STEPS if any(step.name == name for budget in budgets for step in budget.stages)]
    names = [budget_label(budget, budgets) for budget in budgets]
    lines = [
        (
            name,
            *(_step(budget, step) for step in steps),
            figure(budget.ms) if budget.stages else DASH,
            _peak(budget),
            _against(budget, budgets),
            f"not measured: {budget.reason or 'no reason given'}" if not budget.stages else "; ".join(budget.notes),
        )
        for name, budget in zip(names, budgets, strict=True)
    ]
    memory = [(name, *(_peak(budget, step) for step in steps)) for name, budget in zip(names, budgets, strict=True)]
    columns = ("Row", *(f"{step.capitalize()}, ms" for step in steps), "Total, ms", "Peak, MB", "Against teacher")
    return (
        Table((*columns, "Notes"), tuple(lines), words=("Notes",)),
        Table(("Row", *map(str.capitalize, steps)), tuple(memory), "Peak memory by step, MB", folded=True),
    )


def sustained_table(rows: Sequence[Row]) -> Table:
    """Return the table of speed and energy without a pause."""
    sustained = [(label(row, rows, timed=True), row.sustained) for row in rows if row.sustained]
    lines = []
    for name, run in sustained:
        speeds = run.frames_per_second
        ends = (speeds[0], min(speeds), speeds[-1]) if speeds else (None,) * 3
        joules = figure(run.joules_per_frame)
        lines.append((name, figure(run.seconds), *map(figure, ends), percent(run.drop), joules, run.energy))
    columns = (
        "Row",
        "Seconds",
        "First, frames/s",
        "Slowest, frames/s",
        "Last, frames/s",
        "Lost",
        "J a frame",
        "Energy",
    )
    return Table(columns, tuple(lines), words=("Energy",))


def _operations(profile: Profile, title: str) -> Table:
    total = sum(operation.ms for operation in profile.operations) + profile.others_ms
    lines = [
        (operation.name, operation.kind, figure(operation.ms), percent(operation.share))
        for operation in profile.operations
    ]
    lines += [("all others", DASH, figure(profile.others_ms), percent(profile.others_ms / total if total else None))]
    title = f"{title}: {profile.profiler}, {counted(profile.runs, 'run')}"
    return Table(("Operation", "Kind", "ms a run", "Share"), tuple(lines), title, words=("Kind",), folded=True)


def profile_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Return the tables of the slowest operations, one for each profiled row."""
    return tuple(
        _operations(row.profile, label(row, rows, timed=True)) for row in rows if row.profile and row.profile.operations
    )


def not_profiled(rows: Sequence[Row]) -> dict[str, str]:
    """Return the reasons for missing profiles, by the labels of the rows that share each reason."""
    profiles = [(row.profile, label(row, rows, timed=True)) for row in rows if row.profile]
    missing = [(profile.reason or "no reason given", name) for profile, name in profiles if not profile.operations]
    by_reason = groupby(sorted(missing), key=lambda entry: entry[0])
    return {"; ".join(name for _, name in entries): reason for reason, entries in by_reason}


def worst_layers(diagnosis: Diagnosis) -> Table:
    """Return the table of the layers in int8 that add most noise to a run's logits."""
    lines = [
        (noise.layer, fixed(noise.logit_noise, ".3%"), figure(noise.snr_db))
        for noise in [noise for noise in diagnosis.worst() if noise.layer not in diagnosis.float_layers][:WORST_LAYERS]
    ]
    columns = ("Layer", "Share of the logit's variance", "SNR of its output, dB")
    return Table(columns, tuple(lines), "The layers that hurt most")


def robustness_tables(report: Report) -> tuple[Table, ...]:
    """Return the tables of accuracy on crops cut in other ways than the manifest's, one for each artifact."""
    columns = ("Crop", "Clips", "AUC", "Delta AUC", "Verdict flips", "Flips at EER")
    tables = []
    for row in report.rows:
        lines = [
            (
                entry.perturbation,
                str(entry.clips),
                fixed(entry.auc),
                difference(entry.delta_auc),
                percent(entry.verdict_flips),
                percent(entry.equal_error_flips),
            )
            for entry in row.robustness or ()
        ]
        if lines:
            tables.append(Table(columns, tuple(lines), label(row, report.rows), folded=True))
    return tuple(tables)
