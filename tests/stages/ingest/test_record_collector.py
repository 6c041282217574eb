"""Tests of ingest on tweets and posts; test_ingest.py has those on articles and captions."""

from dataclasses import replace
from unicodedata import normalize

import pytest

from stages.ingest.__main__ import check_rejected, check_splits, summarize_corpus
from stages.ingest.record_collector import RecordCollector
from stages.shared.core import schemas
from stages.shared.data.records import (
    ArticleRecord,
    CaptionRecord,
    Fact,
    ImageBytes,
    ImageFile,
    MemeRecord,
    PostRecord,
    Rejection,
    TweetRecord,
)
from stages.shared.runtime.stage import InputError
from tests.stages.ingest.test_ingest import CONFIG, encode_image

TWEET = TweetRecord(source="t:1", words=["at", "York"], tags=["O", "B-LOC"], split="train")
POST = PostRecord(source="p:1", text=" so good ", label="positive", split="train")
RED, CORRUPT = ImageBytes(encode_image("red")), ImageBytes(b"not an image")


@pytest.fixture
def corpus(tmp_path):
    return RecordCollector(tmp_path, CONFIG, add_image=lambda row: None)


def get_only_record(corpus):
    (record,) = corpus.records.values()
    return record


@pytest.mark.parametrize(("item", "kind"), [(TWEET, "tweets"), (POST, "posts")])
@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (CORRUPT, "unreadable image: no picture of a known format"),
        (ImageFile("none.jpg", None), "missing image: none.jpg"),
        (ImageFile("../a.jpg", None), "path leaves the folder: ../a.jpg"),
        (ImageFile("https://a.org/b.jpg", None), "remote image: addresses are not fetched"),
    ],
)
def test_an_unusable_image_is_rejected_by_itself(tmp_path, corpus, item, kind, image, reason):
    if isinstance(image, ImageFile):
        image = replace(image, folder=tmp_path)
    fact = Fact(0, "place", "beach")
    corpus.add(replace(item, image=image, facts=[fact]))
    assert get_only_record(corpus)["image"] is None and corpus.num_rows == 2
    assert [row["reason"][: len(reason)] for row in corpus.rejected] == [reason]
    assert corpus.facts == []  # the image is missing
    assert summarize_corpus(corpus, kind)["without_picture"]["train"] == 1
    schemas.write_parquet(
        tmp_path / "r.parquet", list(corpus.records.values()), schemas.RECORDS[kind]
    )


@pytest.mark.parametrize("item", [TWEET, POST])
def test_a_valid_image_and_its_facts_are_kept(corpus, item):
    corpus.add(replace(item, image=RED, facts=[Fact(0, "place", "beach")]))
    assert len(get_only_record(corpus)["image"]) == 64 and corpus.rejected == []
    fact = {
        "record": get_only_record(corpus)["id"],
        "position": 0,
        "slot": "place",
        "value": "beach",
    }
    assert corpus.facts == [fact]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (replace(TWEET, words=[], tags=[]), "empty text: the tweet has no word"),
        (replace(TWEET, tags=["O"]), "wrong count: 2 words have 1 tags"),
        (replace(TWEET, words=["at", ""]), "empty text: word 2 has no character"),
        (replace(TWEET, words=["at", "\ud800"]), "undecodable text: "),
        (
            replace(TWEET, tags=["O", "LOC"]),
            "unknown tag: 'LOC' of word 2 is none of O, B-TYPE, I-TYPE",
        ),
        (replace(TWEET, tags=["O", "B-"]), "unknown tag: 'B-'"),
        (replace(POST, text=" \n"), "empty text: the post has none"),
        (replace(POST, text="\ud800"), "undecodable text: "),
        (replace(POST, label="happy"), "unknown label: 'happy' is none of negative, neutral"),
    ],
)
def test_an_unusable_item_is_rejected(corpus, item, reason):
    corpus.add(item)
    assert corpus.records == {} and corpus.rejected[0]["reason"].startswith(reason)


def test_the_id_depends_on_text_labels_and_image(corpus):
    items = [
        TWEET,
        replace(TWEET, tags=["O", "B-ORG"]),
        replace(TWEET, words=["At", "York"]),
        replace(TWEET, image=RED),
        replace(TWEET, image=ImageBytes(encode_image("blue"))),
        POST,
        replace(POST, label="neutral"),
        replace(POST, image=RED),
    ]
    for item in items:
        corpus.add(item)
    assert len(corpus.records) == len(items)
    for item in items:
        corpus.add(replace(item, source="again", split="test"))
    assert len(corpus.records) == len(items)
    assert {row["reason"] for row in corpus.rejected} == {
        "duplicate id: the same tweet as t:1",
        "duplicate id: the same post as p:1",
    }


