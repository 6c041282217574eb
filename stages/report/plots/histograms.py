"""Histograms: gate decisions, lambda, attention entropy, and similarity of illustrations.

Rows of the gate are GATES (stages/shared/core/schemas.py) with a known sigma.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from stages.report.plots.curves import INK, SERIES, render_svg

SIGMA_LABEL = "sigma: cosine of image and topic"
USE_LABELS = {"train": "in training", "predict": "in generation"}


class MaskRates(NamedTuple):
    """Values of each bin of sigma that has samples."""

    centers: list[float]
    masked: list[float]  # share of samples
    probabilities: list[float]  # mean mask probability
    counts: list[float]


def draw_gate_decisions(salt: str, rows: list[dict], num_bins: int) -> str:
    """Number of samples by sigma, stacked: masked below passed. rows: of one use."""
    sigmas = np.array([row["sigma"] for row in rows])
    passed = np.array([row["passed"] for row in rows])  # a share in the mode `expected`

    def paint(axes: Axes) -> None:
        axes.hist(
            [sigmas, sigmas],
            bins=num_bins,
            weights=[1 - passed, passed],
            stacked=True,
            color=[SERIES[1], SERIES[0]],
            label=["topic masked", "topic passed"],
        )
        _label_count_axes(axes, SIGMA_LABEL, "samples")
        axes.legend(loc="best", fontsize=8)

    return render_svg(salt, "Samples by similarity of image and topic, passed and masked", paint)


def draw_mask_rates(salt: str, by_use: dict[str, list[dict]], num_bins: int) -> str:
    """The share of masked samples by sigma (points), and the mask probability (lines)."""
    edges = np.histogram_bin_edges(
        [row["sigma"] for rows in by_use.values() for row in rows], bins=num_bins
    )

    def paint(axes: Axes) -> None:
        for (use, rows), color in zip(by_use.items(), SERIES, strict=False):
            rates, label = bin_mask_rates(rows, edges), USE_LABELS[use]
            axes.plot(
                rates.centers, rates.probabilities, color=color, label=f"probability, {label}"
            )
            # The point size shows the number of samples: with few samples, the rate is noise.
            sizes = [4 + 36 * count / max(rates.counts) for count in rates.counts]
            axes.scatter(rates.centers, rates.masked, sizes, color=color, label=f"masked, {label}")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(SIGMA_LABEL)
        axes.set_ylabel("share of samples")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="best", fontsize=8)

    return render_svg(salt, "Share of masked topics by similarity, and its probability", paint)


def bin_mask_rates(rows: list[dict], edges: np.ndarray) -> MaskRates:
    """Mask rates by bin of sigma. edges: of the bins, increasing; the last bin is closed."""
    sigmas = np.array([row["sigma"] for row in rows])
    bins = np.clip(np.digitize(sigmas, edges) - 1, 0, len(edges) - 2)
    masked = np.array([1 - row["passed"] for row in rows])
    probability = np.array([row["mask_probability"] for row in rows])
    filled = [number for number in range(len(edges) - 1) if (bins == number).any()]
    return MaskRates(
        [float(edges[number] + edges[number + 1]) / 2 for number in filled],
        [float(masked[bins == number].mean()) for number in filled],
        [float(probability[bins == number].mean()) for number in filled],
        [float((bins == number).sum()) for number in filled],
    )


def draw_share_histograms(
    salt: str, x_label: str, description: str, by_phase: dict[str, np.ndarray], num_bins: int
) -> str:
    """Distribution of values between 0 and 1, one line for each phase.

    Heights are shares, so that phases with different numbers of items compare.
    """

    def paint(axes: Axes) -> None:
        for (phase, values), color in zip(by_phase.items(), SERIES, strict=False):
            heights, edges = np.histogram(values, bins=num_bins, range=(0, 1))
            shares = heights / max(len(values), 1)
            axes.stairs(shares, edges, color=color, label=phase, linewidth=1.6)
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel("share of values")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="best", fontsize=8)

    return render_svg(salt, description, paint)


def draw_similarity_histogram(salt: str, by_backend: dict[str, list[float]], num_bins: int) -> str:
    """Number of illustrations by similarity to the title, stacked by illustrator backend."""

    def paint(axes: Axes) -> None:
        axes.hist(
            list(by_backend.values()),
            bins=num_bins,
            stacked=True,
            color=[SERIES[number % len(SERIES)] for number in range(len(by_backend))],
            label=list(by_backend),
        )
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        _label_count_axes(axes, "cosine of title and illustration", "illustrations")
        axes.legend(loc="best", fontsize=8)

    return render_svg(salt, "Histogram of the similarity of title and illustration", paint)


def _label_count_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
