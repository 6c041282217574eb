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
from pipelines.inference.input_rules import Rules, count, readable, rules, suffixes
from stages.datasets.common.files import lines, reason
from stages.ingest.record_collector import printable, read_picture
from stages.shared.core import config
from stages.shared.data import text_cleaning
from stages.shared.data.cache import batched
from stages.shared.data.image_store import WrongImage
from stages.shared.data.records import PictureFile, Reject
from stages.shared.runtime.stage import WrongInput

if TYPE_CHECKING:
    from pipelines.inference.text_labeler import Entity, Item, Labeller, Labels

PLACES = {"train": "data/09_train_classifier"}  # of the models of readers
MEMES = "memes"  # kind of a corpus
ENCODINGS = ["utf-8"]


@dataclass(frozen=True)
class Params:
    max_characters: int
    batch: int

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise WrongInput(f"params.yaml: read.batch is {self.batch}: give 1 or more")


@dataclass(frozen=True)
class Row:
    """What is to be labelled. text: with words of its own, a list of them; source: file:line."""

    source: str
    text: str | list[str] | None
    image: str | None
    picture: Callable[[], bytes] | None  # the content of its file

    @property
    def has_text(self) -> bool:
        return readable(self.as_one)

    @property
    def as_one(self) -> str:
        return " ".join(self.text) if isinstance(self.text, list) else self.text or ""


class Line(BaseModel):
    """A line of a .jsonl file; other keys are ignored, so that a corpus can be labelled."""

    model_config = ConfigDict(strict=True)

    text: str | None = None
    words: list[str] | None = None
    image: str | None = None


def main(given: Namespace) -> None:
    """Raises WrongInput, before anything is labelled, for input that cannot be used."""
    settings, limits = config.load(Params, "read"), rules("read")
    no_meme(given)
    rows = read_rows(given, limits)
    with ExitStack() as stack:
        labeller, name = load_labeller(given, limits, stack)
        for row in rows:
            labeller.check(row.has_text, row.picture is not None, row.source)
        if not given.json:
            print("\n".join(heading(rows, labeller, name)), flush=True)
        show = as_json if given.json else shown
        for row, item, labels in labelled(rows, labeller, settings.batch):
            print(show(row, item, labels), flush=True)


def no_meme(given: Namespace) -> None:
    """Raises WrongInput for options of memes, and for the name of a picture that is not there."""
    text = given.text or ""
    picture = Path(text).suffix.lower() in suffixes()
    if len(text.split()) == 1 and "://" not in text and (picture or text.endswith(os.sep)):
        raise WrongInput(
            f"{one_line(text)} does not exist: name a picture or a folder of them; a text that "
            "reads like that goes into a --file"
        )
    options = {"--text": given.words, "--output": given.output, "--inpainted": given.inpainted}
    if used := [option for option, value in options.items() if value is not None]:
        raise WrongInput(
            f"{used[0]} goes with memes, and {one_line(text)[:60] or 'nothing'} is no file: name a "
            "picture, or a folder of them"
        )


def read_rows(given: Namespace, limits: Rules) -> list[Row]:
    """The text and picture of the command, or those of its file. Raises WrongInput."""
    if given.file:
        if given.text is not None or given.image:
            raise WrongInput(
                "--file stands for TEXT and --image: give either; the lines of a .jsonl file name "
                "their pictures"
            )
        return read_file(given.file, limits)
    if len(given.image) > 1:
        raise WrongInput(
            f"--image: {len(given.image)} pictures are given, and a text has one: give one, or a "
            "--file with a line for each"
        )
    picture = None
    if given.image:
        (file,) = given.image
        picture = partial(limits.file, file, f"--image: {file}")
        picture()
    row = Row("TEXT", given.text, printable(file.name) if picture else None, picture)
    limits.length(row.as_one, row.source)
    if not row.has_text and not picture:
        raise WrongInput(
            "there is nothing to label: give a text in quotes, --image, or --file with many"
        )
    return [row]


def read_file(file: Path, limits: Rules) -> list[Row]:
    """A row a line that is not blank. Raises WrongInput that names the line."""
    if file.suffix.lower() not in (".txt", ".jsonl"):
        raise WrongInput(
            f"--file: {file} is neither .txt, which has a text a line, nor .jsonl, whose lines "
            "have text and image: name one"
        )
    try:
        found = [read_line(line, file, limits) for line in lines(file, ENCODINGS, "--file")]
    except OSError as error:
        raise WrongInput(
            f"--file: {file} cannot be read ({error.strerror}): name another one"
        ) from None
    if not found:
        raise WrongInput(f"--file: {file} holds no text: put one on each line")
    return found


def read_line(line: tuple[str, str] | Reject, file: Path, limits: Rules) -> Row:
    if isinstance(line, Reject):
        raise WrongInput(f"{line.source}: {line.reason}: save the file as UTF-8")
    source, text = line
    row = Row(source, text, None, None)
    if file.suffix.lower() == ".jsonl":
        row = read_object(source, text, file.parent, limits)
    limits.length(row.as_one, source)
    if not row.has_text and row.picture is None:
        raise WrongInput(f"{source}: neither a text nor an image is there: give it one")
    return row


