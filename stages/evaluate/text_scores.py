"""All scores that compare generated texts with their references, from rows of PREDICTIONS.

text_metrics.py implements the scores. Those that count tokens depend on the tokenizer, and two
tokenizers are common for Chinese: the first tokenizer of a language is used for the main scores,
and each additional one gets scores of its own.
"""

from dataclasses import dataclass
from typing import Any

from stages.evaluate import text_metrics
from stages.evaluate.bert_score import BertScorer
from stages.evaluate.text_metrics import CorpusScore, MeteorJar, TokenizedPrediction
from stages.shared.data.tokenization import TokenizerName, tokenize_text
from stages.shared.metrics.common import evenly_spaced_indices


@dataclass(frozen=True)
class Scorers:
    """What scores texts outside this process's Python code."""

    meteor_jar: MeteorJar
    bert_scorer: BertScorer


PredictionRows = list[dict]  # of PREDICTIONS, or articles of reward_gains.collect_articles
DEFAULT_TOKENIZER: TokenizerName = "words"  # for languages that are not in `evaluate.tokenizers`


def tokenize_rows(
    rows: PredictionRows, tokenizers: dict[str, TokenizerName]
) -> list[TokenizedPrediction]:
    """Tokenize texts and references with the tokenizer of each row's language."""

    def tokenize(text: str, language: str) -> str:
        return tokenize_text(text, tokenizers.get(language, DEFAULT_TOKENIZER))

    return [
        TokenizedPrediction(
            tokenize(row["text"], row["language"]),
            [tokenize(reference, row["language"]) for reference in row["references"]],
        )
        for row in rows
    ]


def select_primary_tokenizers(
    tokenizers: dict[str, list[TokenizerName]],
) -> dict[str, TokenizerName]:
    """The tokenizer of each language for the main scores."""
    return {language: names[0] for language, names in tokenizers.items()}


def select_extra_tokenizers(
    tokenizers: dict[str, list[TokenizerName]], rows: PredictionRows
) -> dict[TokenizerName, dict[str, TokenizerName]]:
    """Each additional tokenizer of the rows' languages -> the tokenizer of every language.

    Languages without that additional tokenizer keep their first one.
    """
    languages = {row["language"] for row in rows}
    extra: list[TokenizerName] = [
        name for code in sorted(languages) for name in tokenizers.get(code, [])[1:]
    ]
    return {
        name: {
            language: name if name in names[1:] else names[0]
            for language, names in tokenizers.items()
        }
        for name in dict.fromkeys(extra)
    }


def compute_token_scores(
    rows: PredictionRows, tokenizers: dict[str, TokenizerName], meteor_jar: MeteorJar
) -> dict[str, CorpusScore]:
    """BLEU, ROUGE-L, METEOR and CIDEr by name."""
    items = tokenize_rows(rows, tokenizers)
    languages = [row["language"] for row in rows]
    main_language = max(sorted(set(languages)), key=languages.count)
    meteor_name, meteor = text_metrics.compute_meteor(items, main_language, meteor_jar)
    return text_metrics.compute_bleu(items) | {
        "rouge_l": text_metrics.compute_rouge_l(items),
        meteor_name: meteor,
        "cider": text_metrics.compute_cider(items),
    }


def compute_sampled_bert_score(
    rows: PredictionRows, max_samples: int, scorer: BertScorer
) -> CorpusScore:
    """BERTScore of at most `max_samples` evenly spaced rows; the scores of the others are None."""
    indices = evenly_spaced_indices(len(rows), max_samples)
    score = text_metrics.compute_bert_score(
        [rows[i]["text"] for i in indices],
        [rows[i]["references"] for i in indices],
        [rows[i]["language"] for i in indices],
        scorer,
    )
    by_row = dict(zip(indices, score.item_scores, strict=True))
    return CorpusScore(score.value, [by_row.get(i) for i in range(len(rows))], score.measured_by)


def summarize_scores(scores: dict[str, CorpusScore]) -> dict[str, float | str]:
    """The corpus scores; `unavailable` for a score without a value."""
    return {
        name: "unavailable" if score.value is None else score.value
        for name, score in scores.items()
    }


def describe_scorers(
    rows: PredictionRows, tokenizers: dict[str, TokenizerName], scores: dict[str, CorpusScore]
) -> dict[str, str]:
    """The tokenizer of each language of the rows, and the implementation of each score."""
    languages = sorted({row["language"] for row in rows})
    names = [f"{language}: {tokenizers.get(language, DEFAULT_TOKENIZER)}" for language in languages]
    return {"tokenizer": ", ".join(names)} | {
        name: score.measured_by for name, score in scores.items()
    }


def compute_extra_tokenizer_scores(
    rows: PredictionRows, tokenizers: dict[str, list[TokenizerName]], meteor_jar: MeteorJar
) -> dict[str, dict[str, Any]]:
    """The token scores with each additional tokenizer; empty if the languages have none."""
    result = {}
    for name, selected in select_extra_tokenizers(tokenizers, rows).items():
        scores = compute_token_scores(rows, selected, meteor_jar)
        result[name] = summarize_scores(scores) | {
            "measured_by": describe_scorers(rows, selected, scores)
        }
    return result
