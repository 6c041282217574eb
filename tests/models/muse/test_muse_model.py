"""MuSE as a whole. The eleven bugs of the public code, with the test or the reason for each:

1 the last batch of a split is dropped: `test_predictions_do_not_depend_on_batch_composition`;
2 images to generate are not in [-1, 1]: `uint8_to_float` of pixelcnn.py converts bytes;
3 padding is attended to: `test_neither_neighbors_nor_padding_change_an_item`;
4 padding is exchanged first, 7 loops over tokens, 9 in-place writes: test_muse_exchange.py;
5 an image needs as many cells as a text has subwords:
  `test_a_text_may_have_more_subwords_than_an_image_has_cells`;
6 captions exceed their limit: `Vocabulary.encode` of show_attend_tell.py, bounds of `max_length`;
8 shapes of the first batch are kept: `test_a_smaller_batch_may_follow_a_larger_one`;
10 items without image get the image of one tweet: test_muse_missing_modality.py;
11 swallowed errors and fixed devices: ruff forbids bare excepts; tensors are created on the device
   of their inputs.
"""

from dataclasses import asdict
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.models.muse import model as muse
from stages.shared.core.config import build_config
from stages.shared.runtime.stage import InputError
from tests.support import tiny_muse
from tests.support.tiny_muse import (
    TEXT_ONLY,
    VARIANTS,
    build_model,
    build_model_config,
    make_batch,
    make_full_batch,
    to_double,
    variant_id,
)


def by_item(outputs) -> list:
    """Predictions as (labels, probability) per item."""
    return list(zip(outputs.labels, outputs.probability, strict=True))


# -------------------------------------------------------------------------------------- config
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mu": 0}, "mu is 0 and eta is 3: give 1 <= mu <= eta <= num_layers .3."),
        ({"mu": 3, "eta": 2}, "give 1 <= mu <= eta"),
        ({"eta": 4}, "give 1 <= mu <= eta"),
        ({"theta": 1.0}, "theta is 1.0: give less than 1"),
        ({"dropout": -0.1, "head_dropout": 1.0}, "dropout is -0.1: .*; muse.head_dropout is 1.0"),
        ({"min_exchanged_tokens": -1}, "min_exchanged_tokens is -1: give 0 or more"),
        ({"sigma": float("nan")}, "sigma is nan: give a finite number"),
        ({"d_model": 0}, "d_model is 0: give 1 or more"),
        ({"num_heads": 0}, "num_heads is 0: give 1 or more"),
        ({"num_heads": 3}, "d_model is 8: give a multiple of num_heads .3."),
        ({"text_drop_prob": -0.1}, "text_drop_prob is -0.1: give 0 or more"),
        ({"image_drop_prob": 0.6, "text_drop_prob": 0.5}, "image_drop_prob [+] text_drop_prob exc"),
        ({"captioning__alpha": -1.0}, "captioning.alpha is -1.0: give 0 or more"),
        ({"captioning__min_count": 0}, "captioning.min_count is 0: give 1 or more"),
        ({"captioning__max_length": 2}, "captioning.max_length is 2: give 3 or more"),
        ({"image_generation__beta": -1.0}, "beta is -1.0: give 0 or more"),
        ({"image_generation__lr_multiplier": -1.0}, "lr_multiplier is -1.0: give 0 or more"),
        ({"image_generation__max_images_per_batch": 0}, "max_images_per_batch is 0: give 1"),
        ({"fusion": "text"}, "fusion text has no regularizers"),
    ],
)
def test_values_out_of_bounds_are_rejected(changes, sentence):
    values = asdict(build_model_config())
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (values[part] if part else values)[key] = value
    with pytest.raises(InputError, match=sentence):
        build_config(muse.ModelConfig, values, "muse")


def test_fusion_layers_are_counted_from_one_and_include_eta():
    config = build_model_config(num_layers=6, mu=2, eta=4)
    assert [layer for layer in range(1, 7) if config.is_fusion_layer(layer)] == [2, 3, 4]


