"""Retrieval of texts by images and of images by texts, beside chance.

N pairs; T different texts; D width of the features. A query is answered if one of its matches is
among the k nearest: equal texts of several images are one text, and any of its images matches it.
"""

import math

import numpy as np

RECALL_LEVELS = (1, 5, 10)
QUERIES_PER_BLOCK = 512  # bounds the memory of the similarities
MIN_STANDARD_ERRORS = 2.0  # above chance


def rank_matches(queries: np.ndarray, candidates: np.ndarray, matches: list[set[int]]) -> list[int]:
    """The rank, from 1, of the best match of each query (Q, D) among the candidates (C, D).

    matches: the matching candidates of each query. A candidate with the same score as the match
    ranks before it, so that constant features find nothing.
    """
    ranks = []
    for start in range(0, len(queries), QUERIES_PER_BLOCK):
        scores = queries[start : start + QUERIES_PER_BLOCK] @ candidates.T
        for row, own in zip(scores, matches[start:], strict=False):
            rows = sorted(own)
            best = row[rows].max()
            ranks.append(1 + int((row >= best).sum()) - int((row[rows] >= best).sum()))
    return ranks


def chance_recall(num_candidates: int, num_matches: int, k: int) -> float:
    """The probability that k random candidates contain at least one match."""
    k = min(k, num_candidates)
    return 1 - math.comb(num_candidates - num_matches, k) / math.comb(num_candidates, k)


def summarize_retrieval(
    image_vectors: np.ndarray, texts: list[str], text_vectors: np.ndarray
) -> dict:
    """Recall at 1, 5 and 10 in both directions, each with its chance.

    image_vectors (N, D): of the image of each pair. texts: of each pair. text_vectors (T, D): of
    the different texts, in order of first appearance. All vectors have unit length.
    """
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    text_of_image = [{rows[text]} for text in texts]
    images_of_text: list[set[int]] = [set() for _ in rows]
    for image, text in enumerate(texts):
        images_of_text[rows[text]].add(image)
    directions = {
        "image_to_text": (image_vectors, text_vectors, text_of_image),
        "text_to_image": (text_vectors, image_vectors, images_of_text),
    }
    summary = {name: _summarize_direction(*arrays) for name, arrays in directions.items()}
    return {"pairs": len(texts)} | summary | {"beats_chance": _beats_chance(summary)}


def _summarize_direction(
    queries: np.ndarray, candidates: np.ndarray, matches: list[set[int]]
) -> dict[str, float]:
    ranks = rank_matches(queries, candidates, matches)
    sizes = [len(own) for own in matches]
    summary: dict[str, float] = {
        "queries": len(ranks),
        "mean_reciprocal_rank": _mean_inverse(ranks),
    }
    for k in RECALL_LEVELS:
        chances = [chance_recall(len(candidates), size, k) for size in sizes]
        summary[f"recall_at_{k}"] = sum(rank <= k for rank in ranks) / len(ranks)
        summary[f"chance_at_{k}"] = sum(chances) / len(chances)
    return summary


def _mean_inverse(ranks: list[int]) -> float:
    return sum(1 / rank for rank in ranks) / len(ranks)


def _beats_chance(summary: dict[str, dict[str, float]]) -> bool:
    """Whether the mean recall of both directions is two standard errors of chance above chance.

    At the largest k whose chance is at most one half: few pairs are found by chance at 10.
    """
    directions = list(summary.values())
    for k in reversed(RECALL_LEVELS):
        chance = sum(direction[f"chance_at_{k}"] for direction in directions) / len(directions)
        if chance <= 0.5:
            recall = sum(direction[f"recall_at_{k}"] for direction in directions) / len(directions)
            queries = min(direction["queries"] for direction in directions)
            error = math.sqrt(chance * (1 - chance) / queries)
            return recall > chance + MIN_STANDARD_ERRORS * error
    return False
