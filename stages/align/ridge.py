"""Ridge regression in closed form.

x (N, P) centered inputs, y (N, D) centered targets, W (P, D), penalty lambda > 0:

    min_W |x W - y|^2 + lambda |W|^2

    primal   W = (x'x + lambda I)^-1 x'y        a P x P system
    dual     W = x' (x x' + lambda I)^-1 y      an N x N system, for N < P

One eigendecomposition serves all penalties. All in float64.
"""

from collections.abc import Iterable

import numpy as np

Batches = Iterable[tuple[np.ndarray, np.ndarray]]  # of x and y


def ridge_path(
    batches: Batches, count: int, width: int, penalties: list[float]
) -> list[np.ndarray]:
    """W of each penalty from N = `count` rows of P = `width` inputs, which come in batches."""
    if count < width:
        x, y = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return _dual(x.astype(np.float64), y.astype(np.float64), penalties)
    gram, cross = np.zeros((width, width)), 0.0
    for x, y in batches:
        x = x.astype(np.float64)
        gram += x.T @ x
        cross = cross + x.T @ y.astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    rotated = vectors.T @ cross
    return [vectors @ (rotated / (values + penalty)[:, None]) for penalty in penalties]


def _dual(x: np.ndarray, y: np.ndarray, penalties: list[float]) -> list[np.ndarray]:
    values, vectors = np.linalg.eigh(x @ x.T)
    rotated, inputs = vectors.T @ y, x.T @ vectors
    return [inputs @ (rotated / (values + penalty)[:, None]) for penalty in penalties]
