"""Clean the texts of a corpus and keep each original next to its clean text.

python -m stages.clean --kind KIND --ingest INGEST --output OUTPUT

reads   INGEST/records.parquet  RECORDS[KIND] of stages/shared/core/schemas.py
writes  OUTPUT/records.parquet  CLEAN_RECORDS[KIND]
        OUTPUT/summary.json     records per split; texts changed; texts dropped as empty

The cleaning rules are in stages/shared/data/text_cleaning.py. Tweets are cleaned word by word, and
a word that would become empty keeps its original form, so that words and tags stay aligned. The
text of a post also stays if it would become empty. The text of a meme may become empty if the meme
has an image; summary.json counts the memes without text per split.
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


def clean_article(record: dict, clean: Callable[[str], str]) -> dict:
    """The CLEAN_RECORDS row of an article; a title that would become empty keeps its original."""
    blocks = [
        {**block, "text": clean(block["text"] or "") or None, "original": block["text"]}
        for block in record["blocks"]
    ]
    return {
        **record,
        "title": clean(record["title"]) or record["title"],
        "title_original": record["title"],
        "blocks": [block for block in blocks if block["image"] or block["text"]],
    }


def clean_captions(record: dict, clean: Callable[[str], str]) -> dict:
    """The CLEAN_RECORDS row of a captioned image, without captions that become empty."""
    pairs = [(clean(caption), caption) for caption in record["captions"]]
    pairs = [(cleaned, original) for cleaned, original in pairs if cleaned]
    return {
        **record,
        "captions": [cleaned for cleaned, _ in pairs],
        "originals": [original for _, original in pairs],
    }


def clean_tweet(record: dict, clean: Callable[[str], str]) -> dict:
    """The CLEAN_RECORDS row of a tweet; the number of words does not change."""
    words = [clean(word) or word for word in record["words"]]
    return {**record, "words": words, "originals": record["words"]}


def clean_post(record: dict, clean: Callable[[str], str]) -> dict:
    """The CLEAN_RECORDS row of a post; a text that would become empty keeps its original."""
    return {**record, "text": clean(record["text"]) or record["text"], "original": record["text"]}


def clean_meme(record: dict, clean: Callable[[str], str]) -> dict:
    """The CLEAN_RECORDS row of a meme, whose text may become empty."""
    return {**record, "text": clean(record["text"]), "original": record["text"]}


CLEANERS = {
    "articles": clean_article,
    "captions": clean_captions,
    "tweets": clean_tweet,
    "posts": clean_post,
    "memes": clean_meme,
}


def text_pairs(row: dict, kind: str) -> list[tuple[str, str]]:
    """(clean text, original) pairs of a CLEAN_RECORDS row; the texts of a tweet are its words."""
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
    """The number of texts of a RECORDS row."""
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
    """summary.json: counts of records and texts, of changed texts and of dropped ones."""
    splits = Counter(row["split"] for row in after if text_pairs(row, kind))
    pairs = [pair for row in after for pair in text_pairs(row, kind)]
    num_texts = sum(count_texts(record, kind) for record in before)
    summary = {
        "records": {split: splits[split] for split in SPLITS},
        "records_dropped": len(before) - splits.total(),
        "texts": num_texts,
        "texts_changed": sum(text != original for text, original in pairs),
        "texts_dropped": num_texts - len(pairs),
    }
    if kind == "memes":
        without_text = Counter(row["split"] for row in after if not row["text"])
        summary["without_text"] = {split: without_text[split] for split in SPLITS}
    return summary


def main(config: CleanConfig, kind: str, ingest: Path, output: Path) -> None:
    """Run the stage. Raises InputError if `ingest` holds no records of this kind."""
    records = schemas.read_parquet(ingest / "records.parquet", schemas.RECORDS[kind])
    clean_one = clean_overlay_text if kind == "memes" else clean_text
    rows = []
    with atomic_output_dir(output) as folder:
        for record in progress_bar(records, "clean"):
            clean = partial(clean_one, language=record["language"], config=config)
            rows.append(CLEANERS[kind](record, clean))
        kept = [row for row in rows if text_pairs(row, kind)]
        schemas.write_parquet(folder / "records.parquet", kept, schemas.CLEAN_RECORDS[kind])
        summary = json.dumps(build_summary(records, rows, kind), indent=2)
        (folder / "summary.json").write_text(summary + "\n")


def cli(kind: str, ingest: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    main(load_config(CleanConfig, "clean"), kind, ingest, output)


if __name__ == "__main__":
    run_stage(cli)
