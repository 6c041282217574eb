"""Attention analysis: the tokens of a phrase, the patches inside a box, and entropy.

Pure functions on plain values and arrays. P image tokens, T topic tokens, Y generated tokens.
"""

from math import isqrt

import numpy as np

# left, top, right, bottom as fractions of width and height
NormalizedBox = tuple[float, float, float, float]


def compute_token_ends(tokenizer, ids: list[int]) -> list[int]:
    """The length in characters of the text up to and including each token.  (Y) -> (Y)

    The text is `tokenizer.decode(ids, skip_special_tokens=True)`. Every prefix of the tokens is
    decoded and compared with it. The first bytes of a multi-byte character decode to a different
    character, so they add no length until the last byte is there.
    """
    prefixes = [ids[: count + 1] for count in range(len(ids))]
    texts = tokenizer.batch_decode(prefixes, skip_special_tokens=True)
    ends, longest = [], 0
    for text in texts:
        longest = max(longest, _common_prefix_length(text, texts[-1]))
        ends.append(longest)
    return ends


def _common_prefix_length(a: str, b: str) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((index for index, (x, y) in pairs if x != y), min(len(a), len(b)))


def find_emitting_tokens(ends: list[int], start: int, stop: int) -> list[int]:
    """The indices of the tokens that emit a character of text[start:stop].

    ends: see `compute_token_ends`. A token that adds no length (a space, the first bytes of a
    character) counts towards the next token that does.
    """
    tokens, before = [], 0
    for token, end in enumerate(ends):
        reached = next((later for later in ends[token:] if later > before), before)
        if before < stop and start < reached:
            tokens.append(token)
        before = end
    return tokens


def normalized_entropy(weights: np.ndarray) -> np.ndarray:
    """Entropy of each row, divided by log T: 0 one position, 1 uniform.  (..., T) -> (...)

    NaN if T is 1.
    """
    size = weights.shape[-1]
    if size == 1:
        return np.full(weights.shape[:-1], np.nan)
    logs = np.log(weights, where=weights > 0, out=np.zeros(weights.shape))
    return -(weights * logs).sum(-1) / np.log(size)


def compute_spread(weights: np.ndarray) -> float:
    """Normalized entropy of the mean row: 0 if all patches attend to the same token.  (P, T)"""
    return float(normalized_entropy(weights.mean(0)))


def grid_size(patches: int) -> int | None:
    """n if `patches` tokens are an n x n grid, with or without a class token before it.

    None if they are not. A grid of one cell does not count: attention has no location in it.
    """
    for cells in (patches, patches - 1):
        if cells > 1 and isqrt(cells) ** 2 == cells:
            return isqrt(cells)
    return None


def compute_box_coverage(box: NormalizedBox, patches: int) -> np.ndarray | None:
    """The fraction of each image token's cell that a box covers.  -> (P,)

    NaN for a class token, which has no location. None if the tokens are not a grid.
    """
    size = grid_size(patches)
    if size is None:
        return None
    left, top, right, bottom = box
    cells = np.outer(_overlap(top, bottom, size), _overlap(left, right, size)).ravel()
    return np.concatenate([np.full(patches - size**2, np.nan), cells])


def _overlap(low: float, high: float, cells: int) -> np.ndarray:
    """The fraction of each of `cells` equal parts of [0, 1] that lies in [low, high]."""
    edges = np.arange(cells + 1) / cells
    return (np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)).clip(0) * cells


def compute_attention_mass(weights: np.ndarray, coverage: np.ndarray) -> float:
    """The fraction of the attention on grid cells that is inside a box.  (..., P), (P,)

    coverage: see `compute_box_coverage`. For uniform attention this is the area of the box.
    """
    in_grid = ~np.isnan(coverage)
    total = weights[..., in_grid].sum()
    return float((weights[..., in_grid] * coverage[in_grid]).sum() / total)
