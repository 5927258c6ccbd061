"""The report's pages: they show every row and reason, invent no figure, and believe no name."""

import itertools
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.render import html, markdown, table_text, write_report
from benchmarks.report import Latency, Peak, ReferenceSummary, Report, Row, Session, read_report
from compress.fidelity import Diagnosis, LayerNoise
from stage import StageError

HOSTILE = "<img src=x onerror=alert(1)>.mp4"
NO_ACCURACY = "the split has no real clips"
SVG = "{http://www.w3.org/2000/svg}"

DIAGNOSIS = Diagnosis(
    samples=64,
    per="frame",
    logit_snr_db=24.25,
    observers={"minmax": 14.0, "histogram": 23.5},
    float_layers=["stem"],
    islands={"gelu": 27, "sigmoid": 10},
    layers=[
        LayerNoise(layer="stem", snr_db=35.5, logit_noise=0.0035),
        LayerNoise(layer="<b>odd</b>", snr_db=21.0, logit_noise=0.00025),
        LayerNoise(layer="head", snr_db=18.0, logit_noise=0.0),
    ],
)


def measured(name: str, p50: float, size: int, **changes: Any) -> Row:
    figures: dict[str, Any] = {
        "kind": "artifact",
        "model": "repvit_m0_9",
        "runtime": "executorch",
        "scheme": "fp32",
        "machine": "a processor, 2 cores",
        "device": "cpu",
        "threads": 1,
        "input_size": 224,
        "status": "measured",
        "load_ms": 31.25,
        "latency_ms": Latency(p50=p50, p90=1.1 * p50, p99=1.4 * p50),
        "repeats": 200,
        "throughput": 1000 / p50,
        "peak_memory_mb": 142.0,
        "auc": 0.9745,
        "control_auc": 0.51,
        "speedup_over": "runs/dino",
        "speedup": 600 / p50,
        "size_ratio": 346e6 / size,
    }
    return Row(name=name, bytes=size, **figures | changes)


def missing(name: str, **changes: Any) -> Row:
    """Return a row without any figure."""
    figures = ("load_ms", "latency_ms", "throughput", "peak_memory_mb", "auc", "control_auc", "speedup", "size_ratio")
    return measured(name, 1.0, 9_900_000, **dict.fromkeys(figures), repeats=0, **changes)


@pytest.fixture
def report() -> Report:
    int8 = {
        "scheme": "int8",
        "auc": 0.9712,
        "auc_interval": (0.9513, 0.9836),
        "delta_auc": -0.01,
        "student": "student-fp32.pte",
        "verdict_flips": 0.0125,
        "equal_error_flips": 0.025,
        "earned": True,
        "earned_because": "3x as fast as fp32, AUC -0.0033",
    }
    return Report(
        sessions=[
            Session(
                machine="a processor, 2 cores",
                created="2025-11-21T23:40:00+00:00",
                command="pocketproof bench bundle --out report",
                environment={
                    "processor": "a processor",
                    "versions": {"torch": "2.14.1", "coremltools": None},
                    "devices": ["cpu"],
                },
                peaks=[Peak(threads=1, fp32_gmacs=54.25, int8_gmacs=455.0, drift=0.0125)],
            )
        ],
        fingerprint="0123abcd",
        split="test",
        clips={"real": 40, "fake": 39},
        control_clips=38,
        reference=ReferenceSummary(
            run="runs/dino",
            sha256="ab" * 32,
            backbone="vit_base_patch14_dinov2",
            device="cuda:0",
            precision="fp32",
            clips=79,
            auc=0.9812,
            latency_ms=Latency(p50=6.5, p90=7.5, p99=8.5),
            throughput=820.0,
            best_batch=32,
            tf32=False,
            peak_memory_mb=1512.0,
            device_memory_mb=640.0,
            notes=["measured elsewhere"],
        ),
        diagnoses={"student-int8": DIAGNOSIS},
        notes=["Random weights | <b>no pretraining</b>."],
        rows=[
            measured("runs/dino", 600.0, 346_000_000, kind="run", runtime="torch"),
            measured("student-fp32.pte", 12.0, 19_300_000),
            measured("student-int8.pte", 4.0, 5_300_000, **int8),
            measured("student-int8.pte", 2.5, 5_300_000, threads=2, **int8),
            measured("student-int8.onnx", 6.0, 5_600_000, runtime="onnxruntime", **int8),
            measured("fast|but_.onnx", 3.0, 5_500_000, scheme="int8", auc=None, reason=NO_ACCURACY),
            missing("student.mlpackage", runtime="coreml", status="not measured", reason="needs macOS"),
            missing("broken.pte", status="failed", reason="killed by signal 9"),
            measured(HOSTILE, 21.5, 5_600_000, runtime="onnxruntime"),
        ],
    )


