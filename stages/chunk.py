"""Cut records into chunks (a text with its images) and build the preference pairs of mscDPO.

python -m stages.chunk --corpus CORPUS --clean CLEAN --output OUTPUT

reads   CLEAN/records.parquet        CLEAN_RECORDS[kind] of stages/shared/core/schemas.py
writes  OUTPUT/chunks.parquet        CHUNKS; `position` is that of the row's image in its record
        OUTPUT/pairs.parquet         PREFERENCE_PAIRS: one row per chunk of an article
        OUTPUT/similarities.parquet  SIMILARITIES between the chunks of an article
        OUTPUT/summary.json          chunks per split; counts of what was left out, by reason

Articles (FlexMUSE, arXiv:2508.16230, does not say how to cut them): the text between two images
belongs to the first one. In a row of consecutive images, therefore, the last one has the text, and
an image without text makes no chunk. Text before the first image is prepended to the text of that
image, or dropped (chunk.leading_text). An article without images is one chunk without image, which
the stage illustrate may fill in. Captions: one chunk per image, with its captions as references.

The articles of a corpus in `chunk.one_text_corpora` have one text about all of their images, as in
ArtMUSE (arXiv:2511.21698). Such an article is one chunk: the first row holds its whole text, and
each further image follows in a row of its own without text and references. No image is left out.

A position counts all images of the record from 0, those without text included, so that it denotes
the same image as in the facts of the stage ingest. An image that makes no chunk leaves a gap.

Pairs: within a group of chunks, the text of another chunk is rejected in favour of the chunk's own
text if the two are similar enough to be informative, but not interchangeable. A group is an
article. Chunks that are the only one of their article are compared with each other, or not at all
(chunk.single_chunk_articles). With `chunk.rejected_from: others`, no group holds two chunks of one
article: plain DPO with random rejected texts, the baseline of mscDPO. A group never crosses splits.
A chunk without image also belongs to its group: it is used once a later stage has illustrated it.
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
from stages.shared.core.config import Field, config_class, load_config
from stages.shared.data.records import SPLITS
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import atomic_output_dir, run_stage

ChunkableKind = Literal["articles", "captions"]
PARAGRAPH_SEPARATOR = "\n\n"  # between texts that were separate blocks


@config_class
class ChunkConfig:
    """The section `chunk`."""

    corpora: list[str] = Field(description="corpora that are cut into chunks")
    one_text_corpora: list[str] = Field(
        description="of these, articles with one text about all their images"
    )
    leading_text: Literal["first", "drop"] = Field(
        description="text before the first image: prepend to its chunk, or drop"
    )
    min_characters: int = Field(description="a shorter text makes no chunk")
    rejected_from: Literal["article", "others"] = Field(
        description="rejected texts: same article (mscDPO), or others (plain DPO)"
    )
    single_chunk_articles: Literal["skip", "others"] = Field(
        description="an article's only chunk: skip, or compare with others"
    )
    seed: int = Field(description="seed of the random groups")
    min_similarity: float = Field(description="lower bound of a pair's similarity, 0 to 1")
    max_similarity: float = Field(description="upper bound of a pair's similarity, 0 to 1")
    max_rejected_per_chosen: int = Field(description="rejected chunks per chosen one, at most")


def split_at_images(blocks: list[dict], leading_text: str) -> list[tuple[str | None, str]]:
    """Blocks in reading order -> an (image, text) pair per image; a text may be empty.

    Blocks without any image give one pair whose image is None.
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


def chunk_article(record: dict, config: ChunkConfig) -> list[dict]:
    """The CHUNKS rows of an article."""
    pairs = split_at_images(record["blocks"], config.leading_text)
    return [
        build_chunk(record, position, image, record["title"], [text])
        for position, (image, text) in enumerate(pairs)
        if is_long_enough(text, config)
    ]


def chunk_one_text_article(record: dict, config: ChunkConfig) -> list[dict]:
    """The CHUNKS rows of an article with one text: the text with the first image, then the others.

    No row if the text is too short; one row without image if the article has no image.
    """
    text = PARAGRAPH_SEPARATOR.join(block["text"] for block in record["blocks"] if block["text"])
    if not is_long_enough(text, config):
        return []
    images = [block["image"] for block in record["blocks"] if block["image"]] or [None]
    return [
        build_chunk(record, position, image, record["title"], [] if position else [text])
        for position, image in enumerate(images)
    ]


def chunk_captions(record: dict, config: ChunkConfig) -> list[dict]:
    """The CHUNKS row of a captioned image, or no row if every caption is too short."""
    captions = [text for text in record["captions"] if is_long_enough(text, config)]
    return [build_chunk(record, 0, record["image"], "", captions)] if captions else []


