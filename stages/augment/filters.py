"""Filters of paraphrases, and the reason why a paraphrase is rejected.

Texts are compared literally, ignoring case and punctuation, and semantically, by the cosine of
MiniLM's embeddings in languages that MiniLM supports.
"""

from collections.abc import Iterable

import regex
from rapidfuzz import fuzz

from stages.augment.rule_paraphraser import normalize_text
from stages.shared.core.config import Field, config_class

# Reasons for rejection, keys of summary.json.
EMPTY = "empty"
TOO_LONG = "too long"
REFUSAL = "refusal"
DUPLICATE_OF_ORIGINAL = "near-duplicate of the original"
DUPLICATE_OF_PARAPHRASE = "near-duplicate of a paraphrase"
IN_OTHER_SPLIT = "stands in another split"
DRIFT = "drift"

# The start of a language model's answer that is a refusal and not a paraphrase.
CANNOT_PATTERN = r"(?:can'?t|cannot|won'?t|am unable|am not able)"
REFUSAL_PATTERN = regex.compile(
    rf"\s*(?:i'?m (?:very |so )?sorry\b.{{0,60}}\b{CANNOT_PATTERN}\b"
    rf"|(?:sorry|apologies|unfortunately)\b[^.]{{0,40}}\bi {CANNOT_PATTERN}\b"
    rf"|i {CANNOT_PATTERN} (?:to )?(?:help|assist|comply|fulfil|provide|paraphrase|rephrase"
    r"|reword|rewrite|create|generate)|as an ai\b|as a (?:large )?language model\b)",
    regex.IGNORECASE,
)


@config_class
class ParaphraseFilterConfig:
    """The section `augment.filters`."""

    near_duplicate_threshold: float = Field(
        gt=0, le=1, description="text similarity from which two texts are duplicates"
    )
    max_length_ratio: float = Field(ge=0, description="maximum length relative to the original")
    short_text_characters: int = Field(
        ge=0, description="a text up to this length is never too long, characters"
    )
    min_semantic_similarity: float | None = Field(
        ge=-1, le=1, description="MiniLM cosine to the original; null: not measured"
    )
    max_tokens: int = Field(ge=2, le=512, description="per text for MiniLM; the rest is cut")


def find_rejection_reason(
    text: str,
    original: str,
    siblings: Iterable[str],
    other_split_texts: set[str],
    config: ParaphraseFilterConfig,
) -> str:
    """Why a paraphrase is rejected by its length or its literal similarity; "" if it is not.

    siblings: accepted paraphrases of the same original. other_split_texts: the normalized texts of
    the other splits.
    """
    normalized = normalize_text(text)
    if not normalized:
        return EMPTY
    if len(text) > max(config.short_text_characters, config.max_length_ratio * len(original)):
        return TOO_LONG

    def is_duplicate(other: str) -> bool:
        similarity = compute_text_similarity(normalized, normalize_text(other))
        return similarity >= config.near_duplicate_threshold

    if is_duplicate(original):
        return DUPLICATE_OF_ORIGINAL
    if any(map(is_duplicate, siblings)):
        return DUPLICATE_OF_PARAPHRASE
    return IN_OTHER_SPLIT if normalized in other_split_texts else ""


def is_refusal(text: str) -> bool:
    """Whether a language model refuses to paraphrase, instead of giving a paraphrase."""
    return bool(REFUSAL_PATTERN.match(text.replace("\u2019", "'")))


def compute_text_similarity(a: str, b: str) -> float:
    """Literal similarity, 0 to 1: 1 - distance by insertions and deletions / sum of lengths."""
    return fuzz.ratio(a, b) / 100


class SemanticSimilarity:
    """Cosines of MiniLM's embeddings; the model is loaded at the first use."""

    def __init__(self, max_tokens: int):
        self.max_tokens, self.embedder = max_tokens, None

    def compute_cosines(self, original: str, texts: list[str]) -> list[float]:
        if self.embedder is None:
            from stages.shared.similarity import embedders

            self.embedder = embedders.MiniLMEmbedder(self.max_tokens)
        original_row, *rows = self.embedder.embed_normalized([original, *texts])
        return [float((original_row * row).sum()) for row in rows]

    @staticmethod
    def supports_language(language: str) -> bool:
        return language == "en"
