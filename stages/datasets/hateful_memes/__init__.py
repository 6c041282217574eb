"""Format `hateful_memes`: Hateful Memes (Kiela et al., 2020), memes that are hateful or not.

train.jsonl, dev_seen.jsonl, dev_unseen.jsonl, test_seen.jsonl, test_unseen.jsonl (or dev.jsonl and
test.jsonl of the first release), one meme a line, its picture in img/:

    {"id": "01235", "img": "img/01235.png", "label": 0, "text": "..."}

They lie in the corpus' folder or in one folder within it. The files are the splits; a lone
train.jsonl leaves them to ingest. Some files of test are published without labels: nobody judged
their memes. Half of dev_unseen and dev_seen is the same, so that one of the two is read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.datasets.common.files import describe_validation_error, find_corpus_dir, read_lines
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import DatasetItem, ExtraFile, ImageFile, MemeRecord, Rejection

KINDS = ("memes",)
TRAIN_FILE = "train.jsonl"
TASK = "hateful"
LABEL_NAMES = {"0": "not_hateful", "1": "hateful"}


@config_class
class HatefulMemesConfig:
    variant: Literal["seen", "unseen"] = Field(description="which dev and test files to read")
    encodings: list[str] = Field(description="tried in this order for each line")


CONFIG = HatefulMemesConfig


class _HatefulMemesRow(BaseModel):
    model_config = ConfigDict(strict=True)

    id: str | int  # a string keeps its leading zeros
    img: str | None = None
    text: str = ""
    label: str | int | None = None


def read(source: Path, kind: str, params: HatefulMemesConfig) -> Iterator[DatasetItem]:
    """The labels of the task, then a row, or Reject, per line. Raises WrongInput without train."""
    root = find_corpus_dir(source, [TRAIN_FILE], "put the files of Hateful Memes there")
    files = find_split_files(root, params.variant)
    yield ExtraFile("tasks.json", {TASK: list(LABEL_NAMES.values())})
    for split, path in files.items():
        for line in read_lines(path, params.encodings, "formats.hateful_memes.encodings"):
            if isinstance(line, Rejection):
                yield line
            else:
                yield parse_line(*line, root, split if len(files) > 1 else None)


def find_split_files(root: Path, variant: str) -> dict[str, Path]:
    """The files of the splits that are there."""
    names = {
        "train": [TRAIN_FILE],
        "validation": [f"dev_{variant}.jsonl", "dev.jsonl"],
        "test": [f"test_{variant}.jsonl", "test.jsonl"],
    }
    found = {
        split: next((root / name for name in listed if (root / name).is_file()), None)
        for split, listed in names.items()
    }
    return {split: path for split, path in found.items() if path}


def parse_line(source: str, line: str, root: Path, split: str | None) -> DatasetItem:
    """One line as a row."""
    try:
        row = _HatefulMemesRow.model_validate_json(line)
    except ValidationError as error:
        return Rejection(source, describe_validation_error(error))
    key = str(row.id)
    label = None if row.label is None else str(row.label).strip()
    if label and label not in LABEL_NAMES:
        said = f"unknown label: {label[:60]!r} is none of {', '.join(LABEL_NAMES)} ({TASK})"
        return Rejection(source, said, key)
    return MemeRecord(
        source=source,
        text=row.text,
        labels={TASK: LABEL_NAMES[label]} if label else {},
        image=ImageFile(row.img, root) if row.img else None,
        key=key,
        split=split,
    )
