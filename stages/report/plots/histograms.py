"""Charts of how values are spread: the gate's decisions, lambda, attention and likeness.

Rows of the gate are GATES of stages/shared/core/schemas.py with a sigma each.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from stages.report.plots.curves import INK, SERIES, render_svg

SIGMA_LABEL = "sigma: cosine of picture and topic"
USE_LABELS = {"train": "in training", "predict": "when writing"}


def draw_gate_decisions(name: str, rows: list[dict], bins: int) -> str:
    """What the gate did to every sample of one use: samples by sigma, passed above masked."""
    sigmas = np.array([row["sigma"] for row in rows])
    passed = np.array([row["passed"] for row in rows])  # a share with the mode `expected`

    def paint(axes: Axes) -> None:
        axes.hist(
            [sigmas, sigmas],
            bins=bins,
            weights=[1 - passed, passed],
            stacked=True,
            color=[SERIES[1], SERIES[0]],
            label=["topic masked", "topic passed"],
        )
        _label_count_axes(axes, SIGMA_LABEL, "samples")
        axes.legend(loc="best", fontsize=8)

    return render_svg(name, "Samples by similarity of picture and topic, passed and masked", paint)


def draw_mask_rates(name: str, by_use: dict[str, list[dict]], bins: int) -> str:
    """The share masked in each bin of sigma beside the probability that the sigma map gives."""
    edges = np.histogram_bin_edges(
        [row["sigma"] for rows in by_use.values() for row in rows], bins=bins
    )

    def paint(axes: Axes) -> None:
        for number, (use, rows) in enumerate(by_use.items()):
            centres, rates, expected, counts = bin_mask_rates(rows, edges)
            colour, label = SERIES[number], USE_LABELS[use]
            sizes = [4 + 36 * count / max(counts) for count in counts]  # few samples are noise
            axes.plot(centres, expected, color=colour, label=f"probability, {label}")
            axes.scatter(centres, rates, sizes, color=colour, label=f"masked, {label}")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(SIGMA_LABEL)
        axes.set_ylabel("share of samples")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="best", fontsize=8)

    return render_svg(name, "Share of topics masked by similarity, beside its probability", paint)


def bin_mask_rates(rows: list[dict], edges: np.ndarray) -> tuple[list[float], ...]:
    """Of each bin that has samples: centre, share masked, mean probability, number of samples."""
    sigmas = np.array([row["sigma"] for row in rows])
    place = np.clip(np.digitize(sigmas, edges) - 1, 0, len(edges) - 2)  # the last edge is inside
    masked = np.array([1 - row["passed"] for row in rows])
    probability = np.array([row["mask_probability"] for row in rows])
    full = [number for number in range(len(edges) - 1) if (place == number).any()]
    return (
        [float(edges[number] + edges[number + 1]) / 2 for number in full],
        [float(masked[place == number].mean()) for number in full],
        [float(probability[place == number].mean()) for number in full],
        [float((place == number).sum()) for number in full],
    )


def draw_share_histograms(
    name: str, label: str, description: str, by_phase: dict[str, np.ndarray], bins: int
) -> str:
    """How values between 0 and 1 are spread, a line a phase; as a density, so that phases of
    different numbers of items compare."""

    def paint(axes: Axes) -> None:
        for (phase, values), colour in zip(by_phase.items(), SERIES, strict=False):
            heights, edges = np.histogram(values, bins=bins, range=(0, 1))
            share = heights / max(len(values), 1)
            axes.stairs(share, edges, color=colour, label=phase, linewidth=1.6)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("share of values")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="best", fontsize=8)

    return render_svg(name, description, paint)


def draw_similarity_histogram(name: str, by_backend: dict[str, list[float]], bins: int) -> str:
    """How alike title and illustration are, stacked by where the illustrations came from."""

    def paint(axes: Axes) -> None:
        axes.hist(
            list(by_backend.values()),
            bins=bins,
            stacked=True,
            color=[SERIES[number % len(SERIES)] for number in range(len(by_backend))],
            label=list(by_backend),
        )
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        _label_count_axes(axes, "cosine of title and illustration", "illustrations")
        axes.legend(loc="best", fontsize=8)

    return render_svg(name, "Histogram of the similarity of title and illustration", paint)


def _label_count_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
