"""Every score that compares written texts with their references, over rows of PREDICTIONS.

The scorers are those of metrics.py. Scores by tokens depend on the tokenizer, and Chinese has two
that the field uses: the first of a language gives the main figures, each further one its own.
"""

from typing import Any

from stages.evaluate import text_metrics
from stages.evaluate.text_metrics import (
    CorpusScore,
    TokenizedPrediction,
    TokenizerName,
    tokenize_text,
)
from stages.shared.metrics.common import evenly_spaced_indices

PredictionRows = list[dict]  # of PREDICTIONS
DEFAULT_TOKENIZER: TokenizerName = "words"  # the rule for languages that name none


def tokenize_rows(
    rows: PredictionRows, tokenizers: dict[str, TokenizerName]
) -> list[TokenizedPrediction]:
    """The texts and references of the rows, by the tokenizer of each row's language."""

    def cut(text: str, language: str) -> str:
        return tokenize_text(text, tokenizers.get(language, DEFAULT_TOKENIZER))

    return [
        TokenizedPrediction(
            cut(row["text"], row["language"]),
            [cut(reference, row["language"]) for reference in row["references"]],
        )
        for row in rows
    ]


def select_primary_tokenizers(
    tokenizers: dict[str, list[TokenizerName]],
) -> dict[str, TokenizerName]:
    """The tokenizer of each language that the main figures are by."""
    return {language: names[0] for language, names in tokenizers.items()}


def select_extra_tokenizers(
    tokenizers: dict[str, list[TokenizerName]], rows: PredictionRows
) -> dict[TokenizerName, dict[str, TokenizerName]]:
    """Each further tokenizer of the rows' languages, with the one of every language beside it."""
    languages = {row["language"] for row in rows}
    names = [n for language in sorted(languages) for n in tokenizers.get(language, [])[1:]]
    return {
        name: {language: name if name in of[1:] else of[0] for language, of in tokenizers.items()}
        for name in dict.fromkeys(names)
    }


def compute_token_scores(
    rows: PredictionRows, tokenizers: dict[str, TokenizerName], seconds: float
) -> dict[str, CorpusScore]:
    """BLEU, ROUGE-L, METEOR and CIDEr by name; seconds: after which a silent Java is broken."""
    items = tokenize_rows(rows, tokenizers)
    languages = [row["language"] for row in rows]
    most = max(sorted(set(languages)), key=languages.count)
    name, meteor = text_metrics.compute_meteor(items, most, seconds)
    return text_metrics.compute_bleu(items) | {
        "rouge_l": text_metrics.compute_rouge_l(items),
        name: meteor,
        "cider": text_metrics.compute_cider(items),
    }


def compute_sampled_bert_score(rows: PredictionRows, at_most: int) -> CorpusScore:
    """BERTScore of at most so many rows, evenly spaced; the other rows are not measured."""
    chosen = evenly_spaced_indices(len(rows), at_most)
    some = text_metrics.compute_bert_score(
        [rows[i]["text"] for i in chosen],
        [rows[i]["references"] for i in chosen],
        [rows[i]["language"] for i in chosen],
    )
    by_row = dict(zip(chosen, some.item_scores, strict=True))
    return CorpusScore(some.value, [by_row.get(i) for i in range(len(rows))], some.measured_by)


def summarize_scores(scores: dict[str, CorpusScore]) -> dict[str, float | str]:
    """The corpus scores, `unavailable` where there is none."""
    return {
        name: "unavailable" if found.value is None else found.value
        for name, found in scores.items()
    }


def describe_scorers(
    rows: PredictionRows, tokenizers: dict[str, TokenizerName], scores: dict[str, CorpusScore]
) -> dict[str, str]:
    """The tokenizer of each language of the rows, and what measured each score."""
    languages = sorted({row["language"] for row in rows})
    names = [f"{language}: {tokenizers.get(language, DEFAULT_TOKENIZER)}" for language in languages]
    return {"tokenizer": ", ".join(names)} | {
        name: found.measured_by for name, found in scores.items()
    }


def compute_extra_tokenizer_scores(
    rows: PredictionRows, tokenizers: dict[str, list[TokenizerName]], seconds: float
) -> dict[str, dict[str, Any]]:
    """The scores by tokens under each further tokenizer; empty where the languages have none."""
    found = {}
    for name, chosen in select_extra_tokenizers(tokenizers, rows).items():
        scores = compute_token_scores(rows, chosen, seconds)
        found[name] = summarize_scores(scores) | {
            "measured_by": describe_scorers(rows, chosen, scores)
        }
    return found
