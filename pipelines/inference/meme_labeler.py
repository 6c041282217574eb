"""Label image files of memes with the classifier in a model folder: one label for each task.

Images are processed as in the stages clean, inpaint and augment: the overlay text is recognized
unless it is given, then cleaned and removed from the image. The model folder contains the memory
bank of training items, so that predictions do not depend on the other memes.
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
from stages.shared.training.batching import to_device

TABLE_COLUMNS = ("image", "text", "original", "text_source")  # before the columns of the tasks


@dataclass(frozen=True)
class MemeInput:
    """A meme. name: what the user calls it. overlay_text: "" to recognize it in the image.

    image: the content of an image file.
    """

    name: str
    overlay_text: str
    image: bytes | None


@dataclass(frozen=True)
class RemovedText:
    """Where text was removed from an image.

    quads: x and y of 4 corners of each text box, in pixels of the mask. mask: a PNG file, 255 where
    the image was inpainted. masked_share: fraction of its pixels.
    """

    quads: list[list[float]]
    mask: bytes
    masked_share: float


@dataclass(frozen=True)
class PreparedMeme:
    """A meme as the model reads it.

    text: the cleaned overlay text. sentence: with its case, punctuation and digits. original_text:
    before cleaning. text_source: given | recognised | none. image: without its text, as far as it
    was detected. removed_text: None if the image was left as it was. failures: messages of failed
    steps.
    """

    name: str
    text: str
    sentence: str
    original_text: str
    text_source: str
    image: bytes | None
    removed_text: RemovedText | None
    failures: tuple[str, ...]


@dataclass(frozen=True)
class MemeLabel:
    label: str
    probability: float


MemeLabels = dict[str, MemeLabel]  # by learned task


def prepare_memes(
    memes: list[MemeInput], params: inpaint.InpaintConfig, rules: InputRules
) -> list[PreparedMeme]:
    """Prepare each meme. If a step fails, the image is left unchanged, as in the stage inpaint."""
    return [_prepare_meme(meme, params, rules) for meme in memes]


def _prepare_meme(
    meme: MemeInput, params: inpaint.InpaintConfig, rules: InputRules
) -> PreparedMeme:
    failures: list[str] = []

    def run(
        step: Callable[[inpaint.InpaintConfig, inpaint.InpaintJob], bytes],
        image: bytes,
        boxes: text_removal.TextBoxes = text_removal.NO_BOXES,
    ) -> bytes | None:
        job = inpaint.InpaintJob(meme.name, image, boxes)
        (result,) = inpaint.run_step(partial(step, params), [job])
        if result.failure:
            failures.append(f"{step.__name__}: {result.failure}")
        return result.row

    original, image, removed = strip_invisible(meme.overlay_text), meme.image, None
    text, source = rules.clean_overlay(original), "given"
    removes_text = params.inpainting.backend != "none"
    detection = run(inpaint.find, image) if image and (not text or removes_text) else None
    boxes = text_removal.unpack_boxes(detection) if detection else None
    if image and boxes and len(boxes.quads):
        if not text and (recognized := run(inpaint.read, image, boxes)):
            original, source = strip_invisible(recognized.decode()), "recognised"
            text = rules.clean_overlay(original)
        if removes_text and (inpainted := run(inpaint.paint, image, boxes)):
            image, mask, masked_share = text_removal.unpack_inpaint_result(inpainted)
            quads = [quad.reshape(-1).tolist() for quad in boxes.quads]
            removed = RemovedText(quads, mask, masked_share)
    source = source if text else "none"
    sentence = rules.clean_sentence(original)
    return PreparedMeme(
        meme.name, text, sentence, original, source, image, removed, tuple(failures)
    )


def strip_invisible(text: str) -> str:
    return text_cleaning.INVISIBLE_CHARACTERS.sub("", text).strip()


def to_table_row(meme: PreparedMeme, labels: MemeLabels) -> dict[str, str | float]:
    """A meme as a table row: TABLE_COLUMNS without the image, then the labels of the tasks."""
    row: dict[str, str | float] = {
        "text": meme.text,
        "original": meme.original_text,
        "text_source": meme.text_source,
    }
    for task, label in labels.items():
        column = f"{task}_" if task in TABLE_COLUMNS else task
        row |= {column: label.label, f"{column}_probability": label.probability}
    return row


class MemeLabeler:
    """The classifier of memes in a model folder, with its encoder of images and texts."""

    def __init__(self, folder: Path, name: str) -> None:
        """Load `folder`, called `name` in messages. Raises InputError if it has no such model."""
        self.bundle = ModelBundle(folder, name, "classifiers")
        if not self.bundle.is_meme_classifier:
            raise InputError(
                f"{name} labels texts: give it a text, and an image with --image, or name a "
                "classifier of memes"
            )
        with self.bundle.as_input_error():
            self.classifier = mm_orient_checkpoint.restore(folder)
            self.pooled_dim: int = self.classifier.config["shapes"]["pooled_width"]
            self.uses_text_encoder: bool = self.classifier.config["texts"] == "encoder"
        self.bundle.require_encoder()

    @property
    def tasks(self) -> list[str]:
        """The learned tasks."""
        return list(self.classifier.tasks)

    def label(self, memes: list[PreparedMeme]) -> list[MemeLabels]:
        """The labels of each meme, which do not depend on the other memes.

        A meme needs a text or an image.
        """
        if not memes:
            return []
        files = {_hash_image(meme.image): meme.image for meme in memes if meme.image}
        texts = list(dict.fromkeys(meme.text for meme in memes if meme.text))
        rows = [
            {
                "text": meme.text,
                "sentence": meme.sentence,
                "image": _hash_image(meme.image) if meme.image else None,
                "labels": [],
            }
            for meme in memes
        ]
        with self._temporary_image_dir(files) as folder:
            features = self._encode_features(files, texts)
            dataset = self.classifier.build_dataset(rows, features, folder)
        batch = dataset.batch(list(range(len(rows))))
        batch = to_device(batch, next(self.classifier.model.parameters()).device)
        with inference_context():
            prediction = self.classifier.paper.predict(self.classifier.model, batch)
        results: list[MemeLabels] = [{} for _ in memes]
        for task, names in self.classifier.tasks.items():
            best = prediction.labels[task].tolist()
            probability = prediction.probabilities[task].max(-1).values.tolist()
            for index, labels in enumerate(results):
                labels[task] = MemeLabel(names[best[index]], probability[index])
        return results

    def _encode_features(self, files: dict[str, bytes], texts: list[str]) -> Features:
        """Features of the images and texts; without any, one unused row of zeros."""
        encoded = self.bundle.encode_images(list(files.values()))
        empty = np.zeros((1, self.pooled_dim), np.float16)
        image_features = {
            "image_index": {name: row for row, name in enumerate(files)},
            "pooled": np.stack([pooled for pooled, _ in encoded]) if encoded else empty,
            "patches": np.stack([patches for _, patches in encoded]) if encoded else empty[:, None],
        }
        if not self.uses_text_encoder:
            return Features(text_kind="learned", **image_features)
        text_features = self.bundle.encode_texts(texts, 1, self.pooled_dim)
        return Features(text_kind="encoder", **text_features, **image_features)

    @contextmanager
    def _temporary_image_dir(self, files: dict[str, bytes]) -> Iterator[Path]:
        """A folder with the images, if the classifier reads pixels."""
        with TemporaryDirectory(prefix="polymuse-") as folder:
            if self.classifier.reads_pixels:
                image_store.write_images(
                    Path(folder, "images"),
                    map(image_store.build_image_row, files.values()),
                    shards=1,
                )
            yield Path(folder)


def _hash_image(image: bytes) -> str:
    return sha256(image).hexdigest()
