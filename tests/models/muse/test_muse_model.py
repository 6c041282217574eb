"""MuSE as a whole. The eleven faults of the public code, and where each has its test or reason:

1 the last batch of a split dropped: `test_every_item_is_decided_however_it_is_batched`;
2 pictures to draw outside -1 to 1: they are made of bytes by `from_bytes` of pixelcnn.py;
3 padding attended to: `test_neither_neighbours_nor_padding_change_an_item`;
4 padding exchanged first, 7 a loop over tokens, 9 writing in place: tests/models/muse/test_muse_exchange.py;
5 as many cells as pieces: `test_a_text_may_be_longer_than_a_picture_has_cells`;
6 captions above their limit: Vocabulary.encode of nic_att.py, and `at_most` is bounded below;
8 shapes kept from the first batch: `test_a_smaller_batch_may_follow_a_larger_one`;
10 one tweet's picture for those without: a learned one, tests/models/muse/test_muse_missing_modality.py;
11 errors swallowed, devices fixed: ruff forbids bare excepts; tensors are made beside others.
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


def each(found) -> list:
    """What `decide` says, item by item."""
    return list(zip(found.labels, found.probability, strict=True))


# -------------------------------------------------------------------------------------- the numbers
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


def test_layers_count_from_one_and_eta_is_among_them():
    every = build_model_config(num_layers=6, mu=2, eta=4)
    assert [layer for layer in range(1, 7) if every.is_fusion_layer(layer)] == [2, 3, 4]


# ------------------------------------------------------------------------------- CrossTransformer
def torch_layer(layer, of: muse.ModelConfig):
    """PyTorch's own encoder layer with the same weights."""
    d = of.d_model
    peer = nn.TransformerEncoderLayer(
        d, of.num_heads, of.d_ff, 0.0, batch_first=True, norm_first=of.norm == "pre"
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


def streams(crossing):
    """X_t, X_v of random numbers, their masks, and that both are there."""
    torch.manual_seed(3)
    d = crossing.network.d_model
    x = torch.randn(3, 6, d).double(), torch.randn(3, 5, d).double()
    masks = torch.arange(6) < torch.tensor([[6], [3], [4]]), torch.ones(3, 5, dtype=torch.bool)
    return x, masks, torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_without_exchange_each_modality_passes_a_plain_transformer(norm):
    crossing = muse.CrossTransformer(build_model_config(norm=norm, theta=0.0)).double().eval()
    given, masks, both = streams(crossing)
    found, traces = crossing(given, masks, both)
    for x, mask, y in zip(given, masks, found, strict=True):
        for layer in crossing.layers:
            x = torch_layer(layer, crossing.network)(x, src_key_padding_mask=~mask)
        torch.testing.assert_close(y[mask], crossing.norm(x)[mask])
    assert not any(places.any() for trace in traces for places in trace.exchanged)


@pytest.mark.parametrize("selection", ["cls_attention", "norm"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_exchange_stands_between_attention_and_ffn_of_layers_mu_to_eta(norm, selection):
    """Every layer written out: heads, the weights of cls, the tokens chosen, the means."""
    of = build_model_config(norm=norm, token_selection=selection, mu=2, eta=2, theta=0.5)
    crossing = muse.CrossTransformer(of).double().eval()
    given, masks, both = streams(crossing)
    found, traces = crossing(given, masks, both)
    width = of.d_model // of.num_heads
    for item in range(3):
        x = [s[item, mask[item]] for s, mask in zip(given, masks, strict=True)]
        for number, layer in enumerate(crossing.layers, 1):
            chosen = []
            for place, stream in enumerate(x):
                read = layer.own_norm(stream) if norm == "pre" else stream
                q, (k, v) = layer.own.query(read), layer.own.key_value(read).chunk(2, -1)
                seen, looks = [], 0
                for head in range(of.num_heads):
                    part = slice(head * width, (head + 1) * width)
                    weights = (q[:, part] @ k[:, part].T / width**0.5).softmax(-1)
                    seen.append(weights @ v[:, part])
                    looks = looks + weights[0] / of.num_heads
                new = stream + layer.own.out(torch.cat(seen, -1))
                x[place] = new if norm == "pre" else layer.own_norm(new)
                valid = len(stream) - 1
                told = traces[number - 1].weights[place][item, :valid]
                torch.testing.assert_close(told, looks[1:])
                order = looks[1:] if selection == "cls_attention" else x[place][1:].norm(dim=-1)
                chosen.append(order.argsort()[: max(valid // 2, 1)] + 1)
            if number == 2:
                means = [stream[1:].mean(0) for stream in x]
                for place, tokens in enumerate(chosen):
                    x[place] = x[place].index_put((tokens,), means[1 - place])
                    where = traces[1].exchanged[place][item].nonzero()[:, 0] + 1
                    assert where.tolist() == sorted(tokens.tolist())
            x = [torch_feed(layer, stream, norm) for stream in x]
        for y, mask, stream in zip(found, masks, x, strict=True):
            torch.testing.assert_close(y[item, mask[item]], crossing.norm(stream))
    assert not any(places.any() for trace in (traces[0], traces[2]) for places in trace.exchanged)


def torch_feed(layer, x, norm):
    read = layer.ffn_norm(x) if norm == "pre" else x
    new = x + F.linear(F.relu(layer.ffn[0](read)), layer.ffn[3].weight, layer.ffn[3].bias)
    return new if norm == "pre" else layer.ffn_norm(new)


def test_what_is_exchanged_is_chosen_without_the_dropout_of_attention():
    """Up to the attention of the first layer nothing is dropped."""
    crossing = muse.CrossTransformer(build_model_config(dropout=0.5, mu=1)).double()
    given = streams(crossing)
    for told, wanted in zip(
        crossing.train()(*given)[1][0].weights, crossing.eval()(*given)[1][0].weights, strict=True
    ):
        torch.testing.assert_close(told, wanted)


def test_a_random_selection_is_drawn_in_training_and_fixed_otherwise():
    crossing = muse.CrossTransformer(
        build_model_config(token_selection="random", theta=0.4)
    ).double()
    given = streams(crossing)

    def places():
        return [trace.exchanged[1].tolist() for trace in crossing(*given)[1]]

    assert len({str(places()) for _ in range(8)}) > 4
    crossing.eval()
    assert places() == places()
    assert places()[1] != places()[2]  # of two layers


@pytest.mark.parametrize("fusion", ["exchange", "concatenation", "cross_attention"])
def test_modalities_meet_in_layers_mu_to_eta_only(fusion):
    """What the text sees of the picture: nothing up to layer mu - 1, something after it."""
    seen = []
    for layers in (1, 2):
        torch.manual_seed(0)
        of = build_model_config(fusion=fusion, num_layers=2, mu=2, eta=2)
        crossing = muse.CrossTransformer(of).double().eval()
        crossing.layers = crossing.layers[:layers]
        (text, picture), masks, both = streams(crossing)
        one, _ = crossing((text, picture), masks, both)
        other, _ = crossing((text, torch.randn_like(picture)), masks, both)
        seen.append(not torch.equal(one[0], other[0]))
    assert seen == [False, True]


def test_cross_attention_matches_torch_and_both_look_at_what_was_there_before():
    of = build_model_config(fusion="cross_attention", norm="post", num_layers=1, mu=1, eta=1)
    crossing = muse.CrossTransformer(of).double().eval()
    given, masks, both = streams(crossing)
    found, _ = crossing(given, masks, both)
    layer = crossing.layers[0]
    peer = nn.MultiheadAttention(of.d_model, of.num_heads, batch_first=True).double().eval()
    across = layer.across
    peer.load_state_dict(
        {
            "in_proj_weight": torch.cat([across.query.weight, across.key_value.weight]),
            "in_proj_bias": torch.cat([across.query.bias, across.key_value.bias]),
            "out_proj.weight": across.out.weight,
            "out_proj.bias": across.out.bias,
        }
    )
    x = [layer.self_attention(s, mask)[0] for s, mask in zip(given, masks, strict=True)]
    for own, other in ((0, 1), (1, 0)):
        seen, _ = peer(x[own], x[other], x[other], key_padding_mask=~masks[other])
        expected = layer.feed_forward(layer.across_norm(x[own] + seen))
        torch.testing.assert_close(found[own], expected)


# -------------------------------------------------------------------------------------- invariances
ITEMS = [0, 1, 2, 6, 7]


@pytest.mark.parametrize("task", ["entities", "sentiment"])
@pytest.mark.parametrize("changes", VARIANTS, ids=variant_id)
def test_neither_neighbours_nor_padding_change_an_item(task, changes):
    reader = build_model(task, **changes).double().eval()
    together = to_double(make_batch(*ITEMS))
    scores = reader.compute_logits(together, reader.encode(together))
    found, extra = muse.diagnostics(reader, together), muse.evaluate_regularizers(reader, together)
    for place, index in enumerate(ITEMS):
        alone = to_double(make_batch(index))
        own = reader.compute_logits(alone, reader.encode(alone))[0]
        own = own if task == "sentiment" else own[: len(tiny_muse.TEXTS[index])]
        torch.testing.assert_close(own, scores[place, : len(own)].reshape(own.shape))
        told = muse.diagnostics(reader, alone) | muse.evaluate_regularizers(reader, alone)
        for key, values in (found | extra).items():
            torch.testing.assert_close(told[key][0], values[place], equal_nan=True)


def test_padding_is_read_and_exchanged_where_the_public_code_does_so():
    """Text 0 has four pieces, text 2 eight: of four and of eight, 0.3 are one and two."""
    ignored, given = (
        build_model("sentiment", padding_mask="ignored").double().eval(),
        to_double(make_batch(0, 2)),
    )
    numbers = [
        places.sum(1).tolist() for places in muse.attention_maps(ignored, given)[1].exchanged
    ]
    assert numbers == [[2, 2], [1, 1]]
    respected = build_model("sentiment").double().eval()
    numbers = [
        places.sum(1).tolist() for places in muse.attention_maps(respected, given)[1].exchanged
    ]
    assert numbers == [[1, 2], [1, 1]]
    still = [
        build_model("sentiment", theta=0.0, padding_mask=masks).double().eval()
        for masks in ("ignored", "respected")
    ]
    whole = given | {"pieces_mask": torch.ones_like(given["pieces_mask"])}
    one, other = (
        reader.compute_logits(shown, reader.encode(shown))
        for reader, shown in zip(still, (given, whole), strict=True)
    )
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one[0], still[1].compute_logits(given, still[1].encode(given))[0])


@pytest.mark.parametrize("task", ["entities", "sentiment"])
@pytest.mark.parametrize("changes", [{}, TEXT_ONLY, {"image_pooling": "cell"}], ids=variant_id)
def test_every_item_is_decided_however_it_is_batched(task, changes):
    reader = build_model(task, pixels=True, **changes).eval()
    every = each(muse.predict(reader, make_full_batch()))
    assert len(every) == 8
    for size in (1, 3, 5):
        parts = [range(start, min(start + size, 8)) for start in range(0, 8, size)]
        found = [one for part in parts for one in each(muse.predict(reader, make_batch(*part)))]
        assert [labels for labels, _ in found] == [labels for labels, _ in every]
        for (_, a), (_, b) in zip(found, every, strict=True):
            assert a == pytest.approx(b, abs=1e-5)
    assert each(muse.predict(reader, make_batch(*reversed(range(8)))))[0][0] == every[-1][0]


def test_a_smaller_batch_may_follow_a_larger_one():
    reader = build_model().train()
    for indices in (range(8), (3, 5), (2,)):
        assert torch.isfinite(sum(muse.compute_loss(reader, make_batch(*indices)).values()))


def test_a_text_may_be_longer_than_a_picture_has_cells():
    """Item 2 has eight pieces and a picture four cells: its sixth piece is beside the second."""
    reader = build_model(image_pooling="cell")
    words, cells = torch.zeros(1, 2, 8), torch.arange(32.0).view(1, 4, 8)
    found = reader.image_context(words, cells, torch.tensor([[1, 5]]))
    assert torch.equal(found[0, 0], found[0, 1])
    assert torch.equal(found[0, 0], cells[0, 1])


# -------------------------------------------------------------------------------------- the heads
def all_paths(reader, scores, tags):
    """log p of one text's tags, over every sequence of tags."""
    crf = reader.crf

    def total(path):
        start = crf.start_transitions[path[0]] + crf.end_transitions[path[-1]]
        steps = sum(crf.transitions[a, b] for a, b in pairwise(path))
        return start + steps + sum(scores[word, tag] for word, tag in enumerate(path))

    every = list(product(range(tiny_muse.TAGS), repeat=len(tags)))
    totals = torch.stack([total(path) for path in every])
    return total(tags) - totals.logsumexp(0), list(every[int(totals.argmax())])


def test_the_loss_of_tags_and_the_best_ones_are_those_of_all_paths():
    reader = build_model(sigma=2.0).double().eval()
    nn.init.normal_(reader.crf.transitions)
    given = to_double(make_batch(0, 1, 5))
    scores = reader.compute_logits(given, reader.encode(given))
    found = [
        all_paths(reader, scores[i], given["tags"][i, : len(tiny_muse.TEXTS[index])].tolist())
        for i, index in enumerate((0, 1, 5))
    ]
    expected = -2 * sum(log_p for log_p, _ in found) / 3  # nats a text, times sigma
    torch.testing.assert_close(muse.compute_loss(reader, given)["task"], expected)
    decisions = muse.predict(reader, given)
    assert decisions.labels == [best for _, best in found]
    assert decisions.probability == [[], [], []]


def test_a_word_is_read_at_its_first_piece_beside_its_picture():
    reader = build_model(head="linear", image_pooling="attention").double().eval()
    given = to_double(make_batch(2, 4))
    encoded = reader.encode(given)
    (text, picture), _ = reader.apply_cross_transformer(given, encoded)
    scores = reader.compute_logits(given, encoded)
    for item, index in enumerate((2, 4)):
        for word in range(len(tiny_muse.TEXTS[index])):
            y = text[item, 1 + sum(tiny_muse.TEXTS[index][:word])]
            query, cells = reader.query_cells(y), picture[item, 1:]
            weights = torch.stack([query @ cell / 8**0.5 for cell in cells]).softmax(0)
            seen = sum(w * cell for w, cell in zip(weights, cells, strict=True))
            expected = reader.head.classify(reader.head.mix(torch.cat([y, seen])))
            torch.testing.assert_close(scores[item, word], expected)


def test_a_label_is_told_by_both_cls_with_its_probability():
    reader = build_model("sentiment", sigma=0.5).double().eval()
    given = to_double(make_full_batch())
    encoded = reader.encode(given)
    (text, picture), _ = reader.apply_cross_transformer(given, encoded)
    hidden = F.relu(reader.head.mix(torch.cat([text[:, 0], picture[:, 0]], 1)))
    log_p = reader.head.classify(hidden).log_softmax(-1)
    expected = -0.5 * log_p[torch.arange(8), given["label"]].mean()
    torch.testing.assert_close(muse.compute_loss(reader, given)["task"], expected)
    found = muse.predict(reader, given)
    assert found.labels == log_p.argmax(-1)[:, None].tolist()
    assert [p for (p,) in found.probability] == pytest.approx(log_p.exp().amax(-1).tolist())


@pytest.mark.parametrize("task", ["entities", "sentiment"])
def test_the_plain_tagger_reads_the_text_encoder_alone(task):
    reader = build_model(task, **TEXT_ONLY).eval()
    parts = {name.partition(".")[0] for name, _ in reader.named_parameters()}
    assert parts == {"text_encoder", "no_text", "head"} | ({"crf"} if task == "entities" else set())
    given = make_full_batch()
    other = given | {"picture": torch.randn_like(given["picture"])}
    assert muse.predict(reader, given) == muse.predict(reader, other)
    assert muse.attention_maps(reader, given) == [] and muse.pooled_embeddings(reader, given) == {}


def test_text_as_wide_as_the_model_is_read_as_it_is():
    reader = build_model(width=8, norm="post").eval()
    given = make_batch(0)
    assert torch.equal(reader.encode(given).streams[0], reader.encode(given).text_states)
