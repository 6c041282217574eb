"""What MM-ORIENT reads of a corpus: padded, masked, zero where something is missing."""

import numpy as np
import pytest
import torch

from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient.dataset import ImageFeatures, MemeDataset, TextFeatures
from tests.support import mm_orient_corpus
from tests.support.mm_orient_corpus import TASKS, UNLABELED, WITHOUT_IMAGE, WITHOUT_TEXT

WIDTH = 3  # D


def row(text: str, image: str | None, **labels: str) -> dict:
    judged = [{"task": task, "label": label} for task, label in labels.items()]
    return {"text": text, "image": image, "labels": judged}


ROWS = [
    row("a bb", "p", sentiment="positive", humour="funny"),
    row("", "q", sentiment="neutral"),
    row("c", None, humour="not_funny"),
    row("", None),
]
SHOWN = {"p": 0.25, "q": 0.5}
READ = {"a bb": [[1.0, 2.0], [3.0, 4.0]], "c": [[5.0, 6.0]]}


def some(rows: list[dict] = ROWS) -> MemeDataset:
    texts = TextFeatures(
        subwords={"a bb": ["a", "bb"], "c": ["c"]},
        truncated_words={"a bb": 2, "c": 0},
        tokens={text: np.array(tokens, np.float16) for text, tokens in READ.items()},
        width=2,
        clip={"a bb": np.array([1, 0, 0], "f2"), "c": np.array([0, 1, 0], "f2")},
        task_features={text: np.full(4, len(text), "f4") for text in READ},
        num_task_features=4,
    )
    pictures = ImageFeatures(
        regions={name: np.full((2, 5), value, "f2") for name, value in SHOWN.items()},
        shape=(2, 5),
        clip={name: np.full(3, value, "f2") for name, value in SHOWN.items()},
    )
    return MemeDataset(rows, TASKS, texts, pictures, WIDTH)


def test_texts_are_padded_with_zeros_and_the_mask_tells():
    batch = some().batch([0, 1, 2, 3])
    assert batch["tokens"].dtype == torch.float32
    assert batch["tokens"].tolist() == [
        [[1, 2], [3, 4]],
        [[0, 0], [0, 0]],
        [[5, 6], [0, 0]],
        [[0, 0], [0, 0]],
    ]
    assert batch["token_mask"].tolist() == [[True, True], [False] * 2, [True, False], [False] * 2]


def test_a_text_is_as_long_as_the_longest_of_its_batch_and_never_of_no_length():
    assert some().batch([2])["tokens"].shape == (1, 1, 2)
    batch = some().batch([1, 3])
    assert batch["tokens"].shape == (2, 1, 2) and not batch["token_mask"].any()


def test_what_is_missing_is_zero():
    batch = some().batch([0, 1, 2, 3])
    assert batch["has_text"].tolist() == [True, False, True, False]
    assert batch["has_picture"].tolist() == [True, True, False, False]
    assert batch["text_clip"].tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert batch["picture_clip"][:, 0].tolist() == [0.25, 0.5, 0, 0]
    assert batch["regions"].shape == (4, 2, 5)
    assert batch["regions"][:, 1, 4].tolist() == [0.25, 0.5, 0, 0]
    assert batch["task_features"][:, 0].tolist() == [4, 0, 1, 0]


def test_labels_are_places_in_their_task_and_minus_one_where_nobody_judged():
    items = some()
    assert list(items.tasks) == ["sentiment", "humour", "sarcasm", "offensive"]
    assert items.labels.tolist() == [
        [2, 1, -1, -1],
        [1, -1, -1, -1],
        [-1, 0, -1, -1],
        [-1, -1, -1, -1],
    ]
    assert items.batch([2, 0])["labels"].tolist() == items.labels[[2, 0]].tolist()


def test_a_frame_is_a_batch_without_what_is_large():
    items = some()
    batch, frame = items.batch([0, 2]), items.pooled_batch([0, 2])
    assert batch.keys() - frame.keys() == {"tokens", "token_mask", "regions"}
    assert all(torch.equal(batch[name], value) for name, value in frame.items())


def test_words_that_are_not_read_are_counted():
    items = some()
    assert [items.num_truncated_words(index) for index in range(4)] == [2, 0, 0, 0]
    assert items.num_truncated == 1
    assert [items.subwords(index) for index in range(4)] == [["a", "bb"], [], ["c"], []]


def test_a_picture_that_nothing_is_known_of_is_no_missing_one():
    with pytest.raises(KeyError):
        some([row("", "elsewhere")]).batch([0])


def test_no_rows_are_no_items():
    items = some([])
    assert len(items) == 0 and items.labels.shape == (0, len(TASKS)) and items.num_truncated == 0


def test_rows_are_read_by_split_in_order_with_their_paraphrases(tmp_path):
    augment, _, _ = mm_orient_corpus.write_meme_corpus(tmp_path)
    rows = meme_dataset.load_splits(augment)
    assert {split: len(found) for split, found in rows.items()} == {
        "train": mm_orient_corpus.SPLITS["train"] + len(mm_orient_corpus.PARAPHRASED),
        "validation": mm_orient_corpus.SPLITS["validation"],
        "test": mm_orient_corpus.SPLITS["test"],
    }
    names = [one["id"] for one in rows["train"]]
    assert names[3:7] == ["train-3", "train-4", "train-4-1", "train-5"]
    assert rows["test"][WITHOUT_TEXT]["text"] == ""
    assert rows["test"][WITHOUT_IMAGE]["image"] is None


def test_tasks_are_those_of_the_corpus_and_judged_ones_those_of_the_rows(tmp_path):
    augment, _, _ = mm_orient_corpus.write_meme_corpus(tmp_path)
    tasks, rows = meme_dataset.load_tasks(augment), meme_dataset.load_splits(augment)["test"]
    assert tasks == TASKS
    assert meme_dataset.filter_labeled_tasks(rows, tasks) == mm_orient_corpus.LEARNED_TASKS
    assert meme_dataset.get_label(rows[0], "humour") == "funny"
    assert meme_dataset.get_label(rows[UNLABELED], "humour") is None
    assert meme_dataset.filter_labeled_tasks([], tasks) == {}
