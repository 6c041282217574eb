"""Tweets and posts as batches for MuSE.

A batch of B items, whose texts have at most L subwords and W words, is a dict of
    ids (B, L + 2) or hidden (B, L + 2, D_t)    see stages/shared/backbones/bert.py
    cases (B, L + 2)           if the text encoder has case embeddings
    pieces_mask (B, L) bool    true at subwords
    first, word_mask (B, W)    tweets: index of each word's first subword; true at words
    has_text, has_picture (B,) bool
    picture (B, P, D_v), (B, 3, S, S) or (B, C, H, W)    patches or pixels of the image, or states
        of frozen blocks (stages/shared/backbones/efficientnet.py); zeros without an image
    drawing (B, 3, s, s)       the image in [-1, 1], zeros without one; if images are generated
    caption (B, C)             the text as ids of the caption vocabulary, padded with 0
    tags (B, W) or label (B,)  indices of the codec's labels; 0 for a label not in the train split
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import regex
import torch
from torch import Tensor

from stages.models.muse import pixelcnn, show_attend_tell
from stages.shared.backbones import resnet
from stages.shared.backbones.bert import UNSPACED_SCRIPTS, TextEncoder, split_words
from stages.shared.backbones.efficientnet import FrozenBlocks
from stages.shared.core import schemas
from stages.shared.data.records import SPLITS
from stages.shared.features.store import Features
from stages.shared.modeling.topics import pad_sequences
from stages.shared.training.batching import Batch

CorpusKind = Literal["tweets", "posts"]
Task = Literal["entities", "sentiment"]
TASK_BY_CORPUS_KIND: dict[CorpusKind, Task] = {"tweets": "entities", "posts": "sentiment"}
OUTSIDE_TAG = "O"  # the tag of a word in no entity
# A URL is one caption word; its parts would fill the captions of tweets.
URL_PATTERN = r"(?:https?://|www\.)\S+"
CAPTION_TOKEN_PATTERN = regex.compile(
    rf"{URL_PATTERN}|{UNSPACED_SCRIPTS}|[@#]?[\w--{UNSPACED_SCRIPTS}]+|[^\w\s]", regex.VERSION1
)


@dataclass(frozen=True)
class LabelCodec:
    """Tokenizer, labels, vocabulary and sizes that convert records to tensors."""

    task: Task
    text_encoder: TextEncoder
    shorten_urls: bool  # the text encoder reads a URL as its scheme
    labels: list[str]
    vocabulary: show_attend_tell.Vocabulary
    max_caption_ids: int  # maximum length of a caption, both ends included
    drawing_size: int | None  # side of generated images, pixels; None: no images are generated
    image_size: int | None  # side of input images, pixels; None: the model reads patches
    frozen_blocks: FrozenBlocks | None  # of an EfficientNet, which reads their states

    @property
    def reads_patches(self) -> bool:
        """Whether the images are read as patches of the aligned encoder."""
        return self.image_size is None

    @property
    def decodes_images(self) -> bool:
        """Whether each batch decodes its images: those of a ResNet, which trains all its layers."""
        return self.image_size is not None and self.frozen_blocks is None

    def label_id(self, name: str) -> int:
        """The index of a label; 0 if it does not occur in the train split."""
        return self.labels.index(name) if name in self.labels else 0

    def encoder_words(self, row: dict) -> list[str]:
        """The words of a record as the text encoder reads them, as many as it has."""
        words = get_words(row)
        return [shorten_url(word) for word in words] if self.shorten_urls else words


def get_words(row: dict) -> list[str]:
    """The words of a record: the tagged words of a tweet, a post split at whitespace."""
    return row["words"] if "words" in row else split_words(row["text"])


def shorten_url(word: str) -> str:
    """The scheme of a word that is a URL, `http` if it names none; other words as they are."""
    if not regex.fullmatch(URL_PATTERN, word, regex.IGNORECASE):
        return word
    return word.partition("://")[0].lower() if "://" in word else "http"


def get_gold_labels(row: dict) -> list[str]:
    """The gold labels of a record: one tag a word, or one label."""
    return row["tags"] if "tags" in row else [row["label"]]


def get_caption_words(row: dict) -> list[str]:
    """The text of a record as lower-case words of a caption."""
    return CAPTION_TOKEN_PATTERN.findall(" ".join(get_words(row)).lower())


def collect_labels(rows: list[dict], task: Task) -> list[str]:
    """The labels in these rows: O and the B- and I- tag of each type, or the sorted labels."""
    labels = {label for row in rows for label in get_gold_labels(row)}
    if task == "sentiment":
        return sorted(labels)
    types = sorted({tag[2:] for tag in labels - {OUTSIDE_TAG}})
    return [OUTSIDE_TAG, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def load_splits(clean: Path, kind: CorpusKind) -> dict[str, list[dict]]:
    """Rows of CLEAN_RECORDS by split, in file order."""
    rows = schemas.read_parquet(clean / "records.parquet", schemas.CLEAN_RECORDS[kind])
    return {split: [row for row in rows if row["split"] == split] for split in SPLITS}


class TextImageDataset:
    """Rows of CLEAN_RECORDS, indexed from 0, as model inputs and targets.

    features: what embed computed of their images; files: content of the images by sha256. Batches
    contain `ids`, and `hidden` instead once `cache_hidden_states` was called.
    """

    def __init__(
        self, rows: list[dict], codec: LabelCodec, features: Features, files: dict[str, bytes]
    ):
        self.rows, self.codec, self.features = rows, codec, features
        self.files = {} if codec.reads_patches else files
        self.decoders = ThreadPoolExecutor(torch.get_num_threads())
        self.words = [codec.encoder_words(row) for row in rows]
        self.subwords = [codec.text_encoder.tokenize(words) for words in self.words]
        self.hidden_states: list[np.ndarray] | None = None
        self.image_states: Mapping[str, np.ndarray] | None = None
        self.captions = [
            codec.vocabulary.encode(get_caption_words(row), codec.max_caption_ids) for row in rows
        ]
        self.drawings = {}
        if size := codec.drawing_size:
            self.drawings = {
                name: resnet.load_pixels(content, size) for name, content in files.items()
            }
        self.num_truncated = sum(self.num_truncated_words(index) > 0 for index in range(len(rows)))

    def cache_hidden_states(self) -> "TextImageDataset":
        """Compute what frozen layers and blocks make of all texts and images, or load it."""
        self.hidden_states = self.codec.text_encoder.encode_frozen(
            [text.ids for text in self.subwords]
        )
        if self.codec.frozen_blocks is not None:
            self.image_states = self.codec.frozen_blocks.encode_cached(self.files)
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def num_truncated_words(self, index: int) -> int:
        """The number of words of an item beyond the encoder's limit."""
        return len(get_words(self.rows[index])) - self.subwords[index].num_words

    def batch(self, indices: list[int]) -> Batch:
        """The batch of these items; its keys are listed in the module docstring."""
        texts = [self.subwords[index] for index in indices]
        hidden = (
            None if self.hidden_states is None else [self.hidden_states[index] for index in indices]
        )
        images = [self.rows[index]["image"] for index in indices]
        words = [self.words[index] for index in indices]
        return {
            **self.codec.text_encoder.prepare_inputs([text.ids for text in texts], hidden),
            **self.codec.text_encoder.prepare_cases(words, texts),
            "has_text": torch.tensor([bool(text.ids) for text in texts]),
            "has_picture": torch.tensor([image is not None for image in images]),
            **self._drawing_targets(images),
            "caption": pad_sequences(
                [self.captions[index] for index in indices], show_attend_tell.PAD
            ),
            **self._image_inputs(images),
            **self._label_targets(indices),
        }

    def _drawing_targets(self, images: list[str | None]) -> Batch:
        """Pixels in [-1, 1] of the images to generate."""
        side = self.codec.drawing_size
        if side is None:
            return {}
        targets = torch.zeros(len(images), 3, side, side)
        for index, image in enumerate(images):
            if image is not None:
                targets[index] = pixelcnn.uint8_to_float(self.drawings[image])
        return {"drawing": targets}

    def _image_inputs(self, images: list[str | None]) -> Batch:
        """Patches that embed computed, states of frozen blocks, or normalized pixels."""
        side = self.codec.image_size
        if side is None:
            all_patches = self.features.patches
            patches = np.zeros((len(images), *all_patches.shape[1:]), np.float32)
            for index, image in enumerate(images):
                if image is not None:
                    patches[index] = all_patches[self.features.image_index[image]]
            return {"picture": torch.from_numpy(patches)}
        if self.codec.frozen_blocks is not None:
            return {"picture": self.stack_image_states(self.codec.frozen_blocks, images)}
        pixels = torch.zeros(len(images), 3, side, side)
        places = [index for index, image in enumerate(images) if image is not None]
        contents = [self.files[image] for image in images if image is not None]
        decoded = self.decoders.map(partial(resnet.load_pixels, size=side), contents)
        for index, image in zip(places, decoded, strict=True):
            pixels[index] = resnet.normalize_pixels(image)
        return {"picture": pixels}

    def stack_image_states(self, blocks: FrozenBlocks, images: list[str | None]) -> Tensor:
        """States of the frozen blocks.  -> (B, C, H, W), zeros without an image"""
        states = self.image_states
        if states is None:
            states = blocks.encode({image: self.files[image] for image in images if image})
        stacked = np.zeros((len(images), *blocks.shape), np.float32)
        for index, image in enumerate(images):
            if image is not None:
                stacked[index] = states[image]
        return torch.from_numpy(stacked)

    def _label_targets(self, indices: list[int]) -> Batch:
        gold = [get_gold_labels(self.rows[index]) for index in indices]
        if self.codec.task == "sentiment":
            return {"label": torch.tensor([self.codec.label_id(label) for (label,) in gold])}
        first = [self.subwords[index].word_starts for index in indices]
        tags = [
            [self.codec.label_id(tag) for tag in tags[: len(starts)]]
            for tags, starts in zip(gold, first, strict=True)
        ]
        return {
            "first": pad_sequences(first, 0),
            "word_mask": pad_sequences([[1] * len(starts) for starts in first], 0).bool(),
            "tags": pad_sequences(tags, 0),
        }
