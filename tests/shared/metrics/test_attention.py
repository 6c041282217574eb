"""Attention analysis, with values derived by hand and on the tokens of real tokenizers."""

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stages.shared.generation.decoders import train_tokenizer
from stages.shared.metrics import attention
from tests.support import tiny_flexmuse

NAN = np.nan


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(tiny_flexmuse.TEXTS * 4, 400)


# ------------------------------------------------------------------------------- tokens of a text
@pytest.mark.parametrize("text", ["two birds, a zebra", "a 猫 sleeps 🦊!", "Ω", " red  cat "])
def test_token_ends_grow_from_prefix_to_prefix_of_the_text(tokenizer, text):
    """Characters outside the vocabulary are bytes: three for 猫, four for the fox."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    ends = attention.compute_token_ends(tokenizer, ids)
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(ends) == len(ids) and ends == sorted(ends) and ends[-1] == len(decoded)
    for count, end in enumerate(ends, start=1):
        assert tokenizer.decode(ids[:count]).startswith(decoded[:end])


@pytest.mark.parametrize("text", ["a 猫 sleeps 🦊!", "two birds"])
def test_token_ends_are_the_same_for_a_byte_level_tokenizer(text):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(tiny_flexmuse.TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    ids = tokenizer(text).input_ids
    ends = attention.compute_token_ends(tokenizer, ids)
    assert ends[-1] == len(text) and ends == sorted(ends)
    tokens = attention.find_emitting_tokens(ends, 2, 3)
    assert text[2] in tokenizer.decode([ids[token] for token in tokens])


def test_a_character_ends_with_its_last_byte_and_the_eos_token_adds_nothing(tokenizer):
    space, first, second, third = tokenizer("猫", add_special_tokens=False).input_ids
    assert attention.compute_token_ends(tokenizer, [space, first, second, third, 1]) == [
        0,
        0,
        0,
        1,
        1,
    ]
    assert (
        attention.compute_token_ends(tokenizer, [space, first, second])
        == attention.compute_token_ends(tokenizer, [space, first, second, 1])[:3]
    )


def test_the_tokens_of_a_phrase_are_those_that_emit_its_characters(tokenizer):
    text = "a red 猫 sleeps"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    ends = attention.compute_token_ends(tokenizer, ids)
    for phrase in ("red", "猫", "sleeps", "a red 猫"):
        start = text.index(phrase)
        tokens = attention.find_emitting_tokens(ends, start, start + len(phrase))
        assert tokens == list(range(tokens[0], tokens[-1] + 1))
        assert phrase in tokenizer.decode(ids[tokens[0] : tokens[-1] + 1])
        for fewer in (tokens[1:], tokens[:-1]):  # no token is superfluous
            assert phrase not in tokenizer.decode([ids[token] for token in fewer])


@pytest.mark.parametrize(
    ("start", "stop", "tokens"),
    [
        (0, 1, [0]),
        (1, 3, [1, 2]),  # tokens 1 and 2 together emit characters 1 and 2
        (2, 5, [1, 2, 3]),
        (4, 6, [3]),
        (3, 4, [3]),
        (6, 9, []),
    ],
)
def test_the_tokens_of_a_span_match_those_derived_by_hand(start, stop, tokens):
    """Ends 1 1 3 6 6: token 1 adds no length and counts towards token 2; token 4 is the EOS."""
    assert attention.find_emitting_tokens([1, 1, 3, 6, 6], start, stop) == tokens


# ----------------------------------------------------------------------------- entropy and spread
def test_entropy_matches_values_derived_by_hand():
    """log 2 / log 4 = 1/2; (1/2 log 2 + 2/4 log 4) / log 4 = 3/4."""
    rows = np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.25, 0.25, 0]])
    np.testing.assert_allclose(attention.normalized_entropy(rows), [1, 0, 0.5, 0.75], atol=1e-12)
    assert np.isnan(attention.normalized_entropy(np.ones((2, 1)))).all()


def test_spread_is_one_if_each_patch_attends_to_a_different_token():
    assert attention.compute_spread(np.eye(4)) == pytest.approx(1)
    assert attention.compute_spread(np.eye(4)[[2, 2, 2, 2]]) == pytest.approx(0)
    assert attention.compute_spread(np.eye(4)[[0, 0, 1, 1]]) == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------- boxes
def test_box_coverage_matches_values_derived_by_hand():
    """The box starts in the middle of the first column and covers the upper three quarters."""
    box = (0.25, 0.0, 1.0, 0.75)
    np.testing.assert_allclose(attention.compute_box_coverage(box, 4), [0.5, 1, 0.25, 0.5])
    np.testing.assert_allclose(attention.compute_box_coverage(box, 5), [NAN, 0.5, 1, 0.25, 0.5])


@pytest.mark.parametrize("patches", [0, 1, 2, 3, 6, 8, 12])
def test_tokens_that_are_not_a_grid_have_no_cells(patches):
    assert attention.grid_size(patches) is None
    assert attention.compute_box_coverage((0, 0, 1, 1), patches) is None


@pytest.mark.parametrize("patches", [16, 17, 49, 197])
def test_box_coverage_is_the_fraction_of_sampled_points_in_the_box(patches):
    box, samples = (0.13, 0.4, 0.57, 0.93), 40
    side = int(patches**0.5)
    coverage = attention.compute_box_coverage(box, patches)[patches - side * side :]
    for cell in range(side * side):
        row, column = divmod(cell, side)
        inside = 0
        for i in range(samples):
            for j in range(samples):
                y, x = (row + (i + 0.5) / samples) / side, (column + (j + 0.5) / samples) / side
                inside += box[0] <= x <= box[2] and box[1] <= y <= box[3]
        assert coverage[cell] == pytest.approx(inside / samples**2, abs=0.03)
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert coverage.mean() == pytest.approx(area)


def test_the_attention_mass_matches_a_value_derived_by_hand():
    """Of 2, the covered cell receives .2 + .4 and the half covered cell .1 + .1."""
    weights = np.array([[0.2, 0.1, 0.3, 0.4], [0.4, 0.1, 0.2, 0.3]])
    assert attention.compute_attention_mass(weights, np.array([1, 0.5, 0, 0])) == pytest.approx(
        0.35
    )


@pytest.mark.parametrize("patches", [16, 17])
def test_the_mass_of_uniform_attention_is_the_area_of_the_box(patches):
    box = (0.1, 0.2, 0.5, 0.6)
    weights = np.full((3, patches), 0.7 / patches)  # the rest is on other tokens, as with `prompt`
    assert attention.compute_attention_mass(
        weights, attention.compute_box_coverage(box, patches)
    ) == pytest.approx(0.16)
