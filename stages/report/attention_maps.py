"""Where a run looked: its gate's decisions, its fusion, and the attention of its example articles.

reads   11_predict/<run>/gates.parquet, fusions.parquet, attentions.parquet; any may be empty
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import regex
from PIL import Image

from stages.report.plots import heatmaps
from stages.shared.core import schemas
from stages.shared.metrics import attention, grounding
from stages.shared.metrics.attention import Box
from stages.shared.metrics.grounding import Phrases

WORD = regex.compile(r"\p{Han}|[\w'-]+")  # Chinese is not written in words
Key = tuple[str, int]  # record and position


@dataclass(frozen=True)
class Seen:
    """What one run's part of 11_predict says of its gate and its fusion."""

    gates: list[dict]  # GATES of samples with picture and topic, whose similarity is known
    correlations: dict[str, np.ndarray]  # by phase: lambda of all channels and items
    entropies: dict[str, np.ndarray]  # by phase: of each item's fusion

    def decisions(self) -> dict[str, list[dict]]:
        """The gate's rows by use, in the order train, predict, as far as there are any."""
        found = {use: [r for r in self.gates if r["use"] == use] for use in ("train", "predict")}
        return {use: rows for use, rows in found.items() if rows}


@dataclass(frozen=True)
class Map:
    """A picture of attention as a file beside the page, with its words in text."""

    path: str
    width: int
    height: int
    label: str
    about: str  # its alternative text


@dataclass(frozen=True)
class Look:
    """The attention of one written text."""

    tokens: list[tuple[str, float]]  # of the topic, with the mean share of the patches' attention
    fusion: Map | None  # tokens x patches
    topic: list[Map]  # the topic's tokens that are looked at most, over the picture
    words: list[Map]  # words of the text, over the picture
    pieces: list[tuple[str, float]]  # of the text, with how narrowly the decoder looked, 0 to 1


@dataclass(frozen=True)
class Example:
    """What a look is drawn from."""

    row: dict  # of ATTENTIONS
    picture: Image.Image
    middle: bool  # the encoder saw the picture's middle square only
    boxes: dict[str, Box]  # by slot; only sample corpora know them
    slots: dict[str, Phrases]  # those that a picture shows; only sample corpora have some


def seen(folder: Path) -> Seen:
    """Of 11_predict/<run>."""
    gates = schemas.read(folder / "gates.parquet", schemas.GATES)
    fusions = schemas.read_table(folder / "fusions.parquet", schemas.FUSIONS)
    correlations, entropies = {}, {}
    for phase in pc.unique(fusions["phase"]).to_pylist():
        some = fusions.filter(pc.field("phase") == phase)
        correlations[phase] = _numbers(pc.list_flatten(some["correlation"]))
        entropies[phase] = _numbers(some["entropy"])
    decided = [row for row in gates if None not in (row["sigma"], row["passed"])]
    return Seen(decided, correlations, entropies)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    found = column.drop_null().to_numpy().astype(float)
    return found[~np.isnan(found)]


def looked_at(folder: Path) -> set[str]:
    """The records that 11_predict/<run> kept attention of."""
    table = schemas.read_table(folder / "attentions.parquet", schemas.ATTENTIONS)
    return set(pc.unique(table["record"]).to_pylist())


def attentions(folder: Path, records: list[str], phase: str) -> dict[Key, dict]:
    """The ATTENTIONS rows of these records and this phase; few of a large file."""
    wanted = pc.field("record").isin(pa.array(records, pa.string())) & (pc.field("phase") == phase)
    table = schemas.read_table(folder / "attentions.parquet", schemas.ATTENTIONS, wanted)
    return {(row["record"], row["position"]): row for row in table.to_pylist()}


def look(example: Example, count: int, folder: Path, name: str) -> Look:
    """Draw one example into FOLDER/attention/NAME-*.png, `count` tokens and words at most."""
    tokens, fusion, decoder = _matrices(example.row)
    shares = fusion.mean(axis=0) if len(fusion) else np.zeros(0)
    whole = None
    if len(fusion):
        about = f"Attention of {len(fusion)} patches (columns) to each token of the topic (rows)"
        image = heatmaps.matrix(fusion.T)
        whole = _save(image, folder, f"{name}-fusion", "patches by tokens", about)
    return Look(
        [(token, float(share)) for token, share in zip(tokens, shares, strict=True)],
        whole,
        _topic_maps(example, tokens, fusion, count, folder, name),
        _word_maps(example, decoder, count, folder, name),
        pieces(example.row, decoder),
    )


