"""Format `table`: memes as rows of a table, whose columns and labels params name.

*.csv, *.tsv     a line that names the columns, then a row a meme; cells may be quoted
*.jsonl          an object a line; values are texts, numbers, true and false, or lists of them

`columns` says what holds picture, words, id, split and language; `tasks` which column judges what
and which label a value stands for. An empty cell, null and a missing key mean that nobody judged, a
value that the task does not know rejects the row. In a list the values that the task does not know
count for nothing: it may name many things, of which the task asks for some. Two labels of one list
contradict each other and reject the row.

A row that has no id is known by its picture's name. Where no column holds the split, a file that is
named after one does, such as train.csv beside test.csv.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from stages.datasets.common import csv_reader
from stages.datasets.common.files import (
    APPLE_DOUBLE_PREFIX,
    SPLIT_ALIASES,
    describe_validation_error,
    read_lines,
)
from stages.shared.core.config import Field, config_class
from stages.shared.data import records
from stages.shared.data.records import DatasetItem, ExtraFile, ImageFile, MemeRecord, Rejection
from stages.shared.runtime.stage import InputError

KINDS = ("memes",)
ENCODINGS_KEY = "formats.table.encodings"
FIX_HINT = "correct formats.table of params.yaml"
OBJECT_ADAPTER = TypeAdapter(dict[str, Any], config=ConfigDict(strict=True))
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

    def get_label_by_value(self) -> dict[str, str]:
        return {format_value(value): label for value, label in self.labels.items()}

    def get_labels(self) -> list[str]:
        """The labels of the task, each once."""
        return list(dict.fromkeys([*self.labels.values(), *filter(None, [self.default_label])]))


@config_class
class TableConfig:
    files: list[str] = Field(description="file name patterns within the corpus")
    columns: TableColumnsConfig = Field(description="column names")
    image_folder: str = Field(description="image folder within the corpus")
    image_suffix: str = Field(description="appended to image names, such as .png")
    tasks: dict[str, TableTaskConfig] = Field(description="labels by task; {}: unlabelled corpus")
    encodings: list[str] = Field(description="tried in this order for each cell or line")

    def __post_init__(self) -> None:
        if not self.columns.image and not self.columns.text:
            raise ValueError("columns names neither image nor text: name at least one of them")


CONFIG = TableConfig


@dataclass(frozen=True)
class TableLabelRejection:
    reason: str


TableRow = tuple[str, dict[str, Any]]  # file:line, column -> value


def read(source: Path, kind: str, params: TableConfig) -> Iterator[DatasetItem]:
    """The labels of each task, then a row, or Reject, per meme.

    Raises WrongInput if there is no table, or one lacks columns that params name.
    """
    root = source.parent if source.is_file() else source
    paths = [source] if source.is_file() else find_table_files(source, params.files)
    yield ExtraFile("tasks.json", {name: task.get_labels() for name, task in params.tasks.items()})
    for path in paths:
        of_file = None if params.columns.split else SPLIT_NAMES.get(path.stem.lower())
        split = of_file if len(paths) > 1 else None
        for row in read_rows(path, params):
            yield row if isinstance(row, Rejection) else parse_row(*row, root, split, params)


def find_table_files(source: Path, patterns: list[str]) -> list[Path]:
    """The tables of a folder by name. Raises WrongInput if there is none."""
    found = {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}
    if named := sorted(path for path in found if not path.name.startswith(APPLE_DOUBLE_PREFIX)):
        return named
    raise InputError(
        f"{source} holds no {' or '.join(patterns)}: put a table there, or name it in "
        "formats.table.files of params.yaml"
    )


def read_rows(path: Path, params: TableConfig) -> Iterator[TableRow | Rejection]:
    named = params.columns
    needed = [named.image, named.text, named.id, named.split, named.language]
    needed += [task.column for task in params.tasks.values()]
    wanted = [column for column in needed if column]
    if path.suffix.lower() != ".jsonl":
        header, found = csv_reader.read_csv(path, params.encodings, ENCODINGS_KEY)
        csv_reader.check_columns(wanted, header, path, FIX_HINT)
        yield from found
        return
    objects = [parse_line(line) for line in read_lines(path, params.encodings, ENCODINGS_KEY)]
    keys = dict.fromkeys(key for one in objects if not isinstance(one, Rejection) for key in one[1])
    if keys:  # else every line is rejected
        csv_reader.check_columns(wanted, keys, path, FIX_HINT)
    yield from objects


def parse_line(line: tuple[str, str] | Rejection) -> TableRow | Rejection:
    """A line of JSON."""
    if isinstance(line, Rejection):
        return line
    source, text = line
    try:
        return source, OBJECT_ADAPTER.validate_json(text)
    except ValidationError as error:
        return Rejection(source, describe_validation_error(error))


def parse_row(
    source: str, row: dict[str, Any], root: Path, split: str | None, params: TableConfig
) -> MemeRecord | Rejection:
    """A row as a meme; `split` is that of its file."""
    names = vars(params.columns)
    cells = {what: row.get(column) if column else None for what, column in names.items()}
    lists = [what for what, value in cells.items() if isinstance(value, list | dict)]
    values = {what: "" if value is None else format_value(value) for what, value in cells.items()}
    name, said = values["image"].strip(), values["split"].strip().lower()
    key = values["id"].strip() or name or None
    if lists:
        return Rejection(source, f"wrong field: {names[lists[0]]}: give one text, not a list", key)
    if said and said not in SPLIT_NAMES:
        known = ", ".join(SPLIT_NAMES)
        return Rejection(source, f"wrong field: split: {said[:60]!r} is none of {known}", key)
    labels = {}
    for task, asked in params.tasks.items():
        label = parse_label(row.get(asked.column), asked, task)
        if isinstance(label, TableLabelRejection):
            return Rejection(source, label.reason, key)
        labels |= {task: label} if label else {}
    language = values["language"].strip().replace("_", "-").split("-")[0].lower()
    return MemeRecord(
        source=source,
        text=values["text"],
        labels=labels,
        image=ImageFile(f"{name}{params.image_suffix}", root / params.image_folder)
        if name
        else None,
        key=key,
        language=language or None,
        split=SPLIT_NAMES[said] if said else split,
    )


def parse_label(value: Any, task: TableTaskConfig, name: str) -> str | TableLabelRejection | None:
    """The label that a value stands for; None: nobody judged."""
    known = task.get_label_by_value()
    if isinstance(value, list):
        labels = dict.fromkeys(known[one] for one in map(format_value, value) if one in known)
        if len(labels) > 1:
            return TableLabelRejection(
                f"contradiction: a list stands for {' and '.join(labels)} ({name})"
            )
        return next(iter(labels), task.default_label)
    said = "" if value is None else format_value(value).strip()
    if said and said not in known:
        return TableLabelRejection(
            f"unknown label: {said[:60]!r} is none of {', '.join(known)} ({name})"
        )
    return known[said] if said else None


def format_value(value: Any) -> str:
    """A value as CSV has it: true and false as in JSON and YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)
