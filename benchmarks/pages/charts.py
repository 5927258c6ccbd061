"""The charts of a report besides the Pareto fronts: noise of int8 by layer, clip budgets by step, speed over time."""

from typing import get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from benchmarks.figures import Budget, ClipStep, Sustained
from benchmarks.pages.pareto import logarithmic
from benchmarks.pages.svg import COLOURS, INK, WIDTH, Place, as_svg, shortened, write_labels
from compress.fidelity import Diagnosis

LEAST_SHARE = 1e-8
"""Least share that is drawn, so that a layer without noise still has a bar on the logarithmic axis."""
STEPS: tuple[str, ...] = get_args(ClipStep.model_fields["name"].annotation)
HATCHES = ("", "///", "\\\\\\", "xxx", "---", "|||", "+++")
DASHES = ("-", "--", ":", "-.")
POINTS = "os^Dv"


def _draw_noise(diagnosis: Diagnosis) -> Figure:
    figure = Figure((WIDTH, 3.2), dpi=72)
    figure.subplots_adjust(left=0.08, right=0.99, bottom=0.18, top=0.95)
    axes = figure.subplots()
    shares = [max(noise.logit_noise, LEAST_SHARE) for noise in diagnosis.layers]
    in_float = [noise.layer in diagnosis.float_layers for noise in diagnosis.layers]
    for is_float, colour, hatch, label in ((False, COLOURS[1], "", "int8"), (True, COLOURS[0], "///", "kept in fp32")):
        places = [place for place, layer_is_float in enumerate(in_float, 1) if layer_is_float == is_float]
        if places:
            heights = [shares[place - 1] for place in places]
            axes.bar(places, heights, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.4, label=label)
    axes.set(yscale="log", xlabel="Layer, from the picture to the logits", ylabel="Share of the logit's variance")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, ncols=2)
    return figure


def noise_chart(diagnosis: Diagnosis, name: str) -> str:
    """Return a chart of the noise that each layer's rounding adds to the logits, as SVG in the page's text colour."""
    description = f"Noise that each layer of {name} adds to the logits, one bar per layer"
    return as_svg(lambda: _draw_noise(diagnosis), description)


def _draw_shares(axes: Axes, place: int, budget: Budget, start: float) -> None:
    """Draw a budget's bar from ``start`` to its total on a logarithmic axis, divided by the shares of its steps."""
    drawn_share = 0.0
    for step in budget.stages:
        ends = [start * (budget.ms / start) ** share for share in (drawn_share, drawn_share + step.ms / budget.ms)]
        drawn_share += step.ms / budget.ms
        number = STEPS.index(step.name)
        axes.barh(
            place,
            ends[1] - ends[0],
            left=ends[0],
            height=0.62,
            color=COLOURS[number],
            hatch=HATCHES[number],
            edgecolor=INK,
            linewidth=0.6,
            label=step.name,
        )


def _draw_budgets(budgets: list[tuple[str, Budget]]) -> Figure:
    height = 1.3 + 0.42 * len(budgets)
    figure = Figure((WIDTH, height), dpi=72)
    figure.subplots_adjust(left=0.31, right=0.99, bottom=0.55 / height, top=1 - 0.45 / height)
    axes = figure.subplots()
    totals = [budget.ms for _, budget in budgets]
    logarithmic(axes, totals, "Milliseconds a clip")
    start = min(totals) / 4
    axes.set_xlim(start, max(totals) * 2)
    for place, (_, budget) in enumerate(budgets):
        _draw_shares(axes, place, budget, start)
        axes.annotate(f"{budget.ms:,.0f} ms", (budget.ms, place), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(budgets)), [shortened(label) for label, _ in budgets], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(budgets) - 0.4, -0.6)
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(sorted(zip(labels, handles, strict=True), key=lambda entry: STEPS.index(entry[0])))
    figure.legend(entries.values(), entries.keys(), loc="upper right", ncols=len(STEPS), frameon=False)
    return figure


def budget_chart(budgets: list[tuple[str, Budget]]) -> str:
    """Return a chart of labelled budgets, one bar each divided into its steps, as SVG in the page's text colour."""
    return as_svg(lambda: _draw_budgets(budgets), "Milliseconds a clip, one bar per row, divided by steps")


def _seconds_of(run: Sustained) -> list[float]:
    """Return the middle of each figure's time, in seconds: runs of more than a second have fewer figures."""
    count = len(run.frames_per_second)
    return [(place + 0.5) * run.seconds / count for place in range(count)]


def _draw_speeds(runs: list[tuple[str, Sustained]]) -> Figure:
    figure = Figure((WIDTH, max(3.4, 1 + 0.2 * len(runs))), dpi=72)
    figure.subplots_adjust(left=0.08, right=0.68, bottom=0.16, top=0.95)
    axes = figure.subplots()
    for number, (_, run) in enumerate(runs):
        axes.plot(
            _seconds_of(run),
            run.frames_per_second,
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number % len(DASHES)],
            marker=POINTS[number % len(POINTS)],
            markersize=3.5,
            linewidth=1.3,
        )
    axes.set(xlabel="Seconds without a pause", ylabel="Frames per second (logarithmic)", yscale="log")
    speeds = [speed for _, run in runs for speed in run.frames_per_second if speed > 0]
    axes.set_ylim(min(speeds, default=1) / 1.5, max(speeds, default=1) * 1.5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    ends = [(_seconds_of(run)[-1], run.frames_per_second[-1]) for _, run in runs]
    places = [Place(*end, shortened(label)) for end, (label, _) in zip(ends, runs, strict=True)]
    write_labels(axes, places, right_only=True)
    return figure


def speed_chart(runs: list[tuple[str, Sustained]]) -> str:
    """Return a chart of frames per second over time, one line per labelled run, as SVG in the page's text colour."""
    return as_svg(lambda: _draw_speeds(runs), "Frames per second over time, one line per row")
