"""Batches of MM-ORIENT: padded, masked, zero where a modality is missing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient.dataset import ImageFeatures, MemeDataset, TextFeatures
from tests.support import mm_orient_corpus
from tests.support.mm_orient_corpus import TASKS, UNLABELED, WITHOUT_IMAGE, WITHOUT_TEXT

WIDTH = 3  # D


def row(text: str, image: str | None, **labels: str) -> dict:
    entries = [{"task": task, "label": label} for task, label in labels.items()]
    return {"text": text, "image": image, "labels": entries}


ROWS = [
    row("a bb", "p", sentiment="positive", humour="funny"),
    row("", "q", sentiment="neutral"),
    row("c", None, humour="not_funny"),
    row("", None),
]
IMAGE_VALUES = {"p": 0.25, "q": 0.5}
TOKENS = {"a bb": [[1.0, 2.0], [3.0, 4.0]], "c": [[5.0, 6.0]]}


def make_dataset(rows: list[dict] = ROWS) -> MemeDataset:
    texts = TextFeatures(
        subwords={"a bb": ["a", "bb"], "c": ["c"]},
        truncated_words={"a bb": 2, "c": 0},
        tokens={text: np.array(tokens, np.float16) for text, tokens in TOKENS.items()},
        width=2,
        clip={"a bb": np.array([1, 0, 0], "f2"), "c": np.array([0, 1, 0], "f2")},
        task_input="text",
        task_features={text: np.full(4, len(text), "f4") for text in TOKENS},
        num_task_features=4,
    )
    images = ImageFeatures(
        regions={name: np.full((2, 5), value, "f2") for name, value in IMAGE_VALUES.items()},
        shape=(2, 5),
        clip={name: np.full(3, value, "f2") for name, value in IMAGE_VALUES.items()},
    )
    return MemeDataset(rows, TASKS, texts, images, WIDTH)


def test_texts_are_padded_with_zeros_and_masked():
    batch = make_dataset().batch([0, 1, 2, 3])
    assert batch["tokens"].dtype == torch.float32
    assert batch["tokens"].tolist() == [
        [[1, 2], [3, 4]],
        [[0, 0], [0, 0]],
        [[5, 6], [0, 0]],
        [[0, 0], [0, 0]],
    ]
    assert batch["token_mask"].tolist() == [[True, True], [False] * 2, [True, False], [False] * 2]


def test_texts_are_padded_to_the_longest_of_the_batch_and_at_least_to_one():
    assert make_dataset().batch([2])["tokens"].shape == (1, 1, 2)
    batch = make_dataset().batch([1, 3])
    assert batch["tokens"].shape == (2, 1, 2) and not batch["token_mask"].any()


def test_task_features_are_of_the_text_or_of_the_sentence():
    rows = [ROWS[0] | {"sentence": "A bb!"}, ROWS[1] | {"sentence": None}]
    dataset = make_dataset(rows)
    assert dataset.batch([0, 1])["task_features"].tolist() == [[4] * 4, [0] * 4]
    features = {"A bb!": np.full(4, 9, "f4")}
    dataset.texts = replace(dataset.texts, task_input="sentence", task_features=features)
    assert dataset.batch([0, 1])["task_features"].tolist() == [[9] * 4, [0] * 4]


def test_features_of_missing_modalities_are_zero():
    batch = make_dataset().batch([0, 1, 2, 3])
    assert batch["has_text"].tolist() == [True, False, True, False]
    assert batch["has_picture"].tolist() == [True, True, False, False]
    assert batch["text_clip"].tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert batch["picture_clip"][:, 0].tolist() == [0.25, 0.5, 0, 0]
    assert batch["regions"].shape == (4, 2, 5)
    assert batch["regions"][:, 1, 4].tolist() == [0.25, 0.5, 0, 0]
    assert batch["task_features"][:, 0].tolist() == [4, 0, 1, 0]


def test_labels_are_indices_by_task_and_minus_one_where_missing():
    dataset = make_dataset()
    assert list(dataset.tasks) == ["sentiment", "humour", "sarcasm", "offensive"]
    assert dataset.labels.tolist() == [
        [2, 1, -1, -1],
        [1, -1, -1, -1],
        [-1, 0, -1, -1],
        [-1, -1, -1, -1],
    ]
    assert dataset.batch([2, 0])["labels"].tolist() == dataset.labels[[2, 0]].tolist()


def test_a_pooled_batch_is_a_batch_without_its_large_features():
    dataset = make_dataset()
    batch, pooled = dataset.batch([0, 2]), dataset.pooled_batch([0, 2])
    assert batch.keys() - pooled.keys() == {"tokens", "token_mask", "regions"}
    assert all(torch.equal(batch[name], value) for name, value in pooled.items())


def test_truncated_words_are_counted():
    dataset = make_dataset()
    assert [dataset.num_truncated_words(index) for index in range(4)] == [2, 0, 0, 0]
    assert dataset.num_truncated == 1
    assert [dataset.subwords(index) for index in range(4)] == [["a", "bb"], [], ["c"], []]


def test_an_image_without_features_is_an_error():
    with pytest.raises(KeyError):
        make_dataset([row("", "elsewhere")]).batch([0])


def test_no_rows_make_an_empty_dataset():
    dataset = make_dataset([])
    assert (
        len(dataset) == 0 and dataset.labels.shape == (0, len(TASKS)) and dataset.num_truncated == 0
    )


def test_rows_are_loaded_by_split_in_order_with_their_paraphrases(tmp_path):
    augment, _, _ = mm_orient_corpus.write_meme_corpus(tmp_path)
    rows = meme_dataset.load_splits(augment)
    assert {split: len(split_rows) for split, split_rows in rows.items()} == {
        "train": mm_orient_corpus.SPLITS["train"] + len(mm_orient_corpus.PARAPHRASED),
        "validation": mm_orient_corpus.SPLITS["validation"],
        "test": mm_orient_corpus.SPLITS["test"],
    }
    names = [entry["id"] for entry in rows["train"]]
    assert names[3:7] == ["train-3", "train-4", "train-4-1", "train-5"]
    assert rows["test"][WITHOUT_TEXT]["text"] == ""
    assert rows["test"][WITHOUT_IMAGE]["image"] is None


def test_tasks_come_from_the_corpus_and_labeled_tasks_from_its_rows(tmp_path):
    augment, _, _ = mm_orient_corpus.write_meme_corpus(tmp_path)
    tasks, rows = meme_dataset.load_tasks(augment), meme_dataset.load_splits(augment)["test"]
    assert tasks == TASKS
    assert meme_dataset.filter_labeled_tasks(rows, tasks) == mm_orient_corpus.LEARNED_TASKS
    assert meme_dataset.get_label(rows[0], "humour") == "funny"
    assert meme_dataset.get_label(rows[UNLABELED], "humour") is None
    assert meme_dataset.filter_labeled_tasks([], tasks) == {}
