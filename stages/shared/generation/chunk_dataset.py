"""Chunks with features and tokens as batches for generators.

A chunk is a text with its images: a row of CHUNKS with references, and the rows without references
that follow it. A batch of B chunks with at most N images is a dict of
    patches (B, N P, D_V)      patch features of the images in order, zeros without an image
    patch_mask (B, N P) bool   false after the last image; the first P are always true
    has_picture (B,) bool      the chunk has an image
    has_topic, topic, topic_mask, topic_ids, topic_ids_mask    see stages/shared/modeling/topics.py
    sigma (B,)                 cosine of pooled image and pooled topic, 0 if either is missing; of
                               several images, the direction of their mean
    labels (B, Y)              reference text and end token, then IGNORE_INDEX
A batch of groups also has
    group, place (B,)          the index of an item's group in the batch, its index in the group
    allowed (G, N, N)          see ChunkGroup
    u (B,)                     what a sampled gate compares sigma with. It is fixed per chunk, so
                               that policy and reference see the same gate
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.shared.core import schemas
from stages.shared.features.store import Features
from stages.shared.generation import decoders
from stages.shared.modeling.topics import Topics, pad_sequences
from stages.shared.runtime.stage import InputError
from stages.shared.training.batching import Batch
from stages.shared.training.losses import IGNORE_INDEX


@dataclass
class ChunkGroup:
    """N chunks that are compared with each other.

    indices: rows of the ChunkDataset. allowed (N, N): entry (k, j) says that the text of j may be
    rejected in favour of that of k.
    """

    indices: list[int]
    allowed: Tensor


@dataclass(frozen=True)
class LengthLimits:
    """Maximum sizes of a generator's input and output."""

    max_topic_tokens: int
    max_text_tokens: int
    max_images: int = 1  # per text; further ones are left out


def has_text(row: dict) -> bool:
    """Whether a row of CHUNKS begins a chunk; else it is a further image of the chunk before."""
    return bool(row["references"])


def group_into_articles(rows: list[dict], max_texts: int) -> list[list[dict]]:
    """Group consecutive rows of one record into items of at most `max_texts` chunks.

    A position that does not increase starts a new item: another text about the same image.
    """
    items: list[list[dict]] = []
    for row in rows:
        last = items[-1] if items else None
        if (
            last
            and last[-1]["record"] == row["record"]
            and last[-1]["position"] < row["position"]
            and (not has_text(row) or sum(map(has_text, last)) < max_texts)
        ):
            last.append(row)
        else:
            items.append([row])
    return items


def group_into_chunks(rows: list[dict]) -> list[list[dict]]:
    """Group rows of CHUNKS by chunk: each is a row with a text and its further images."""
    return group_into_articles(rows, 1)


