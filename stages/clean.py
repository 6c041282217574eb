"""Clean the texts of a corpus and keep the originals beside them.

python -m stages.clean --kind KIND --ingest INGEST --output OUTPUT

reads   SOURCE/records.parquet   RECORDS[KIND] of stages/shared/core/schemas.py
writes  TARGET/records.parquet   CLEAN[KIND]
        TARGET/summary.json      records by split, texts changed, what became empty and was dropped

What is done to a text stands in stages/shared/data/text_cleaning.py. Of a tweet each word is cleaned by
itself, and one that would become empty stays as it is, beside its tag; so does the text of a post,
beside its label. The text of a meme may become empty where a picture remains; summary.json counts
memes without words by split.
"""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data.records import SPLITS
from stages.shared.data.text_cleaning import CleanConfig, clean_overlay_text, clean_text
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import atomic_output_dir, run_stage


def clean_article(record: dict, tidy: Callable[[str], str]) -> dict:
    """The CLEAN row of an article; a title that would become empty stays as it was."""
    blocks = [
        {**block, "text": tidy(block["text"] or "") or None, "original": block["text"]}
        for block in record["blocks"]
    ]
    return {
        **record,
        "title": tidy(record["title"]) or record["title"],
        "title_original": record["title"],
        "blocks": [block for block in blocks if block["image"] or block["text"]],
    }


def clean_captions(record: dict, tidy: Callable[[str], str]) -> dict:
    pairs = [(tidy(caption), caption) for caption in record["captions"]]
    pairs = [(clean, original) for clean, original in pairs if clean]
    return {
        **record,
        "captions": [clean for clean, _ in pairs],
        "originals": [original for _, original in pairs],
    }


def clean_tweet(record: dict, tidy: Callable[[str], str]) -> dict:
    """The CLEAN row of a tweet, with as many words as before."""
    words = [tidy(word) or word for word in record["words"]]
    return {**record, "words": words, "originals": record["words"]}


def clean_post(record: dict, tidy: Callable[[str], str]) -> dict:
    return {**record, "text": tidy(record["text"]) or record["text"], "original": record["text"]}


def clean_meme(record: dict, tidy: Callable[[str], str]) -> dict:
    return {**record, "text": tidy(record["text"]), "original": record["text"]}


CLEANERS = {
    "articles": clean_article,
    "captions": clean_captions,
    "tweets": clean_tweet,
    "posts": clean_post,
    "memes": clean_meme,
}


def text_pairs(row: dict, kind: str) -> list[tuple[str, str]]:
    """The texts of a CLEAN row, each with its original; of a tweet, its words."""
    match kind:
        case "articles":
            return [(block["text"], block["original"]) for block in row["blocks"] if block["text"]]
        case "captions":
            return list(zip(row["captions"], row["originals"], strict=True))
        case "tweets":
            return list(zip(row["words"], row["originals"], strict=True))
        case "memes":
            return [(row["text"], row["original"])] if row["text"] or row["image"] else []
        case _:
            return [(row["text"], row["original"])]


def count_texts(record: dict, kind: str) -> int:
    """How many texts a record of ingest has."""
    match kind:
        case "articles":
            return sum(block["text"] is not None for block in record["blocks"])
        case "captions":
            return len(record["captions"])
        case "tweets":
            return len(record["words"])
        case _:
            return 1


def build_summary(before: list[dict], after: list[dict], kind: str) -> dict:
    """Counts of records and texts, and of those that were changed or left empty and dropped."""
    splits = Counter(row["split"] for row in after if text_pairs(row, kind))
    pairs = [pair for row in after for pair in text_pairs(row, kind)]
    total = sum(count_texts(record, kind) for record in before)
    silent = Counter(row["split"] for row in after if kind == "memes" and not row["text"])
    counts = {
        "records": {split: splits[split] for split in SPLITS},
        "records_dropped": len(before) - splits.total(),
        "texts": total,
        "texts_changed": sum(text != original for text, original in pairs),
        "texts_dropped": total - len(pairs),
    }
    if kind == "memes":
        counts["without_text"] = {split: silent[split] for split in SPLITS}
    return counts


def main(params: CleanConfig, kind: str, source: Path, target: Path) -> None:
    records = schemas.read_parquet(source / "records.parquet", schemas.RECORDS[kind])
    cleaning = clean_overlay_text if kind == "memes" else clean_text
    rows = []
    with atomic_output_dir(target) as folder:
        for record in progress_bar(records, "clean"):
            tidy = partial(cleaning, language=record["language"], params=params)
            rows.append(CLEANERS[kind](record, tidy))
        kept = [row for row in rows if text_pairs(row, kind)]
        schemas.write_parquet(folder / "records.parquet", kept, schemas.CLEAN_RECORDS[kind])
        counts = json.dumps(build_summary(records, rows, kind), indent=2)
        (folder / "summary.json").write_text(counts + "\n")


def cli(kind: str, ingest: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    main(load_config(CleanConfig, "clean"), kind, ingest, output)


if __name__ == "__main__":
    run_stage(cli)
