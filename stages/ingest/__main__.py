"""Take a corpus in as records and pictures.

python -m stages.ingest KEY KIND FORMAT PATH TARGET

KEY names the corpus (params.yaml: corpora.KEY), KIND is articles | captions | tweets | posts |
memes, FORMAT a file of stages/datasets, PATH what it reads.

writes  TARGET/records.parquet   RECORDS[KIND] of stages/shared/core/schemas.py
        TARGET/images/           the pictures by hash
        TARGET/rejected.parquet  every row and picture that was not taken in, and why
        TARGET/summary.json      records by split and language, rejected rows by reason; of tweets,
        posts and memes also those without picture, entities and labels by split
        TARGET/facts.parquet, boxes.parquet, foils.parquet and JSON files where the format knows
        the truth, lists of splits that a format made, and tasks.json, the labels of each task of
        memes

Where the source names no split, a hash decides: of the key of a record (its id or path in the
source), so that it stays where it is while its text is being corrected, and of the id where there
is no key and for a captioned picture, all of whose captions stay together.

What makes an id, and what becomes of a picture that cannot be used, stands in
stages/ingest/record_collector.py.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from stages.ingest.bio_tags import entities, orphans
from stages.ingest.record_collector import Corpus, Params, split_of
from stages.shared.core import schemas
from stages.shared.core.config import load, read
from stages.shared.data import image_store
from stages.shared.data.records import SPLITS, UNKNOWN, Extra
from stages.shared.runtime.progress import bar
from stages.shared.runtime.stage import WrongInput, home, output, stage

NAMED = 3  # rejected rows that an error message names


def complete(records: Iterable[dict], params: Params) -> None:
    """Give every record a split, and the corpus' most frequent language where none was told."""
    records = list(records)
    known = Counter(record["language"] for record in records if record["language"])
    usual = min(known, key=lambda language: (-known[language], language), default=UNKNOWN)
    for record in records:
        record["split"] = record["split"] or split_of(record["id"], params)
        record["language"] = record["language"] or usual


def check_rejected(corpus: Corpus, key: str) -> None:
    """Raises WrongInput if too many rows were rejected, or all; lists them in the work folder."""
    if not corpus.rows and corpus.left_out:
        raise WrongInput(
            f"corpora.{key}: all {len(corpus.left_out)} rows were left out, most often for "
            f"{most_common(corpus.left_out)[0]!r}: add others, or change the format's section"
        )
    if not corpus.rows:
        raise WrongInput(f"corpora.{key}: the source holds no row: add records")
    count = len(corpus.rejected)
    if corpus.records and count <= corpus.params.max_rejected * corpus.rows:
        return
    path = home() / "rejected" / f"{key}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in corpus.rejected))
    reason, most = most_common(corpus.rejected)
    named = [row for row in corpus.rejected if kind_of(row) == reason][:NAMED]
    examples = "; ".join(f"{row['source']}: {row['reason']}" for row in named)
    raise WrongInput(
        f"corpora.{key}: {count} of {corpus.rows} rows and pictures were rejected, more than "
        f"ingest.max_rejected ({corpus.params.max_rejected}) allows, most often for {reason!r} "
        f"({most}; {examples}): repair what {path} lists, or raise ingest.max_rejected"
    )


def most_common(rejected: list[dict]) -> tuple[str, int]:
    return Counter(map(kind_of, rejected)).most_common(1)[0]


def kind_of(rejected: dict) -> str:
    return rejected["reason"].split(":")[0]


def check_splits(records: Iterable[dict], key: str, kind: str) -> None:
    """Raises WrongInput if nothing is left to train on or to score.

    Validation may be empty; of what readers learn from test may be instead, since some publish no
    test.
    """
    counts = Counter(record["split"] for record in records)
    empty = [split for split in ("train", "test") if not counts[split]]
    if kind in LABELLED and counts["validation"]:
        empty = [split for split in empty if split == "train"]
    if empty:
        raise WrongInput(
            f"corpora.{key}: none of {counts.total()} records is in {' or '.join(empty)}: add "
            "records, change the shares of the splits, or name the splits in the source"
        )


