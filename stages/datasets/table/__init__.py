"""Format `table`: memes as rows of a table with configurable columns and labels.

*.csv, *.tsv     a line that names the columns, then one row per meme; cells may be quoted
*.jsonl          one object per line; values are texts, numbers, true and false, or lists of them

`columns` names the columns of image, text, id, split and language. `tasks` names the column of each
task and maps its values to labels. An empty cell, null or a missing key means no annotation; an
unknown value rejects the row. In a list, unknown values are ignored, since a list may contain
values that the task does not cover. A list with two different labels rejects the row.

Without id, the image name is the key of a row. Without a split column, a file named after a split
defines it, such as train.csv next to test.csv.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import regex

from stages.datasets.common import csv_reader
from stages.datasets.common.files import (
    APPLE_DOUBLE_PREFIX,
    SPLIT_ALIASES,
    parse_json_line,
    read_lines,
)
from stages.shared.core.config import Field, config_class
from stages.shared.data import records
from stages.shared.data.records import DatasetItem, ExtraFile, ImageFile, MemeRecord, Rejection
from stages.shared.runtime.stage import InputError

KINDS = ("memes",)
ENCODINGS_KEY = "formats.table.encodings"
FIX_HINT = "correct formats.table of config/formats.yaml"
JsonObject = dict[str, Any]
WHOLE_FLOAT_PATTERN = regex.compile(r"^(-?\d+)\.0+$")
SPLIT_NAMES = {name: name for name in records.SPLITS} | SPLIT_ALIASES | {"valid": "validation"}


@config_class
class TableColumnsConfig:
    """Column names; None if the table has no such column."""

    image: str | None = Field(description="image name")
    text: str | None = Field(description="text over the image")
    id: str | None = Field(description="record id; null: the image name")
    split: str | None = Field(description="split; null: the file name, else a hash")
    language: str | None = Field(description="ISO 639-1 code; null: detected")


@config_class
class TableTaskConfig:
    column: str = Field(description="column that holds the label")
    labels: dict[str, str] = Field(description="column value: label, in label order")
    default_label: str | None = Field(description="label of a list without any known value")

    def __post_init__(self) -> None:
        labels: dict[str, str] = {}
        for value, label in self.labels.items():
            if labels.setdefault(normalize_label(value), label) != label:
                raise ValueError(f"labels has {value!r} in two spellings: give it one label")

    def get_label_by_value(self) -> dict[str, str]:
        """Label by the normalized value of its column."""
        return {normalize_label(value): label for value, label in self.labels.items()}

    def get_labels(self) -> list[str]:
        """The labels of the task without repetition, in order."""
        return list(dict.fromkeys([*self.labels.values(), *filter(None, [self.default_label])]))


@config_class
class TableConfig:
    files: list[str] = Field(description="file name patterns within the corpus")
    columns: TableColumnsConfig = Field(description="column names")
    image_folder: str = Field(description="image folder within the corpus")
    image_suffix: str = Field(description="appended to image names, such as .png")
    tasks: dict[str, TableTaskConfig] = Field(description="labels by task; {}: unlabeled corpus")
    encodings: list[str] = Field(description="tried in this order for each cell or line")

    def __post_init__(self) -> None:
        if not self.columns.image and not self.columns.text:
            raise ValueError("columns names neither image nor text: name at least one of them")


CONFIG = TableConfig


@dataclass(frozen=True)
class TableLabelRejection:
    reason: str


TableRow = tuple[str, JsonObject]  # file:line, column -> value


def read(source: Path, kind: str, config: TableConfig) -> Iterator[DatasetItem]:
    """Yield tasks.json, then a record or rejection per row.

    Raises InputError if there is no table, or one lacks a configured column.
    """
    root = source.parent if source.is_file() else source
    paths = [source] if source.is_file() else find_table_files(source, config.files)
    yield ExtraFile("tasks.json", {name: task.get_labels() for name, task in config.tasks.items()})
    for path in paths:
        file_split = None if config.columns.split else SPLIT_NAMES.get(path.stem.lower())
        split = file_split if len(paths) > 1 else None
        for row in read_rows(path, config):
            yield row if isinstance(row, Rejection) else parse_row(*row, root, split, config)


def find_table_files(source: Path, patterns: list[str]) -> list[Path]:
    """The tables of a folder, sorted by name. Raises InputError if there is none."""
    matches = {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}
    if paths := sorted(path for path in matches if not path.name.startswith(APPLE_DOUBLE_PREFIX)):
        return paths
    raise InputError(
        f"{source} holds no {' or '.join(patterns)}: put a table there, or add its name to "
        "formats.table.files of config/formats.yaml"
    )


def read_rows(path: Path, config: TableConfig) -> Iterator[TableRow | Rejection]:
    """Yield the rows of one table. Raises InputError if it lacks a configured column."""
    columns = [*vars(config.columns).values(), *(task.column for task in config.tasks.values())]
    needed = [column for column in columns if column]
    if path.suffix.lower() != ".jsonl":
        header, rows = csv_reader.read_csv(path, config.encodings, ENCODINGS_KEY)
        csv_reader.check_columns(needed, header, path, FIX_HINT)
        yield from rows
        return
    rows = [parse_line(line) for line in read_lines(path, config.encodings, ENCODINGS_KEY)]
    keys = dict.fromkeys(key for row in rows if not isinstance(row, Rejection) for key in row[1])
    if keys:  # without keys every line is rejected
        csv_reader.check_columns(needed, keys, path, FIX_HINT)
    yield from rows


def parse_line(line: tuple[str, str] | Rejection) -> TableRow | Rejection:
    """Parse a line of JSON."""
    if isinstance(line, Rejection):
        return line
    source, text = line
    row = parse_json_line(JsonObject, source, text)
    return row if isinstance(row, Rejection) else (source, row)


def parse_row(
    source: str, row: dict[str, Any], root: Path, split: str | None, config: TableConfig
) -> MemeRecord | Rejection:
    """Convert a row to a meme; `split` is that of its file."""
    columns = vars(config.columns)
    cells = {name: row.get(column) if column else None for name, column in columns.items()}
    lists = [name for name, value in cells.items() if isinstance(value, list | dict)]
    values = {name: "" if value is None else format_value(value) for name, value in cells.items()}
    image_name, row_split = values["image"].strip(), values["split"].strip().lower()
    key = values["id"].strip() or image_name or None
    if lists:
        reason = f"wrong field: {columns[lists[0]]}: give one text, not a list"
        return Rejection(source, reason, key)
    if row_split and row_split not in SPLIT_NAMES:
        known = ", ".join(SPLIT_NAMES)
        return Rejection(source, f"wrong field: split: {row_split[:60]!r} is none of {known}", key)
    labels = {}
    for task, task_config in config.tasks.items():
        label = parse_label(row.get(task_config.column), task_config, task)
        if isinstance(label, TableLabelRejection):
            return Rejection(source, label.reason, key)
        labels |= {task: label} if label else {}
    image = ImageFile(f"{image_name}{config.image_suffix}", root / config.image_folder)
    return MemeRecord(
        source=source,
        text=values["text"],
        labels=labels,
        image=image if image_name else None,
        key=key,
        language=values["language"].strip() or None,
        split=SPLIT_NAMES[row_split] if row_split else split,
    )


def parse_label(value: Any, task: TableTaskConfig, name: str) -> str | TableLabelRejection | None:
    """The label of a cell, None if there is no annotation; `name` is the task's."""
    label_by_value = task.get_label_by_value()
    if isinstance(value, list):
        labels = dict.fromkeys(
            label_by_value[text] for text in map(normalize_label, value) if text in label_by_value
        )
        if len(labels) > 1:
            return TableLabelRejection(
                f"contradiction: a list contains {' and '.join(labels)} ({name})"
            )
        return next(iter(labels), task.default_label)
    text = "" if value is None else format_value(value).strip()
    if text and normalize_label(text) not in label_by_value:
        return TableLabelRejection(
            f"unknown label: {text[:60]!r} is none of {', '.join(label_by_value)} ({name})"
        )
    return label_by_value[normalize_label(text)] if text else None


def format_value(value: Any) -> str:
    """A value as text; true and false as in JSON and YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def normalize_label(value: Any) -> str:
    """A label as its column and params.yaml may spell it: True is true, 1.0 is 1, text is in NFC.

    pandas writes True, spreadsheets TRUE and JSON true; a column of integers with empty cells
    becomes one of floats.
    """
    text = normalize("NFC", format_value(value).strip())
    if text.lower() in ("true", "false"):
        return text.lower()
    return WHOLE_FLOAT_PATTERN.sub(r"\1", text)
