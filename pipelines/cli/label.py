"""`polymuse label` of texts: the entities or the sentiment of one tweet or post, or of a file.

reads   the model folder of --run or --model, texts and images
writes  standard output: text, or with --json one JSON object a line

All input is validated before the first prediction. Memes are handled by label_memes.py.
"""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.inference import model_bundle
from pipelines.inference.input_rules import (
    InputRules,
    format_count,
    has_visible_text,
    image_suffixes,
    load_input_rules,
)
from stages.datasets.common.files import describe_validation_error, read_lines
from stages.ingest.image_files import read_image_file
from stages.ingest.record_collector import make_printable
from stages.shared.core import config
from stages.shared.core.config import Field, config_class
from stages.shared.data import text_cleaning
from stages.shared.data.cache import batched
from stages.shared.data.image_store import ImageError
from stages.shared.data.records import ImageFile, Rejection
from stages.shared.runtime.stage import InputError

if TYPE_CHECKING:
    from pipelines.inference.text_labeler import Entity, LabelInput, TextLabeler, TextLabels

MEMES_KIND = "memes"  # corpora.*.kind
ENCODINGS = ["utf-8"]


@config_class
class LabelCommandConfig:
    """The section `cli_label`."""

    max_characters: int = Field(description="characters of a text at most")
    batch_size: int = Field(ge=1, description="texts or memes per batch")


@dataclass(frozen=True)
class LabelRequest:
    """An item to label.

    source: TEXT, or file:line. text: a string, or a list of words if it is tokenized already.
    image: the name of the image. load_image: reads the content of the image file.
    """

    source: str
    text: str | list[str] | None
    image: str | None
    load_image: Callable[[], bytes] | None

    @property
    def has_text(self) -> bool:
        return has_visible_text(self.joined_text)

    @property
    def joined_text(self) -> str:
        return " ".join(self.text) if isinstance(self.text, list) else self.text or ""


class LabelLine(BaseModel):
    """A line of a .jsonl file. Other keys are ignored, so that a corpus can be labeled."""

    model_config = ConfigDict(strict=True)

    text: str | None = None
    words: list[str] | None = None
    image: str | None = None


def main(options: Namespace) -> None:
    """Label the texts of the command and print the labels.

    Raises InputError for invalid input, before the first prediction.
    """
    settings = config.load_config(LabelCommandConfig, "cli_label")
    rules = load_input_rules("cli_label")
    reject_meme_options(options)
    requests = read_requests(options, rules)
    with ExitStack() as stack:
        labeler, name = load_labeler(options, rules, stack)
        for request in requests:
            labeler.check_input(request.has_text, request.load_image is not None, request.source)
        if not options.json:
            print("\n".join(format_heading(requests, labeler, name)), flush=True)
        format_item = format_json if options.json else format_labels
        for request, item, labels in label_requests(requests, labeler, settings.batch_size):
            print(format_item(request, item, labels), flush=True)


def reject_meme_options(options: Namespace) -> None:
    """Raises InputError for options of memes, and for a missing image file in place of a text."""
    text = options.text or ""
    looks_like_path = Path(text).suffix.lower() in image_suffixes() or text.endswith(os.sep)
    if len(text.split()) == 1 and "://" not in text and looks_like_path:
        raise InputError(
            f"{to_single_line(text)} does not exist: name an image or a folder of images; put a "
            "text that looks like a path into a --file"
        )
    meme_options = {
        "--text": options.words,
        "--output": options.output,
        "--inpainted": options.inpainted,
    }
    if used := [option for option, value in meme_options.items() if value is not None]:
        raise InputError(
            f"{used[0]} is an option for memes, and {to_single_line(text)[:60] or 'nothing'} is "
            "not a file: name an image or a folder of images"
        )


