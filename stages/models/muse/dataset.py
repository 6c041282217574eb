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
from stages.shared.modeling.topics import pad
from stages.shared.training.loop import Batch

Kind = Literal["tweets", "posts"]
Task = Literal["entities", "sentiment"]
TASKS: dict[Kind, Task] = {"tweets": "entities", "posts": "sentiment"}  # by kind of corpus
OUTSIDE = "O"  # the tag of a word in no entity
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}]"  # written without blanks: a character is a word
WORD = regex.compile(rf"{UNSPACED}|[\S--{UNSPACED}]+", regex.VERSION1)
ADDRESS = r"(?:https?://|www\.)\S+"  # one word, or its parts would fill the captions of tweets
CAPTION_WORD = regex.compile(
    rf"{ADDRESS}|{UNSPACED}|[@#]?[\w--{UNSPACED}]+|[^\w\s]", regex.VERSION1
)


@dataclass(frozen=True)
class Coding:
    """What turns records into numbers."""

    task: Task
    text_encoder: TextEncoder
    labels: list[str]
    vocabulary: show_attend_tell.Vocabulary
    caption: int  # ids of a caption at most, both ends included
    drawing: int | None  # side of the picture that is drawn, pixels; None: nothing is drawn
    pixels: int | None  # side of the picture that is read, pixels; None: its patches are read

    def label(self, name: str) -> int:
        """The index of a label, 0 of one that training never showed."""
        return self.labels.index(name) if name in self.labels else 0


def words_of(row: dict) -> list[str]:
    """The words of a record: of a tweet as its tags count them, of a post by its blanks."""
    return row["words"] if "words" in row else WORD.findall(row["text"])


def gold_of(row: dict) -> list[str]:
    """What is to be said of a record: a tag a word, or one label."""
    return row["tags"] if "tags" in row else [row["label"]]


def caption_words(row: dict) -> list[str]:
    """The words of a record as those of a caption."""
    return CAPTION_WORD.findall(" ".join(words_of(row)).lower())


def labels_of(rows: list[dict], task: Task) -> list[str]:
    """The labels that rows show: O and the B- and I- tag of each type, or the sorted labels."""
    found = {label for row in rows for label in gold_of(row)}
    if task == "sentiment":
        return sorted(found)
    types = sorted({tag[2:] for tag in found - {OUTSIDE}})
    return [OUTSIDE, *(f"{mark}-{kind}" for kind in types for mark in "BI")]


def read_rows(clean: Path, kind: Kind) -> dict[str, list[dict]]:
    """Rows of CLEAN by split, those of a split in order."""
    rows = schemas.read(clean / "records.parquet", schemas.CLEAN[kind])
    return {split: [row for row in rows if row["split"] == split] for split in SPLITS}


class Labelled:
    """Rows of CLEAN, indexed from 0, each with what is read of it and what is to be said of it.

    features: what embed wrote of their pictures; files: the content of these by sha256.
    Batches hold ids until `remember` was called.
    """

    def __init__(
        self, rows: list[dict], coding: Coding, features: Features, files: dict[str, bytes]
    ):
        self.rows, self.coding, self.features = rows, coding, features
        self.files = {} if coding.pixels is None else files
        self.pieces = [coding.text_encoder.pieces(words_of(row)) for row in rows]
        self.hidden: list[np.ndarray] | None = None
        self.captions = [coding.vocabulary.encode(caption_words(r), coding.caption) for r in rows]
        drawn = {} if coding.drawing is None else files
        self.drawings = {
            name: resnet.pixels(content, coding.drawing) for name, content in drawn.items()
        }
        self.cut = sum(self.words_cut(index) > 0 for index in range(len(rows)))

    def remember(self) -> "Labelled":
        """Compute what never changes of all texts, or take it from the store."""
        self.hidden = self.coding.text_encoder.frozen([pieces.ids for pieces in self.pieces])
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def words_cut(self, index: int) -> int:
        """How many words of an item are beyond what is read."""
        return len(words_of(self.rows[index])) - self.pieces[index].kept

    def batch(self, indices: list[int]) -> Batch:
        """What the head of this file names, of these items."""
        pieces = [self.pieces[index] for index in indices]
        hidden = None if self.hidden is None else [self.hidden[index] for index in indices]
        shown = self.coding.text_encoder.inputs([one.ids for one in pieces], hidden)
        names = [self.rows[index]["image"] for index in indices]
        return {
            **shown,
            "has_text": torch.tensor([bool(one.ids) for one in pieces]),
            "has_picture": torch.tensor([name is not None for name in names]),
            **self._drawn(names),
            "caption": pad([self.captions[index] for index in indices], show_attend_tell.PAD),
            **self._read(names),
            **self._targets(indices),
        }

    def _drawn(self, names: list[str | None]) -> Batch:
        """What is to be drawn, bytes as numbers in [-1, 1]."""
        side = self.coding.drawing
        if side is None:
            return {}
        found = torch.zeros(len(names), 3, side, side)
        for place, name in enumerate(names):
            if name is not None:
                found[place] = pixelcnn.from_bytes(self.drawings[name])
        return {"drawing": found}

    def _read(self, names: list[str | None]) -> Batch:
        """What the picture encoder gave, or is given."""
        side = self.coding.pixels
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
                pixels[place] = resnet.normalise(resnet.pixels(self.files[name], side))
        return {"picture": pixels}

    def _targets(self, indices: list[int]) -> Batch:
        gold = [gold_of(self.rows[index]) for index in indices]
        if self.coding.task == "sentiment":
            return {"label": torch.tensor([self.coding.label(label) for (label,) in gold])}
        first = [self.pieces[index].first for index in indices]
        tags = [
            [self.coding.label(tag) for tag in tags[: len(places)]]
            for tags, places in zip(gold, first, strict=True)
        ]
        return {
            "first": pad(first, 0),
            "word_mask": pad([[1] * len(places) for places in first], 0).bool(),
            "tags": pad(tags, 0),
        }
