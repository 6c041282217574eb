"""`polymuse label` of memes: a label for each task, for one image or all images of a folder.

reads   the model folder of --run or --model, images, and their text if --text gives it
writes  standard output: text, or with --json one JSON object a line
        --output     a .parquet or .csv table, in place of the text
        --inpainted  a folder with the images without their text, as NAME.png

Invalid images in a folder are named and skipped. Existing files are never overwritten, except a
table that this command wrote.
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

MAX_SHOWN_CHARACTERS = 70  # of a meme's text, on standard output
TABLE_SUFFIXES = (".parquet", ".csv")
# First characters that make a spreadsheet read a cell as a formula.
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
MemeTableRow = dict[str, str | float]


def main(options: Namespace) -> None:
    """Label the images of the command and write the labels.

    Raises InputError for invalid input; in a folder, only if none of its images is valid.
    """
    settings = config.load_config(LabelCommandConfig, "cli_label")
    rules = load_input_rules("cli_label")
    files = find_images(options, rules)
    check_table(options.output)
    targets = plan_output_paths(options.inpainted, files)
    log = partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    rows: list[MemeTableRow] = []
    with ExitStack() as stack:
        folder, display_name, name = find_classifier_dir(options, True, stack)
        from pipelines.inference.meme_labeler import (  # imports torch, which is slow
            MemeLabeler,
            to_table_row,
        )

        labeler = MemeLabeler(folder, display_name)
        log(f"Labeling {format_count(len(files), 'image')} with {name}")
        for meme, labels in label_images(files, options, labeler, settings.batch_size, rules):
            rows.append({"image": make_printable(meme.name), **to_table_row(meme, labels)})
            if options.json:
                print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
            elif not options.output:
                print(format_meme(meme, labels), flush=True)
            if targets and meme.image:
                write_image(meme.image, targets[meme.name])
    write_and_report(options, rows, len(files), log)


def write_and_report(
    options: Namespace, rows: list[MemeTableRow], num_images: int, log: Callable[[str], None]
) -> None:
    """Write the table and report the counts. Raises InputError if there are no rows."""
    if not rows:
        raise InputError(f"{options.text}: none of its images is valid: name another folder")
    if options.output:
        write_table(rows, options.output)
        log(f"Wrote {format_count(len(rows), 'row')} to {make_printable(str(options.output))}")
    if options.inpainted:
        folder = make_printable(str(options.inpainted))
        log(f"Wrote {format_count(len(rows), 'image')} to {folder}")
    if skipped := num_images - len(rows):
        total = format_count(num_images, "image")
        print(f"{skipped} of {total} skipped", file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------- input
def find_images(options: Namespace, rules: InputRules) -> list[Path]:
    """The image, or the images of the folder sorted by name. Raises InputError."""
    if options.image or options.file:
        raise InputError(
            "--image and --file are options for texts: leave them out; use --text to give the "
            "overlay text of a meme"
        )
    if not options.text.is_dir():
        rules.check_length(options.words or "", "--text")
        rules.read_image(options.text, str(options.text))  # before a model is loaded
        return [options.text]
    if options.words is not None:
        raise InputError(
            f"--text is the text of one image, and {options.text} is a folder: name an image, or "
            "leave --text out to read the texts from the images"
        )
    return list_images(options.text)


def list_images(folder: Path) -> list[Path]:
    """The image files in `folder` by name, without hidden files and subfolders."""
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): name another one") from None
    images = [
        file
        for file in files
        if file.suffix.lower() in image_suffixes()
        and file.is_file()
        and not file.name.startswith(".")
    ]
    if not images:
        why = "has no image" if files else "is empty"
        raise InputError(
            f"{folder} {why}: name a folder with images directly in it, whose names end in .jpg, "
            ".png, .webp or the like"
        )
    return images


# -------------------------------------------------------------------------------- labels
def label_images(
    files: list[Path],
    options: Namespace,
    labeler: "MemeLabeler",
    batch_size: int,
    rules: InputRules,
) -> Iterator[tuple["PreparedMeme", "MemeLabels"]]:
    """The valid images with their labels; invalid images are named on standard error."""
    from pipelines.inference.meme_labeler import prepare_memes

    inpaint_config = config.load_config(inpaint.InpaintConfig, "inpaint")
    engine = config.load_config(parallel.EngineConfig, "parallel")
    prepare = partial(prepare_memes, params=inpaint_config, rules=rules)
    memes = batched(read_memes(files, options.words or "", rules), inpaint_config.batch_size)
    prepared = chain.from_iterable(parallel.map_batches(prepare, memes, engine))
    for batch in batched(prepared, batch_size):
        yield from zip(batch, labeler.label(batch), strict=True)


def read_memes(files: list[Path], words: str, rules: InputRules) -> Iterator["MemeInput"]:
    """The valid files as memes with the name of their file and the overlay text `words`."""
    from pipelines.inference.meme_labeler import MemeInput

    for file in files:
        try:
            content = rules.read_image(file, to_single_line(make_printable(file.name)))
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr, flush=True)
            continue
        yield MemeInput(file.name, words, content)


def format_meme(meme: "PreparedMeme", labels: "MemeLabels") -> str:
    """A line with the file and its text, and an indented line for each task."""
    text = to_single_line(meme.text)
    if len(text) > MAX_SHOWN_CHARACTERS:
        text = f"{text[: MAX_SHOWN_CHARACTERS - 3].rstrip()}..."
    width = max((len(task) for task in labels), default=0)
    lines = [f"{to_single_line(make_printable(meme.name))}: {text or '(no text)'}"]
    lines += [
        f"  {task:{width}}  {label.label}, {label.probability:.2f}"
        for task, label in labels.items()
    ]
    lines += [f"  failed step: {to_single_line(failure)}" for failure in meme.failures]
    return "\n".join(["", *lines])


# -------------------------------------------------------------------------------- files
def plan_output_paths(folder: Path | None, files: list[Path]) -> dict[str, Path]:
    """File name -> where its image without text is written.

    The path is NAME.png; for files that differ only in their suffix, name.jpg.png and
    name.webp.png. Raises InputError if one of the paths exists.
    """
    if folder is None:
        return {}
    counts = Counter(file.stem.lower() for file in files)
    is_unique = {file: counts[file.stem.lower()] == 1 for file in files}
    targets = {
        file.name: folder / f"{file.stem if is_unique[file] else file.name}.png" for file in files
    }
    if len({target.name.lower() for target in targets.values()}) < len(files):
        raise InputError(f"--inpainted: names in {files[0].parent} are too similar: rename some")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        existing = [target for target in targets.values() if target.exists()]
    except OSError as error:
        raise InputError(
            f"--inpainted: {folder} cannot be used ({error.strerror}): name another folder"
        ) from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"--inpainted: {folder} is not writable: name another folder")
    if existing:
        raise InputError(
            f"--inpainted: {existing[0]} exists and would be overwritten: name another folder"
        )
    return targets


def write_image(content: bytes, target: Path) -> None:
    """Write the pixels of an image, without its metadata, to a new PNG file."""
    image = image_store.decode_image(content)
    image = image_store.resize_and_strip_metadata(image, max(image.size))
    try:
        with target.open("xb") as file:  # fails if the file exists
            image.save(file, "PNG")
    except OSError as error:
        raise InputError(
            f"--inpainted: {target} cannot be written ({error.strerror}): name another folder"
        ) from None


def check_table(file: Path | None) -> None:
    """Raises InputError if the table cannot be written or would overwrite another file."""
    if file is None:
        return
    if file.suffix.lower() not in TABLE_SUFFIXES:
        raise InputError(f"--output: {file} ends neither in .parquet nor in .csv: use one of them")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"--output: {file.parent} is not a writable folder: name another file")
    from pipelines.inference.meme_labeler import TABLE_COLUMNS

    if file.exists() and tuple(read_columns(file)[: len(TABLE_COLUMNS)]) != TABLE_COLUMNS:
        raise InputError(
            f"--output: {file} is not a table of this command and would be overwritten: name "
            "another file"
        )


def read_columns(file: Path) -> list[str]:
    """The column names of a table; empty if the file is not a table."""
    try:
        if file.suffix.lower() == ".parquet":
            return pq.read_schema(file).names
        with file.open(encoding="utf-8", newline="") as lines:
            return next(csv.reader(lines), [])
    except (OSError, ValueError, csv.Error, pa.ArrowException):
        return []


def write_table(rows: list[MemeTableRow], file: Path) -> None:
    """Write all rows, or leave `file` as it was."""
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
    """The content of a cell, escaped so that a spreadsheet does not read it as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_PREFIXES) else value
