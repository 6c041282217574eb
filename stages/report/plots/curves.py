"""Line and bar charts: matplotlib figures as SVG text that takes its colors from the page.

Equal values give equal bytes: no dates, IDs from a fixed salt, and text stays text.
"""

import re
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import cycle
from statistics import fmean
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

HistoryRows = list[dict[str, float]]  # rows of history.csv, without empty cells

# Placeholders that _clean_svg replaces with CSS variables, so that charts follow dark mode.
INK, FAINT = "#000001", "#000002"
SERIES = ["#000003", "#000004", "#000005", "#000006"]
_CSS = {INK: "currentColor", FAINT: "var(--line)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(SERIES, start=1)
}
GRAPHS = ("tt", "ii", "ti", "it")  # MM-ORIENT's relation graphs
# Metrics with charts of their own: title -> unit and history columns. Training steps, validations
# (with the prefix `validation_`) or both may have them.
METRIC_CHARTS = {
    "Rewards": ("reward", ["reward_literal", "reward_semantic"]),
    "Return of sampled texts": ("weighted sum of rewards", ["return"]),
    "KL divergence from the SFT model": ("nats per token", ["kl_to_sft"]),
    "Clipped tokens": ("share", ["clip_share"]),
    "Entropy of sampled texts": ("nats per token", ["entropy"]),
    "Length of sampled texts": ("tokens", ["tokens"]),
    "Length of validation texts": ("characters", ["characters"]),
    "Caption loss": ("nats per token", ["caption_nats"]),
    "Image loss": ("bits per dimension", ["drawing_bits"]),
    "Doubly stochastic attention penalty": ("sum of squares", ["doubly_stochastic"]),
    "Density of relation graphs": ("share of pairs", [f"density_{graph}" for graph in GRAPHS]),
    "Isolated items of relation graphs": (
        "share of items",
        [f"isolated_{graph}" for graph in GRAPHS],
    ),
    "Entropy of attention": (
        "normalized, 1: uniform",
        ["evenness_words", "evenness_regions"],
    ),
}
_METRIC_COLUMNS = {column for _, columns in METRIC_CHARTS.values() for column in columns}
_LEGEND_LABELS = {  # history column without `validation_` -> words, if the column's name is unclear
    "caption_nats": "caption loss",
    "captioning": "caption loss term",
    "characters": "length",
    "clip_share": "clipped tokens",
    "contrast": "contrastive loss",
    "drawing": "image loss term",
    "drawing_bits": "image loss",
    "evenness_regions": "image regions",
    "evenness_words": "subwords",
    "exchanged_picture": "exchanged image cells",
    "exchanged_text": "exchanged subwords",
    "kl": "KL penalty",
    "kl_to_sft": "KL divergence",
    "likeness": "cosine similarity",
    "mscdpo": "mscDPO loss",
    "ntp": "next-token loss",
    "policy": "policy loss",
    "task": "task loss",
    "tokens": "length",
    "watch": "quality monitor score",
}
_LINE_STYLES = ("-", "--", ":")  # the next one is used when the colors are used up
_SMOOTHING_PARTS = 20  # a running mean covers 1 / 20 of the steps
_FIGURE_SIZE = (5.2, 2.9)  # inches of 72 px, about the size on the page, so text stays readable
_STYLE: "dict[RcKeyType, Any]" = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.parse_math": False,  # a name may contain a dollar sign
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