def read_requests(options: Namespace, rules: InputRules) -> list[LabelRequest]:
    """The text and image of the command line, or the items of --file. Raises InputError."""
    if options.file:
        if options.text is not None or options.image:
            raise InputError(
                "--file replaces TEXT and --image: give one or the other; the lines of a .jsonl "
                "file can name images"
            )
        return read_file(options.file, rules)
    if len(options.image) > 1:
        raise InputError(
            f"--image: {len(options.image)} images for one text: give one image, or a --file with "
            "one line for each"
        )
    image_name, load_image = None, None
    if options.image:
        (file,) = options.image
        image_name = make_printable(file.name)
        load_image = partial(rules.read_image, file, f"--image: {file}")
        load_image()  # validates the file
    request = LabelRequest("TEXT", options.text, image_name, load_image)
    rules.check_length(request.joined_text, request.source)
    if not request.has_text and not load_image:
        raise InputError(
            "there is nothing to label: give a text in quotes, --image, or --file with many"
        )
    return [request]


def read_file(file: Path, rules: InputRules) -> list[LabelRequest]:
    """One request for each line that is not blank. Raises InputError that names the line."""
    if file.suffix.lower() not in (".txt", ".jsonl"):
        raise InputError(
            f"--file: {file} is neither .txt (one text a line) nor .jsonl (lines with text and "
            "image): give one of these"
        )
    try:
        requests = [read_line(line, file, rules) for line in read_lines(file, ENCODINGS, "--file")]
    except OSError as error:
        raise InputError(
            f"--file: {file} cannot be read ({error.strerror}): name another file"
        ) from None
    if not requests:
        raise InputError(f"--file: {file} has no text: put one on each line")
    return requests


def read_line(line: tuple[str, str] | Rejection, file: Path, rules: InputRules) -> LabelRequest:
    if isinstance(line, Rejection):
        raise InputError(f"{line.source}: {line.reason}: save the file as UTF-8")
    source, text = line
    if file.suffix.lower() == ".jsonl":
        request = read_json_line(source, text, file.parent, rules)
    else:
        request = LabelRequest(source, text, None, None)
    rules.check_length(request.joined_text, source)
    if not request.has_text and request.load_image is None:
        raise InputError(f"{source}: there is neither a text nor an image: add one")
    return request


def read_json_line(source: str, line: str, folder: Path, rules: InputRules) -> LabelRequest:
    try:
        item = LabelLine.model_validate_json(line)
    except ValidationError as error:
        raise InputError(
            f"{source}: {describe_validation_error(error)}: correct the line"
        ) from None
    load_image = None
    if item.image:
        load_image = partial(read_named_image, ImageFile(item.image, folder), source, rules)
        load_image()  # validates the file
    return LabelRequest(source, item.words or item.text, item.image or None, load_image)


def read_named_image(image: ImageFile, source: str, rules: InputRules) -> bytes:
    """The content of an image in the folder of its .jsonl file. Raises InputError."""
    try:
        content = read_image_file(image, image.folder, rules.max_pixels)
    except ImageError as error:
        raise InputError(f"{source}: {error}: name another image") from None
    return rules.check_image(content, f"{source}: {image.path}")


def load_labeler(
    options: Namespace, rules: InputRules, stack: ExitStack
) -> tuple["TextLabeler", str]:
    """The classifier of --run or --model, and its name. `stack` owns a downloaded copy."""
    folder, display_name, name = find_classifier_dir(options, False, stack)
    from pipelines.inference.text_labeler import TextLabeler  # imports torch, which is slow

    return TextLabeler(folder, display_name, rules.build_cleaner), name


def find_classifier_dir(options: Namespace, memes: bool, stack: ExitStack) -> tuple[Path, str, str]:
    """The folder of --run or --model, the name of the folder for messages, and that of the model.

    memes: whether the default is the first classifier of memes. `stack` owns a downloaded copy.
    """
    name = options.model or model_bundle.resolve_run_name(
        options.run or find_first_classifier(memes), "classifiers"
    )
    # With --json, standard output has only JSON.
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        folder, _ = model_bundle.resolve_model_dir(
            name, options.model, model_bundle.MODEL_DIRS["classifiers"], "train_classifier", stack
        )
    return folder, f"--model: {options.model}" if options.model else str(folder), name


