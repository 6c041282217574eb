"""The quality of generated texts, which every preference phase monitors.

A policy can generate ever worse texts while its loss and its ranking look perfect.
"""

from collections.abc import Callable
from pathlib import Path

from rapidfuzz.distance import Indel

from stages.shared.data.cache import batched
from stages.shared.generation import generator as generators
from stages.shared.generation.article_dataset import ArticleDataset
from stages.shared.generation.chunk_dataset import ChunkDataset
from stages.shared.metrics import grounding

TextScorer = Callable[[dict, str], float]  # chunk, generated text -> 0 to 1


def build_scorer(ingest: Path) -> TextScorer:
    """Scores a text by its grounding, or by its similarity to the best reference.

    Only synthetic corpora have the facts that grounding needs.
    """
    slots = grounding.load_slots(ingest)
    if slots is None:
        return lambda row, text: max(
            Indel.normalized_similarity(reference, text) for reference in row["references"]
        )
    facts = grounding.load_facts(ingest)

    def score(row: dict, text: str) -> float:
        chunk_facts = facts[row["record"], row["position"]]
        return grounding.mean_slot_score(grounding.score_slots(text, chunk_facts, slots))

    return score


def generate_texts(
    generator: generators.AnyGenerator,
    dataset: ChunkDataset | ArticleDataset,
    indices: list[int],
    generation: generators.GenerationConfig,
) -> list[list[str]]:
    """Texts for some items with the current weights: one per chunk of each item."""
    texts: list[list[str]] = []
    for part in batched(indices, generation.batch_size):
        texts += generator.generate(dataset.batch(part), generation).texts
    return texts


def compute_mean_score(
    dataset: ChunkDataset | ArticleDataset,
    indices: list[int],
    texts: list[list[str]],
    score: TextScorer,
) -> float:
    """The mean over all chunks of these items."""
    scores = [
        score(row, text)
        for index, item_texts in zip(indices, texts, strict=True)
        for row, text in zip(dataset.get_chunks(index), item_texts, strict=True)
    ]
    return sum(scores) / len(scores)


def build_monitor(
    generator: generators.AnyGenerator,
    dataset: ChunkDataset | ArticleDataset,
    run: generators.GeneratorRun,
    score: TextScorer,
) -> Callable[[], float]:
    """A function that generates texts for the whole dataset and returns their mean score."""
    indices = list(range(len(dataset)))

    def monitor() -> float:
        texts = generate_texts(generator, dataset, indices, run.generation)
        return compute_mean_score(dataset, indices, texts, score)

    return monitor