# ------------------------------------------------------------------------------- CrossTransformer
def torch_layer(layer, config: muse.ModelConfig):
    """PyTorch's encoder layer with the same weights."""
    d = config.d_model
    peer = nn.TransformerEncoderLayer(
        d, config.num_heads, config.d_ff, 0.0, batch_first=True, norm_first=config.norm == "pre"
    ).double()
    own, ffn = layer.own, layer.ffn
    state = {
        "self_attn.in_proj_weight": torch.cat([own.query.weight, own.key_value.weight]),
        "self_attn.in_proj_bias": torch.cat([own.query.bias, own.key_value.bias]),
    }
    for ours, theirs in (
        (own.out, "self_attn.out_proj"),
        (ffn[0], "linear1"),
        (ffn[3], "linear2"),
        (layer.own_norm, "norm1"),
        (layer.ffn_norm, "norm2"),
    ):
        state |= {f"{theirs}.weight": ours.weight, f"{theirs}.bias": ours.bias}
    peer.load_state_dict(state)
    return peer.eval()


def make_streams(transformer):
    """Random X_t and X_v, their masks, and has_both, all true."""
    torch.manual_seed(3)
    d = transformer.network.d_model
    x = torch.randn(3, 6, d).double(), torch.randn(3, 5, d).double()
    masks = torch.arange(6) < torch.tensor([[6], [3], [4]]), torch.ones(3, 5, dtype=torch.bool)
    return x, masks, torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_without_exchange_each_modality_passes_through_a_plain_transformer(norm):
    transformer = muse.CrossTransformer(build_model_config(norm=norm, theta=0.0)).double().eval()
    inputs, masks, has_both = make_streams(transformer)
    outputs, traces = transformer(inputs, masks, has_both)
    for x, mask, y in zip(inputs, masks, outputs, strict=True):
        for layer in transformer.layers:
            x = torch_layer(layer, transformer.network)(x, src_key_padding_mask=~mask)
        torch.testing.assert_close(y[mask], transformer.norm(x)[mask])
    assert not any(tokens.any() for trace in traces for tokens in trace.exchanged)


