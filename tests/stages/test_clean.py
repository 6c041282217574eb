# ruff: noqa: RUF001  these tests need unusual characters
import json
from dataclasses import replace
from itertools import product
from random import Random

import pytest
import regex

from stages.clean import main
from stages.shared.core import schemas
from stages.shared.data.text_cleaning import (
    EMOJI,
    CleanConfig,
    OverlayCleanConfig,
    clean_overlay_text,
    clean_text,
)

OVERLAY = {"remove_mentions": True, "remove_domains": ["com", "co.uk"], "case": "lower"}
OVERLAY |= {"punctuation": "drop", "digits": "drop", "line_breaks": "join"}
OVERLAY_CONFIG = OverlayCleanConfig(**OVERLAY)
KEEP = CleanConfig(unicode_form="NFKC", remove_urls=True, emoji="keep", memes=OVERLAY_CONFIG)
DROP = CleanConfig(unicode_form="NFKC", remove_urls=True, emoji="drop", memes=OVERLAY_CONFIG)
PLAIN = CleanConfig(unicode_form="NFC", remove_urls=False, emoji="keep", memes=OVERLAY_CONFIG)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  one \t two  ", "one two"),
        ("one \r\n two\rthree\u2028four\x85five", "one\ntwo\nthree\nfour\nfive"),
        ("one\n \n\n\t\n\ntwo", "one\n\ntwo"),
        ("a\x00b\x1bc\u200bd\ufeffe\u202ef\u00adg", "abcdefg"),
        ("e\u0301", "\u00e9"),
        ("ﬁne\u00a0Ｗide１２", "fine Wide12"),
        ("wait…，now", "wait...,now"),
        ("1½ cups, 5 m², x₂, ①②", "1½ cups, 5 m², x₂, ①②"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("", ""),
        ("\u200b \n", ""),
    ],
)
def test_unicode_white_space_and_control_characters_are_normalized(text, expected):
    assert clean_text(text, "en", KEEP) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://a.org/b?c=d#e. Then", "see . Then"),
        ("see www.a.org/b, then", "see , then"),
        ("(https://a.org) x (www.b.org/c_(d))", "x"),
        ("<https://a.org> x", "x"),
        ("[the words](https://a.org/b_(c) 'title') x", "the words x"),
        ("![alt](http://a.org/b.png)", "alt"),
        ("[the words](other.md)", "[the words](other.md)"),
        ("图（https://a.org/b）看https://a.org/c，好", "图看，好"),
        ("ｈttps://a.org x", "x"),
        ("http is a protocol, a.b is none; me@a.org", "http is a protocol, a.b is none; me@a.org"),
    ],
)
def test_urls_are_removed_and_the_text_of_links_is_kept(text, expected):
    assert clean_text(text, "en" if text.isascii() else "zh", KEEP) == expected


def test_urls_are_kept_if_remove_urls_is_false():
    assert clean_text("[a](https://a.org) ﬁ", "en", PLAIN) == "[a](https://a.org) ﬁ"


def test_chinese_keeps_its_full_width_punctuation():
    text = "「红烧肉」，５００ｇ：好！（约１½杯）…～　完；①"
    assert clean_text(text, "zh", KEEP) == "「红烧肉」，500g：好！（约1½杯）…～ 完；①"
    assert clean_text("，。：！", "zh", KEEP) == clean_text("，。：！", "ja", KEEP) == "，。：！"
    assert clean_text("Wait，stop！", "en", KEEP) == "Wait,stop!"


def test_emoji_are_dropped_if_configured_and_digits_are_kept():
    text = "hi 👨‍👩‍👧 👍🏽 ❤️ 1️⃣ 🇩🇪 #1 © 3 * x🙂y"
    assert clean_text(text, "en", DROP) == "hi #1 © 3 * xy"
    assert clean_text(text, "en", KEEP) == text


def test_cleaning_is_idempotent_and_leaves_no_stray_space():
    fragments = (
        "http s:// ｗｗｗ． www. a é e \u0301 \u200d \ufe0f ❤ 👍 🏽 1 ½ ( ) （ ） [ ]( ] < > ， …"
    )
    fragments += " \0 \u202e \u200b ﬁ Å 中 ᄆ ᅮ ᆫ 🇩 \u20e3 ´ \u0345 ſ ﷺ . , ! \ud800 ／ ："
    fragments = [*fragments.split(" "), " ", "\n", "\r", "\t", "\u2028", "\u3000", "\u00a0"]
    random = Random(0)
    for config, language in product([KEEP, DROP, PLAIN], ["zh", "en"]):
        for _ in range(1500):
            text = "".join(random.choices(fragments, k=random.randint(1, 25)))
            once = clean_text(text, language, config)
            assert clean_text(once, language, config) == once
            assert once == once.strip() and "  " not in once and "\n\n\n" not in once
            once.encode()