class ChunkDataset:
    """Rows of chunks.parquet with their features, indexed from 0: each chunk is an item."""

    def __init__(
        self,
        rows: list[dict],
        features: Features,
        tokenizer: decoders.DecoderTokenizer,
        limits: LengthLimits,
    ):
        self.features, self.tokenizer, self.limits = features, tokenizer, limits
        self.items = group_into_chunks(rows)
        self.rows = [item[0] for item in self.items]
        self.images = [[row["image"] for row in item[: limits.max_images]] for item in self.items]
        self.labels = [self.encode(row["text"]) for row in self.rows]
        titles = {row["title"] for row in rows}
        self.topics = Topics(titles, features, tokenizer, limits.max_topic_tokens)
        self.num_truncated = sum(ids[-1] != tokenizer.eos_token_id for ids in self.labels)
        self.num_images_cut = len(rows) - sum(map(len, self.images))

    def __len__(self) -> int:
        return len(self.rows)

    def get_chunks(self, index: int) -> list[dict]:
        """The chunks of an item: the first row of the item itself."""
        return [self.rows[index]]

    def get_images(self, index: int) -> list[list[str | None]]:
        """The images of each chunk of an item."""
        return [self.images[index]]

    def encode(self, text: str) -> list[int]:
        """Ids of a text and the end token; a text that is too long is cut before its end."""
        ids = decoders.encode_text(text, self.tokenizer)
        return [*ids, self.tokenizer.eos_token_id][: self.limits.max_text_tokens]

    def labels_until(self, index: int, place: int, text: str | None = None) -> list[int]:
        """Ids of an item's text, or of `text` instead; `place` is 0 (see ArticleDataset)."""
        return self.labels[index] if text is None else self.encode(text)

    def batch(self, indices: list[int]) -> Batch:
        """The batch described in the module docstring."""
        rows = [self.rows[index] for index in indices]
        images = [self.images[index] for index in indices]
        image_rows = pad_sequences(
            [[self.features.image_index.get(image, -1) for image in item] for item in images], -1
        )
        is_image = image_rows >= 0  # (B, N)
        patches = torch.from_numpy(self.features.patches[image_rows.clamp(min=0).numpy()])
        patches = patches.float() * is_image[..., None, None]
        is_first = torch.arange(image_rows.shape[1]) == 0
        sigma = [
            compute_similarity(self.features, item, row["title"]) or 0.0
            for item, row in zip(images, rows, strict=True)
        ]
        batch = {
            "patches": patches.flatten(1, 2),
            "patch_mask": (is_image | is_first).repeat_interleave(patches.shape[2], 1),
            "has_picture": is_image.any(1),
            "sigma": torch.tensor(sigma),
            "labels": pad_sequences([self.labels[index] for index in indices], IGNORE_INDEX),
        }
        return batch | self.topics.batch([row["title"] for row in rows])

    def build_groups(self, pairs: list[dict]) -> list[ChunkGroup]:
        """The groups of PREFERENCE_PAIRS that have an allowed pair among these chunks.

        Chunks that are not in this dataset (another split, no image) are removed from their groups.
        """
        row_of = {(row["record"], row["position"]): index for index, row in enumerate(self.rows)}
        groups = []
        for _, members in groupby(pairs, key=itemgetter("group")):
            rejected, indices = {}, {}  # by the chunk's place in its group
            for place, member in enumerate(members):
                key = member["record"], member["position"]
                if key in row_of:
                    rejected[place], indices[place] = member["rejected"], row_of[key]
            allowed = torch.tensor([[j in rejected[k] for j in indices] for k in indices])
            if allowed.any():
                groups.append(ChunkGroup(list(indices.values()), allowed))
        return groups

    def batch_groups(self, groups: list[ChunkGroup]) -> Batch:
        """A batch of whole groups, one item per chunk."""
        indices = [index for group in groups for index in group.indices]
        batch = self.batch(indices)
        sizes = [len(group.indices) for group in groups]
        max_size = max(sizes)
        allowed = torch.zeros(len(groups), max_size, max_size, dtype=torch.bool)
        for matrix, group in zip(allowed, groups, strict=True):
            matrix[: len(group.indices), : len(group.indices)] = group.allowed
        return batch | {
            "group": torch.arange(len(groups)).repeat_interleave(torch.tensor(sizes)),
            "place": torch.cat([torch.arange(size) for size in sizes]),
            "allowed": allowed,
            "u": torch.tensor([hash_to_uniform(self.rows[index]) for index in indices]),
        }


def hash_to_uniform(row: dict) -> float:
    """A number in [0, 1) that depends on the content of a chunk alone."""
    digest = sha256(f"{row['image']} {row['title']} {row['text']}".encode()).digest()
    return int.from_bytes(digest[:3], "big") / 2**24  # exact in float32


def compute_similarity(
    features: Features, images: Sequence[str | None], title: str
) -> float | None:
    """sigma, the cosine of images and title; None if either has no pooled feature.

    Several images have the direction of their mean, which is what they share.
    """
    rows = [features.image_index[image] for image in images if image in features.image_index]
    if not rows or title not in features.text_index:
        return None
    image_features = features.pooled[rows].astype("f4").mean(0)
    if len(rows) > 1:  # a single row has unit length already
        image_features /= max(np.linalg.norm(image_features), np.finfo("f4").tiny)
    return float(image_features @ features.text_pooled[features.text_index[title]].astype("f4"))


def load_chunks(folder: Path, split: str, *, require_image: bool) -> list[dict]:
    """Rows of CHUNKS of one split, in order; require_image: only those with an image."""
    rows = schemas.read_parquet(folder / "chunks.parquet", schemas.CHUNKS)
    return [row for row in rows if row["split"] == split and (row["image"] or not require_image)]


def load_training_chunks(folder: Path) -> list[dict]:
    """The chunks of the train split with an image. Raises InputError if there are none."""
    rows = load_chunks(folder, "train", require_image=True)
    if not rows:
        raise InputError(f"{folder}: no chunk of the train split has an image")
    return rows


def expand_references(rows: list[dict]) -> list[dict]:
    """One row per reference, with the reference as its text, so that all captions are used.

    Further images of a chunk follow it unchanged.
    """
    return [row | {"text": text} for row in rows for text in row["references"] or [""]]
