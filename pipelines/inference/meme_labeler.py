"""A trained folder as a labeller of memes: raw pictures in, a label for each learned task out.

A picture is treated as stages 02 to 04 treat those of a corpus: its words are read from it unless
they are given, and cleaned; then they are painted over. What the model has to know of other memes
it keeps in its folder, so that one meme alone gets the label that it gets in its corpus.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipelines.inference.input_rules import Rules
from pipelines.inference.model_bundle import Trained
from stages.inpaint import __main__ as inpaint
from stages.inpaint import text_removal
from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.shared.data import image_store, text_cleaning
from stages.shared.features.store import Features
from stages.shared.runtime.stage import WrongInput
from stages.shared.torch_setup.devices import inference
from stages.shared.training.loop import to_device

COLUMNS = ("image", "text", "original", "text_source")  # of a table, before those of tasks


@dataclass(frozen=True)
class Meme:
    """name: how its user knows it. words: over the picture, "" where they are to be read from it.
    picture: a file's bytes."""

    name: str
    words: str
    picture: bytes | None


@dataclass(frozen=True)
class Prepared:
    """A meme as the model reads it. original: its words before cleaning. text_source: given |
    recognised | none. picture: without its words, as far as they were found. failures: of steps."""

    name: str
    text: str
    original: str
    text_source: str
    picture: bytes | None
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Label:
    label: str
    probability: float


Labels = dict[str, Label]  # of each task that was learned


def prepare(memes: list[Meme], params: inpaint.Params, rules: Rules) -> list[Prepared]:
    """Each meme by itself. A picture on which a step fails is passed through, as in the stage."""
    return [_prepare(meme, params, rules) for meme in memes]


def _prepare(meme: Meme, params: inpaint.Params, rules: Rules) -> Prepared:
    failures: list[str] = []

    def done(step: Callable[[inpaint.Params, inpaint.Item], bytes], boxes=None) -> bytes | None:
        item = inpaint.Item(meme.name, meme.picture, boxes)
        (result,) = inpaint.each(partial(step, params), [item])
        if result.failure:
            failures.append(f"{step.__name__}: {result.failure}")
        return result.row

    original, picture = visible(meme.words), meme.picture
    text, source = rules.overlay(original), "given"
    found = picture and (not text or params.paint.backend != "none") and done(inpaint.find)
    boxes = text_removal.unpack_boxes(found) if found else None
    if boxes and len(boxes.quads):
        if not text and (packed := done(inpaint.read, boxes)):
            original, source = visible(packed.decode()), "recognised"
            text = rules.overlay(original)
        if params.paint.backend != "none" and (packed := done(inpaint.paint, boxes)):
            picture = text_removal.unpack_painted(packed).content
    source = source if text else "none"
    return Prepared(meme.name, text, original, source, picture, tuple(failures))


def visible(words: str) -> str:
    return text_cleaning.INVISIBLE.sub("", words).strip()


def fields(meme: Prepared, labels: Labels) -> dict[str, str | float]:
    """A meme and its labels as the row of a table; each task has a column, and one behind it."""
    told: dict[str, str | float] = {
        "text": meme.text,
        "original": meme.original,
        "text_source": meme.text_source,
    }
    for task, one in labels.items():
        column = f"{task}_" if task in COLUMNS else task
        told |= {column: one.label, f"{column}_probability": one.probability}
    return told


class MemeLabeller:
    """The reader of memes of a trained folder, and the encoder of pictures and words in it."""

    def __init__(self, folder: Path, name: str) -> None:
        """`name`: the folder as the user knows it. Raises WrongInput if it holds no such reader."""
        self.trained = Trained(folder, name, "readers")
        if not self.trained.reads_memes:
            raise WrongInput(
                f"{name} labels texts: give it the text, and the picture with --image, or name a "
                "reader of memes"
            )
        with self.trained.one_sentence():
            self.reader = mm_orient_checkpoint.restore(folder)
            self.width: int = self.reader.config["shapes"]["pooled_width"]
            self.reads_texts: bool = self.reader.config["texts"] == "encoder"
        self.trained.needs_encoder()

    @property
    def tasks(self) -> list[str]:
        """Those that were learned."""
        return list(self.reader.tasks)

    def label(self, memes: list[Prepared]) -> list[Labels]:
        """Of each meme, whatever its neighbours are; it has a text, a picture, or both."""
        if not memes:
            return []
        files = {_key(meme.picture): meme.picture for meme in memes if meme.picture}
        texts = list(dict.fromkeys(meme.text for meme in memes if meme.text))
        rows = [{"text": meme.text, "image": _key(meme.picture), "labels": []} for meme in memes]
        with self._folder(files) as folder:
            items = self.reader.items(rows, self._features(files, texts), folder)
        batch = items.batch(list(range(len(rows))))
        batch = to_device(batch, next(self.reader.model.parameters()).device)
        with inference():
            decided = self.reader.paper.decide(self.reader.model, batch)
        found: list[Labels] = [{} for _ in memes]
        for task, names in self.reader.tasks.items():
            best = decided.labels[task].tolist()
            probability = decided.probabilities[task].max(-1).values.tolist()
            for place, labels in enumerate(found):
                labels[task] = Label(names[best[place]], probability[place])
        return found

    def _features(self, files: dict[str, bytes], texts: list[str]) -> Features:
        """One row a picture, one a text; rows of zeros that nothing names where there is none."""
        read = self.trained.pictures(list(files.values()))
        none = np.zeros((1, self.width), np.float16)
        pictures = {
            "image_index": {name: row for row, name in enumerate(files)},
            "pooled": np.stack([pooled for pooled, _ in read]) if read else none,
            "patches": np.stack([patches for _, patches in read]) if read else none[:, None],
        }
        if not self.reads_texts:
            names = ("text_index", "text_pooled", "tokens", "token_mask", "pieces")
            return Features(text="learned", **dict.fromkeys(names), **pictures)
        return Features(text="encoder", **self.trained.texts(texts, 1, self.width), **pictures)

    @contextmanager
    def _folder(self, files: dict[str, bytes]) -> Iterator[Path]:
        """Where a reader that looks at pixels finds the pictures."""
        with TemporaryDirectory(prefix="polymuse-") as folder:
            if self.reader.regions is not None:
                image_store.write(
                    Path(folder, "images"), map(image_store.trusted, files.values()), shards=1
                )
            yield Path(folder)


def _key(picture: bytes | None) -> str | None:
    return sha256(picture).hexdigest() if picture else None
