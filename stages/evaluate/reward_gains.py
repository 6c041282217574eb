"""The rewards of whole generated articles, and the gains of the preference phase.

Both phases are evaluated on the same articles. A gain is the mean of paired differences, and its
standard error is that of the differences, so that the difficulty of the articles cancels out.
"""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from stages.shared.metrics.common import clustered_standard_error, evenly_spaced_indices
from stages.shared.similarity import embedders
from stages.shared.similarity.embedders import Embedder

GainKey = tuple  # the record first, then what distinguishes the values of a record
REWARD_DESCRIPTIONS = {  # name -> how it is measured, for metrics.json
    "literal": "1 - Levenshtein distance / longer text, in characters; best of the references",
    "semantic": "cosine of the embeddings of {embedder}; best of the references",
}


def collect_articles(rows: list[dict], max_articles: int) -> list[dict]:
    """Join prediction rows of one phase, split and inputs into at most `max_articles` articles.

    Each article is {record, language, text, references}, with its paragraphs in order of position.
    The articles are evenly spaced in the order of their records.
    """
    by_record: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["record"], row["position"])):
        by_record.setdefault(row["record"], []).append(row)
    records = list(by_record.items())
    selected = [records[i] for i in evenly_spaced_indices(len(records), max_articles)]
    return [
        {
            "record": record,
            "language": chunks[0]["language"],
            "text": embedders.join_paragraphs([chunk["text"] for chunk in chunks]),
            "references": embedders.join_references(chunks),
        }
        for record, chunks in selected
    ]


def compute_article_rewards(articles: list[dict], embedder: Embedder | None) -> list[dict]:
    """{record, literal, semantic} of each article.

    semantic is None without an embedder, or if the embedder does not support the language.
    """
    semantic = {}
    if embedder is not None:
        supported = [
            article for article in articles if embedder.supports_language(article["language"])
        ]
        if supported:
            texts = [article["text"] for article in supported]
            references = [article["references"] for article in supported]
            cosines = embedders.cosine_similarity(embedder, texts, references)
            records = (article["record"] for article in supported)
            semantic = dict(zip(records, cosines, strict=True))
    return [
        {
            "record": article["record"],
            "literal": embedders.levenshtein_similarity(article["text"], article["references"]),
            "semantic": semantic.get(article["record"]),
        }
        for article in articles
    ]


def summarize_rewards(rows: list[dict]) -> dict[str, Any]:
    """The mean of each reward over rows of `compute_article_rewards`, and their number."""
    values = {
        name: [row[name] for row in rows if row[name] is not None] for name in REWARD_DESCRIPTIONS
    }
    means = {name: fmean(known) if known else "unavailable" for name, known in values.items()}
    return means | {"articles": len(rows)}


def describe_rewards(rows: list[dict], embedder: str) -> dict[str, str]:
    """How each reward was measured, or why it is unavailable; embedder: its name."""
    if any(row["semantic"] is not None for row in rows):
        semantic = REWARD_DESCRIPTIONS["semantic"].format(embedder=embedder)
    elif embedder == "none":
        semantic = "unavailable: evaluate.embedder is none"
    else:
        semantic = f"unavailable: {embedder} does not support the language of the texts"
    return REWARD_DESCRIPTIONS | {"semantic": semantic}


def compute_gain(
    before: Mapping[GainKey, float], after: Mapping[GainKey, float]
) -> dict[str, float]:
    """Mean of after - before over the common keys, with standard error clustered by record."""
    common = [key for key in after if key in before]
    differences = [after[key] - before[key] for key in common]
    error = clustered_standard_error(differences, [key[0] for key in common])
    return {"value": fmean(differences), "standard_error": error}


def compute_gains(
    before: list[dict], after: list[dict], names: list[str]
) -> dict[str, dict[str, float]]:
    """The gain of each of the columns `names` that has values in both phases.

    Rows are {record, position (of a chunk), ...}; None is a value that was not measured.
    """
    gains = {}
    for name in names:
        phases = [
            {
                (row["record"], row.get("position")): row[name]
                for row in rows
                if row.get(name) is not None
            }
            for rows in (before, after)
        ]
        if phases[0].keys() & phases[1].keys():
            gains[name] = compute_gain(*phases)
    return gains
