"""The rewards of whole written articles, and what the preference phase gained, by record.

Both phases are rewarded on the same articles, so that a gain is a mean of differences by pairs, and
its standard error that of the differences: what makes one article harder than another drops out.
"""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from stages.shared.metrics.common import clustered_standard_error, evenly_spaced_indices
from stages.shared.similarity import embedders
from stages.shared.similarity.embedders import Embedder

GainKey = tuple  # the record, and what else tells one value of it from another
REWARD_DESCRIPTIONS = {  # name -> what measures it
    "literal": "1 - Levenshtein distance / longer text, in characters; best of the references",
    "semantic": "cosine of MiniLM's means of tokens; best of the references",
}

UNSUPPORTED_LANGUAGE = "unavailable: MiniLM does not read the texts"


def collect_articles(rows: list[dict], at_most: int) -> list[dict]:
    """At most so many articles of prediction rows of one phase, split and inputs, evenly spaced.

    Each {record, language, text, references}, of its paragraphs in order of position.
    """
    by_record: dict[str, list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["record"], row["position"])):
        by_record.setdefault(row["record"], []).append(row)
    records = list(by_record.items())
    return [
        {
            "record": record,
            "language": chunks[0]["language"],
            "text": embedders.join_paragraphs([chunk["text"] for chunk in chunks]),
            "references": embedders.join_references(chunks),
        }
        for record, chunks in map(records.__getitem__, evenly_spaced_indices(len(records), at_most))
    ]


def compute_article_rewards(written: list[dict], embedder: Embedder | None) -> list[dict]:
    """{record, literal, semantic} of each of `articles`; semantic None where nobody reads it."""
    read = [
        one
        for one in written
        if embedder is not None and embedder.supports_language(one["language"])
    ]
    found = {}
    if read:
        texts, references = [one["text"] for one in read], [one["references"] for one in read]
        cosines = embedders.cosine_similarity(embedder, texts, references)
        found = dict(zip((one["record"] for one in read), cosines, strict=True))
    return [
        {
            "record": one["record"],
            "literal": embedders.levenshtein_similarity(one["text"], one["references"]),
            "semantic": found.get(one["record"]),
        }
        for one in written
    ]


def summarize_rewards(rows: list[dict]) -> dict[str, Any]:
    """The mean of each reward over the rows of `rewarded`, and how many articles there are."""
    means = {
        name: [row[name] for row in rows if row[name] is not None] for name in REWARD_DESCRIPTIONS
    }
    found = {name: fmean(values) if values else "unavailable" for name, values in means.items()}
    return found | {"articles": len(rows)}


def describe_rewards(rows: list[dict]) -> dict[str, str]:
    """What measures each reward, or why there is none."""
    read = any(row["semantic"] is not None for row in rows)
    return REWARD_DESCRIPTIONS if read else REWARD_DESCRIPTIONS | {"semantic": UNSUPPORTED_LANGUAGE}


def compute_gain(
    before: Mapping[GainKey, float], after: Mapping[GainKey, float]
) -> dict[str, float]:
    """Mean of after - before over what has both, with standard error clustered by record."""
    both = [key for key in after if key in before]
    differences = [after[key] - before[key] for key in both]
    error = clustered_standard_error(differences, [key[0] for key in both])
    return {"value": fmean(differences), "standard_error": error}


def compute_gains(
    before: list[dict], after: list[dict], names: list[str]
) -> dict[str, dict[str, float]]:
    """The gain of each of these columns that both phases have values of.

    Rows {record, position (of a chunk), ...}, a value None where it was not measured.
    """
    found = {}
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
            found[name] = compute_gain(*phases)
    return found
