"""Memes as the batches that MM-ORIENT reads.

A batch of B memes, their texts of at most L pieces, is a dict of
    tokens (B, L, D_t), token_mask (B, L) bool    what the text encoder says of each piece
    regions (B, P, D_v)        what the picture encoder says of each region, zeros without picture
    text_clip, picture_clip (B, D)    of the aligned encoder, unit length; zeros where missing
    task_features (B, F)       see stages/models/mm_orient/text_features.py
    has_text, has_picture (B,) bool
    labels (B, T)              indices into the labels of each task, -1 where nobody judged
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stages.shared.core import schemas
from stages.shared.data.records import SPLITS
from stages.shared.training.loop import Batch

UNLABELED = -1
TaskLabels = dict[str, list[str]]  # task -> its labels, in order


@dataclass(frozen=True)
class TextFeatures:
    """What is read of texts, by the text itself."""

    subwords: Mapping[str, list[str]]  # pieces
    truncated_words: Mapping[str, int]  # words beyond what is read
    tokens: Mapping[str, np.ndarray]  # (L, D_t)
    width: int  # D_t
    clip: Mapping[str, np.ndarray]  # (D,)
    task_features: Mapping[str, np.ndarray]  # (F,)
    num_task_features: int  # F


@dataclass(frozen=True)
class ImageFeatures:
    """What is read of pictures, by sha256."""

    regions: Mapping[str, np.ndarray]  # (P, D_v)
    shape: tuple[int, int]  # P, D_v
    clip: Mapping[str, np.ndarray]  # (D,)


def load_splits(folder: Path) -> dict[str, list[dict]]:
    """Rows of MEMES by split, those of a split in order."""
    rows = schemas.read_parquet(folder / "records.parquet", schemas.MEMES)
    return {split: [row for row in rows if row["split"] == split] for split in SPLITS}


def load_tasks(folder: Path) -> TaskLabels:
    """Every task of the corpus with all of its labels."""
    return schemas.read_json(folder / "tasks.json")


def get_label(row: dict, task: str) -> str | None:
    """The label of a task, None where nobody judged."""
    return next((one["label"] for one in row["labels"] if one["task"] == task), None)


def filter_labeled_tasks(rows: list[dict], tasks: TaskLabels) -> TaskLabels:
    """The tasks that somebody judged one of these rows on."""
    found = {one["task"] for row in rows for one in row["labels"]}
    return {task: labels for task, labels in tasks.items() if task in found}


class MemeDataset:
    """Rows of MEMES, indexed from 0, each with what is read of it and what is to be said of it.

    width: D of the aligned encoder.
    """

    def __init__(
        self,
        rows: list[dict],
        tasks: TaskLabels,
        texts: TextFeatures,
        pictures: ImageFeatures,
        width: int,
    ):
        self.rows, self.tasks, self.width = rows, tasks, width
        self.texts, self.images = texts, pictures
        self.labels = torch.tensor(
            [[self._label(row, task) for task in tasks] for row in rows], dtype=torch.long
        ).view(len(rows), len(tasks))

    def _label(self, row: dict, task: str) -> int:
        label = get_label(row, task)
        return UNLABELED if label is None else self.tasks[task].index(label)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_truncated(self) -> int:
        """How many items have words beyond what is read."""
        return sum(self.num_truncated_words(index) > 0 for index in range(len(self)))

    def num_truncated_words(self, index: int) -> int:
        """How many of an item's words lie beyond what is read."""
        return self.texts.truncated_words.get(self.rows[index]["text"], 0)

    def subwords(self, index: int) -> list[str]:
        """The pieces of an item's text."""
        return self.texts.subwords.get(self.rows[index]["text"], [])

    def batch(self, indices: list[int]) -> Batch:
        """What the head of this file names, of these items."""
        texts, pictures = self._texts_and_images(indices)
        of, shape = self.images.regions, self.images.shape
        return (
            self.pooled_batch(indices)
            | self._tokens(texts)
            | {"regions": stack_features(pictures, of, shape)}
        )

    def pooled_batch(self, indices: list[int]) -> Batch:
        """The same without tokens and regions, which are large."""
        texts, pictures = self._texts_and_images(indices)
        of, known = self.texts, (self.texts.num_task_features,)
        return {
            "text_clip": stack_features(texts, of.clip, (self.width,)),
            "picture_clip": stack_features(pictures, self.images.clip, (self.width,)),
            "task_features": stack_features(texts, of.task_features, known),
            "has_text": torch.tensor([text is not None for text in texts]),
            "has_picture": torch.tensor([picture is not None for picture in pictures]),
            "labels": self.labels[indices],
        }

    def _texts_and_images(self, indices: list[int]) -> tuple[list[str | None], list[str | None]]:
        """Text and picture of each item, None where it has none."""
        rows = [self.rows[index] for index in indices]
        return [row["text"] or None for row in rows], [row["image"] for row in rows]

    def _tokens(self, texts: list[str | None]) -> Batch:
        lengths = [0 if text is None else len(self.texts.tokens[text]) for text in texts]
        tokens = torch.zeros(len(texts), max(1, *lengths), self.texts.width)
        for place, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            if length:
                tokens[place, :length] = torch.from_numpy(self.texts.tokens[text]).float()
        mask = torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]
        return {"tokens": tokens, "token_mask": mask}


def stack_features(
    names: list[str | None], of: Mapping[str, np.ndarray], shape: tuple
) -> torch.Tensor:
    """What is known of each name, zeros where there is none.  -> (N, *shape)"""
    found = np.zeros((len(names), *shape), np.float32)
    for place, name in enumerate(names):
        if name is not None:
            found[place] = of[name]
    return torch.from_numpy(found)
