import math

import pytest
import torch

from stages.models.flexmuse import model as flexmuse
from stages.models.flexmuse.model import (
    CrossModalFusion,
    PreferenceConfig,
    gate,
    map_sigma,
    mask_probability,
)
from stages.shared.generation.chunk_dataset import ChunkDataset, LengthLimits
from stages.shared.generation.decoding import generate
from tests.support import tiny_flexmuse

VOCABULARY = 300
NUMBERS = PreferenceConfig(beta=0.1, loss_type="pairwise", length_normalized=False, sft_weight=0.0)


def written(writer, memory, *how):
    """Ids of what is written from a memory; how: most tokens, beams, temperature, top_p."""
    return generate(writer.t5, memory.hidden, memory.mask, *how)


@pytest.fixture(scope="module")
def chunks():
    return tiny_flexmuse.build_chunk_dataset()


@pytest.fixture(scope="module")
def batch(chunks):
    return chunks.batch(list(range(8)))


def model(chunks, **changes):
    return tiny_flexmuse.build_model(vocabulary=len(chunks.tokenizer), **changes)


def double(batch):
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


# ---------------------------------------------------------------------------------------- the gate
@pytest.mark.parametrize(
    ("mode", "passes"),
    [
        ("always_pass", [1, 1, 1]),
        ("always_mask", [0, 0, 0]),
        ("threshold", [1, 0, 0]),  # masked where sigma >= u0 = 0.5
        ("expected", [1.0, 0.5, 0.2]),  # 1 - P(mask); a negative sigma never masks
    ],
)
def test_gate_modes_by_hand(mode, passes):
    sigma = torch.tensor([-0.3, 0.5, 0.8])
    torch.testing.assert_close(
        gate(sigma, mode, tiny_flexmuse.build_model_config()), torch.tensor(passes).float()
    )
    masked = mask_probability(
        sigma, mode, tiny_flexmuse.build_model_config()
    )  # of one outcome, or the share of it
    torch.testing.assert_close(masked, 1 - torch.tensor(passes).float())


def test_a_threshold_of_zero_lets_a_negative_similarity_pass():
    network = tiny_flexmuse.build_model_config(gate_threshold=0.0)
    passed = gate(torch.tensor([-0.2, 0.0, 0.3]), "threshold", network)
    assert passed.tolist() == [1, 0, 0]


def test_a_similarity_band_without_width_is_refused():
    with pytest.raises(ValueError, match="sigma_min must be below sigma_max"):
        tiny_flexmuse.build_model_config(sigma_min=0.5, sigma_max=0.5)


def test_a_topic_is_not_appended_twice():
    with pytest.raises(ValueError, match="a concatenation already holds the topic"):
        tiny_flexmuse.build_model_config(fusion="concatenation", append_topic=True)


def test_a_corpus_without_titles_still_trains():
    rows = [row | {"title": ""} for row in tiny_flexmuse.make_chunk_rows()]
    bare = ChunkDataset(
        rows,
        tiny_flexmuse.build_features(),
        tiny_flexmuse.build_chunk_dataset().tokenizer,
        LengthLimits(8, 24),
    )
    writer = model(bare)
    writer.fit_normalization(bare.features, list(range(5)), [])
    assert torch.isfinite(flexmuse.sft_loss(writer.train(), bare.batch([0, 1]))["ntp"])


def test_sampled_gate_masks_as_often_as_sigma_says():
    torch.manual_seed(0)
    sigma = torch.tensor([-1.0, 0.0, 0.3, 1.0]).repeat_interleave(20_000)
    masked = 1 - gate(sigma, "sample", tiny_flexmuse.build_model_config()).view(4, -1).mean(1)
    torch.testing.assert_close(masked, torch.tensor([0.0, 0.0, 0.3, 1.0]), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["raw", "affine", "minmax"])
def test_the_probability_of_a_mask_is_how_often_it_is_sampled(kind):
    torch.manual_seed(0)
    network = tiny_flexmuse.build_model_config(sigma_map=kind, sigma_min=-0.2, sigma_max=0.6)
    sigma = torch.tensor([-1.0, -0.1, 0.3, 0.7])
    often = 1 - gate(sigma.repeat_interleave(20_000), "sample", network).view(4, -1).mean(1)
    torch.testing.assert_close(often, mask_probability(sigma, "sample", network), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("raw", [-0.5, 0.2, 1.0]), ("affine", [0.25, 0.6, 1.0]), ("minmax", [-0.375, 0.5, 1.5])],
)
def test_sigma_maps_by_hand(kind, expected):
    network = tiny_flexmuse.build_model_config(sigma_map=kind, sigma_min=-0.2, sigma_max=0.6)
    torch.testing.assert_close(
        map_sigma(torch.tensor([-0.5, 0.2, 1.0]), network), torch.tensor(expected)
    )


