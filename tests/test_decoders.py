import json

import pytest
import torch

from stages.shared import decoders
from stages.shared.stage import WrongInput
from tests import writers

TINY = decoders.Params(decoders.Tiny(vocabulary=400, layers=2, d_ff=32, heads=4, dropout=0.0))


@pytest.mark.parametrize(
    "text", ["a red cat sleeps", "红烧肉，放糖 2 勺", "naïve 😀 emoji", "two  blanks and\nlines"]
)
def test_any_script_survives_a_vocabulary_that_never_saw_it(text):
    tokenizer = decoders.train_tokenizer(writers.TEXTS * 4, 400)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_the_vocabulary_keeps_its_limit_and_shortens_what_recurs():
    tokenizer = decoders.train_tokenizer(writers.TEXTS * 4, 300)
    assert len(tokenizer) <= 300
    longer = decoders.train_tokenizer(writers.TEXTS * 4, 400)
    counts = [len(t(writers.TEXTS[0]).input_ids) for t in (tokenizer, longer)]
    assert counts[1] < counts[0] < len(writers.TEXTS[0])


@pytest.mark.parametrize("tied", [True, False])
def test_a_named_t5_is_loaded_with_its_weights_and_restored_without_them(tmp_path, tied):
    saved = writers.t5()
    saved.config.tie_word_embeddings = tied
    tokenizer = decoders.train_tokenizer(writers.TEXTS, 300)
    saved.resize_token_embeddings(len(tokenizer))
    saved.save_pretrained(tmp_path / "named")
    tokenizer.save_pretrained(tmp_path / "named")
    model, found = decoders.create(str(tmp_path / "named"), TINY, 16, [])
    for name, weight in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    assert found(writers.TEXTS[0]).input_ids == tokenizer(writers.TEXTS[0]).input_ids
    (tmp_path / "run").mkdir()
    decoders.save(tmp_path / "run", model, found)
    again, tokens = decoders.restore(tmp_path / "run")
    again.load_state_dict(model.state_dict())
    labels = torch.tensor([tokens(writers.TEXTS[0]).input_ids])
    losses = [one.eval()(input_ids=labels, labels=labels).loss for one in (model, again)]
    torch.testing.assert_close(*losses)


def test_a_name_that_does_not_exist_is_one_sentence(tmp_path):
    with pytest.raises(WrongInput, match="decoder no/such-model cannot be loaded"):
        decoders.create("no/such-model", TINY, 16, [])


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    writers.t5().save_pretrained(tmp_path)
    decoders.train_tokenizer(writers.TEXTS, 300).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lacking = {k: v for k, v in weights.items() if "decoder.block.1" not in k}
    save_file(lacking, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WrongInput, match=r"lacks weights of a T5: decoder\.block\.1"):
        decoders.create(str(tmp_path), TINY, 16, [])


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    decoders.train_tokenizer(writers.TEXTS, 300).save_pretrained(tmp_path)
    config = {"model_type": "bert", "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WrongInput, match="cannot be loaded"):
        decoders.create(str(tmp_path), TINY, 16, [])
