"""Chunks, their features and their tokens as the batches that writers read.

A batch of B items is a dict of
    patches (B, P, D_V)        picture patches, zeros where there is no picture
    has_picture (B,) bool
    has_topic, topic, topic_mask, topic_ids, topic_ids_mask    see stages/shared/modeling/topics.py
    sigma (B,)                 cosine of pooled picture and pooled topic, 0 where there is none
    labels (B, Y)              the reference text and its end, IGNORED after it
Groups add
    group, place (B,)          the number of an item's group in the batch, its place there
    allowed (G, N, N)          see Group
    u (B,)                     what a gate that draws compares sigma with, the same for a chunk each
                               time: a policy must be shown what its reference was
"""

from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from pathlib import Path

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
    """Chunks that are compared with each other: N rows of `Chunks`; allowed (N, N): entry (k, j)
    says that the text of j may be rejected in favour of that of k."""

    indices: list[int]
    allowed: Tensor


@dataclass(frozen=True)
class LengthLimits:
    """The most that a writer reads and writes at once."""

    max_topic_tokens: int
    max_text_tokens: int
    max_images: int = 1  # of one text


class ChunkDataset:
    """Rows of chunks.parquet with their features, indexed from 0: a chunk is an item."""

    def __init__(self, rows: list[dict], features: Features, tokenizer, limits: LengthLimits):
        self.rows, self.features, self.tokenizer = rows, features, tokenizer
        self.limits = limits
        self.patches = torch.from_numpy(features.patches)
        self.labels = [self.encode(row["text"]) for row in rows]
        titles = {row["title"] for row in rows}
        self.topics = Topics(titles, features, tokenizer, limits.max_topic_tokens)
        self.num_truncated = sum(ids[-1] != tokenizer.eos_token_id for ids in self.labels)

    def __len__(self) -> int:
        return len(self.rows)

    def chunks_of(self, index: int) -> list[dict]:
        """The chunks that an item's text is about: its own."""
        return [self.rows[index]]

    def encode(self, text: str) -> list[int]:
        """Ids of a text and its end; a text that is too long is cut and has no end."""
        ids = decoders.encode_text(text, self.tokenizer)
        return [*ids, self.tokenizer.eos_token_id][: self.limits.max_text_tokens]

    def labels_until(self, index: int, place: int, text: str | None = None) -> list[int]:
        """Ids of an item's text, or of another `text` in its place; `place` is 0."""
        return self.labels[index] if text is None else self.encode(text)

    def topic_subwords(self, title: str) -> list[str]:
        return self.topics.subwords(title)

    def batch(self, indices: list[int]) -> Batch:
        rows = [self.rows[index] for index in indices]
        images = [self.features.image_index.get(row["image"]) for row in rows]
        has_picture = torch.tensor([image is not None for image in images])
        patches = self.patches[[image or 0 for image in images]].float()
        batch = {
            "patches": patches * has_picture[:, None, None],
            "has_picture": has_picture,
            "sigma": torch.tensor(
                [
                    compute_similarity(self.features, row["image"], row["title"]) or 0.0
                    for row in rows
                ]
            ),
            "labels": pad_sequences([self.labels[index] for index in indices], IGNORE_INDEX),
        }
        return batch | self.topics.batch([row["title"] for row in rows])

    def build_groups(self, pairs: list[dict]) -> list[ChunkGroup]:
        """The groups of PAIRS with at least one pair among these chunks; others are left out of
        them: the chunks of another split, and those without a picture."""
        row_of = {(row["record"], row["position"]): index for index, row in enumerate(self.rows)}
        found = []
        for _, members in groupby(pairs, key=itemgetter("group")):
            rejected = [(row_of.get((m["record"], m["position"])), m["rejected"]) for m in members]
            here = [place for place, (row, _) in enumerate(rejected) if row is not None]
            allowed = torch.tensor([[j in rejected[k][1] for j in here] for k in here])
            if allowed.any():
                found.append(ChunkGroup([rejected[place][0] for place in here], allowed))
        return found

    def batch_groups(self, groups: list[ChunkGroup]) -> Batch:
        """A batch of whole groups, an item a chunk."""
        indices = [index for group in groups for index in group.indices]
        batch = self.batch(indices)
        sizes = torch.tensor([len(group.indices) for group in groups])
        widest = int(sizes.max())
        allowed = torch.zeros(len(groups), widest, widest, dtype=torch.bool)
        for number, group in enumerate(groups):
            allowed[number, : len(group.indices), : len(group.indices)] = group.allowed
        return batch | {
            "group": torch.arange(len(groups)).repeat_interleave(sizes),
            "place": torch.cat([torch.arange(size) for size in sizes]),
            "allowed": allowed,
            "u": torch.tensor([hash_to_uniform(self.rows[index]) for index in indices]),
        }


def hash_to_uniform(row: dict) -> float:
    """A number in [0, 1) that belongs to what a chunk shows and says."""
    digest = sha256(f"{row['image']} {row['title']} {row['text']}".encode()).digest()
    return int.from_bytes(digest[:3], "big") / 2**24  # float32 holds it exactly


def compute_similarity(features: Features, image: str | None, title: str) -> float | None:
    """sigma, the cosine of picture and title; None where either has no pooled feature."""
    if features.text_kind != "encoder":
        return None
    picture, text = features.image_index.get(image), features.text_index.get(title)
    if picture is None or text is None:
        return None
    return float(features.pooled[picture].astype("f4") @ features.text_pooled[text].astype("f4"))


def load_chunks(folder: Path, split: str, *, with_picture: bool) -> list[dict]:
    """Rows of 05_chunk of one split, in order; with_picture: only those that have one."""
    rows = schemas.read_parquet(folder / "chunks.parquet", schemas.CHUNKS)
    return [row for row in rows if row["split"] == split and (row["image"] or not with_picture)]


def load_training_chunks(folder: Path) -> list[dict]:
    """The train split's chunks with a picture. Raises WrongInput if there is none."""
    rows = load_chunks(folder, "train", with_picture=True)
    if not rows:
        raise InputError(f"{folder}: no chunk of the train split has a picture")
    return rows


def expand_references(rows: list[dict]) -> list[dict]:
    """A row for each reference of a chunk, which is its text: every caption is learned from."""
    return [row | {"text": text} for row in rows for text in row["references"]]
