"""Format `memotion`: memes with five labels.

Memotion 1 (Sharma et al., SemEval-2020 task 8), Memotion 2 (AAAI-22) and Memotion 3 (AAAI-23):

1   labels.csv            Kaggle: image_name, text_ocr, text_corrected, humour, sarcasm, offensive,
                          motivational, overall_sentiment
    data_6512.csv         the earlier release: Image_name, Image_URL, OCR_extracted_text, ...
    2000_testdata.csv     the official test, without labels
    Meme_groundTruth.csv  its ground truth: image name and Labels
2   memotion_train.csv    Id, ocr_text, humour, sarcastic, ..., overall_sentiment; the levels of
                          sarcasm have other names
3   train.csv, val.csv    ocr, humour, sarcastic, ..., overall; an image is named after its row
                          number, from 0; train is separated by commas, val by tabs

The files are in the corpus' folder or in one folder within it. The version of a file follows from
its columns, the delimiter from its header.

A ground truth is T1_T2_T3, such as -1_1110_1310: sentiment, then humour, sarcasm, offensive and
motivational as yes (1) or no (0), then the same four as levels. It is listed with the image name,
or without names in the order of the test file. It has no strength of sentiment, so test memes get
no sentiment label if `sentiment` is `five`. A validation or test file without labels gives memes
without annotation.

Each file is a split; with a single file, ingest assigns the splits. If there is a test file and no
validation file, a fraction of train becomes validation, by a hash of the meme's key.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from stages.datasets.common.csv_reader import MALFORMED_REASONS, CsvRow, check_columns, read_csv
from stages.datasets.common.files import (
    APPLE_DOUBLE_PREFIX,
    IMAGE_SUFFIXES,
    find_corpus_dir,
    read_lines,
)
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import DatasetItem, ExtraFile, ImageFile, MemeRecord, Rejection
from stages.shared.runtime.stage import InputError

KINDS = ("memes",)
ENCODINGS_KEY = "formats.memotion.encodings"
FIX_HINT = "give a Memotion table, or another file in formats.memotion.files of config/formats.yaml"

SOURCE_LABELS = {  # the labels in the files, in order
    "sentiment": ["very_negative", "negative", "neutral", "positive", "very_positive"],
    "humour": ["not_funny", "funny", "very_funny", "hilarious"],
    "sarcasm": ["not_sarcastic", "general", "twisted_meaning", "very_twisted"],
    "offensive": ["not_offensive", "slight", "very_offensive", "hateful_offensive"],
    "motivational": ["not_motivational", "motivational"],
}
BINARY_LABELS = {
    "humour": ["not_funny", "funny"],
    "sarcasm": ["not_sarcastic", "sarcastic"],
    "offensive": ["not_offensive", "offensive"],
    "motivational": ["not_motivational", "motivational"],
}
SENTIMENT_LABELS = ["negative", "neutral", "positive"]
GROUND_TRUTH_PATTERN = re.compile(r"(-?\d)_(\d{4})_(\d{4})")
GROUND_TRUTH_SENTIMENTS = {"-1": "negative", "0": "neutral", "1": "positive"}

_COMMON_COLUMN_NAMES = {name: (name,) for name in ("offensive", "motivational")} | {
    "humour": ("humour", "humor")
}
# By version: field -> its column names, in lower case, "_" for a space.
COLUMN_NAMES: dict[int, dict[str, tuple[str, ...]]] = {
    1: _COMMON_COLUMN_NAMES
    | {
        "name": ("image_name",),
        "text": ("text_ocr", "ocr_extracted_text"),
        "corrected": ("text_corrected", "corrected_text"),
        "sarcasm": ("sarcasm",),
        "sentiment": ("overall_sentiment",),
    },
    2: _COMMON_COLUMN_NAMES
    | {
        "name": ("id",),
        "text": ("ocr_text",),
        "sarcasm": ("sarcastic",),
        "sentiment": ("overall_sentiment",),
    },
    3: _COMMON_COLUMN_NAMES
    | {
        "name": ("id", "index", "unnamed:_0", ""),
        "text": ("ocr",),
        "sarcasm": ("sarcastic",),
        "sentiment": ("overall",),
    },
}
LABEL_ALIASES = {  # by version and task: label -> label of version 1
    2: {
        "sarcasm": {
            "little_sarcastic": "general",
            "very_sarcastic": "twisted_meaning",
            "extremely_sarcastic": "very_twisted",
        }
    }
}
EMPTY_VALUES = ("", "nan")  # pandas writes empty cells as nan


@config_class
class MemotionPathsConfig:
    """Names of files or folders for each split."""

    train: list[str] = Field(description="names for the train split")
    validation: list[str] = Field(description="names for the validation split")
    test: list[str] = Field(description="names for the test split")

    def by_split(self) -> dict[str, list[str]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


@config_class
class MemotionLabelsConfig:
    """The label set of each task."""

    sentiment: Literal["three", "five", "none"] = Field(
        description="five classes, or three as in subtask A"
    )
    humour: Literal["levels", "binary", "none"] = Field(
        description="levels as in subtask C, binary as in B"
    )
    sarcasm: Literal["levels", "binary", "none"] = Field(
        description="levels as in subtask C, binary as in B"
    )
    offensive: Literal["levels", "binary", "none"] = Field(
        description="levels as in subtask C, binary as in B"
    )
    motivational: Literal["binary", "none"] = Field(description="binary as in subtask B")

    def get_enabled_tasks(self) -> dict[str, str]:
        """Task -> label set, without omitted tasks."""
        label_sets = {
            "sentiment": self.sentiment,
            "humour": self.humour,
            "sarcasm": self.sarcasm,
            "offensive": self.offensive,
            "motivational": self.motivational,
        }
        return {task: name for task, name in label_sets.items() if name != "none"}


@config_class
class MemotionConfig:
    files: MemotionPathsConfig = Field(description="tables by split; the first that exists is read")
    test_label_files: list[str] = Field(description="test labels; the first that exists is read")
    image_folders: MemotionPathsConfig = Field(description="image folders by split")
    label_sets: MemotionLabelsConfig = Field(description="label set of each task; none omits it")
    validation_fraction: float = Field(
        ge=0, lt=1, description="share of train, if only test has a file of its own"
    )
    encodings: list[str] = Field(description="tried in this order for each cell")


CONFIG = MemotionConfig


@dataclass(frozen=True)
class _SplitTable:
    """The table of one split."""

    path: Path
    version: int  # of Memotion, 1 to 3
    columns: dict[str, str]  # field -> column name in the file
    rows: list[CsvRow | Rejection]


GroundTruth = tuple[str, str]  # file:line, T1_T2_T3


def read(source: Path, kind: str, config: MemotionConfig) -> Iterator[DatasetItem]:
    """Yield tasks.json, then a record or rejection per meme.

    Raises InputError if there is no train table, or a table lacks columns.
    """
    names = " or ".join(config.files.train)
    fix = f"put {names} there, or add another file to formats.memotion.files of config/formats.yaml"
    root = find_corpus_dir(source, config.files.train, fix)
    directories = list(dict.fromkeys([root, source]))
    paths = {
        split: path
        for split, names in config.files.by_split().items()
        if (path := find_first_file(names, directories))
    }
    label_sets = config.label_sets.get_enabled_tasks()
    tasks = {task: get_task_labels(task, label_set) for task, label_set in label_sets.items()}
    yield ExtraFile("tasks.json", tasks)
    ground_truth_path = find_first_file(config.test_label_files, directories)
    if ground_truth_path and "test" not in paths:
        needed = " or ".join(config.files.test)
        raise InputError(f"{root} holds {ground_truth_path.name} but no {needed}: add it")
    for split, path in paths.items():
        table = read_split_table(path, split, config)
        ground_truths: list[GroundTruth | None] = [None] * len(table.rows)
        if ground_truth_path and split == "test":
            ground_truths, rejections = match_ground_truth(
                table, ground_truth_path, config.encodings
            )
            yield from rejections
        image_paths = index_images(directories, config.image_folders.by_split()[split])
        for number, (row, ground_truth) in enumerate(zip(table.rows, ground_truths, strict=True)):
            if isinstance(row, Rejection):
                yield row
                continue
            item = build_meme(row, number, ground_truth, table, label_sets)
            if isinstance(item, MemeRecord):
                name = get_image_name(row[1], number, table)
                item = replace(
                    item,
                    image=resolve_image_file(name, image_paths, source) if image_paths else None,
                    split=assign_split(item.key, split, set(paths), config.validation_fraction),
                )
            yield item


def find_first_file(names: list[str], directories: list[Path]) -> Path | None:
    """The first existing file, by name first and directory second."""
    paths = (directory / name for name in names for directory in directories)
    return next((path for path in paths if path.is_file()), None)


def get_task_labels(task: str, label_set: str) -> list[str]:
    """The labels of a task, in order."""
    if label_set == "binary":
        return BINARY_LABELS[task]
    return SENTIMENT_LABELS if label_set == "three" else SOURCE_LABELS[task]


def read_split_table(path: Path, split: str, config: MemotionConfig) -> _SplitTable:
    """Read the table of a split. Raises InputError that names the missing columns."""
    header, rows = read_csv(path, config.encodings, ENCODINGS_KEY)
    columns_by_name = {re.sub(r"[\s_]+", "_", column.lower()): column for column in header}
    columns_by_version = {
        version: {
            field: columns_by_name[present[0]]
            for field, names in names_by_field.items()
            if (present := [name for name in names if name in columns_by_name])
        }
        for version, names_by_field in COLUMN_NAMES.items()
    }
    version = max(columns_by_version, key=lambda version: len(columns_by_version[version]))
    columns = columns_by_version[version]
    needed = ["text"] if "corrected" not in columns else []
    needed += ["name"] if version < 3 else []  # in version 3 the row number replaces it
    if split == "train" or set(columns) & set(SOURCE_LABELS):
        needed += list(config.label_sets.get_enabled_tasks())
    needed_columns = [columns.get(field, COLUMN_NAMES[version][field][0]) for field in needed]
    check_columns(needed_columns, header, path, FIX_HINT)
    rows = list(rows)
    if "name" not in columns:
        rows = reject_unnumbered_rows(rows)
    return _SplitTable(path, version, columns, rows)


def reject_unnumbered_rows(rows: list[CsvRow | Rejection]) -> list[CsvRow | Rejection]:
    """Reject the rows after the first malformed line, whose row numbers are unknown.

    For tables whose rows are identified by their number only.
    """
    malformed = (
        row
        for row in rows
        if isinstance(row, Rejection) and row.reason.startswith(MALFORMED_REASONS)
    )
    if (first := next(malformed, None)) is None:
        return rows
    end = rows.index(first) + 1
    reason = f"no id: images are named after row numbers, which {first.source} makes ambiguous"
    return rows[:end] + [
        row if isinstance(row, Rejection) else Rejection(row[0], reason) for row in rows[end:]
    ]


def assign_split(
    key: str | None, file_split: str, splits: set[str], validation_fraction: float
) -> str | None:
    """The split of a meme; None leaves it to ingest.

    file_split: the split of the meme's file
    splits: the splits that have a file
    """
    if len(splits) == 1:
        return None
    if file_split == "train" and "validation" not in splits and key is not None:
        fraction = int(sha256(key.encode()).hexdigest()[:8], 16) / 16**8  # in [0, 1)
        return "validation" if fraction < validation_fraction else "train"
    return file_split


def build_meme(
    row: CsvRow,
    number: int,
    ground_truth: GroundTruth | None,
    table: _SplitTable,
    label_sets: dict[str, str],
) -> MemeRecord | Rejection:
    """Convert a row (with its number, from 0) to a meme without image and split."""
    source, cells = row
    name = get_image_name(cells, number, table)
    if not name:
        return Rejection(source, "no id: the row names no image")
    # Versions 2 and 3 number the images of each split from 0.
    key = name if table.version == 1 else f"{table.path.stem}/{name}"
    if ground_truth is None:
        labels = parse_labels(cells, table, label_sets)
    else:
        labels = parse_ground_truth(ground_truth[1], label_sets)
    if isinstance(labels, str):
        return Rejection(source if ground_truth is None else ground_truth[0], labels, key)
    fields = [field for field in ("corrected", "text") if field in table.columns]
    texts = [cells[table.columns[field]] for field in fields]
    text = next((text for text in texts if text.strip().lower() not in EMPTY_VALUES), "")
    return MemeRecord(source=source, text=text, labels=labels, key=key)


def get_image_name(cells: dict[str, str], number: int, table: _SplitTable) -> str:
    return cells[table.columns["name"]].strip() if "name" in table.columns else str(number)


def parse_labels(
    cells: dict[str, str], table: _SplitTable, label_sets: dict[str, str]
) -> dict[str, str] | str:
    """The labels of a row by task, or a reason to reject it. Empty cells have no annotation."""
    labels = {}
    for task, label_set in label_sets.items():
        cell = cells[table.columns[task]] if task in table.columns else ""
        value = re.sub(r"[\s_]+", "_", cell.strip().lower())
        if value in EMPTY_VALUES:
            continue
        value = LABEL_ALIASES.get(table.version, {}).get(task, {}).get(value, value)
        if value not in SOURCE_LABELS[task]:
            return describe_unknown_label(cell, SOURCE_LABELS[task], task)
        labels[task] = convert_label(value, task, label_set)
    return labels


def convert_label(value: str, task: str, label_set: str) -> str:
    """Convert a label of the files to the label set of the task."""
    if label_set == "binary":
        return BINARY_LABELS[task][SOURCE_LABELS[task].index(value) > 0]
    return value.removeprefix("very_") if label_set == "three" else value


def parse_ground_truth(text: str, label_sets: dict[str, str]) -> dict[str, str] | str:
    """The labels of T1_T2_T3 by task, or a reason to reject them."""
    match = GROUND_TRUTH_PATTERN.fullmatch(text)
    if match is None:
        return f"wrong field: {text[:60]!r} is not T1_T2_T3, such as -1_1110_1310"
    sentiment, binary_digits, level_digits = match.groups()
    labels = {}
    for task, label_set in label_sets.items():
        if task == "sentiment":
            if sentiment not in GROUND_TRUTH_SENTIMENTS:
                return describe_unknown_label(sentiment, GROUND_TRUTH_SENTIMENTS, task)
            if label_set == "three":
                labels[task] = GROUND_TRUTH_SENTIMENTS[sentiment]
            continue
        digits = binary_digits if label_set == "binary" else level_digits
        digit = digits[list(BINARY_LABELS).index(task)]
        task_labels = get_task_labels(task, label_set)
        if int(digit) >= len(task_labels):
            return describe_unknown_label(digit, map(str, range(len(task_labels))), task)
        labels[task] = task_labels[int(digit)]
    return labels


def describe_unknown_label(value: str, known: Iterable[str], task: str) -> str:
    return f"unknown label: {value.strip()[:60]!r} is none of {', '.join(known)} ({task})"


def match_ground_truth(
    table: _SplitTable, path: Path, encodings: list[str]
) -> tuple[list[GroundTruth | None], list[Rejection]]:
    """The ground truth of each row of a table, None if there is none, and the rejections.

    Raises InputError if ground truths without names differ in number from the rows.
    """
    lines = [
        line
        for line in read_lines(path, encodings, ENCODINGS_KEY)
        if not isinstance(line, Rejection)
    ]
    if lines and GROUND_TRUTH_PATTERN.fullmatch(lines[0][1].strip()):
        if len(lines) != len(table.rows):
            raise InputError(
                f"{path} has {len(lines)} labels, but {table.path.name} has {len(table.rows)} "
                "rows: give two files of the same release"
            )
        return [(source, text.strip()) for source, text in lines], []
    ground_truths, rejections = read_ground_truth(path, encodings)
    names = [
        "" if isinstance(row, Rejection) else get_image_name(row[1], number, table)
        for number, row in enumerate(table.rows)
    ]
    row_names = set(names)
    rejections += [
        Rejection(source, f"missing row: {name[:60]!r} is in no row of {table.path.name}", name)
        for name, (source, _) in ground_truths.items()
        if name not in row_names
    ]
    return [ground_truths.get(name) for name in names], rejections


def read_ground_truth(
    path: Path, encodings: list[str]
) -> tuple[dict[str, GroundTruth], list[Rejection]]:
    """Image name -> ground truth, and the rejections.

    The first column other than Labels holds the names. Raises InputError if one of them is missing.
    """
    header, rows = read_csv(path, encodings, ENCODINGS_KEY)
    label_columns = [column for column in header if column.lower() == "labels"]
    name_columns = [column for column in header if column not in label_columns]
    if len(label_columns) != 1 or not name_columns:
        raise InputError(
            f"{path} has no column Labels next to a column of names "
            f"(its columns: {', '.join(header)[:200]}): give the published ground truth, or remove "
            "the file from formats.memotion.test_label_files of config/formats.yaml"
        )
    ground_truths: dict[str, GroundTruth] = {}
    rejections = []
    for row in rows:
        if isinstance(row, Rejection):
            rejections.append(row)
            continue
        source, cells = row
        name = cells[name_columns[0]].strip()
        first, _ = ground_truths.setdefault(name, (source, cells[label_columns[0]].strip()))
        if first != source:
            rejections.append(Rejection(source, f"duplicate id: already used at {first}", name))
    return ground_truths, rejections


def index_images(directories: list[Path], folders: list[str]) -> dict[str, Path]:
    """Image files by name in NFC, and by name without suffix; the first file of a name wins."""
    names: dict[str, Path] = {}
    stems: dict[str, Path] = {}
    for folder in [directory / folder for directory in directories for folder in folders]:
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            is_hidden = path.name.startswith(APPLE_DOUBLE_PREFIX)
            if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden:
                names.setdefault(normalize("NFC", path.name), path)
                stems.setdefault(normalize("NFC", path.stem), path)
    return stems | names


def resolve_image_file(name: str, paths: dict[str, Path], source: Path) -> ImageFile:
    """The image of a name; without one, a path that ingest reports as missing."""
    path = paths.get(normalize("NFC", name))
    return ImageFile(path.name, path.parent) if path else ImageFile(name, source)