def render_svg(salt: str, description: str, paint: Callable[[Axes], None]) -> str:
    """Draw one chart as an inline <svg>.

    salt: salts the IDs in the SVG; must be unique on the page. description: the ARIA label.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=_FIGURE_SIZE, layout="constrained")
        paint(figure.add_subplot())
        file = StringIO()
        no_metadata = dict.fromkeys(["Date", "Creator", "Format", "Type"])
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    return _clean_svg(file.getvalue(), description)


def _clean_svg(svg: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    # A style element in the page would apply to the whole page; fonts come from the page.
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for placeholder, color in _CSS.items():
        svg = svg.replace(placeholder, color)
    # IDs such as patch_1 are the same in every figure, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    label = f'role="img" aria-label="{_escape_attribute(description)}" class="chart"'
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" {label}>', svg, count=1
    )


def _escape_attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def draw_loss(salt: str, steps: HistoryRows, unit: str) -> str:
    """The training loss, its terms if there are several, and the validation loss, by step."""

    def paint(axes: Axes) -> None:
        _plot_line(axes, steps, "loss", INK, alpha=0.55, linewidth=1.0)
        terms = zip(_loss_terms(steps), _cycle_styles(SERIES[1:]), strict=False)
        for term, (color, line_style) in terms:
            _plot_line(axes, steps, term, color, linewidth=1.0, linestyle=line_style)
        # PolishPPO's validation loss is minus the rewards, which have a chart of their own.
        if not list_metric_charts(steps):
            _plot_line(axes, steps, "validation_loss", SERIES[0], marker="o", markersize=4)
        losses = [row["loss"] for row in steps if "loss" in row]
        if min(losses) > 0 and max(losses) > 10 * min(losses):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        _finish_axes(axes, "step", unit)

    return render_svg(salt, "Loss by training step", paint)


def _loss_terms(steps: HistoryRows) -> list[str]:
    excluded = {"step", "loss", "learning_rate"} | _METRIC_COLUMNS
    names = dict.fromkeys(key for row in steps for key in row if not key.startswith("validation_"))
    terms = [key for key in names if key not in excluded]
    return terms if len(terms) > 1 else []


def list_metric_charts(steps: HistoryRows) -> list[str]:
    """The titles of METRIC_CHARTS for which these steps have a column."""
    recorded = {column.removeprefix("validation_") for row in steps for column in row}
    return [title for title, (_, columns) in METRIC_CHARTS.items() if recorded & set(columns)]


def draw_metric_chart(salt: str, title: str, steps: HistoryRows) -> str:
    """One of METRIC_CHARTS: steps faint, their running mean as a line, validations as points."""
    unit, columns = METRIC_CHARTS[title]

    def paint(axes: Axes) -> None:
        for column, color in zip(columns, SERIES, strict=False):
            recorded = [row for row in steps if column in row]
            _plot_line(axes, recorded, column, color, alpha=0.25, linewidth=0.8, labeled=False)
            _plot_line(axes, _running_mean(recorded, column), column, color)
            points = {"marker": "o", "markersize": 4, "linestyle": ":"}
            _plot_line(axes, steps, f"validation_{column}", color, **points)
        if unit.startswith("share of"):  # a zoomed axis would make noise look like change
            axes.set_ylim(0, max(0.1, axes.get_ylim()[1]))
        _finish_axes(axes, "step", unit)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), fontsize=8, ncols=2)

    return render_svg(salt, f"{title} by training step", paint)


def _running_mean(steps: HistoryRows, column: str) -> HistoryRows:
    """The mean of a column over the last steps, at each step."""
    width = max(1, len(steps) // _SMOOTHING_PARTS)
    values = [row[column] for row in steps]
    means = [fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
    return [{"step": row["step"], column: mean} for row, mean in zip(steps, means, strict=True)]


def list_monitored_metrics(steps: HistoryRows) -> list[str]:
    """Validation columns other than losses, their terms and METRIC_CHARTS: shares, similarities."""
    excluded = {key for row in steps for key in row if not key.startswith("validation_")}
    excluded |= _METRIC_COLUMNS | {"loss"}
    names = dict.fromkeys(key for row in steps for key in row if key.startswith("validation_"))
    return [key for key in names if key.removeprefix("validation_") not in excluded]


def draw_monitored_metrics(salt: str, steps: HistoryRows) -> str:
    """The monitored metrics at each validation."""

    def paint(axes: Axes) -> None:
        metrics = zip(list_monitored_metrics(steps), _cycle_styles(SERIES), strict=False)
        for metric, (color, line_style) in metrics:
            _plot_line(axes, steps, metric, color, marker="o", markersize=4, linestyle=line_style)
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.05, high + 0.05)  # a zoomed axis would make noise look like change
        _finish_axes(axes, "step", "value")

    return render_svg(salt, "Validation metrics by training step", paint)


def _cycle_styles(colors: list[str]) -> Iterator[tuple[str, str]]:
    """Endless pairs of color and line style."""
    return cycle((color, line_style) for line_style in _LINE_STYLES for color in colors)


def _plot_line(
    axes: Axes,
    steps: HistoryRows,
    column: str,
    color: str,
    labeled: bool = True,
    **style: Any,
) -> None:
    points = [(row["step"], row[column]) for row in steps if column in row]
    if points:
        label = legend_label(column) if labeled else None
        axes.plot(*zip(*points, strict=True), color=color, label=label, **style)


def legend_label(column: str) -> str:
    """The words for a column of history.csv in the legend of a chart."""
    name = column.removeprefix("validation_")
    words = _LEGEND_LABELS.get(name, name.replace("_", " "))
    return f"validation: {words}" if column.startswith("validation_") else words


def _finish_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.legend(loc="best", fontsize=8)


def draw_slots(
    salt: str, by_phase: dict[str, dict[str, float]], ceilings: dict[str, dict[str, float]]
) -> str:
    """Grounding of each slot: a bar for each phase, single-modality ceilings as ticks.

    by_phase: phase -> slot -> share. ceilings: label -> slot -> share; may be empty.
    """

    def paint(axes: Axes) -> None:
        slots = list(next(iter(by_phase.values())))
        width = 0.8 / len(by_phase)
        for number, (phase, shares) in enumerate(by_phase.items()):
            centers = [x - 0.4 + width * (number + 0.5) for x in range(len(slots))]
            heights = [shares[slot] for slot in slots]
            axes.bar(centers, heights, width * 0.92, color=SERIES[number], label=phase)
        for (label, shares), line_style in zip(ceilings.items(), ["-", ":"], strict=False):
            for x, slot in enumerate(slots):
                axes.plot(
                    [x - 0.44, x + 0.44],
                    [shares[slot]] * 2,
                    color=INK,
                    linestyle=line_style,
                    linewidth=1.4,
                    label=label if x == 0 else None,
                )
        axes.set_xticks(range(len(slots)), slots, rotation=20 if len(slots) > 5 else 0)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("share stated correctly")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), fontsize=8, ncols=2)

    return render_svg(salt, "Grounding by slot, with the ceilings of one modality", paint)
