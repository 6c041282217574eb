"""Every published corpus at hand is ingested: each of its rows is a record or a rejection.

POLYMUSE_REAL_DATA names the folder that holds the corpora; without it the tests are skipped. The
rows are counted by other code than that of the formats.
"""

import csv
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.published_corpus import PROJECT_PARAMS, run_ingest

TABLE_COLUMNS = PROJECT_PARAMS["formats"]["table"]["columns"]


def count_csv_rows(source: Path) -> int:
    (path,) = source.glob("*.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.DictReader(file))


def count_lines(source: Path) -> int:
    (path,) = source.glob("*.jsonl")
    return len(path.read_bytes().splitlines())


def count_memes(source: Path) -> int:
    """The lines that begin with an image name, since stray quotes join rows for other readers."""
    (path,) = source.glob("*.csv")
    return len(re.findall(rb"^[^,\s\"]+\.\w+,", path.read_bytes(), re.MULTILINE))


def count_tweets(source: Path) -> int:
    return sum(path.read_bytes().count(b"IMGID:") for path in source.glob("*.txt"))


def count_articles(source: Path) -> int:
    return len(list(source.rglob("*.md")))


@dataclass(frozen=True)
class RealCorpus:
    """images: of the records that have one, or that an article shows."""

    folder: str
    format: str
    kind: str
    count_rows: Callable[[Path], int]
    records: int
    images: int
    rejected: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)


CORPORA = [
    RealCorpus(
        "mvsa_single", "mvsa", "posts", count_csv_rows, 167, 167, rejected=("undecodable file",)
    ),
    RealCorpus(
        "cm_memes",
        "table",
        "memes",
        count_csv_rows,
        179,
        179,
        changes={
            "columns": TABLE_COLUMNS | {"image": "Name", "text": "Text"},
            "tasks": {
                "sentiment": {
                    "column": "Valence",
                    "labels": {name: name for name in ("negative", "neutral", "positive")},
                    "default_label": None,
                }
            },
        },
    ),
    RealCorpus("flickr8k_cn", "flickr8k_cn", "captions", count_lines, 400, 400),
    RealCorpus(
        "memotion_text",
        "memotion",
        "memes",
        count_memes,
        3011,
        0,
        rejected=("not CSV",) * 6 + ("duplicate id",),
        changes={
            "files": PROJECT_PARAMS["formats"]["memotion"]["files"] | {"train": ["data_3000.csv"]}
        },
    ),
    RealCorpus("mner/twitter2015", "twitter", "tweets", count_tweets, 5000, 0),
    RealCorpus("mner/twitter2017", "twitter", "tweets", count_tweets, 4096, 0),
    RealCorpus("howtocook", "markdown", "articles", count_articles, 29, 67),
    RealCorpus(
        "propaganda_memes",
        "table",
        "memes",
        count_lines,
        55,
        55,
        changes={"columns": TABLE_COLUMNS | {"id": "id", "split": "split"}, "tasks": {}},
    ),
]


def count_images(record: dict) -> int:
    if "blocks" in record:
        return sum(block["image"] is not None for block in record["blocks"])
    return int(record["image"] is not None)


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus.folder)
def test_each_row_is_a_record_or_a_rejection(corpus, tmp_path, monkeypatch, recwarn, capfd):
    source = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset")) / corpus.folder
    if not source.is_dir():
        pytest.skip(f"POLYMUSE_REAL_DATA names no folder {corpus.folder}")
    records, rejected = run_ingest(
        tmp_path, monkeypatch, corpus.format, corpus.kind, source, **corpus.changes
    )
    assert tuple(reason.split(":")[0] for _, reason in rejected) == corpus.rejected
    assert len(records) == corpus.records
    assert len(records) + len(rejected) == corpus.count_rows(source)
    assert sum(map(count_images, records)) == corpus.images
    assert not list(recwarn) and "warn" not in capfd.readouterr().err.lower()