def _matrices(row: dict) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Tokens (T), fusion (P, T) and decoder (Y, P) of a row; empty where it has none."""
    tokens, ends = row["tokens"] or [], row["ends"] or []
    fusion = np.array(row["fusion"] or [], dtype=float)
    decoder = np.array(row["decoder"] or [], dtype=float)
    if not fusion.size:
        tokens = []
    fusion = fusion.reshape(-1, len(tokens)) if tokens else np.zeros((0, 0))
    decoder = decoder.reshape(len(ends), -1) if ends else np.zeros((0, 0))
    return tokens, fusion, decoder


def _topic_maps(
    example: Example, tokens: list[str], fusion: np.ndarray, count: int, folder: Path, name: str
) -> list[Map]:
    if not tokens or heatmaps.grid(fusion[:, 0]) is None:
        return []
    most = sorted(np.argsort(-fusion.mean(axis=0), kind="stable")[:count].tolist())
    maps = []
    for number, token in enumerate(most, start=1):
        weights = heatmaps.grid(fusion[:, token])
        image = heatmaps.overlay(example.picture, weights, example.middle, None)
        about = f"The picture, warm where its patches look at the topic's token {tokens[token]}"
        maps.append(_save(image, folder, f"{name}-token-{number}", tokens[token], about))
    return maps


def _word_maps(
    example: Example, decoder: np.ndarray, count: int, folder: Path, name: str
) -> list[Map]:
    if not len(decoder) or heatmaps.grid(decoder[0]) is None:
        return []
    maps = []
    for number, (word, slot) in enumerate(words(example, decoder, count), start=1):
        text = example.row["text"][slice(*word)]
        weights = heatmaps.grid(
            decoder[attention.emitting(example.row["ends"], *word)].mean(axis=0)
        )
        box = example.boxes.get(slot)
        image = heatmaps.overlay(example.picture, weights, example.middle, box)
        about = f"The picture, warm where the writer looked while it wrote {text}"
        if box is not None:
            about += f"; the frame is around the {slot}"
        label = f"{text} ({slot})" if slot else text
        maps.append(_save(image, folder, f"{name}-word-{number}", label, about))
    return maps


def words(example: Example, decoder: np.ndarray, count: int) -> list[tuple[tuple[int, int], str]]:
    """At most `count` spans of the text worth a map, each with its slot, "" for none.

    Where a corpus has slots: the words that name one, slots with a box first. Elsewhere the words
    with the most peaked attention, in the order of the text.
    """
    text, ends = example.row["text"], example.row["ends"]
    if example.slots:
        slots = sorted(example.slots, key=lambda slot: slot not in example.boxes)  # stable
        found = [(naming(text, example.slots[slot]), slot) for slot in slots]
        spans = [(span, slot) for span, slot in found if span and attention.emitting(ends, *span)]
        return spans[:count]
    ranked = {}
    for match in WORD.finditer(text):
        said = attention.emitting(ends, *match.span())
        if said and match[0] not in ranked:
            ranked[match[0]] = (-narrowness(decoder[said].mean(axis=0)), match.span())
    return [(span, "") for span in sorted(span for _, span in sorted(ranked.values())[:count])]


def naming(text: str, phrases: Phrases) -> tuple[int, int] | None:
    """Where the last word stands of the first phrase of a slot: it names the thing."""
    for _, start, stop in grounding.places(text, phrases):
        return stop - len(text[start:stop].split()[-1]), stop
    return None


def narrowness(weights: np.ndarray) -> float:
    """1 - entropy of weights (P,): 0 for everywhere alike, 1 for a single patch."""
    total = weights.sum()
    return float(1 - attention.entropy(weights / total)) if len(weights) > 1 and total > 0 else 0.0


def pieces(row: dict, decoder: np.ndarray) -> list[tuple[str, float]]:
    """The text cut where its tokens end, each piece with how narrowly the decoder looked."""
    if not len(decoder):
        return []
    found, start = [], 0
    for end, weights in zip(row["ends"] or [], decoder, strict=True):
        if end > start:
            found.append((row["text"][start:end], narrowness(weights)))
            start = end
    rest = row["text"][start:]
    return [*found, (rest, 0.0)] if rest else found


def _save(image: Image.Image, folder: Path, name: str, label: str, about: str) -> Map:
    path = f"attention/{name}.png"
    heatmaps.save(image, folder / path)
    return Map(path, *image.size, label, about)
