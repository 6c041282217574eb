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

from pipelines.inference.input_rules import InputRules
from pipelines.inference.model_bundle import ModelBundle
from stages.inpaint import __main__ as inpaint
from stages.inpaint import text_removal
from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.shared.data import image_store, text_cleaning
from stages.shared.features.store import Features
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import inference_context
from stages.shared.training.loop import to_device

TABLE_COLUMNS = ("image", "text", "original", "text_source")  # of a table, before those of tasks


@dataclass(frozen=True)
class MemeInput:
    """name: how its user knows it. words: over the picture, "" where they are to be read from it.
    picture: a file's bytes."""

    name: str
    overlay_text: str
    image: bytes | None


@dataclass(frozen=True)
class PreparedMeme:
    """A meme as the model reads it. original: its words before cleaning. text_source: given |
    recognised | none. picture: without its words, as far as they were found. failures: of steps."""

    name: str
    text: str
    original_text: str
    text_source: str
    image: bytes | None
    failures: tuple[str, ...]


@dataclass(frozen=True)
class MemeLabel:
    label: str
    probability: float


MemeLabels = dict[str, MemeLabel]  # of each task that was learned


def prepare_memes(
    memes: list[MemeInput], params: inpaint.InpaintConfig, rules: InputRules
) -> list[PreparedMeme]:
    """Each meme by itself. A picture on which a step fails is passed through, as in the stage."""
    return [_prepare_meme(meme, params, rules) for meme in memes]


def _prepare_meme(
    meme: MemeInput, params: inpaint.InpaintConfig, rules: InputRules
) -> PreparedMeme:
    failures: list[str] = []

    def done(
        step: Callable[[inpaint.InpaintConfig, inpaint.InpaintJob], bytes], boxes=None
    ) -> bytes | None:
        item = inpaint.InpaintJob(meme.name, meme.image, boxes)
        (result,) = inpaint.run_step(partial(step, params), [item])
        if result.failure:
            failures.append(f"{step.__name__}: {result.failure}")
        return result.row

    original, picture = strip_invisible(meme.overlay_text), meme.image
    text, source = rules.clean_overlay(original), "given"
    found = picture and (not text or params.inpainting.backend != "none") and done(inpaint.find)
    boxes = text_removal.unpack_boxes(found) if found else None
    if boxes and len(boxes.quads):
        if not text and (packed := done(inpaint.read, boxes)):
            original, source = strip_invisible(packed.decode()), "recognised"
            text = rules.clean_overlay(original)
        if params.inpainting.backend != "none" and (packed := done(inpaint.paint, boxes)):
            picture = text_removal.unpack_inpaint_result(packed).content
    source = source if text else "none"
    return PreparedMeme(meme.name, text, original, source, picture, tuple(failures))


def strip_invisible(words: str) -> str:
    return text_cleaning.INVISIBLE_CHARACTERS.sub("", words).strip()


def to_table_row(meme: PreparedMeme, labels: MemeLabels) -> dict[str, str | float]:
    """A meme and its labels as the row of a table; each task has a column, and one behind it."""
    told: dict[str, str | float] = {
        "text": meme.text,
        "original": meme.original_text,
        "text_source": meme.text_source,
    }
    for task, one in labels.items():
        column = f"{task}_" if task in TABLE_COLUMNS else task
        told |= {column: one.label, f"{column}_probability": one.probability}
    return told


class MemeLabeler:
    """The reader of memes of a trained folder, and the encoder of pictures and words in it."""

    def __init__(self, folder: Path, name: str) -> None:
        """`name`: the folder as the user knows it. Raises WrongInput if it holds no such reader."""
        self.bundle = ModelBundle(folder, name, "classifiers")
        if not self.bundle.is_meme_classifier:
            raise InputError(
                f"{name} labels texts: give it the text, and the picture with --image, or name a "
                "reader of memes"
            )
        with self.bundle.as_input_error():
            self.classifier = mm_orient_checkpoint.restore(folder)
            self.pooled_dim: int = self.classifier.config["shapes"]["pooled_width"]
            self.uses_text_encoder: bool = self.classifier.config["texts"] == "encoder"
        self.bundle.require_encoder()

    @property
    def tasks(self) -> list[str]:
        """Those that were learned."""
        return list(self.classifier.tasks)

    def label(self, memes: list[PreparedMeme]) -> list[MemeLabels]:
        """Of each meme, whatever its neighbours are; it has a text, a picture, or both."""
        if not memes:
            return []
        files = {_hash_image(meme.image): meme.image for meme in memes if meme.image}
        texts = list(dict.fromkeys(meme.text for meme in memes if meme.text))
        rows = [
            {"text": meme.text, "image": _hash_image(meme.image), "labels": []} for meme in memes
        ]
        with self._temporary_image_dir(files) as folder:
            items = self.classifier.build_dataset(rows, self._encode_features(files, texts), folder)
        batch = items.batch(list(range(len(rows))))
        batch = to_device(batch, next(self.classifier.model.parameters()).device)
        with inference_context():
            decided = self.classifier.paper.predict(self.classifier.model, batch)
        found: list[MemeLabels] = [{} for _ in memes]
        for task, names in self.classifier.tasks.items():
            best = decided.labels[task].tolist()
            probability = decided.probabilities[task].max(-1).values.tolist()
            for place, labels in enumerate(found):
                labels[task] = MemeLabel(names[best[place]], probability[place])
        return found

    def _encode_features(self, files: dict[str, bytes], texts: list[str]) -> Features:
        """One row a picture, one a text; rows of zeros that nothing names where there is none."""
        read = self.bundle.encode_images(list(files.values()))
        none = np.zeros((1, self.pooled_dim), np.float16)
        pictures = {
            "image_index": {name: row for row, name in enumerate(files)},
            "pooled": np.stack([pooled for pooled, _ in read]) if read else none,
            "patches": np.stack([patches for _, patches in read]) if read else none[:, None],
        }
        if not self.uses_text_encoder:
            names = ("text_index", "text_pooled", "tokens", "token_mask", "pieces")
            return Features(text_kind="learned", **dict.fromkeys(names), **pictures)
        return Features(
            text_kind="encoder", **self.bundle.encode_texts(texts, 1, self.pooled_dim), **pictures
        )

    @contextmanager
    def _temporary_image_dir(self, files: dict[str, bytes]) -> Iterator[Path]:
        """Where a reader that looks at pixels finds the pictures."""
        with TemporaryDirectory(prefix="polymuse-") as folder:
            if self.classifier.region_extractor is not None:
                image_store.write_images(
                    Path(folder, "images"),
                    map(image_store.build_image_row, files.values()),
                    shards=1,
                )
            yield Path(folder)


def _hash_image(picture: bytes | None) -> str | None:
    return sha256(picture).hexdigest() if picture else None
