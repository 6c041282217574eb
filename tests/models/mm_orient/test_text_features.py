import importlib.metadata
import math
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from stages.models.mm_orient import text_features
from stages.models.mm_orient.text_features import CLASSES, KEYS, Params, lexicon, names, read, width
from stages.shared.runtime.stage import WrongInput
from tests.support import tiny_bert

LEXICON = Params(lexicon=True, toxicity="none", pieces=8)


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))


def figures(text: str) -> dict[str, float]:
    return dict(zip(KEYS, lexicon(text), strict=True))


def test_the_columns_are_few_and_their_order_is_fixed():
    assert len(set(KEYS)) == len(KEYS) == 4 + len(CLASSES) + 7 == width(LEXICON)
    assert names(LEXICON) == list(KEYS)
    assert KEYS[:5] == ("negative", "neutral", "positive", "compound", "self")
    for words in CLASSES.values():
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
    assert lexicon(text) == [0.0] * len(KEYS)


def test_other_languages_have_figures_of_their_spelling():
    found = figures("今天 天气 很好")
    assert found["words"] == pytest.approx(math.log(4))
    assert all(found[key] == 0 for key in CLASSES)


def test_texts_become_rows_whatever_stands_beside_them():
    texts = ["when you never give up", "", "lol stupid"]
    rows = read(texts, LEXICON)
    assert rows.shape == (3, len(KEYS))
    assert rows.dtype == np.float32
    for row, text in zip(rows, texts, strict=True):
        assert np.array_equal(read([text], LEXICON)[0], row)
        assert row.tolist() == pytest.approx(lexicon(text))
    assert read([], LEXICON).shape == (0, len(KEYS))


def test_nothing_asked_for_has_no_width():
    nothing = Params(lexicon=False, toxicity="none", pieces=8)
    assert width(nothing) == 0
    assert read(["a", "b"], nothing).shape == (2, 0)


@pytest.mark.parametrize("kind", [tiny_bert.bert, tiny_bert.roberta], ids=["bert", "roberta"])
def test_a_model_adds_the_mean_of_its_last_hidden_states(kind, tmp_path):
    model = kind(tmp_path / "toxic")
    params = Params(lexicon=True, toxicity=str(tmp_path / "toxic"), pieces=12)
    assert width(params) == len(KEYS) + 16
    texts = ["the fox", "", "the the sat"]
    rows = read(texts, params)
    encoder = text_features._toxicity_model(params)
    for row, text in zip(rows, texts, strict=True):
        assert row[: len(KEYS)].tolist() == pytest.approx(lexicon(text))
        ids = encoder.pieces(text.split()).ids
        if not ids:
            assert not row[len(KEYS) :].any()
            continue
        start, end = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
        with torch.no_grad():
            states = model(input_ids=torch.tensor([[start, *ids, end]])).last_hidden_state[0]
        np.testing.assert_allclose(row[len(KEYS) :], states[1:-1].mean(0), atol=5e-3)  # fp16


def test_numbers_that_no_model_can_have_are_a_sentence(tmp_path):
    tiny_bert.bert(tmp_path / "toxic")
    with pytest.raises(WrongInput, match="pieces must be 1 or more"):
        Params(lexicon=True, toxicity="none", pieces=0)
    with pytest.raises(WrongInput, match="reads texts of 1 to 38 pieces, not of 64"):
        width(Params(lexicon=True, toxicity=str(tmp_path / "toxic"), pieces=64))


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
    assert (done.stdout.strip(), done.returncode) == (str(len(KEYS)), 0), done.stderr
    assert socket.socket.connect is not None


def test_the_licence_of_the_lexicon_permits_its_use():
    files = importlib.metadata.files("vaderSentiment")
    (licence,) = [file for file in files if file.name == "LICENSE.txt"]
    assert licence.read_text().startswith("The MIT License")
