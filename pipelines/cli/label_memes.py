"""`polymuse label` of memes: every task's label of a picture, or of each picture in a folder.

reads   a model folder (of --run, or --model), pictures, their words if --text gives them
writes  standard output: for people, or with --json an object a line
        --output     the same as a table, .parquet or .csv, instead of the lines for people
        --inpainted  a folder with the pictures without their words, each NAME.png

A picture of a folder that cannot be used is named and skipped. No file is lost: pictures are
written where no file is, and a table over none but one of this command.
"""

import csv
import json
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.cli.label import LabelCommandConfig, find_classifier_dir, to_single_line
from pipelines.inference.input_rules import (
    InputRules,
    format_count,
    image_suffixes,
    load_input_rules,
)
from stages.ingest.record_collector import make_printable
from stages.inpaint import __main__ as inpaint
from stages.shared.core import config
from stages.shared.data import image_store, parallel
from stages.shared.data.cache import batched
from stages.shared.runtime.stage import InputError

if TYPE_CHECKING:
    from pipelines.inference.meme_labeler import MemeInput, MemeLabeler, MemeLabels, PreparedMeme

MAX_SHOWN_CHARACTERS = 70  # characters of a meme's words, for people
TABLE_SUFFIXES = (".parquet", ".csv")
# What spreadsheets take for the beginning of a formula, and what they leave out before one.
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
MemeTableRow = dict[str, str | float]


def main(given: Namespace) -> None:
    """Raises WrongInput for what cannot be used, where pictures are of a folder if all cannot."""
    settings, limits = (
        config.load_config(LabelCommandConfig, "cli_label"),
        load_input_rules("cli_label"),
    )
    files = find_images(given, limits)
    check_table(given.output)
    targets = plan_output_paths(given.inpainted, files)
    with ExitStack() as stack:
        folder, called, name = find_classifier_dir(given, True, stack)
        from pipelines.inference.meme_labeler import (  # torch and what else is slow
            MemeLabeler,
            to_table_row,
        )

        labeller = MemeLabeler(folder, called)
        talk = partial(print, file=sys.stderr if given.json else sys.stdout, flush=True)
        talk(f"Labelling {format_count(len(files), 'picture')} with {name}")
        rows: list[MemeTableRow] = []
        for meme, labels in label_images(files, given, labeller, settings.batch_size, limits):
            rows.append({"image": make_printable(meme.name), **to_table_row(meme, labels)})
            if given.json:
                print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
            elif not given.output:
                print(format_meme(meme, labels), flush=True)
            if targets:
                write_image(meme.image, targets[meme.name])
    write_and_report(given, rows, len(files), talk)


def write_and_report(
    given: Namespace, rows: list[MemeTableRow], pictures: int, talk: Callable[[str], None]
) -> None:
    """Write the table and say what came out. Raises WrongInput if nothing did."""
    if not rows:
        raise InputError(f"{given.text}: none of its pictures can be used: name another folder")
    if given.output:
        write_table(rows, given.output)
        talk(f"Wrote {format_count(len(rows), 'row')} to {make_printable(str(given.output))}")
    if given.inpainted:
        talk(
            f"Wrote {format_count(len(rows), 'picture')} to {make_printable(str(given.inpainted))}"
        )
    if skipped := pictures - len(rows):
        print(
            f"{skipped} of {format_count(pictures, 'picture')} skipped", file=sys.stderr, flush=True
        )


# -------------------------------------------------------------------------------- what is given
def find_images(given: Namespace, limits: InputRules) -> list[Path]:
    """The picture, or those of the folder in the order of their names. Raises WrongInput."""
    if given.image or given.file:
        raise InputError(
            "--image and --file go with a text, and a picture or a folder is named in its place: "
            "leave them out; --text gives the words of a meme"
        )
    if not given.text.is_dir():
        limits.check_length(given.words or "", "--text")
        limits.read_image(given.text, str(given.text))  # before a model is loaded
        return [given.text]
    if given.words is not None:
        raise InputError(
            f"--text gives the words of one picture, and {given.text} is a folder: name a picture, "
            "or leave --text out, and words are read from the pictures"
        )
    return list_images(given.text)


def list_images(folder: Path) -> list[Path]:
    """By their names; not those of hidden files or of folders in it."""
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): name another one") from None
    named = [file for file in inside if file.suffix.lower() in image_suffixes()]
    found = [file for file in named if file.is_file() and not file.name.startswith(".")]
    if not found:
        why = "holds no picture" if inside else "is empty"
        raise InputError(
            f"{folder} {why}: name a folder whose pictures lie in it, and not in folders of it, "
            "with names that end in .jpg, .png, .webp or the like"
        )
    return found


