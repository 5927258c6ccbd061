"""The tables of a report that tell more of its rows than what decides; both pages show the same."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmarks.figures import Budget, MethodFigures, Profile
from benchmarks.pages.charts import STAGES
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

WORST_LAYERS = 8
"""Told by name."""


@dataclass(frozen=True)
class Table:
    """A table of texts; each line's first cell names what it tells of."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    words: tuple[str, ...] = ()
    """Columns of words beside the first; the others hold numbers and are set to the right."""
    folded: bool = False
    """Whether the page shows its title alone until it is opened."""


def _of_columns(titles: Sequence[str], rows: Sequence[Row], every: Sequence[Row]) -> Table:
    cells = (tuple(COLUMNS[title].text(row) for title in titles) for row in rows)
    lines = tuple((label(row, every), *own) for row, own in zip(rows, cells, strict=True))
    return Table(("Row", *titles), lines, words=words(titles))


def _once(rows: Sequence[Row], told: Callable[[Row], object]) -> list[Row]:
    """Leave out rows of which the same is told as of one that differs in threads alone."""
    kept: list[Row] = []
    seen: list[object] = []
    for row in rows:
        same = (row.name, *(COLUMNS[title].text(row) for title in TELLING), told(row))
        if same not in seen:
            seen.append(same)
            kept.append(row)
    return kept


def accuracy_table(rows: Sequence[Row]) -> Table:
    """Tell every figure of accuracy of the rows that have some."""
    titles = [title for title in COLUMNS if title in ACCURACY]
    scored = [row for row in rows if row.auc is not None]
    once = _once(scored, lambda row: [COLUMNS[title].text(row) for title in titles])
    return _of_columns(titles, once, once)


def cost_table(rows: Sequence[Row]) -> Table:
    """Tell every figure of time, memory and size that the table of rows leaves to its wide form."""
    titles = [title for title in COLUMNS if title not in (*ACCURACY, *DECIDING, *PLACES)]
    return _of_columns(titles, rows, rows)


