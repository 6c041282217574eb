"""Format `hateful_memes`: Hateful Memes (Kiela et al., 2020), memes that are hateful or not.

train.jsonl, dev_seen.jsonl, dev_unseen.jsonl, test_seen.jsonl, test_unseen.jsonl (or dev.jsonl and
test.jsonl of the first release), one meme a line, its picture in img/:

    {"id": "01235", "img": "img/01235.png", "label": 0, "text": "..."}

They lie in the corpus' folder or in one folder within it. The files are the splits; a lone
train.jsonl leaves them to ingest. Some files of test are published without labels: nobody judged
their memes. Half of dev_unseen and dev_seen is the same, so that one of the two is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.datasets.common.files import holding, lines, reason
from stages.shared.data.records import Extra, Item, Meme, PictureFile, Reject

KINDS = ("memes",)
TRAIN = "train.jsonl"
TASK = "hateful"
LABELS = {"0": "not_hateful", "1": "hateful"}


@dataclass(frozen=True)
class Params:
    variant: Literal["seen", "unseen"]
    encodings: list[str]  # tried in this order for each line


class _Row(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str | int  # a string keeps its leading zeros
    img: str | None = None
    text: str = ""
    label: str | int | None = None


def read(source: Path, kind: str, params: Params) -> Iterator[Item]:
    """The labels of the task, then a row, or Reject, per line. Raises WrongInput without train."""
    root = holding(source, [TRAIN], "put the files of Hateful Memes there")
    files = split_files(root, params.variant)
    yield Extra("tasks.json", {TASK: list(LABELS.values())})
    for split, path in files.items():
        for line in lines(path, params.encodings, "formats.hateful_memes.encodings"):
            if isinstance(line, Reject):
                yield line
            else:
                yield parse(*line, root, split if len(files) > 1 else None)


def split_files(root: Path, variant: str) -> dict[str, Path]:
    """The files of the splits that are there."""
    names = {
        "train": [TRAIN],
        "validation": [f"dev_{variant}.jsonl", "dev.jsonl"],
        "test": [f"test_{variant}.jsonl", "test.jsonl"],
    }
    found = {
        split: next((root / name for name in listed if (root / name).is_file()), None)
        for split, listed in names.items()
    }
    return {split: path for split, path in found.items() if path}


def parse(source: str, line: str, root: Path, split: str | None) -> Item:
    """One line as a row."""
    try:
        row = _Row.model_validate_json(line)
    except ValidationError as error:
        return Reject(source, reason(error))
    key = str(row.id)
    label = None if row.label is None else str(row.label).strip()
    if label and label not in LABELS:
        said = f"unknown label: {label[:60]!r} is none of {', '.join(LABELS)} ({TASK})"
        return Reject(source, said, key)
    return Meme(
        source=source,
        text=row.text,
        labels={TASK: LABELS[label]} if label else {},
        picture=PictureFile(row.img, root) if row.img else None,
        key=key,
        split=split,
    )
