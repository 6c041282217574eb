"""Distances between the embeddings of texts and of their images, before and after a projection.

A row of EMBEDDINGS (stages/shared/core/schemas.py) is one vector (D,). Only items that have a text
embedding and an image embedding are compared.
"""

from typing import Any

import numpy as np

from stages.shared.metrics.common import clustered_standard_error

PROJECTION_SIDES = ["before", "after"]


def pair_embeddings(rows: list[dict], where: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The sorted records, and the (N, D) vectors of their texts and of their images."""
    vectors = {
        (row["record"], row["modality"]): row["vector"] for row in rows if row["where"] == where
    }
    records = sorted(record for record, modality in vectors if modality == "text")
    records = [record for record in records if (record, "picture") in vectors]
    texts, images = (
        np.array([vectors[record, modality] for record in records], dtype=float)
        for modality in ("text", "picture")
    )
    return records, texts, images


def summarize_alignment(rows: list[dict]) -> dict[str, Any]:
    """`compute_alignment` on each side of the projection, or the reason why it is unavailable."""
    result: dict[str, Any] = {}
    for where in PROJECTION_SIDES:
        records, texts, images = pair_embeddings(rows, where)
        if len(records) < 2:
            result[where] = "unavailable: fewer than two items with text and picture"
        else:
            result[where] = {"items": len(records), **compute_alignment(texts, images)}
    return result


def compute_alignment(texts: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    """Compare N text vectors with N image vectors.  (N, D), (N, D), N at least 2

    Row i of both arrays belongs to one item.

    matched, mismatched: mean cosine of a text with its own image, and with all other images.
    difference: matched - mismatched, with its standard error over the items.
    distance: distance of the two modalities' centroids, divided by the mean of their spreads (the
    root mean square distance of a modality's vectors from its centroid). 0 if the centroids are
    equal.
    """
    cosines = _normalize_rows(texts) @ _normalize_rows(images).T  # (N, N)
    items, matched = len(cosines), np.diag(cosines)
    # An item is in its row (its text with other images) and in its column (the reverse).
    mismatched = (cosines.sum(axis=0) + cosines.sum(axis=1) - 2 * matched) / (2 * (items - 1))
    differences = (matched - mismatched).tolist()
    error = clustered_standard_error(differences, [str(number) for number in range(items)])
    return {
        "matched": float(matched.mean()),
        "mismatched": float(mismatched.mean()),
        "difference": {"value": float(np.mean(differences)), "standard_error": error},
        "distance": _centroid_distance(texts, images),
    }


def _normalize_rows(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _centroid_distance(texts: np.ndarray, images: np.ndarray) -> float:
    centroids = [side.mean(axis=0) for side in (texts, images)]
    spreads = [
        float(np.sqrt(((side - centroid) ** 2).sum(axis=1).mean()))
        for side, centroid in zip((texts, images), centroids, strict=True)
    ]
    distance = float(np.linalg.norm(centroids[0] - centroids[1]))
    return distance / float(np.mean(spreads)) if any(spreads) else float("nan")
