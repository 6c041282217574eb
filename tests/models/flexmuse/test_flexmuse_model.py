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
PREFERENCE = PreferenceConfig(
    beta=0.1, loss_type="pairwise", length_normalized=False, sft_weight=0.0, max_sequences=None
)


def generate_ids(model, output, *options):
    """Generated ids; options: max_tokens, num_beams, temperature, top_p."""
    return generate(model.t5, output.hidden, output.mask, *options, 0)


@pytest.fixture(scope="module")
def chunks():
    return tiny_flexmuse.build_chunk_dataset()


@pytest.fixture(scope="module")
def batch(chunks):
    return chunks.batch(list(range(8)))


def build_model(chunks, **changes):
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
def test_gate_modes_match_values_derived_by_hand(mode, passes):
    sigma = torch.tensor([-0.3, 0.5, 0.8])
    torch.testing.assert_close(
        gate(sigma, mode, tiny_flexmuse.build_model_config()), torch.tensor(passes).float()
    )
    masked = mask_probability(sigma, mode, tiny_flexmuse.build_model_config())
    torch.testing.assert_close(masked, 1 - torch.tensor(passes).float())


def test_a_threshold_of_zero_passes_a_negative_similarity():
    network = tiny_flexmuse.build_model_config(gate_threshold=0.0)
    passed = gate(torch.tensor([-0.2, 0.0, 0.3]), "threshold", network)
    assert passed.tolist() == [1, 0, 0]


def test_an_empty_similarity_range_is_rejected():
    with pytest.raises(ValueError, match="sigma_min must be below sigma_max"):
        tiny_flexmuse.build_model_config(sigma_min=0.5, sigma_max=0.5)


def test_a_concatenation_cannot_append_the_topic_again():
    with pytest.raises(ValueError, match="a concatenation already holds the topic"):
        tiny_flexmuse.build_model_config(fusion="concatenation", append_topic=True)


def test_a_corpus_without_titles_still_trains():
    rows = [row | {"title": ""} for row in tiny_flexmuse.make_chunk_rows()]
    dataset = ChunkDataset(
        rows,
        tiny_flexmuse.build_features(),
        tiny_flexmuse.build_chunk_dataset().tokenizer,
        LengthLimits(8, 24),
    )
    model = build_model(dataset)
    model.fit_normalization(dataset.features, list(range(5)), [])
    assert torch.isfinite(flexmuse.sft_loss(model.train(), dataset.batch([0, 1])).terms["ntp"])


def test_the_sampled_gate_masks_with_probability_sigma():
    torch.manual_seed(0)
    sigma = torch.tensor([-1.0, 0.0, 0.3, 1.0]).repeat_interleave(20_000)
    masked = 1 - gate(sigma, "sample", tiny_flexmuse.build_model_config()).view(4, -1).mean(1)
    torch.testing.assert_close(masked, torch.tensor([0.0, 0.0, 0.3, 1.0]), atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["raw", "affine", "minmax"])
def test_mask_probability_is_the_frequency_of_sampled_masks(kind):
    torch.manual_seed(0)
    network = tiny_flexmuse.build_model_config(sigma_map=kind, sigma_min=-0.2, sigma_max=0.6)
    sigma = torch.tensor([-1.0, -0.1, 0.3, 0.7])
    frequency = 1 - gate(sigma.repeat_interleave(20_000), "sample", network).view(4, -1).mean(1)
    torch.testing.assert_close(
        frequency, mask_probability(sigma, "sample", network), atol=0.01, rtol=0
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("raw", [-0.5, 0.2, 1.0]), ("affine", [0.25, 0.6, 1.0]), ("minmax", [-0.375, 0.5, 1.5])],
)
def test_sigma_maps_match_values_derived_by_hand(kind, expected):
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
    image, topic = torch.randn(1, 3, 4).double(), torch.randn(1, 5, 4).double()
    mask = torch.tensor([[True, True, True, False, True]])
    # A padded patch changes nothing, whatever it holds.
    padded = torch.cat([image, torch.full((1, 1, 4), 9.0).double()], 1)
    is_patch = torch.tensor([[True, True, True, False]])
    fused, lambda_, _ = fusion(padded, is_patch, topic, mask)
    fused, lambda_ = fused[:, :3], lambda_[:, :3]
    z_a = torch.zeros(3, 4).double()  # Z^A
    for p in range(3):
        q, weights = fusion.query(image[0, p]), []
        for t in range(5):
            score = (q * fusion.key(topic[0, t])).sum() / math.sqrt(4)
            weights.append(score.exp() if mask[0, t] else 0.0)
        for t in range(5):
            z_a[p] += weights[t] / sum(weights) * fusion.value(topic[0, t])
    if correlation == "channel":
        product = z_a.T @ image[0]  # (Z^A)^T Z^V, (D, D)
        expected = torch.sigmoid(fusion.weigh.weight @ product / divisor)
    else:
        expected = torch.sigmoid(fusion.weigh_text(z_a) + fusion.weigh_picture(image[0]))
    torch.testing.assert_close(lambda_[0], expected)
    mixed = (1 - expected) * z_a + expected * image[0]
    torch.testing.assert_close(fused[0], fusion.norm(mixed))


