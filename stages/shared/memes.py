"""Memes as the batches that MM-ORIENT reads.

A batch of B memes, their texts of at most L pieces, is a dict of
    tokens (B, L, D_t), token_mask (B, L) bool    what the text encoder says of each piece
    regions (B, P, D_v)        what the picture encoder says of each region, zeros without picture
    text_clip, picture_clip (B, D)    of the aligned encoder, unit length; zeros where missing
    task_features (B, F)       see stages/shared/task_features.py
    has_text, has_picture (B,) bool
    labels (B, T)              indices into the labels of each task, -1 where nobody judged
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stages.shared import tables
from stages.shared.features import Features
from stages.shared.records import SPLITS
from stages.shared.training import Batch

UNJUDGED = -1
Tasks = dict[str, list[str]]  # task -> its labels, in order


@dataclass(frozen=True)
class Texts:
    """What is read of texts, by the text itself."""

    spelt: Mapping[str, list[str]]  # pieces
    tokens: Mapping[str, np.ndarray]  # (L, D_t)
    width: int  # D_t
    task_features: Mapping[str, np.ndarray]  # (F,)
    features: int  # F


@dataclass(frozen=True)
class Regions:
    """What is read of pictures, by sha256."""

    cells: Mapping[str, np.ndarray]  # (P, D_v)
    shape: tuple[int, int]  # P, D_v


def read_rows(folder: Path) -> dict[str, list[dict]]:
    """Rows of MEMES by split, those of a split in order."""
    rows = tables.read(folder / "records.parquet", tables.MEMES)
    return {split: [row for row in rows if row["split"] == split] for split in SPLITS}


def read_tasks(folder: Path) -> Tasks:
    """Every task of the corpus with all of its labels."""
    return tables.read_json(folder / "tasks.json")


def label_of(row: dict, task: str) -> str | None:
    """The label of a task, None where nobody judged."""
    return next((one["label"] for one in row["labels"] if one["task"] == task), None)


def judged(rows: list[dict], tasks: Tasks) -> Tasks:
    """The tasks that somebody judged one of these rows on."""
    found = {one["task"] for row in rows for one in row["labels"]}
    return {task: labels for task, labels in tasks.items() if task in found}


class Memes:
    """Rows of MEMES, indexed from 0, each with what is read of it and what is to be said of it."""

    def __init__(
        self, rows: list[dict], tasks: Tasks, features: Features, texts: Texts, regions: Regions
    ):
        self.rows, self.tasks, self.features = rows, tasks, features
        self.texts, self.regions = texts, regions
        self.labels = torch.tensor(
            [[self._label(row, task) for task in tasks] for row in rows], dtype=torch.long
        ).view(len(rows), len(tasks))
        self.cut = 0  # the encoders of texts cut by themselves

    def _label(self, row: dict, task: str) -> int:
        label = label_of(row, task)
        return UNJUDGED if label is None else self.tasks[task].index(label)

    def __len__(self) -> int:
        return len(self.rows)

    def spelt(self, index: int) -> list[str]:
        """The pieces of an item's text."""
        text = self.rows[index]["text"]
        return self.texts.spelt[text] if text else []

    def batch(self, indices: list[int]) -> Batch:
        """What the head of this file names, of these items."""
        rows = [self.rows[index] for index in indices]
        return self.frame(indices) | self._tokens(rows) | {"regions": self._regions(rows)}

    def frame(self, indices: list[int]) -> Batch:
        """The same without tokens and regions, which are large."""
        rows = [self.rows[index] for index in indices]
        return {
            "text_clip": self._text_clip(rows),
            "picture_clip": self._picture_clip(rows),
            "task_features": self._task_features(rows),
            "has_text": torch.tensor([bool(row["text"]) for row in rows]),
            "has_picture": torch.tensor([row["image"] is not None for row in rows]),
            "labels": self.labels[indices],
        }

    def _tokens(self, rows: list[dict]) -> Batch:
        read = [self.texts.tokens[row["text"]] if row["text"] else None for row in rows]
        longest = max([1, *(len(one) for one in read if one is not None)])
        tokens = torch.zeros(len(rows), longest, self.texts.width)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for place, one in enumerate(read):
            if one is not None:
                tokens[place, : len(one)] = torch.from_numpy(one.astype(np.float32))
                mask[place, : len(one)] = True
        return {"tokens": tokens, "token_mask": mask}

    def _regions(self, rows: list[dict]) -> torch.Tensor:
        found = np.zeros((len(rows), *self.regions.shape), np.float32)
        for place, row in enumerate(rows):
            if row["image"] is not None:
                found[place] = self.regions.cells[row["image"]]
        return torch.from_numpy(found)

    def _text_clip(self, rows: list[dict]) -> torch.Tensor:
        index, pooled = self.features.text_index, self.features.text_pooled
        found = np.zeros((len(rows), self.features.pooled.shape[1]), np.float32)
        for place, row in enumerate(rows):
            if index is not None and row["text"]:
                found[place] = pooled[index[row["text"]]]
        return torch.from_numpy(found)

    def _picture_clip(self, rows: list[dict]) -> torch.Tensor:
        found = np.zeros((len(rows), self.features.pooled.shape[1]), np.float32)
        for place, row in enumerate(rows):
            if row["image"] is not None:
                found[place] = self.features.pooled[self.features.image_index[row["image"]]]
        return torch.from_numpy(found)

    def _task_features(self, rows: list[dict]) -> torch.Tensor:
        found = np.zeros((len(rows), self.texts.features), np.float32)
        for place, row in enumerate(rows):
            if row["text"]:
                found[place] = self.texts.task_features[row["text"]]
        return torch.from_numpy(found)
