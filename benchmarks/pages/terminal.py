"""A report as plain text for the terminal: the headline, a table 150 signs wide, and the reasons of rows."""

import io
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.pages.columns import COLUMNS, DASH, label, percent, status_of, words
from benchmarks.pages.headline import headline
from benchmarks.schema import Report

WIDTH = 150
"""Width of the table, in signs."""
SHOWN = (
    "Row", "Runtime", "Scheme", "Threads", "Size, MB", "p50, ms", "Spread", "Over idle, MB", "AUC", "Delta AUC",
    "Verdict flips", "Control AUC", "Speedup", "Size ratio",
)  # fmt: skip
MOST = 12
"""Largest width of a column, in signs; the names of rows get the rest of the table."""


def _reasons(report: Report) -> Iterator[str]:
    """Yield the status of each row that was not simply measured, and a warning for each unstable latency."""
    for row in report.rows:
        name = label(row, report.rows)
        if status_of(row) != "measured":
            yield f"{name}: {status_of(row)}"
        if row.unstable:
            yield f"{name}: unstable, medians at different times lie {percent(row.spread)} apart"


def _width(title: str, texts: list[str]) -> int | None:
    """Return the width at which no word is broken, and no text of a column of words; None for the names of rows."""
    unbroken = title in words([title])
    longest = max(len(word) for cell in (title, *texts) for word in ([cell] if unbroken else cell.split()))
    return None if title == "Row" else min(longest, MOST)


def text(report: Report) -> str:
    """Return a report's headline, main columns and reasons; its texts must be cleaned, see ``render``."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    # Core ML has a row for each choice of its units, which nothing else tells apart.
    of_units = len({row.device for row in report.rows if row.runtime == "coreml"}) > 1
    titles = [*SHOWN[:3], *(["Device"] if of_units else []), *SHOWN[3:]]
    cells = {title: [COLUMNS[title].text(row) for row in report.rows] for title in titles}
    shown = {title: texts for title, texts in cells.items() if set(texts) != {DASH}}
    left_aligned = words(titles)
    for title, texts in shown.items():
        table.add_column(
            title,
            justify="left" if title in left_aligned else "right",
            width=_width(title, texts),
            overflow="fold",
        )
    for row_cells in zip(*shown.values(), strict=True):
        table.add_row(*map(Text, row_cells))
    file = io.StringIO()
    Console(file=file, width=WIDTH, color_system=None).print(table)
    return "\n".join([headline(report), file.getvalue(), *_reasons(report)])
