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

Rows = list[dict[str, float]]

# Drawn in these stand-ins, which the page's own colours replace, so that charts follow dark mode.
INK, FAINT = "#000001", "#000002"
SERIES = ["#000003", "#000004", "#000005", "#000006"]
_CSS = {INK: "currentColor", FAINT: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}
GRAPHS = ("tt", "ii", "ti", "it")  # of MM-ORIENT
MEASURES = {  # of PolishPPO and readers: title -> unit, columns; at each step, validations, or both
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
_MEASURED = {column for _, columns in MEASURES.values() for column in columns}
_LINES = ("-", "--", ":")  # one after the other, once the colours are used up
_SMOOTH = 20  # part of the steps that a running mean is over
_SIZE = (5.2, 2.9)  # inches of 72 px: close to its size on the page, so that text stays readable
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


def draw(name: str, description: str, paint: Callable[[Axes], None]) -> str:
    """One chart as an inline <svg>; `name` is unique on the page and salts its ids."""
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        paint(figure.add_subplot())
        file = StringIO()
        nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _for_the_page(file.getvalue(), name, description)


def _for_the_page(svg: str, name: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    # A style element inside a page would style all of it; fonts are the page's.
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for stand_in, colour in _CSS.items():
        svg = svg.replace(stand_in, colour)
    # Names like patch_1 are the same in every figure, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    label = f'role="img" aria-label="{_attribute(description)}" class="chart"'
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" {label}>', svg, count=1
    )


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def loss(name: str, steps: Rows, unit: str) -> str:
    """The loss of each step, its terms if there are several, and the validation loss."""

    def paint(axes: Axes) -> None:
        _line(axes, steps, "loss", INK, alpha=0.55, linewidth=1.0)
        for term, (colour, line) in zip(_terms(steps), _looks(SERIES[1:]), strict=False):
            _line(axes, steps, term, colour, linewidth=1.0, linestyle=line)
        if not measures(steps):  # PolishPPO's is minus the rewards, which have a chart of their own
            _line(axes, steps, "validation_loss", SERIES[0], marker="o", markersize=4)
        losses = [row["loss"] for row in steps if "loss" in row]
        if min(losses) > 0 and max(losses) > 10 * min(losses):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        _finish(axes, "step", unit)

    return draw(name, "Loss by training step", paint)


def _terms(steps: Rows) -> list[str]:
    known = {"step", "loss", "learning_rate"} | _MEASURED
    names = dict.fromkeys(key for row in steps for key in row if not key.startswith("validation_"))
    terms = [key for key in names if key not in known]
    return terms if len(terms) > 1 else []


def measures(steps: Rows) -> list[str]:
    """The titles of MEASURES that these steps have something of."""
    taken = {column.removeprefix("validation_") for row in steps for column in row}
    return [title for title, (_, columns) in MEASURES.items() if taken & set(columns)]


def measure(name: str, title: str, steps: Rows) -> str:
    """The columns of one title: each step faint below a running mean, validations as points."""
    unit, columns = MEASURES[title]

    def paint(axes: Axes) -> None:
        for column, colour in zip(columns, SERIES, strict=False):
            taken = [row for row in steps if column in row]
            _line(axes, taken, column, colour, alpha=0.25, linewidth=0.8, named=False)
            _line(axes, _smoothed(taken, column), column, colour)
            place = {"marker": "o", "markersize": 4, "linestyle": ":"}
            _line(axes, steps, f"validation_{column}", colour, **place)
        if unit.startswith("share of"):  # noise should look like noise
            axes.set_ylim(0, max(0.1, axes.get_ylim()[1]))
        _finish(axes, "step", unit)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), fontsize=8, ncols=2)

    return draw(name, f"{title} by training step", paint)


def _smoothed(steps: Rows, column: str) -> Rows:
    """The running mean of a column over a part of the steps."""
    width = max(1, len(steps) // _SMOOTH)
    values = [row[column] for row in steps]
    means = [fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
    return [{"step": row["step"], column: mean} for row, mean in zip(steps, means, strict=True)]


def watched(steps: Rows) -> list[str]:
    """The shares and similarities taken at validations: beside the loss, its terms, MEASURES."""
    known = {key for row in steps for key in row if not key.startswith("validation_")}
    known |= _MEASURED | {"loss"}
    names = dict.fromkeys(key for row in steps for key in row if key.startswith("validation_"))
    return [key for key in names if key.removeprefix("validation_") not in known]


def watch(name: str, steps: Rows) -> str:
    """What was watched at each validation: shares and similarities."""

    def paint(axes: Axes) -> None:
        for measure, (colour, line) in zip(watched(steps), _looks(SERIES), strict=False):
            _line(axes, steps, measure, colour, marker="o", markersize=4, linestyle=line)
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.05, high + 0.05)  # noise should look like noise
        _finish(axes, "step", "value")

    return draw(name, "Watched values by training step", paint)


def _looks(colours: list[str]) -> Iterator[tuple[str, str]]:
    """Colour and line of one series after another, without end."""
    return cycle((colour, line) for line in _LINES for colour in colours)


def _line(
    axes: Axes, steps: Rows, column: str, colour: str, named: bool = True, **style: float | str
) -> None:
    points = [(row["step"], row[column]) for row in steps if column in row]
    if points:
        label = column.replace("_", " ") if named else None
        axes.plot(*zip(*points, strict=True), color=colour, label=label, **style)


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="x", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.legend(loc="best", fontsize=8)


def slots(
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

    return draw(name, "Grounding by slot beside the ceilings of one modality", paint)
