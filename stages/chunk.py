"""Cut records into chunks, a picture with the text that belongs to it, and name mscDPO's pairs.

python -m stages.chunk KIND SOURCE TARGET

reads   SOURCE/records.parquet  CLEAN[KIND] of stages/shared/tables.py
writes  TARGET/chunks.parquet   CHUNKS; `position` is that of the chunk's picture in its record
        TARGET/pairs.parquet    PAIRS: per chunk of an article the positions that may be rejected
        TARGET/summary.json     chunks by split; what was left out and why, in counts

Articles (FlexMUSE, arXiv:2508.16230; papers.md F11 where it is silent): the text between two
pictures belongs to the first of them. So of pictures in a row the last one has the text, and a
picture without text makes no chunk. Text before the first picture is put before that picture's own
text, or left out (chunk.leading_text). An article without pictures is one chunk without image, for
a later stage to illustrate. Captions: one chunk a picture, its captions the references.

A position counts the pictures of the record from 0, those without text too, so that it names the
same picture here as in ingest's facts; a picture that makes no chunk leaves a gap.

Pairs (F12): the text of another picture of the same article is rejected in favour of the chunk's
own, if both are alike enough to teach something and not so alike that either would do.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

from stages.shared import tables
from stages.shared.params import load
from stages.shared.progress import bar
from stages.shared.records import SPLITS
from stages.shared.stage import output, stage

SEPARATOR = "\n\n"  # between texts that were blocks of their own


@dataclass(frozen=True)
class Params:
    leading_text: Literal["first", "drop"]  # text before the first picture
    min_characters: int  # a shorter text makes no chunk
    similarity_min: float  # of two texts, 0 to 1, both bounds included
    similarity_max: float
    max_rejected: int  # rejected chunks per chosen one


def cut(blocks: list[dict], leading_text: str) -> list[tuple[str | None, str]]:
    """Blocks in reading order -> (image, its text) per picture; the text may be empty.

    Without any picture: one pair whose image is None.
    """
    parts: list[tuple[str | None, list[str]]] = [(None, [])]
    for block in blocks:
        if block["image"]:
            parts.append((block["image"], []))
        else:
            parts[-1][1].append(block["text"])
    if len(parts) > 1:
        (_, leading), *parts = parts
        if leading_text == "first":
            parts[0][1][:0] = leading
    return [(image, SEPARATOR.join(texts)) for image, texts in parts]


def article_chunks(record: dict, params: Params) -> list[dict]:
    """The CHUNKS rows of an article."""
    pairs = cut(record["blocks"], params.leading_text)
    return [
        row(record, position, image, record["title"], [text])
        for position, (image, text) in enumerate(pairs)
        if is_long_enough(text, params)
    ]


def caption_chunks(record: dict, params: Params) -> list[dict]:
    """The CHUNKS row of a captioned picture, or none if every caption is too short."""
    kept = [text for text in record["captions"] if is_long_enough(text, params)]
    return [row(record, 0, record["image"], "", kept)] if kept else []


def is_long_enough(text: str, params: Params) -> bool:
    return len(text) >= max(params.min_characters, 1)


def left_out(record: dict, params: Params) -> Counter:
    """What of an article makes no chunk, and chunks that have no picture, in counts."""
    pairs = cut(record["blocks"], params.leading_text)
    short = [text for _, text in pairs if text and not is_long_enough(text, params)]
    leads = record["blocks"][0]["image"] is None and pairs[0][0] is not None
    return Counter(
        pictures_without_text=sum(not text for _, text in pairs),
        texts_too_short=len(short),
        leading_texts_dropped=int(leads and params.leading_text == "drop"),
        chunks_without_picture=sum(
            image is None and is_long_enough(text, params) for image, text in pairs
        ),
    )


def row(record: dict, position: int, image: str | None, title: str, references: list[str]) -> dict:
    return {
        "record": record["id"],
        "position": position,
        "split": record["split"],
        "language": record["language"],
        "title": title,
        "image": image,
        "text": references[0],
        "references": references,
    }


def similarities(texts: list[str]) -> np.ndarray:
    """(N, N) similarity of texts by their characters, so in any language: 2 LCS / (|a| + |b|)."""
    return cdist(texts, texts, scorer=Indel.normalized_similarity, dtype=np.float32)


def rejectable(similarity: np.ndarray, params: Params) -> list[list[int]]:
    """For each row of (N, N) similarities the columns in the band, at most `max_rejected`.

    The most alike come first in that choice, the earlier of two equals; columns are sorted.
    """
    chosen = []
    for row, values in enumerate(similarity):
        in_band = (values >= params.similarity_min) & (values <= params.similarity_max)
        in_band[row] = False
        by_likeness = np.argsort(-values, kind="stable")
        best = [int(other) for other in by_likeness if in_band[other]][: params.max_rejected]
        chosen.append(sorted(best))
    return chosen


def article_pairs(chunks: list[dict], params: Params) -> list[dict]:
    """The PAIRS rows of one article, one per chunk; `rejected` is empty where no pair is of use."""
    if not chunks:
        return []
    rejected = rejectable(similarities([chunk["text"] for chunk in chunks]), params)
    positions = [chunk["position"] for chunk in chunks]
    return [
        {
            "record": chunk["record"],
            "position": chunk["position"],
            "rejected": [positions[other] for other in others],
        }
        for chunk, others in zip(chunks, rejected, strict=True)
    ]


def summary(chunks: list[dict], pairs: list[dict], counts: Counter) -> dict:
    splits = Counter(chunk["split"] for chunk in chunks)
    return {
        "chunks": {split: splits[split] for split in SPLITS},
        "pairs": sum(len(pair["rejected"]) for pair in pairs),
        **dict(sorted(counts.items())),
    }


def main(params: Params, kind: str, source: Path, target: Path) -> None:
    chunks: list[dict] = []
    pairs: list[dict] = []
    counts: Counter = Counter()
    with output(target) as folder:
        for record in bar(tables.read(source / "records.parquet", tables.CLEAN[kind]), "chunk"):
            if kind == "articles":
                found = article_chunks(record, params)
                pairs += article_pairs(found, params)
                counts.update(left_out(record, params))
            else:
                found = caption_chunks(record, params)
                counts["texts_too_short"] += len(record["captions"]) - sum(
                    len(chunk["references"]) for chunk in found
                )
            chunks += found
            counts["records_without_chunks"] += not found
        tables.write(folder / "chunks.parquet", chunks, tables.CHUNKS)
        tables.write(folder / "pairs.parquet", pairs, tables.PAIRS)
        text = json.dumps(summary(chunks, pairs, counts), indent=2)
        (folder / "summary.json").write_text(text + "\n")


if __name__ == "__main__":
    with stage():
        main(load(Params, "chunk"), sys.argv[1], *map(Path, sys.argv[2:]))
