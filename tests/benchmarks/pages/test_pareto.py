"""The pictures name every row that they draw, join one machine's fewest threads alone, and take any name."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.pages.render import html
from benchmarks.schema import Report
from tests.benchmarks.reports import CLOSING, HOSTILE, MACHINE, PHONE, Page, full_report, measured, plain_report

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def report() -> Report:
    return plain_report()


def pictures_of(report: Report) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", html(report), re.DOTALL)]


def texts_of(pareto_chart: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in pareto_chart.iter(f"{SVG}text")]


def test_latency_picture_names_the_rows_of_the_fewest_threads_and_the_page_names_the_others(report: Report) -> None:
    pareto_chart = pictures_of(report)[0]
    texts = texts_of(pareto_chart)
    assert "student-int8.pte, 5.30 MB" in texts
    assert not any("2 threads" in text for text in texts)
    assert f"{HOSTILE}, 5.60 MB" in texts
    assert "fast|but_.onnx, 5.50 MB" in texts
    assert "measured" in texts, "the strip of rows without an AUC"
    assert "currentColor" in ElementTree.tostring(pareto_chart, encoding="unicode")
    page = Page(html(report)).text
    assert "student.mlpackage (not measured: needs macOS); broken.pte (failed: killed by signal 9)" in page
    assert f"Rows on 1 thread of {MACHINE}; those on more threads are in the table alone." in page


def test_files_of_whole_clips_are_said_to_be_slower_than_drawn(report: Report) -> None:
    assert "Of whole clips" not in Page(html(report)).text
    report.rows.append(measured("student-whole-clip-int8.pte", 3.0, 5_300_000, scheme="int8", whole_clip=True))
    said = "Of whole clips, and where clips overlap slower than drawn: student-whole-clip-int8.pte."
    assert said in Page(html(report)).text


def test_each_machine_has_a_latency_picture_and_each_file_is_once_in_that_of_sizes() -> None:
    report = full_report()
    first, phone, size, *_ = pictures_of(report)
    assert f"{CLOSING}, 7.00 MB" not in texts_of(first)
    assert f"{CLOSING}, 7.00 MB" in texts_of(phone)
    assert f"Rows on 4 threads of {PHONE}." in Page(html(report)).text
    names = texts_of(size)
    assert names.count("student-int8.pte") == 1
    assert {"runs/dino", "student-fp32.pte", "student-int8.onnx", HOSTILE, CLOSING} <= set(names)
    assert "fast|but_.onnx" not in names, "its AUC was not measured"


def test_labels_of_the_picture_do_not_cover_each_other(report: Report) -> None:
    report.rows = [measured(f"student-{number:02}.pte", 4 + number / 10, 5_300_000) for number in range(12)]
    texts = [text for text in pictures_of(report)[0].iter(f"{SVG}text") if (text.text or "").startswith("student")]
    boxes = []
    for text in texts:
        x, y, width = float(text.attrib["x"]), float(text.attrib["y"]), 5 * len(text.text or "")
        boxes.append((x - width if "text-anchor: end" in text.attrib["style"] else x, y, width))
    assert len(boxes) == 12
    for (x, y, width), (other_x, other_y, _) in itertools.combinations(sorted(boxes), 2):
        assert abs(y - other_y) > 11.9 or x + width < other_x


def test_labels_do_not_lie_on_the_front(report: Report) -> None:
    report.rows = [
        measured(f"{name}.pte", p50, 5_300_000, auc=auc) for name, p50, auc in (("a", 4, 0.9), ("b", 40, 0.95))
    ]
    pareto_chart = pictures_of(report)[0]
    texts = {text.text: float(text.attrib["y"]) for text in pareto_chart.iter(f"{SVG}text")}
    dashed = [path for path in pareto_chart.iter(f"{SVG}path") if "stroke-dasharray" in path.attrib.get("style", "")]
    level = max(float(path.attrib["d"].split()[2]) for path in dashed)  # the other one is the legend's, above
    assert abs(texts["a.pte, 5.30 MB"] - level) > 7


@pytest.mark.filterwarnings("error")
def test_pictures_take_names_that_their_font_or_their_formulas_do_not_know() -> None:
    report, name = full_report(), "$x^{$ 学生.pte"
    report.rows[2].name = name
    report.budgets[1].row = name
    latency, _, size, budget, speed, _ = pictures_of(report)
    assert f"{name}, 5.30 MB" in texts_of(latency)
    for pareto_chart in (size, budget, speed):
        assert name in texts_of(pareto_chart)


def test_long_names_are_cut_at_their_beginning(report: Report) -> None:
    report.rows[2].name = f"{'folder/' * 20}end.pte"
    told = [text for text in texts_of(pictures_of(report)[0]) if text.endswith("end.pte, 5.30 MB")]
    assert [text[0] for text in told] == ["…"]
    assert len(told[0]) == 48 + len(", 5.30 MB")


def test_simulated_rows_alone_have_a_page_and_no_picture_of_latency(report: Report) -> None:
    simulated = {"kind": "run", "runtime": "torch", "scheme": "int8", "speedup": None, "size_ratio": None}
    report.rows = [measured("student-int8", 9.0, 5_300_000, **simulated)]
    assert "No row has a latency that counts, so there is no picture." in Page(html(report)).text
    report.rows.append(measured("student.pte", 4.0, 5_300_000, threads=2))
    assert "student.pte, 5.30 MB" in texts_of(pictures_of(report)[0])
    assert f"Rows on 2 threads of {MACHINE}." in Page(html(report)).text


def test_the_picture_of_a_phone_names_the_phone_and_not_the_machine_that_it_hangs_on(report: Report) -> None:
    report.rows = [measured("student.pte", 4.0, 5_300_000, device="A phone (chip), Android 16", auc=None)]
    assert "Rows on 1 thread of A phone (chip), Android 16." in Page(html(report)).text
    description = "Median latency and AUC, one mark per row on 1 thread of A phone (chip), Android 16"
    assert pictures_of(report)[0].attrib["aria-label"] == description