def test_a_masked_topic_contributes_exactly_zero_and_lambda_is_one_half():
    fusion = CrossModalFusion(4, tiny_flexmuse.build_model_config())
    image, mask = torch.randn(2, 3, 4), torch.ones(2, 5, dtype=torch.bool)
    patch_mask = torch.ones(2, 3, dtype=torch.bool)
    fused, lambda_, _ = fusion(image, patch_mask, torch.zeros(2, 5, 4), mask)
    assert torch.equal(lambda_, torch.full((2, 1, 4), 0.5))
    torch.testing.assert_close(fused, fusion.norm(0.5 * image), rtol=0, atol=0)


# ----------------------------------------------------------------------------------- flexible input
def test_the_features_of_a_missing_topic_or_image_are_ignored(chunks, batch):
    model = build_model(chunks).eval()
    nothing = torch.zeros(8, dtype=torch.bool)
    no_topic = batch | {"has_topic": nothing}
    other_topic = no_topic | {"topic": torch.randn_like(batch["topic"])}
    first, second = (model.encode(b, "always_pass").hidden for b in (no_topic, other_topic))
    assert torch.equal(first, second)
    assert not model.encode(no_topic, "always_pass").gate.any()
    no_picture = batch | {"has_picture": nothing}
    other_picture = no_picture | {"patches": torch.randn_like(batch["patches"])}
    outputs = [model.encode(b, "always_mask") for b in (no_picture, other_picture)]
    assert torch.equal(outputs[0].hidden, outputs[1].hidden)
    assert outputs[0].gate.all()  # without an image the topic is never redundant


