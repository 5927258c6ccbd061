"""The report's pages: they show every row and reason, invent no figure, and believe no name."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from benchmarks.pages.columns import ACCURACY, COLUMNS, DECIDING
from benchmarks.pages.headline import headline
from benchmarks.pages.render import html, markdown, table_text, write_report
from benchmarks.schema import Report, read_report, report_schema
from stage import StageError
from tests.benchmarks.reports import (
    BREAKOUT,
    CLOSING,
    HOSTILE,
    MACHINE,
    NO_ACCURACY,
    PHONE,
    Page,
    cells_of_markdown,
    full_report,
    measured,
    plain_report,
)


@pytest.fixture
def report() -> Report:
    return plain_report()


@pytest.fixture(scope="module")
def full() -> Report:
    return full_report()


@pytest.fixture(scope="module")
def full_page(full: Report) -> str:
    return html(full)


@pytest.fixture(scope="module")
def full_text(full: Report) -> str:
    return markdown(full)


def test_html_table_has_every_row_with_its_own_figures_and_dashes(report: Report) -> None:
    titles, *rows = Page(html(report)).rows[: len(report.rows) + 1]
    assert titles == list(COLUMNS)
    assert [row[0] for row in rows] == [row.name for row in report.rows]
    cells = [dict(zip(titles, row, strict=True)) for row in rows]
    assert cells[3]["p50, ms"] == "2.50"
    assert cells[3]["Size, MB"] == "5.30"
    assert cells[3]["Threads"] == "2"
    assert cells[3]["Verdict flips"] == "1.2%"
    assert cells[3]["Flips at EER"] == "2.5%"
    assert cells[3]["Earned its slot"] == "yes: 3x as fast as fp32, AUC -0.0033"
    assert cells[3]["AUC, 95%"] == "0.951–0.984"
    assert cells[3]["Delta AUC"] == "-0.0100"
    assert cells[5]["Status"] == f"measured: {NO_ACCURACY}"
    assert cells[5]["AUC"] == cells[5]["AUC, 95%"] == "–"
    assert cells[6]["Status"] == "not measured: needs macOS"
    assert cells[7]["Status"] == "failed: killed by signal 9"
    figures = titles[titles.index("Load, ms") :]
    assert {cells[6][title] for title in figures} == {"–"}


def test_cells_of_numbers_carry_the_number_that_they_are_sorted_by(full: Report, full_page: str) -> None:
    values = [names.get("data-value") for tag, names in Page(full_page).tags if tag == "td"]
    numbers = [title for title in COLUMNS if COLUMNS[title].value]
    of_row = len(COLUMNS) - 1
    third = dict(zip(list(COLUMNS)[1:], values[2 * of_row : 3 * of_row], strict=True))
    assert third["p50, ms"] == "4.0"
    assert third["Size, MB"] == "5.3"
    assert third["TPR at 5% FPR"] == "0.875"
    assert third["TPR at 1% FPR"] is None
    assert third["Scheme"] is None
    failed = dict(zip(list(COLUMNS)[1:], values[7 * of_row : 8 * of_row], strict=True))
    assert {title for title in numbers if failed[title]} == {"Threads", "Batch", "Input, px", "Size, MB"}


def test_first_sight_shows_what_decides_and_places_only_where_they_differ(report: Report, full_page: str) -> None:
    def at_once(page: str) -> list[str]:
        heads = [names for tag, names in Page(page).tags if tag == "th" and names.get("scope") == "col"]
        return [title for title, names in zip(COLUMNS, heads, strict=False) if "more" not in (names["class"] or "")]

    assert at_once(html(report)) == list(DECIDING)
    assert at_once(full_page) == [title for title in COLUMNS if title in (*DECIDING, "Machine")]


def test_filters_offer_what_differs(report: Report, full_page: str) -> None:
    def selects(page: str) -> list[str | None]:
        return [names["name"] for tag, names in Page(page).tags if tag == "select"]

    assert selects(html(report)) == ["Runtime", "Scheme", "Threads"]
    assert selects(full_page) == ["Runtime", "Scheme", "Machine", "Threads"]
    options = [names["value"] for tag, names in Page(full_page).tags if tag == "option"]
    runtimes, schemes = ["PyTorch", "ExecuTorch", "ONNX Runtime", "Core ML"], ["fp32", "int8"]
    assert options == ["", *runtimes, "", *schemes, "", MACHINE, PHONE, "", "1", "2", "–", "4"]


def test_markdown_tables_have_the_same_rows_with_pipes_and_angle_brackets_escaped(report: Report) -> None:
    page = markdown(report)
    titles, _, *rows = cells_of_markdown(page.partition("## Accuracy")[0])
    assert titles == list(DECIDING)
    assert len(rows) == len(report.rows)
    assert {len(row) for row in rows} == {len(titles)}
    assert rows[5][0] == r"fast\|but\_.onnx"
    assert rows[8][0] == "&lt;img src=x onerror=alert(1)&gt;.mp4"
    assert rows[6][1] == "not measured: needs macOS"
    assert r"- Random weights \| &lt;b&gt;no pretraining&lt;/b&gt;." in page
    assert "<" not in page


def test_markdown_loses_no_column_and_its_tables_are_whole(report: Report, full_text: str) -> None:
    page = markdown(report)
    told = {title for line in cells_of_markdown(page) for title in line}
    assert set(COLUMNS) - told == {"Machine", "Device"}
    assert f"Machine of all rows: {MACHINE}. Device of all rows: cpu." in page
    assert {"Machine", *ACCURACY} <= {title for line in cells_of_markdown(full_text) for title in line}
    for block in re.findall(r"(?:^\|.*\n)+", full_text, re.MULTILINE):
        assert len({len(line) for line in cells_of_markdown(block)}) == 1
    assert "<" not in full_text


def test_both_pages_have_the_same_sections_and_tables(full_page: str, full_text: str) -> None:
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", full_page.replace("<bdi>", "").replace("</bdi>", ""))
    only_pictures = ["Latency and accuracy", "Size and accuracy"]
    assert [own for own in headings if own not in only_pictures] == re.findall(r"^## (.*)$", full_text, re.MULTILINE)
    for title in ("Accuracy", "By method of forgery", "Stability", "Clip budget", "Sustained speed", "Reference"):
        assert title in headings
    of_html = [row for row in Page(full_page).rows if row[0] in ("Row", "Operation", "Crop", "Layer")]
    of_text = [row for row in cells_of_markdown(full_text) if row[0] in ("Row", "Operation", "Crop", "Layer")]
    assert [len(row) for row in of_html[1:]] == [len(row) for row in of_text[1:]]


def test_what_was_not_asked_for_is_named_with_its_option(report: Report, full_page: str) -> None:
    for page in (Page(html(report)).text, markdown(report)):
        for option in ("bench --video", "bench --sustain", "bench --profile", "bench --sources"):
            assert option in page
    assert "Not measured here" not in full_page


def test_pages_say_what_int8_cost_and_where(report: Report) -> None:
    page = Page(html(report))
    assert page.rows[-2:] == [
        ["Layer", "Share of the logit's variance", "SNR of its output, dB"],
        ["<b>odd</b>", "0.025%", "21.0"],
    ]
    for page_text in (page.text, markdown(report)):
        for text in (
            "24.2 dB on 64 validation frames",
            "minmax 14.0, histogram 23.5",
            "27 gelu, 10 sigmoid",
            "student-int8",
        ):
            assert text in page_text
    report.diagnoses = {}
    assert "What int8 cost: student" not in Page(html(report)).text


def test_terminal_table_has_every_row_and_reason_within_150_columns(report: Report, full: Report) -> None:
    text = table_text(report)
    for row in report.rows:
        assert row.name.split()[0] in text
    assert "student.mlpackage: not measured: needs macOS" in text
    assert "broken.pte: failed: killed by signal 9" in text
    assert f"fast|but_.onnx: measured: {NO_ACCURACY}" in text
    assert "Spread" not in text, "a column in which nothing was measured"
    whole = table_text(full)
    assert "student-int8.onnx: unstable, medians at different times lie 11.7% apart" in whole
    assert whole.partition("student-int8.onnx: ")[0].count("unstable") == 1
    for page in (text, whole):
        assert max(len(line) for line in page.splitlines()[1:]) <= 150


def test_no_name_becomes_a_tag_or_an_attribute(full: Report, full_page: str) -> None:
    full = full.model_copy(deep=True)
    full.rows[1].name = BREAKOUT
    full.sessions[0].environment = {"<i>key</i>": "<u>value</u>"}
    full.sessions[0].command = "bench '<a href=x>'"
    full.diagnoses = {CLOSING: full.diagnoses["student-int8"]}
    full.notes = [HOSTILE, CLOSING]
    for text in (full_page, html(full)):
        page = Page(text)
        assert not {"img", "b", "i", "u"} & {tag for tag, _ in page.tags}
        assert [tag for tag, _ in page.tags].count("script") == 1
        assert [tag for tag, _ in page.tags].count("style") == 1 + text.count("<defs>\n  <style")
        assert not [name for _, names in page.tags for name in names if name.startswith("on")]
        links = [names["href"] or "" for tag, names in page.tags if tag == "a"]
        assert all(re.fullmatch(r"#(rows|section-\d+)", link) for link in links)
    for text in (HOSTILE, BREAKOUT, CLOSING, "<i>key</i>", "<u>value</u>", "bench '<a href=x>'", "<u>no counters</u>"):
        assert text in page.text


def test_names_cannot_steer_a_terminal_or_break_a_line(report: Report) -> None:
    report.rows[0].name = "a\x1bc\nb\u202ec"
    for page in (table_text(report), markdown(report), html(report)):
        assert "\x1b" not in page
        assert "\u202e" not in page
        assert "a\ufffdc b\ufffdc" in page


def test_html_loads_nothing_from_outside(full_page: str) -> None:
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", full_page).replace("http-equiv", "")
    loading = [
        value or "" for _, names in Page(full_page).tags for name, value in names.items() if name in ("src", "href")
    ]
    assert [value for value in loading if not value.startswith("#")] == ["data:,"]
    assert "@import" not in full_page
    assert not re.search(r"url\((?!#)", full_page)


def test_policy_lets_only_the_page_s_own_script_run(full_page: str) -> None:
    policies = [names["content"] or "" for tag, names in Page(full_page).tags if tag == "meta" and "content" in names]
    policy = next(content for content in policies if "default-src" in content)
    script = re.findall(r"<script>(.*?)</script>", full_page, re.DOTALL)
    assert len(script) == 1
    found = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert dict(part.strip().split(" ", 1) for part in policy.split(";")) == {
        "default-src": "'none'",
        "script-src": f"'sha256-{found}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert "innerHTML" not in script[0]


def test_html_has_headings_in_order_scopes_unique_ids_and_named_pictures(full: Report, full_page: str) -> None:
    tags = Page(full_page).tags
    assert ("html", {"lang": "en"}) in tags
    headings = [tag for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert headings == ["h1", *["h2"] * (len(headings) - 1)]
    assert all("scope" in names for tag, names in tags if tag == "th")
    charts = [names for tag, names in tags if tag == "svg"]
    assert len(charts) == 2 + 1 + 1 + 1 + 1  # latency of two machines, size, budget, speed, noise
    assert all(names["role"] == "img" and names["aria-label"] for names in charts)
    assert len({names["aria-label"] for names in charts}) == len(charts)
    regions = [names["aria-label"] for tag, names in tags if names.get("role") == "region"]
    assert len(set(regions)) == len(regions)
    ids = [names["id"] for _, names in tags if "id" in names]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("kept", [[0, 1], [6, 7], [5], []])
def test_reports_without_int8_latency_accuracy_or_rows_still_render(report: Report, kept: list[int]) -> None:
    report.rows = [report.rows[index] for index in kept]
    for page in (table_text(report), markdown(report), html(report)):
        assert "No int8 artifact was measured for both latency and accuracy." in page
    report.diagnoses = {}
    assert ("<svg" in html(report)) == any(row.latency_ms for row in report.rows)


def test_rows_of_percentiles_that_were_not_measured_have_dashes(report: Report) -> None:
    latency = report.rows[2].latency_ms
    assert latency
    report.rows[2].latency_ms = latency.model_copy(update={"p90": None, "p99": None})
    assert COLUMNS["p90, ms"].text(report.rows[2]) == "–"
    assert COLUMNS["p50, ms"].text(report.rows[2]) == "4.00"


def test_write_report_writes_three_files_and_the_json_reads_back(report: Report, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    write_report(report, out)
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md"]
    assert read_report(out / "report.json") == report
    assert (out / "report.md").read_text(encoding="utf-8") == markdown(report)
    assert (out / "report.html").read_text(encoding="utf-8") == html(report)
    older = (out / "report.json").read_text().replace('"schema_version": 5', '"schema_version": 4')
    (out / "report.json").write_text(older)
    with pytest.raises(StageError, match=r"report.json is of schema version 4, this program reads 5"):
        read_report(out / "report.json")


def test_write_report_leaves_earlier_work_and_no_remains(report: Report, tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(StageError, match=r"cannot write .*report"):
        write_report(report, out)
    assert [path.name for path in tmp_path.rglob("*")] == ["report", "mine.txt"]


def test_long_names_fit_the_terminal(report: Report) -> None:
    report.rows = [measured("a-very-long-name-of-an-artifact" * 4 + ".pte", 4.0, 5_000_000, scheme="int8-dynamic")]
    assert max(len(line) for line in table_text(report).splitlines()[1:]) <= 150


ROOT = Path(__file__).parents[3]


def test_published_schema_is_the_report_s() -> None:
    assert (ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8") == report_schema()


def test_published_report_is_of_this_schema_and_quoted_as_it_is() -> None:
    published = read_report(ROOT / "docs" / "report.json")
    told = " ".join((ROOT / "README.md").read_text(encoding="utf-8").replace("> ", "").split())
    assert headline(published) in told


def test_rows_of_core_ml_s_units_are_told_apart_on_a_terminal(report: Report) -> None:
    units = ("cpu", "cpu+gpu", "all")
    report.rows = [measured("a.mlpackage", 4.0, 100, runtime="coreml", device=unit) for unit in units]
    lines = [line for line in table_text(report).splitlines() if line.split()[:1] == ["a.mlpackage"]]
    assert len(lines) == 3 and all(f" {unit} " in line for unit, line in zip(units, lines, strict=True))
