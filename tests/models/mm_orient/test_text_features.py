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
from stages.shared.runtime.stage import InputError
from tests.support import tiny_bert

LEXICON = TaskFeatureConfig(use_lexicon=True, toxicity_model="none", max_subwords=8)


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))


def figures(text: str) -> dict[str, float]:
    return dict(zip(LEXICON_FEATURES, compute_lexicon_features(text), strict=True))


def test_the_columns_are_few_and_their_order_is_fixed():
    assert (
        len(set(LEXICON_FEATURES))
        == len(LEXICON_FEATURES)
        == 4 + len(WORD_CLASSES) + 7
        == feature_dim(LEXICON)
    )
    assert feature_names(LEXICON) == list(LEXICON_FEATURES)
    assert LEXICON_FEATURES[:5] == ("negative", "neutral", "positive", "compound", "self")
    for words in WORD_CLASSES.values():
        assert len(words.split()) == len(set(words.split()))
        assert words == words.lower()
        assert "'" not in words


def test_shares_are_counted_by_hand():
    found = figures("You DON'T love me, why?! Sooo")
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
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert figures("lol 42 times")["digits"] == pytest.approx(2 / 10)


def test_vader_tells_good_from_bad():
    good, bad = figures("what a wonderful happy day"), figures("a horrible ugly disaster")
    assert good["compound"] > 0.5 > -0.5 > bad["compound"]
    assert good["positive"] > good["negative"] == 0
    assert bad["negative"] > bad["positive"] == 0


@pytest.mark.parametrize("text", ["", "   ", "?!", "🔥🔥"])
def test_a_text_without_words_has_zeros(text):
    assert compute_lexicon_features(text) == [0.0] * len(LEXICON_FEATURES)


def test_other_languages_have_figures_of_their_spelling():
    found = figures("今天 天气 很好")
    assert found["words"] == pytest.approx(math.log(4))
    assert all(found[key] == 0 for key in WORD_CLASSES)


def test_texts_become_rows_whatever_stands_beside_them():
    texts = ["when you never give up", "", "lol stupid"]
    rows = compute_features(texts, LEXICON)
    assert rows.shape == (3, len(LEXICON_FEATURES))
    assert rows.dtype == np.float32
    for row, text in zip(rows, texts, strict=True):
        assert np.array_equal(compute_features([text], LEXICON)[0], row)
        assert row.tolist() == pytest.approx(compute_lexicon_features(text))
    assert compute_features([], LEXICON).shape == (0, len(LEXICON_FEATURES))


def test_nothing_asked_for_has_no_width():
    nothing = TaskFeatureConfig(use_lexicon=False, toxicity_model="none", max_subwords=8)
    assert feature_dim(nothing) == 0
    assert compute_features(["a", "b"], nothing).shape == (2, 0)


@pytest.mark.parametrize(
    "kind", [tiny_bert.save_bert, tiny_bert.save_roberta], ids=["bert", "roberta"]
)
def test_a_model_adds_the_mean_of_its_last_hidden_states(kind, tmp_path):
    model = kind(tmp_path / "toxic")
    params = TaskFeatureConfig(
        use_lexicon=True, toxicity_model=str(tmp_path / "toxic"), max_subwords=12
    )
    assert feature_dim(params) == len(LEXICON_FEATURES) + 16
    texts = ["the fox", "", "the the sat"]
    rows = compute_features(texts, params)
    encoder = text_features._load_toxicity_model(params)
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
        )  # fp16


def test_numbers_that_no_model_can_have_are_a_sentence(tmp_path):
    tiny_bert.save_bert(tmp_path / "toxic")
    with pytest.raises(InputError, match="pieces must be 1 or more"):
        TaskFeatureConfig(use_lexicon=True, toxicity_model="none", max_subwords=0)
    with pytest.raises(InputError, match="reads texts of 1 to 38 pieces, not of 64"):
        feature_dim(
            TaskFeatureConfig(
                use_lexicon=True, toxicity_model=str(tmp_path / "toxic"), max_subwords=64
            )
        )


def test_the_lexicon_asks_no_network(monkeypatch):
    """In a process of its own, where opening a connection ends it."""
    code = (
        "import socket\n"
        "def refuse(*given): raise SystemExit('asked the network')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "from stages.models.mm_orient.text_features import lexicon\n"
        "print(len(lexicon('so happy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (str(len(LEXICON_FEATURES)), 0), done.stderr
    assert socket.socket.connect is not None


def test_the_licence_of_the_lexicon_permits_its_use():
    files = importlib.metadata.files("vaderSentiment")
    (licence,) = [file for file in files if file.name == "LICENSE.txt"]
    assert licence.read_text().startswith("The MIT License")
