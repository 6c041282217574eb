"""`polymuse label`: the entities or the sentiment of a tweet or a post, or of a file of them.

reads   a model folder (of --run, or --model), texts and pictures
writes  standard output alone: for people, or with --json an object a line

All input is checked before anything is labelled. Memes have a file of their own, label_memes.py.
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
from stages.ingest.record_collector import make_printable, read_image_file
from stages.shared.core import config
from stages.shared.core.config import config_class
from stages.shared.data import text_cleaning
from stages.shared.data.cache import batched
from stages.shared.data.image_store import ImageError
from stages.shared.data.records import ImageFile, Rejection
from stages.shared.runtime.stage import InputError

if TYPE_CHECKING:
    from pipelines.inference.text_labeler import Entity, LabelInput, TextLabeler, TextLabels

MODEL_DIRS = {"train": "data/09_train_classifier"}  # of the models of readers
MEMES_KIND = "memes"  # kind of a corpus
ENCODINGS = ["utf-8"]


@config_class
class LabelCommandConfig:
    max_characters: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"params.yaml: read.batch is {self.batch_size}: give 1 or more")


@dataclass(frozen=True)
class LabelRequest:
    """What is to be labelled. text: with words of its own, a list of them; source: file:line."""

    source: str
    text: str | list[str] | None
    image: str | None
    load_image: Callable[[], bytes] | None  # the content of its file

    @property
    def has_text(self) -> bool:
        return has_visible_text(self.joined_text)

    @property
    def joined_text(self) -> str:
        return " ".join(self.text) if isinstance(self.text, list) else self.text or ""


class LabelLine(BaseModel):
    """A line of a .jsonl file; other keys are ignored, so that a corpus can be labelled."""

    model_config = ConfigDict(strict=True)

    text: str | None = None
    words: list[str] | None = None
    image: str | None = None


def main(given: Namespace) -> None:
    """Raises WrongInput, before anything is labelled, for input that cannot be used."""
    settings, limits = (
        config.load_config(LabelCommandConfig, "cli_label"),
        load_input_rules("cli_label"),
    )
    reject_meme_options(given)
    rows = read_requests(given, limits)
    with ExitStack() as stack:
        labeller, name = load_labeler(given, limits, stack)
        for row in rows:
            labeller.check_input(row.has_text, row.load_image is not None, row.source)
        if not given.json:
            print("\n".join(format_heading(rows, labeller, name)), flush=True)
        show = format_json if given.json else format_labels
        for row, item, labels in label_requests(rows, labeller, settings.batch_size):
            print(show(row, item, labels), flush=True)


def reject_meme_options(given: Namespace) -> None:
    """Raises WrongInput for options of memes, and for the name of a picture that is not there."""
    text = given.text or ""
    picture = Path(text).suffix.lower() in image_suffixes()
    if len(text.split()) == 1 and "://" not in text and (picture or text.endswith(os.sep)):
        raise InputError(
            f"{to_single_line(text)} does not exist: name a picture or a folder of them; a text that "
            "reads like that goes into a --file"
        )
    options = {"--text": given.words, "--output": given.output, "--inpainted": given.inpainted}
    if used := [option for option, value in options.items() if value is not None]:
        raise InputError(
            f"{used[0]} goes with memes, and {to_single_line(text)[:60] or 'nothing'} is no file: name a "
            "picture, or a folder of them"
        )


def read_requests(given: Namespace, limits: InputRules) -> list[LabelRequest]:
    """The text and picture of the command, or those of its file. Raises WrongInput."""
    if given.file:
        if given.text is not None or given.image:
            raise InputError(
                "--file stands for TEXT and --image: give either; the lines of a .jsonl file name "
                "their pictures"
            )
        return read_file(given.file, limits)
    if len(given.image) > 1:
        raise InputError(
            f"--image: {len(given.image)} pictures are given, and a text has one: give one, or a "
            "--file with a line for each"
        )
    picture = None
    if given.image:
        (file,) = given.image
        picture = partial(limits.read_image, file, f"--image: {file}")
        picture()
    row = LabelRequest("TEXT", given.text, make_printable(file.name) if picture else None, picture)
    limits.check_length(row.joined_text, row.source)
    if not row.has_text and not picture:
        raise InputError(
            "there is nothing to label: give a text in quotes, --image, or --file with many"
        )
    return [row]


def read_file(file: Path, limits: InputRules) -> list[LabelRequest]:
    """A row a line that is not blank. Raises WrongInput that names the line."""
    if file.suffix.lower() not in (".txt", ".jsonl"):
        raise InputError(
            f"--file: {file} is neither .txt, which has a text a line, nor .jsonl, whose lines "
            "have text and image: name one"
        )
    try:
        found = [read_line(line, file, limits) for line in read_lines(file, ENCODINGS, "--file")]
    except OSError as error:
        raise InputError(
            f"--file: {file} cannot be read ({error.strerror}): name another one"
        ) from None
    if not found:
        raise InputError(f"--file: {file} holds no text: put one on each line")
    return found


def read_line(line: tuple[str, str] | Rejection, file: Path, limits: InputRules) -> LabelRequest:
    if isinstance(line, Rejection):
        raise InputError(f"{line.source}: {line.reason}: save the file as UTF-8")
    source, text = line
    row = LabelRequest(source, text, None, None)
    if file.suffix.lower() == ".jsonl":
        row = read_json_line(source, text, file.parent, limits)
    limits.check_length(row.joined_text, source)
    if not row.has_text and row.load_image is None:
        raise InputError(f"{source}: neither a text nor an image is there: give it one")
    return row


def read_json_line(source: str, text: str, folder: Path, limits: InputRules) -> LabelRequest:
    try:
        line = LabelLine.model_validate_json(text)
    except ValidationError as error:
        raise InputError(
            f"{source}: {describe_validation_error(error)}: correct the line"
        ) from None
    picture = None
    if line.image:
        picture = partial(read_named_image, ImageFile(line.image, folder), source, limits)
        picture()
    return LabelRequest(source, line.words or line.text, line.image or None, picture)


def read_named_image(picture: ImageFile, source: str, limits: InputRules) -> bytes:
    """Its content; it lies in the file's folder, as that of a corpus does. Raises WrongInput."""
    try:
        content = read_image_file(picture, picture.folder, limits.max_pixels)
    except ImageError as error:
        raise InputError(f"{source}: {error}: name another one") from None
    return limits.check_image(content, f"{source}: {picture.path}")


