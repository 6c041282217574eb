"""Tweets and posts as the batches that readers read.

A batch of B items, their texts of at most L pieces and W words, is a dict of
    ids (B, L + 2) or hidden (B, L + 2, D_t)    see stages/shared/backbones/bert.py
    pieces_mask (B, L) bool    there is a piece
    first, word_mask (B, W)    of tweets: place of each word's first piece; there is a word
    has_text, has_picture (B,) bool
    picture (B, P, D_v) or (B, 3, S, S)    its patches or pixels, zeros where there is none
    drawing (B, 3, s, s)       the picture in [-1, 1], zeros where there is none; of a model that
                               draws
    caption (B, C)             the text as ids of the captions' vocabulary, 0 after its end
    tags (B, W) or label (B,)  indices of the coding's labels; of one that training never showed 0
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import regex
import torch

from stages.models.muse import pixelcnn, show_attend_tell
from stages.shared.backbones import resnet
from stages.shared.backbones.bert import TextEncoder
from stages.shared.core import schemas
from stages.shared.data.records import SPLITS
from stages.shared.features.store import Features
from stages.shared.modeling.topics import pad_sequences
from stages.shared.training.batching import Batch

CorpusKind = Literal["tweets", "posts"]
Task = Literal["entities", "sentiment"]
TASK_BY_CORPUS_KIND: dict[CorpusKind, Task] = {
    "tweets": "entities",
    "posts": "sentiment",
}  # by kind of corpus
OUTSIDE_TAG = "O"  # the tag of a word in no entity
UNSPACED_SCRIPTS = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}]"  # written without blanks: a character is a word
)
WORD_PATTERN = regex.compile(rf"{UNSPACED_SCRIPTS}|[\S--{UNSPACED_SCRIPTS}]+", regex.VERSION1)
URL_PATTERN = r"(?:https?://|www\.)\S+"  # one word, or its parts would fill the captions of tweets
CAPTION_TOKEN_PATTERN = regex.compile(
    rf"{URL_PATTERN}|{UNSPACED_SCRIPTS}|[@#]?[\w--{UNSPACED_SCRIPTS}]+|[^\w\s]", regex.VERSION1
)


@dataclass(frozen=True)
class LabelCodec:
    """What turns records into numbers."""

    task: Task
    text_encoder: TextEncoder
    labels: list[str]
    vocabulary: show_attend_tell.Vocabulary
    max_caption_ids: int  # ids of a caption at most, both ends included
    drawing_size: int | None  # side of the picture that is drawn, pixels; None: nothing is drawn
    image_size: int | None  # side of the picture that is read, pixels; None: its patches are read

    def label_id(self, name: str) -> int:
        """The index of a label, 0 of one that training never showed."""
        return self.labels.index(name) if name in self.labels else 0


def get_words(row: dict) -> list[str]:
    """The words of a record: of a tweet as its tags count them, of a post by its blanks."""
    return row["words"] if "words" in row else WORD_PATTERN.findall(row["text"])


def get_gold_labels(row: dict) -> list[str]:
    """What is to be said of a record: a tag a word, or one label."""
    return row["tags"] if "tags" in row else [row["label"]]


def get_caption_words(row: dict) -> list[str]:
    """The words of a record as those of a caption."""
    return CAPTION_TOKEN_PATTERN.findall(" ".join(get_words(row)).lower())


def collect_labels(rows: list[dict], task: Task) -> list[str]:
    """The labels that rows show: O and the B- and I- tag of each type, or the sorted labels."""
    found = {label for row in rows for label in get_gold_labels(row)}
    if task == "sentiment":
        return sorted(found)
    types = sorted({tag[2:] for tag in found - {OUTSIDE_TAG}})
    return [OUTSIDE_TAG, *(f"{mark}-{kind}" for kind in types for mark in "BI")]


def load_splits(clean: Path, kind: CorpusKind) -> dict[str, list[dict]]:
    """Rows of CLEAN by split, those of a split in order."""
    rows = schemas.read_parquet(clean / "records.parquet", schemas.CLEAN_RECORDS[kind])
    return {split: [row for row in rows if row["split"] == split] for split in SPLITS}


class TextImageDataset:
    """Rows of CLEAN, indexed from 0, each with what is read of it and what is to be said of it.

    features: what embed wrote of their pictures; files: the content of these by sha256.
    Batches hold ids until `remember` was called.
    """

    def __init__(
        self, rows: list[dict], coding: LabelCodec, features: Features, files: dict[str, bytes]
    ):
        self.rows, self.codec, self.features = rows, coding, features
        self.files = {} if coding.image_size is None else files
        self.subwords = [coding.text_encoder.tokenize(get_words(row)) for row in rows]
        self.hidden_states: list[np.ndarray] | None = None
        self.captions = [
            coding.vocabulary.encode(get_caption_words(r), coding.max_caption_ids) for r in rows
        ]
        drawn = {} if coding.drawing_size is None else files
        self.drawings = {
            name: resnet.load_pixels(content, coding.drawing_size)
            for name, content in drawn.items()
        }
        self.num_truncated = sum(self.num_truncated_words(index) > 0 for index in range(len(rows)))

    def cache_hidden_states(self) -> "TextImageDataset":
        """Compute what never changes of all texts, or take it from the store."""
        self.hidden_states = self.codec.text_encoder.encode_frozen(
            [pieces.ids for pieces in self.subwords]
        )
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def num_truncated_words(self, index: int) -> int:
        """How many words of an item are beyond what is read."""
        return len(get_words(self.rows[index])) - self.subwords[index].num_words

    def batch(self, indices: list[int]) -> Batch:
        """What the head of this file names, of these items."""
        pieces = [self.subwords[index] for index in indices]
        hidden = (
            None if self.hidden_states is None else [self.hidden_states[index] for index in indices]
        )
        shown = self.codec.text_encoder.prepare_inputs([one.ids for one in pieces], hidden)
        names = [self.rows[index]["image"] for index in indices]
        return {
            **shown,
            "has_text": torch.tensor([bool(one.ids) for one in pieces]),
            "has_picture": torch.tensor([name is not None for name in names]),
            **self._drawing_targets(names),
            "caption": pad_sequences(
                [self.captions[index] for index in indices], show_attend_tell.PAD
            ),
            **self._image_inputs(names),
            **self._label_targets(indices),
        }

    def _drawing_targets(self, names: list[str | None]) -> Batch:
        """What is to be drawn, bytes as numbers in [-1, 1]."""
        side = self.codec.drawing_size
        if side is None:
            return {}
        found = torch.zeros(len(names), 3, side, side)
        for place, name in enumerate(names):
            if name is not None:
                found[place] = pixelcnn.uint8_to_float(self.drawings[name])
        return {"drawing": found}

    def _image_inputs(self, names: list[str | None]) -> Batch:
        """What the picture encoder gave, or is given."""
        side = self.codec.image_size
        if side is None:
            known = self.features.patches
            found = np.zeros((len(names), *known.shape[1:]), np.float32)
            for place, name in enumerate(names):
                if name is not None:
                    found[place] = known[self.features.image_index[name]]
            return {"picture": torch.from_numpy(found)}
        pixels = torch.zeros(len(names), 3, side, side)
        for place, name in enumerate(names):
            if name is not None:
                pixels[place] = resnet.normalize_pixels(resnet.load_pixels(self.files[name], side))
        return {"picture": pixels}

    def _label_targets(self, indices: list[int]) -> Batch:
        gold = [get_gold_labels(self.rows[index]) for index in indices]
        if self.codec.task == "sentiment":
            return {"label": torch.tensor([self.codec.label_id(label) for (label,) in gold])}
        first = [self.subwords[index].word_starts for index in indices]
        tags = [
            [self.codec.label_id(tag) for tag in tags[: len(places)]]
            for tags, places in zip(gold, first, strict=True)
        ]
        return {
            "first": pad_sequences(first, 0),
            "word_mask": pad_sequences([[1] * len(places) for places in first], 0).bool(),
            "tags": pad_sequences(tags, 0),
        }
