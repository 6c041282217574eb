"""Chunks for manual review: are they coherent, and different enough to be preference pairs?

reads   05_chunk/<corpus>/chunks.parquet and similarities.parquet

mscDPO learns from pairs of chunks of an article. It learns nothing from a pair of nearly identical
chunks, and from an unrelated pair no more than from chunks of different articles.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from stages.shared.core import schemas


@dataclass(frozen=True)
class SimilarityThresholds:
    """Inclusive thresholds of the similarity of two texts, 0 to 1."""

    near_identical: float
    unrelated: float

    def flag_similarity(self, similarity: float) -> str:
        """ "near-identical", "unrelated" or ""."""
        if similarity >= self.near_identical:
            return "near-identical"
        return "unrelated" if similarity <= self.unrelated else ""


@dataclass(frozen=True)
class ReviewedArticle:
    """The chunks of an article in order of position, and the similarity of each pair."""

    title: str
    language: str
    chunks: list[dict]  # position and text
    similarities: list[list[float]]
    flags: list[list[str]]  # of the same pairs; "" on the diagonal

    def flagged_pairs(self) -> dict[str, list[str]]:
        """Flag -> pairs, such as "0 and 2", named by position."""
        pairs = defaultdict(list)
        for a, b in combinations(range(len(self.chunks)), 2):
            if self.flags[a][b]:
                pair = f"{self.chunks[a]['position']} and {self.chunks[b]['position']}"
                pairs[self.flags[a][b]].append(pair)
        return dict(pairs)


@dataclass(frozen=True)
class ChunkReview:
    articles: list[ReviewedArticle]
    counts: dict[str, int]  # over the whole corpus


def load_chunk_review(folder: Path, count: int, thresholds: SimilarityThresholds) -> ChunkReview:
    """Load 05_chunk/<corpus>. Shows the first `count` train articles with at least two chunks."""
    rows = schemas.read_parquet(folder / "similarities.parquet", schemas.SIMILARITIES)
    by_record: dict[str, list[tuple[int, list[float]]]] = defaultdict(list)
    for row in rows:
        by_record[row["record"]].append((row["position"], row["similarities"]))
    matrices = {
        record: [values for _, values in sorted(by_record[record])] for record in sorted(by_record)
    }
    chunks = schemas.read_parquet(folder / "chunks.parquet", schemas.CHUNKS)
    train = {chunk["record"] for chunk in chunks if chunk["split"] == "train"}
    records = [record for record in matrices if record in train and len(matrices[record]) > 1]
    selected: dict[str, list[dict]] = {record: [] for record in records[:count]}
    for chunk in chunks:
        if chunk["record"] in selected:
            selected[chunk["record"]].append(chunk)
    articles = [
        _build_article(article_chunks, matrices[record], thresholds)
        for record, article_chunks in selected.items()
    ]
    return ChunkReview(articles, count_flags(list(matrices.values()), thresholds))


def _build_article(
    chunks: list[dict], similarities: list[list[float]], thresholds: SimilarityThresholds
) -> ReviewedArticle:
    chunks = sorted(chunks, key=lambda chunk: chunk["position"])
    flags = [
        [
            "" if column == row else thresholds.flag_similarity(value)
            for column, value in enumerate(values)
        ]
        for row, values in enumerate(similarities)
    ]
    first = chunks[0]
    return ReviewedArticle(first["title"], first["language"], chunks, similarities, flags)


def count_flags(
    matrices: list[list[list[float]]], thresholds: SimilarityThresholds
) -> dict[str, int]:
    """Count articles, pairs and flags. matrices: the similarity matrix of each article.

    An article is unrelated if all of its pairs are.
    """
    flags = [
        [thresholds.flag_similarity(value) for value in pairwise_similarities(matrix)]
        for matrix in matrices
    ]
    return {
        "articles": len(matrices),
        "single": sum(not article for article in flags),
        "pairs": sum(len(article) for article in flags),
        "near_identical_pairs": sum(article.count("near-identical") for article in flags),
        "near_identical_articles": sum("near-identical" in article for article in flags),
        "unrelated_pairs": sum(article.count("unrelated") for article in flags),
        "unrelated_articles": sum(set(article) == {"unrelated"} for article in flags),
    }


def pairwise_similarities(matrix: list[list[float]]) -> Iterator[float]:
    """The similarity of each pair of chunks of an article."""
    return (matrix[a][b] for a, b in combinations(range(len(matrix)), 2))
