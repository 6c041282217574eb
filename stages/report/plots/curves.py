"""The report's charts: matplotlib figures as SVG text that takes its colours from the page.

The same numbers give the same bytes: no dates, ids from a fixed salt, text as text.
"""

import re
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import cycle
from statistics import fmean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

HistoryRows = list[dict[str, float]]

# Drawn in these stand-ins, which the page's own colours replace, so that charts follow dark mode.
INK, FAINT = "#000001", "#000002"
SERIES = ["#000003", "#000004", "#000005", "#000006"]
_CSS = {INK: "currentColor", FAINT: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}
GRAPHS = ("tt", "ii", "ti", "it")  # of MM-ORIENT
METRIC_CHARTS = {  # of PolishPPO and readers: title -> unit, columns; at each step, validations, or both
    "Rewards": ("reward", ["reward_literal", "reward_semantic"]),
    "Return of drawn texts": ("weighted rewards", ["return"]),
    "Distance of drawn texts from SFT": ("nats a token", ["kl_to_sft"]),
    "Share of tokens beyond the clip": ("share", ["clip_share"]),
    "Entropy of drawn texts": ("nats a token", ["entropy"]),
    "Length of drawn texts": ("tokens", ["tokens"]),
    "Length of validation texts": ("characters", ["characters"]),
    "Texts, given their pictures": ("nats a token", ["caption_nats"]),
    "Pictures, given their texts": ("bits a dimension", ["drawing_bits"]),
    "Unevenness of the captions' attention": ("sum of squares", ["doubly_stochastic"]),
    "Density of relation graphs": ("share of pairs", [f"density_{one}" for one in GRAPHS]),
    "Without a neighbour": ("share of items", [f"isolated_{one}" for one in GRAPHS]),
    "Evenness of attention": ("1: a mean", ["evenness_words", "evenness_regions"]),
}
_METRIC_COLUMNS = {column for _, columns in METRIC_CHARTS.values() for column in columns}
_LINE_STYLES = ("-", "--", ":")  # one after the other, once the colours are used up
_SMOOTHING_PARTS = 20  # part of the steps that a running mean is over
_FIGURE_SIZE = (
    5.2,
    2.9,
)  # inches of 72 px: close to its size on the page, so that text stays readable
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.parse_math": False,  # a name may hold a dollar sign
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def render_svg(name: str, description: str, paint: Callable[[Axes], None]) -> str:
    """One chart as an inline <svg>; `name` is unique on the page and salts its ids."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=_FIGURE_SIZE, layout="constrained")
        paint(figure.add_subplot())
        file = StringIO()
        nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _clean_svg(file.getvalue(), name, description)


def _clean_svg(svg: str, name: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    # A style element inside a page would style all of it; fonts are the page's.
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for stand_in, colour in _CSS.items():
        svg = svg.replace(stand_in, colour)
    # Names like patch_1 are the same in every figure, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    label = f'role="img" aria-label="{_escape_attribute(description)}" class="chart"'
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" {label}>', svg, count=1
    )


def _escape_attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def draw_loss(name: str, steps: HistoryRows, unit: str) -> str:
    """The loss of each step, its terms if there are several, and the validation loss."""

    def paint(axes: Axes) -> None:
        _plot_line(axes, steps, "loss", INK, alpha=0.55, linewidth=1.0)
        for term, (colour, line) in zip(
            _loss_terms(steps), _cycle_styles(SERIES[1:]), strict=False
        ):
            _plot_line(axes, steps, term, colour, linewidth=1.0, linestyle=line)
        if not list_metric_charts(
            steps
        ):  # PolishPPO's is minus the rewards, which have a chart of their own
            _plot_line(axes, steps, "validation_loss", SERIES[0], marker="o", markersize=4)
        losses = [row["loss"] for row in steps if "loss" in row]
        if min(losses) > 0 and max(losses) > 10 * min(losses):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        _finish_axes(axes, "step", unit)

    return render_svg(name, "Loss by training step", paint)


def _loss_terms(steps: HistoryRows) -> list[str]:
    known = {"step", "loss", "learning_rate"} | _METRIC_COLUMNS
    names = dict.fromkeys(key for row in steps for key in row if not key.startswith("validation_"))
    terms = [key for key in names if key not in known]
    return terms if len(terms) > 1 else []


def list_metric_charts(steps: HistoryRows) -> list[str]:
    """The titles of MEASURES that these steps have something of."""
    taken = {column.removeprefix("validation_") for row in steps for column in row}
    return [title for title, (_, columns) in METRIC_CHARTS.items() if taken & set(columns)]


def draw_metric_chart(name: str, title: str, steps: HistoryRows) -> str:
    """The columns of one title: each step faint below a running mean, validations as points."""
    unit, columns = METRIC_CHARTS[title]

    def paint(axes: Axes) -> None:
        for column, colour in zip(columns, SERIES, strict=False):
            taken = [row for row in steps if column in row]
            _plot_line(axes, taken, column, colour, alpha=0.25, linewidth=0.8, named=False)
            _plot_line(axes, _running_mean(taken, column), column, colour)
            place = {"marker": "o", "markersize": 4, "linestyle": ":"}
            _plot_line(axes, steps, f"validation_{column}", colour, **place)
        if unit.startswith("share of"):  # noise should look like noise
            axes.set_ylim(0, max(0.1, axes.get_ylim()[1]))
        _finish_axes(axes, "step", unit)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), fontsize=8, ncols=2)

    return render_svg(name, f"{title} by training step", paint)


def _running_mean(steps: HistoryRows, column: str) -> HistoryRows:
    """The running mean of a column over a part of the steps."""
    width = max(1, len(steps) // _SMOOTHING_PARTS)
    values = [row[column] for row in steps]
    means = [fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
    return [{"step": row["step"], column: mean} for row, mean in zip(steps, means, strict=True)]


def list_monitored_metrics(steps: HistoryRows) -> list[str]:
    """The shares and similarities taken at validations: beside the loss, its terms, MEASURES."""
    known = {key for row in steps for key in row if not key.startswith("validation_")}
    known |= _METRIC_COLUMNS | {"loss"}
    names = dict.fromkeys(key for row in steps for key in row if key.startswith("validation_"))
    return [key for key in names if key.removeprefix("validation_") not in known]


def draw_monitored_metrics(name: str, steps: HistoryRows) -> str:
    """What was watched at each validation: shares and similarities."""

    def paint(axes: Axes) -> None:
        for measure, (colour, line) in zip(
            list_monitored_metrics(steps), _cycle_styles(SERIES), strict=False
        ):
            _plot_line(axes, steps, measure, colour, marker="o", markersize=4, linestyle=line)
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.05, high + 0.05)  # noise should look like noise
        _finish_axes(axes, "step", "value")

    return render_svg(name, "Watched values by training step", paint)


def _cycle_styles(colours: list[str]) -> Iterator[tuple[str, str]]:
    """Colour and line of one series after another, without end."""
    return cycle((colour, line) for line in _LINE_STYLES for colour in colours)


def _plot_line(
    axes: Axes,
    steps: HistoryRows,
    column: str,
    colour: str,
    named: bool = True,
    **style: float | str,
) -> None:
    points = [(row["step"], row[column]) for row in steps if column in row]
    if points:
        label = column.replace("_", " ") if named else None
        axes.plot(*zip(*points, strict=True), color=colour, label=label, **style)


def _finish_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.legend(loc="best", fontsize=8)


def draw_slots(
    name: str, by_phase: dict[str, dict[str, float]], ceilings: dict[str, dict[str, float]]
) -> str:
    """Grounding of each slot and phase as bars, the ceilings of one modality as ticks.

    by_phase: label -> slot -> share; ceilings: label -> slot -> share (may be empty).
    """

    def paint(axes: Axes) -> None:
        names = list(next(iter(by_phase.values())))
        width = 0.8 / len(by_phase)
        for number, (label, shares) in enumerate(by_phase.items()):
            places = [x - 0.4 + width * (number + 0.5) for x in range(len(names))]
            heights = [shares[slot] for slot in names]
            axes.bar(places, heights, width * 0.92, color=SERIES[number], label=label)
        for (label, shares), style in zip(ceilings.items(), ["-", ":"], strict=False):
            for x, slot in enumerate(names):
                axes.plot(
                    [x - 0.44, x + 0.44],
                    [shares[slot]] * 2,
                    color=INK,
                    linestyle=style,
                    linewidth=1.4,
                    label=label if x == 0 else None,
                )
        axes.set_xticks(range(len(names)), names, rotation=20 if len(names) > 5 else 0)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("share stated correctly")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), fontsize=8, ncols=2)

    return render_svg(name, "Grounding by slot beside the ceilings of one modality", paint)