def is_long_enough(text: str, config: ChunkConfig) -> bool:
    """Whether a text may be the text of a chunk; an empty one never may."""
    return len(text) >= max(config.min_characters, 1)


def count_omissions(record: dict, config: ChunkConfig) -> Counter:
    """Counts of the parts of an article that make no chunk, and of its chunks without image."""
    pairs = split_at_images(record["blocks"], config.leading_text)
    short = [text for _, text in pairs if text and not is_long_enough(text, config)]
    starts_with_text = record["blocks"][0]["image"] is None and pairs[0][0] is not None
    return Counter(
        pictures_without_text=sum(not text for _, text in pairs),
        texts_too_short=len(short),
        leading_texts_dropped=int(starts_with_text and config.leading_text == "drop"),
        chunks_without_picture=sum(
            image is None and is_long_enough(text, config) for image, text in pairs
        ),
    )


def count_one_text_omissions(record: dict, rows: list[dict]) -> Counter:
    """The same counts of an article with one text, and its images after the first."""
    return Counter(
        texts_too_short=int(not rows),
        chunks_without_picture=sum(row["image"] is None for row in rows),
        further_pictures=max(0, len(rows) - 1),
    )


def build_chunk(
    record: dict, position: int, image: str | None, title: str, references: list[str]
) -> dict:
    """A CHUNKS row, whose text is the first reference; a further image of a chunk has none."""
    return {
        "record": record["id"],
        "position": position,
        "split": record["split"],
        "language": record["language"],
        "title": title,
        "image": image,
        "text": references[0] if references else "",
        "references": references,
    }


def compute_similarities(chunks: list[dict]) -> np.ndarray:
    """(N, N) similarity of the N texts, 0 to 1: 2 LCS / (|a| + |b|).

    It compares characters, so it works for any language.
    """
    texts = [chunk["text"] for chunk in chunks]
    return cdist(texts, texts, scorer=Indel.normalized_similarity, dtype=np.float32)


def mask_similarity_band(similarities: np.ndarray, config: ChunkConfig) -> np.ndarray:
    """(N, N) similarities -> (N, N) bool, true within the band; the diagonal is false."""
    inside = (similarities >= config.min_similarity) & (similarities <= config.max_similarity)
    return inside & ~np.eye(len(similarities), dtype=bool)


def select_rejected(similarities: np.ndarray, config: ChunkConfig) -> list[list[int]]:
    """For each row of (N, N) similarities: sorted columns within the band.

    Of more than `max_rejected_per_chosen` columns, the most similar ones are taken; of equally
    similar ones, the first.
    """
    selected = []
    for values, inside in zip(
        similarities, mask_similarity_band(similarities, config), strict=True
    ):
        by_similarity = np.argsort(-values, kind="stable")
        columns = [int(column) for column in by_similarity if inside[column]]
        selected.append(sorted(columns[: config.max_rejected_per_chosen]))
    return selected


def deal_into_groups(
    articles: list[list[dict]], sizes: list[int], random: Random
) -> list[list[dict]]:
    """Distribute all chunks into groups of the given sizes, one chunk of an article per group.

    Each article goes to the groups with the most free places, which finds a solution if there is
    one (Gale and Ryser). If there is none, groups are added and others stay smaller.
    """
    groups: list[list[dict]] = [[] for _ in sizes]
    free = [(-size, random.random(), index) for index, size in enumerate(sizes)]
    heapify(free)  # the group with the most free places first, ties in random order
    shuffled = random.sample(articles, len(articles))
    for article in sorted(shuffled, key=len, reverse=True):
        while len(free) < len(article):
            heappush(free, (-len(article), random.random(), len(groups)))
            groups.append([])
        chosen = [heappop(free) for _ in article]
        for chunk, (negative_free, _, index) in zip(
            random.sample(article, len(article)), chosen, strict=True
        ):
            groups[index].append(chunk)
            if negative_free < -1:
                heappush(free, (negative_free + 1, random.random(), index))
    return [group for group in groups if group]


def sample_group_sizes(total: int, known: list[int], random: Random) -> list[int]:
    """Random group sizes that add up to `total` single chunks, sampled from `known` (or pairs).

    No chunk is left alone: the last group may be smaller than the known ones, or larger by one.
    """
    sizes: list[int] = []
    while remaining := total - sum(sizes):
        size = random.choice(known or [2])
        sizes.append(remaining if remaining - size < 2 else size)
    return sizes


