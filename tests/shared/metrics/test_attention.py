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


# ------------------------------------------------------------------------------------------- texts
@pytest.mark.parametrize("text", ["two birds, a zebra", "a 猫 sleeps 🦊!", "Ω", " red  cat "])
def test_every_character_of_a_text_is_ended_by_one_token(tokenizer, text):
    """Bytes stand for what the vocabulary lacks: three for 猫, four for the fox."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    found = attention.compute_token_ends(tokenizer, ids)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(found) == len(ids) and found == sorted(found) and found[-1] == len(whole)
    for count, end in enumerate(found, start=1):
        assert tokenizer.decode(ids[:count]).startswith(whole[:end])


@pytest.mark.parametrize("text", ["a 猫 sleeps 🦊!", "two birds"])
def test_a_tokenizer_of_bytes_without_fallback_ends_characters_alike(text):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(tiny_flexmuse.TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    ids = tokenizer(text).input_ids
    found = attention.compute_token_ends(tokenizer, ids)
    assert found[-1] == len(text) and found == sorted(found)
    emitted = attention.find_emitting_tokens(found, 2, 3)
    spelt = tokenizer.decode([ids[token] for token in emitted])
    assert text[2] in spelt


def test_a_character_ends_with_the_last_of_its_bytes_and_the_end_adds_nothing(tokenizer):
    blank, one, two, three = tokenizer("猫", add_special_tokens=False).input_ids
    assert attention.compute_token_ends(tokenizer, [blank, one, two, three, 1]) == [0, 0, 0, 1, 1]
    assert (
        attention.compute_token_ends(tokenizer, [blank, one, two])
        == attention.compute_token_ends(tokenizer, [blank, one, two, 1])[:3]
    )


def test_the_tokens_of_a_phrase_are_those_that_write_its_characters(tokenizer):
    text = "a red 猫 sleeps"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    ends = attention.compute_token_ends(tokenizer, ids)
    for phrase in ("red", "猫", "sleeps", "a red 猫"):
        start = text.index(phrase)
        found = attention.find_emitting_tokens(ends, start, start + len(phrase))
        assert found == list(range(found[0], found[-1] + 1))
        assert phrase in tokenizer.decode(ids[found[0] : found[-1] + 1])
        for without in (found[1:], found[:-1]):  # none is too many
            assert phrase not in tokenizer.decode([ids[token] for token in without])


@pytest.mark.parametrize(
    ("start", "stop", "tokens"),
    [
        (0, 1, [0]),
        (1, 3, [1, 2]),  # two half characters write the third one
        (2, 5, [1, 2, 3]),
        (4, 6, [3]),
        (3, 4, [3]),
        (6, 9, []),
    ],
)
def test_tokens_of_a_span_by_hand(start, stop, tokens):
    """Ends 1 1 3 6 6: token 1 adds nothing and belongs to token 2; the last one is the end."""
    assert attention.find_emitting_tokens([1, 1, 3, 6, 6], start, stop) == tokens


# --------------------------------------------------------------------------------------- how wide
def test_entropy_by_hand():
    """log 2 / log 4 = 1/2; (1/2 log 2 + 2/4 log 4) / log 4 = 3/4."""
    rows = np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0.25, 0.25, 0]])
    np.testing.assert_allclose(attention.normalized_entropy(rows), [1, 0, 0.5, 0.75], atol=1e-12)
    assert np.isnan(attention.normalized_entropy(np.ones((2, 1)))).all()


def test_patches_that_each_look_at_a_token_of_their_own_are_spread():
    assert attention.compute_spread(np.eye(4)) == pytest.approx(1)
    assert attention.compute_spread(np.eye(4)[[2, 2, 2, 2]]) == pytest.approx(0)
    assert attention.compute_spread(np.eye(4)[[0, 0, 1, 1]]) == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------- boxes
def test_cover_by_hand():
    """A box from the middle of the first column to the end, over the upper three quarters."""
    box = (0.25, 0.0, 1.0, 0.75)
    np.testing.assert_allclose(attention.compute_box_coverage(box, 4), [0.5, 1, 0.25, 0.5])
    np.testing.assert_allclose(attention.compute_box_coverage(box, 5), [NAN, 0.5, 1, 0.25, 0.5])


@pytest.mark.parametrize("patches", [0, 1, 2, 3, 6, 8, 12])
def test_tokens_that_are_no_square_or_a_single_one_have_no_cells(patches):
    assert attention.grid_size(patches) is None
    assert attention.compute_box_coverage((0, 0, 1, 1), patches) is None


@pytest.mark.parametrize("patches", [16, 17, 49, 197])
def test_cover_counts_the_points_of_a_cell_that_lie_in_the_box(patches):
    box, fine = (0.13, 0.4, 0.57, 0.93), 40
    side = int(patches**0.5)
    covered = attention.compute_box_coverage(box, patches)[patches - side * side :]
    for cell in range(side * side):
        row, column = divmod(cell, side)
        inside = 0
        for i in range(fine):
            for j in range(fine):
                y, x = (row + (i + 0.5) / fine) / side, (column + (j + 0.5) / fine) / side
                inside += box[0] <= x <= box[2] and box[1] <= y <= box[3]
        assert covered[cell] == pytest.approx(inside / fine**2, abs=0.03)
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert covered.mean() == pytest.approx(area)


def test_the_mass_in_a_box_by_hand():
    """Of two tokens' attention .2 + .4 falls on the covered cell and .1 + .1 on the half one."""
    weights = np.array([[0.2, 0.1, 0.3, 0.4], [0.4, 0.1, 0.2, 0.3]])
    assert attention.compute_attention_mass(weights, np.array([1, 0.5, 0, 0])) == pytest.approx(
        0.35
    )


@pytest.mark.parametrize("patches", [16, 17])
def test_looking_everywhere_alike_has_the_area_of_the_box_as_its_mass(patches):
    box = (0.1, 0.2, 0.5, 0.6)
    weights = np.full((3, patches), 0.7 / patches)  # the rest goes elsewhere, as with `prompt`
    assert attention.compute_attention_mass(
        weights, attention.compute_box_coverage(box, patches)
    ) == pytest.approx(0.16)
