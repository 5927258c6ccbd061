"""A report as GitHub-flavoured Markdown, for a pull request: all of the HTML page but its charts."""

import re
from collections.abc import Iterator, Sequence

from benchmarks.pages.columns import COLUMNS, DASH, deciding, words
from benchmarks.pages.headline import headline
from benchmarks.pages.sections import Section, sections
from benchmarks.pages.tables import Table
from benchmarks.schema import Report

ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {sign: f"\\{sign}" for sign in "\\`*[]|~#$"})

CHARTS = "The charts are in report.html."


def _escaped(text: str) -> str:
    """Return the text escaped so that Markdown shows it as it is, in a table too."""
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text.translate(ESCAPES))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield from ("", f"**{_escaped(table.title)}**")
    left_aligned = (table.columns[0], *table.words)
    alignment = " | ".join("---" if column in left_aligned else "--:" for column in table.columns)
    yield from ("", _line(table.columns), f"| {alignment} |")
    yield from map(_line, table.rows)


def _section(section: Section) -> Iterator[str]:
    yield from ("", f"## {_escaped(': '.join(filter(None, (section.title, section.about))))}")
    if section.sentences:
        yield from ("", _escaped(" ".join(section.sentences)))
    if section.facts:
        yield ""
        yield from (f"- **{_escaped(term)}**: {_escaped(text)}" for term, text in section.facts.items())
    for table in section.tables:
        yield from _table(table)


def _rows(report: Report) -> Table:
    titles = deciding(report.rows)
    lines = tuple(tuple(COLUMNS[title].text(row) for title in titles) for row in report.rows)
    return Table(tuple(titles), lines, words=words(titles))


def page(report: Report) -> str:
    """Return a report as Markdown; its texts must be cleaned, see ``render``."""
    lines = ["# Pocketproof report", "", _escaped(headline(report)), "", "## Notes", ""]
    lines += [f"- {_escaped(note)}" for note in report.notes] or ["None."]
    lines += ["", "## Rows", "", f"{DASH} was not measured; the status says why. {CHARTS}", *_table(_rows(report))]
    for section in sections(report):
        if section.sentences or section.tables or section.facts:
            lines += _section(section)
    return "\n".join(lines) + "\n"
