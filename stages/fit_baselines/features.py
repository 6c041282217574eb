"""Frozen features of the items of a corpus, without those that a classifier trains.

images  pooled features of the aligned encoder, as `embed` stored them
texts   memes whose classifier reads the aligned encoder: its pooled features, as stored. All other
        texts: the states of the frozen layers of the classifier's text encoder (all its layers if
        none is frozen), averaged over subwords, or one state per word for the CRF

N items, D width. A missing text or image is a zero vector; the last column tells whether the item
has one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.shared.backbones import bert
from stages.shared.features import store as feature_store

ALIGNED_ENCODER = "tokens"  # text.encoder of a meme classifier that reads the stored features
NO_TEXT = "no item has a text"
NO_IMAGE = "no item has an image"
NO_TEXT_FEATURES = "the aligned encoder does not support the language of the texts"


@dataclass(frozen=True)
class EncoderSettings:
    """What a row of `classifiers` says about its encoders."""

    text_encoder: str
    num_tuned_layers: bert.TunedLayers
    max_subwords: int
    image_encoder: str  # patches: that of the stored features


def stack_with_indicator(
    names: Sequence[str | None], index: dict[str, int], features: np.ndarray
) -> np.ndarray:
    """Features by name and whether there is a name.  features (M, D) -> (N, D + 1) float32

    Raises KeyError if a name has no features.
    """
    stacked = np.zeros((len(names), features.shape[1] + 1), np.float32)
    for row, name in enumerate(names):
        if name is not None:
            stacked[row, :-1], stacked[row, -1] = features[index[name]], 1
    return stacked


def load_images(rows: list[dict], folder: Path) -> np.ndarray | str:
    """Pooled image features (N, D + 1), or why there are none."""
    if not any(row["image"] for row in rows):
        return NO_IMAGE
    return stack_with_indicator(
        [row["image"] for row in rows], *feature_store.read_pooled_images(folder)
    )


def load_pooled_texts(
    rows: list[dict], folder: Path, settings: EncoderSettings
) -> np.ndarray | str:
    """Text features (N, D + 1) of posts or memes, or why there are none."""
    texts = [row["text"] or None for row in rows]
    unique = list(dict.fromkeys(text for text in texts if text))
    if not unique:
        return NO_TEXT
    if settings.text_encoder == ALIGNED_ENCODER:
        index, pooled = feature_store.read_pooled_texts(folder)
        return stack_with_indicator(texts, index, pooled) if index else NO_TEXT_FEATURES
    is_meme = "labels" in rows[0]
    words = [text.split() if is_meme else bert.split_words(text) for text in unique]
    states, _ = encode_words(words, settings)
    means = [state.mean(0) if len(state) else np.zeros(state.shape[1]) for state in states]
    index = {text: row for row, text in enumerate(unique)}
    return stack_with_indicator(texts, index, np.stack(means))


def load_word_states(rows: list[dict], settings: EncoderSettings) -> list[np.ndarray]:
    """The state of the first subword of each word of a tweet that fits, (words, D) fp16."""
    states, starts = encode_words([row["words"] for row in rows], settings)
    return [state[first] for state, first in zip(states, starts, strict=True)]


def encode_words(
    words: list[list[str]], settings: EncoderSettings
) -> tuple[list[np.ndarray], list[list[int]]]:
    """States of the subwords (L, D), and the index of the first subword of each word that fits."""
    encoder = bert.load(settings.text_encoder, settings.num_tuned_layers, settings.max_subwords)
    if not encoder.num_frozen_layers:  # embeddings without context would be a weak baseline
        encoder = bert.load(settings.text_encoder, 0, settings.max_subwords)
    encoded = [encoder.tokenize(row) for row in words]
    states = encoder.compute_frozen_states([text.ids for text in encoded])
    without_special_tokens = [state[1:-1].astype(np.float32) for state in states]
    return without_special_tokens, [text.word_starts for text in encoded]


def combine(modalities: dict[str, Any]) -> dict[str, np.ndarray]:
    """The features by input mode: text, picture and, if there are both, their concatenation.

    modalities: arrays, or the reasons why there are none
    """
    arrays = {name: value for name, value in modalities.items() if not isinstance(value, str)}
    if len(arrays) == 2:
        arrays["both"] = np.hstack(list(arrays.values()))
    return arrays


def fit_standardization(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, 1 for a constant one.  (N, D) -> (D,), (D,)"""
    deviation = features.std(0)
    return features.mean(0), np.where(deviation > 1e-6, deviation, 1).astype(features.dtype)
