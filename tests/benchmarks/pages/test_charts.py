"""Bars and lines: what they say in words, and how long they are."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.figures import Sustained
from benchmarks.pages.charts import HATCHES, STEPS, _draw_speeds, budget_chart, noise_chart, speed_chart
from benchmarks.pages.svg import COLOURS
from benchmarks.pages.tables import sustained_table
from tests.benchmarks.reports import DIAGNOSIS, full_report, measured

SVG = "{http://www.w3.org/2000/svg}"


def texts_of(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def widths_of(svg: str, colour: str) -> list[float]:
    """Return the widths of the rectangles of a colour, hatched or not, in pixels."""
    picture = ElementTree.fromstring(svg)
    fills = [f"fill: {colour}"]
    for pattern in picture.iter(f"{SVG}pattern"):
        if colour in ElementTree.tostring(pattern, encoding="unicode"):
            fills.append(f"fill: url(#{pattern.attrib['id']})")
    found = []
    for path in picture.iterfind(f".//{SVG}g/{SVG}path"):
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
        if path.attrib.get("style", "").startswith(tuple(fills)) and len(numbers) == 8:
            found.append(max(numbers[::2]) - min(numbers[::2]))
    return found


def test_each_step_has_a_colour_and_a_hatch_of_its_own() -> None:
    assert len(set(HATCHES)) == len(STEPS) == len(set(HATCHES[: len(STEPS)]))
    assert len(set(COLOURS)) >= len(STEPS)


def test_bars_of_budgets_are_divided_as_their_totals_are() -> None:
    budget = full_report().budgets[1]  # 100, 300, 20 and 80 of 500 ms
    svg = budget_chart([(budget.row, budget)])
    assert {"500 ms", "student-int8.pte", "decode", "faces", "crop", "score"} <= set(texts_of(svg))
    assert "depth" not in texts_of(svg)
    bars = {name: max(widths_of(svg, COLOURS[STEPS.index(name)])) for name in ("faces", "decode", "score")}
    assert bars["faces"] / bars["decode"] == pytest.approx(3, rel=0.01)
    assert bars["decode"] / bars["score"] == pytest.approx(1.25, rel=0.01)


def test_noise_has_a_bar_for_each_layer_and_says_which_are_in_fp32() -> None:
    svg = noise_chart(DIAGNOSIS, '"><script>')
    assert {"int8", "kept in fp32", "Share of the logit's variance"} <= set(texts_of(svg))
    assert ElementTree.fromstring(svg).attrib["aria-label"] == (
        'Noise that each layer of "><script> adds to the logits, one bar per layer'
    )


def test_speeds_of_any_length_have_a_label() -> None:
    shared = {"seconds": 1.0, "drop": 0.0, "joules_per_frame": None, "energy": "not known"}
    runs = [(f"row {count}", Sustained(frames_per_second=[9.5] * count, **shared)) for count in (1, 2, 40)]
    assert {"row 1", "row 2", "row 40"} <= set(texts_of(speed_chart(runs)))


def test_speeds_lie_where_they_were_measured_on_the_axis_of_seconds() -> None:
    """Runs of 12 s give 5 figures a minute, which must not look like those of 5 seconds."""
    shared = {"seconds": 60.0, "drop": 0.0, "joules_per_frame": None, "energy": "not known"}
    lines = []
    for count in (5, 60):
        runs = [(f"row {count}", Sustained(frames_per_second=[9.5] * count, **shared))]
        lines.append(_draw_speeds(runs).axes[0].lines[0].get_xdata())
    assert lines[0] == pytest.approx([6, 18, 30, 42, 54])
    assert lines[1] == pytest.approx([second + 0.5 for second in range(60)])


def test_one_figure_of_speed_says_nothing_of_a_loss() -> None:
    lost = []
    for speeds, drop in (([9.5], None), ([9.5, 9.5], 0.0)):
        run = Sustained(seconds=2.0, frames_per_second=speeds, drop=drop, joules_per_frame=None, energy="not known")
        lost.append(dict(zip(*_columns_of(run), strict=True))["Lost"])
    assert lost == ["–", "0.0%"]


def _columns_of(run: Sustained) -> tuple[tuple[str, ...], tuple[str, ...]]:
    table = sustained_table([measured("student.pte", 4.0, 5_300_000, sustained=run)])
    return table.columns, table.rows[0]