def test_drop_probabilities_that_sum_to_more_than_one_are_rejected():
    with pytest.raises(ValueError, match=r"image_drop_prob \+ topic_drop_prob must not exceed 1"):
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


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("learned", [False, True])
def test_every_weight_gets_a_gradient_and_one_batch_can_be_memorized(changes, learned):
    chunks = tiny_flexmuse.build_chunk_dataset(learned)
    model = build_model(chunks, learned=learned, image_drop_prob=0.1, **changes)
    batch = chunks.batch(list(range(8)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(0)
    has_gradient = {name: False for name, _ in model.named_parameters()}
    for _ in range(150):
        loss = flexmuse.sft_loss(model.train(), batch).terms["ntp"]
        optimizer.zero_grad()
        loss.backward()
        for name, weight in model.named_parameters():
            has_gradient[name] |= weight.grad is not None and bool(weight.grad.any())
        optimizer.step()
    assert all(has_gradient.values()), has_gradient
    assert flexmuse.sft_loss(model.eval(), batch).terms["ntp"].item() < 0.3


@pytest.mark.parametrize("changes", VARIANTS)
def test_an_item_does_not_depend_on_its_batch_or_on_padding(chunks, changes):
    model = build_model(chunks, **changes).double().eval()
    together = double(chunks.batch([0, 3, 7]))
    output = model.encode(together, "always_pass")
    scores = model.log_probs(output, together["labels"])
    for place, index in enumerate([0, 3, 7]):
        alone = double(chunks.batch([index]))
        score = model.log_probs(model.encode(alone, "always_pass"), alone["labels"])
        torch.testing.assert_close(score[0], scores[place], atol=1e-6, rtol=0)


def test_sft_loss_is_the_mean_over_tokens(chunks, batch):
    model = build_model(chunks).eval()
    output = model.encode(batch, "always_pass")
    expected = -model.log_probs(output, batch["labels"]).sum() / (batch["labels"] >= 0).sum()
    torch.testing.assert_close(flexmuse.sft_loss(model, batch).terms["ntp"], expected)


def test_a_memorized_batch_is_generated(chunks, batch):
    model = build_model(chunks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(200):
        loss = flexmuse.sft_loss(model.train(), batch).terms["ntp"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    for beams in (1, 3):
        output = model.encode(batch, "always_pass")
        ids = generate_ids(model, output, 24, beams, 0.0, 1.0)
        texts = chunks.tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert texts == [row["text"] for row in chunks.rows]


def test_sampling_depends_on_seed_and_temperature(chunks, batch):
    model = build_model(chunks).eval()
    output = model.encode(batch, "always_pass")

    def draw(seed: int, temperature: float, top_p: float = 1.0) -> list[list[int]]:
        torch.manual_seed(seed)
        return generate_ids(model, output, 12, 1, temperature, top_p).tolist()

    assert draw(0, 1.0) == draw(0, 1.0) != draw(1, 1.0)
    most_probable = draw(0, 0.0)
    assert draw(0, 1e-4) == most_probable == draw(1, 1.0, top_p=1e-6)


def cross_attention(model, output, ids):
    """The mean over layers and heads; T5 does not divide q k by sqrt(d)."""
    calls, hooks = [], []
    for block in model.t5.decoder.block:
        module = block.layer[1].EncDecAttention
        hooks.append(
            module.register_forward_pre_hook(
                lambda module, args, kwargs: calls.append((module, args, kwargs)), with_kwargs=True
            )
        )
    labels = ids[:, 1:].contiguous()  # T5 shifts them by one and prepends the start token
    model.log_probs(output, labels)
    for hook in hooks:
        hook.remove()
    rows = []
    for module, args, kwargs in calls:
        hidden = args[0] if args else kwargs["hidden_states"]
        for head in range(module.n_heads):
            part = slice(head * module.key_value_proj_dim, (head + 1) * module.key_value_proj_dim)
            q, k = module.q(hidden)[..., part], module.k(output.hidden)[..., part]
            scores = (q @ k.transpose(1, 2)).masked_fill(output.mask[:, None] == 0, -torch.inf)
            rows.append(scores.softmax(-1))
    return torch.stack(rows).mean(0)  # (B, Y, positions)


@pytest.mark.parametrize("changes", VARIANTS)
def test_attention_maps_match_the_cross_attention_computed_by_hand(chunks, changes):
    model = build_model(chunks, **changes).double().eval()
    with torch.no_grad():
        for weight in model.t5.decoder.parameters():
            weight *= 3  # the attention of a new T5 is almost uniform
        batch = double(chunks.batch([0, 3, 7]))
        output = model.encode(batch, "always_pass")
        ids = generate_ids(model, output, 12, 1, 0.0, 1.0)
        implementation = model.t5.config._attn_implementation
        attention = model.attention_maps(output, ids)
        assert model.t5.config._attn_implementation == implementation != "eager"
        expected = cross_attention(model, output, ids)
    assert attention.shape == (3, ids.shape[1] - 1, 4)
    torch.testing.assert_close(attention.double(), expected[..., :4], atol=1e-5, rtol=0)
    assert expected.std() > 0.01
    total = attention.sum(-1)
    has_topic_positions = changes.get("append_topic") or changes.get("fusion") == "concatenation"
    if has_topic_positions:
        assert (total < 0.99).any()
    else:
        assert torch.allclose(total, torch.ones_like(total))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_loss_and_text_on_cuda_match_the_cpu(chunks, batch):
    from stages.shared.training.batching import to_device

    model = build_model(chunks).eval()
    cpu_loss = flexmuse.sft_loss(model, batch).terms["ntp"]
    text = generate_ids(model, model.encode(batch, "always_pass"), 8, 1, 0.0, 1.0)
    model, cuda_batch = model.cuda(), to_device(batch, torch.device("cuda"))
    cuda_loss = flexmuse.sft_loss(model, cuda_batch).terms["ntp"]
    torch.testing.assert_close(cuda_loss.cpu(), cpu_loss, atol=1e-3, rtol=0)
    with torch.autocast("cuda", torch.bfloat16):
        bf16_loss = flexmuse.sft_loss(model, cuda_batch).terms["ntp"]
    assert abs(bf16_loss.item() - cpu_loss.item()) < 0.1
    output = model.encode(cuda_batch, "always_pass")
    assert torch.equal(generate_ids(model, output, 8, 1, 0.0, 1.0).cpu(), text)