def find_first_classifier(memes: bool) -> str | None:
    """The first classifier of memes, or of texts. Raises InputError if none is for memes."""
    params = config.read_params()
    kinds = {name: row.get("kind") for name, row in (params.get("corpora") or {}).items()}
    for name, row in (params.get("classifiers") or {}).items():
        if (kinds.get(row.get("corpus")) == MEMES_KIND) == memes:
            return name
    if memes:
        raise InputError(
            "params.yaml has no classifier of memes: add a row to classifiers whose corpus is of "
            "kind memes, or name a trained folder with --model"
        )
    return None


def format_heading(
    requests: list[LabelRequest], labeler: "TextLabeler", name: str
) -> Iterator[str]:
    """Lines on what is labeled, and on missing inputs that the model replaces by placeholders."""
    num_texts, total = sum(request.has_text for request in requests), len(requests)
    yield f"Labeling {format_count(total, 'text' if num_texts else 'image')} with {name}"
    if not labeler.uses_images:
        yield "This model does not use images."
    elif num_missing := sum(request.load_image is None for request in requests):
        yield f"No image{format_share(num_missing, total)}: a placeholder is used."
    if num_missing := total - num_texts:
        yield f"No text{format_share(num_missing, total)}: a placeholder is used."


def format_share(count: int, total: int) -> str:
    return "" if total == 1 else f" in {count} of {total}"


def label_requests(
    requests: list[LabelRequest], labeler: "TextLabeler", batch_size: int
) -> Iterator[tuple[LabelRequest, "LabelInput", "TextLabels"]]:
    """The requests with their model inputs and labels, in order."""
    from pipelines.inference.text_labeler import build_input_from_text, build_input_from_words

    for batch in batched(requests, batch_size):
        items = []
        for request in batch:
            image = request.load_image and request.load_image()
            text = (request.text or "") if request.has_text else ""
            if isinstance(text, list):
                items.append(build_input_from_words(text, image))
            else:
                items.append(build_input_from_text(text, image))
        yield from zip(batch, items, labeler.label(items), strict=True)


def format_json(request: LabelRequest, item: "LabelInput", labels: "TextLabels") -> str:
    source = {"source": request.source} if ":" in request.source else {}
    row = source | {"text": item.text or None, "image": request.image} | asdict(labels)
    return json.dumps(row, ensure_ascii=False)


def format_labels(request: LabelRequest, item: "LabelInput", labels: "TextLabels") -> str:
    """A line with the input, and an indented line for each label."""
    from pipelines.inference.text_labeler import EntityPrediction

    heading = [to_single_line(item.text)] if item.text else []
    heading += [f"[{to_single_line(request.image)}]"] if request.image else []
    if isinstance(labels, EntityPrediction):
        lines = format_entities(labels.entities) or ["no entities"]
    else:
        lines = [f"{labels.label}, {labels.probability:.2f}"]
    if labels.words_not_read:
        lines.append(f"{format_count(labels.words_not_read, 'word')} at the end not read")
    return "\n".join(["", " ".join(heading), *(f"  {line}" for line in lines)])


def format_entities(entities: list["Entity"]) -> list[str]:
    width = max((len(entity.type) for entity in entities), default=0)
    return [
        f"{entity.type:{width}}  {to_single_line(entity.text)}, {format_word_range(entity)}"
        for entity in entities
    ]


def format_word_range(entity: "Entity") -> str:
    """The words of an entity, counted from 1."""
    first, last = entity.first + 1, entity.last + 1
    return f"word {first}" if first == last else f"words {first} to {last}"


def to_single_line(text: str) -> str:
    """`text` without line ends and without characters that control a terminal."""
    return " ".join(text_cleaning.INVISIBLE_CHARACTERS.sub("", text).split())
