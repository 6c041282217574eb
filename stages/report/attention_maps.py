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
from stages.shared.metrics.attention import NormalizedBox
from stages.shared.metrics.grounding import SlotPhrases

WORD_PATTERN = regex.compile(r"\p{Han}|[\w'-]+")  # Chinese is not written in words
ChunkKey = tuple[str, int]  # record and position


@dataclass(frozen=True)
class AttentionData:
    """What one run's part of 11_predict says of its gate and its fusion."""

    gates: list[dict]  # GATES of samples with picture and topic, whose similarity is known
    correlations: dict[str, np.ndarray]  # by phase: lambda of all channels and items
    entropies: dict[str, np.ndarray]  # by phase: of each item's fusion

    def gate_rows_by_use(self) -> dict[str, list[dict]]:
        """The gate's rows by use, in the order train, predict, as far as there are any."""
        found = {use: [r for r in self.gates if r["use"] == use] for use in ("train", "predict")}
        return {use: rows for use, rows in found.items() if rows}


@dataclass(frozen=True)
class ReportFigure:
    """A picture of attention as a file beside the page, with its words in text."""

    path: str
    width: int
    height: int
    label: str
    alt_text: str  # its alternative text


@dataclass(frozen=True)
class AttentionView:
    """The attention of one written text."""

    topic_tokens: list[
        tuple[str, float]
    ]  # of the topic, with the mean share of the patches' attention
    fusion: ReportFigure | None  # tokens x patches
    topic_maps: list[ReportFigure]  # the topic's tokens that are looked at most, over the picture
    word_maps: list[ReportFigure]  # words of the text, over the picture
    subwords: list[tuple[str, float]]  # of the text, with how narrowly the decoder looked, 0 to 1


@dataclass(frozen=True)
class AttentionExample:
    """What a look is drawn from."""

    row: dict  # of ATTENTIONS
    image: Image.Image
    center_crop: bool  # the encoder saw the picture's middle square only
    boxes: dict[str, NormalizedBox]  # by slot; only sample corpora know them
    slots: dict[str, SlotPhrases]  # those that a picture shows; only sample corpora have some


def load_attention_data(folder: Path) -> AttentionData:
    """Of 11_predict/<run>."""
    gates = schemas.read_parquet(folder / "gates.parquet", schemas.GATES)
    fusions = schemas.read_table(folder / "fusions.parquet", schemas.FUSIONS)
    correlations, entropies = {}, {}
    for phase in pc.unique(fusions["phase"]).to_pylist():
        some = fusions.filter(pc.field("phase") == phase)
        correlations[phase] = _to_float_array(pc.list_flatten(some["correlation"]))
        entropies[phase] = _to_float_array(some["entropy"])
    decided = [row for row in gates if None not in (row["sigma"], row["passed"])]
    return AttentionData(decided, correlations, entropies)


def _to_float_array(column: pa.ChunkedArray) -> np.ndarray:
    found = column.drop_null().to_numpy().astype(float)
    return found[~np.isnan(found)]


def load_attended_records(folder: Path) -> set[str]:
    """The records that 11_predict/<run> kept attention of."""
    table = schemas.read_table(folder / "attentions.parquet", schemas.ATTENTIONS)
    return set(pc.unique(table["record"]).to_pylist())


def load_attention_rows(folder: Path, records: list[str], phase: str) -> dict[ChunkKey, dict]:
    """The ATTENTIONS rows of these records and this phase; few of a large file."""
    wanted = pc.field("record").isin(pa.array(records, pa.string())) & (pc.field("phase") == phase)
    table = schemas.read_table(folder / "attentions.parquet", schemas.ATTENTIONS, wanted)
    return {(row["record"], row["position"]): row for row in table.to_pylist()}


def draw_attention_view(
    example: AttentionExample, count: int, folder: Path, name: str
) -> AttentionView:
    """Draw one example into FOLDER/attention/NAME-*.png, `count` tokens and words at most."""
    tokens, fusion, decoder = _read_matrices(example.row)
    shares = fusion.mean(axis=0) if len(fusion) else np.zeros(0)
    whole = None
    if len(fusion):
        about = f"Attention of {len(fusion)} patches (columns) to each token of the topic (rows)"
        image = heatmaps.draw_matrix(fusion.T)
        whole = _save_figure(image, folder, f"{name}-fusion", "patches by tokens", about)
    return AttentionView(
        [(token, float(share)) for token, share in zip(tokens, shares, strict=True)],
        whole,
        _draw_topic_maps(example, tokens, fusion, count, folder, name),
        _draw_word_maps(example, decoder, count, folder, name),
        compute_subword_sharpness(example.row, decoder),
    )


