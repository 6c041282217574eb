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
    shorten_url,
)
from stages.models.muse.show_attend_tell import EOS, SOS, Vocabulary
from stages.shared.backbones import bert as bert_encoder
from stages.shared.backbones import resnet
from stages.shared.data import image_store
from stages.shared.features.store import read_features
from tests.support import muse_corpus
from tests.support.color_caption_corpus import COLORS
from tests.support.tiny_bert import save_bert

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@pytest.fixture
def make_codec(tmp_path, monkeypatch):
    """make_codec(task, ...): a codec with the tiny BERT, all of whose layers are tuned."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    save_bert(tmp_path / "bert")
    encoder = bert_encoder.load(str(tmp_path / "bert"), "all", muse_corpus.MAX_SUBWORDS)

    def make(task="entities", drawing=4, pixels=None, caption=6, shorten_urls=False):
        labels = LABELS if task == "entities" else ["negative", "positive"]
        vocabulary = Vocabulary([["the", "fox"]], min_count=1)
        return LabelCodec(
            task, encoder, shorten_urls, labels, vocabulary, caption, drawing, pixels, None
        )

    return make


def load_corpus(folder, kind="tweets", split="test", with_images=True):
    """Rows, features and image files: the arguments of TextImageDataset without the codec."""
    ingest, clean, embed = muse_corpus.write_corpus(folder, kind, with_images)
    files = {row["sha256"]: row["bytes"] for row in image_store.read_images(ingest / "images")}
    return muse_dataset.load_splits(clean, kind)[split], read_features(embed), files


def build_dataset(codec: LabelCodec, folder, kind="tweets", split="test") -> TextImageDataset:
    rows, features, files = load_corpus(folder, kind, split)
    return TextImageDataset(rows, codec, features, files)


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
def test_a_post_is_split_at_whitespace_and_between_characters_of_unspaced_scripts(text, words):
    assert get_words({"text": text}) == words
    assert "".join(words) == "".join(text.split())  # no character is lost


def test_the_words_of_a_tweet_are_its_tagged_words():
    assert get_words({"words": ["今天", "Don't"], "tags": ["O", "O"]}) == ["今天", "Don't"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("http://t.co/aB1", "http"),
        ("HTTPS://t.co/aB1", "https"),
        ("www.example.org", "http"),
        ("https", "https"),
        ("//t", "//t"),
        ("(http://t.co/aB1", "(http://t.co/aB1"),
        ("#http://", "#http://"),
    ],
)
def test_a_url_is_shortened_to_its_scheme_and_other_words_are_kept(word, expected):
    assert shorten_url(word) == expected


def test_only_the_text_encoder_reads_shortened_urls(make_codec, tmp_path):
    rows, features, files = load_corpus(tmp_path)
    rows = [row | {"words": ["the", "http://t.co/aB1"], "tags": ["O", "O"]} for row in rows[:1]]
    long = TextImageDataset(rows, make_codec(), features, files)
    short = TextImageDataset(rows, make_codec(shorten_urls=True), features, files)
    assert short.words == [["the", "http"]] and long.words == [rows[0]["words"]]
    assert (short.num_truncated, long.num_truncated) == (0, 1)  # the URL does not fit
    assert short.captions == long.captions


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "Don't STOP, 今天!"}, ["don", "'", "t", "stop", ",", "今", "天", "!"]),
        ({"words": ["RT", "@You", "今天"]}, ["rt", "@you", "今", "天"]),
        ({"words": ["#go", "http://t.co/aB1", "!"]}, ["#go", "http://t.co/ab1", "!"]),
    ],
)
def test_caption_words_are_lower_case_words_urls_and_punctuation(row, words):
    assert get_caption_words(row) == words


def test_labels_are_those_of_the_rows_with_both_prefixes_of_each_type():
    rows = [{"tags": ["O", "B-PER"]}, {"tags": ["I-LOC", "O"]}]
    assert collect_labels(rows, "entities") == LABELS
    assert collect_labels([{"tags": ["O"]}], "entities") == ["O"]
    rows = [{"label": "positive"}, {"label": "negative"}, {"label": "positive"}]
    assert collect_labels(rows, "sentiment") == ["negative", "positive"]


def test_the_rows_of_a_split_keep_their_order(tmp_path):
    _, clean, _ = muse_corpus.write_corpus(tmp_path, "posts")
    splits = muse_dataset.load_splits(clean, "posts")
    expected = {s: [f"{s}-{n}" for n in range(count)] for s, count in muse_corpus.SPLITS.items()}
    assert {split: [row["id"] for row in rows] for split, rows in splits.items()} == expected


def test_a_batch_has_the_inputs_of_each_item_padded_with_zeros(make_codec, tmp_path):
    rows, features, files = load_corpus(tmp_path, split="train")
    codec = make_codec()
    items = TextImageDataset(rows, codec, features, files)
    indices = [2, 1, 0]  # 6, 5 and 4 words of one subword each
    batch = items.batch(indices)
    assert batch["pieces_mask"].tolist() == [[n < length for n in range(6)] for length in (6, 5, 4)]
    assert torch.equal(batch["pieces_mask"], batch["word_mask"])
    words = rows[1]["words"]
    ids = codec.text_encoder.tokenizer.convert_tokens_to_ids(["[CLS]", *words, "[SEP]", "[PAD]"])
    assert batch["ids"][1].tolist() == ids
    assert batch["first"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 0, 0]]
    assert batch["tags"].tolist() == [[0, 3, 4, 0, 0, 0], [0, 1, 2, 0, 0, 0], [0, 3, 4, 0, 0, 0]]
    assert batch["has_text"].tolist() == [True, True, True]
    assert batch["has_picture"].tolist() == [True, False, True]
    # <sos>, the (4) or an unknown word (3), fox, two unknown words that still fit, <eos>
    assert batch["caption"].tolist() == [[SOS, first, 5, 3, 3, EOS] for first in (4, 3, 4)]


def test_patches_and_drawings_are_those_of_the_images_and_zero_without_image(make_codec, tmp_path):
    rows, features, files = load_corpus(tmp_path, split="train")
    batch = TextImageDataset(rows, make_codec(), features, files).batch([0, 1])
    patches = features.patches[features.image_index[rows[0]["image"]]].astype("f4")
    assert np.array_equal(batch["picture"][0], patches)
    expected = resnet.load_pixels(files[rows[0]["image"]], 4) / 127.5 - 1
    assert torch.equal(batch["drawing"][0], expected)
    red, _, _ = COLORS["red"]
    assert abs(batch["drawing"][0, 0].mean() - (red / 127.5 - 1)) < 0.05
    assert not batch["picture"][1].any() and not batch["drawing"][1].any()


def test_pixels_replace_patches_if_configured(make_codec, tmp_path):
    rows, features, files = load_corpus(tmp_path, split="train")
    items = TextImageDataset(rows, make_codec(pixels=8), features, files)
    batch = items.batch([0, 1])
    expected = resnet.normalize_pixels(resnet.load_pixels(files[rows[0]["image"]], 8))
    assert torch.equal(batch["picture"][0], expected)
    assert not batch["picture"][1].any()


def test_files_that_no_model_reads_are_not_kept(make_codec, tmp_path):
    items = build_dataset(make_codec(drawing=None), tmp_path)
    assert (items.files, items.drawings) == ({}, {})
    assert "drawing" not in items.batch([0])


def test_words_beyond_the_limit_are_counted_and_not_encoded(make_codec, tmp_path):
    items = build_dataset(make_codec(), tmp_path)
    words = len(items.rows[muse_corpus.TOO_LONG]["words"])
    assert words > muse_corpus.MAX_SUBWORDS
    assert [items.num_truncated_words(index) for index in range(3)] == [
        words - muse_corpus.MAX_SUBWORDS,
        0,
        0,
    ]
    assert items.num_truncated == 1
    assert items.batch([muse_corpus.TOO_LONG])["tags"].shape == (1, muse_corpus.MAX_SUBWORDS)


def test_a_label_that_is_not_in_the_train_split_has_index_0(make_codec, tmp_path):
    items = build_dataset(make_codec(), tmp_path / "tweets")
    assert muse_dataset.get_gold_labels(items.rows[muse_corpus.UNSEEN_LABEL])[1] == "B-NEW"
    assert not items.batch([muse_corpus.UNSEEN_LABEL])["tags"].any()
    items = build_dataset(make_codec("sentiment"), tmp_path / "posts", "posts")
    assert items.batch([muse_corpus.UNSEEN_LABEL])["label"].tolist() == [0]  # neutral
    assert items.batch([0])["label"].tolist() == [1]


def test_posts_have_one_label_and_no_word_targets(make_codec, tmp_path):
    items = build_dataset(make_codec("sentiment"), tmp_path, "posts", "train")
    batch = items.batch([0, 1])
    assert batch["label"].tolist() == [1, 0]
    assert not {"first", "word_mask", "tags"} & batch.keys()


def test_a_post_without_a_word_has_no_text(make_codec, tmp_path):
    rows, features, files = load_corpus(tmp_path, "posts")
    items = TextImageDataset(
        [row | {"text": "\u3000"} for row in rows], make_codec("sentiment"), features, files
    )
    assert items.batch([0, 1])["has_text"].tolist() == [False, False]
    assert items.batch([0, 1])["pieces_mask"].tolist() == [[False], [False]]


def test_a_corpus_without_images_has_batches_without_images(make_codec, tmp_path):
    rows, features, files = load_corpus(tmp_path, with_images=False)
    assert files == {}
    batch = TextImageDataset(rows, make_codec(), features, files).batch([0, 1])
    assert not batch["has_picture"].any() and batch["picture"].numel() == 0