def stability_table(rows: Sequence[Row]) -> Table:
    """Tell the medians of each timed row, and in a word whether they can be believed."""
    lines = [
        (
            label(row, rows),
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
    """Return the methods of forgery that rows tell apart, and their fake clips."""
    return {name: figures.fake for row in rows for name, figures in row.methods.items()}


def _method(figures: MethodFigures | None) -> str:
    if figures is None or figures.auc is None:
        return DASH
    return fixed(figures.auc) + (f" ({spaced(figures.auc_interval)})" if figures.auc_interval else "")


def methods_table(rows: Sequence[Row]) -> Table:
    """Tell the AUC of each method of forgery, one column each."""
    methods = methods_of(rows)
    told = _once([row for row in rows if row.methods], lambda row: row.methods)
    lines = [(label(row, told), *(_method(row.methods.get(name)) for name in methods)) for row in told]
    return Table(("Row", *(f"{name} ({fake} fake)" for name, fake in methods.items())), tuple(lines))


def budget_label(budget: Budget, every: Sequence[Budget]) -> str:
    """Return the budget's row, with whatever tells it from other budgets."""
    same = [other for other in every if other.row == budget.row]
    told = [own for own in ("runtime", "scheme", "machine") if len({getattr(other, own) for other in same}) > 1]
    return ", ".join([budget.row, *(getattr(budget, own) for own in told)])


def _against(budget: Budget, every: Sequence[Budget]) -> str:
    """Say how much sooner a clip is scored than by the first teacher on the same machine and threads."""
    place = (budget.machine, budget.threads)
    first = next((other for other in every if other.teacher and (other.machine, other.threads) == place), None)
    return times(first.ms / budget.ms) if first and first.stages and budget.stages else DASH


def _share(budget: Budget, name: str) -> str:
    ms = next((stage.ms for stage in budget.stages if stage.name == name), None)
    return DASH if ms is None else f"{figure(ms)} ({ms / budget.ms:.0%})"


def _peak(budget: Budget, name: str = "") -> str:
    """Return the largest resident set during a step, or during any."""
    found = [stage.peak_memory_mb for stage in budget.stages if name in ("", stage.name)]
    return figure(max((peak for peak in found if peak is not None), default=None))


def budget_tables(budgets: Sequence[Budget]) -> tuple[Table, Table]:
    """Tell milliseconds a clip by step, and the memory of each step."""
    steps = [name for name in STAGES if any(stage.name == name for own in budgets for stage in own.stages)]
    names = [budget_label(budget, budgets) for budget in budgets]
    lines = [
        (
            name,
            *(_share(budget, step) for step in steps),
            figure(budget.ms) if budget.stages else DASH,
            _peak(budget),
            _against(budget, budgets),
            f"not measured: {budget.reason or 'no reason given'}" if not budget.stages else "; ".join(budget.notes),
        )
        for name, budget in zip(names, budgets, strict=True)
    ]
    memory = [(name, *(_peak(own, step) for step in steps)) for name, own in zip(names, budgets, strict=True)]
    columns = ("Row", *(f"{step.capitalize()}, ms" for step in steps), "Total, ms", "Peak, MB", "Against teacher")
    return (
        Table((*columns, "Notes"), tuple(lines), words=("Notes",)),
        Table(("Row", *map(str.capitalize, steps)), tuple(memory), "Peak memory by step, MB", folded=True),
    )


def sustained_table(rows: Sequence[Row]) -> Table:
    """Tell what rows keep up without a pause."""
    found = [(label(row, rows), row.sustained) for row in rows if row.sustained]
    lines = []
    for name, run in found:
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
    whole = sum(operation.ms for operation in profile.operations) + profile.others_ms
    lines = [(own.name, own.kind, figure(own.ms), percent(own.share)) for own in profile.operations]
    lines += [("all others", DASH, figure(profile.others_ms), percent(profile.others_ms / whole if whole else None))]
    told = f"{title}: {profile.profiler}, {profile.runs} run{'' if profile.runs == 1 else 's'}"
    return Table(("Operation", "Kind", "ms a run", "Share"), tuple(lines), told, words=("Kind",), folded=True)


def profile_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Tell the slowest operations of each row that was profiled, one table each."""
    return tuple(_operations(row.profile, label(row, rows)) for row in rows if row.profile and row.profile.operations)


def not_profiled(rows: Sequence[Row]) -> dict[str, str]:
    """Say why rows have no profile, all that share a reason in one entry."""
    found = [(row.profile, label(row, rows)) for row in rows if row.profile]
    missing = [(own.reason or "no reason given", name) for own, name in found if not own.operations]
    by_reason = groupby(sorted(missing), key=lambda entry: entry[0])
    return {"; ".join(name for _, name in entries): reason for reason, entries in by_reason}


def worst_layers(diagnosis: Diagnosis) -> Table:
    """Tell the layers that hurt an int8 run most."""
    lines = [
        (noise.layer, fixed(noise.logit_noise, ".3%"), figure(noise.snr_db))
        for noise in diagnosis.worst()[:WORST_LAYERS]
    ]
    columns = ("Layer", "Share of the logit's variance", "SNR of its output, dB")
    return Table(columns, tuple(lines), "The layers that hurt most")


def robustness_tables(report: Report) -> tuple[Table, ...]:
    """Tell what crops cut other than the manifest says cost, one table for each artifact."""
    columns = ("Crop", "Clips", "AUC", "Delta AUC", "Verdict flips", "Flips at EER")
    tables = []
    for row in report.rows:
        lines = [
            (
                found.perturbation,
                str(found.clips),
                fixed(found.auc),
                difference(found.delta_auc),
                percent(found.verdict_flips),
                percent(found.equal_error_flips),
            )
            for found in row.robustness or ()
        ]
        if lines:
            tables.append(Table(columns, tuple(lines), label(row, report.rows), folded=True))
    return tuple(tables)