# -------------------------------------------------------------------------------- labels
def label_images(
    files: list[Path], given: Namespace, labeller: "MemeLabeler", batch: int, limits: InputRules
) -> Iterator[tuple["PreparedMeme", "MemeLabels"]]:
    """Each picture that can be used; the others are named on standard error."""
    from pipelines.inference.meme_labeler import prepare_memes

    painting = config.load_config(inpaint.InpaintConfig, "inpaint")
    workers = config.load_config(parallel.EngineConfig, "parallel")
    step = partial(prepare_memes, params=painting, rules=limits)
    memes = batched(read_memes(files, given.words or "", limits), painting.batch_size)
    prepared = chain.from_iterable(parallel.map_batches(step, memes, workers))
    for part in batched(prepared, batch):
        yield from zip(part, labeller.label(part), strict=True)


def read_memes(files: list[Path], words: str, limits: InputRules) -> Iterator["MemeInput"]:
    """Memes by the names of their files; all but one alone may be unusable."""
    from pipelines.inference.meme_labeler import MemeInput

    for file in files:
        try:
            yield MemeInput(
                file.name, words, limits.read_image(file, to_single_line(make_printable(file.name)))
            )
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr, flush=True)


def format_meme(meme: "PreparedMeme", labels: "MemeLabels") -> str:
    """For people: the file and its words, a line of each task."""
    words = to_single_line(meme.text)
    words = (
        words
        if len(words) <= MAX_SHOWN_CHARACTERS
        else f"{words[: MAX_SHOWN_CHARACTERS - 3].rstrip()}..."
    )
    width = max((len(task) for task in labels), default=0)
    lines = [f"{to_single_line(make_printable(meme.name))}: {words or '(no words)'}"]
    lines += [
        f"  {task:{width}}  {one.label}, {one.probability:.2f}" for task, one in labels.items()
    ]
    lines += [f"  passed over in it: {to_single_line(failure)}" for failure in meme.failures]
    return "\n".join(["", *lines])


# -------------------------------------------------------------------------------- files
def plan_output_paths(folder: Path | None, files: list[Path]) -> dict[str, Path]:
    """Of each picture where it is written without words. Raises WrongInput if a file is there.

    NAME.png; of pictures that differ in nothing but the ending, name.jpg.png and name.webp.png.
    """
    if folder is None:
        return {}
    alike = Counter(file.stem.lower() for file in files)
    plain = {file: alike[file.stem.lower()] == 1 for file in files}
    targets = {
        file.name: folder / f"{file.stem if plain[file] else file.name}.png" for file in files
    }
    if len({target.name.lower() for target in targets.values()}) < len(files):
        raise InputError(f"--inpainted: names in {files[0].parent} are too alike: rename some")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = [target for target in targets.values() if target.exists()]
    except OSError as error:
        raise InputError(
            f"--inpainted: {folder} cannot be used ({error.strerror}): name another folder"
        ) from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"--inpainted: {folder} is not to be written in: name another folder")
    if there:
        raise InputError(
            f"--inpainted: {there[0]} is there already, and would be lost: name another folder"
        )
    return targets


def write_image(content: bytes, target: Path) -> None:
    """Its pixels alone, whatever a camera wrote beside them."""
    picture = image_store.decode_image(content)
    picture = image_store.resize_and_strip_metadata(picture, max(picture.size))
    try:
        with target.open("xb") as file:  # never over a file
            picture.save(file, "PNG")
    except OSError as error:
        raise InputError(
            f"--inpainted: {target} cannot be written ({error.strerror}): name another folder"
        ) from None


def check_table(file: Path | None) -> None:
    """Raises WrongInput if the table cannot be written, or what is there is none of ours."""
    if file is None:
        return
    if file.suffix.lower() not in TABLE_SUFFIXES:
        raise InputError(f"--output: {file} ends neither in .parquet nor in .csv: choose one")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"--output: {file.parent} is no folder to write in: name another file")
    from pipelines.inference.meme_labeler import TABLE_COLUMNS

    if file.exists() and tuple(read_columns(file)[: len(TABLE_COLUMNS)]) != TABLE_COLUMNS:
        raise InputError(
            f"--output: {file} is no table of this command, and would be lost: name another file"
        )


def read_columns(file: Path) -> list[str]:
    """Of a table, if it is one."""
    try:
        if file.suffix.lower() == ".parquet":
            return pq.read_schema(file).names
        with file.open(encoding="utf-8", newline="") as lines:
            return next(csv.reader(lines), [])
    except (OSError, ValueError, csv.Error, pa.ArrowException):
        return []


def write_table(rows: list[MemeTableRow], file: Path) -> None:
    """Whole or not at all."""
    partial_file = file.with_name(f".{file.name}.partial")
    try:
        if file.suffix.lower() == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), partial_file)
        else:
            with partial_file.open("w", encoding="utf-8", newline="") as lines:
                table = csv.writer(lines)
                table.writerow([escape_formula(name) for name in rows[0]])
                table.writerows([escape_formula(value) for value in row.values()] for row in rows)
        partial_file.replace(file)
    except OSError as error:
        raise InputError(
            f"--output: {file} cannot be written ({error.strerror}): name another file"
        ) from None
    finally:
        partial_file.unlink(missing_ok=True)


def escape_formula(value: str | float) -> str | float:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_PREFIXES) else value
