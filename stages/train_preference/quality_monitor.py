"""What every preference phase watches: how good the texts are that the present weights write.

A policy can write ever worse while its loss and its ranking look perfect.
"""

from collections.abc import Callable
from pathlib import Path

from rapidfuzz.distance import Indel

from stages.shared.data.cache import batched
from stages.shared.generation import generator as generators
from stages.shared.metrics import grounding

TextScorer = Callable[[dict, str], float]  # chunk, written text -> 0 to 1


def build_scorer(ingest: Path) -> TextScorer:
    """How good a written text is: its grounding; elsewhere its likeness to the best reference."""
    slots = grounding.load_slots(ingest)
    if slots is None:
        return lambda row, text: max(
            Indel.normalized_similarity(reference, text) for reference in row["references"]
        )
    truth = grounding.load_facts(ingest)

    def score(row: dict, text: str) -> float:
        facts = truth[row["record"], row["position"]]
        return grounding.mean_slot_score(grounding.score_slots(text, facts, slots))

    return score


def generate_texts(
    writer: generators.TextGenerator,
    items,
    indices: list[int],
    generation: generators.GenerationConfig,
) -> list[list[str]]:
    """What the present weights write about some items: one text a chunk of each."""
    texts: list[list[str]] = []
    for part in batched(indices, generation.batch_size):
        texts += writer.generate(items.batch(part), generation).texts
    return texts


def compute_mean_score(
    items, indices: list[int], texts: list[list[str]], score: TextScorer
) -> float:
    """Over all chunks of these items."""
    scores = [
        score(row, text)
        for index, written in zip(indices, texts, strict=True)
        for row, text in zip(items.chunks_of(index), written, strict=True)
    ]
    return sum(scores) / len(scores)


def build_monitor(
    writer: generators.TextGenerator, watched, run: generators.GeneratorRun, score: TextScorer
) -> Callable[[], float]:
    """A function that writes the watched items with the present weights and scores the texts."""
    indices = list(range(len(watched)))

    def watch() -> float:
        texts = generate_texts(writer, watched, indices, run.generation)
        return compute_mean_score(watched, indices, texts, score)

    return watch