class Page(HTMLParser):
    """The table's cells as a browser reads them, and every tag of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data


def cells_of_markdown(page: str) -> list[list[str]]:
    """Split table lines at the pipes that are not escaped, as GitHub does."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_html_table_has_every_row_with_its_own_figures_and_dashes(report: Report) -> None:
    titles, *rows = Page(html(report)).rows[: len(report.rows) + 1]
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


def test_markdown_table_has_the_same_rows_with_pipes_and_angle_brackets_escaped(report: Report) -> None:
    page = markdown(report)
    titles, _, *rows = cells_of_markdown(page.partition("## What int8 cost")[0])
    assert len(rows) == len(report.rows)
    assert {len(row) for row in rows} == {len(titles)}
    assert rows[5][0] == r"fast\|but\_.onnx"
    assert rows[8][0] == "&lt;img src=x onerror=alert(1)&gt;.mp4"
    assert rows[6][1] == "not measured: needs macOS"
    assert r"- Random weights \| &lt;b&gt;no pretraining&lt;/b&gt;." in page
    assert "<" not in page


def test_pages_say_what_int8_cost_and_where(report: Report) -> None:
    page = Page(html(report))
    assert page.rows[-3:] == [
        ["Layer", "Share of the logit's variance", "SNR of its output, dB"],
        ["stem", "0.350%", "35.5"],
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
    bars = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", html(report), re.DOTALL)[1])
    assert {"int8", "kept in fp32", "Share of the logit's variance"} <= set(texts_of(bars))
    report.diagnoses = {}
    assert "What int8 cost student" not in Page(html(report)).text


def test_terminal_table_has_every_row_and_reason_within_150_columns(report: Report) -> None:
    text = table_text(report)
    for row in report.rows:
        assert row.name.split()[0] in text
    assert "student.mlpackage: not measured: needs macOS" in text
    assert "broken.pte: failed: killed by signal 9" in text
    assert f"fast|but_.onnx: measured: {NO_ACCURACY}" in text
    assert max(len(line) for line in text.splitlines()[1:]) <= 150


def test_no_name_becomes_a_tag_or_an_attribute(report: Report) -> None:
    report.rows[1].name = '"><script>alert(1)</script>'
    report.sessions[0].environment = {"<i>key</i>": "<u>value</u>"}
    report.sessions[0].command = "bench '<a href=x>'"
    page = Page(html(report))
    assert not {"img", "script", "b", "i", "u", "a"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    for text in (HOSTILE, '"><script>alert(1)</script>', "<i>key</i>", "<u>value</u>", "bench '<a href=x>'"):
        assert text in page.text


def test_names_cannot_steer_a_terminal_or_break_a_line(report: Report) -> None:
    report.rows[0].name = "a\x1bc\nb\u202ec"
    for page in (table_text(report), markdown(report), html(report)):
        assert "\x1b" not in page
        assert "\u202e" not in page
        assert "a\ufffdc b\ufffdc" in page


def test_html_loads_nothing_from_outside(report: Report) -> None:
    page = html(report)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page).replace("http-equiv", "")
    loading = [value for _, names in Page(page).tags for name, value in names.items() if name in ("src", "href")]
    assert loading.count("data:,") == 1
    assert "@import" not in page


def test_html_has_headings_in_order_scopes_and_a_named_picture(report: Report) -> None:
    tags = Page(html(report)).tags
    assert ("html", {"lang": "en"}) in tags
    assert [tag for tag, _ in tags if re.fullmatch("h[1-6]", tag)] == ["h1", *["h2"] * 7]
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    assert [attributes["role"] for tag, attributes in tags if tag == "svg"] == ["img"] * 2


def picture_of(report: Report) -> ElementTree.Element:
    found = re.search(r"<svg.*?</svg>", html(report), re.DOTALL)
    assert found
    return ElementTree.fromstring(found[0])


def texts_of(picture: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]


def test_picture_names_every_timed_row_and_the_page_names_the_others(report: Report) -> None:
    picture = picture_of(report)
    texts = texts_of(picture)
    assert "student-int8.pte, 1 thread, 5.30 MB" in texts
    assert "student-int8.pte, 2 threads, 5.30 MB" in texts
    assert f"{HOSTILE}, 5.60 MB" in texts
    assert "fast|but_.onnx, 5.50 MB" in texts
    assert "measured" in texts, "the strip of rows without an AUC"
    assert "currentColor" in ElementTree.tostring(picture, encoding="unicode")
    assert "student.mlpackage (not measured: needs macOS); broken.pte (failed: killed by signal 9)" in html(report)


def test_labels_of_the_picture_do_not_cover_each_other(report: Report) -> None:
    report.rows = [measured(f"student-{number:02}.pte", 4 + number / 10, 5_300_000) for number in range(12)]
    texts = [text for text in picture_of(report).iter(f"{SVG}text") if (text.text or "").startswith("student")]
    boxes = []
    for text in texts:
        x, y, width = float(text.attrib["x"]), float(text.attrib["y"]), 5 * len(text.text or "")
        boxes.append((x - width if "text-anchor: end" in text.attrib["style"] else x, y, width))
    assert len(boxes) == 12
    for (x, y, width), (other_x, other_y, _) in itertools.combinations(sorted(boxes), 2):
        assert abs(y - other_y) > 11.9 or x + width < other_x


@pytest.mark.filterwarnings("error")
def test_picture_takes_names_that_its_font_or_its_formulas_do_not_know(report: Report) -> None:
    report.rows[2].name = "$x^{$ 学生.pte"
    assert "$x^{$ 学生.pte, 5.30 MB" in texts_of(picture_of(report))


def test_headline_repeats_the_row_that_is_fastest_on_the_fewest_threads(report: Report) -> None:
    headline = table_text(report).splitlines()[0]
    assert headline == (
        "student-int8.pte (ExecuTorch, int8, cpu, 1 thread) takes 4.00 ms per frame and 5.30 MB (5,300,000 bytes): "
        "150× as fast as the fp32 teacher runs/dino and 65.3× smaller. Its AUC is 0.9712; the reference's is 0.9812 "
        "and the fp32 student's 0.9745; 1.2% of its verdicts differ from the fp32 student's."
    )
    assert headline in Page(html(report)).text


def test_headline_leaves_out_what_was_not_measured(report: Report) -> None:
    report.reference.auc = None
    nothing = dict.fromkeys(("speedup_over", "speedup", "size_ratio"))
    row = measured("a.onnx", 4.0, 5_000_000, scheme="int8", **nothing)
    report.rows = [row]
    assert table_text(report).splitlines()[0] == (
        "a.onnx (ExecuTorch, int8, cpu, 1 thread) takes 4.00 ms per frame and 5.00 MB (5,000,000 bytes). "
        "Its AUC is 0.9745; the reference's is –."
    )


def test_headline_believes_no_failed_row_and_takes_the_students_auc_from_its_fp32_row(report: Report) -> None:
    report.rows[2].status = "failed"
    report.rows.insert(0, measured("student-fp32.pte", 12.0, 19_300_000, scheme="autocast", auc=0.5))
    headline = table_text(report).splitlines()[0]
    assert headline.startswith("student-int8.onnx (ONNX Runtime, int8, cpu, 1 thread) takes 6.00 ms")
    assert "and the fp32 student's 0.9745" in headline


@pytest.mark.parametrize(
    ("repeats", "told"), [((50, 50, 50), "over 50 repeats"), ((50, 10, 17), "over 10 to 50 repeats")]
)
def test_page_tells_over_how_many_repeats_percentiles_were_taken(
    report: Report, repeats: tuple[int, ...], told: str
) -> None:
    report.rows = [measured(f"{index}.pte", 4.0, 5_000_000, repeats=count) for index, count in enumerate(repeats)]
    assert told in markdown(report)
    assert told in html(report)


@pytest.mark.parametrize("kept", [[0, 1], [6, 7], [5], []])
def test_reports_without_int8_latency_accuracy_or_rows_still_render(report: Report, kept: list[int]) -> None:
    report.rows = [report.rows[index] for index in kept]
    for page in (table_text(report), markdown(report), html(report)):
        assert "No int8 artifact was measured for both latency and accuracy." in page
    report.diagnoses = {}
    assert ("<svg" in html(report)) == any(row.latency_ms for row in report.rows)


def test_write_report_writes_three_files_and_the_json_reads_back(report: Report, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    write_report(report, out)
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md"]
    assert read_report(out / "report.json") == report
    older = (out / "report.json").read_text().replace('"schema_version": 5', '"schema_version": 4')
    (out / "report.json").write_text(older)
    with pytest.raises(StageError, match=r"report.json is of schema version 4, this program reads 5"):
        read_report(out / "report.json")
    assert (out / "report.md").read_text(encoding="utf-8") == markdown(report)
    assert (out / "report.html").read_text(encoding="utf-8") == html(report)


def test_write_report_leaves_earlier_work_and_no_remains(report: Report, tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(StageError, match=r"cannot write .*report"):
        write_report(report, out)
    assert [path.name for path in tmp_path.rglob("*")] == ["report", "mine.txt"]
