"""mscDPO of FlexMUSE: the log-probabilities of all pairs and the loss on them."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from stages.models.flexmuse import model as flexmuse
from stages.models.flexmuse.model import PreferenceConfig
from tests.support import tiny_flexmuse

CONFIG = PreferenceConfig(
    beta=0.1, loss_type="pairwise", length_normalized=False, sft_weight=0.0, max_sequences=None
)


@pytest.fixture(scope="module")
def chunks():
    return tiny_flexmuse.build_chunk_dataset()


def build_model(chunks, **changes):
    return tiny_flexmuse.build_model(vocabulary=len(chunks.tokenizer), **changes)


def double(batch):
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


# Groups of chunks of different articles, as in plain DPO with random rejected texts.
RANDOM = tiny_flexmuse.make_pairs_from_groups(
    [[("r0", 1), ("r2", 3)], [("r2", 0), ("r1", 0), ("r0", 2)]]
)


def test_pairwise_log_probs_score_every_chunk_with_every_image_of_its_group(chunks):
    model = build_model(chunks).double().eval()
    groups = chunks.build_groups(tiny_flexmuse.make_pairs())
    scores = flexmuse.pairwise_log_probs(model, double(chunks.batch_groups(groups)), None)
    assert scores.shape == (2, 4, 4)
    for row, group in enumerate(groups):
        for k, image in enumerate(group.indices):
            for j, text in enumerate(group.indices):
                item = double(chunks.batch([image]))
                labels = torch.tensor([chunks.labels[text]])
                log_prob = model.log_probs(model.encode(item, "always_pass"), labels)
                torch.testing.assert_close(scores[row, k, j], log_prob[0], atol=1e-6, rtol=0)
    assert (scores[0, 3] == 0).all() and (scores[0, :, 3] == 0).all()


@pytest.mark.parametrize("connection", ["encoder_outputs", "inputs_embeds"])
@pytest.mark.parametrize("loss_type", ["pairwise", "softmax"])
@pytest.mark.parametrize("length_normalized", [False, True])
@pytest.mark.parametrize("pairs", [tiny_flexmuse.make_pairs(), RANDOM], ids=["articles", "others"])
def test_the_loss_and_its_gradient_equal_those_of_single_pairs(
    chunks, connection, loss_type, length_normalized, pairs
):
    config = replace(CONFIG, beta=0.3, loss_type=loss_type, length_normalized=length_normalized)
    policy, reference_model = (
        build_model(chunks, t5_input=connection).double().eval() for _ in range(2)
    )
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.05 * torch.randn_like(weight)
    groups = chunks.build_groups(pairs)
    groups[1].allowed[0, 2] = False  # a pair outside the similarity band
    batch = double(chunks.batch_groups(groups))
    with torch.no_grad():
        reference = flexmuse.pairwise_log_probs(reference_model, batch, None)
    loss = flexmuse.preference_loss(policy, batch, reference, config)["mscdpo"]
    gradient = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    expected = pairwise_expansion(policy, reference_model, chunks, groups, config)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    expected_gradient = torch.autograd.grad(expected, list(policy.parameters()), allow_unused=True)
    for grad, expected_grad in zip(gradient, expected_gradient, strict=True):
        assert (grad is None) == (expected_grad is None)
        if grad is not None:
            torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_sequences", [1, 3, 100])
@pytest.mark.parametrize("loss_type", ["pairwise", "softmax"])
def test_texts_decoded_in_parts_have_the_same_loss_and_gradients(chunks, loss_type, max_sequences):
    """25 pairs; their logits, the largest tensor, exist for `max_sequences` of them at a time."""
    batch = chunks.batch_groups(chunks.build_groups(tiny_flexmuse.make_pairs()))
    decoded: list[int] = []
    results = []
    for limit in (None, max_sequences):
        model = build_model(chunks).train()
        model.t5.eval()  # dropout draws other numbers for other parts
        config = replace(CONFIG, loss_type=loss_type, sft_weight=0.5, max_sequences=limit)
        model.t5.lm_head.register_forward_hook(lambda _, args, out: decoded.append(len(args[0])))
        decoded.clear()
        torch.manual_seed(0)
        reference = torch.zeros(batch["allowed"].shape)
        terms = flexmuse.preference_loss(model, batch, reference, config)
        sum(terms.values()).backward()
        gradients = {n: w.grad for n, w in model.named_parameters() if w.grad is not None}
        results.append((terms, gradients))
    assert max(decoded) <= max_sequences and sum(decoded) == 2 * 25  # forward and backward pass
    with torch.inference_mode():  # as the reference is computed
        scores = [
            flexmuse.pairwise_log_probs(model, batch, limit) for limit in (None, max_sequences)
        ]
    torch.testing.assert_close(*scores)
    (whole, gradients), (parts, parts_gradients) = results
    for name, term in whole.items():
        torch.testing.assert_close(parts[name], term, atol=1e-6, rtol=1e-6)
    assert gradients.keys() == parts_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(parts_gradients[name], gradient, atol=1e-6, rtol=1e-6)


def pairwise_expansion(policy, reference_model, chunks, groups, config):
    """mscDPO for one (image, chosen, rejected) triple at a time."""

    def margin(image, text):
        item, labels = double(chunks.batch([image])), torch.tensor([chunks.labels[text]])
        with torch.no_grad():
            reference = reference_model.log_probs(
                reference_model.encode(item, "always_pass"), labels
            )
        score = policy.log_probs(policy.encode(item, "always_pass"), labels)
        return (score - reference)[0] / (labels.shape[1] if config.length_normalized else 1)

    losses = []
    for group in groups:
        for k, image in enumerate(group.indices):
            gaps = [
                margin(image, image) - margin(image, text)
                for j, text in enumerate(group.indices)
                if group.allowed[k, j]
            ]
            if config.loss_type == "pairwise":
                losses.append(-torch.stack([logsigmoid(config.beta * g) for g in gaps]).mean())
            else:
                total = sum(torch.exp(-config.beta * g) for g in gaps)
                losses.append(-logsigmoid(-total.log()))
    return torch.stack(losses).mean()


def test_pairs_that_are_not_allowed_are_not_scored(chunks):
    model = build_model(chunks).eval()
    groups = chunks.build_groups(tiny_flexmuse.make_pairs())
    groups[1].allowed[0, 2] = False
    scores = flexmuse.pairwise_log_probs(model, chunks.batch_groups(groups), None)
    assert scores[1, 0, 2] == 0
    assert (scores[1] != 0).sum() == 15


def test_an_item_with_a_dropped_modality_contributes_only_the_sft_term(chunks):
    torch.manual_seed(0)
    model = build_model(chunks, image_drop_prob=0.5, topic_drop_prob=0.5).train()
    batch = chunks.batch_groups(chunks.build_groups(tiny_flexmuse.make_pairs()))
    reference = flexmuse.pairwise_log_probs(model, batch, None).detach()  # with both inputs
    terms = flexmuse.preference_loss(model, batch, reference, CONFIG)
    assert terms["mscdpo"].item() == 0  # every item lacks one input
    assert batch["allowed"].sum() == 6 + 12  # the batch itself is unchanged
    config = replace(CONFIG, sft_weight=0.5)
    assert flexmuse.preference_loss(model, batch, reference, config)["ntp"] > 0


@pytest.mark.parametrize("gate_predict", ["always_pass", "sample"])
def test_the_initial_loss_is_log_two_and_the_sft_term_is_the_weighted_token_loss(
    chunks, gate_predict
):
    """A sampled gate is the same for policy and reference, but differs between items."""
    model = build_model(chunks, gate_predict=gate_predict, sigma_map="affine").eval()
    batch = chunks.batch_groups(chunks.build_groups(tiny_flexmuse.make_pairs()))
    reference = flexmuse.pairwise_log_probs(model, batch, None).detach()
    config = replace(CONFIG, sft_weight=0.5)
    terms = flexmuse.preference_loss(model, batch, reference, config)
    assert terms["mscdpo"].item() == pytest.approx(math.log(2), abs=1e-5)
    expected = 0.5 * flexmuse.sft_loss(model, batch).terms["ntp"]
    torch.testing.assert_close(terms["ntp"], expected)
    passed = model.encode(batch, gate_predict).gate
    assert passed.min() == (gate_predict == "always_pass") and passed.max() == 1


@pytest.mark.parametrize(
    ("loss_type", "length_normalized", "gaps"),
    [
        ("pairwise", False, [4.0, 1.0]),
        ("pairwise", True, [1.25, 0.25]),
        ("softmax", True, [1.25, 0.25]),
    ],
)
def test_the_preference_loss_matches_values_derived_by_hand(
    monkeypatch, loss_type, length_normalized, gaps
):
    """Two chunks of 2 and 4 tokens. lp - ref = [[1, -3], [0, 1]], by token [[.5, -.75], [0, .25]]:
    image 0 prefers its own by 1 + 3 (.5 + .75), image 1 by 1 - 0 (.25 - 0)."""
    scores = torch.tensor([[[-4.0, -9.0], [-6.0, -2.0]]])
    reference = torch.tensor([[[-5.0, -6.0], [-6.0, -3.0]]])
    monkeypatch.setattr(flexmuse, "pairwise_log_probs", lambda model, batch, max_sequences: scores)
    batch = {
        "labels": torch.tensor([[5, 1, -100, -100], [5, 6, 7, 1]]),
        "group": torch.tensor([0, 0]),
        "place": torch.tensor([0, 1]),
        "allowed": ~torch.eye(2, dtype=torch.bool)[None],
    }
    config = replace(
        CONFIG, beta=0.5, loss_type=loss_type, length_normalized=length_normalized, sft_weight=2.0
    )
    terms = flexmuse.preference_loss(torch.nn.Identity().eval(), batch, reference, config)
    # With one rejected chunk each, both losses are the mean of -log sigmoid(beta gap).
    expected = sum(math.log(1 + math.exp(-0.5 * gap)) for gap in gaps) / 2
    assert terms["mscdpo"].item() == pytest.approx(expected, rel=1e-6)
    assert terms["ntp"].item() == pytest.approx(2.0 * (4 + 2) / 6)  # per token of the chosen chunks
