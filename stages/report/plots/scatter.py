"""Where the embeddings of texts and pictures lie, as points on a plane."""

import numpy as np
from matplotlib.axes import Axes

from stages.report.plots.curves import FAINT, SERIES, render_svg

_DIGITS = 4  # of a place: what a chart can show, the same whatever the processor rounds


def project_to_plane(vectors: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """(N, D) -> (N, 2) places by the two principal components, and the share of the variance that
    each component has.

    Components of a singular value decomposition point either way: each is turned so that its
    largest loading is positive. N at least 2, D at least 2.
    """
    centred = vectors - vectors.mean(axis=0)
    _, values, components = np.linalg.svd(centred, full_matrices=False)
    components = components[:2]
    largest = np.abs(components.round(_DIGITS)).argmax(axis=1)
    turn = np.where(components[np.arange(len(components)), largest] < 0, -1, 1)
    places = (centred @ (components * turn[:, None]).T).round(_DIGITS) + 0.0  # no negative zeros
    variance = values**2
    shares = variance[:2] / variance.sum() if variance.sum() > 0 else np.zeros(2)
    return places, [float(share) for share in shares]


def draw_scatter(name: str, texts: np.ndarray, pictures: np.ndarray) -> str:
    """Texts (N, D) and their pictures (N, D) as points, a faint line between those of an item."""
    places, shares = project_to_plane(np.concatenate([texts, pictures]))
    sides = {"text": places[: len(texts)], "picture": places[len(texts) :]}

    def paint(axes: Axes) -> None:
        for text, picture in zip(*sides.values(), strict=True):
            axes.plot(*zip(text, picture, strict=True), color=FAINT, linewidth=0.5, zorder=1)
        for (label, some), colour, marker in zip(sides.items(), SERIES, "os", strict=False):
            axes.scatter(*some.T, s=14, color=colour, marker=marker, label=label, linewidths=0)
        axes.set_aspect("equal", "datalim")  # distances across and along compare
        for axis, number in ((axes.set_xlabel, 0), (axes.set_ylabel, 1)):
            axis(f"component {number + 1}: {100 * shares[number]:.0f} % of the variance")
        axes.legend(loc="best", fontsize=8)

    return render_svg(
        name, "Embeddings of texts and pictures by their two principal components", paint
    )
