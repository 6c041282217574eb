"""Scatter plots of text and image embeddings in the plane."""

import numpy as np
from matplotlib.axes import Axes

from stages.report.plots.curves import FAINT, SERIES, render_svg

_NUM_DECIMALS = 4  # of a coordinate: finer than a chart shows, and equal on all processors


def project_to_plane(vectors: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Project vectors (N, D) to their two principal components, N and D at least 2.

    Returns the points (N, 2) and the share of variance of each component. The sign of a component
    is arbitrary in a singular value decomposition; here its largest loading is positive.
    """
    centered = vectors - vectors.mean(axis=0)
    _, values, components = np.linalg.svd(centered, full_matrices=False)
    components = components[:2]
    largest = np.abs(components.round(_NUM_DECIMALS)).argmax(axis=1)
    signs = np.where(components[np.arange(len(components)), largest] < 0, -1, 1)
    points = (centered @ (components * signs[:, None]).T).round(_NUM_DECIMALS) + 0.0  # no -0.0
    variance = values**2
    shares = variance[:2] / variance.sum() if variance.sum() > 0 else np.zeros(2)
    return points, [float(share) for share in shares]


def draw_scatter(salt: str, texts: np.ndarray, images: np.ndarray) -> str:
    """Text embeddings (N, D) and image embeddings (N, D) as points; a line joins each pair."""
    points, shares = project_to_plane(np.concatenate([texts, images]))
    text_points, image_points = points[: len(texts)], points[len(texts) :]

    def paint(axes: Axes) -> None:
        for text, image in zip(text_points, image_points, strict=True):
            axes.plot(*zip(text, image, strict=True), color=FAINT, linewidth=0.5, zorder=1)
        for label, modality_points, color, marker in [
            ("text", text_points, SERIES[0], "o"),
            ("image", image_points, SERIES[1], "s"),
        ]:
            axes.scatter(
                *modality_points.T, s=14, color=color, marker=marker, label=label, linewidths=0
            )
        axes.set_aspect("equal", "datalim")  # distances in both directions compare
        axes.set_xlabel(f"component 1: {100 * shares[0]:.0f} % of the variance")
        axes.set_ylabel(f"component 2: {100 * shares[1]:.0f} % of the variance")
        axes.legend(loc="best", fontsize=8)

    return render_svg(salt, "Text and image embeddings by their two principal components", paint)