def build_groups(chunks: list[dict], config: ChunkConfig) -> list[list[dict]]:
    """The chunks of one split, each in exactly one group; pairs are built within a group."""
    articles = [list(rows) for _, rows in groupby(chunks, key=itemgetter("record"))]
    multiple = [article for article in articles if len(article) > 1]
    single = [article for article in articles if len(article) == 1]
    skipped = single if config.single_chunk_articles == "skip" else []
    compared = single if config.single_chunk_articles == "others" else []
    random = Random(config.seed)
    known = [len(article) for article in multiple]
    sizes = sample_group_sizes(len(compared), known, random)
    if config.rejected_from == "others":
        return deal_into_groups(multiple + compared, known + sizes, random) + skipped
    return multiple + deal_into_groups(compared, sizes, random) + skipped


def build_pairs(groups: list[list[dict]], config: ChunkConfig) -> tuple[list[dict], Counter]:
    """The PREFERENCE_PAIRS rows of groups, `rejected` empty if no pair is usable; their counts."""
    rows: list[dict] = []
    counts: Counter = Counter(groups=0, pairs=0, pairs_outside_band=0, pairs_above_cap=0)
    for index, group in enumerate(groups):
        similarities = compute_similarities(group)
        rejected = select_rejected(similarities, config)
        num_pairs = sum(map(len, rejected))
        num_inside = int(mask_similarity_band(similarities, config).sum())
        counts["groups"] += num_pairs > 0
        counts["pairs"] += num_pairs
        counts["pairs_outside_band"] += len(group) * (len(group) - 1) - num_inside
        counts["pairs_above_cap"] += num_inside - num_pairs
        rows += [
            {
                "group": index,
                "record": chunk["record"],
                "position": chunk["position"],
                "rejected": columns,
            }
            for chunk, columns in zip(group, rejected, strict=True)
        ]
    return rows, counts


def build_similarity_rows(article: list[dict]) -> list[dict]:
    """The SIMILARITIES rows of the chunks of one article."""
    if not article:
        return []
    return [
        {"record": chunk["record"], "position": chunk["position"], "similarities": row.tolist()}
        for chunk, row in zip(article, compute_similarities(article), strict=True)
    ]


def build_summary(chunks: list[dict], counts: Counter) -> dict:
    """summary.json: chunks per split, and the counts sorted by name."""
    splits = Counter(chunk["split"] for chunk in chunks)
    return {
        "chunks": {split: splits[split] for split in SPLITS},
        **dict(sorted(counts.items())),
    }


def main(
    config: ChunkConfig, kind: ChunkableKind, clean: Path, output: Path, *, one_text: bool = False
) -> None:
    """Run the stage. Raises InputError if `clean` holds no records of this kind.

    one_text: whether an article has one text about all its images
    """
    records = schemas.read_parquet(clean / "records.parquet", schemas.CLEAN_RECORDS[kind])
    rows: list[dict] = []
    similarities: list[dict] = []
    groups: list[list[dict]] = []
    counts: Counter = Counter()
    with atomic_output_dir(output) as folder:
        for record in progress_bar(records, "chunk"):
            if kind == "captions":
                record_rows = chunk_captions(record, config)
                num_kept = sum(len(chunk["references"]) for chunk in record_rows)
                counts["texts_too_short"] += len(record["captions"]) - num_kept
            elif one_text:
                record_rows = chunk_one_text_article(record, config)
                counts.update(count_one_text_omissions(record, record_rows))
            else:
                record_rows = chunk_article(record, config)
                counts.update(count_omissions(record, config))
            if kind == "articles":
                article = [row for row in record_rows if row["references"]]
                similarities += build_similarity_rows(article)
                counts["articles_of_one_chunk"] += len(article) == 1
            rows += record_rows
            counts["records_without_chunks"] += not record_rows
        chunks = [row for row in rows if row["references"]]
        if kind == "articles":
            for split in SPLITS:
                in_split = [chunk for chunk in chunks if chunk["split"] == split]
                groups += build_groups(in_split, config)
        pairs, pair_counts = build_pairs(groups, config)
        counts.update(pair_counts)
        schemas.write_parquet(folder / "chunks.parquet", rows, schemas.CHUNKS)
        schemas.write_parquet(folder / "pairs.parquet", pairs, schemas.PREFERENCE_PAIRS)
        schemas.write_parquet(folder / "similarities.parquet", similarities, schemas.SIMILARITIES)
        summary = json.dumps(build_summary(chunks, counts), indent=2)
        (folder / "summary.json").write_text(summary + "\n")


def cli(corpus: str, clean: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    kind = load_config(ChunkableKind, "corpora", corpus, "kind")
    config = load_config(ChunkConfig, "chunk")
    main(config, kind, clean, output, one_text=corpus in config.one_text_corpora)


if __name__ == "__main__":
    run_stage(cli)
