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

Phrases = dict[str, list[str]]  # value -> the phrases that say it


@dataclass(frozen=True)
class Slots:
    """The slots of a corpus by where their truth can be seen; slot names differ between the two."""

    topic: dict[str, Phrases]
    picture: dict[str, Phrases]

    @property
    def all(self) -> dict[str, Phrases]:
        return self.topic | self.picture


def load_slots(ingest: Path) -> Slots | None:
    """The slots of a corpus, or None where its truth is unknown (every format but sample)."""
    path = ingest / "slots.json"
    if not path.exists():
        return None
    return Slots(**json.loads(path.read_text(encoding="utf-8")))


def load_truth(ingest: Path) -> dict[tuple[str, int], dict[str, str]]:
    """What is true of each chunk of a corpus with slots: (record, position) -> {slot: value}."""
    truth: dict[tuple[str, int], dict[str, str]] = {}
    for fact in schemas.read(ingest / "facts.parquet", schemas.FACTS):
        truth.setdefault((fact["record"], fact["position"]), {})[fact["slot"]] = fact["value"]
    return truth


def stated(text: str, phrases: Phrases) -> set[str]:
    """The values of one slot that the text names, in any spelling of case, width and blanks.

    A phrase counts between word boundaries only, and not inside a longer phrase of the slot:
    "heavy rain" does not say "rain".
    """
    return {value for value, _, _ in places(_normal(text), phrases)}


def places(text: str, phrases: Phrases) -> list[tuple[str, int, int]]:
    """(value, start, end) of each phrase in the text as it stands, in order.

    As `stated`, in any spelling of case and blanks; not of width, which would move the places.
    """
    pattern, value_of = _compiled(tuple((value, *said) for value, said in phrases.items()))
    found = ((value_of.get(_normal(match[0])), *match.span()) for match in pattern.finditer(text))
    return [place for place in found if place[0] is not None]


def score(text: str, truth: dict[str, str], slots: Slots) -> dict[str, int]:
    """For each slot of `truth`: 1 if the text states its true value and no other, else 0."""
    phrases = slots.all
    return {slot: int(stated(text, phrases[slot]) == {value}) for slot, value in truth.items()}


def total(scores: dict[str, int]) -> float:
    """Share of an item's slots that are stated correctly, 0 to 1."""
    return sum(scores.values()) / len(scores)


@cache
def _compiled(values: tuple[tuple[str, ...], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    value_of = {_normal(phrase): value for value, *said in values for phrase in said}
    # Alternatives are tried in order, so the longest comes first.
    longest_first = sorted(value_of, key=lambda phrase: (-len(phrase), phrase))
    escaped = (re.escape(phrase).replace(r"\ ", r"\s+") for phrase in longest_first)
    return re.compile(rf"(?<!\w)(?:{'|'.join(escaped)})(?!\w)", re.IGNORECASE), value_of


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