def load_labeler(
    given: Namespace, limits: InputRules, stack: ExitStack
) -> tuple["TextLabeler", str]:
    """The reader of --run or --model, and what it is called. A copy lasts as long as the stack."""
    folder, called, name = find_classifier_dir(given, False, stack)
    from pipelines.inference.text_labeler import TextLabeler  # torch and what else is slow

    return TextLabeler(folder, called, limits.build_cleaner), name


def find_classifier_dir(given: Namespace, memes: bool, stack: ExitStack) -> tuple[Path, str, str]:
    """Where the reader of --run or --model lies, how its user knows the folder and the reader.

    memes: which kind it is without either. A copy lasts as long as the stack.
    """
    name = given.model or model_bundle.resolve_run_name(
        given.run or find_first_classifier(memes), "classifiers"
    )
    # With --json nothing else is said on standard output.
    with redirect_stdout(sys.stderr if given.json else sys.stdout):
        folder, _ = model_bundle.resolve_model_dir(name, given.model, MODEL_DIRS, "train", stack)
    return folder, f"--model: {given.model}" if given.model else str(folder), name


def find_first_classifier(memes: bool) -> str | None:
    """The first row of readers of memes, or of anything else. Raises WrongInput without memes."""
    rows = config.read_params()
    kinds = {name: row.get("kind") for name, row in (rows.get("corpora") or {}).items()}
    for name, row in (rows.get("classifiers") or {}).items():
        if (kinds.get(row.get("corpus")) == MEMES_KIND) == memes:
            return name
    if memes:
        raise InputError(
            "params.yaml has no reader of memes among its readers: add a row whose corpus is of "
            "kind memes, or name a trained folder with --model"
        )
    return None


def format_heading(rows: list[LabelRequest], labeller: "TextLabeler", name: str) -> Iterator[str]:
    """What is done, and where a placeholder stands for what is missing."""
    texts, all_of = sum(row.has_text for row in rows), len(rows)
    yield f"Labelling {format_count(all_of, 'text' if texts else 'picture')} with {name}"
    if not labeller.uses_images:
        yield "This model does not look at pictures."
    elif bare := sum(row.load_image is None for row in rows):
        yield f"No picture{format_share(bare, all_of)}: the placeholder is read."
    if silent := all_of - texts:
        yield f"No text{format_share(silent, all_of)}: the placeholder is read."


def format_share(some: int, all_of: int) -> str:
    return "" if all_of == 1 else f" in {some} of {all_of}"


def label_requests(
    rows: list[LabelRequest], labeller: "TextLabeler", batch: int
) -> Iterator[tuple[LabelRequest, "LabelInput", "TextLabels"]]:
    from pipelines.inference.text_labeler import build_input_from_text, build_input_from_words

    for part in batched(rows, batch):
        items = []
        for row in part:
            picture = row.load_image and row.load_image()
            text = (row.text or "") if row.has_text else ""
            items.append(
                (build_input_from_words if isinstance(text, list) else build_input_from_text)(
                    text, picture
                )
            )
        yield from zip(part, items, labeller.label(items), strict=True)


def format_json(row: LabelRequest, item: "LabelInput", labels: "TextLabels") -> str:
    source = {"source": row.source} if ":" in row.source else {}
    told = source | {"text": item.text or None, "image": row.image} | asdict(labels)
    return json.dumps(told, ensure_ascii=False)


def format_labels(row: LabelRequest, item: "LabelInput", labels: "TextLabels") -> str:
    """For people: a line of what was read, a line of each label."""
    from pipelines.inference.text_labeler import EntityPrediction

    read = [to_single_line(item.text)] if item.text else []
    read += [f"[{to_single_line(row.image)}]"] if row.image else []
    if isinstance(labels, EntityPrediction):
        told = format_entities(labels.entities) or ["no entities"]
    else:
        told = [f"{labels.label}, {labels.probability:.2f}"]
    if labels.words_not_read:
        told.append(f"{format_count(labels.words_not_read, 'word')} at the end not read")
    return "\n".join(["", " ".join(read), *(f"  {line}" for line in told)])


def format_entities(found: list["Entity"]) -> list[str]:
    width = max((len(one.type) for one in found), default=0)
    return [
        f"{one.type:{width}}  {to_single_line(one.text)}, {format_word_range(one)}" for one in found
    ]


def format_word_range(entity: "Entity") -> str:
    """Counted from 1, as people do."""
    first, last = entity.first + 1, entity.last + 1
    return f"word {first}" if first == last else f"words {first} to {last}"


def to_single_line(text: str) -> str:
    """Without line ends, and without what would steer a terminal."""
    return " ".join(text_cleaning.INVISIBLE_CHARACTERS.sub("", text).split())
