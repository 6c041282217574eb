"""Every score that compares written texts with their references, over rows of PREDICTIONS.

The scorers are those of metrics.py. Scores by tokens depend on the tokenizer, and Chinese has two
that the field uses: the first of a language gives the main figures, each further one its own.
"""

from typing import Any

from stages.evaluate import text_metrics
from stages.evaluate.text_metrics import Item, Score, Tokenizer, tokenise
from stages.shared.metrics.common import evenly

Rows = list[dict]  # of PREDICTIONS
ANY_LANGUAGE: Tokenizer = "words"  # the rule for languages that name none


def tokenised(rows: Rows, tokenizers: dict[str, Tokenizer]) -> list[Item]:
    """The texts and references of the rows, by the tokenizer of each row's language."""

    def cut(text: str, language: str) -> str:
        return tokenise(text, tokenizers.get(language, ANY_LANGUAGE))

    return [
        Item(
            cut(row["text"], row["language"]),
            [cut(reference, row["language"]) for reference in row["references"]],
        )
        for row in rows
    ]


def first(tokenizers: dict[str, list[Tokenizer]]) -> dict[str, Tokenizer]:
    """The tokenizer of each language that the main figures are by."""
    return {language: names[0] for language, names in tokenizers.items()}


def further(
    tokenizers: dict[str, list[Tokenizer]], rows: Rows
) -> dict[Tokenizer, dict[str, Tokenizer]]:
    """Each further tokenizer of the rows' languages, with the one of every language beside it."""
    languages = {row["language"] for row in rows}
    names = [n for language in sorted(languages) for n in tokenizers.get(language, [])[1:]]
    return {
        name: {language: name if name in of[1:] else of[0] for language, of in tokenizers.items()}
        for name in dict.fromkeys(names)
    }


def by_tokens(rows: Rows, tokenizers: dict[str, Tokenizer], seconds: float) -> dict[str, Score]:
    """BLEU, ROUGE-L, METEOR and CIDEr by name; seconds: after which a silent Java is broken."""
    items = tokenised(rows, tokenizers)
    languages = [row["language"] for row in rows]
    most = max(sorted(set(languages)), key=languages.count)
    name, meteor = text_metrics.meteor(items, most, seconds)
    return text_metrics.bleu(items) | {
        "rouge_l": text_metrics.rouge_l(items),
        name: meteor,
        "cider": text_metrics.cider(items),
    }


def bert_score(rows: Rows, at_most: int) -> Score:
    """BERTScore of at most so many rows, evenly spaced; the other rows are not measured."""
    chosen = evenly(len(rows), at_most)
    some = text_metrics.bert_score(
        [rows[i]["text"] for i in chosen],
        [rows[i]["references"] for i in chosen],
        [rows[i]["language"] for i in chosen],
    )
    by_row = dict(zip(chosen, some.items, strict=True))
    return Score(some.value, [by_row.get(i) for i in range(len(rows))], some.by)


def summary(scores: dict[str, Score]) -> dict[str, float | str]:
    """The corpus scores, `unavailable` where there is none."""
    return {
        name: "unavailable" if found.value is None else found.value
        for name, found in scores.items()
    }


def measured_by(
    rows: Rows, tokenizers: dict[str, Tokenizer], scores: dict[str, Score]
) -> dict[str, str]:
    """The tokenizer of each language of the rows, and what measured each score."""
    languages = sorted({row["language"] for row in rows})
    names = [f"{language}: {tokenizers.get(language, ANY_LANGUAGE)}" for language in languages]
    return {"tokenizer": ", ".join(names)} | {name: found.by for name, found in scores.items()}


def by_further_tokenizers(
    rows: Rows, tokenizers: dict[str, list[Tokenizer]], seconds: float
) -> dict[str, dict[str, Any]]:
    """The scores by tokens under each further tokenizer; empty where the languages have none."""
    found = {}
    for name, chosen in further(tokenizers, rows).items():
        scores = by_tokens(rows, chosen, seconds)
        found[name] = summary(scores) | {"measured_by": measured_by(rows, chosen, scores)}
    return found
