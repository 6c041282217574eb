"""Task features: lexicon features counted by hand, and the toxicity model."""

import importlib.metadata
import math
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from stages.models.mm_orient import text_features
from stages.models.mm_orient.text_features import (
    LEXICON_FEATURES,
    WORD_CLASSES,
    TaskFeatureConfig,
    compute_features,
    compute_lexicon_features,
    feature_dim,
    feature_names,
)
from stages.shared.core.config import load_config
from stages.shared.data.text_cleaning import CleanConfig, clean_overlay_text, keep_sentences
from stages.shared.runtime.stage import InputError
from tests.support import tiny_bert

LEXICON = TaskFeatureConfig(
    input_text="text", use_lexicon=True, toxicity_model="none", max_subwords=8
)


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))


def lexicon_features(text: str) -> dict[str, float]:
    return dict(zip(LEXICON_FEATURES, compute_lexicon_features(text), strict=True))


def test_the_columns_and_their_order_are_fixed():
    assert feature_dim(LEXICON) == len(LEXICON_FEATURES) == 4 + len(WORD_CLASSES) + 7
    assert len(set(LEXICON_FEATURES)) == len(LEXICON_FEATURES)
    assert feature_names(LEXICON) == list(LEXICON_FEATURES)
    assert LEXICON_FEATURES[:5] == ("negative", "neutral", "positive", "compound", "self")
    for words in WORD_CLASSES.values():
        assert len(words.split()) == len(set(words.split()))
        assert words == words.lower()
        assert "'" not in words


def test_lexicon_features_match_counts_by_hand():
    features = lexicon_features("You DON'T love me, why?! Sooo")
    expected = {
        "addressed": 1 / 6,
        "negation": 1 / 6,
        "affection": 1 / 6,
        "self": 1 / 6,
        "question": 1 / 6,
        "vulgar": 0.0,
        "words": math.log(1 + 6),
        "letters": math.log(1 + 20 / 6),  # you dont love me why sooo
        "capitals": 6 / 20,
        "exclamations": 1 / 6,
        "questions": 1 / 6,
        "stretched": 1 / 6,
        "digits": 0.0,
    }
    assert {key: features[key] for key in expected} == pytest.approx(expected)
    assert lexicon_features("lol 42 times")["digits"] == pytest.approx(2 / 10)


def test_capitals_digits_and_marks_are_in_the_sentence_and_not_in_the_clean_text():
    config = load_config(CleanConfig, "clean")
    overlay = "WHY did 3 cats RUN?! @me http://a.com"
    text = clean_overlay_text(overlay, "en", config)
    sentence = clean_overlay_text(overlay, "en", keep_sentences(config))
    assert (text, sentence) == ("why did cats run", "WHY did 3 cats RUN?!")
    columns = ("capitals", "digits", "exclamations", "questions")
    assert [lexicon_features(text)[name] for name in columns] == [0] * 4
    # 5 words, 14 letters and digits, 6 of them capitals
    assert [lexicon_features(sentence)[name] for name in columns] == pytest.approx(
        [6 / 14, 1 / 14, 1 / 5, 1 / 5]
    )


def test_vader_separates_positive_from_negative_texts():
    good, bad = (
        lexicon_features("what a wonderful happy day"),
        lexicon_features("a horrible ugly disaster"),
    )
    assert good["compound"] > 0.5 > -0.5 > bad["compound"]
    assert good["positive"] > good["negative"] == 0
    assert bad["negative"] > bad["positive"] == 0


@pytest.mark.parametrize("text", ["", "   ", "?!", "🔥🔥"])
def test_a_text_without_words_has_zeros(text):
    assert compute_lexicon_features(text) == [0.0] * len(LEXICON_FEATURES)


def test_other_languages_have_spelling_features():
    features = lexicon_features("今天 天气 很好")
    assert features["words"] == pytest.approx(math.log(4))
    assert all(features[key] == 0 for key in WORD_CLASSES)


def test_the_features_of_a_text_do_not_depend_on_the_other_texts():
    texts = ["when you never give up", "", "lol stupid"]
    rows = compute_features(texts, LEXICON)
    assert rows.shape == (3, len(LEXICON_FEATURES))
    assert rows.dtype == np.float32
    for row, text in zip(rows, texts, strict=True):
        assert np.array_equal(compute_features([text], LEXICON)[0], row)
        assert row.tolist() == pytest.approx(compute_lexicon_features(text))
    assert compute_features([], LEXICON).shape == (0, len(LEXICON_FEATURES))


def test_without_any_block_there_are_no_features():
    config = TaskFeatureConfig(
        input_text="text", use_lexicon=False, toxicity_model="none", max_subwords=8
    )
    assert feature_dim(config) == 0
    assert compute_features(["a", "b"], config).shape == (2, 0)


@pytest.mark.parametrize(
    "save_model", [tiny_bert.save_bert, tiny_bert.save_roberta], ids=["bert", "roberta"]
)
def test_a_toxicity_model_adds_the_mean_of_its_last_hidden_states(save_model, tmp_path):
    model = save_model(tmp_path / "toxic")
    config = TaskFeatureConfig(
        input_text="text", use_lexicon=True, toxicity_model=str(tmp_path / "toxic"), max_subwords=12
    )
    assert feature_dim(config) == len(LEXICON_FEATURES) + 16
    texts = ["the fox", "", "the the sat"]
    rows = compute_features(texts, config)
    encoder = text_features._load_toxicity_model(config)
    for row, text in zip(rows, texts, strict=True):
        assert row[: len(LEXICON_FEATURES)].tolist() == pytest.approx(
            compute_lexicon_features(text)
        )
        ids = encoder.tokenize(text.split()).ids
        if not ids:
            assert not row[len(LEXICON_FEATURES) :].any()
            continue
        start, end = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
        with torch.no_grad():
            states = model(input_ids=torch.tensor([[start, *ids, end]])).last_hidden_state[0]
        np.testing.assert_allclose(
            row[len(LEXICON_FEATURES) :], states[1:-1].mean(0), atol=5e-3
        )  # cached as float16


def test_text_lengths_out_of_range_are_rejected(tmp_path):
    tiny_bert.save_bert(tmp_path / "toxic")
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        TaskFeatureConfig(
            input_text="text", use_lexicon=True, toxicity_model="none", max_subwords=0
        )
    with pytest.raises(InputError, match=r"1 to 38\b.*\b64\b"):
        feature_dim(
            TaskFeatureConfig(
                input_text="text",
                use_lexicon=True,
                toxicity_model=str(tmp_path / "toxic"),
                max_subwords=64,
            )
        )


def test_the_lexicon_needs_no_network(monkeypatch):
    """In a separate process that exits on any connection."""
    code = (
        "import socket\n"
        "def refuse(*args): raise SystemExit('network access')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "from stages.models.mm_orient.text_features import compute_lexicon_features\n"
        "print(len(compute_lexicon_features('so happy')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = (str(len(LEXICON_FEATURES)), 0)
    assert (result.stdout.strip(), result.returncode) == expected, result.stderr
    assert socket.socket.connect is not None


def test_the_lexicon_has_the_mit_license():
    files = importlib.metadata.files("vaderSentiment")
    (license_file,) = [file for file in files if file.name == "LICENSE.txt"]
    assert license_file.read_text().startswith("The MIT License")
