"""Chunks to look through by eye: are those of an article coherent, and different enough to compare?

reads   05_chunk/<corpus>/chunks.parquet and similarities.parquet

A pair of chunks that are nearly the same teaches mscDPO nothing; one without anything in common
teaches only what any text of another article would.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from stages.shared.core import schemas


@dataclass(frozen=True)
class SimilarityThresholds:
    """Of the similarity of two texts, 0 to 1, both included."""

    near_identical: float
    unrelated: float

    def flag_similarity(self, similarity: float) -> str:
        """What to say of a pair: near-identical, unrelated or nothing."""
        if similarity >= self.near_identical:
            return "near-identical"
        return "unrelated" if similarity <= self.unrelated else ""


@dataclass(frozen=True)
class ReviewedArticle:
    """The chunks of an article in order of position, and how alike each is to each."""

    title: str
    language: str
    chunks: list[dict]  # position and text
    similarities: list[list[float]]
    flags: list[list[str]]  # of the same pairs; nothing for a chunk and itself

    def flagged_pairs(self) -> dict[str, list[str]]:
        """The pairs of each flag that the article has, by their positions."""
        found = defaultdict(list)
        for a, b in combinations(range(len(self.chunks)), 2):
            if self.flags[a][b]:
                pair = f"{self.chunks[a]['position']} and {self.chunks[b]['position']}"
                found[self.flags[a][b]].append(pair)
        return dict(found)


@dataclass(frozen=True)
class ChunkReview:
    articles: list[ReviewedArticle]
    counts: dict[str, int]  # over the whole corpus


def load_chunk_review(folder: Path, count: int, bounds: SimilarityThresholds) -> ChunkReview:
    """Of 05_chunk/<corpus>: the first articles of the train split with chunks to compare."""
    rows = schemas.read_parquet(folder / "similarities.parquet", schemas.SIMILARITIES)
    alike: dict[str, list[tuple[int, list[float]]]] = defaultdict(list)
    for row in rows:
        alike[row["record"]].append((row["position"], row["similarities"]))
    matrices = {record: [values for _, values in sorted(alike[record])] for record in sorted(alike)}
    chunks = schemas.read_parquet(folder / "chunks.parquet", schemas.CHUNKS)
    train = {chunk["record"] for chunk in chunks if chunk["split"] == "train"}
    names = [record for record in matrices if record in train and len(matrices[record]) > 1]
    chosen: dict[str, list[dict]] = {record: [] for record in names[:count]}
    for chunk in chunks:
        if chunk["record"] in chosen:
            chosen[chunk["record"]].append(chunk)
    articles = [_build_article(chosen[name], matrices[name], bounds) for name in chosen]
    return ChunkReview(articles, count_flags(list(matrices.values()), bounds))


def _build_article(
    chunks: list[dict], similarities: list[list[float]], bounds: SimilarityThresholds
) -> ReviewedArticle:
    chunks = sorted(chunks, key=lambda chunk: chunk["position"])
    flags = [
        [
            "" if column == row else bounds.flag_similarity(value)
            for column, value in enumerate(values)
        ]
        for row, values in enumerate(similarities)
    ]
    first = chunks[0]
    return ReviewedArticle(first["title"], first["language"], chunks, similarities, flags)


def count_flags(matrices: list[list[list[float]]], bounds: SimilarityThresholds) -> dict[str, int]:
    """Articles and pairs of the corpus, and how many are flagged.

    An article is unrelated if no two of its chunks have anything in common.
    """
    flags = [
        [bounds.flag_similarity(value) for value in pairwise_similarities(matrix)]
        for matrix in matrices
    ]
    return {
        "articles": len(matrices),
        "single": sum(not of_article for of_article in flags),
        "pairs": sum(len(of_article) for of_article in flags),
        "near_identical_pairs": sum(f.count("near-identical") for f in flags),
        "near_identical_articles": sum("near-identical" in f for f in flags),
        "unrelated_pairs": sum(f.count("unrelated") for f in flags),
        "unrelated_articles": sum(set(f) == {"unrelated"} for f in flags),
    }


def pairwise_similarities(matrix: list[list[float]]) -> Iterator[float]:
    """The similarity of every two chunks of an article."""
    return (matrix[a][b] for a, b in combinations(range(len(matrix)), 2))