@pytest.mark.parametrize("item", [TWEET, POST])
def test_without_image_the_source_id_distinguishes_records(corpus, item):
    for key in "ab":
        corpus.add(replace(item, key=key))
    corpus.add(replace(item, key="c", image=RED))
    corpus.add(replace(item, key="d", image=RED))
    assert len(corpus.records) == 3
    assert [row["id"] for row in corpus.rejected] == ["d"]


def test_intentional_rejections_are_not_counted_but_reported(corpus):
    corpus.config = replace(CONFIG, max_rejected_fraction=0.0)
    rejection = Rejection("p:2", "contradiction: the text is positive", "2", intentional=True)
    corpus.add(rejection)
    with pytest.raises(InputError, match="all 1 rows were left out, most often for 'contradicti"):
        check_rejected(corpus, "posts")
    corpus.add(POST)
    check_rejected(corpus, "posts")
    assert summarize_corpus(corpus, "posts")["rejected"] == {"contradiction": 1}
    assert summarize_corpus(corpus, "posts")["labels"]["train"] == {"positive": 1}
    corpus.add(replace(rejection, intentional=False))
    with pytest.raises(InputError, match="1 of 2 rows and images were rejected"):
        check_rejected(corpus, "posts")


@pytest.mark.parametrize(
    ("splits", "empty"),
    [
        ("train test", None),
        ("train validation", None),
        ("train validation test", None),
        ("train", "test"),
        ("test validation", "train"),
        ("validation", "train"),
    ],
)
def test_tweets_and_posts_need_train_and_evaluation_records(splits, empty):
    records = [{"split": split} for split in splits.split()]
    for kind in ("tweets", "posts"):
        if empty is None:
            check_splits(records, "corpus", kind)
        else:
            with pytest.raises(InputError, match=f"records is in {empty}"):
                check_splits(records, "corpus", kind)


def test_the_summary_of_tweets_counts_entities_and_orphan_tags(corpus):
    corpus.add(TWEET)
    corpus.add(replace(TWEET, tags=["I-PER", "I-LOC"], split="test"))
    counts = summarize_corpus(corpus, "tweets")
    assert counts["entities"] == {
        "train": {"LOC": 1},
        "validation": {},
        "test": {"LOC": 1, "PER": 1},
    }
    assert counts["orphan_tags"] == {"train": 0, "validation": 0, "test": 2}


INVISIBLE_TEXTS = ["\u200b", "\u200b\u200d \ufeff", "\u2060\n\u00ad", "\u3164", "\u2800\ufe0f"]


@pytest.mark.parametrize("text", INVISIBLE_TEXTS)
@pytest.mark.parametrize(
    "item",
    [
        POST,
        TWEET,
        ArticleRecord(source="a:1", title="t", blocks=[]),
        CaptionRecord(source="c:1", image=RED, captions=[]),
        MemeRecord(source="m:1", text="", labels={}),
    ],
)
def test_a_text_of_invisible_characters_is_empty(corpus, item, text):
    match item:
        case TweetRecord():
            item = replace(item, words=[text, text])
        case ArticleRecord():
            item = replace(item, blocks=[text])
        case CaptionRecord():
            item = replace(item, captions=[text, text])
        case _:
            item = replace(item, text=text)
    corpus.add(item)
    (rejected,) = corpus.rejected
    assert not corpus.records and rejected["reason"].startswith("empty text: ")


def test_joiners_marks_and_emoji_are_visible_and_a_word_of_joiners_keeps_its_tag(corpus):
    for text in ["\u200bनमस्ते\u200d", "\u0301a", "👍🏽", "\U000f0000"]:
        corpus.add(replace(POST, text=text))
    corpus.add(replace(TWEET, words=["\u200d", "York"]))
    assert corpus.rejected == [] and len(corpus.records) == 5


def test_the_same_content_in_nfd_and_nfc_is_one_record(corpus):
    for form in ("NFC", "NFD"):
        corpus.add(replace(POST, text=normalize(form, "Café"), key=normalize(form, "é1")))
    corpus.add(replace(POST, text="other", key=normalize("NFD", "é1")))
    assert len(corpus.records) == 1
    assert [row["reason"] for row in corpus.rejected] == [
        "duplicate id: the same post as p:1",
        "duplicate id: 'é1' is already used at p:1",
    ]


def test_the_language_is_normalized_or_its_record_rejected(corpus):
    for number, language in enumerate(["English", "eng", "EN ", "und", "qqq"]):
        corpus.add(replace(POST, text=f"text {number}", language=language))
    languages = [record["language"] for record in corpus.records.values()]
    assert languages == ["en", "en", "en", None]
    (rejected,) = corpus.rejected
    assert rejected["reason"].startswith("wrong field: language: 'qqq' is no language")
