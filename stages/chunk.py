"""Cut records into chunks, a picture with the text that belongs to it, and name mscDPO's pairs.

python -m stages.chunk --corpus CORPUS --clean CLEAN --output OUTPUT

reads   SOURCE/records.parquet  CLEAN[kind of the corpus] of stages/shared/core/schemas.py
writes  TARGET/chunks.parquet   CHUNKS; `position` is that of the chunk's picture in its record
        TARGET/pairs.parquet    PAIRS: every chunk of an article once, and whom it is preferred to
        TARGET/similarities.parquet  SIMILARITIES: how alike the chunks of an article are
        TARGET/summary.json     chunks by split; what was left out and why, in counts

Articles (FlexMUSE, arXiv:2508.16230, which does not say how): the text between two pictures belongs
to the first of them. So of pictures in a row the last one has the text, and a picture without text
makes no chunk. Text before the first picture is put before that picture's own text, or left out
(chunk.leading_text). An article without pictures is one chunk without image, for a later stage to
illustrate. Captions: one chunk a picture, its captions the references.

A position counts the pictures of the record from 0, those without text too, so that it names the
same picture here as in ingest's facts; a picture that makes no chunk leaves a gap.

Pairs: within a group of chunks, the text of another picture is rejected in favour of the
chunk's own, if both are alike enough to teach something and not so alike that either would do. The
groups are the articles; chunks that are alone in theirs are compared with one another, or not at
all (chunk.alone). With `chunk.rejected_from: others` no group holds two chunks of one article:
plain DPO with random rejects, the baseline of mscDPO. A group never crosses splits. A chunk without
picture is in its group all the same: it takes part once a later stage has illustrated it.
"""

import json
from collections import Counter
from heapq import heapify, heappop, heappush
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

from stages.shared.core import schemas
from stages.shared.core.config import config_class, load_config
from stages.shared.data.records import SPLITS
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import atomic_output_dir, run_stage

ChunkableKind = Literal["articles", "captions"]
PARAGRAPH_SEPARATOR = "\n\n"  # between texts that were blocks of their own


@config_class
class ChunkConfig:
    corpora: list[str]  # that are cut into chunks
    leading_text: Literal["first", "drop"]  # text before the first picture
    min_characters: int  # a shorter text makes no chunk
    rejected_from: Literal["article", "others"]
    single_chunk_articles: Literal[
        "skip", "others"
    ]  # whom single chunks of their articles are compared with
    seed: int  # of groups that are drawn
    min_similarity: float  # of two texts, 0 to 1, both bounds included
    max_similarity: float
    max_rejected_per_chosen: int  # rejected chunks per chosen one


def split_at_images(blocks: list[dict], leading_text: str) -> list[tuple[str | None, str]]:
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
    return [(image, PARAGRAPH_SEPARATOR.join(texts)) for image, texts in parts]


def chunk_article(record: dict, params: ChunkConfig) -> list[dict]:
    """The CHUNKS rows of an article."""
    pairs = split_at_images(record["blocks"], params.leading_text)
    return [
        build_chunk(record, position, image, record["title"], [text])
        for position, (image, text) in enumerate(pairs)
        if is_long_enough(text, params)
    ]


def chunk_captions(record: dict, params: ChunkConfig) -> list[dict]:
    """The CHUNKS row of a captioned picture, or none if every caption is too short."""
    kept = [text for text in record["captions"] if is_long_enough(text, params)]
    return [build_chunk(record, 0, record["image"], "", kept)] if kept else []


def is_long_enough(text: str, params: ChunkConfig) -> bool:
    return len(text) >= max(params.min_characters, 1)


def count_omissions(record: dict, params: ChunkConfig) -> Counter:
    """What of an article makes no chunk, and chunks that have no picture, in counts."""
    pairs = split_at_images(record["blocks"], params.leading_text)
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


def build_chunk(
    record: dict, position: int, image: str | None, title: str, references: list[str]
) -> dict:
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


def compute_similarities(chunks: list[dict]) -> np.ndarray:
    """(N, N) likeness of texts by their characters, so in any language: 2 LCS / (|a| + |b|)."""
    texts = [chunk["text"] for chunk in chunks]
    return cdist(texts, texts, scorer=Indel.normalized_similarity, dtype=np.float32)


def mask_similarity_band(alike: np.ndarray, params: ChunkConfig) -> np.ndarray:
    """(N, N) similarities -> which of them lie in the band; never a chunk and itself."""
    inside = (alike >= params.min_similarity) & (alike <= params.max_similarity)
    return inside & ~np.eye(len(alike), dtype=bool)


def select_rejected(alike: np.ndarray, params: ChunkConfig) -> list[list[int]]:
    """For each row of (N, N) similarities the columns in the band, at most `max_rejected`.

    The most alike come first in that choice, the earlier of two equals; columns are sorted.
    """
    chosen = []
    for values, inside in zip(alike, mask_similarity_band(alike, params), strict=True):
        by_likeness = np.argsort(-values, kind="stable")
        best = [int(other) for other in by_likeness if inside[other]][
            : params.max_rejected_per_chosen
        ]
        chosen.append(sorted(best))
    return chosen