def read_object(source: str, text: str, folder: Path, limits: Rules) -> Row:
    try:
        line = Line.model_validate_json(text)
    except ValidationError as error:
        raise WrongInput(f"{source}: {reason(error)}: correct the line") from None
    picture = None
    if line.image:
        picture = partial(named_picture, PictureFile(line.image, folder), source, limits)
        picture()
    return Row(source, line.words or line.text, line.image or None, picture)


def named_picture(picture: PictureFile, source: str, limits: Rules) -> bytes:
    """Its content; it lies in the file's folder, as that of a corpus does. Raises WrongInput."""
    try:
        content = read_picture(picture, picture.folder, limits.max_pixels)
    except WrongImage as error:
        raise WrongInput(f"{source}: {error}: name another one") from None
    return limits.picture(content, f"{source}: {picture.path}")


def load_labeller(given: Namespace, limits: Rules, stack: ExitStack) -> tuple["Labeller", str]:
    """The reader of --run or --model, and what it is called. A copy lasts as long as the stack."""
    folder, called, name = reader_folder(given, False, stack)
    from pipelines.inference.text_labeler import Labeller  # torch and what else is slow

    return Labeller(folder, called, limits.cleaner), name


def reader_folder(given: Namespace, memes: bool, stack: ExitStack) -> tuple[Path, str, str]:
    """Where the reader of --run or --model lies, how its user knows the folder and the reader.

    memes: which kind it is without either. A copy lasts as long as the stack.
    """
    name = given.model or model_bundle.run_name(given.run or first_reader(memes), "readers")
    # With --json nothing else is said on standard output.
    with redirect_stdout(sys.stderr if given.json else sys.stdout):
        folder, _ = model_bundle.model_folder(name, given.model, PLACES, "train", stack)
    return folder, f"--model: {given.model}" if given.model else str(folder), name


def first_reader(memes: bool) -> str | None:
    """The first row of readers of memes, or of anything else. Raises WrongInput without memes."""
    rows = config.read()
    kinds = {name: row.get("kind") for name, row in (rows.get("corpora") or {}).items()}
    for name, row in (rows.get("readers") or {}).items():
        if (kinds.get(row.get("corpus")) == MEMES) == memes:
            return name
    if memes:
        raise WrongInput(
            "params.yaml has no reader of memes among its readers: add a row whose corpus is of "
            "kind memes, or name a trained folder with --model"
        )
    return None


def heading(rows: list[Row], labeller: "Labeller", name: str) -> Iterator[str]:
    """What is done, and where a placeholder stands for what is missing."""
    texts, all_of = sum(row.has_text for row in rows), len(rows)
    yield f"Labelling {count(all_of, 'text' if texts else 'picture')} with {name}"
    if not labeller.looks:
        yield "This model does not look at pictures."
    elif bare := sum(row.picture is None for row in rows):
        yield f"No picture{among(bare, all_of)}: the placeholder is read."
    if silent := all_of - texts:
        yield f"No text{among(silent, all_of)}: the placeholder is read."


def among(some: int, all_of: int) -> str:
    return "" if all_of == 1 else f" in {some} of {all_of}"


def labelled(
    rows: list[Row], labeller: "Labeller", batch: int
) -> Iterator[tuple[Row, "Item", "Labels"]]:
    from pipelines.inference.text_labeler import of_text, of_words

    for part in batched(rows, batch):
        items = []
        for row in part:
            picture = row.picture and row.picture()
            text = (row.text or "") if row.has_text else ""
            items.append((of_words if isinstance(text, list) else of_text)(text, picture))
        yield from zip(part, items, labeller.label(items), strict=True)


def as_json(row: Row, item: "Item", labels: "Labels") -> str:
    source = {"source": row.source} if ":" in row.source else {}
    told = source | {"text": item.text or None, "image": row.image} | asdict(labels)
    return json.dumps(told, ensure_ascii=False)


def shown(row: Row, item: "Item", labels: "Labels") -> str:
    """For people: a line of what was read, a line of each label."""
    from pipelines.inference.text_labeler import Tags

    read = [one_line(item.text)] if item.text else []
    read += [f"[{one_line(row.image)}]"] if row.image else []
    if isinstance(labels, Tags):
        told = entity_lines(labels.entities) or ["no entities"]
    else:
        told = [f"{labels.label}, {labels.probability:.2f}"]
    if labels.words_not_read:
        told.append(f"{count(labels.words_not_read, 'word')} at the end not read")
    return "\n".join(["", " ".join(read), *(f"  {line}" for line in told)])


def entity_lines(found: list["Entity"]) -> list[str]:
    width = max((len(one.type) for one in found), default=0)
    return [f"{one.type:{width}}  {one_line(one.text)}, {place(one)}" for one in found]


def place(entity: "Entity") -> str:
    """Counted from 1, as people do."""
    first, last = entity.first + 1, entity.last + 1
    return f"word {first}" if first == last else f"words {first} to {last}"


def one_line(text: str) -> str:
    """Without line ends, and without what would steer a terminal."""
    return " ".join(text_cleaning.INVISIBLE.sub("", text).split())