ARTICLE = {
    "id": "a",
    "split": "train",
    "language": "zh",
    "source": "a.md",
    "title": "题：　一",
    "blocks": [
        {"image": None, "text": "https://a.org"},
        {"image": "p", "text": None},
        {"image": None, "text": "字 ，\u200b１"},
        {"image": None, "text": "字"},
    ],
}


def run(tmp_path, kind, *records):
    schemas.write_parquet(tmp_path / "in" / "records.parquet", list(records), schemas.RECORDS[kind])
    main(DROP, kind, tmp_path / "in", tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    return schemas.read_parquet(
        tmp_path / "out" / "records.parquet", schemas.CLEAN_RECORDS[kind]
    ), summary


def test_an_article_keeps_its_originals_and_loses_empty_texts(tmp_path):
    empty = {**ARTICLE, "id": "b", "split": "test", "blocks": ARTICLE["blocks"][:2]}
    rows, summary = run(tmp_path, "articles", ARTICLE, empty)
    (row,) = rows
    assert (row["title"], row["title_original"]) == ("题： 一", "题：　一")
    assert row["blocks"] == [
        {"image": "p", "text": None, "original": None},
        {"image": None, "text": "字 ，1", "original": "字 ，\u200b１"},
        {"image": None, "text": "字", "original": "字"},
    ]
    assert summary == {
        "records": {"train": 1, "validation": 0, "test": 0},
        "records_dropped": 1,
        "texts": 4,
        "texts_changed": 1,
        "texts_dropped": 2,
    }


def test_a_title_that_would_become_empty_is_kept(tmp_path):
    (row,), _ = run(tmp_path, "articles", {**ARTICLE, "title": "🙂"})
    assert row["title"] == row["title_original"] == "🙂"


def test_captions_keep_their_originals(tmp_path):
    record = {"id": "a", "split": "test", "language": "en", "source": "c", "image": "p"}
    full = {**record, "captions": ["one  two", "🙂", "three"]}
    rows, summary = run(tmp_path, "captions", full, {**record, "id": "b", "captions": ["\u200b"]})
    (row,) = rows
    assert row["captions"] == ["one two", "three"] and row["originals"] == ["one  two", "three"]
    assert row["image"] == "p" and summary["records_dropped"] == 1
    assert (summary["texts"], summary["texts_changed"], summary["texts_dropped"]) == (4, 1, 2)


def test_a_tweet_keeps_one_word_per_tag(tmp_path):
    emptied = ["\u00a0", "https://a.org/b", "👍", "\u200d"]
    words = [*emptied, "Ｗide", "a\u200bb", "two\u2028lines", "é"]
    record = {"id": "a", "split": "test", "language": "en", "source": "t", "image": None}
    tweet = {**record, "words": words, "tags": ["O"] * 8}
    (row,), summary = run(tmp_path, "tweets", tweet)
    assert row["words"] == [*emptied, "Wide", "ab", "two\nlines", "é"]
    assert row["originals"] == words and row["tags"] == tweet["tags"] and row["image"] is None
    assert summary["records"]["test"] == 1 and summary["records_dropped"] == 0
    assert (summary["texts"], summary["texts_changed"], summary["texts_dropped"]) == (8, 3, 0)


def test_a_post_keeps_its_original_and_a_text_that_would_become_empty(tmp_path):
    record = {"id": "a", "split": "test", "language": "en", "source": "p", "label": "neutral"}
    texts = ["see  https://a.org", "https://a.org"]
    posts = [{**record, "id": text, "image": "p", "text": text} for text in texts]
    rows, summary = run(tmp_path, "posts", *posts)
    assert [row["text"] for row in rows] == ["see", "https://a.org"]
    assert [row["original"] for row in rows] == texts and rows[0]["label"] == "neutral"
    assert (summary["texts"], summary["texts_changed"], summary["texts_dropped"]) == (2, 1, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WHEN YOU\nSEE IT imgflip.com", "when you see it"),
        ("IMGFLIP.COM", ""),
        ("quick_meme.com/a?b=c. IMGFLIP .COM x.co.uk", ""),
        ("HTTP://A.ORG/B see WWW.A.ORG/b now", "see now"),
        ("by @Some.One and me@a.org", "by and"),
        ("wow...imgflip.com", "wow"),
        ("imgflip.commercial, not.a.site; a@b", "imgflip commercial not a site a b"),
        ("DON'T stop, l’été: well-known!", "dont stop lété well known"),
        ("- 3 things\n• 2nite", "things nite"),
        (
            "Привет, МИР! Ελλάς। नमस्ते, दुनिया! می\u200cخواهم؟",
            "привет мир ελλάς नमस्ते दुनिया می\u200cخواهم",
        ),
        ("你好，世界。看imgflip.com吧「二〇」", "你好 世界 看 吧 二〇"),
        ("ok 👍🏽 ❤️ ♥ #1", "ok 👍🏽 ❤️"),
        ("\u0301!\u200d a\u0301", "á"),
    ],
)
def test_domains_and_mentions_of_a_meme_are_removed_before_punctuation(text, expected):
    assert clean_overlay_text(text, "en", KEEP) == expected


