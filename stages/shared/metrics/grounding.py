"""Grounding: which scene slots a text states correctly. Only sample corpora have the ground truth.

A slot (place, weather, ...) takes one of several values, and several phrases can state a value.
slots.json of 01_ingest holds them as {"topic" | "picture": {slot: {value: [phrases]}}}: the slots
that only the title states, and the slots that only the image shows.
"""

import json
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import regex

from stages.shared.core import schemas

IN_WORD = r"[\p{L}\p{M}\p{N}_]"  # marks belong to their letter: vowels of Hindi are marks
SlotPhrases = dict[str, list[str]]  # value -> the phrases that state it


@dataclass(frozen=True)
class SceneSlots:
    """The slots of a corpus, by the input that contains their values; slot names are unique.

    The field names are the keys of slots.json.
    """

    topic: dict[str, SlotPhrases]
    picture: dict[str, SlotPhrases]

    @property
    def all_slots(self) -> dict[str, SlotPhrases]:
        return self.topic | self.picture


def load_slots(ingest: Path) -> SceneSlots | None:
    """The slots of a corpus, or None if there is no ground truth (all formats but the sample)."""
    path = ingest / "slots.json"
    if not path.exists():
        return None
    return SceneSlots(**json.loads(path.read_text(encoding="utf-8")))


def load_facts(ingest: Path) -> dict[tuple[str, int], dict[str, str]]:
    """The true slot values of each chunk: (record, position) -> {slot: value}."""
    facts: dict[tuple[str, int], dict[str, str]] = {}
    for row in schemas.read_parquet(ingest / "facts.parquet", schemas.FACTS):
        facts.setdefault((row["record"], row["position"]), {})[row["slot"]] = row["value"]
    return facts


def find_stated_values(text: str, phrases: SlotPhrases) -> set[str]:
    """The values of one slot that the text states, ignoring case, character width and spacing.

    A phrase only matches between word boundaries, and not inside a longer phrase of the slot:
    "heavy rain" does not state "rain".
    """
    return {value for value, _, _ in find_phrases(_normalize_text(text), phrases)}


def find_phrases(text: str, phrases: SlotPhrases) -> list[tuple[str, int, int]]:
    """(value, start, end) of each phrase in the unmodified text, in order.

    Matches like `find_stated_values`, ignoring case and spacing, but not character width:
    normalizing the width would shift the positions.
    """
    pattern, value_of = _compile_pattern(
        tuple((value, *variants) for value, variants in phrases.items())
    )
    return [
        (value, *match.span())
        for match in pattern.finditer(text)
        if (value := value_of.get(_normalize_text(match[0]))) is not None
    ]


def score_slots(text: str, facts: dict[str, str], slots: SceneSlots) -> dict[str, int]:
    """For each slot of `facts`: 1 if the text states its true value and no other value, else 0."""
    phrases = slots.all_slots
    return {
        slot: int(find_stated_values(text, phrases[slot]) == {value})
        for slot, value in facts.items()
    }


def mean_slot_score(scores: dict[str, int]) -> float:
    """The fraction of an item's slots that are stated correctly, 0 to 1."""
    return sum(scores.values()) / len(scores)


@cache
def _compile_pattern(
    values: tuple[tuple[str, ...], ...],
) -> tuple[regex.Pattern[str], dict[str, str]]:
    value_of = {_normalize_text(text): value for value, *variants in values for text in variants}
    # Alternatives are tried in order, so the longest comes first.
    longest_first = sorted(value_of, key=lambda phrase: (-len(phrase), phrase))
    escaped = (
        regex.escape(phrase, special_only=True, literal_spaces=True).replace(" ", r"\s+")
        for phrase in longest_first
    )
    return (
        regex.compile(rf"(?<!{IN_WORD})(?:{'|'.join(escaped)})(?!{IN_WORD})", regex.IGNORECASE),
        value_of,
    )


def _normalize_text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