def _read_matrices(row: dict) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Tokens (T), fusion (P, T) and decoder (Y, P) of a row; empty where it has none."""
    tokens, ends = row["tokens"] or [], row["ends"] or []
    fusion = np.array(row["fusion"] or [], dtype=float)
    decoder = np.array(row["decoder"] or [], dtype=float)
    if not fusion.size:
        tokens = []
    fusion = fusion.reshape(-1, len(tokens)) if tokens else np.zeros((0, 0))
    decoder = decoder.reshape(len(ends), -1) if ends else np.zeros((0, 0))
    return tokens, fusion, decoder


def _draw_topic_maps(
    example: AttentionExample,
    tokens: list[str],
    fusion: np.ndarray,
    count: int,
    folder: Path,
    name: str,
) -> list[ReportFigure]:
    if not tokens or heatmaps.to_grid(fusion[:, 0]) is None:
        return []
    most = sorted(np.argsort(-fusion.mean(axis=0), kind="stable")[:count].tolist())
    maps = []
    for number, token in enumerate(most, start=1):
        weights = heatmaps.to_grid(fusion[:, token])
        image = heatmaps.draw_overlay(example.image, weights, example.center_crop, None)
        about = f"The picture, warm where its patches look at the topic's token {tokens[token]}"
        maps.append(_save_figure(image, folder, f"{name}-token-{number}", tokens[token], about))
    return maps


def _draw_word_maps(
    example: AttentionExample, decoder: np.ndarray, count: int, folder: Path, name: str
) -> list[ReportFigure]:
    if not len(decoder) or heatmaps.to_grid(decoder[0]) is None:
        return []
    maps = []
    for number, (word, slot) in enumerate(select_spans(example, decoder, count), start=1):
        text = example.row["text"][slice(*word)]
        weights = heatmaps.to_grid(
            decoder[attention.find_emitting_tokens(example.row["ends"], *word)].mean(axis=0)
        )
        box = example.boxes.get(slot)
        image = heatmaps.draw_overlay(example.image, weights, example.center_crop, box)
        about = f"The picture, warm where the writer looked while it wrote {text}"
        if box is not None:
            about += f"; the frame is around the {slot}"
        label = f"{text} ({slot})" if slot else text
        maps.append(_save_figure(image, folder, f"{name}-word-{number}", label, about))
    return maps


def select_spans(
    example: AttentionExample, decoder: np.ndarray, count: int
) -> list[tuple[tuple[int, int], str]]:
    """At most `count` spans of the text worth a map, each with its slot, "" for none.

    Where a corpus has slots: the words that name one, slots with a box first. Elsewhere the words
    with the most peaked attention, in the order of the text.
    """
    text, ends = example.row["text"], example.row["ends"]
    if example.slots:
        slots = sorted(example.slots, key=lambda slot: slot not in example.boxes)  # stable
        found = [(find_naming_word(text, example.slots[slot]), slot) for slot in slots]
        spans = [
            (span, slot)
            for span, slot in found
            if span and attention.find_emitting_tokens(ends, *span)
        ]
        return spans[:count]
    ranked = {}
    for match in WORD_PATTERN.finditer(text):
        said = attention.find_emitting_tokens(ends, *match.span())
        if said and match[0] not in ranked:
            ranked[match[0]] = (-compute_sharpness(decoder[said].mean(axis=0)), match.span())
    return [(span, "") for span in sorted(span for _, span in sorted(ranked.values())[:count])]


def find_naming_word(text: str, phrases: SlotPhrases) -> tuple[int, int] | None:
    """Where the last word stands of the first phrase of a slot: it names the thing."""
    for _, start, stop in grounding.find_phrases(text, phrases):
        return stop - len(text[start:stop].split()[-1]), stop
    return None


def compute_sharpness(weights: np.ndarray) -> float:
    """1 - entropy of weights (P,): 0 for everywhere alike, 1 for a single patch."""
    total = weights.sum()
    return (
        float(1 - attention.normalized_entropy(weights / total))
        if len(weights) > 1 and total > 0
        else 0.0
    )


def compute_subword_sharpness(row: dict, decoder: np.ndarray) -> list[tuple[str, float]]:
    """The text cut where its tokens end, each piece with how narrowly the decoder looked."""
    if not len(decoder):
        return []
    found, start = [], 0
    for end, weights in zip(row["ends"] or [], decoder, strict=True):
        if end > start:
            found.append((row["text"][start:end], compute_sharpness(weights)))
            start = end
    rest = row["text"][start:]
    return [*found, (rest, 0.0)] if rest else found


def _save_figure(
    image: Image.Image, folder: Path, name: str, label: str, about: str
) -> ReportFigure:
    path = f"attention/{name}.png"
    heatmaps.save_png(image, folder / path)
    return ReportFigure(path, *image.size, label, about)