# -------------------------------------------------------------------------------------- the fusion
@pytest.mark.parametrize("projection", ["linear", "elementwise"])
@pytest.mark.parametrize(
    "correlation, scale, divisor",
    [
        ("channel", "mean", 3),
        ("channel", "root", math.sqrt(3)),
        ("channel", "sum", 1),
        ("mmcot", "mean", 0),
    ],
)
def test_fusion_matches_its_equations_written_as_loops(projection, correlation, scale, divisor):
    torch.manual_seed(0)
    network = tiny_flexmuse.build_model_config(
        projection=projection, correlation=correlation, correlation_scale=scale
    )
    fusion = CrossModalFusion(4, network).double()
    picture, topic = torch.randn(1, 3, 4).double(), torch.randn(1, 5, 4).double()
    mask = torch.tensor([[True, True, True, False, True]])
    fused, balance, _ = fusion(picture, topic, mask)
    seen = torch.zeros(3, 4).double()  # Z^A
    for p in range(3):
        q, weights = fusion.query(picture[0, p]), []
        for t in range(5):
            score = (q * fusion.key(topic[0, t])).sum() / math.sqrt(4)
            weights.append(score.exp() if mask[0, t] else 0.0)
        for t in range(5):
            seen[p] += weights[t] / sum(weights) * fusion.value(topic[0, t])
    if correlation == "channel":
        product = seen.T @ picture[0]  # (Z^A)^T Z^V, (D, D)
        expected = torch.sigmoid(fusion.weigh.weight @ product / divisor)
    else:
        expected = torch.sigmoid(fusion.weigh_text(seen) + fusion.weigh_picture(picture[0]))
    torch.testing.assert_close(balance[0], expected)
    mixed = (1 - expected) * seen + expected * picture[0]
    torch.testing.assert_close(fused[0], fusion.norm(mixed))


def test_a_masked_topic_leaves_exactly_nothing_and_lambda_one_half():
    fusion = CrossModalFusion(4, tiny_flexmuse.build_model_config())
    picture, mask = torch.randn(2, 3, 4), torch.ones(2, 5, dtype=torch.bool)
    fused, balance, _ = fusion(picture, torch.zeros(2, 5, 4), mask)
    assert torch.equal(balance, torch.full((2, 1, 4), 0.5))
    torch.testing.assert_close(fused, fusion.norm(0.5 * picture), rtol=0, atol=0)


# ----------------------------------------------------------------------------------- flexible input
def test_a_missing_topic_and_a_missing_picture_change_what_is_attended_to(chunks, batch):
    writer = model(chunks).eval()
    nothing = torch.zeros(8, dtype=torch.bool)
    no_topic = batch | {"has_topic": nothing}
    other_topic = no_topic | {"topic": torch.randn_like(batch["topic"])}
    first, second = (writer.encode(b, "always_pass").hidden for b in (no_topic, other_topic))
    assert torch.equal(first, second)
    assert not writer.encode(no_topic, "always_pass").gate.any()
    no_picture = batch | {"has_picture": nothing}
    other_picture = no_picture | {"patches": torch.randn_like(batch["patches"])}
    memories = [writer.encode(b, "always_mask") for b in (no_picture, other_picture)]
    assert torch.equal(memories[0].hidden, memories[1].hidden)
    assert memories[0].gate.all()  # nothing makes the topic redundant


def test_shares_that_pass_one_are_refused():
    with pytest.raises(
        ValueError, match=r"image_drop_prob \+ topic_drop_prob must not exceed 1"
    ):
        tiny_flexmuse.build_model_config(image_drop_prob=0.6, topic_drop_prob=0.6)


# ---------------------------------------------------------------------------------------------- SFT
VARIANTS = [
    {},
    {"t5_input": "inputs_embeds"},
    {"append_topic": True},
    {"append_topic": True, "t5_input": "inputs_embeds"},
    {"correlation": "mmcot", "projection": "elementwise"},
    {"fusion": "concatenation"},
    {"fusion": "concatenation", "t5_input": "inputs_embeds"},
]


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("learned", [False, True])
def test_every_weight_learns_and_one_batch_is_memorised(changes, learned):
    chunks = tiny_flexmuse.build_chunk_dataset(learned)
    writer = model(chunks, learned=learned, image_drop_prob=0.1, **changes)
    batch = chunks.batch(list(range(8)))
    optimizer = torch.optim.AdamW(writer.parameters(), lr=0.01)
    torch.manual_seed(0)
    moved = {name: False for name, _ in writer.named_parameters()}
    for _ in range(150):
        loss = flexmuse.sft_loss(writer.train(), batch)["ntp"]
        optimizer.zero_grad()
        loss.backward()
        for name, weight in writer.named_parameters():
            moved[name] |= weight.grad is not None and bool(weight.grad.any())
        optimizer.step()
    assert [name for name, learnt in moved.items() if not learnt] == []
    assert flexmuse.sft_loss(writer.eval(), batch)["ntp"].item() < 0.3


