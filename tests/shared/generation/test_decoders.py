import json
from io import BytesIO

import pytest
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from stages.shared.generation import decoders
from stages.shared.runtime.stage import InputError
from tests.support import tiny_flexmuse

CONFIG = decoders.DecoderConfig(
    tiny=decoders.TinyT5Config(vocab_size=400, num_layers=2, d_ff=32, num_heads=4, dropout=0.0)
)


@pytest.mark.parametrize(
    "text", ["a red cat sleeps", "红烧肉，放糖 2 勺", "naïve 😀 emoji", "two  blanks and\nlines"]
)
def test_text_in_an_unseen_script_survives_encoding_and_decoding(text):
    tokenizer = decoders.train_tokenizer(tiny_flexmuse.TEXTS * 4, 400)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_a_larger_vocabulary_gives_shorter_texts_within_its_limit():
    tokenizer = decoders.train_tokenizer(tiny_flexmuse.TEXTS * 4, 300)
    assert len(tokenizer) <= 300
    longer = decoders.train_tokenizer(tiny_flexmuse.TEXTS * 4, 400)
    counts = [len(t(tiny_flexmuse.TEXTS[0]).input_ids) for t in (tokenizer, longer)]
    assert counts[1] < counts[0] < len(tiny_flexmuse.TEXTS[0])


def test_a_large_script_keeps_the_limit_and_its_frequent_characters():
    characters = [chr(0x4E00 + number) for number in range(3000)]  # CJK Unified Ideographs
    texts = ["".join(characters[start : start + 20]) for start in range(0, 3000, 20)]
    texts += ["".join(characters[-300:])] * 3
    tokenizer = decoders.train_tokenizer(texts, 1000)
    assert len(tokenizer) <= 1000
    assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(characters[-300:])
    ids = tokenizer(texts[0], add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == texts[0]
    assert decoders.train_tokenizer(texts, 1000).get_vocab() == tokenizer.get_vocab()


def test_the_smallest_vocabulary_is_bytes_special_tokens_and_metaspace():
    tokenizer = decoders.train_tokenizer(tiny_flexmuse.TEXTS, 260)
    ids = tokenizer("红 cat", add_special_tokens=False).input_ids
    assert len(tokenizer) == 260 and tokenizer.decode(ids) == "红 cat"
    with pytest.raises(InputError, match=r"decoders\.tiny\.vocab_size is 259: give more than 259"):
        decoders.train_tokenizer(tiny_flexmuse.TEXTS, 259)


def test_a_t5_with_a_sentencepiece_model_is_loaded(tmp_path):
    trained = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(tiny_flexmuse.TEXTS * 4),
        model_writer=trained,
        vocab_size=28,
        model_type="unigram",
        minloglevel=2,  # warnings
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},  # as in T5
    )
    tiny_flexmuse.build_t5(28).save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(trained.getvalue())
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    _, tokenizer = decoders.create_decoder(str(tmp_path), CONFIG, 16, [], 0)
    processor = SentencePieceProcessor(model_proto=trained.getvalue())
    for text in tiny_flexmuse.TEXTS:
        ids = tokenizer(text).input_ids
        assert ids == [*processor.encode(text), 1]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    (tmp_path / "run").mkdir()
    decoders.save_decoder(tmp_path / "run", tiny_flexmuse.build_t5(28), tokenizer)
    assert decoders.load_decoder(tmp_path / "run")[1](text).input_ids == ids


