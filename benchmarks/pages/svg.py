"""Charts of a page: matplotlib's figures as SVG in the page's text colour, and labels that do not overlap."""

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#010203"
"""Placeholder: what is drawn in this colour gets the colour of the page's text."""
WIDTH = 11
"""Width of a chart, in inches of 72 pixels."""
LETTER = 5.2
"""Mean width of a label's letter, in pixels."""
LABELS_END = 48
"""Longest label, in letters. A longer one, mostly a path, keeps its end, which says most."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a0d3", "#808080")
"""Colours that differ for any colour vision, and from a light and a dark page."""
STYLE: dict[Any, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **{"axes.grid": True, "axes.axisbelow": True, "axes.linewidth": 0.6, "grid.alpha": 0.12, "grid.linewidth": 0.6},
    **{"svg.fonttype": "none", "font.size": 10, "hatch.linewidth": 0.6},
}


class Place(NamedTuple):
    """A point of a chart, in the units of its axes, and its label."""

    x: float
    y: float
    label: str


def as_svg(draw: Callable[[], Figure], description: str) -> str:
    """Return the figure of ``draw`` as SVG in the page's text colour; ``description``: its text for screen readers."""
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # The salt makes the names of clip paths and hatches differ from those of the page's other charts.
    with mpl.rc_context(STYLE | {"svg.hashsalt": description}), warnings.catch_warnings():
        # The browser has the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        draw().savefig(file, format="svg", metadata=no_metadata)
    svg = file.getvalue().partition("<svg")[2].replace(f": {INK}", ": currentColor")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every picture, and never referred to
    return f'<svg role="img" aria-label="{html.escape(description)}"{svg}'


def shortened(label: str) -> str:
    """Return a label, or its last letters after an ellipsis if it is too long."""
    return label if len(label) <= LABELS_END else f"…{label[1 - LABELS_END :]}"


def write_labels(
    axes: Axes, places: Sequence[Place], lines: Sequence[tuple[float, float, float]] = (), right_only: bool = False
) -> None:
    """Write each place's label beside it, at the nearest height where it covers no mark, line or other label.

    ``lines``: start, end and height of level lines, in the units of the axes.
    """
    axes.autoscale_view()
    points = [axes.transData.transform((place.x, place.y)) for place in places]
    taken = [(x - 6, x + 6, y) for x, y in points]
    for start, end, height in lines:
        (left, y), (right, _) = axes.transData.transform([(start, height), (end, height)])
        taken.append((left, right, y))
    for place, (x, y) in zip(places, points, strict=True):
        side = 1 if right_only or x < axes.bbox.x0 + 0.6 * axes.bbox.width else -1
        left, right = sorted((x + 9 * side, x + (9 + LETTER * len(place.label)) * side))
        free_rises = [
            rise
            for rise in range(-12 * len(places), 12 * len(places) + 1, 3)
            if axes.bbox.y0 + 6 < y + rise < axes.bbox.y1 - 6
            and all(abs(y + rise - height) >= 12 or right < start or left > end for start, end, height in taken)
        ]
        rise = min(free_rises, key=abs, default=0)
        taken.append((left, right, y + rise))
        line = {"arrowstyle": "-", "color": INK, "alpha": 0.5, "linewidth": 0.6, "relpos": (side < 0, 0.5)}
        text = axes.annotate(
            place.label,
            (place.x, place.y),
            (9 * side, rise),
            textcoords="offset points",
            arrowprops=line if rise else None,
            annotation_clip=False,
        )
        text.set(ha="left" if side > 0 else "right", va="center_baseline", fontsize=9, parse_math=False)
