"""The columns of the report's table: the text that each shows of a row, and the number that sorts it."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from benchmarks.schema import Row
from compress.scoring import probability
from stage import counted

DASH = "–"
RUNTIMES = {"torch": "PyTorch", "executorch": "ExecuTorch", "onnxruntime": "ONNX Runtime", "coreml": "Core ML"}


class Column(NamedTuple):
    """One column of the table of rows."""

    text: Callable[[Row], str]
    value: Callable[[Row], float | None] | None = None
    """Function from a row to the number that its text shows; None for a column of words."""


def figure(value: float | None, unit: str = "") -> str:
    """Return a value with three significant digits, all digits from 1000 on, and a unit; a dash for None."""
    if value is None:
        return DASH
    return (f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")) + unit


def fixed(value: float | None, form: str = ".4f") -> str:
    """Return a value in a format of Python's; a dash for None."""
    return DASH if value is None else format(value, form)


percent = partial(fixed, form=".1%")
difference = partial(fixed, form="+z.4f")
times = partial(figure, unit="×")


def spaced(interval: tuple[float, float] | None) -> str:
    """Return an interval of AUC as text; a dash for None."""
    return "–".join(fixed(end, ".3f") for end in interval) if interval else DASH


def status_of(row: Row) -> str:
    """Return a row's status, and its reason if there is one or ought to be."""
    reason = row.reason or ("" if row.status == "measured" else "no reason given")
    return f"{row.status}: {reason}" if reason else row.status


def unstable_of(row: Row) -> str:
    """Return a row's spread, marked as unstable where it is too large."""
    return percent(row.spread) + (", unstable" if row.unstable else "")


def _earned(row: Row) -> str:
    if row.earned is None:
        return f"{DASH} {row.earned_because}" if row.earned_because else DASH
    return f"{'yes' if row.earned else 'no'}: {row.earned_because}"


def _percentile(name: str) -> Callable[[Row], float | None]:
    return lambda row: getattr(row.latency_ms, name, None)


def _true_positives(rate: str) -> Callable[[Row], float | None]:
    return lambda row: (row.tpr_at_fpr or {}).get(rate)


def _divided(value: float | None, by: float) -> float | None:
    return None if value is None else value / by


def _number(value: Callable[[Row], float | None], form: Callable[[float | None], str] = figure) -> Column:
    return Column(lambda row: form(value(row)), value)


def _count(value: Callable[[Row], int]) -> Column:
    return Column(lambda row: str(value(row)), value)


COLUMNS: dict[str, Column] = {
    "Row": Column(lambda row: row.name),
    "Status": Column(status_of),
    "Model": Column(lambda row: row.model),
    "Runtime": Column(lambda row: RUNTIMES[row.runtime]),
    "Scheme": Column(lambda row: row.scheme),
    "Machine": Column(lambda row: row.machine),
    "Device": Column(lambda row: row.device),
    "Threads": _number(lambda row: None if row.own_threads else row.threads, partial(fixed, form=".0f")),
    "Batch": _count(lambda row: row.batch),
    "Input, px": _count(lambda row: row.input_size),
    "Size, MB": _number(lambda row: row.bytes / 1e6),
    "Load, ms": _number(lambda row: row.load_ms),
    "First run, ms": _number(lambda row: row.first_run_ms),
    "p50, ms": _number(_percentile("p50")),
    "p90, ms": _number(_percentile("p90")),
    "p99, ms": _number(_percentile("p99")),
    "Spread": Column(unstable_of, lambda row: row.spread),
    "Frames/s": _number(lambda row: row.throughput),
    "Peak, MB": _number(lambda row: row.peak_memory_mb),
    "Over idle, MB": _number(lambda row: row.peak_memory_over_idle_mb),
    "Runtime, MB": _number(lambda row: _divided(row.runtime_bytes, 1e6)),
    "MACs, G": _number(lambda row: _divided(row.macs, 1e9)),
    "Of peak": _number(lambda row: row.peak_fraction, partial(fixed, form=".0%")),
    "Delegated": _number(lambda row: row.delegated_fraction, partial(fixed, form=".0%")),
    "AUC": _number(lambda row: row.auc, fixed),
    "AUC, 95%": Column(lambda row: spaced(row.auc_interval), lambda row: row.auc_interval and row.auc_interval[0]),
    "Video AUC": _number(lambda row: row.video_auc, fixed),
    "Frame AUC": _number(lambda row: row.frame_auc, fixed),
    "EER": _number(lambda row: row.eer, percent),
    "AP": _number(lambda row: row.ap, fixed),
    "Accuracy": _number(lambda row: row.accuracy, percent),
    "TPR at 1% FPR": _number(_true_positives("0.01"), percent),
    "TPR at 5% FPR": _number(_true_positives("0.05"), percent),
    "Threshold": _number(lambda row: row.threshold, lambda p: DASH if p is None else probability(p)),
    "Delta AUC": _number(lambda row: row.delta_auc, difference),
    "Verdict flips": _number(lambda row: row.verdict_flips, percent),
    "Flips at EER": _number(lambda row: row.equal_error_flips, percent),
    "Frame flips": _number(lambda row: row.frame_verdict_flips, percent),
    "Control AUC": _number(lambda row: row.control_auc, fixed),
    "Speedup": _number(lambda row: row.speedup, times),
    "Size ratio": _number(lambda row: row.size_ratio, times),
    "Earned its slot": Column(_earned),
}
DECIDING = (
    "Row", "Status", "Runtime", "Scheme", "Threads", "Size, MB", "p50, ms", "Spread", "AUC", "Delta AUC",
    "Verdict flips", "Speedup", "Earned its slot",
)  # fmt: skip
"""Columns that decide which artifact ships."""
ACCURACY = (
    "AUC", "AUC, 95%", "Video AUC", "Frame AUC", "EER", "AP", "Accuracy", "TPR at 1% FPR", "TPR at 5% FPR",
    "Threshold", "Flips at EER", "Frame flips", "Control AUC",
)  # fmt: skip
PLACES = ("Machine", "Device")
"""Columns that say where a row was measured; in most reports all rows have the same."""
TELLING = ("Model", "Runtime", "Scheme", *PLACES)
"""Columns that, together with the threads, distinguish rows of one name."""


def words(titles: Iterable[str]) -> tuple[str, ...]:
    """Return those columns that hold words; the others hold numbers and are aligned to the right."""
    return tuple(title for title in titles if COLUMNS[title].value is None)


def differing(title: str, rows: Sequence[Row]) -> bool:
    """Return whether rows differ in a column."""
    return len({COLUMNS[title].text(row) for row in rows}) > 1


def deciding(rows: Sequence[Row]) -> list[str]:
    """Return the columns that decide, and those of PLACES in which rows differ."""
    return [title for title in COLUMNS if title in DECIDING or (title in PLACES and differing(title, rows))]


def label(row: Row, rows: Sequence[Row], timed: bool = False) -> str:
    """Return a row's name, with the columns that distinguish it from other rows of that name.

    ``timed``: beside time or memory, which is told with its place where rows are of several.
    """
    namesakes = [other for other in rows if other.name == row.name]
    details = [COLUMNS[title].text(row) for title in TELLING if differing(title, namesakes)]
    if timed and row.place not in details and len({other.place for other in rows}) > 1:
        details.append(row.place)
    if differing("Threads", namesakes):
        details.append(counted(row.threads, "thread"))
    return ", ".join([row.name, *details])
