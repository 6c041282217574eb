"""What the columns of a table of memes hold: image, text, split, language and labels.

A column is the image if its values name image files of the folder, the split if they name splits,
a task if a few values are repeated. Of the others, the text is the column named so, or the only one
with whole phrases.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

import regex

from stages.datasets import table
from stages.datasets.common import csv_reader
from stages.datasets.common.encodings import HAN_PATTERN, KANA_PATTERN
from stages.datasets.common.files import read_lines
from stages.ingest.language_codes import parse_language
from stages.shared.data.records import Rejection
from stages.shared.runtime.stage import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FALLBACK_ENCODINGS = ["utf-8", "gb18030", "latin-1"]
MIN_SHARE = 0.5  # of a column's values that decides what it holds
MAX_LABELS, MAX_LABEL_LENGTH, MIN_ROWS_PER_LABEL = 10, 40, 4
MIN_LIST_LABEL_SHARE = 0.1  # of the rows that have a value of a list, if it is to be a task
ID_NAMES = ("id", "guid", "uuid", "key")
LANGUAGE_NAMES = ("language", "lang")
YES_NO = {frozenset({"0", "1"}): "1", frozenset({"false", "true"}): "true"}
DECIMAL_PATTERN = regex.compile(r"-?\d*\.\d*[1-9]\d*")
URL_PATTERN = regex.compile(r"\w+://|www\.")


class AmbiguousTable(InputError):
    """A table of memes of which an option has to decide what a column holds."""


class UnlabeledTable(AmbiguousTable):
    """A table without labels; it may hold another kind of data than memes."""


@dataclass(frozen=True)
class ColumnOptions:
    """What the user said: names of the table and of columns; "" stands for no column."""

    table: str | None = None
    image: str | None = None
    text: str | None = None
    split: str | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableColumn:
    name: str
    values: list[Any]  # without empty ones

    @cached_property
    def texts(self) -> list[str]:
        """The values that are no lists, as texts."""
        values = [value for value in self.values if not isinstance(value, list | dict)]
        return [table.format_value(value).strip() for value in values]

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(map(table.normalize_label, self.texts))

    @property
    def is_list(self) -> bool:
        return len(self.texts) < len(self.values)

    def has_mostly(self, matches: Iterable[bool]) -> bool:
        return bool(self.values) and sum(matches) > MIN_SHARE * len(self.values)

    def has_mostly_different_values(self) -> bool:
        return len(self.counts) > MIN_SHARE * len(self.values)

    def holds_splits(self) -> bool:
        return len(self.counts) > 1 and all(v.lower() in table.SPLIT_NAMES for v in self.counts)

    def holds_labels(self) -> bool:
        """Whether a few short values are repeated."""
        if self.is_list:
            return self.has_mostly(isinstance(value, list) for value in self.values)
        return (
            2 <= len(self.counts) <= MAX_LABELS
            and len(self.values) >= MIN_ROWS_PER_LABEL * len(self.counts)
            and all(len(v) <= MAX_LABEL_LENGTH for v in self.counts)
            and not any(DECIMAL_PATTERN.fullmatch(v) for v in self.counts)
        )

    def holds_phrases(self) -> bool:
        """Whether most values are different phrases: words with spaces, or East Asian ones."""
        return self.has_mostly_different_values() and self.has_mostly(
            bool(" " in text or HAN_PATTERN.search(text) or KANA_PATTERN.search(text))
            and not URL_PATTERN.match(text)
            for text in self.texts
        )


@dataclass(frozen=True)
class ImageColumn:
    """Values of the column `name`, with `suffix` appended, are files in `folder`."""

    name: str
    folder: str
    suffix: str
    num_files: int


def describe_table(
    folder: Path, defaults: dict[str, Any], options: ColumnOptions, needs_image: bool
) -> tuple[dict[str, Any], list[str]]:
    """The values of formats.table for a folder, and a sentence for each decision.

    defaults: the values of formats.table

    Raises InputError if there is no table, or no image although it is needed; AmbiguousTable if an
    option has to decide, or names no column.
    """
    paths = table.find_table_files(folder, [options.table] if options.table else defaults["files"])
    columns, encodings = read_columns(paths, defaults["encodings"], folder)
    check_options(options, columns, paths[0])
    image = choose_image(columns, folder, options.image)
    if needs_image and image is None:
        raise InputError(f"{paths[0]} has no column whose values name image files of {folder}")
    special = {
        "split": choose_split(columns, options.split),
        "language": choose_language(columns),
        "id": choose_id(columns, image.name if image else None),
    }
    used = {name for name in [image.name if image else None, *special.values()] if name}
    tasks = choose_tasks(columns, used, options, paths[0])
    used |= {task["column"] for task in tasks.values()}
    text = choose_text(columns, used, options.text, paths[0])
    if not image and not text:
        raise InputError(f"{paths[0]} has neither a column of image files nor one of texts")
    values = {
        "files": [options.table] if options.table else defaults["files"],
        "columns": {"image": image.name if image else None, "text": text, **special},
        "image_folder": image.folder if image else defaults["image_folder"],
        "image_suffix": image.suffix if image else "",
        "tasks": tasks,
        "encodings": encodings,
    }
    return values, list(explain(values, image, [path.name for path in paths]))


def check_options(options: ColumnOptions, columns: dict[str, TableColumn], path: Path) -> None:
    """Raises AmbiguousTable if the user named a column that does not exist."""
    named = filter(None, [options.image, options.text, options.split, *options.labels])
    try:
        csv_reader.check_columns(named, columns, path, "name one of its columns")
    except InputError as error:
        raise AmbiguousTable(str(error)) from None


def explain(values: dict[str, Any], image: ImageColumn | None, names: list[str]) -> Iterable[str]:
    """A sentence for each decision of `describe_table`."""
    yield f"table: {', '.join(names)}"
    if image:
        suffix = f" with {image.suffix} appended" if image.suffix else ""
        where = "the folder itself" if image.folder == "." else f"{image.folder}/"
        yield f"image: column {image.name}{suffix}, which names {image.num_files} files in {where}"
    else:
        yield "image: no column names image files of the folder (--image COLUMN)"
    text = values["columns"]["text"]
    yield f"text: column {text}" if text else "text: no column; it is read from the images"
    for name in ("split", "language", "id"):
        if column := values["columns"][name]:
            yield f"{name}: column {column}"
    for name, task in values["tasks"].items():
        labels = dict.fromkeys([*task["labels"].values(), task["default_label"]])
        shown = ", ".join(label for label in labels if label)
        yield f"task {name}: column {task['column']} ({shown}); --labels COLUMN chooses"


def read_columns(
    paths: list[Path], encodings: list[str], folder: Path
) -> tuple[dict[str, TableColumn], list[str]]:
    """The columns of all tables by name, and the encodings that they need.

    Raises AmbiguousTable if the tables have different columns.
    """
    values: dict[str, list[Any]] = {}
    names: list[str] = []
    for path in paths:
        rows = list(_read_rows(path, encodings))
        if any(isinstance(row, Rejection) and "undecodable" in row.reason for row in rows):
            encodings = FALLBACK_ENCODINGS
            rows = list(_read_rows(path, encodings))
        cells = [row[1] for row in rows if not isinstance(row, Rejection)]
        header = list(dict.fromkeys(name for row in cells for name in row))
        if path.suffix.lower() != ".jsonl" and names and set(header) != set(names):
            raise AmbiguousTable(
                f"{folder} holds {paths[0].name} and {path.name}, which have different columns: "
                f"choose one with --table {path.name}"
            )
        names = names or header
        for row in cells:
            for name, value in row.items():
                known = values.setdefault(name, [])
                if value is not None and value != "":
                    known.append(value)
    return {name: TableColumn(name, known) for name, known in values.items()}, encodings


def _read_rows(path: Path, encodings: list[str]) -> Iterable[table.TableRow | Rejection]:
    if path.suffix.lower() != ".jsonl":
        return csv_reader.read_csv(path, encodings, table.ENCODINGS_KEY)[1]
    return map(table.parse_line, read_lines(path, encodings, table.ENCODINGS_KEY))


def choose_image(
    columns: dict[str, TableColumn], folder: Path, option: str | None
) -> ImageColumn | None:
    """The column whose values name image files. Raises AmbiguousTable if there are several."""
    if option == "":
        return None
    files = index_image_files(folder)
    candidates = [columns[option]] if option else list(columns.values())
    images = [image for column in candidates if (image := match_image_files(column, files))]
    if option and not images:
        raise AmbiguousTable(f"{folder} holds no image files that the column {option} names")
    # A name with its suffix says more than an id that happens to be the stem of a file.
    images = [image for image in images if not image.suffix] or images
    if len(images) > 1:
        raise AmbiguousTable(
            f"{folder}: the columns {images[0].name} and {images[1].name} both name image files: "
            f"choose one with --image {images[0].name!r}"
        )
    return images[0] if images else None


def index_image_files(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """How image files below a folder can be named: name -> [(folder, suffix to append), ...]."""
    index: dict[str, list[tuple[str, str]]] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in IMAGE_SUFFIXES or name.startswith("."):
                continue
            parts = (Path(parent).relative_to(folder) / stem).parts
            for start in range(len(parts)):
                tail = normalize("NFC", "/".join(parts[start:]))
                top = str(PurePosixPath(*parts[:start]))
                index.setdefault(tail + suffix, []).append((top, ""))
                index.setdefault(tail, []).append((top, suffix))
    return index


def match_image_files(
    column: TableColumn, files: dict[str, list[tuple[str, str]]]
) -> ImageColumn | None:
    """The folder and suffix with which most values of a column name files, or None."""
    names = [normalize("NFC", t).replace("\\", "/").removeprefix("./") for t in column.texts]
    places = Counter(place for name in names for place in files.get(name, ()))
    if not places or not column.has_mostly_different_values():
        return None
    (folder, suffix), count = max(places.items(), key=lambda item: (item[1], not item[0][1]))
    if count < MIN_SHARE * len(column.values):
        return None
    return ImageColumn(column.name, folder, suffix, count)


def choose_split(columns: dict[str, TableColumn], option: str | None) -> str | None:
    if option is not None:
        return option or None
    return next((name for name, column in columns.items() if column.holds_splits()), None)


def choose_language(columns: dict[str, TableColumn]) -> str | None:
    def holds_languages(column: TableColumn) -> bool:
        try:
            return None not in [parse_language(text) for text in column.counts]
        except ValueError:
            return False

    named = [column for name, column in columns.items() if name.lower() in LANGUAGE_NAMES]
    return next((column.name for column in named if holds_languages(column)), None)


def choose_id(columns: dict[str, TableColumn], image: str | None) -> str | None:
    """A column named so whose values are all different."""
    num_rows = max((len(column.values) for column in columns.values()), default=0)
    for name, column in columns.items():
        if name.lower() in ID_NAMES and name != image and len(column.counts) == num_rows:
            return name
    return None


def choose_text(
    columns: dict[str, TableColumn], used: set[str], option: str | None, path: Path
) -> str | None:
    """Raises AmbiguousTable if two columns could both be the text."""
    if option is not None:
        return option or None
    phrases = [n for n, column in columns.items() if n not in used and column.holds_phrases()]
    named = [name for name in phrases if name.lower() == "text"]
    candidates = named or phrases
    if len(candidates) > 1:
        raise AmbiguousTable(
            f"{path}: the columns {' and '.join(candidates)} could all be the text over the image: "
            f"choose one with --text {candidates[-1]!r}"
        )
    return candidates[0] if candidates else None


def choose_tasks(
    columns: dict[str, TableColumn], used: set[str], options: ColumnOptions, path: Path
) -> dict[str, Any]:
    """formats.table.tasks. Raises UnlabeledTable if no column holds labels."""
    chosen = options.labels or [
        name
        for name, column in columns.items()
        if name not in used and name != options.text and column.holds_labels()
    ]
    tasks: dict[str, Any] = {}
    for name in chosen:
        build = build_list_tasks if columns[name].is_list else build_task
        tasks |= build(columns[name])
    if not tasks:
        raise UnlabeledTable(
            f"{path}: no column has a few values that are repeated (its columns: "
            f"{', '.join(columns)[:200]}): name the one with the labels with --labels COLUMN"
        )
    return tasks


def build_task(column: TableColumn) -> dict[str, Any]:
    """The task of a column with one label per row."""
    name = slugify(column.name)
    values = sorted(column.counts, key=lambda v: (float(v) if v.lstrip("-").isdigit() else 0, v))
    positive = YES_NO.get(frozenset(values))
    labels = {v: (name if v == positive else f"not_{name}") if positive else v for v in values}
    return {name: {"column": column.name, "labels": labels, "default_label": None}}


def build_list_tasks(column: TableColumn) -> dict[str, Any]:
    """A yes-or-no task for each frequent value of a column of lists."""
    lists = [value for value in column.values if isinstance(value, list)]
    counts = Counter(table.normalize_label(v) for values in lists for v in set(map(str, values)))
    frequent = [v for v, n in counts.most_common() if n >= MIN_LIST_LABEL_SHARE * len(lists)]
    tasks = {}
    for value in frequent[:MAX_LABELS]:
        name = slugify(value)
        labels = {value: name}
        tasks[name] = {"column": column.name, "labels": labels, "default_label": f"not_{name}"}
    return tasks


def slugify(name: str) -> str:
    """A name in lower case with `_` for what is neither letter nor digit."""
    return regex.sub(r"\W+", "_", name.lower()).strip("_") or "label"
