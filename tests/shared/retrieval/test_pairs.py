import numpy as np

from stages.shared.retrieval.pairs import (
    ImageTexts,
    collect_pairs,
    read_pairs,
    select_held_out,
    write_pairs,
)

BASE = {"split": "train", "language": "en"}


def block(image=None, text=None):
    return {"image": image, "text": text}


def test_captions_posts_tweets_and_memes_make_pairs():
    caption = BASE | {"image": "a", "captions": ["one", "", "two"]}
    post = BASE | {"image": "b", "text": "three"}
    tweet = BASE | {"image": "c", "words": ["four", "five"]}
    pair = ImageTexts("a", ["one", "two"], "train")
    assert collect_pairs([caption], "captions", ["en"]) == [pair]
    for kind in ("posts", "memes"):
        assert collect_pairs([post], kind, ["en"]) == [ImageTexts("b", ["three"], "train")]
    assert collect_pairs([tweet], "tweets", ["en"]) == [ImageTexts("c", ["four five"], "train")]


def test_the_text_of_an_article_image_follows_it():
    blocks = [block(text="lead"), block("z"), block("y"), block(text="first"), block(text="more")]
    article = BASE | {"blocks": [*blocks, block("x"), block(text="last"), block("w")]}
    assert collect_pairs([article], "articles", ["en"]) == [
        ImageTexts("x", ["last"], "train"),
        ImageTexts("y", ["first"], "train"),
    ]


def test_records_without_image_text_or_supported_language_make_no_pair():
    posts = [
        BASE | {"image": None, "text": "one"},
        BASE | {"image": "a", "text": ""},
        BASE | {"image": "b", "text": "zwei", "language": "de"},
    ]
    assert collect_pairs(posts, "posts", ["en"]) == []


def test_an_image_of_several_records_keeps_the_first():
    posts = [BASE | {"image": "a", "text": text, "split": text} for text in ("test", "train")]
    assert collect_pairs(posts, "posts", ["en"]) == [ImageTexts("a", ["test"], "test")]


def test_retrieval_is_measured_on_the_test_split_or_else_on_validation():
    def make(split, count):
        return [ImageTexts(f"{split}{number}", ["x"], split) for number in range(count)]

    validation, test = make("validation", 5), make("test", 4)
    assert select_held_out(make("train", 3) + validation + test, 3) == ("test", test[:3])
    assert select_held_out(validation + test[:1], 9) == ("validation", validation)
    assert select_held_out(make("train", 3), 9) == ("validation", [])


def test_pair_features_survive_a_round_trip(tmp_path):
    random = np.random.default_rng(0)
    pairs = [ImageTexts("a", ["one", "two"], "train"), ImageTexts("b", ["three"], "test")]
    images, texts = (random.normal(size=(rows, 4)).astype(np.float16) for rows in (2, 3))
    rows = ([{"pooled": row} for row in array] for array in (images, texts))
    write_pairs(tmp_path, pairs, *rows)
    features = read_pairs(tmp_path)
    assert features.pairs == pairs
    np.testing.assert_array_equal(features.images, images)
    np.testing.assert_array_equal(features.texts, texts)
    assert features.text_starts.tolist() == [0, 2, 3]
    assert features.rows("test") == [1]
