"""A trained folder as a labeller: raw texts and pictures in, labels out, and nothing else needed.

Entities are those that stages/evaluate_classifier.py counts as `lenient`.
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
from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse.dataset import OUTSIDE_TAG, UNSPACED_SCRIPTS, TextImageDataset
from stages.shared.data import text_cleaning
from stages.shared.features.store import Features
from stages.shared.metrics import classification as classification_metrics
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import inference_context
from stages.shared.training.loop import to_device

WORD_CHARACTERS = rf"[\w--{UNSPACED_SCRIPTS}]+"
# As the corpora part them: an address, a tag or the name of a user, a number, a word with the signs
# inside it, signs in a row.
WORD_PATTERN = regex.compile(
    rf"(?:https?://|www\.)\S+|[@#]\w+|\d+(?:[.,]\d+)+|{UNSPACED_SCRIPTS}"
    rf"|{WORD_CHARACTERS}(?:[-'\u2019.&/]{WORD_CHARACTERS})*|[^\w\s]+",
    regex.VERSION1,
)


@dataclass(frozen=True)
class LabelInput:
    """What is labelled: a text, empty where there is none, and a picture file's bytes.

    spans: the first character of each word and the one behind its last.
    """

    text: str
    spans: list[tuple[int, int]]
    image: bytes | None

    @property
    def words(self) -> list[str]:
        return [self.text[start:end] for start, end in self.spans]


@dataclass(frozen=True)
class Entity:
    """Words first to last, and characters start to just before end, all counted from 0."""

    type: str
    text: str
    first: int
    last: int
    start: int
    end: int


@dataclass(frozen=True)
class EntityPrediction:
    """words_not_read: how many at the end, beyond what the model reads at once, are O unread."""

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


def build_input_from_text(text: str, picture: bytes | None) -> LabelInput:
    """A text, whose words have to be found; what cannot be seen is taken out."""
    text = text_cleaning.INVISIBLE_CHARACTERS.sub("", text).strip()
    return LabelInput(text, [found.span() for found in WORD_PATTERN.finditer(text)], picture)


def build_input_from_words(words: list[str], picture: bytes | None) -> LabelInput:
    """A text that is words already, as tweets of a corpus are."""
    ends = accumulate((len(word) + 1 for word in words), initial=0)
    spans = [(start, after - 1) for start, after in pairwise(ends)]
    return LabelInput(" ".join(words), spans, picture)


class TextLabeler:
    """The reader of a trained folder and its encoder of pictures.

    clean: gives what cleans the words of a text as those were that it learned from.
    """

    def __init__(
        self, folder: Path, name: str, cleaner: Callable[[str], Callable[[str], str]]
    ) -> None:
        """`name`: the folder as the user knows it. Raises WrongInput if it holds no reader."""
        self.bundle, self.build_cleaner = ModelBundle(folder, name, "classifiers"), cleaner
        if self.bundle.is_meme_classifier:
            raise InputError(
                f"{name} labels memes: give it a picture or a folder of them in place of TEXT, "
                "--image and --file, or name a reader of texts"
            )
        with self.bundle.as_input_error():
            self.classifier = muse_checkpoint.restore(folder)
        if self._uses_patches:
            self.bundle.require_encoder()

    @property
    def task(self) -> str:
        """entities | sentiment"""
        return self.classifier.codec.task

    @property
    def uses_images(self) -> bool:
        """Whether it looks at pictures; one that was trained without any has nothing to go by."""
        fusion = self.classifier.model.network.fusion
        return fusion != "text" and self.classifier.config["pictures"] > 0

    @property
    def _uses_patches(self) -> bool:
        return self.uses_images and self.classifier.codec.image_size is None

    def check_input(self, has_text: bool, has_picture: bool, name: str) -> None:
        """Raises WrongInput, with what the user calls it, if there is nothing that it can label."""
        if has_text or (has_picture and self.uses_images and self.task == "sentiment"):
            return
        if not has_picture:
            raise InputError(f"{name} has neither text nor picture: give it one")
        why = "labels words" if self.uses_images else "does not look at pictures"
        raise InputError(f"{name} has no text, and this model {why}: give it one")

    def label(self, items: list[LabelInput]) -> list[TextLabels]:
        """Of each item, whatever its neighbours are. Raises WrongInput, see `check`."""
        if not items:
            return []
        rows = [self._build_clean_row(item) for item in items]
        shown = zip(rows, items, strict=True)
        files = {row["image"]: item.image for row, item in shown if row["image"]}
        labelled = TextImageDataset(
            rows, self.classifier.codec, self._encode_features(files), files
        )
        places = list(range(len(items)))
        batch = to_device(labelled.batch(places), next(self.classifier.model.parameters()).device)
        with inference_context():
            decided = self.classifier.paper.predict(self.classifier.model, batch)
        names = self.classifier.decode_labels(decided.labels, labelled, places)
        cut = [labelled.num_truncated_words(place) for place in places]
        return [
            self._to_labels(*of) for of in zip(items, names, decided.probability, cut, strict=True)
        ]

    def _build_clean_row(self, item: LabelInput) -> dict:
        """The item as a row of CLEAN, with a label that nobody asks for."""
        shown = item.image if self.uses_images else None
        row = {"image": shown and sha256(shown).hexdigest()}
        tidy = self.build_cleaner(item.text)
        if self.task == "entities":
            row |= {"words": item.words, "tags": [OUTSIDE_TAG] * len(item.spans)}
            return clean.clean_tweet(row, tidy)
        row |= {"text": item.text, "label": self.classifier.codec.labels[0]}
        return clean.clean_post(row, tidy)

    def _encode_features(self, files: dict[str, bytes]) -> Features:
        """One row a picture; a row of zeros that nothing names where there is none."""
        read = self.bundle.encode_images(list(files.values())) if self._uses_patches else []
        patches = np.zeros((max(1, len(read)), *self.classifier.config["patches"]), np.float16)
        for place, (_, found) in enumerate(read):
            patches[place] = found
        index = {name: place for place, name in enumerate(files)}
        no_texts = dict.fromkeys(("text_index", "text_pooled", "tokens", "token_mask", "pieces"))
        return Features(index, np.zeros((len(patches), 0)), patches, "learned", **no_texts)

    def _to_labels(
        self, item: LabelInput, names: list[str], probability: list[float], cut: int
    ) -> TextLabels:
        if self.task == "sentiment":
            return SentimentPrediction(names[0], probability[0], cut)
        return EntityPrediction(item.words, names, extract_entities(item, names), cut)


def extract_entities(item: LabelInput, tags: list[str]) -> list[Entity]:
    """Those that the tags of an item's words mark, in order."""
    found = sorted(
        classification_metrics.extract_lenient_entities(tags), key=lambda entity: entity[1]
    )
    told = []
    for kind, first, behind in found:
        start, end = item.spans[first][0], item.spans[behind - 1][1]
        told.append(Entity(kind, item.text[start:end], first, behind - 1, start, end))
    return told
