"""Bars and lines: what they say in words, and how long they are."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.figures import Sustained
from benchmarks.pages.charts import HATCHES, STAGES, budget_chart, noise_chart, speed_chart
from benchmarks.pages.svg import COLOURS
from tests.benchmarks.reports import DIAGNOSIS, full_report

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
    assert len(set(HATCHES)) == len(STAGES) == len(set(HATCHES[: len(STAGES)]))
    assert len(set(COLOURS)) >= len(STAGES)


def test_bars_of_budgets_are_divided_as_their_totals_are() -> None:
    budget = full_report().budgets[1]  # 100, 300, 20 and 80 of 500 ms
    svg = budget_chart([(budget.row, budget)])
    assert {"500 ms", "student-int8.pte", "decode", "faces", "crop", "score"} <= set(texts_of(svg))
    assert "depth" not in texts_of(svg)
    bars = {name: max(widths_of(svg, COLOURS[STAGES.index(name)])) for name in ("faces", "decode", "score")}
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
