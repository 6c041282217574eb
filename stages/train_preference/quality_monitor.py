"""What every preference phase watches: how good the texts are that the present weights write.

A policy can write ever worse while its loss and its ranking look perfect.
"""

from collections.abc import Callable
from pathlib import Path

from rapidfuzz.distance import Indel

from stages.shared.data.cache import batched
from stages.shared.generation import generator as generators
from stages.shared.metrics import grounding

Score = Callable[[dict, str], float]  # chunk, written text -> 0 to 1


def score_of(ingest: Path) -> Score:
    """How good a written text is: its grounding; elsewhere its likeness to the best reference."""
    slots = grounding.load_slots(ingest)
    if slots is None:
        return lambda row, text: max(
            Indel.normalized_similarity(reference, text) for reference in row["references"]
        )
    truth = grounding.load_truth(ingest)

    def score(row: dict, text: str) -> float:
        facts = truth[row["record"], row["position"]]
        return grounding.total(grounding.score(text, facts, slots))

    return score


def write(
    writer: generators.Writer, items, indices: list[int], generation: generators.Generation
) -> list[list[str]]:
    """What the present weights write about some items: one text a chunk of each."""
    texts: list[list[str]] = []
    for part in batched(indices, generation.batch):
        texts += writer.write(items.batch(part), generation).texts
    return texts


def mean_score(items, indices: list[int], texts: list[list[str]], score: Score) -> float:
    """Over all chunks of these items."""
    scores = [
        score(row, text)
        for index, written in zip(indices, texts, strict=True)
        for row, text in zip(items.chunks_of(index), written, strict=True)
    ]
    return sum(scores) / len(scores)


def watcher(
    writer: generators.Writer, watched, run: generators.Run, score: Score
) -> Callable[[], float]:
    """A function that writes the watched items with the present weights and scores the texts."""
    indices = list(range(len(watched)))

    def watch() -> float:
        texts = write(writer, watched, indices, run.generation)
        return mean_score(watched, indices, texts, score)

    return watch
