"""Gate decisions, fusion and attention of a generator, and attention maps of its example texts.

reads   11_predict/<run>/gates.parquet, fusions.parquet, attentions.parquet; each may be empty
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

WORD_PATTERN = regex.compile(r"\p{Han}|[\w'-]+")  # Chinese has no spaces: one word a character
ChunkKey = tuple[str, int]  # record and position


@dataclass(frozen=True)
class AttentionData:
    """Gate decisions and fusion statistics of one run."""

    gates: list[dict]  # GATES of samples with image and topic, whose similarity is known
    correlations: dict[str, np.ndarray]  # phase -> lambda of all channels and items
    entropies: dict[str, np.ndarray]  # phase -> normalized entropy of the fusion, by item

    def gate_rows_by_use(self) -> dict[str, list[dict]]:
        """The gate's rows by use, train before predict. Uses without rows are left out."""
        by_use = {
            use: [row for row in self.gates if row["use"] == use] for use in ("train", "predict")
        }
        return {use: rows for use, rows in by_use.items() if rows}


@dataclass(frozen=True)
class ReportFigure:
    """A drawn image file of the report."""

    path: str  # relative to index.html
    width: int
    height: int
    label: str
    alt_text: str


@dataclass(frozen=True)
class AttentionView:
    """The attention of one generated text."""

    topic_tokens: list[tuple[str, float]]  # topic token, mean attention of the patches to it
    fusion: ReportFigure | None  # topic tokens x patches
    topic_maps: list[ReportFigure]  # over the image: the topic tokens with the most attention
    word_maps: list[ReportFigure]  # over the image: words of the text
    subwords: list[tuple[str, float]]  # subword, sharpness of the decoder's attention, 0 to 1


@dataclass(frozen=True)
class AttentionExample:
    """The data that an AttentionView is drawn from."""

    row: dict  # ATTENTIONS
    image: Image.Image
    crop_fraction: float | None  # as in `heatmaps.draw_overlay`
    boxes: dict[str, NormalizedBox]  # by slot; synthetic corpora only
    slots: dict[str, SlotPhrases]  # those that an image shows; synthetic corpora only


def load_attention_data(folder: Path) -> AttentionData:
    """Load from 11_predict/<run>."""
    gates = schemas.read_parquet(folder / "gates.parquet", schemas.GATES)
    fusions = schemas.read_table(folder / "fusions.parquet", schemas.FUSIONS)
    correlations, entropies = {}, {}
    for phase in fusions["phase"].unique().to_pylist():
        rows = fusions.filter(pc.field("phase") == phase)
        correlations[phase] = _to_float_array(
            pc.call_function("list_flatten", [rows["correlation"]])
        )
        entropies[phase] = _to_float_array(rows["entropy"])
    decided = [row for row in gates if None not in (row["sigma"], row["passed"])]
    return AttentionData(decided, correlations, entropies)


def _to_float_array(column: pa.ChunkedArray) -> np.ndarray:
    values = column.drop_null().to_numpy().astype(float)
    return values[~np.isnan(values)]


def load_attended_records(folder: Path) -> set[str]:
    """The records with recorded attention in 11_predict/<run>."""
    table = schemas.read_table(folder / "attentions.parquet", schemas.ATTENTIONS)
    return set(table["record"].unique().to_pylist())


def load_attention_rows(folder: Path, records: list[str], phase: str) -> dict[ChunkKey, dict]:
    """The ATTENTIONS rows of some records and one phase. The file is filtered while reading."""
    is_wanted = pc.field("record").isin(pa.array(records, pa.string())) & (
        pc.field("phase") == phase
    )
    table = schemas.read_table(folder / "attentions.parquet", schemas.ATTENTIONS, is_wanted)
    return {(row["record"], row["position"]): row for row in table.to_pylist()}


def draw_attention_view(
    example: AttentionExample, count: int, folder: Path, name: str
) -> AttentionView:
    """Draw the maps of one text into `folder`/attention/`name`-*.png.

    count: at most so many topic tokens, and so many words, get a map.
    """
    tokens, fusion, decoder = _read_matrices(example.row)
    shares = fusion.mean(axis=0) if len(fusion) else np.zeros(0)
    matrix = None
    if len(fusion):
        alt_text = f"Attention of {len(fusion)} patches (columns) to each topic token (rows)"
        image = heatmaps.draw_matrix(fusion.T)
        matrix = _save_figure(image, folder, f"{name}-fusion", "patches by tokens", alt_text)
    return AttentionView(
        [(token, float(share)) for token, share in zip(tokens, shares, strict=True)],
        matrix,
        _draw_topic_maps(example, tokens, fusion, count, folder, name),
        _draw_word_maps(example, decoder, count, folder, name),
        compute_subword_sharpness(example.row, decoder),
    )


