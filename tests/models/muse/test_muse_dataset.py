import numpy as np
import pytest
import torch

from stages.models.muse import dataset as muse_dataset
from stages.models.muse.dataset import (
    LabelCodec,
    TextImageDataset,
    collect_labels,
    get_caption_words,
    get_words,
)
from stages.models.muse.show_attend_tell import EOS, SOS, Vocabulary
from stages.shared.backbones import bert as bert_encoder
from stages.shared.backbones import resnet
from stages.shared.data import image_store
from stages.shared.features.store import read_features as read_features
from tests.support import muse_corpus
from tests.support.color_caption_corpus import COLORS
from tests.support.tiny_bert import save_bert

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@pytest.fixture
def coding(tmp_path, monkeypatch):
    """coding(task, ...): of the tiny BERT, whose layers all learn."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    save_bert(tmp_path / "bert")
    encoder = bert_encoder.load(str(tmp_path / "bert"), "all", muse_corpus.MAX_SUBWORDS)

    def make(task="entities", drawing=4, pixels=None, caption=6):
        labels = LABELS if task == "entities" else ["negative", "positive"]
        vocabulary = Vocabulary([["the", "fox"]], min_count=1)
        return LabelCodec(task, encoder, labels, vocabulary, caption, drawing, pixels)

    return make


def corpus(folder, kind="tweets", split="test", pictures=True):
    """What `Labelled` is made of, but for the coding."""
    ingest, clean, embed = muse_corpus.write_corpus(folder, kind, pictures)
    files = {row["sha256"]: row["bytes"] for row in image_store.read_images(ingest / "images")}
    return muse_dataset.load_splits(clean, kind)[split], read_features(embed), files


def made(coding: LabelCodec, folder, kind="tweets", split="test") -> TextImageDataset:
    rows, cached, files = corpus(folder, kind, split)
    return TextImageDataset(rows, coding, cached, files)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, @you!  http://t.co/a1", ["Don't", "stop,", "@you!", "http://t.co/a1"]),
        (
            "今天很好，想去Berlin玩。",
            ["今", "天", "很", "好", "，", "想", "去", "Berlin", "玩", "。"],
        ),
        ("ラーメン屋 2つ", ["ラ", "ー", "メ", "ン", "屋", "2", "つ"]),
        ("한국 사람", ["한국", "사람"]),
        ("\u00a0 \n", []),
    ],
)
def test_a_post_is_cut_at_its_blanks_and_between_characters_that_need_none(text, words):
    assert get_words({"text": text}) == words
    assert "".join(words) == "".join(text.split())  # nothing is lost


def test_the_words_of_a_tweet_are_those_that_its_tags_count():
    assert get_words({"words": ["今天", "Don't"], "tags": ["O", "O"]}) == ["今天", "Don't"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "Don't STOP, 今天!"}, ["don", "'", "t", "stop", ",", "今", "天", "!"]),
        ({"words": ["RT", "@You", "今天"]}, ["rt", "@you", "今", "天"]),
        ({"words": ["#go", "http://t.co/aB1", "!"]}, ["#go", "http://t.co/ab1", "!"]),
    ],
)
def test_captions_know_words_in_small_letters_addresses_and_marks(row, words):
    assert get_caption_words(row) == words


def test_labels_are_those_of_the_rows_and_both_marks_of_each_type():
    rows = [{"tags": ["O", "B-PER"]}, {"tags": ["I-LOC", "O"]}]
    assert collect_labels(rows, "entities") == LABELS
    assert collect_labels([{"tags": ["O"]}], "entities") == ["O"]
    rows = [{"label": "positive"}, {"label": "negative"}, {"label": "positive"}]
    assert collect_labels(rows, "sentiment") == ["negative", "positive"]


def test_the_rows_of_a_split_stay_in_order(tmp_path):
    _, clean, _ = muse_corpus.write_corpus(tmp_path, "posts")
    found = muse_dataset.load_splits(clean, "posts")
    wanted = {s: [f"{s}-{n}" for n in range(count)] for s, count in muse_corpus.SPLITS.items()}
    assert {split: [row["id"] for row in rows] for split, rows in found.items()} == wanted


def test_a_batch_holds_what_is_read_of_each_item_and_zeros_behind_it(coding, tmp_path):
    rows, cached, files = corpus(tmp_path, split="train")
    of = coding()
    items = TextImageDataset(rows, of, cached, files)
    chosen = [2, 1, 0]  # of 6, 5 and 4 words, a piece each
    batch = items.batch(chosen)
    assert batch["pieces_mask"].tolist() == [[n < length for n in range(6)] for length in (6, 5, 4)]
    assert torch.equal(batch["pieces_mask"], batch["word_mask"])
    words = rows[1]["words"]
    ids = of.text_encoder.tokenizer.convert_tokens_to_ids(["[CLS]", *words, "[SEP]", "[PAD]"])
    assert batch["ids"][1].tolist() == ids
    assert batch["first"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 0, 0]]
    assert batch["tags"].tolist() == [[0, 3, 4, 0, 0, 0], [0, 1, 2, 0, 0, 0], [0, 3, 4, 0, 0, 0]]
    assert batch["has_text"].tolist() == [True, True, True]
    assert batch["has_picture"].tolist() == [True, False, True]
    # <sos>, the (4) or an unknown word (3), fox, two unknown ones that still fit, <eos>
    assert batch["caption"].tolist() == [[SOS, first, 5, 3, 3, EOS] for first in (4, 3, 4)]


def test_features_and_drawings_are_those_of_the_pictures_and_zero_without(coding, tmp_path):
    rows, cached, files = corpus(tmp_path, split="train")
    batch = TextImageDataset(rows, coding(), cached, files).batch([0, 1])
    known = cached.patches[cached.image_index[rows[0]["image"]]].astype("f4")
    assert np.array_equal(batch["picture"][0], known)
    wanted = resnet.load_pixels(files[rows[0]["image"]], 4) / 127.5 - 1
    assert torch.equal(batch["drawing"][0], wanted)
    red, _, _ = COLORS["red"]
    assert abs(batch["drawing"][0, 0].mean() - (red / 127.5 - 1)) < 0.05
    assert not batch["picture"][1].any() and not batch["drawing"][1].any()


def test_pixels_are_read_instead_of_patches(coding, tmp_path):
    rows, cached, files = corpus(tmp_path, split="train")
    items = TextImageDataset(rows, coding(pixels=8), cached, files)
    batch = items.batch([0, 1])
    wanted = resnet.normalize_pixels(resnet.load_pixels(files[rows[0]["image"]], 8))
    assert torch.equal(batch["picture"][0], wanted)
    assert not batch["picture"][1].any()


def test_what_no_model_asks_for_is_not_kept(coding, tmp_path):
    items = made(coding(drawing=None), tmp_path)
    assert (items.files, items.drawings) == ({}, {})
    assert "drawing" not in items.batch([0])


def test_words_beyond_the_limit_are_counted_and_not_read(coding, tmp_path):
    items = made(coding(), tmp_path)
    words = len(items.rows[muse_corpus.TOO_LONG]["words"])
    assert words > muse_corpus.MAX_SUBWORDS
    assert [items.num_truncated_words(index) for index in range(3)] == [
        words - muse_corpus.MAX_SUBWORDS,
        0,
        0,
    ]
    assert items.num_truncated == 1
    assert items.batch([muse_corpus.TOO_LONG])["tags"].shape == (1, muse_corpus.MAX_SUBWORDS)


def test_a_label_that_train_never_showed_has_a_place_of_another(coding, tmp_path):
    items = made(coding(), tmp_path / "tweets")
    assert muse_dataset.get_gold_labels(items.rows[muse_corpus.UNSEEN_LABEL])[1] == "B-NEW"
    assert not items.batch([muse_corpus.UNSEEN_LABEL])["tags"].any()
    items = made(coding("sentiment"), tmp_path / "posts", "posts")
    assert items.batch([muse_corpus.UNSEEN_LABEL])["label"].tolist() == [0]  # neutral
    assert items.batch([0])["label"].tolist() == [1]


def test_posts_have_no_words_of_their_own_and_one_label(coding, tmp_path):
    items = made(coding("sentiment"), tmp_path, "posts", "train")
    batch = items.batch([0, 1])
    assert batch["label"].tolist() == [1, 0]
    assert not {"first", "word_mask", "tags"} & batch.keys()


def test_a_post_without_a_word_shows_no_text(coding, tmp_path):
    rows, cached, files = corpus(tmp_path, "posts")
    items = TextImageDataset(
        [row | {"text": "\u3000"} for row in rows], coding("sentiment"), cached, files
    )
    assert items.batch([0, 1])["has_text"].tolist() == [False, False]
    assert items.batch([0, 1])["pieces_mask"].tolist() == [[False], [False]]


def test_a_corpus_without_pictures_has_batches_without(coding, tmp_path):
    rows, cached, files = corpus(tmp_path, pictures=False)
    assert files == {}
    batch = TextImageDataset(rows, coding(), cached, files).batch([0, 1])
    assert not batch["has_picture"].any() and batch["picture"].numel() == 0
