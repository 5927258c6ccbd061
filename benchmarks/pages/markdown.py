"""A report as GitHub-flavoured Markdown, for a pull request: all of the HTML page but its charts."""

from collections.abc import Iterator, Sequence

from benchmarks.pages.columns import COLUMNS, DASH, deciding, words
from benchmarks.pages.headline import headline
from benchmarks.pages.sections import Section, sections
from benchmarks.pages.tables import Table
from benchmarks.schema import Report
from stage import in_markdown

CHARTS = "The charts are in report.html."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(in_markdown, cells))} |"


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield from ("", f"**{in_markdown(table.title)}**")
    left_aligned = (table.columns[0], *table.words)
    alignment = " | ".join("---" if column in left_aligned else "--:" for column in table.columns)
    yield from ("", _line(table.columns), f"| {alignment} |")
    yield from map(_line, table.rows)


def _section(section: Section) -> Iterator[str]:
    yield from ("", f"## {in_markdown(': '.join(filter(None, (section.title, section.about))))}")
    if section.sentences:
        yield from ("", in_markdown(" ".join(section.sentences)))
    if section.facts:
        yield ""
        yield from (f"- **{in_markdown(term)}**: {in_markdown(text)}" for term, text in section.facts.items())
    for table in section.tables:
        yield from _table(table)


def _rows(report: Report) -> Table:
    titles = deciding(report.rows)
    lines = tuple(tuple(COLUMNS[title].text(row) for title in titles) for row in report.rows)
    return Table(tuple(titles), lines, words=words(titles))


def page(report: Report) -> str:
    """Return a report as Markdown; its texts must be cleaned, see ``render``."""
    lines = ["# Pocketproof report", "", in_markdown(headline(report)), "", "## Notes", ""]
    lines += [f"- {in_markdown(note)}" for note in report.notes] or ["None."]
    lines += ["", "## Rows", "", f"{DASH} was not measured; the status says why. {CHARTS}", *_table(_rows(report))]
    for section in sections(report):
        if section.sentences or section.tables or section.facts:
            lines += _section(section)
    return "\n".join(lines) + "\n"
