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

from pipelines.cli.label import Params, one_line, reader_folder
from pipelines.inference.input_rules import Rules, count, rules, suffixes
from stages.ingest.record_collector import printable
from stages.inpaint import __main__ as inpaint
from stages.shared.core import config
from stages.shared.data import image_store, parallel
from stages.shared.data.cache import batched
from stages.shared.runtime.stage import WrongInput

if TYPE_CHECKING:
    from pipelines.inference.meme_labeler import Labels, Meme, MemeLabeller, Prepared

SHOWN = 70  # characters of a meme's words, for people
TABLES = (".parquet", ".csv")
# What spreadsheets take for the beginning of a formula, and what they leave out before one.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
Row = dict[str, str | float]


def main(given: Namespace) -> None:
    """Raises WrongInput for what cannot be used, where pictures are of a folder if all cannot."""
    settings, limits = config.load(Params, "read"), rules("read")
    files = pictures_of(given, limits)
    check_table(given.output)
    targets = targets_of(given.inpainted, files)
    with ExitStack() as stack:
        folder, called, name = reader_folder(given, True, stack)
        from pipelines.inference.meme_labeler import (  # torch and what else is slow
            MemeLabeller,
            fields,
        )

        labeller = MemeLabeller(folder, called)
        talk = partial(print, file=sys.stderr if given.json else sys.stdout, flush=True)
        talk(f"Labelling {count(len(files), 'picture')} with {name}")
        rows: list[Row] = []
        for meme, labels in labelled(files, given, labeller, settings.batch, limits):
            rows.append({"image": printable(meme.name), **fields(meme, labels)})
            if given.json:
                print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
            elif not given.output:
                print(shown(meme, labels), flush=True)
            if targets:
                write_picture(meme.picture, targets[meme.name])
    finish(given, rows, len(files), talk)


