"""A report as plain text for the terminal: the headline, a table of 150 columns, and what rows must say besides."""

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
SHOWN = (
    "Row", "Runtime", "Scheme", "Threads", "Size, MB", "p50, ms", "Spread", "Over idle, MB", "AUC", "Delta AUC",
    "Verdict flips", "Control AUC", "Speedup", "Size ratio",
)  # fmt: skip
MOST = 12
"""Of a column's width; the names of rows take what is left."""


def _reasons(report: Report) -> Iterator[str]:
    """Say what each row's figures lack, and which latencies mean little."""
    for row in report.rows:
        name = label(row, report.rows)
        if status_of(row) != "measured":
            yield f"{name}: {status_of(row)}"
        if row.unstable:
            yield f"{name}: unstable, medians at different times lie {percent(row.spread)} apart"


def _width(title: str, texts: list[str]) -> int | None:
    """Return how wide a column is in which each word, and the text of columns of words, is on one line."""
    whole = title in words(SHOWN)
    longest = max(len(word) for told in (title, *texts) for word in ([told] if whole else told.split()))
    return None if title == "Row" else min(longest, MOST)


def text(report: Report) -> str:
    """Return a cleaned report's headline, main columns and reasons."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    cells = {title: [COLUMNS[title].text(row) for row in report.rows] for title in SHOWN}
    shown = {title: texts for title, texts in cells.items() if set(texts) != {DASH}}
    left = words(SHOWN)
    for title, texts in shown.items():
        table.add_column(
            title,
            justify="left" if title in left else "right",
            width=_width(title, texts),
            overflow="fold",
        )
    for line in zip(*shown.values(), strict=True):
        table.add_row(*map(Text, line))
    file = io.StringIO()
    Console(file=file, width=WIDTH, color_system=None).print(table)
    return "\n".join([headline(report), file.getvalue(), *_reasons(report)])