@pytest.mark.parametrize("changes", VARIANTS)
def test_neither_neighbours_nor_padding_change_an_item(chunks, changes):
    writer = model(chunks, **changes).double().eval()
    together = double(chunks.batch([0, 3, 7]))
    memory = writer.encode(together, "always_pass")
    scores = writer.log_probs(memory, together["labels"])
    for place, index in enumerate([0, 3, 7]):
        alone = double(chunks.batch([index]))
        score = writer.log_probs(writer.encode(alone, "always_pass"), alone["labels"])
        torch.testing.assert_close(score[0], scores[place], atol=1e-6, rtol=0)


def test_sft_loss_is_the_mean_over_tokens(chunks, batch):
    writer = model(chunks).eval()
    memory = writer.encode(batch, "always_pass")
    expected = -writer.log_probs(memory, batch["labels"]).sum() / (batch["labels"] >= 0).sum()
    torch.testing.assert_close(flexmuse.sft_loss(writer, batch)["ntp"], expected)


def test_what_is_memorised_is_written(chunks, batch):
    writer = model(chunks)
    optimizer = torch.optim.AdamW(writer.parameters(), lr=0.01)
    for _ in range(200):
        loss = flexmuse.sft_loss(writer.train(), batch)["ntp"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    writer.eval()
    for beams in (1, 3):
        memory = writer.encode(batch, "always_pass")
        ids = written(writer, memory, 24, beams, 0.0, 1.0)
        texts = chunks.tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert texts == [row["text"] for row in chunks.rows]


def test_a_drawn_text_follows_its_seed_and_its_temperature(chunks, batch):
    writer = model(chunks).eval()
    memory = writer.encode(batch, "always_pass")

    def draw(seed: int, temperature: float, top_p: float = 1.0) -> list[list[int]]:
        torch.manual_seed(seed)
        return written(writer, memory, 12, 1, temperature, top_p).tolist()

    assert draw(0, 1.0) == draw(0, 1.0) != draw(1, 1.0)
    most_probable = draw(0, 0.0)
    assert draw(0, 1e-4) == most_probable == draw(1, 1.0, top_p=1e-6)


def cross_attention(writer, memory, ids):
    """The mean over layers and heads, written out: T5 does not divide q k by a root."""
    seen, hooks = [], []
    for block in writer.t5.decoder.block:
        module = block.layer[1].EncDecAttention
        hooks.append(
            module.register_forward_pre_hook(
                lambda module, given, named: seen.append((module, given, named)), with_kwargs=True
            )
        )
    labels = ids[:, 1:].contiguous()  # T5 moves them by one, and the start token comes first
    writer.log_probs(memory, labels)
    for hook in hooks:
        hook.remove()
    rows = []
    for module, given, named in seen:
        hidden = given[0] if given else named["hidden_states"]
        for head in range(module.n_heads):
            part = slice(head * module.key_value_proj_dim, (head + 1) * module.key_value_proj_dim)
            q, k = module.q(hidden)[..., part], module.k(memory.hidden)[..., part]
            scores = (q @ k.transpose(1, 2)).masked_fill(memory.mask[:, None] == 0, -torch.inf)
            rows.append(scores.softmax(-1))
    return torch.stack(rows).mean(0)  # (B, Y, all that is attended to)


@pytest.mark.parametrize("changes", VARIANTS)
def test_where_the_decoder_looks_is_its_cross_attention_written_out(chunks, changes):
    writer = model(chunks, **changes).double().eval()
    with torch.no_grad():
        for weight in writer.t5.decoder.parameters():
            weight *= 3  # a new T5 looks everywhere alike
        batch = double(chunks.batch([0, 3, 7]))
        memory = writer.encode(batch, "always_pass")
        ids = written(writer, memory, 12, 1, 0.0, 1.0)
        usual = writer.t5.config._attn_implementation
        looks = writer.attention_maps(memory, ids)
        assert writer.t5.config._attn_implementation == usual != "eager"
        expected = cross_attention(writer, memory, ids)
    assert looks.shape == (3, ids.shape[1] - 1, 4)
    torch.testing.assert_close(looks.double(), expected[..., :4], atol=1e-5, rtol=0)
    assert expected.std() > 0.01
    total = looks.sum(-1)
    more = changes.get("append_topic") or changes.get("fusion") == "concatenation"
    assert (total < 0.99).any() if more else torch.allclose(total, torch.ones_like(total))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_loss_and_text_on_cuda_are_those_of_the_cpu(chunks, batch):
    from stages.shared.training.batching import to_device

    writer = model(chunks).eval()
    here = flexmuse.sft_loss(writer, batch)["ntp"]
    text = written(writer, writer.encode(batch, "always_pass"), 8, 1, 0.0, 1.0)
    writer, moved = writer.cuda(), to_device(batch, torch.device("cuda"))
    there = flexmuse.sft_loss(writer, moved)["ntp"]
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=0)
    with torch.autocast("cuda", torch.bfloat16):
        half = flexmuse.sft_loss(writer, moved)["ntp"]
    assert abs(half.item() - here.item()) < 0.1
    memory = writer.encode(moved, "always_pass")
    assert torch.equal(written(writer, memory, 8, 1, 0.0, 1.0).cpu(), text)
