"""The report's pictures, as SVG in the page's text colour: latency against AUC, and the noise of int8 by layer."""

import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from compress.fidelity import Diagnosis

LEAST_SHARE = 1e-8
"""A layer that adds nothing still has a bar on a logarithmic axis."""
INK = "#010203"
"""Drawn in this colour, a line or letter of the picture takes the colour of the page's text."""
RUNTIMES = {
    "torch": ("PyTorch", "o", "#0072b2"),
    "executorch": ("ExecuTorch", "s", "#d55e00"),
    "onnxruntime": ("ONNX Runtime", "^", "#009e73"),
    "coreml": ("Core ML", "D", "#cc79a7"),
}
"""Name, mark and colour; the colours can be told apart with any colour vision and on light and dark."""
PICTURE_STYLE: dict[Any, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **{"axes.grid": True, "grid.alpha": 0.15, "svg.fonttype": "none", "svg.hashsalt": "report"},
}


class Mark(NamedTuple):
    """One row of the picture."""

    p50: float
    auc: float | None
    runtime: str
    label: str


def _write_labels(axes: Axes, marks: list[Mark]) -> None:
    """Write each mark's label beside it, at the nearest height where it covers no mark and no other label."""
    axes.autoscale_view()
    places = [axes.transData.transform((mark.p50, mark.auc or 0)) for mark in marks]
    taken = [(x - 6, x + 6, y) for x, y in places]
    for mark, (x, y) in zip(marks, places, strict=True):
        side = 1 if x < axes.bbox.x0 + 0.6 * axes.bbox.width else -1
        left, right = sorted((x + 9 * side, x + (9 + 5.2 * len(mark.label)) * side))
        free = [
            rise
            for rise in range(-12 * len(marks), 12 * len(marks) + 1, 3)
            if axes.bbox.y0 + 6 < y + rise < axes.bbox.y1 - 6
            and all(abs(y + rise - other) >= 12 or right < start or left > end for start, end, other in taken)
        ]
        rise = min(free, key=abs, default=0)
        taken.append((left, right, y + rise))
        line = {"arrowstyle": "-", "color": INK, "alpha": 0.5, "linewidth": 0.6, "relpos": (side < 0, 0.5)}
        arrow = line if rise else None
        text = axes.annotate(
            mark.label, (mark.p50, mark.auc or 0), (9 * side, rise), textcoords="offset points", arrowprops=arrow
        )
        text.set(ha="left" if side > 0 else "right", va="center_baseline", fontsize=9, parse_math=False)


def _draw_front(axes: Axes, marks: list[Mark]) -> None:
    """Join the marks than which no other is both as fast and as accurate."""
    front: list[tuple[float, float]] = []
    for p50, minus_auc in sorted((mark.p50, -(mark.auc or 0)) for mark in marks):
        if not front or -minus_auc > front[-1][1]:
            front.append((p50, -minus_auc))
    axes.step(*zip(*front, strict=True), where="post", color=INK, linewidth=1, linestyle="--", label="Pareto front")


def _draw(axes: Axes, marks: list[Mark]) -> None:
    """Draw marks that all have an AUC, or all have none."""
    for mark in marks:
        name, shape, colour = RUNTIMES[mark.runtime]
        axes.plot(mark.p50, mark.auc or 0, shape, color=colour, markersize=8, label=name, zorder=3)
    if marks[0].auc is None:
        axes.set_yticks([])
        axes.set_ylabel("AUC not\nmeasured", rotation=0, ha="right", va="center")
    else:
        axes.set_ylabel("AUC")
        axes.margins(y=0.2)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.01), min(high, 1.01))
        _draw_front(axes, marks)
    _write_labels(axes, marks)


def _draw_bands(bands: list[list[Mark]]) -> Figure:
    """Draw one band above the other over one axis of latency."""
    heights = [1 + 0.25 * len(band) + 2.5 * (band[0].auc is not None) for band in bands]
    height = sum(heights) + 1
    figure = Figure((11, height), dpi=72)
    figure.subplots_adjust(left=0.08, right=0.99, bottom=0.6 / height, top=1 - 0.4 / height, hspace=0.06)
    panels = figure.subplots(len(bands), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    latencies = [mark.p50 for band in bands for mark in band]
    panels[-1].set(xscale="log", xlim=(min(latencies) / 1.5, max(latencies) * 1.5))
    panels[-1].set_xlabel("Median latency per frame, ms (logarithmic)")
    panels[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[-1].xaxis.set_minor_locator(NullLocator())
    for axes, band in zip(panels, bands, strict=True):
        _draw(axes, band)
    legends = [axes.get_legend_handles_labels() for axes in panels]
    entries = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="upper right", ncols=6, frameon=False)
    return figure


def _as_svg(draw: Callable[[], Figure], described: str) -> str:
    """Return what ``draw`` draws as SVG in the page's text colour."""
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context(PICTURE_STYLE), warnings.catch_warnings():
        # The browser brings the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        draw().savefig(file, format="svg", metadata=no_metadata)
    svg = file.getvalue().partition("<svg")[2].replace(f": {INK}", ": currentColor")
    return f'<svg role="img" aria-label="{described}"{svg}'


def picture(marks: list[Mark]) -> str:
    """Draw median latency against AUC as SVG in the page's text colour; marks without an AUC in a strip below."""
    bands = [[mark for mark in marks if mark.auc is not None], [mark for mark in marks if mark.auc is None]]
    described = "Median latency and AUC, one mark per row of the table"
    return _as_svg(lambda: _draw_bands([band for band in bands if band]), described)


def _draw_noise(diagnosis: Diagnosis) -> Figure:
    figure = Figure((11, 3.2), dpi=72)
    figure.subplots_adjust(left=0.08, right=0.99, bottom=0.18, top=0.95)
    axes = figure.subplots()
    shares = [max(noise.logit_noise, LEAST_SHARE) for noise in diagnosis.layers]
    kept = [noise.layer in diagnosis.float_layers for noise in diagnosis.layers]
    for wanted, colour, label in ((False, "#d55e00", "int8"), (True, "#0072b2", "kept in fp32")):
        places = [place for place, own in enumerate(kept) if own == wanted]
        if places:
            axes.bar(places, [shares[place] for place in places], color=colour, label=label)
    axes.set(yscale="log", xlabel="Layer, from the picture to the logits", ylabel="Share of the logit's variance")
    axes.legend(frameon=False, ncols=2)
    return figure


def noise_picture(diagnosis: Diagnosis) -> str:
    """Draw what each layer's rounding adds to the logits' noise as SVG in the page's text colour."""
    return _as_svg(lambda: _draw_noise(diagnosis), "Noise that each layer adds to the logits, one bar per layer")
