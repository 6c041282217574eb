"""What every preference phase watches: how good the texts are that the present weights write.

A policy can write ever worse while its loss and its ranking look perfect.
"""

from collections.abc import Callable
from pathlib import Path

from rapidfuzz.distance import Indel

from stages.shared import grounding, runs

Score = Callable[[dict, str], float]  # chunk, written text -> 0 to 1


def score_of(ingest: Path) -> Score:
    """How good a written text is: its grounding, or its likeness to the reference elsewhere."""
    slots = grounding.load_slots(ingest)
    if slots is None:
        return lambda row, text: Indel.normalized_similarity(row["text"], text)
    truth = grounding.load_truth(ingest)

    def score(row: dict, text: str) -> float:
        facts = truth[row["record"], row["position"]]
        return grounding.total(grounding.score(text, facts, slots))

    return score


def watcher(writer: runs.Writer, watched, run: runs.Run, score: Score) -> Callable[[], float]:
    """A function that writes the watched items with the present weights and scores the texts."""

    def watch() -> float:
        scores = []
        for start in range(0, len(watched), run.generation.batch):
            indices = list(range(start, min(start + run.generation.batch, len(watched))))
            written = writer.write(watched.batch(indices), run.generation)
            for index, texts in zip(indices, written.texts, strict=True):
                scores += map(score, watched.chunks_of(index), texts)
        return sum(scores) / len(scores)

    return watch
