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

from pipelines.inference.model_bundle import Trained
from stages import clean
from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse.dataset import OUTSIDE, UNSPACED, Labelled
from stages.shared.data import text_cleaning
from stages.shared.features.store import Features
from stages.shared.metrics import classification as classification_metrics
from stages.shared.runtime.stage import WrongInput
from stages.shared.torch_setup.devices import inference
from stages.shared.training.loop import to_device

PART = rf"[\w--{UNSPACED}]+"
# As the corpora part them: an address, a tag or the name of a user, a number, a word with the signs
# inside it, signs in a row.
WORD = regex.compile(
    rf"(?:https?://|www\.)\S+|[@#]\w+|\d+(?:[.,]\d+)+|{UNSPACED}"
    rf"|{PART}(?:[-'\u2019.&/]{PART})*|[^\w\s]+",
    regex.VERSION1,
)


@dataclass(frozen=True)
class Item:
    """What is labelled: a text, empty where there is none, and a picture file's bytes.

    spans: the first character of each word and the one behind its last.
    """

    text: str
    spans: list[tuple[int, int]]
    picture: bytes | None

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
class Tags:
    """words_not_read: how many at the end, beyond what the model reads at once, are O unread."""

    words: list[str]
    tags: list[str]
    entities: list[Entity]
    words_not_read: int


@dataclass(frozen=True)
class Sentiment:
    label: str
    probability: float
    words_not_read: int


Labels = Tags | Sentiment


def of_text(text: str, picture: bytes | None) -> Item:
    """A text, whose words have to be found; what cannot be seen is taken out."""
    text = text_cleaning.INVISIBLE.sub("", text).strip()
    return Item(text, [found.span() for found in WORD.finditer(text)], picture)


def of_words(words: list[str], picture: bytes | None) -> Item:
    """A text that is words already, as tweets of a corpus are."""
    ends = accumulate((len(word) + 1 for word in words), initial=0)
    spans = [(start, after - 1) for start, after in pairwise(ends)]
    return Item(" ".join(words), spans, picture)


class Labeller:
    """The reader of a trained folder and its encoder of pictures.

    clean: gives what cleans the words of a text as those were that it learned from.
    """

    def __init__(
        self, folder: Path, name: str, cleaner: Callable[[str], Callable[[str], str]]
    ) -> None:
        """`name`: the folder as the user knows it. Raises WrongInput if it holds no reader."""
        self.trained, self.cleaner = Trained(folder, name, "readers"), cleaner
        if self.trained.reads_memes:
            raise WrongInput(
                f"{name} labels memes: give it a picture or a folder of them in place of TEXT, "
                "--image and --file, or name a reader of texts"
            )
        with self.trained.one_sentence():
            self.reader = muse_checkpoint.restore(folder)
        if self._reads_patches:
            self.trained.needs_encoder()

    @property
    def task(self) -> str:
        """entities | sentiment"""
        return self.reader.coding.task

    @property
    def looks(self) -> bool:
        """Whether it looks at pictures; one that was trained without any has nothing to go by."""
        fusion = self.reader.model.network.fusion
        return fusion != "text" and self.reader.config["pictures"] > 0

    @property
    def _reads_patches(self) -> bool:
        return self.looks and self.reader.coding.pixels is None

    def check(self, has_text: bool, has_picture: bool, name: str) -> None:
        """Raises WrongInput, with what the user calls it, if there is nothing that it can label."""
        if has_text or (has_picture and self.looks and self.task == "sentiment"):
            return
        if not has_picture:
            raise WrongInput(f"{name} has neither text nor picture: give it one")
        why = "labels words" if self.looks else "does not look at pictures"
        raise WrongInput(f"{name} has no text, and this model {why}: give it one")

    def label(self, items: list[Item]) -> list[Labels]:
        """Of each item, whatever its neighbours are. Raises WrongInput, see `check`."""
        if not items:
            return []
        rows = [self._row(item) for item in items]
        shown = zip(rows, items, strict=True)
        files = {row["image"]: item.picture for row, item in shown if row["image"]}
        labelled = Labelled(rows, self.reader.coding, self._features(files), files)
        places = list(range(len(items)))
        batch = to_device(labelled.batch(places), next(self.reader.model.parameters()).device)
        with inference():
            decided = self.reader.paper.decide(self.reader.model, batch)
        names = self.reader.names(decided.labels, labelled, places)
        cut = [labelled.words_cut(place) for place in places]
        return [self._told(*of) for of in zip(items, names, decided.probability, cut, strict=True)]

    def _row(self, item: Item) -> dict:
        """The item as a row of CLEAN, with a label that nobody asks for."""
        shown = item.picture if self.looks else None
        row = {"image": shown and sha256(shown).hexdigest()}
        tidy = self.cleaner(item.text)
        if self.task == "entities":
            row |= {"words": item.words, "tags": [OUTSIDE] * len(item.spans)}
            return clean.clean_tweet(row, tidy)
        row |= {"text": item.text, "label": self.reader.coding.labels[0]}
        return clean.clean_post(row, tidy)

    def _features(self, files: dict[str, bytes]) -> Features:
        """One row a picture; a row of zeros that nothing names where there is none."""
        read = self.trained.pictures(list(files.values())) if self._reads_patches else []
        patches = np.zeros((max(1, len(read)), *self.reader.config["patches"]), np.float16)
        for place, (_, found) in enumerate(read):
            patches[place] = found
        index = {name: place for place, name in enumerate(files)}
        no_texts = dict.fromkeys(("text_index", "text_pooled", "tokens", "token_mask", "pieces"))
        return Features(index, np.zeros((len(patches), 0)), patches, "learned", **no_texts)

    def _told(self, item: Item, names: list[str], probability: list[float], cut: int) -> Labels:
        if self.task == "sentiment":
            return Sentiment(names[0], probability[0], cut)
        return Tags(item.words, names, entities(item, names), cut)


def entities(item: Item, tags: list[str]) -> list[Entity]:
    """Those that the tags of an item's words mark, in order."""
    found = sorted(classification_metrics.lenient(tags), key=lambda entity: entity[1])
    told = []
    for kind, first, behind in found:
        start, end = item.spans[first][0], item.spans[behind - 1][1]
        told.append(Entity(kind, item.text[start:end], first, behind - 1, start, end))
    return told
