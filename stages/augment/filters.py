"""Which paraphrases are fit to learn from, and for what reason the others are not.

The letters of a text are compared without case and marks; its meaning by the cosine of MiniLM's
vectors, where MiniLM reads the language.
"""

from collections.abc import Iterable

import regex
from rapidfuzz import fuzz

from stages.augment.rule_paraphraser import normalize_text
from stages.shared.core.config import Field, config_class

EMPTY, TOO_LONG, REFUSAL = "empty", "too long", "refusal"
DUPLICATE_OF_ORIGINAL, DUPLICATE_OF_PARAPHRASE = (
    "near-duplicate of the original",
    "near-duplicate of a paraphrase",
)
IN_OTHER_SPLIT, DRIFT = "stands in another split", "drift"

# What models write in place of a paraphrase, at the start of it.
CANNOT_PATTERN = r"(?:can'?t|cannot|won'?t|am unable|am not able)"
REFUSAL_PATTERN = regex.compile(
    rf"\s*(?:i'?m (?:very |so )?sorry\b.{{0,60}}\b{CANNOT_PATTERN}\b"
    rf"|(?:sorry|apologies|unfortunately)\b[^.]{{0,40}}\bi {CANNOT_PATTERN}\b"
    rf"|i {CANNOT_PATTERN} (?:to )?(?:help|assist|comply|fulfil|provide|paraphrase|rephrase|reword|rewrite|"
    r"create|generate)|as an ai\b|as a (?:large )?language model\b)",
    regex.IGNORECASE,
)


@config_class
class ParaphraseFilterConfig:
    """The section `augment.filters`."""

    near_duplicate_threshold: float = Field(gt=0, le=1)  # similarity of letters, 0 to 1, from which two texts are one
    max_length_ratio: float = Field(ge=0)  # times the length of the original
    short_text_characters: int = Field(ge=0)  # characters up to which no paraphrase is too long
    min_semantic_similarity: float | None = Field(ge=-1, le=1)  # least cosine to the original; None: not measured
    max_tokens: int = Field(ge=2, le=512)  # of a text that MiniLM reads


def find_rejection_reason(
    text: str,
    original: str,
    siblings: Iterable[str],
    elsewhere: set[str],
    numbers: ParaphraseFilterConfig,
) -> str:
    """Why a paraphrase is rejected by its letters, "" if it is not.

    siblings: those of the same original that were not. elsewhere: the bare texts of other splits.
    """
    mine = normalize_text(text)
    if not mine:
        return EMPTY
    if len(text) > max(numbers.short_text_characters, numbers.max_length_ratio * len(original)):
        return TOO_LONG
    if compute_text_similarity(mine, normalize_text(original)) >= numbers.near_duplicate_threshold:
        return DUPLICATE_OF_ORIGINAL
    if any(
        compute_text_similarity(mine, normalize_text(other)) >= numbers.near_duplicate_threshold
        for other in siblings
    ):
        return DUPLICATE_OF_PARAPHRASE
    return IN_OTHER_SPLIT if mine in elsewhere else ""


def is_refusal(text: str) -> bool:
    return bool(REFUSAL_PATTERN.match(text.replace("\u2019", "'")))


def compute_text_similarity(one: str, other: str) -> float:
    """Similarity of letters, 0 to 1: 1 - distance of insertions and deletions / both lengths."""
    return fuzz.ratio(one, other) / 100


class SemanticSimilarity:
    """Cosines of MiniLM's vectors; it is loaded at the first text whose language it reads."""

    def __init__(self, max_tokens: int):
        self.max_tokens, self.embedder = max_tokens, None

    def compute_cosines(self, original: str, texts: list[str]) -> list[float]:
        if self.embedder is None:
            from stages.shared.similarity import embedders

            self.embedder = embedders.MiniLMEmbedder(self.max_tokens)
        of_original, *rows = self.embedder.embed_normalized([original, *texts])
        return [float((of_original * row).sum()) for row in rows]

    @staticmethod
    def supports_language(language: str) -> bool:
        return language == "en"
