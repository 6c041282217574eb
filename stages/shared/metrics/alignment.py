"""How close the embeddings of texts and of their pictures lie, before and after a projection.

A row of EMBEDDINGS (stages/shared/core/schemas.py) is one vector (D,); only items that have both a text's
and a picture's are compared.
"""

from typing import Any

import numpy as np

from stages.shared.metrics.common import clustered_standard_error

PROJECTION_SIDES = ["before", "after"]


def pair_embeddings(rows: list[dict], where: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Records in their order by name, their texts' and their pictures' vectors (N, D) each."""
    of = {(row["record"], row["modality"]): row["vector"] for row in rows if row["where"] == where}
    records = sorted(record for record, modality in of if modality == "text")
    records = [record for record in records if (record, "picture") in of]
    texts, pictures = (
        np.array([of[record, modality] for record in records], dtype=float)
        for modality in ("text", "picture")
    )
    return records, texts, pictures


def summarize_alignment(rows: list[dict]) -> dict[str, Any]:
    """`measures` of each of WHERE that has vectors, or a word that says why there are none."""
    result: dict[str, Any] = {}
    for where in PROJECTION_SIDES:
        records, texts, pictures = pair_embeddings(rows, where)
        if len(records) < 2:
            result[where] = "unavailable: fewer than two items with text and picture"
        else:
            result[where] = {"items": len(records), **compute_alignment(texts, pictures)}
    return result


def compute_alignment(texts: np.ndarray, pictures: np.ndarray) -> dict[str, Any]:
    """(N, D) each, row i of one item; N at least 2.

    matched, mismatched: mean cosine of a text with its own picture, with every other one.
    difference: of the two, with its standard error over the items. distance: of the two
    modalities' centroids, over the mean of their spreads (root mean square distance of a modality's
    vectors from its centroid); 0: the clouds of texts and pictures lie on each other.
    """
    cosines = _normalize_rows(texts) @ _normalize_rows(pictures).T  # (N, N)
    items, matched = len(cosines), np.diag(cosines)
    # An item stands in its row (its text with others' pictures) and in its column.
    others = (cosines.sum(axis=0) + cosines.sum(axis=1) - 2 * matched) / (2 * (items - 1))
    differences = (matched - others).tolist()
    error = clustered_standard_error(differences, [str(number) for number in range(items)])
    return {
        "matched": float(matched.mean()),
        "mismatched": float(others.mean()),
        "difference": {"value": float(np.mean(differences)), "standard_error": error},
        "distance": _centroid_distance(texts, pictures),
    }


def _normalize_rows(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _centroid_distance(texts: np.ndarray, pictures: np.ndarray) -> float:
    centres = [side.mean(axis=0) for side in (texts, pictures)]
    spreads = [
        float(np.sqrt(((side - centre) ** 2).sum(axis=1).mean()))
        for side, centre in zip((texts, pictures), centres, strict=True)
    ]
    apart = float(np.linalg.norm(centres[0] - centres[1]))
    return apart / float(np.mean(spreads)) if any(spreads) else float("nan")
