"""Scatter charts of cost against accuracy: median latency, or size, against AUC, with the Pareto front."""

import itertools
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.pages.columns import RUNTIMES
from benchmarks.pages.svg import COLOURS, INK, WIDTH, Place, as_svg, write_labels

MARKS = dict(zip(RUNTIMES, zip("os^D", COLOURS, strict=False), strict=True))
"""Marker and colour of each runtime."""


class Mark(NamedTuple):
    """One row in the chart."""

    cost: float
    auc: float | None
    interval: tuple[float, float] | None
    runtime: str
    label: str


def _draw_front(axes: Axes, marks: list[Mark]) -> list[tuple[float, float, float]]:
    """Draw the Pareto front; return its level lines as start, end and height, in the units of the axes.

    On the front are the marks for which no other mark costs as little and has as high an AUC.
    """
    front: list[tuple[float, float]] = []
    for cost, minus_auc in sorted((mark.cost, -(mark.auc or 0)) for mark in marks):
        if not front or -minus_auc > front[-1][1]:
            front.append((cost, -minus_auc))
    axes.step(*zip(*front, strict=True), where="post", color=INK, linewidth=1, linestyle="--", label="Pareto front")
    return [(cost, next_cost, auc) for (cost, auc), (next_cost, _) in itertools.pairwise(front)]


def _draw_mark(axes: Axes, mark: Mark) -> None:
    shape, colour = MARKS[mark.runtime]
    if mark.auc is not None and mark.interval:
        axes.vlines(mark.cost, *mark.interval, color=colour, linewidth=1.2, alpha=0.55, zorder=2)
    axes.plot(mark.cost, mark.auc or 0, shape, color=colour, markersize=8, label=RUNTIMES[mark.runtime], zorder=3)


def _draw_band(axes: Axes, marks: list[Mark]) -> None:
    """Draw marks that all have an AUC, or all have none."""
    for mark in marks:
        _draw_mark(axes, mark)
    front: list[tuple[float, float, float]] = []
    if marks[0].auc is None:
        axes.set_yticks([])
        axes.set_ylabel("AUC not\nmeasured", rotation=0, ha="right", va="center")
    else:
        axes.set_ylabel("AUC")
        axes.margins(y=0.2)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.01), min(high, 1.01))
        front = _draw_front(axes, marks)
    write_labels(axes, [Place(mark.cost, mark.auc or 0, mark.label) for mark in marks], front)


def logarithmic(axes: Axes, costs: list[float], title: str) -> None:
    """Make the horizontal axis logarithmic, with round numbers, from below the least cost to above the largest."""
    axes.set(xscale="log", xlim=(min(costs) / 1.5, max(costs) * 1.5), xlabel=f"{title} (logarithmic)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _draw(bands: list[list[Mark]], title: str) -> Figure:
    """Draw the bands one above the other, with a common axis of cost."""
    heights = [1 + 0.25 * len(band) + 2.5 * (band[0].auc is not None) for band in bands]
    height = sum(heights) + 1
    figure = Figure((WIDTH, height), dpi=72)
    figure.subplots_adjust(left=0.08, right=0.99, bottom=0.6 / height, top=1 - 0.4 / height, hspace=0.06)
    panels = figure.subplots(len(bands), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    logarithmic(panels[-1], [mark.cost for band in bands for mark in band], title)
    for axes, band in zip(panels, bands, strict=True):
        _draw_band(axes, band)
    legends = [axes.get_legend_handles_labels() for axes in panels]
    entries = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="upper right", ncols=6, frameon=False)
    return figure


def pareto_chart(marks: list[Mark], title: str, description: str) -> str:
    """Return a chart of cost against AUC as SVG in the page's text colour; marks without an AUC are in a strip below.

    ``title``: of the cost axis; ``description``: the chart's text for screen readers.
    """
    bands = [[mark for mark in marks if mark.auc is not None], [mark for mark in marks if mark.auc is None]]
    return as_svg(lambda: _draw([band for band in bands if band], title), description)