def test_each_step_of_overlay_cleaning_follows_the_config():
    text = "LOOK, @bob: 3 cats!\nimgflip.com 👍"
    kept = {
        "remove_mentions": False,
        "remove_domains": [],
        "case": "keep",
        "punctuation": "keep",
        "digits": "keep",
        "line_breaks": "keep",
    }
    plain = replace(KEEP, memes=OverlayCleanConfig(**kept))
    assert clean_overlay_text(text, "en", plain) == text
    assert (
        clean_overlay_text(text, "en", replace(DROP, memes=OverlayCleanConfig(**kept))) == text[:-2]
    )
    for change, expected in [
        ({"remove_mentions": True}, "LOOK, : 3 cats!\nimgflip.com 👍"),
        ({"remove_domains": [".com"]}, "LOOK, @bob: 3 cats!\n👍"),
        ({"case": "lower"}, text.lower()),
        ({"punctuation": "drop"}, "LOOK bob 3 cats\nimgflip com 👍"),
        ({"digits": "drop"}, "LOOK, @bob: cats!\nimgflip.com 👍"),
        ({"line_breaks": "join"}, text.replace("\n", " ")),
    ]:
        assert (
            clean_overlay_text(text, "en", replace(KEEP, memes=OverlayCleanConfig(**kept | change)))
            == expected
        )


def test_lowercase_follows_the_language():
    assert clean_overlay_text("SIKI İYİ", "tr", KEEP) == "sıkı iyi"
    assert clean_overlay_text("SIKI", "en", KEEP) == "siki"


def test_overlay_cleaning_is_idempotent_and_leaves_letters_digits_and_emoji_only():
    fragments = "@ @a a1.com .com com a@b.co http:// www. . - _ ' ’ don't 1 2️⃣ ❤️ 👍🏽 ½ 〇"
    fragments += " İ ß Σ ΑΣ ᴬ Ꭰ K \u0301 \u200d \u200c क् ष ( ) （ ］ ＠ ．ｃｏｍ"
    fragments += " # * \0 \u202e 中 ，。 ♥ 🇩 \u20e3 \ufe0f"
    fragments = [*fragments.split(" "), " ", "\n", "\t", "\u2028", "\u00a0"]
    random = Random(0)
    configs = [KEEP, DROP, PLAIN, replace(KEEP, memes=replace(OVERLAY_CONFIG, punctuation="keep"))]
    for config, language in product(configs, ["zh", "en", "tr"]):
        for number in range(400):
            text = "".join(random.choices(fragments, k=random.randint(1, 25)))
            if number % 2:
                text = "".join(chr(random.randrange(0x30000)) for _ in range(12)) + text
            once = clean_overlay_text(text, language, config)
            assert clean_overlay_text(once, language, config) == once
            assert once == once.strip() and "  " not in once and "\n" not in once
            if config.memes.punctuation == "drop":
                words = EMOJI.sub("", once)
                assert not regex.search(r"[^\p{L}\p{M}\p{N}\s\u200c\u200d]", words)


def test_overlay_cleaning_takes_linear_time():
    for fragment in ("a.", "@a", "a_.com", "a@a.", "(http://a", "'", "\u0301", "@", " .com"):
        clean_overlay_text(fragment * 20_000, "en", KEEP)


def test_a_meme_without_text_is_kept_if_it_has_an_image(tmp_path):
    meme = {"id": "a", "split": "train", "language": "en", "source": "x", "image": "p"}
    meme |= {"text": "imgflip.com", "labels": [{"task": "humour", "label": "funny"}]}
    rows, summary = run(
        tmp_path,
        "memes",
        meme,
        {**meme, "id": "b", "text": "TOP\nBOTTOM", "image": None},
        {**meme, "id": "c", "split": "test", "image": None},
    )
    assert [row["text"] for row in rows] == ["", "top bottom"]
    assert [row["original"] for row in rows] == ["imgflip.com", "TOP\nBOTTOM"]
    assert rows[0]["labels"] == meme["labels"]
    assert summary == {
        "records": {"train": 2, "validation": 0, "test": 0},
        "records_dropped": 1,
        "texts": 3,
        "texts_changed": 2,
        "texts_dropped": 1,
        "without_text": {"train": 1, "validation": 0, "test": 1},
    }
