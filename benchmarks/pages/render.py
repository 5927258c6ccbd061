"""A report as pages to read: Markdown, one HTML file that loads nothing from outside, a table for the terminal.

A figure that was not measured is a dash, and the row's reason stands beside its status.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.pages import markdown as markdown_page
from benchmarks.pages import terminal
from benchmarks.pages.columns import COLUMNS, deciding, differing, words
from benchmarks.pages.headline import headline
from benchmarks.pages.sections import sections
from benchmarks.schema import Report, Row
from files import written_whole

HERE = Path(__file__).parent
FILTERS = ("Runtime", "Scheme", "Machine", "Device", "Threads")
"""Columns by which the page's rows can be filtered, where rows differ in them."""


def _clean(value: Any) -> Any:
    """Return nested lists and dicts with each text on one line, its unprintable signs (cursor, direction) replaced."""
    if isinstance(value, dict):
        return {_clean(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, str):
        return "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(value.split()))
    return value


def _cleaned(report: Report) -> Report:
    """Return a copy of a report whose texts are safe to show."""
    return Report.model_validate(_clean(report.model_dump()))


def markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    return markdown_page.page(_cleaned(report))


def table_text(report: Report) -> str:
    """Return the headline, the main columns and each row's reason as plain text; the table is 150 signs wide."""
    return terminal.text(_cleaned(report))


def _choices(rows: list[Row]) -> dict[str, list[str]]:
    """Return the choices of each filter, in the order of the rows."""
    texts_of = {title: [COLUMNS[title].text(row) for row in rows] for title in FILTERS if differing(title, rows)}
    return {title: list(dict.fromkeys(texts)) for title, texts in texts_of.items()}


def html(report: Report) -> str:
    """Return the report as one HTML file that loads nothing from outside and lets only its own script run."""
    report = _cleaned(report)
    page = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (HERE / "report.js").read_text(encoding="utf-8")
    return page.get_template("report.html.j2").render(
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        headline=headline(report),
        notes=report.notes,
        columns=COLUMNS,
        words=words(COLUMNS),
        deciding=deciding(report.rows),
        choices=_choices(report.rows),
        rows=report.rows,
        sections=sections(report),
    )


def write_report(report: Report, out: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``report.html`` into the new folder ``out``, all or none."""
    pages = {"json": report.model_dump_json(indent=2) + "\n", "md": markdown(report), "html": html(report)}
    with written_whole(out) as folder:
        folder.mkdir()
        for ending, text in pages.items():
            (folder / f"report.{ending}").write_text(text, encoding="utf-8")