@pytest.mark.parametrize("tied", [True, False])
def test_a_named_t5_is_loaded_with_weights_and_restored_from_its_config(tmp_path, tied):
    saved, tokenizer = tiny_flexmuse.save_t5(tmp_path / "named", tied)
    assert torch.equal(saved.lm_head.weight, saved.shared.weight) == tied
    model, loaded = decoders.create_decoder(str(tmp_path / "named"), CONFIG, 16, [], 0)
    for name, weight in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert loaded(tiny_flexmuse.TEXTS[0]).input_ids == tokenizer(tiny_flexmuse.TEXTS[0]).input_ids
    (tmp_path / "run").mkdir()
    decoders.save_decoder(tmp_path / "run", model, loaded)
    restored, restored_tokenizer = decoders.load_decoder(tmp_path / "run")
    assert restored.config.scale_decoder_outputs == tied
    if not tied:
        decoders.untie_lm_head(restored)
    restored.load_state_dict(model.state_dict())
    labels = torch.tensor([restored_tokenizer(tiny_flexmuse.TEXTS[0]).input_ids])
    losses = [t5.eval()(input_ids=labels, labels=labels).loss for t5 in (model, restored)]
    torch.testing.assert_close(*losses)


def test_a_name_that_does_not_exist_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="decoder no/such-model cannot be loaded"):
        decoders.create_decoder("no/such-model", CONFIG, 16, [], 0)


