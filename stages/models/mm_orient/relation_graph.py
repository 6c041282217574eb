"""Which items are alike: graphs whose edges are pairs of high cosine, made block by block.

    i and j are linked where cos(x_i, x_j) > threshold and both have features

N items, D features of unit length, E edges (2, E), first the item, then its neighbour; nothing is
its own neighbour. Memory beyond the edges is that of one block of cosines, however many items there
are. Rows of doubles make edges that do not depend on the rows beside them: in floats the last bits
of a product of matrices do, and a pair at the threshold would come and go.
"""

import math
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ROWS, BLOCK_COLUMNS = 1024, 4096  # of a block
HISTOGRAM_BINS = (
    2048  # of a histogram of cosines; two of them find a threshold, the second within a bin
)
NO_EDGES_THRESHOLD = 1.0  # cosines are at most 1: this threshold links nothing
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")


def build_edges_within(x: Tensor, held: Tensor, threshold: float) -> Tensor:
    """Edges among items, both directions of each.  x (N, D), held (N,) has features -> (2, E)"""
    places = held.nonzero()[:, 0]
    rows, columns = [places.new_zeros(0)], [places.new_zeros(0)]
    if threshold < NO_EDGES_THRESHOLD:
        for top, left, cosines in _upper_triangle_blocks(x[places]):
            row, column = (cosines > threshold).nonzero().T
            rows.append(row.add_(top))
            columns.append(column.add_(left))
    once = torch.stack([torch.cat(rows), torch.cat(columns)])
    return places[torch.cat([once, once.flip(0)], 1)]


def build_edges_between(
    x: Tensor, held: Tensor, others: Tensor, others_held: Tensor, threshold: float
) -> Tensor:
    """Edges from items to others.  x (N, D), others (M, D) and which of them count -> (2, E)"""
    places, other_places = held.nonzero()[:, 0], others_held.nonzero()[:, 0]
    found = [places.new_zeros(2, 0)]
    if threshold < NO_EDGES_THRESHOLD:
        x, others = x[places], others[other_places]
        for top in range(0, len(x), BLOCK_ROWS):
            for left in range(0, len(others), BLOCK_COLUMNS):
                cosines = x[top : top + BLOCK_ROWS] @ others[left : left + BLOCK_COLUMNS].T
                row, column = (cosines > threshold).nonzero().T
                found.append(torch.stack([row.add_(top), column.add_(left)]))
    row, column = torch.cat(found, 1)
    return torch.stack([places[row], other_places[column]])


def _upper_triangle_blocks(x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Cosines of each pair once, in blocks: row and column of their first one, and the block.

    What is not a pair, or not for the first time, is -inf. A block is overwritten by the next one.
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


def find_threshold(x: Tensor, held: Tensor, density: float) -> float:
    """The highest threshold, to a millionth, that links at least this share of the pairs.

    Many pairs may be alike to the bit: then more are linked, never fewer. 1, which links nothing,
    where density is 0 or there is no pair.
    """
    x = x[held]
    need = math.ceil(density * len(x) * (len(x) - 1) / 2)
    if need <= 0:
        return NO_EDGES_THRESHOLD
    low, high, above = -1.0, 1.0, 0.0
    for _ in range(2):
        counts = _histogram(x, low, high).flip(0)  # of the highest bin first
        reached = above + counts.cumsum(0)
        place = int((reached < need).sum().clamp(max=HISTOGRAM_BINS - 1))
        above = float(reached[place] - counts[place])
        width = (high - low) / HISTOGRAM_BINS
        low, high = high - (place + 1) * width, high - place * width
    return low - (high - low) / 2  # what lies on a bin's lower edge is in it


def _histogram(x: Tensor, low: float, high: float) -> Tensor:
    """How many pairs have their cosine in each of BINS parts of low to high."""
    counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.double, device=x.device)
    for _, _, cosines in _upper_triangle_blocks(x):
        pairs = cosines[cosines.isfinite()].clamp_(-1, 1)
        counts += torch.histc(pairs, HISTOGRAM_BINS, low, high)
    return counts


def count_neighbors(edges: Tensor, items: int) -> Tensor:
    """How many neighbours each item has.  (2, E) -> (N,)"""
    return edges[0].bincount(minlength=items)


def build_adjacency(edges: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Ones where there is an edge, in compressed rows.  (2, E) -> sparse (N, M)"""
    row, column = edges[:, (edges[0] * shape[1] + edges[1]).argsort()]
    start = F.pad(row.bincount(minlength=shape[0]).cumsum(0), (1, 0))
    ones = torch.ones(len(row), dtype=dtype, device=row.device)
    return torch.sparse_csr_tensor(start, column, ones, shape, check_invariants=False)
