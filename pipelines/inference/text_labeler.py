"""Label texts and image files with the classifier in a model folder.

Entities are extracted as for the `lenient` scores of the stage `evaluate_classifier`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import regex

from pipelines.inference.model_bundle import ModelBundle
from stages import clean
from stages.classify import muse as classify_muse
from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse.dataset import OUTSIDE_TAG, TextImageDataset
from stages.shared.backbones.bert import UNSPACED_SCRIPTS
from stages.shared.data import text_cleaning
from stages.shared.features.store import Features
from stages.shared.metrics import classification as classification_metrics
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import inference_context
from stages.shared.training.batching import to_device

WORD_CHARACTERS = rf"[\w--{UNSPACED_SCRIPTS}]+"
# Tokens like those of the tweet corpora: a URL, a hashtag or user name, a number, a word with inner
# punctuation, a run of punctuation.
WORD_PATTERN = regex.compile(
    rf"(?:https?://|www\.)\S+|[@#]\w+|\d+(?:[.,]\d+)+|{UNSPACED_SCRIPTS}"
    rf"|{WORD_CHARACTERS}(?:[-'\u2019.&/]{WORD_CHARACTERS})*|[^\w\s]+",
    regex.VERSION1,
)


@dataclass(frozen=True)
class LabelInput:
    """An item to label.

    text: may be empty. spans: (start, end) of each word in characters, without the end. image: the
    content of an image file.
    """

    text: str
    spans: list[tuple[int, int]]
    image: bytes | None

    @property
    def words(self) -> list[str]:
        return [self.text[start:end] for start, end in self.spans]


@dataclass(frozen=True)
class Entity:
    """An entity: words first to last, characters start to end without end, counted from 0."""

    type: str
    text: str
    first: int
    last: int
    start: int
    end: int


@dataclass(frozen=True)
class EntityPrediction:
    """Tags and entities of a text.

    words_not_read: number of words beyond the maximum length of the model, tagged O.
    """

    words: list[str]
    tags: list[str]
    entities: list[Entity]
    words_not_read: int


@dataclass(frozen=True)
class SentimentPrediction:
    label: str
    probability: float
    words_not_read: int


TextLabels = EntityPrediction | SentimentPrediction


def build_input_from_text(text: str, image: bytes | None) -> LabelInput:
    """An input from a raw text, which is tokenized here; invisible characters are removed."""
    text = text_cleaning.INVISIBLE_CHARACTERS.sub("", text).strip()
    return LabelInput(text, [match.span() for match in WORD_PATTERN.finditer(text)], image)


def build_input_from_words(words: list[str], image: bytes | None) -> LabelInput:
    """An input from a tokenized text, like the tweets of a corpus."""
    starts = accumulate((len(word) + 1 for word in words), initial=0)
    spans = [(start, next_start - 1) for start, next_start in pairwise(starts)]
    return LabelInput(" ".join(words), spans, image)


class TextLabeler:
    """The classifier of tweets or posts in a model folder, with its image encoder.

    build_cleaner: text -> a function that cleans words of that text like the training data.
    """

    def __init__(
        self, folder: Path, name: str, build_cleaner: Callable[[str], Callable[[str], str]]
    ) -> None:
        """Load `folder`, called `name` in messages. Raises InputError if it has no such model."""
        self.bundle = ModelBundle(folder, name, "classifiers")
        self.build_cleaner = build_cleaner
        if self.bundle.is_meme_classifier:
            raise InputError(
                f"{name} labels memes: give it an image or a folder of images instead of TEXT, "
                "--image and --file, or name a classifier of texts"
            )
        with self.bundle.as_input_error():
            self.classifier = muse_checkpoint.restore(folder)
        if self.uses_patches:
            self.bundle.require_encoder()

    @property
    def task(self) -> str:
        """entities | sentiment"""
        return self.classifier.codec.task

    @property
    def uses_images(self) -> bool:
        """Whether predictions depend on images; not if the model was trained without any."""
        fusion = self.classifier.model.network.fusion
        return fusion != "text" and self.classifier.config["pictures"] > 0

    @property
    def uses_patches(self) -> bool:
        """Whether the model reads images as patches of the aligned encoder in its folder."""
        return self.uses_images and self.classifier.codec.reads_patches

    def check_input(self, has_text: bool, has_image: bool, name: str) -> None:
        """Raises InputError if the model cannot label such an item, called `name` in messages."""
        if has_text or (has_image and self.uses_images and self.task == "sentiment"):
            return
        if not has_image:
            raise InputError(f"{name} has neither text nor image: give it one")
        reason = "labels words" if self.uses_images else "does not use images"
        raise InputError(f"{name} has no text, and this model {reason}: give it one")

    def label(self, items: list[LabelInput]) -> list[TextLabels]:
        """The labels of each item, which do not depend on the other items."""
        if not items:
            return []
        dataset, indices = self._build_dataset(items), list(range(len(items)))
        batch = to_device(dataset.batch(indices), next(self.classifier.model.parameters()).device)
        with inference_context():
            prediction = self.classifier.paper.predict(self.classifier.model, batch)
        names = self.classifier.decode_labels(prediction.labels, dataset, indices)
        truncated = [dataset.num_truncated_words(index) for index in indices]
        outputs = zip(items, names, prediction.probability, truncated, strict=True)
        return [self._to_labels(*output) for output in outputs]

    def compute_exchanges(self, item: LabelInput) -> list[dict]:
        """EXCHANGES of an item: what each layer exchanged between text and image, see `classify`.

        Empty if the item lacks one of them, or if the model does not use images.
        """
        if not (item.spans and item.image and self.uses_images):
            return []
        with inference_context():
            return classify_muse.exchange_rows(
                self.classifier, self._build_dataset([item]), [0], batch_size=1
            )

    def _build_dataset(self, items: list[LabelInput]) -> TextImageDataset:
        rows = [self._build_clean_row(item) for item in items]
        files = {
            row["image"]: item.image
            for row, item in zip(rows, items, strict=True)
            if item.image and row["image"]
        }
        return TextImageDataset(rows, self.classifier.codec, self._encode_features(files), files)

    def _build_clean_row(self, item: LabelInput) -> dict:
        """The item as a row of CLEAN, with a placeholder for its label."""
        image = item.image if self.uses_images else None
        row = {"id": "", "image": image and sha256(image).hexdigest()}
        clean_text = self.build_cleaner(item.text)
        if self.task == "entities":
            row |= {"words": item.words, "tags": [OUTSIDE_TAG] * len(item.spans)}
            return clean.clean_tweet(row, clean_text)
        row |= {"text": item.text, "label": self.classifier.codec.labels[0]}
        return clean.clean_post(row, clean_text)

    def _encode_features(self, files: dict[str, bytes]) -> Features:
        """Patches of the images; without any, one unused row of zeros."""
        encoded = self.bundle.encode_images(list(files.values())) if self.uses_patches else []
        patches = np.zeros((max(1, len(encoded)), *self.classifier.config["patches"]), np.float16)
        for row, (_, image_patches) in enumerate(encoded):
            patches[row] = image_patches
        index = {name: row for row, name in enumerate(files)}
        return Features(index, np.zeros((len(patches), 0)), patches, "learned")

    def _to_labels(
        self, item: LabelInput, names: list[str], probability: list[float], num_truncated: int
    ) -> TextLabels:
        if self.task == "sentiment":
            return SentimentPrediction(names[0], probability[0], num_truncated)
        return EntityPrediction(item.words, names, extract_entities(item, names), num_truncated)


def extract_entities(item: LabelInput, tags: list[str]) -> list[Entity]:
    """The entities that the tags of the words mark, in order."""
    spans = sorted(
        classification_metrics.extract_lenient_entities(tags), key=lambda entity: entity[1]
    )
    entities = []
    for kind, first, stop in spans:
        start, end = item.spans[first][0], item.spans[stop - 1][1]
        entities.append(Entity(kind, item.text[start:end], first, stop - 1, start, end))
    return entities
