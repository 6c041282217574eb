"""Format `hateful_memes`: Hateful Memes (Kiela et al., 2020), arXiv:2005.04790.

train.jsonl, dev_seen.jsonl, dev_unseen.jsonl, test_seen.jsonl, test_unseen.jsonl (or dev.jsonl and
test.jsonl of the first release), one meme per line, with its image in img/:

    {"id": "01235", "img": "img/01235.png", "label": 0, "text": "..."}

The files are in the corpus' folder or in one folder within it. Each file is a split; with
train.jsonl alone, ingest assigns the splits. Some test files are published without labels; their
memes have no annotation. dev_unseen and dev_seen share half of their memes, so only one is read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from stages.datasets.common.files import find_corpus_dir, parse_json_line, read_lines
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
    text: str | None = None
    label: str | int | None = None


def read(source: Path, kind: str, config: HatefulMemesConfig) -> Iterator[DatasetItem]:
    """Yield tasks.json, then a record or rejection per line.

    Raises InputError if train.jsonl is missing.
    """
    root = find_corpus_dir(source, [TRAIN_FILE], "put the files of Hateful Memes there")
    paths = find_split_files(root, config.variant)
    yield ExtraFile("tasks.json", {TASK: list(LABEL_NAMES.values())})
    for split, path in paths.items():
        for line in read_lines(path, config.encodings, "formats.hateful_memes.encodings"):
            if isinstance(line, Rejection):
                yield line
            else:
                yield parse_line(*line, root, split if len(paths) > 1 else None)


def find_split_files(root: Path, variant: str) -> dict[str, Path]:
    """The existing files by split."""
    names_by_split = {
        "train": [TRAIN_FILE],
        "validation": [f"dev_{variant}.jsonl", "dev.jsonl"],
        "test": [f"test_{variant}.jsonl", "test.jsonl"],
    }
    paths = {
        split: next((root / name for name in names if (root / name).is_file()), None)
        for split, names in names_by_split.items()
    }
    return {split: path for split, path in paths.items() if path}


def parse_line(source: str, line: str, root: Path, split: str | None) -> DatasetItem:
    """Parse one line into a record or rejection."""
    row = parse_json_line(_HatefulMemesRow, source, line)
    if isinstance(row, Rejection):
        return row
    key = str(row.id)
    label = None if row.label is None else str(row.label).strip()
    if label and label not in LABEL_NAMES:
        reason = f"unknown label: {label[:60]!r} is none of {', '.join(LABEL_NAMES)} ({TASK})"
        return Rejection(source, reason, key)
    return MemeRecord(
        source=source,
        text=row.text or "",
        labels={TASK: LABEL_NAMES[label]} if label else {},
        image=ImageFile(row.img, root) if row.img else None,
        key=key,
        split=split,
    )
