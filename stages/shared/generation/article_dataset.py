"""Articles as batches for generators of whole articles: a title, images, one text.

A text has one paragraph per chunk, which has one image or several. Paragraphs k and k + 1 are
separated by the T5's k-th sentinel token (<extra_id_0> and so on, arXiv:1910.10683). It tells the
generator where in the article it is, and no text can contain it. A captioned image is an article
with one chunk.

A batch of B items with at most N rows of CHUNKS is a dict of
    present (B, N) bool        true for rows, false for padding
    has_picture (B, N) bool    the row has an image
    image (B, N)               index of the image in the features, -1 without an image
    num_paragraphs (B,)        chunks of the item
    pooled (B, N, D)           pooled image features of unit length, zeros without an image
    patches (B, N, P, D_V)     image patch features, zeros without an image
    has_topic, topic, topic_mask, topic_ids, topic_ids_mask    see stages/shared/modeling/topics.py
    topic_pooled (B, D)        only if the encoder reads the language; zeros without a topic
    labels (B, Y)              text, sentinels and end token, then IGNORE_INDEX
"""

from random import Random

import torch
from torch import Tensor

from stages.shared.features.mapped_rows import Rows
from stages.shared.features.store import Features
from stages.shared.generation import decoders
from stages.shared.generation.chunk_dataset import (
    LengthLimits,
    group_into_articles,
    group_into_chunks,
    has_text,
)
from stages.shared.modeling.topics import Topics, pad_sequences
from stages.shared.training.batching import Batch
from stages.shared.training.losses import IGNORE_INDEX


def sample_excerpts(rows: list[dict], ratio: float, seed: int) -> list[dict]:
    """Rows of excerpts (some consecutive chunks) of a random part of the articles.

    ratio: probability of an excerpt of each article with several chunks. The rows are meant to be
    appended to `rows`. A text about several images has no excerpts.
    """
    random, excerpts = Random(seed), []
    for item in group_into_articles(rows, len(rows)):
        if len(item) > 1 and all(map(has_text, item)) and random.random() < ratio:
            length = random.randrange(1, len(item))
            first = random.randrange(len(item) - length + 1)
            excerpts += item[first : first + length]
    return excerpts


class ArticleDataset:
    """Rows of chunks.parquet with their features, grouped into articles and indexed from 0."""

    def __init__(
        self,
        rows: list[dict],
        features: Features,
        tokenizer: decoders.DecoderTokenizer,
        limits: LengthLimits,
    ):
        items = group_into_articles(rows, limits.max_images)
        self.rows = [item[: limits.max_images] for item in items]
        self.features, self.tokenizer, self.limits = features, tokenizer, limits
        self.sentinel_ids = decoders.get_sentinel_ids(tokenizer, limits.max_images - 1)
        self.labels = [self.encode(self.list_texts(index)) for index in range(len(self.rows))]
        titles = {row["title"] for row in rows}
        self.topics = Topics(titles, features, tokenizer, limits.max_topic_tokens)
        self.num_truncated = sum(ids[-1] != tokenizer.eos_token_id for ids in self.labels)
        self.num_images_cut = len(rows) - sum(map(len, self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def get_chunks(self, index: int) -> list[dict]:
        """The first row of each chunk of an item, one per paragraph of its text."""
        return [row for row in self.rows[index] if has_text(row)]

    def get_images(self, index: int) -> list[list[str | None]]:
        """The images of each chunk of an item."""
        return [[row["image"] for row in chunk] for chunk in group_into_chunks(self.rows[index])]

    def list_texts(self, index: int) -> list[str]:
        """The paragraphs of an item."""
        return [row["text"] for row in self.get_chunks(index)]

    def encode(self, texts: list[str]) -> list[int]:
        """Ids of paragraphs and the end token; a text that is too long is cut before its end."""
        ids = self._encode_paragraphs(texts)
        return [*ids, self.tokenizer.eos_token_id][: self.limits.max_text_tokens]

    def labels_until(self, index: int, place: int, text: str | None = None) -> list[int]:
        """Ids of an item's text through paragraph `place`, which `text` replaces if given."""
        texts = self.list_texts(index)[: place + 1]
        if text is not None:
            texts[place] = text
        return self._encode_paragraphs(texts)[: self.limits.max_text_tokens]

    def _encode_paragraphs(self, texts: list[str]) -> list[int]:
        ids: list[int] = []
        for place, text in enumerate(texts):
            ids += [self.sentinel_ids[place - 1]] if place else []
            ids += decoders.encode_text(text, self.tokenizer)
        return ids

    def batch(self, indices: list[int]) -> Batch:
        """The batch described in the module docstring."""
        items = [self.rows[index] for index in indices]
        image_rows = [
            [self.features.image_index.get(row["image"], -1) for row in item] for item in items
        ]
        images = pad_sequences(image_rows, -1)
        titles = [item[0]["title"] for item in items]
        num_rows = torch.tensor([len(item) for item in items])
        batch = {
            "present": torch.arange(images.shape[1])[None] < num_rows[:, None],
            "has_picture": images >= 0,
            "image": images,
            "num_paragraphs": torch.tensor([sum(map(has_text, item)) for item in items]),
            "pooled": _gather_rows(self.features.pooled, images),
            "patches": _gather_rows(self.features.patches, images),
            "labels": pad_sequences([self.labels[index] for index in indices], IGNORE_INDEX),
        }
        if self.features.text_kind == "encoder":
            batch["topic_pooled"] = self.topics.pooled(titles)
        return batch | self.topics.batch(titles)


def _gather_rows(rows: Rows, index: Tensor) -> Tensor:
    """Rows of the features by index, zeros where it is -1.  (M, ...), (B, N) -> (B, N, ...)"""
    gathered = torch.from_numpy(rows[index.clamp(min=0).numpy()]).float()
    gathered[index < 0] = 0
    return gathered


def split_paragraphs(
    ids: list[int], tokenizer: decoders.DecoderTokenizer, sentinel_ids: list[int], count: int
) -> list[str]:
    """Decode generated ids up to the end token as `count` paragraphs, split at sentinels.

    Missing paragraphs are empty; surplus ones are joined to the last.
    """
    paragraphs: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.eos_token_id:
            break
        if token in sentinel_ids:
            paragraphs.append([])
        else:
            paragraphs[-1].append(token)
    texts = [text.strip() for text in tokenizer.batch_decode(paragraphs, skip_special_tokens=True)]
    texts, surplus = texts[:count], texts[count:]
    texts += [""] * (count - len(texts))
    texts[-1] = " ".join([texts[-1], *surplus]).strip()
    return texts
