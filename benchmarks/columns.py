"""A row as text: what each column of the report's table says."""

from collections.abc import Callable

from benchmarks.picture import RUNTIMES
from benchmarks.report import Row

DASH = "–"


def figure(value: float | None, unit: str = "") -> str:
    """Return three significant digits, without an exponent from 1000 on."""
    if value is None:
        return DASH
    return (f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")) + unit


def fixed(value: float | None, form: str = ".4f") -> str:
    """Return a value in a form of Python's, or a dash."""
    return DASH if value is None else format(value, form)


def _auc_interval(row: Row) -> str:
    return "–".join(fixed(end, ".3f") for end in row.auc_interval) if row.auc_interval else DASH


def _milliseconds(row: Row, percentile: str) -> str:
    return DASH if row.latency_ms is None else figure(getattr(row.latency_ms, percentile))


def _spread(row: Row) -> str:
    return fixed(row.spread, ".1%") + (", unstable" if row.unstable else "")


def status_of(row: Row) -> str:
    """Return a row's status and its reason."""
    reason = row.reason or ("" if row.status == "measured" else "no reason given")
    return f"{row.status}: {reason}" if reason else row.status


def _earned(row: Row) -> str:
    verdict = {True: "yes: ", False: "no: ", None: f"{DASH} " if row.earned_because else DASH}[row.earned]
    return f"{verdict}{row.earned_because}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "Row": lambda row: row.name,
    "Status": status_of,
    "Model": lambda row: row.model,
    "Runtime": lambda row: RUNTIMES[row.runtime][0],
    "Scheme": lambda row: row.scheme,
    "Machine": lambda row: row.machine,
    "Device": lambda row: row.device,
    "Threads": lambda row: str(row.threads),
    "Batch": lambda row: str(row.batch),
    "Input, px": lambda row: str(row.input_size),
    "Size, MB": lambda row: figure(row.bytes / 1e6),
    "Load, ms": lambda row: figure(row.load_ms),
    "p50, ms": lambda row: _milliseconds(row, "p50"),
    "p90, ms": lambda row: _milliseconds(row, "p90"),
    "p99, ms": lambda row: _milliseconds(row, "p99"),
    "Spread": _spread,
    "Frames/s": lambda row: figure(row.throughput),
    "Peak, MB": lambda row: figure(row.peak_memory_mb),
    "Over idle, MB": lambda row: figure(row.peak_memory_over_idle_mb),
    "Runtime, MB": lambda row: figure(row.runtime_bytes / 1e6 if row.runtime_bytes is not None else None),
    "MACs, G": lambda row: figure(row.macs / 1e9 if row.macs else None),
    "Of peak": lambda row: fixed(row.peak_fraction, ".0%"),
    "AUC": lambda row: fixed(row.auc),
    "AUC, 95%": _auc_interval,
    "Video AUC": lambda row: fixed(row.video_auc),
    "Frame AUC": lambda row: fixed(row.frame_auc),
    "EER": lambda row: fixed(row.eer, ".1%"),
    "Delta AUC": lambda row: fixed(row.delta_auc, "+z.4f"),
    "Verdict flips": lambda row: fixed(row.verdict_flips, ".1%"),
    "Flips at EER": lambda row: fixed(row.equal_error_flips, ".1%"),
    "Control AUC": lambda row: fixed(row.control_auc),
    "Speedup": lambda row: figure(row.speedup, "×"),
    "Size ratio": lambda row: figure(row.size_ratio, "×"),
    "Earned its slot": _earned,
}
WORDS = ("Row", "Status", "Model", "Runtime", "Scheme", "Machine", "Device", "Earned its slot")
"""Columns of words; the others hold numbers and are set to the right."""
TERMINAL = ("Row", "Runtime", "Scheme", "Threads", "Size, MB", "p50, ms", "Peak, MB", "AUC", *list(COLUMNS)[-7:-1])


def threads_of(count: int) -> str:
    """Return a number of threads in words."""
    return f"{count} thread{'' if count == 1 else 's'}"


def label(row: Row, rows: list[Row]) -> str:
    """Return the row's name, with whatever tells it from other rows of that name."""
    same = [other for other in rows if other.name == row.name]
    texts = [COLUMNS[title] for title in ("Model", "Runtime", "Scheme", "Machine", "Device")]
    texts.append(lambda row: threads_of(row.threads))
    return ", ".join([row.name, *(text(row) for text in texts if len({text(other) for other in same}) > 1)])
