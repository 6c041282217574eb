"""Reading attention: the tokens of a phrase, a box among the patches, how wide a look is.

P picture tokens, T topic tokens, Y written tokens. Pure functions on plain values and arrays.
"""

from math import isqrt

import numpy as np

NormalizedBox = tuple[
    float, float, float, float
]  # left, top, right, bottom as shares of width and height


def compute_token_ends(tokenizer, ids: list[int]) -> list[int]:
    """How many characters of the text stand once each token is there.  (Y) -> (Y)

    The text is `tokenizer.decode(ids, skip_special_tokens=True)`. It is decoded token by token and
    compared with the whole: the first bytes of a character, which decode to something else, add
    nothing until the last one comes.
    """
    begun = [ids[: count + 1] for count in range(len(ids))]
    texts = tokenizer.batch_decode(begun, skip_special_tokens=True)
    found, longest = [], 0
    for text in texts:
        longest = max(longest, _common_prefix_length(text, texts[-1]))
        found.append(longest)
    return found


def _common_prefix_length(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def find_emitting_tokens(ends: list[int], start: int, stop: int) -> list[int]:
    """The tokens that write a character of text[start:stop].

    A token that adds nothing (a blank, the first bytes of a character) belongs to what follows it.
    """
    found, before = [], 0
    for token, end in enumerate(ends):
        reached = next((later for later in ends[token:] if later > before), before)
        if before < stop and start < reached:
            found.append(token)
        before = end
    return found


def normalized_entropy(weights: np.ndarray) -> np.ndarray:
    """Entropy of rows over that of equal weights: 0 one position, 1 all alike.  (..., T) -> (...)

    NaN where T is 1: one position says nothing.
    """
    size = weights.shape[-1]
    if size == 1:
        return np.full(weights.shape[:-1], np.nan)
    logs = np.log(weights, where=weights > 0, out=np.zeros(weights.shape))
    return -(weights * logs).sum(-1) / np.log(size)


def compute_spread(weights: np.ndarray) -> float:
    """`entropy` of the mean row: 0 where all patches look at one and the same token.  (P, T)"""
    return float(normalized_entropy(weights.mean(0)))


def grid_size(patches: int) -> int | None:
    """n of P tokens that are a grid of n x n, row by row, or such a grid after a class token.

    None if they are neither. One cell is no grid: attention inside it has no place.
    """
    for cells in (patches, patches - 1):
        if cells > 1 and isqrt(cells) ** 2 == cells:
            return isqrt(cells)
    return None


def compute_box_coverage(box: NormalizedBox, patches: int) -> np.ndarray | None:
    """The share of each picture token's cell that a box covers.  -> (P,)

    NaN at a class token, which has no place. None if the tokens are no grid.
    """
    size = grid_size(patches)
    if size is None:
        return None
    left, top, right, bottom = box
    cells = np.outer(_overlap(top, bottom, size), _overlap(left, right, size)).ravel()
    return np.concatenate([np.full(patches - size**2, np.nan), cells])


def _overlap(low: float, high: float, side: int) -> np.ndarray:
    """The share of each of `side` equal parts of [0, 1] that lies in [low, high]."""
    edges = np.arange(side + 1) / side
    return (np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)).clip(0) * side


def compute_attention_mass(weights: np.ndarray, covered: np.ndarray) -> float:
    """The share of attention inside a box, of all that falls on cells.  (..., P), (P,) of `cover`

    Attention that is the same everywhere has the box's area inside it.
    """
    placed = ~np.isnan(covered)
    total = weights[..., placed].sum()
    return float((weights[..., placed] * covered[placed]).sum() / total)
