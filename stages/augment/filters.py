"""Which paraphrases are fit to learn from, and for what reason the others are not.

The letters of a text are compared without case and marks; its meaning by the cosine of MiniLM's
vectors, where MiniLM reads the language.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import regex
from rapidfuzz import fuzz

from stages.augment.rule_paraphraser import bare
from stages.shared.core.config import at_least, from_to, refuse

EMPTY, LONG, REFUSAL = "empty", "too long", "refusal"
OF_ORIGINAL, OF_SIBLING = "near-duplicate of the original", "near-duplicate of a paraphrase"
ELSEWHERE, DRIFT = "stands in another split", "drift"

# What models write in place of a paraphrase, at the start of it.
CANNOT = r"(?:can'?t|cannot|won'?t|am unable|am not able)"
REFUSED = regex.compile(
    rf"\s*(?:i'?m (?:very |so )?sorry\b.{{0,60}}\b{CANNOT}\b"
    rf"|(?:sorry|apologies|unfortunately)\b[^.]{{0,40}}\bi {CANNOT}\b"
    rf"|i {CANNOT} (?:to )?(?:help|assist|comply|fulfil|provide|paraphrase|rephrase|reword|rewrite|"
    r"create|generate)|as an ai\b|as a (?:large )?language model\b)",
    regex.IGNORECASE,
)


@dataclass(frozen=True)
class Numbers:
    """The section `augment.filters`."""

    near_duplicate: float  # similarity of letters, 0 to 1, from which two texts are one
    longest: float  # times the length of the original
    short: int  # characters up to which no paraphrase is too long
    drift: float | None  # least cosine to the original; None: not measured
    max_tokens: int  # of a text that MiniLM reads

    def __post_init__(self) -> None:
        at_least(self, longest=0, short=0)
        from_to(self, 2, 512, "max_tokens")  # [CLS] and [SEP]; what MiniLM knows
        drift, alike = self.drift, self.near_duplicate
        refuse(
            {
                f"drift is {drift}: give -1 to 1, or null": not -1 <= (drift or 0) <= 1,
                f"near_duplicate is {alike}: give a share above 0, up to 1": not 0 < alike <= 1,
            }
        )


def fault(
    text: str, original: str, siblings: Iterable[str], elsewhere: set[str], numbers: Numbers
) -> str:
    """Why a paraphrase is rejected by its letters, "" if it is not.

    siblings: those of the same original that were not. elsewhere: the bare texts of other splits.
    """
    mine = bare(text)
    if not mine:
        return EMPTY
    if len(text) > max(numbers.short, numbers.longest * len(original)):
        return LONG
    if alike(mine, bare(original)) >= numbers.near_duplicate:
        return OF_ORIGINAL
    if any(alike(mine, bare(other)) >= numbers.near_duplicate for other in siblings):
        return OF_SIBLING
    return ELSEWHERE if mine in elsewhere else ""


def refuses(text: str) -> bool:
    return bool(REFUSED.match(text.replace("\u2019", "'")))


def alike(one: str, other: str) -> float:
    """Similarity of letters, 0 to 1: 1 - distance of insertions and deletions / both lengths."""
    return fuzz.ratio(one, other) / 100


class Meaning:
    """Cosines of MiniLM's vectors; it is loaded at the first text whose language it reads."""

    def __init__(self, max_tokens: int):
        self.max_tokens, self.embedder = max_tokens, None

    def cosines(self, original: str, texts: list[str]) -> list[float]:
        if self.embedder is None:
            from stages.shared.similarity import embedders

            self.embedder = embedders.MiniLM(self.max_tokens)
        of_original, *rows = self.embedder.rows([original, *texts])
        return [float((of_original * row).sum()) for row in rows]

    @staticmethod
    def reads(language: str) -> bool:
        return language == "en"
