"""Articles as the batches that writers of whole articles read: a title, pictures, one text.

A text has a paragraph a chunk. Between paragraph k and k + 1 stands the T5's k-th sentinel token
(<extra_id_0> and so on, arXiv:1910.10683), which says where in the article a writer is and which no
text spells. A captioned picture is an article of one.

A batch of B items, of which the longest has N chunks, is a dict of
    present (B, N) bool        there is a chunk; what follows it is padding
    has_picture (B, N) bool    the chunk has a picture
    pooled (B, N, D)           pooled pictures, of unit length, zeros where there is none
    patches (B, N, P, D_V)     picture patches, zeros where there is none
    has_topic, topic, topic_mask, topic_ids, topic_ids_mask    see stages/shared/modeling/topics.py
    topic_pooled (B, D)        where the encoder reads the language, zeros where there is no topic
    labels (B, Y)              the text, its sentinels and its end, IGNORED after it
"""

from random import Random

import torch
from torch import Tensor

from stages.shared.features.store import Features
from stages.shared.generation import decoders
from stages.shared.generation.chunk_dataset import LengthLimits
from stages.shared.modeling.topics import Topics, pad_sequences
from stages.shared.training.batching import Batch
from stages.shared.training.losses import IGNORE_INDEX


def group_into_articles(rows: list[dict], most: int) -> list[list[dict]]:
    """Consecutive chunks of one record, at most so many, as items.

    A position that does not rise begins another item: another text about the same picture.
    """
    found: list[list[dict]] = []
    for row in rows:
        last = found[-1] if found else None
        if (
            last
            and len(last) < most
            and last[-1]["record"] == row["record"]
            and last[-1]["position"] < row["position"]
        ):
            last.append(row)
        else:
            found.append([row])
    return found


def sample_excerpts(rows: list[dict], share: float, seed: int) -> list[dict]:
    """The rows of an excerpt, some consecutive chunks, of a share of articles; to add to `rows`."""
    random, found = Random(seed), []
    for item in group_into_articles(rows, len(rows)):
        if len(item) > 1 and random.random() < share:
            length = random.randrange(1, len(item))
            first = random.randrange(len(item) - length + 1)
            found += item[first : first + length]
    return found


class ArticleDataset:
    """Rows of chunks.parquet with their features as articles, indexed from 0."""

    def __init__(self, rows: list[dict], features: Features, tokenizer, limits: LengthLimits):
        self.rows = group_into_articles(rows, limits.max_images)
        self.features, self.tokenizer, self.limits = features, tokenizer, limits
        self.sentinel_ids = decoders.get_sentinel_ids(tokenizer, limits.max_images - 1)
        self.pooled = torch.from_numpy(features.pooled)
        self.patches = torch.from_numpy(features.patches)
        self.labels = [self.encode([row["text"] for row in item]) for item in self.rows]
        titles = {row["title"] for row in rows}
        self.topics = Topics(titles, features, tokenizer, limits.max_topic_tokens)
        self.num_truncated = sum(ids[-1] != tokenizer.eos_token_id for ids in self.labels)

    def __len__(self) -> int:
        return len(self.rows)

    def chunks_of(self, index: int) -> list[dict]:
        """The chunks that an item's text is about, a paragraph each."""
        return self.rows[index]

    def encode(self, texts: list[str]) -> list[int]:
        """Ids of paragraphs and their end; a text that is too long is cut and has no end."""
        ids = self._encode_paragraphs(texts)
        return [*ids, self.tokenizer.eos_token_id][: self.limits.max_text_tokens]

    def labels_until(self, index: int, place: int, text: str | None = None) -> list[int]:
        """Ids of an item's text up to and with a paragraph, which another `text` may replace."""
        texts = [row["text"] for row in self.rows[index][: place + 1]]
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
        items = [self.rows[index] for index in indices]
        shown = [
            [self.features.image_index.get(row["image"], -1) for row in item] for item in items
        ]
        images = pad_sequences(shown, -1)
        titles = [item[0]["title"] for item in items]
        sizes = torch.tensor([len(item) for item in items])
        batch = {
            "present": torch.arange(images.shape[1])[None] < sizes[:, None],
            "has_picture": images >= 0,
            "pooled": _gather_rows(self.pooled, images),
            "patches": _gather_rows(self.patches, images),
            "labels": pad_sequences([self.labels[index] for index in indices], IGNORE_INDEX),
        }
        if self.features.text_kind == "encoder":
            batch["topic_pooled"] = self.topics.pooled(titles)
        return batch | self.topics.batch(titles)


def _gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Rows of a cache by index, zeros where it is -1.  (M, ...), (B, N) -> (B, N, ...)"""
    found = rows[index.clamp(min=0)].float()
    found[index < 0] = 0
    return found


def split_paragraphs(ids: list[int], tokenizer, marks: list[int], count: int) -> list[str]:
    """A written text as `count` paragraphs: cut at the sentinels `marks`, up to its end.

    Missing ones are empty; what is too much stays with the last.
    """
    found: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.eos_token_id:
            break
        if token in marks:
            found.append([])
        else:
            found[-1].append(token)
    texts = [text.strip() for text in tokenizer.batch_decode(found, skip_special_tokens=True)]
    texts, rest = texts[:count], texts[count:]
    texts += [""] * (count - len(texts))
    texts[-1] = " ".join([texts[-1], *rest]).strip()
    return texts