def summary(corpus: Corpus, kind: str) -> dict:
    records = list(corpus.records.values())
    counts = {
        "records": of_splits(record["split"] for record in records),
        "languages": counted(record["language"] for record in records),
        "rejected": counted(map(kind_of, corpus.rejected + corpus.left_out)),
    }
    if kind in LABELLED:
        bare = (record["split"] for record in records if record["image"] is None)
        counts |= {"without_picture": of_splits(bare)} | LABELLED[kind](records)
    return counts


def of_tweets(records: list[dict]) -> dict:
    """Entities by split and type, and I- tags that stand alone: they are kept as they are."""
    alone = (record["split"] for record in records for _ in orphans(record["tags"]))
    found = {
        split: counted(
            name for row in records if row["split"] == split for name in entities(row["tags"])
        )
        for split in SPLITS
    }
    return {"entities": found, "orphan_tags": of_splits(alone)}


def of_posts(records: list[dict]) -> dict:
    """Labels by split."""
    labels = {
        split: counted(row["label"] for row in records if row["split"] == split) for split in SPLITS
    }
    return {"labels": labels}


def of_memes(records: list[dict]) -> dict:
    """Labels by task and split, and memes whose words the source does not give."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for task in sorted({one["task"] for row in records for one in row["labels"]}):
        found[task] = {
            split: counted(
                one["label"]
                for row in records
                for one in row["labels"]
                if row["split"] == split and one["task"] == task
            )
            for split in SPLITS
        }
    silent = (row["split"] for row in records if not row["text"])
    return {"without_text": of_splits(silent), "labels": found}


# Kinds of corpora that readers learn from.
LABELLED = {"tweets": of_tweets, "posts": of_posts, "memes": of_memes}


def counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def of_splits(names: Iterable[str]) -> dict[str, int]:
    splits = Counter(names)
    return {split: splits[split] for split in SPLITS}


def write(corpus: Corpus, kind: str, folder: Path) -> None:
    schemas.write(folder / "records.parquet", list(corpus.records.values()), schemas.RECORDS[kind])
    rejected = corpus.rejected + corpus.left_out
    schemas.write(folder / "rejected.parquet", rejected, schemas.REJECTED)
    if corpus.facts:
        schemas.write(folder / "facts.parquet", corpus.facts, schemas.FACTS)
    if corpus.boxes:
        schemas.write(folder / "boxes.parquet", corpus.boxes, schemas.BOXES)
    if corpus.foils:
        schemas.write(folder / "foils.parquet", corpus.foils, schemas.FOILS)
    for extra in [*corpus.extras, Extra("summary.json", summary(corpus, kind))]:
        text = extra.content
        if not isinstance(text, str):
            text = json.dumps(text, indent=2, ensure_ascii=False) + "\n"
        (folder / extra.name).write_text(text)


def format_module(name: str, kind: str, key: str) -> ModuleType:
    """The file of a format. Raises WrongInput if there is none, or it holds no such corpora."""
    known = read().get("formats", {})
    if name not in known:
        choices = " | ".join(known)
        raise WrongInput(f"params.yaml: corpora.{key}.format is {name!r}: choose one of {choices}")
    module = import_module(f"stages.datasets.{name}")
    if kind not in module.KINDS:
        raise WrongInput(
            f"params.yaml: corpora.{key}.kind is {kind!r}, but format {name} holds "
            f"{' or '.join(module.KINDS)}: change the kind or the format"
        )
    return module


def main(params: Params, key: str, kind: str, format: str, source: Path, target: Path) -> None:
    if kind not in schemas.RECORDS:
        choices = " | ".join(schemas.RECORDS)
        raise WrongInput(f"params.yaml: corpora.{key}.kind is {kind!r}: choose one of {choices}")
    module = format_module(format, kind, key)
    settings = load(module.Params, "formats", format)
    if not source.exists():
        raise WrongInput(f"params.yaml: corpora.{key}.path is {source}, which does not exist")
    root = source.parent if source.is_file() else source
    with output(target) as folder:
        with image_store.writer(folder / "images", params.shards) as add_image:
            corpus = Corpus(root, params, add_image)
            for item in bar(module.read(source, kind, settings), f"ingest {key}"):
                corpus.take(item)
        check_rejected(corpus, key)
        complete(corpus.records.values(), params)
        check_splits(corpus.records.values(), key, kind)
        write(corpus, kind, folder)


if __name__ == "__main__":
    with stage():
        names, paths = sys.argv[1:4], map(Path, sys.argv[4:])
        main(load(Params, "ingest"), *names, *paths)
