"""Similarity graphs: edges between items of high cosine similarity, computed block by block.

    i and j are linked where cos(x_i, x_j) > threshold and both have features

N items, D features of unit length, E edges (2, E) of (item, neighbor) pairs; no item is its own
neighbor. Besides the edges, memory use is that of one block of cosines, whatever N is. Features are
in double precision so that an edge does not depend on the other rows: in single precision the last
bits of a matrix product do, and a pair near the threshold could flip.
"""

import math
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ROWS, BLOCK_COLUMNS = 1024, 4096
HISTOGRAM_BINS = 2048  # find_threshold uses two histograms, the second within a bin of the first
NO_EDGES_THRESHOLD = 1.0  # cosines are at most 1
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")


def build_edges_within(x: Tensor, available: Tensor, threshold: float) -> Tensor:
    """Edges among items x (N, D), each in both directions -> (2, E).

    available (N,) bool: which items have features.
    """
    items = available.nonzero()[:, 0]
    rows, columns = [items.new_zeros(0)], [items.new_zeros(0)]
    if threshold < NO_EDGES_THRESHOLD:
        for top, left, cosines in _upper_triangle_blocks(x[items]):
            row, column = (cosines > threshold).nonzero().T
            rows.append(row.add_(top))
            columns.append(column.add_(left))
    pairs = torch.stack([torch.cat(rows), torch.cat(columns)])
    return items[torch.cat([pairs, pairs.flip(0)], 1)]


def build_edges_between(
    x: Tensor, available: Tensor, y: Tensor, y_available: Tensor, threshold: float
) -> Tensor:
    """Edges from items x (N, D) to items y (M, D) -> (2, E).

    available (N,), y_available (M,) bool: which items have features.
    """
    x_items, y_items = available.nonzero()[:, 0], y_available.nonzero()[:, 0]
    edges = [x_items.new_zeros(2, 0)]
    if threshold < NO_EDGES_THRESHOLD:
        x, y = x[x_items], y[y_items]
        for top in range(0, len(x), BLOCK_ROWS):
            for left in range(0, len(y), BLOCK_COLUMNS):
                cosines = x[top : top + BLOCK_ROWS] @ y[left : left + BLOCK_COLUMNS].T
                row, column = (cosines > threshold).nonzero().T
                edges.append(torch.stack([row.add_(top), column.add_(left)]))
    row, column = torch.cat(edges, 1)
    return torch.stack([x_items[row], y_items[column]])


def _upper_triangle_blocks(x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (top row, left column, cosines) for blocks that cover each pair of items once.

    Entries on and below the diagonal are -inf. The next block overwrites the memory of the last.
    """
    buffer = x.new_empty(min(BLOCK_ROWS, len(x)) * min(BLOCK_COLUMNS, len(x)))
    for top in range(0, len(x), BLOCK_ROWS):
        rows = x[top : top + BLOCK_ROWS]
        for left in range(top, len(x), BLOCK_COLUMNS):
            columns = x[left : left + BLOCK_COLUMNS]
            block = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=block)
            if left == top:
                square = block[:, : len(rows)]
                below = torch.ones_like(square, dtype=torch.bool).tril_()
                square.masked_fill_(below, -torch.inf)
            yield top, left, block


def find_threshold(x: Tensor, available: Tensor, density: float) -> float:
    """The highest threshold, to about 1e-6, that links at least a fraction `density` of the pairs.

    More pairs are linked if several have equal cosines. Returns NO_EDGES_THRESHOLD if density is 0
    or there is no pair. x (N, D), available (N,) bool.
    """
    x = x[available]
    num_edges = math.ceil(density * len(x) * (len(x) - 1) / 2)
    if num_edges <= 0:
        return NO_EDGES_THRESHOLD
    low, high, above = -1.0, 1.0, 0.0
    for _ in range(2):
        counts = _histogram(x, low, high).flip(0)  # highest bin first
        cumulative = above + counts.cumsum(0)
        index = int((cumulative < num_edges).sum().clamp(max=HISTOGRAM_BINS - 1))
        above = float(cumulative[index] - counts[index])
        width = (high - low) / HISTOGRAM_BINS
        low, high = high - (index + 1) * width, high - index * width
    return low - (high - low) / 2  # below `low`, which itself belongs to the bin


def _histogram(x: Tensor, low: float, high: float) -> Tensor:
    """Number of pairs by cosine, in HISTOGRAM_BINS equal bins from low to high."""
    counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.double, device=x.device)
    for _, _, cosines in _upper_triangle_blocks(x):
        pairs = cosines[cosines.isfinite()].clamp_(-1, 1)
        counts += torch.histc(pairs, HISTOGRAM_BINS, low, high)
    return counts


def count_neighbors(edges: Tensor, num_items: int) -> Tensor:
    """Number of neighbors of each item.  (2, E) -> (N,)"""
    return edges[0].bincount(minlength=num_items)


def build_adjacency(edges: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The adjacency matrix of edges (2, E), with ones as values -> sparse CSR (N, M)"""
    row, column = edges[:, (edges[0] * shape[1] + edges[1]).argsort()]
    start = F.pad(row.bincount(minlength=shape[0]).cumsum(0), (1, 0))
    ones = torch.ones(len(row), dtype=dtype, device=row.device)
    return torch.sparse_csr_tensor(start, column, ones, shape, check_invariants=False)