def deal_into_groups(
    articles: list[list[dict]], sizes: list[int], random: Random
) -> list[list[dict]]:
    """All chunks in groups of the given sizes, in none of them two of one article.

    Each article goes to the groups with most room left, which finds a solution if there is one
    (Gale and Ryser). Where there is none, groups are added and others stay smaller.
    """
    groups: list[list[dict]] = [[] for _ in sizes]
    room = [(-size, random.random(), number) for number, size in enumerate(sizes)]
    heapify(room)  # the group with most room first, equals in random order
    shuffled = random.sample(articles, len(articles))
    for article in sorted(shuffled, key=len, reverse=True):
        while len(room) < len(article):
            heappush(room, (-len(article), random.random(), len(groups)))
            groups.append([])
        taken = [heappop(room) for _ in article]
        for chunk, (left, _, number) in zip(
            random.sample(article, len(article)), taken, strict=True
        ):
            groups[number].append(chunk)
            if left < -1:
                heappush(room, (left + 1, random.random(), number))
    return [group for group in groups if group]


def sample_group_sizes(total: int, known: list[int], random: Random) -> list[int]:
    """Sizes of groups for so many single chunks: drawn from `known`, or pairs. None is left alone.

    So the last one may be smaller than those known, or larger by one.
    """
    sizes: list[int] = []
    while left := total - sum(sizes):
        size = random.choice(known or [2])
        sizes.append(left if left - size < 2 else size)
    return sizes


def build_groups(chunks: list[dict], params: ChunkConfig) -> list[list[dict]]:
    """The chunks of one split, each once, in the groups that are compared within."""
    articles = [list(found) for _, found in groupby(chunks, key=itemgetter("record"))]
    several = [article for article in articles if len(article) > 1]
    single = [article for article in articles if len(article) == 1]
    skipped = single if params.single_chunk_articles == "skip" else []
    compared = single if params.single_chunk_articles == "others" else []
    random = Random(params.seed)
    known = [len(article) for article in several]
    sizes = sample_group_sizes(len(compared), known, random)
    if params.rejected_from == "others":
        return deal_into_groups(several + compared, known + sizes, random) + skipped
    return several + deal_into_groups(compared, sizes, random) + skipped


def build_pairs(groups: list[list[dict]], params: ChunkConfig) -> tuple[list[dict], Counter]:
    """The PAIRS rows of groups, `rejected` empty where no pair is of use, and what there is."""
    rows: list[dict] = []
    counts: Counter = Counter(groups=0, pairs=0, pairs_outside_band=0, pairs_above_cap=0)
    for number, group in enumerate(groups):
        alike = compute_similarities(group)
        rejected = select_rejected(alike, params)
        kept, inside = sum(map(len, rejected)), int(mask_similarity_band(alike, params).sum())
        counts["groups"] += kept > 0
        counts["pairs"] += kept
        counts["pairs_outside_band"] += len(group) * (len(group) - 1) - inside
        counts["pairs_above_cap"] += inside - kept
        rows += [
            {
                "group": number,
                "record": chunk["record"],
                "position": chunk["position"],
                "rejected": others,
            }
            for chunk, others in zip(group, rejected, strict=True)
        ]
    return rows, counts


def build_similarity_rows(article: list[dict]) -> list[dict]:
    """The SIMILARITIES rows of the chunks of one article."""
    return [
        {"record": chunk["record"], "position": chunk["position"], "similarities": row.tolist()}
        for chunk, row in zip(
            article, compute_similarities(article) if article else [], strict=True
        )
    ]


def build_summary(chunks: list[dict], counts: Counter) -> dict:
    splits = Counter(chunk["split"] for chunk in chunks)
    return {
        "chunks": {split: splits[split] for split in SPLITS},
        **dict(sorted(counts.items())),
    }


def main(params: ChunkConfig, kind: ChunkableKind, source: Path, target: Path) -> None:
    chunks: list[dict] = []
    alike: list[dict] = []
    groups: list[list[dict]] = []
    counts: Counter = Counter()
    with atomic_output_dir(target) as folder:
        for record in progress_bar(
            schemas.read_parquet(source / "records.parquet", schemas.CLEAN_RECORDS[kind]), "chunk"
        ):
            if kind == "articles":
                found = chunk_article(record, params)
                alike += build_similarity_rows(found)
                counts.update(count_omissions(record, params))
                counts["articles_of_one_chunk"] += len(found) == 1
            else:
                found = chunk_captions(record, params)
                counts["texts_too_short"] += len(record["captions"]) - sum(
                    len(chunk["references"]) for chunk in found
                )
            chunks += found
            counts["records_without_chunks"] += not found
        if kind == "articles":
            for split in SPLITS:
                groups += build_groups([one for one in chunks if one["split"] == split], params)
        pairs, of_pairs = build_pairs(groups, params)
        counts.update(of_pairs)
        schemas.write_parquet(folder / "chunks.parquet", chunks, schemas.CHUNKS)
        schemas.write_parquet(folder / "pairs.parquet", pairs, schemas.PREFERENCE_PAIRS)
        schemas.write_parquet(folder / "similarities.parquet", alike, schemas.SIMILARITIES)
        text = json.dumps(build_summary(chunks, counts), indent=2)
        (folder / "summary.json").write_text(text + "\n")


def cli(corpus: str, clean: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    kind = load_config(ChunkableKind, "corpora", corpus, "kind")
    main(load_config(ChunkConfig, "chunk"), kind, clean, output)


if __name__ == "__main__":
    run_stage(cli)