def finish(given: Namespace, rows: list[Row], pictures: int, talk: Callable[[str], None]) -> None:
    """Write the table and say what came out. Raises WrongInput if nothing did."""
    if not rows:
        raise WrongInput(f"{given.text}: none of its pictures can be used: name another folder")
    if given.output:
        write_table(rows, given.output)
        talk(f"Wrote {count(len(rows), 'row')} to {printable(str(given.output))}")
    if given.inpainted:
        talk(f"Wrote {count(len(rows), 'picture')} to {printable(str(given.inpainted))}")
    if skipped := pictures - len(rows):
        print(f"{skipped} of {count(pictures, 'picture')} skipped", file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------- what is given
def pictures_of(given: Namespace, limits: Rules) -> list[Path]:
    """The picture, or those of the folder in the order of their names. Raises WrongInput."""
    if given.image or given.file:
        raise WrongInput(
            "--image and --file go with a text, and a picture or a folder is named in its place: "
            "leave them out; --text gives the words of a meme"
        )
    if not given.text.is_dir():
        limits.length(given.words or "", "--text")
        limits.file(given.text, str(given.text))  # before a model is loaded
        return [given.text]
    if given.words is not None:
        raise WrongInput(
            f"--text gives the words of one picture, and {given.text} is a folder: name a picture, "
            "or leave --text out, and words are read from the pictures"
        )
    return pictures_in(given.text)


def pictures_in(folder: Path) -> list[Path]:
    """By their names; not those of hidden files or of folders in it."""
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise WrongInput(f"{folder} cannot be read ({error.strerror}): name another one") from None
    named = [file for file in inside if file.suffix.lower() in suffixes()]
    found = [file for file in named if file.is_file() and not file.name.startswith(".")]
    if not found:
        why = "holds no picture" if inside else "is empty"
        raise WrongInput(
            f"{folder} {why}: name a folder whose pictures lie in it, and not in folders of it, "
            "with names that end in .jpg, .png, .webp or the like"
        )
    return found


# -------------------------------------------------------------------------------- labels
def labelled(
    files: list[Path], given: Namespace, labeller: "MemeLabeller", batch: int, limits: Rules
) -> Iterator[tuple["Prepared", "Labels"]]:
    """Each picture that can be used; the others are named on standard error."""
    from pipelines.inference.meme_labeler import prepare

    painting = config.load(inpaint.Params, "inpaint")
    workers = config.load(parallel.Params, "engine")
    step = partial(prepare, params=painting, rules=limits)
    memes = batched(read(files, given.words or "", limits), painting.batch)
    prepared = chain.from_iterable(parallel.run(step, memes, workers))
    for part in batched(prepared, batch):
        yield from zip(part, labeller.label(part), strict=True)


def read(files: list[Path], words: str, limits: Rules) -> Iterator["Meme"]:
    """Memes by the names of their files; all but one alone may be unusable."""
    from pipelines.inference.meme_labeler import Meme

    for file in files:
        try:
            yield Meme(file.name, words, limits.file(file, one_line(printable(file.name))))
        except WrongInput as error:
            print(f"skipped: {error}", file=sys.stderr, flush=True)


def shown(meme: "Prepared", labels: "Labels") -> str:
    """For people: the file and its words, a line of each task."""
    words = one_line(meme.text)
    words = words if len(words) <= SHOWN else f"{words[: SHOWN - 3].rstrip()}..."
    width = max((len(task) for task in labels), default=0)
    lines = [f"{one_line(printable(meme.name))}: {words or '(no words)'}"]
    lines += [
        f"  {task:{width}}  {one.label}, {one.probability:.2f}" for task, one in labels.items()
    ]
    lines += [f"  passed over in it: {one_line(failure)}" for failure in meme.failures]
    return "\n".join(["", *lines])


# -------------------------------------------------------------------------------- files
def targets_of(folder: Path | None, files: list[Path]) -> dict[str, Path]:
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
        raise WrongInput(f"--inpainted: names in {files[0].parent} are too alike: rename some")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = [target for target in targets.values() if target.exists()]
    except OSError as error:
        raise WrongInput(
            f"--inpainted: {folder} cannot be used ({error.strerror}): name another folder"
        ) from None
    if not os.access(folder, os.W_OK):
        raise WrongInput(f"--inpainted: {folder} is not to be written in: name another folder")
    if there:
        raise WrongInput(
            f"--inpainted: {there[0]} is there already, and would be lost: name another folder"
        )
    return targets


def write_picture(content: bytes, target: Path) -> None:
    """Its pixels alone, whatever a camera wrote beside them."""
    picture = image_store.decode(content)
    picture = image_store.redraw(picture, max(picture.size))
    try:
        with target.open("xb") as file:  # never over a file
            picture.save(file, "PNG")
    except OSError as error:
        raise WrongInput(
            f"--inpainted: {target} cannot be written ({error.strerror}): name another folder"
        ) from None


def check_table(file: Path | None) -> None:
    """Raises WrongInput if the table cannot be written, or what is there is none of ours."""
    if file is None:
        return
    if file.suffix.lower() not in TABLES:
        raise WrongInput(f"--output: {file} ends neither in .parquet nor in .csv: choose one")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise WrongInput(f"--output: {file.parent} is no folder to write in: name another file")
    from pipelines.inference.meme_labeler import COLUMNS

    if file.exists() and tuple(columns_of(file)[: len(COLUMNS)]) != COLUMNS:
        raise WrongInput(
            f"--output: {file} is no table of this command, and would be lost: name another file"
        )


def columns_of(file: Path) -> list[str]:
    """Of a table, if it is one."""
    try:
        if file.suffix.lower() == ".parquet":
            return pq.read_schema(file).names
        with file.open(encoding="utf-8", newline="") as lines:
            return next(csv.reader(lines), [])
    except (OSError, ValueError, csv.Error, pa.ArrowException):
        return []


def write_table(rows: list[Row], file: Path) -> None:
    """Whole or not at all."""
    partial_file = file.with_name(f".{file.name}.partial")
    try:
        if file.suffix.lower() == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), partial_file)
        else:
            with partial_file.open("w", encoding="utf-8", newline="") as lines:
                table = csv.writer(lines)
                table.writerow([harmless(name) for name in rows[0]])
                table.writerows([harmless(value) for value in row.values()] for row in rows)
        partial_file.replace(file)
    except OSError as error:
        raise WrongInput(
            f"--output: {file} cannot be written ({error.strerror}): name another file"
        ) from None
    finally:
        partial_file.unlink(missing_ok=True)


def harmless(value: str | float) -> str | float:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