@pytest.mark.parametrize("selection", ["cls_attention", "norm"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_exchange_is_between_attention_and_ffn_in_layers_mu_to_eta(norm, selection):
    """All layers as loops: heads, weights of cls, selected tokens, means."""
    config = build_model_config(norm=norm, token_selection=selection, mu=2, eta=2, theta=0.5)
    transformer = muse.CrossTransformer(config).double().eval()
    inputs, masks, has_both = make_streams(transformer)
    outputs, traces = transformer(inputs, masks, has_both)
    width = config.d_model // config.num_heads
    for item in range(3):
        x = [s[item, mask[item]] for s, mask in zip(inputs, masks, strict=True)]
        for number, layer in enumerate(transformer.layers, 1):
            selected = []
            for modality, stream in enumerate(x):
                read = layer.own_norm(stream) if norm == "pre" else stream
                q, (k, v) = layer.own.query(read), layer.own.key_value(read).chunk(2, -1)
                heads, cls_weights = [], 0
                for head in range(config.num_heads):
                    part = slice(head * width, (head + 1) * width)
                    weights = (q[:, part] @ k[:, part].T / width**0.5).softmax(-1)
                    heads.append(weights @ v[:, part])
                    cls_weights = cls_weights + weights[0] / config.num_heads
                attended = stream + layer.own.out(torch.cat(heads, -1))
                x[modality] = attended if norm == "pre" else layer.own_norm(attended)
                valid = len(stream) - 1
                actual = traces[number - 1].weights[modality][item, :valid]
                torch.testing.assert_close(actual, cls_weights[1:])
                norms = x[modality][1:].norm(dim=-1)
                scores = cls_weights[1:] if selection == "cls_attention" else norms
                selected.append(scores.argsort()[: max(valid // 2, 1)] + 1)
            if number == 2:
                means = [stream[1:].mean(0) for stream in x]
                for modality, tokens in enumerate(selected):
                    x[modality] = x[modality].index_put((tokens,), means[1 - modality])
                    where = traces[1].exchanged[modality][item].nonzero()[:, 0] + 1
                    assert where.tolist() == sorted(tokens.tolist())
            x = [feed_forward_by_hand(layer, stream, norm) for stream in x]
        for y, mask, stream in zip(outputs, masks, x, strict=True):
            torch.testing.assert_close(y[item, mask[item]], transformer.norm(stream))
    assert not any(tokens.any() for trace in (traces[0], traces[2]) for tokens in trace.exchanged)


def feed_forward_by_hand(layer, x, norm):
    normed = layer.ffn_norm(x) if norm == "pre" else x
    output = x + F.linear(F.relu(layer.ffn[0](normed)), layer.ffn[3].weight, layer.ffn[3].bias)
    return output if norm == "pre" else layer.ffn_norm(output)


def test_the_weights_for_token_selection_have_no_attention_dropout():
    """Before the attention of the first layer there is no dropout."""
    transformer = muse.CrossTransformer(build_model_config(dropout=0.5, mu=1)).double()
    inputs = make_streams(transformer)
    for actual, expected in zip(
        transformer.train()(*inputs)[1][0].weights,
        transformer.eval()(*inputs)[1][0].weights,
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_random_selection_is_sampled_in_training_and_fixed_otherwise():
    transformer = muse.CrossTransformer(
        build_model_config(token_selection="random", theta=0.4)
    ).double()
    inputs = make_streams(transformer)

    def select():
        return [trace.exchanged[1].tolist() for trace in transformer(*inputs)[1]]

    assert len({str(select()) for _ in range(8)}) > 4
    transformer.eval()
    assert select() == select()
    assert select()[1] != select()[2]  # of two layers


@pytest.mark.parametrize("fusion", ["exchange", "concatenation", "cross_attention"])
def test_modalities_interact_only_in_layers_mu_to_eta(fusion):
    """The text does not depend on the image up to layer mu - 1, and does after it."""
    depends = []
    for layers in (1, 2):
        torch.manual_seed(0)
        config = build_model_config(fusion=fusion, num_layers=2, mu=2, eta=2)
        transformer = muse.CrossTransformer(config).double().eval()
        transformer.layers = transformer.layers[:layers]
        (text, image), masks, has_both = make_streams(transformer)
        outputs, _ = transformer((text, image), masks, has_both)
        other, _ = transformer((text, torch.randn_like(image)), masks, has_both)
        depends.append(not torch.equal(outputs[0], other[0]))
    assert depends == [False, True]


def test_cross_attention_matches_torch_and_uses_the_values_before_it():
    config = build_model_config(fusion="cross_attention", norm="post", num_layers=1, mu=1, eta=1)
    transformer = muse.CrossTransformer(config).double().eval()
    inputs, masks, has_both = make_streams(transformer)
    outputs, _ = transformer(inputs, masks, has_both)
    layer = transformer.layers[0]
    peer = nn.MultiheadAttention(config.d_model, config.num_heads, batch_first=True).double().eval()
    across = layer.across
    peer.load_state_dict(
        {
            "in_proj_weight": torch.cat([across.query.weight, across.key_value.weight]),
            "in_proj_bias": torch.cat([across.query.bias, across.key_value.bias]),
            "out_proj.weight": across.out.weight,
            "out_proj.bias": across.out.bias,
        }
    )
    x = [layer.self_attention(s, mask)[0] for s, mask in zip(inputs, masks, strict=True)]
    for own, other in ((0, 1), (1, 0)):
        attended, _ = peer(x[own], x[other], x[other], key_padding_mask=~masks[other])
        expected = layer.feed_forward(layer.across_norm(x[own] + attended))
        torch.testing.assert_close(outputs[own], expected)


# -------------------------------------------------------------------------------------- invariances
ITEMS = [0, 1, 2, 6, 7]


@pytest.mark.parametrize("task", ["entities", "sentiment"])
@pytest.mark.parametrize("changes", VARIANTS, ids=variant_id)
def test_neither_neighbors_nor_padding_change_an_item(task, changes):
    model = build_model(task, **changes).double().eval()
    batch = to_double(make_batch(*ITEMS))
    logits = model.compute_logits(batch, model.encode(batch))
    metrics = muse.diagnostics(model, batch) | muse.evaluate_regularizers(model, batch)
    for position, index in enumerate(ITEMS):
        single = to_double(make_batch(index))
        own = model.compute_logits(single, model.encode(single))[0]
        own = own if task == "sentiment" else own[: len(tiny_muse.TEXTS[index])]
        torch.testing.assert_close(own, logits[position, : len(own)].reshape(own.shape))
        actual = muse.diagnostics(model, single) | muse.evaluate_regularizers(model, single)
        if index in (*tiny_muse.WITHOUT_IMAGE, *tiny_muse.WITHOUT_TEXT):
            assert not actual and all(values[position].isnan() for values in metrics.values())
            continue
        assert actual.keys() == metrics.keys()
        for key, values in metrics.items():
            torch.testing.assert_close(actual[key][0], values[position], equal_nan=True)


def test_padding_is_attended_to_and_exchanged_if_it_is_ignored_as_in_the_public_code():
    """Texts 0 and 2 have 4 and 8 subwords: a share of 0.3 is 1 and 2 tokens."""
    inputs = to_double(make_batch(0, 2))
    for padding_mask, expected in (("ignored", [[2, 2], [1, 1]]), ("respected", [[1, 2], [1, 1]])):
        model = build_model("sentiment", padding_mask=padding_mask).double().eval()
        trace = muse.attention_maps(model, inputs)[1]
        assert [tokens.sum(1).tolist() for tokens in trace.exchanged] == expected
    unfused = [
        build_model("sentiment", theta=0.0, padding_mask=padding_mask).double().eval()
        for padding_mask in ("ignored", "respected")
    ]
    unpadded = inputs | {"pieces_mask": torch.ones_like(inputs["pieces_mask"])}
    ignored, respected = (
        model.compute_logits(batch, model.encode(batch))
        for model, batch in zip(unfused, (inputs, unpadded), strict=True)
    )
    torch.testing.assert_close(ignored, respected)
    padded = unfused[1].compute_logits(inputs, unfused[1].encode(inputs))
    assert not torch.allclose(ignored[0], padded[0])


@pytest.mark.parametrize("task", ["entities", "sentiment"])
@pytest.mark.parametrize("changes", [{}, TEXT_ONLY, {"image_pooling": "cell"}], ids=variant_id)
def test_predictions_do_not_depend_on_batch_composition(task, changes):
    model = build_model(task, pixels=True, **changes).eval()
    all_items = by_item(muse.predict(model, make_full_batch()))
    assert len(all_items) == 8
    for size in (1, 3, 5):
        parts = [range(start, min(start + size, 8)) for start in range(0, 8, size)]
        predictions = [muse.predict(model, make_batch(*part)) for part in parts]
        outputs = [item for prediction in predictions for item in by_item(prediction)]
        assert [labels for labels, _ in outputs] == [labels for labels, _ in all_items]
        for (_, a), (_, b) in zip(outputs, all_items, strict=True):
            assert a == pytest.approx(b, abs=1e-5)
    assert by_item(muse.predict(model, make_batch(*reversed(range(8)))))[0][0] == all_items[-1][0]


def test_a_smaller_batch_may_follow_a_larger_one():
    model = build_model().train()
    for indices in (range(8), (3, 5), (2,)):
        assert torch.isfinite(sum(muse.compute_loss(model, make_batch(*indices)).values()))


def test_a_text_may_have_more_subwords_than_an_image_has_cells():
    """With four cells, the sixth subword gets the same cell as the second."""
    model = build_model(image_pooling="cell")
    words, cells = torch.zeros(1, 2, 8), torch.arange(32.0).view(1, 4, 8)
    outputs = model.image_context(words, cells, torch.tensor([[1, 5]]))
    assert torch.equal(outputs[0, 0], outputs[0, 1])
    assert torch.equal(outputs[0, 0], cells[0, 1])


# -------------------------------------------------------------------------------------- the heads
def enumerate_paths(model, scores, tags):
    """log p of one text's tags and the best tags, by enumerating all tag sequences."""
    crf = model.crf

    def total(path):
        ends = crf.start_transitions[path[0]] + crf.end_transitions[path[-1]]
        steps = sum(crf.transitions[a, b] for a, b in pairwise(path))
        return ends + steps + sum(scores[word, tag] for word, tag in enumerate(path))

    paths = list(product(range(tiny_muse.TAGS), repeat=len(tags)))
    totals = torch.stack([total(path) for path in paths])
    return total(tags) - totals.logsumexp(0), list(paths[int(totals.argmax())])


def test_the_loss_and_the_best_tags_equal_those_of_all_enumerated_paths():
    model = build_model(sigma=2.0).double().eval()
    nn.init.normal_(model.crf.transitions)
    inputs = to_double(make_batch(0, 1, 5))
    logits = model.compute_logits(inputs, model.encode(inputs))
    outputs = [
        enumerate_paths(model, logits[i], inputs["tags"][i, : len(tiny_muse.TEXTS[index])].tolist())
        for i, index in enumerate((0, 1, 5))
    ]
    expected = -2 * sum(log_p for log_p, _ in outputs) / 3  # nats a text, times sigma
    torch.testing.assert_close(muse.compute_loss(model, inputs)["task"], expected)
    predictions = muse.predict(model, inputs)
    assert predictions.labels == [best for _, best in outputs]
    assert predictions.probability == [[], [], []]


def test_a_word_is_classified_from_its_first_subword_and_its_image_context():
    model = build_model(head="linear", image_pooling="attention").double().eval()
    inputs = to_double(make_batch(2, 4))
    encoded = model.encode(inputs)
    (text, image), _ = model.apply_cross_transformer(inputs, encoded)
    logits = model.compute_logits(inputs, encoded)
    for item, index in enumerate((2, 4)):
        for word in range(len(tiny_muse.TEXTS[index])):
            y = text[item, 1 + sum(tiny_muse.TEXTS[index][:word])]
            query, cells = model.query_cells(y), image[item, 1:]
            weights = torch.stack([query @ cell / 8**0.5 for cell in cells]).softmax(0)
            context = sum(w * cell for w, cell in zip(weights, cells, strict=True))
            expected = model.head.classify(model.head.mix(torch.cat([y, context])))
            torch.testing.assert_close(logits[item, word], expected)


def test_a_label_is_predicted_from_both_cls_with_its_probability():
    model = build_model("sentiment", sigma=0.5).double().eval()
    inputs = to_double(make_full_batch())
    encoded = model.encode(inputs)
    (text, image), _ = model.apply_cross_transformer(inputs, encoded)
    hidden = F.relu(model.head.mix(torch.cat([text[:, 0], image[:, 0]], 1)))
    log_p = model.head.classify(hidden).log_softmax(-1)
    expected = -0.5 * log_p[torch.arange(8), inputs["label"]].mean()
    torch.testing.assert_close(muse.compute_loss(model, inputs)["task"], expected)
    outputs = muse.predict(model, inputs)
    assert outputs.labels == log_p.argmax(-1)[:, None].tolist()
    assert [p for (p,) in outputs.probability] == pytest.approx(log_p.exp().amax(-1).tolist())


@pytest.mark.parametrize("task", ["entities", "sentiment"])
def test_fusion_text_reads_only_the_text_encoder(task):
    model = build_model(task, **TEXT_ONLY).eval()
    parts = {name.partition(".")[0] for name, _ in model.named_parameters()}
    assert parts == {"text_encoder", "no_text", "head"} | ({"crf"} if task == "entities" else set())
    inputs = make_full_batch()
    other = inputs | {"picture": torch.randn_like(inputs["picture"])}
    assert muse.predict(model, inputs) == muse.predict(model, other)
    assert muse.attention_maps(model, inputs) == [] and muse.pooled_embeddings(model, inputs) == {}


def test_text_of_the_width_of_the_model_is_not_projected():
    model = build_model(width=8, norm="post").eval()
    inputs = make_batch(0)
    assert torch.equal(model.encode(inputs).streams[0], model.encode(inputs).text_states)