def test_a_truncated_weights_file_is_an_input_error(tmp_path):
    tiny_flexmuse.build_t5().save_pretrained(tmp_path)
    decoders.train_tokenizer(tiny_flexmuse.TEXTS, 300).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot be loaded: .+") as raised:
        decoders.create_decoder(str(tmp_path), CONFIG, 16, [], 0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "error", [ImportError("install x\nthen y"), RuntimeError("no"), KeyError()]
)
def test_any_exception_of_transformers_becomes_an_input_error(monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(InputError, match=r"decoder x cannot be loaded: (install x|no|KeyError)$"):
        decoders.create_decoder("x", CONFIG, 16, [], 0)


def test_a_checkpoint_that_lacks_weights_is_rejected_without_a_report(tmp_path, capfd):
    from safetensors.torch import load_file, save_file

    tiny_flexmuse.build_t5().save_pretrained(tmp_path)
    decoders.train_tokenizer(tiny_flexmuse.TEXTS, 300).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    incomplete = {k: v for k, v in weights.items() if "decoder.block.1" not in k}
    save_file(incomplete, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights of a T5: decoder\.block\.1"):
        decoders.create_decoder(str(tmp_path), CONFIG, 16, [], 0)
    assert "REPORT" not in "".join(capfd.readouterr())


def test_a_checkpoint_of_another_architecture_is_rejected(tmp_path):
    decoders.train_tokenizer(tiny_flexmuse.TEXTS, 300).save_pretrained(tmp_path)
    config = {"model_type": "bert", "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be loaded"):
        decoders.create_decoder(str(tmp_path), CONFIG, 16, [], 0)


def load_published_t5(folder):
    """A decoder in the format of mengzi-t5-base, loaded, and after save and restore."""
    (folder / "named").mkdir()
    saved = tiny_flexmuse.save_published_t5(folder / "named")
    model, tokenizer = decoders.create_decoder(str(folder / "named"), CONFIG, 16, [], 0)
    (folder / "run").mkdir()
    decoders.save_decoder(folder / "run", model, tokenizer)
    restored, restored_tokenizer = decoders.load_decoder(folder / "run")
    decoders.untie_lm_head(restored)
    restored.load_state_dict(model.state_dict())
    return saved, (model.eval(), tokenizer), (restored.eval(), restored_tokenizer)


def test_a_published_t5_keeps_its_weights_and_outputs(tmp_path):
    saved, (model, tokenizer), (restored, restored_tokenizer) = load_published_t5(tmp_path)
    assert (len(tokenizer), model.config.vocab_size) == (142, 170)
    assert (model.config.feed_forward_proj, model.config.scale_decoder_outputs) == (
        "gated-gelu",
        False,
    )
    for name, weight in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    ids = tokenizer(tiny_flexmuse.CHINESE_TEXTS, padding=True, return_tensors="pt")
    assert (
        restored_tokenizer(tiny_flexmuse.CHINESE_TEXTS).input_ids
        == tokenizer(tiny_flexmuse.CHINESE_TEXTS).input_ids
    )
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": 2}
    first, second = (t5.generate(**ids, **options) for t5 in (model, restored))
    assert torch.equal(first, second) and first.unique().numel() > 2


def test_a_published_t5_has_100_sentinels_of_one_token(tmp_path):
    _, (_, tokenizer), (_, restored_tokenizer) = load_published_t5(tmp_path)
    for loaded in (tokenizer, restored_tokenizer):
        sentinels = loaded.convert_tokens_to_ids([f"<extra_id_{k}>" for k in range(100)])
        assert sentinels == list(range(141, 41, -1))
        parts = [
            loaded(text, add_special_tokens=False).input_ids
            for text in tiny_flexmuse.CHINESE_TEXTS[:2]
        ]
        joined = loaded("<extra_id_0>".join(tiny_flexmuse.CHINESE_TEXTS[:2])).input_ids
        assert joined == [*parts[0], 141, *parts[1], loaded.eos_token_id]
        assert "<" not in loaded.decode(joined, skip_special_tokens=True)


@pytest.mark.parametrize(
    "text",
    [
        "<extra_id_0>",
        "<extra_<extra_id_0>id_1>",
        "<</s>/s>",
        "<<</s>/s>/s>",
        "\uff1c/s\uff1e",  # in full-width letters, which NFKC maps to ASCII
        "\uff1cextra_id_1\uff1e<pad>",
    ],
)
def test_no_text_encodes_to_a_special_token(tmp_path, text):
    _, (_, named), (_, restored) = load_published_t5(tmp_path)
    _, tiny = decoders.create_decoder("tiny", CONFIG, 16, tiny_flexmuse.TEXTS * 4, 4)
    for tokenizer in (named, restored, tiny):
        special = [tokenizer.pad_token_id, tokenizer.eos_token_id]
        special += decoders.get_sentinel_ids(tokenizer, 4)
        assert not set(special) & set(decoders.encode_text(f"a {text} b", tokenizer))
        plain = decoders.encode_text(tiny_flexmuse.TEXTS[0], tokenizer)
        assert plain == tokenizer(tiny_flexmuse.TEXTS[0], add_special_tokens=False).input_ids


def test_a_sentencepiece_t5_cannot_encode_a_line_break(tmp_path):
    """This is why sentinels separate the paragraphs of an article."""
    _, (_, tokenizer), _ = load_published_t5(tmp_path)
    ids = tokenizer("米饭\n红烧肉", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == "米饭 红烧肉"


def test_ids_without_a_token_decode_to_nothing(tmp_path):
    _, (_, tokenizer), (_, restored_tokenizer) = load_published_t5(tmp_path)
    ids = tokenizer("米饭", add_special_tokens=False).input_ids
    for loaded in (tokenizer, restored_tokenizer):
        assert loaded.decode([ids[0], 150, *ids[1:], 169]) == "米饭"


def test_chinese_punctuation_is_restored_after_a_tokenizer_maps_it_to_ascii(tmp_path):
    _, (_, tokenizer), _ = load_published_t5(tmp_path)
    assert decoders.maps_punctuation_to_ascii(tokenizer)
    assert not decoders.maps_punctuation_to_ascii(
        decoders.train_tokenizer(tiny_flexmuse.CHINESE_TEXTS, 400)
    )
    ids = tokenizer(tiny_flexmuse.CHINESE_TEXTS[0]).input_ids
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert (
        text == "红烧肉放糖两勺,小火炖。"
        and decoders.restore_full_width(text) == tiny_flexmuse.CHINESE_TEXTS[0]
    )


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("好吗?!", "好吗？！"),
        ("他(小明)说:走...", "他（小明）说：走…"),
        ("用T5,然后", "用T5，然后"),
        ("12:30, a cat (red)?", "12:30, a cat (red)?"),
        ("カレー,です", "カレー，です"),
    ],
)
def test_punctuation_becomes_full_width_next_to_cjk_characters(narrow, wide):
    assert decoders.restore_full_width(narrow) == wide
