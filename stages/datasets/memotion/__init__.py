"""Format `memotion`: Memotion 1 (Sharma et al., SemEval-2020 task 8), 2 (AAAI-22) and 3 (AAAI-23),
memes with five labels.

1   labels.csv            Kaggle: image_name, text_ocr, text_corrected, humour, sarcasm, offensive,
                          motivational, overall_sentiment
    data_6512.csv         the earlier release: Image_name, Image_URL, OCR_extracted_text, ...
    2000_testdata.csv     the official test, without labels
    Meme_groundTruth.csv  its truth: image name and Labels
2   memotion_train.csv    Id, ocr_text, humour, sarcastic, ..., overall_sentiment; other names of
                          the levels of sarcasm
3   train.csv, val.csv    ocr, humour, sarcastic, ..., overall; a picture is named after the number
                          of its row, from 0; train has commas, val tabs

They lie in the corpus' folder or in one folder within it. The columns of a file say which version
it is, its header what delimits them.

A truth is T1_T2_T3, such as -1_1110_1310: sentiment, then humour, sarcasm, offensive and
motivational as yes (1) or no, then the same as levels. It stands beside the name of a picture, or
without names in the order of the test file. It knows no strength of sentiment, so that five labels
leave it out. A file of validation or test that has no labels gives memes that nobody judged.

The files are the splits; a lone one leaves them to ingest. Where test is there and validation is
not, a share of train becomes validation, by a hash of the meme's name.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

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
FIX_HINT = "give a table of Memotion, or name another in formats.memotion.files of params.yaml"

SOURCE_LABELS = {  # of the files, in order: sentiment, then levels
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
COLUMN_NAMES = {  # by version: what a column holds -> its names, in lower case, "_" for a space
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
LABEL_ALIASES = {  # by version and task: value -> the value of version 1
    2: {
        "sarcasm": {
            "little_sarcastic": "general",
            "very_sarcastic": "twisted_meaning",
            "extremely_sarcastic": "very_twisted",
        }
    }
}
EMPTY_VALUES = ("", "nan")  # pandas' word for an empty cell


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
    """Which set of labels a task gets."""

    sentiment: Literal["three", "five", "none"] = Field(description="three: subtask A")
    humour: Literal["levels", "binary", "none"] = Field(description="binary: B, levels: C")
    sarcasm: Literal["levels", "binary", "none"] = Field(description="binary: B, levels: C")
    offensive: Literal["levels", "binary", "none"] = Field(description="binary: B, levels: C")
    motivational: Literal["binary", "none"] = Field(description="binary: B")

    def get_enabled_tasks(self) -> dict[str, str]:
        """Task -> choice, of the tasks that are not left out."""
        choices = {
            "sentiment": self.sentiment,
            "humour": self.humour,
            "sarcasm": self.sarcasm,
            "offensive": self.offensive,
            "motivational": self.motivational,
        }
        return {task: choice for task, choice in choices.items() if choice != "none"}


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
    """A table of one split, its version known."""

    path: Path
    version: int
    columns: dict[str, str]  # what a column holds -> its name in the file
    rows: list[CsvRow | Rejection]


GroundTruth = tuple[str, str]  # file:line, T1_T2_T3


def read(source: Path, kind: str, params: MemotionConfig) -> Iterator[DatasetItem]:
    """The labels of each task, then a row, or Reject, per meme.

    Raises WrongInput if there is no table of train, or one lacks columns.
    """
    names = " or ".join(params.files.train)
    fix = f"put {names} there, or name another file in formats.memotion.files of params.yaml"
    root = find_corpus_dir(source, params.files.train, fix)
    places = list(dict.fromkeys([root, source]))
    files = {
        split: path
        for split, listed in params.files.by_split().items()
        if (path := find_first_file(listed, places))
    }
    choices = params.label_sets.get_enabled_tasks()
    yield ExtraFile(
        "tasks.json", {task: get_task_labels(task, choice) for task, choice in choices.items()}
    )
    true_file = find_first_file(params.test_label_files, places)
    if true_file and "test" not in files:
        needed = " or ".join(params.files.test)
        raise InputError(f"{root} holds {true_file.name} and no {needed}: put that there too")
    for split, path in files.items():
        sheet = read_split_table(path, split, params)
        truths: list[GroundTruth | None] = [None] * len(sheet.rows)
        if true_file and split == "test":
            truths, strangers = match_ground_truth(sheet, true_file, params.encodings)
            yield from strangers
        found = index_images(places, params.image_folders.by_split()[split])
        for number, (row, truth) in enumerate(zip(sheet.rows, truths, strict=True)):
            item = (
                row
                if isinstance(row, Rejection)
                else build_meme(row, number, truth, sheet, choices)
            )
            if isinstance(item, MemeRecord):
                name = get_image_name(row[1], number, sheet)
                item = replace(
                    item,
                    image=resolve_image_file(name, found, source) if found else None,
                    split=assign_split(item.key, split, set(files), params.validation_fraction),
                )
            yield item


def find_first_file(names: list[str], places: list[Path]) -> Path | None:
    paths = (place / name for name in names for place in places)
    return next((path for path in paths if path.is_file()), None)


def get_task_labels(task: str, choice: str) -> list[str]:
    """The labels of a task in order."""
    if choice == "binary":
        return BINARY_LABELS[task]
    return SENTIMENT_LABELS if choice == "three" else SOURCE_LABELS[task]


def read_split_table(path: Path, split: str, params: MemotionConfig) -> _SplitTable:
    """The table of a split. Raises WrongInput that names the columns which it lacks."""
    header, rows = read_csv(path, params.encodings, ENCODINGS_KEY)
    plain = {re.sub(r"[\s_]+", "_", column.lower()): column for column in header}
    versions = {
        version: {
            what: plain[names[0]]
            for what, known in columns.items()
            if (names := [name for name in known if name in plain])
        }
        for version, columns in COLUMN_NAMES.items()
    }
    version = max(versions, key=lambda one: len(versions[one]))
    found, known = versions[version], COLUMN_NAMES[version]
    needed = ["text"] if "corrected" not in found else []
    needed += ["name"] if version < 3 else []  # without it rows are counted
    if split == "train" or set(found) & set(SOURCE_LABELS):
        needed += list(params.label_sets.get_enabled_tasks())
    wanted = [found.get(what, known[what][0]) for what in needed]
    check_columns(wanted, header, path, FIX_HINT)
    listed = list(rows)
    return _SplitTable(
        path, version, found, listed if "name" in found else reject_unnumbered_rows(listed)
    )


def reject_unnumbered_rows(rows: list[CsvRow | Rejection]) -> list[CsvRow | Rejection]:
    """Rows that are known by their number alone: behind one that is no row nobody can count."""
    broken = (
        row
        for row in rows
        if isinstance(row, Rejection) and row.reason.startswith(MALFORMED_REASONS)
    )
    if (first := next(broken, None)) is None:
        return rows
    place = rows.index(first) + 1
    reason = f"no id: pictures are named after row numbers, which {first.source} leaves unclear"
    behind = [
        row if isinstance(row, Rejection) else Rejection(row[0], reason) for row in rows[place:]
    ]
    return rows[:place] + behind


def assign_split(key: str | None, split: str, files: set[str], share: float) -> str | None:
    """The split of a meme in the file of one; None leaves it to ingest."""
    if len(files) == 1:
        return None
    if split == "train" and "validation" not in files and key is not None:
        place = int(sha256(key.encode()).hexdigest()[:8], 16) / 16**8  # [0, 1)
        return "validation" if place < share else "train"
    return split


def build_meme(
    row: CsvRow, number: int, truth: GroundTruth | None, sheet: _SplitTable, choices: dict[str, str]
) -> MemeRecord | Rejection:
    """A row, the one of this number from 0, without picture and split."""
    source, cells = row
    name = get_image_name(cells, number, sheet)
    if not name:
        return Rejection(source, "no id: the row names no picture")
    # Later versions number the pictures of each split anew.
    key = name if sheet.version == 1 else f"{sheet.path.stem}/{name}"
    labels = (
        parse_labels(cells, sheet, choices)
        if truth is None
        else parse_ground_truth(truth[1], choices)
    )
    if isinstance(labels, str):
        return Rejection(source if truth is None else truth[0], labels, key)
    texts = [cells[sheet.columns[what]] for what in ("corrected", "text") if what in sheet.columns]
    text = next((text for text in texts if text.strip().lower() not in EMPTY_VALUES), "")
    return MemeRecord(source=source, text=text, labels=labels, key=key)


def get_image_name(cells: dict[str, str], number: int, sheet: _SplitTable) -> str:
    return cells[sheet.columns["name"]].strip() if "name" in sheet.columns else str(number)


def parse_labels(
    cells: dict[str, str], sheet: _SplitTable, choices: dict[str, str]
) -> dict[str, str] | str:
    """The labels in a row, or what is wrong with one; an empty cell is of a task nobody judged."""
    labels = {}
    for task, choice in choices.items():
        said = cells[sheet.columns[task]] if task in sheet.columns else ""
        value = re.sub(r"[\s_]+", "_", said.strip().lower())
        if value in EMPTY_VALUES:
            continue
        value = LABEL_ALIASES.get(sheet.version, {}).get(task, {}).get(value, value)
        if value not in SOURCE_LABELS[task]:
            return describe_unknown_label(said, SOURCE_LABELS[task], task)
        labels[task] = convert_label(value, task, choice)
    return labels


def convert_label(value: str, task: str, choice: str) -> str:
    """A value of the files as one of the labels that the task was given."""
    if choice == "binary":
        return BINARY_LABELS[task][SOURCE_LABELS[task].index(value) > 0]
    return value.removeprefix("very_") if choice == "three" else value


def parse_ground_truth(truth: str, choices: dict[str, str]) -> dict[str, str] | str:
    """The labels of T1_T2_T3, or what is wrong with it."""
    parts = GROUND_TRUTH_PATTERN.fullmatch(truth)
    if parts is None:
        return f"wrong field: {truth[:60]!r} is not T1_T2_T3, such as -1_1110_1310"
    sentiment, yes, levels = parts.groups()
    labels = {}
    for task, choice in choices.items():
        if task == "sentiment":
            if sentiment not in GROUND_TRUTH_SENTIMENTS:
                return describe_unknown_label(sentiment, GROUND_TRUTH_SENTIMENTS, task)
            if choice == "three":
                labels[task] = GROUND_TRUTH_SENTIMENTS[sentiment]
            continue
        digit = (yes if choice == "binary" else levels)[list(BINARY_LABELS).index(task)]
        known = get_task_labels(task, choice)
        if int(digit) >= len(known):
            return describe_unknown_label(digit, map(str, range(len(known))), task)
        labels[task] = known[int(digit)]
    return labels


def describe_unknown_label(value: str, known: Iterable[str], task: str) -> str:
    return f"unknown label: {value.strip()[:60]!r} is none of {', '.join(known)} ({task})"


def match_ground_truth(
    sheet: _SplitTable, path: Path, encodings: list[str]
) -> tuple[list[GroundTruth | None], list[Rejection]]:
    """The truth of each row of a table, None where there is none, and what is wrong with others.

    Raises WrongInput if truths without names are more or fewer than the rows.
    """
    listed = [
        line
        for line in read_lines(path, encodings, ENCODINGS_KEY)
        if not isinstance(line, Rejection)
    ]
    if listed and GROUND_TRUTH_PATTERN.fullmatch(listed[0][1].strip()):
        if len(listed) != len(sheet.rows):
            raise InputError(
                f"{path} has {len(listed)} truths, {sheet.path.name} {len(sheet.rows)} rows: give "
                "the two files of one release"
            )
        return [(source, text.strip()) for source, text in listed], []
    found, rejects = read_ground_truth(path, encodings)
    names = [
        "" if isinstance(row, Rejection) else get_image_name(row[1], number, sheet)
        for number, row in enumerate(sheet.rows)
    ]
    known = set(names)
    rejects += [
        Rejection(source, f"missing row: {name[:60]!r} is in no row of {sheet.path.name}", name)
        for name, (source, _) in found.items()
        if name not in known
    ]
    return [found.get(name) for name in names], rejects


def read_ground_truth(
    path: Path, encodings: list[str]
) -> tuple[dict[str, GroundTruth], list[Rejection]]:
    """Name of a picture -> its truth; the column that is not Labels names it."""
    header, rows = read_csv(path, encodings, ENCODINGS_KEY)
    labels = [column for column in header if column.lower() == "labels"]
    others = [column for column in header if column not in labels]
    if len(labels) != 1 or not others:
        raise InputError(
            f"{path} has no column Labels next to a column of names "
            f"(its columns: {', '.join(header)[:200]}): give the published ground truth, or remove "
            "the file from formats.memotion.test_label_files of params.yaml"
        )
    found: dict[str, GroundTruth] = {}
    rejects = []
    for row in rows:
        if isinstance(row, Rejection):
            rejects.append(row)
            continue
        source, cells = row
        name = cells[others[0]].strip()
        first, _ = found.setdefault(name, (source, cells[labels[0]].strip()))
        if first != source:
            rejects.append(Rejection(source, f"duplicate id: stands at {first} too", name))
    return found, rejects


def index_images(places: list[Path], folders: list[str]) -> dict[str, Path]:
    """Picture files by name, and by name without suffix; of several the first counts."""
    names: dict[str, Path] = {}
    stems: dict[str, Path] = {}
    for folder in [place / folder for place in places for folder in folders]:
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(
                APPLE_DOUBLE_PREFIX
            ):
                names.setdefault(path.name, path)
                stems.setdefault(path.stem, path)
    return stems | names


def resolve_image_file(name: str, found: dict[str, Path], source: Path) -> ImageFile:
    """The picture of a name; where there is none, one that ingest will miss."""
    path = found.get(name)
    return ImageFile(path.name, path.parent) if path else ImageFile(name, source)
