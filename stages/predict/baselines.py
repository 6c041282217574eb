"""Baselines of a generator: training texts retrieved for each test item, and shuffled images.

An item is what a generator writes one text for: a chunk, or an article of several chunks.

nearest_image    the text of the train item with the most similar images
nearest_topic    the text of the train article with the most similar title
consensus        of all texts of the k train items with the most similar images, the one that has
                 most words in common with the others (arXiv:1505.04467, section 3.2)
shuffled_images  the model's text for the images of another test record

Similar images have similar pooled features; those of articles are compared place by place. Titles
have the encoder's features, or the words in common where it does not support their language.
References of the test items are never read.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import repeat
from random import Random

import numpy as np

from stages.shared.data.tokenization import tokenize_text
from stages.shared.features.store import Features
from stages.shared.generation.chunk_dataset import group_into_articles, has_text

Item = list[dict]  # rows of CHUNKS
Texts = list[str]  # of the rows of an item; "" of a further image of a text
NO_TOPIC = "no test item or no train item has a topic"
NO_IMAGE = "no test item has an image"
ONE_RECORD = "fewer than two test records have images"
ITEMS_PER_BLOCK = 256  # whose similarities are in memory at once


@lru_cache(maxsize=100_000)
def split_words(text: str) -> frozenset[str]:
    """The distinct lowercase words of a text; of Chinese and Japanese, the characters."""
    return frozenset(tokenize_text(text, "characters").split())


def compute_word_f1(words: frozenset[str], others: frozenset[str]) -> float:
    """F1 of the words that two texts have in common, 0 to 1; 0 if both have none."""
    total = len(words) + len(others)
    return 2 * len(words & others) / total if total else 0.0


def select_consensus(candidates: list[Texts]) -> Texts:
    """The candidate with the highest mean word F1 with the others; the first of equals."""
    words = [split_words(" ".join(texts)) for texts in candidates]
    f1 = np.array([[compute_word_f1(left, right) for right in words] for left in words])
    np.fill_diagonal(f1, 0)
    return candidates[int(f1.sum(1).argmax())]


def build_image_vectors(items: list[Item], features: Features, num_places: int) -> np.ndarray:
    """The pooled features of the images of each item by place, zeros without one: (N, places x D).

    Their dot product is the sum of the cosines of images at the same place.
    """
    vectors = np.zeros((len(items), num_places, features.pooled.shape[1]), np.float32)
    for vector, item in zip(vectors, items, strict=True):
        for place, chunk in enumerate(item[:num_places]):
            if chunk["image"] in features.image_index:
                vector[place] = features.pooled[features.image_index[chunk["image"]]]
    return vectors.reshape(len(items), -1)


def find_nearest_images(
    items: list[Item], train: list[Item], features: Features, count: int
) -> list[list[int]]:
    """Indices of the `count` train items with the most similar images, nearest first.

    Empty for an item without an image.
    """
    num_places = max(map(len, items))
    gallery = build_image_vectors(train, features, num_places)
    nearest: list[list[int]] = []
    for start in range(0, len(items), ITEMS_PER_BLOCK):
        queries = build_image_vectors(items[start : start + ITEMS_PER_BLOCK], features, num_places)
        order = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")[:, :count].tolist()
        nearest += [row if query.any() else [] for row, query in zip(order, queries, strict=True)]
    return nearest


def find_nearest_titles(
    titles: list[str], train_titles: list[str], features: Features
) -> dict[str, str]:
    """The most similar train title of each title, the first of equals."""
    if features.text_kind == "encoder":
        left, right = (
            features.text_pooled[[features.text_index[title] for title in part]].astype("f4")
            for part in (titles, train_titles)
        )
        best = (left @ right.T).argmax(1).tolist()
        return {title: train_titles[index] for title, index in zip(titles, best, strict=True)}
    return {
        title: max(
            train_titles,
            key=lambda other: compute_word_f1(split_words(title), split_words(other)),
        )
        for title in titles
    }


def number_chunks(rows: Iterable[dict]) -> dict[tuple[str, int], int]:
    """(record, position) -> the number of a chunk in its record, from 0."""
    counts: dict[str, int] = {}
    numbers = {}
    for row in rows:
        numbers[row["record"], row["position"]] = counts.get(row["record"], 0)
        counts[row["record"]] = numbers[row["record"], row["position"]] + 1
    return numbers


def retrieve_by_topic(
    rows: list[dict], items: list[Item], train_rows: list[dict], train: list[Item], data: Features
) -> list[Texts]:
    """The text at the same place of the train article with the most similar title.

    Empty for an item without a topic. data: the features of the titles.
    """
    numbers, train_numbers = number_chunks(rows), number_chunks(train_rows)
    by_title: dict[str, dict[int, Item]] = {}
    for item in train:
        number = train_numbers[item[0]["record"], item[0]["position"]]
        by_title.setdefault(item[0]["title"], {}).setdefault(number, item)
    titles = dict.fromkeys(item[0]["title"] for item in items if item[0]["title"])
    nearest = find_nearest_titles([*titles], [title for title in by_title if title], data)
    texts = []
    for item in items:
        if not item[0]["title"]:
            texts.append(take_texts([], item))
            continue
        by_number = by_title[nearest[item[0]["title"]]]
        number = numbers[item[0]["record"], item[0]["position"]]
        source = by_number.get(number, next(iter(by_number.values())))
        texts.append(take_texts([row["text"] for row in source], item))
    return texts


def take_texts(texts: Texts, item: Item) -> Texts:
    """One text for each chunk of an item; empty where `texts` has fewer."""
    return [*texts, *[""] * len(item)][: len(item)]


def list_references(item: Item) -> list[Texts]:
    """The reference texts of a train item, each a text by row."""
    references = (row["references"] if has_text(row) else repeat("") for row in item)
    return [[*texts] for texts in zip(*references, strict=False)]


def retrieve_texts(
    rows: list[dict],
    train_rows: list[dict],
    features: Features,
    max_chunks: int,
    num_neighbors: int,
) -> tuple[list[dict], dict[str, str]]:
    """BASELINES of retrieved texts for test chunks, and why a baseline was left out.

    train_rows: chunks to retrieve from; max_chunks: chunks of an item, at most; num_neighbors: k
    """
    items, train = (group_into_articles(part, max_chunks) for part in (rows, train_rows))
    texts: dict[str, list[Texts]] = {}
    omitted = {}
    if any(row["image"] in features.image_index for row in rows):
        nearest = find_nearest_images(items, train, features, num_neighbors)
        texts["nearest_image"] = [
            take_texts([row["text"] for index in indices[:1] for row in train[index]], item)
            for indices, item in zip(nearest, items, strict=True)
        ]
        texts["consensus"] = [
            take_texts(
                select_consensus([text for i in indices for text in list_references(train[i])])
                if indices
                else [],
                item,
            )
            for indices, item in zip(nearest, items, strict=True)
        ]
    else:
        omitted |= {"nearest_image": NO_IMAGE, "consensus": NO_IMAGE}
    if all(any(row["title"] for row in part) for part in (rows, train_rows)):
        texts["nearest_topic"] = retrieve_by_topic(rows, items, train_rows, train, features)
    else:
        omitted["nearest_topic"] = NO_TOPIC
    results = [
        row | {"baseline": baseline, "text": text}
        for baseline, by_item in texts.items()
        for item, item_texts in zip(items, by_item, strict=True)
        for row, text in zip(item, item_texts, strict=True)
        if has_text(row)
    ]
    return results, omitted


def shuffle_images(rows: list[dict], seed: int) -> list[dict]:
    """The rows with the images of another record; empty if fewer than two records have images.

    The records with images form one random cycle, and each takes the images of the next in order,
    again from the first where it has more of them. Rows without an image are unchanged.
    """
    images: dict[str, list[str]] = {}
    for row in rows:
        if row["image"]:
            images.setdefault(row["record"], []).append(row["image"])
    records = sorted(images)
    if len(records) < 2:
        return []
    Random(seed).shuffle(records)
    source = dict(zip(records, records[1:] + records[:1], strict=True))
    shuffled, counts = [], dict.fromkeys(records, 0)
    for row in rows:
        if row["image"]:
            others = images[source[row["record"]]]
            row = row | {"image": others[counts[row["record"]] % len(others)]}
            counts[row["record"]] += 1
        shuffled.append(row)
    return shuffled
