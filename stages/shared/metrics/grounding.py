"""Grounding: which scene slots a text states correctly. Only sample corpora know the truth.

A slot (place, weather, ...) takes one of several values, and a value can be said in several
phrases. slots.json of 01_ingest holds them as {"topic" | "picture": {slot: {value: [phrases]}}}:
what only the title knows, and what only the picture shows.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from stages.shared.core import schemas

SlotPhrases = dict[str, list[str]]  # value -> the phrases that say it


@dataclass(frozen=True)
class SceneSlots:
    """The slots of a corpus by where their truth can be seen; slot names differ between the two."""

    topic: dict[str, SlotPhrases]
    picture: dict[str, SlotPhrases]

    @property
    def all_slots(self) -> dict[str, SlotPhrases]:
        return self.topic | self.picture


def load_slots(ingest: Path) -> SceneSlots | None:
    """The slots of a corpus, or None where its truth is unknown (every format but sample)."""
    path = ingest / "slots.json"
    if not path.exists():
        return None
    return SceneSlots(**json.loads(path.read_text(encoding="utf-8")))


def load_facts(ingest: Path) -> dict[tuple[str, int], dict[str, str]]:
    """What is true of each chunk of a corpus with slots: (record, position) -> {slot: value}."""
    truth: dict[tuple[str, int], dict[str, str]] = {}
    for fact in schemas.read_parquet(ingest / "facts.parquet", schemas.FACTS):
        truth.setdefault((fact["record"], fact["position"]), {})[fact["slot"]] = fact["value"]
    return truth


def find_stated_values(text: str, phrases: SlotPhrases) -> set[str]:
    """The values of one slot that the text names, in any spelling of case, width and blanks.

    A phrase counts between word boundaries only, and not inside a longer phrase of the slot:
    "heavy rain" does not say "rain".
    """
    return {value for value, _, _ in find_phrases(_normalize_text(text), phrases)}


def find_phrases(text: str, phrases: SlotPhrases) -> list[tuple[str, int, int]]:
    """(value, start, end) of each phrase in the text as it stands, in order.

    As `stated`, in any spelling of case and blanks; not of width, which would move the places.
    """
    pattern, value_of = _compile_pattern(tuple((value, *said) for value, said in phrases.items()))
    found = (
        (value_of.get(_normalize_text(match[0])), *match.span()) for match in pattern.finditer(text)
    )
    return [place for place in found if place[0] is not None]


def score_slots(text: str, truth: dict[str, str], slots: SceneSlots) -> dict[str, int]:
    """For each slot of `truth`: 1 if the text states its true value and no other, else 0."""
    phrases = slots.all_slots
    return {
        slot: int(find_stated_values(text, phrases[slot]) == {value})
        for slot, value in truth.items()
    }


def mean_slot_score(scores: dict[str, int]) -> float:
    """Share of an item's slots that are stated correctly, 0 to 1."""
    return sum(scores.values()) / len(scores)


@cache
def _compile_pattern(values: tuple[tuple[str, ...], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    value_of = {_normalize_text(phrase): value for value, *said in values for phrase in said}
    # Alternatives are tried in order, so the longest comes first.
    longest_first = sorted(value_of, key=lambda phrase: (-len(phrase), phrase))
    escaped = (re.escape(phrase).replace(r"\ ", r"\s+") for phrase in longest_first)
    return re.compile(rf"(?<!\w)(?:{'|'.join(escaped)})(?!\w)", re.IGNORECASE), value_of


def _normalize_text(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