def _read_matrices(row: dict) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Topic tokens (T), fusion (P, T) and decoder (Y, P) of a row; empty if the row has none."""
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
    if not tokens:
        return []
    largest = sorted(np.argsort(-fusion.mean(axis=0), kind="stable")[:count].tolist())
    maps = []
    for number, index in enumerate(largest, start=1):
        weights = heatmaps.to_grid(fusion[:, index])
        if weights is None:
            return []
        image = heatmaps.draw_overlay(example.image, weights, example.crop_fraction, None)
        alt_text = (
            f"The image; patches with much attention to the topic token {tokens[index]} are orange"
        )
        maps.append(_save_figure(image, folder, f"{name}-token-{number}", tokens[index], alt_text))
    return maps


def _draw_word_maps(
    example: AttentionExample, decoder: np.ndarray, count: int, folder: Path, name: str
) -> list[ReportFigure]:
    if not len(decoder):
        return []
    maps = []
    for number, (span, slot) in enumerate(select_spans(example, decoder, count), start=1):
        word = example.row["text"][slice(*span)]
        tokens = attention.find_emitting_tokens(example.row["ends"], *span)
        weights = heatmaps.to_grid(decoder[tokens].mean(axis=0))
        if weights is None:
            return []
        box = example.boxes.get(slot)
        image = heatmaps.draw_overlay(example.image, weights, example.crop_fraction, box)
        alt_text = f"The image; patches that the decoder attends to for the word {word} are orange"
        if box is not None:
            alt_text += f"; the frame marks the {slot}"
        label = f"{word} ({slot})" if slot else word
        maps.append(_save_figure(image, folder, f"{name}-word-{number}", label, alt_text))
    return maps


def select_spans(
    example: AttentionExample, decoder: np.ndarray, count: int
) -> list[tuple[tuple[int, int], str]]:
    """Select at most `count` spans of the text to map, each with its slot ("" for none).

    If the corpus has slots: the words that name a slot, slots with a box first. Otherwise: the
    words with the sharpest attention, in text order.
    """
    text, ends = example.row["text"], example.row["ends"]
    if example.slots:
        slots = sorted(example.slots, key=lambda slot: slot not in example.boxes)  # stable
        candidates = [(find_naming_word(text, example.slots[slot]), slot) for slot in slots]
        spans = [
            (span, slot)
            for span, slot in candidates
            if span and attention.find_emitting_tokens(ends, *span)
        ]
        return spans[:count]
    ranked = {}
    for match in WORD_PATTERN.finditer(text):
        tokens = attention.find_emitting_tokens(ends, *match.span())
        if tokens and match[0] not in ranked:
            ranked[match[0]] = (-compute_sharpness(decoder[tokens].mean(axis=0)), match.span())
    return [(span, "") for span in sorted(span for _, span in sorted(ranked.values())[:count])]


def find_naming_word(text: str, phrases: SlotPhrases) -> tuple[int, int] | None:
    """The span of the last word of a slot's first phrase in the text: that word is the noun."""
    for _, start, stop in grounding.find_phrases(text, phrases):
        return stop - len(text[start:stop].split()[-1]), stop
    return None


def compute_sharpness(weights: np.ndarray) -> float:
    """1 - normalized entropy of weights (P,): 0 if uniform, 1 if on a single patch."""
    total = weights.sum()
    return (
        float(1 - attention.normalized_entropy(weights / total))
        if len(weights) > 1 and total > 0
        else 0.0
    )


def compute_subword_sharpness(row: dict, decoder: np.ndarray) -> list[tuple[str, float]]:
    """The text split at its token ends, each part with the sharpness of the decoder's attention."""
    if not len(decoder):
        return []
    subwords, start = [], 0
    for end, weights in zip(row["ends"] or [], decoder, strict=True):
        if end > start:
            subwords.append((row["text"][start:end], compute_sharpness(weights)))
            start = end
    rest = row["text"][start:]
    return [*subwords, (rest, 0.0)] if rest else subwords


def _save_figure(
    image: Image.Image, folder: Path, name: str, label: str, alt_text: str
) -> ReportFigure:
    path = f"attention/{name}.png"
    heatmaps.save_png(image, folder / path)
    return ReportFigure(path, *image.size, label, alt_text)
