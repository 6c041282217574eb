"""Batches of memes for MM-ORIENT.

A batch of B memes with texts of at most L subwords is a dict of
    tokens (B, L, D_t), token_mask (B, L) bool    subword features of the text encoder
    regions (B, P, D_v)        region features of the image encoder, zero without an image; if it is
                               trained, the input of its first trained block (B, C, H, W)
    text_clip, picture_clip (B, D)    aligned encoder, unit length; zero where missing
    task_features (B, F)       see stages/models/mm_orient/text_features.py
    has_text, has_picture (B,) bool
    labels (B, T)              label indices by task, -1 where there is none
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from stages.shared.core import schemas
from stages.shared.data.records import SPLITS
from stages.shared.training.batching import Batch

UNLABELED = -1
TaskLabels = dict[str, list[str]]  # task -> its labels, in order


class IndexedFeatures(Mapping[str, np.ndarray]):
    """Features by name, read by row on access: those of a corpus may not fit into memory."""

    def __init__(self, rows: dict[str, int], read: Callable[[int], np.ndarray]):
        self.rows, self.read = rows, read

    def __getitem__(self, name: str) -> np.ndarray:
        return self.read(self.rows[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class TextFeatures:
    """Features of texts; every mapping but one is keyed by the text."""

    subwords: Mapping[str, list[str]]
    truncated_words: Mapping[str, int]  # words beyond the maximum length
    tokens: Mapping[str, np.ndarray]  # (L, D_t)
    width: int  # D_t
    clip: Mapping[str, np.ndarray]  # (D,)
    task_input: Literal["text", "sentence"]  # column whose texts have the task features
    task_features: Mapping[str, np.ndarray]  # (F,), by text of that column
    num_task_features: int  # F


@dataclass(frozen=True)
class ImageFeatures:
    """Features of images; every mapping is keyed by the sha256 of the image."""

    regions: Mapping[str, np.ndarray]  # (P, D_v) or (C, H, W)
    shape: tuple[int, ...]  # of the regions of an image
    clip: Mapping[str, np.ndarray]  # (D,)


def load_splits(folder: Path) -> dict[str, list[dict]]:
    """Rows of records.parquet in `folder` (schema MEMES) by split, in file order."""
    rows = schemas.read_parquet(folder / "records.parquet", schemas.MEMES)
    return {split: [row for row in rows if row["split"] == split] for split in SPLITS}


def load_tasks(folder: Path) -> TaskLabels:
    """All tasks of the corpus and their labels, from tasks.json in `folder`."""
    return schemas.read_json(folder / "tasks.json")


def get_label(row: dict, task: str) -> str | None:
    """The label of a row for a task, None if it has none."""
    return next((entry["label"] for entry in row["labels"] if entry["task"] == task), None)


def filter_labeled_tasks(rows: list[dict], tasks: TaskLabels) -> TaskLabels:
    """The tasks for which at least one row has a label."""
    labeled = {entry["task"] for row in rows for entry in row["labels"]}
    return {task: labels for task, labels in tasks.items() if task in labeled}


class MemeDataset:
    """Rows of MEMES with their features and label indices.

    width: D of the aligned encoder.
    """

    def __init__(
        self,
        rows: list[dict],
        tasks: TaskLabels,
        texts: TextFeatures,
        images: ImageFeatures,
        width: int,
    ):
        self.rows, self.tasks, self.width = rows, tasks, width
        self.texts, self.images = texts, images
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
        """Number of items whose text is truncated."""
        return sum(self.num_truncated_words(index) > 0 for index in range(len(self)))

    def num_truncated_words(self, index: int) -> int:
        """Number of words that truncation removes from an item's text."""
        return self.texts.truncated_words.get(self.rows[index]["text"], 0)

    def subwords(self, index: int) -> list[str]:
        """Subwords of an item's text."""
        return self.texts.subwords.get(self.rows[index]["text"], [])

    def batch(self, indices: list[int]) -> Batch:
        """The batch of these items, with the keys listed in the module docstring."""
        texts, images = self._texts_and_images(indices)
        regions = stack_features(images, self.images.regions, self.images.shape)
        return self.pooled_batch(indices) | self._tokens(texts) | {"regions": regions}

    def pooled_batch(self, indices: list[int]) -> Batch:
        """The batch without tokens and regions, which are large."""
        texts, images = self._texts_and_images(indices)
        num_task_features = self.texts.num_task_features
        return {
            "text_clip": stack_features(texts, self.texts.clip, (self.width,)),
            "picture_clip": stack_features(images, self.images.clip, (self.width,)),
            "task_features": stack_features(
                [self.rows[index][self.texts.task_input] or None for index in indices],
                self.texts.task_features,
                (num_task_features,),
            ),
            "has_text": torch.tensor([text is not None for text in texts]),
            "has_picture": torch.tensor([image is not None for image in images]),
            "labels": self.labels[indices],
        }

    def _texts_and_images(self, indices: list[int]) -> tuple[list[str | None], list[str | None]]:
        """Text and image hash of each item, None where it is missing."""
        rows = [self.rows[index] for index in indices]
        return [row["text"] or None for row in rows], [row["image"] for row in rows]

    def _tokens(self, texts: list[str | None]) -> Batch:
        no_tokens = np.zeros((0, self.texts.width), np.float16)
        states = [no_tokens if text is None else self.texts.tokens[text] for text in texts]
        lengths = [len(state) for state in states]
        tokens = torch.zeros(len(texts), max(1, *lengths), self.texts.width)
        for index, state in enumerate(states):
            tokens[index, : len(state)] = torch.from_numpy(state).float()
        mask = torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]
        return {"tokens": tokens, "token_mask": mask}


def stack_features(
    names: list[str | None], features: Mapping[str, np.ndarray], shape: tuple
) -> torch.Tensor:
    """Features of each name, zeros where the name is None.  -> (N, *shape) float32

    Raises KeyError if a name has no features.
    """
    stacked = np.zeros((len(names), *shape), np.float32)
    for index, name in enumerate(names):
        if name is not None:
            stacked[index] = features[name]
    return torch.from_numpy(stacked)
