"""mscDPO of FlexMUSE: the matrix of log-probabilities and the loss on it."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from stages.models.flexmuse import model as flexmuse
from stages.models.flexmuse.model import PreferenceConfig
from tests.support import tiny_flexmuse

NUMBERS = PreferenceConfig(beta=0.1, loss_type="pairwise", length_normalized=False, sft_weight=0.0)


@pytest.fixture(scope="module")
def chunks():
    return tiny_flexmuse.build_chunk_dataset()


def model(chunks, **changes):
    return tiny_flexmuse.build_model(vocabulary=len(chunks.tokenizer), **changes)


def double(batch):
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


# Groups without two chunks of one article, as plain DPO with random rejects compares them.
RANDOM = tiny_flexmuse.make_pairs_from_groups(
    [[("r0", 1), ("r2", 3)], [("r2", 0), ("r1", 0), ("r0", 2)]]
)


def test_the_matrix_holds_every_chunk_given_every_picture_of_its_group(chunks):
    writer = model(chunks).double().eval()
    groups = chunks.build_groups(tiny_flexmuse.make_pairs())
    scores = flexmuse.pairwise_log_probs(writer, double(chunks.batch_groups(groups)))
    assert scores.shape == (2, 4, 4)
    for row, group in enumerate(groups):
        for k, picture in enumerate(group.indices):
            for j, text in enumerate(group.indices):
                item = double(chunks.batch([picture]))
                labels = torch.tensor([chunks.labels[text]])
                alone = writer.log_probs(writer.encode(item, "always_pass"), labels)
                torch.testing.assert_close(scores[row, k, j], alone[0], atol=1e-6, rtol=0)
    assert (scores[0, 3] == 0).all() and (scores[0, :, 3] == 0).all()


@pytest.mark.parametrize("connection", ["encoder_outputs", "inputs_embeds"])
@pytest.mark.parametrize("form", ["pairwise", "softmax"])
@pytest.mark.parametrize("length_normalised", [False, True])
@pytest.mark.parametrize("pairs", [tiny_flexmuse.make_pairs(), RANDOM], ids=["articles", "others"])
def test_the_matrix_form_equals_pair_expansion_in_loss_and_gradient(
    chunks, connection, form, length_normalised, pairs
):
    numbers = PreferenceConfig(
        beta=0.3, loss_type=form, length_normalized=length_normalised, sft_weight=0.0
    )
    policy, anchor = (model(chunks, t5_input=connection).double().eval() for _ in range(2))
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.05 * torch.randn_like(weight)
    groups = chunks.build_groups(pairs)
    groups[1].allowed[0, 2] = False  # a pair outside the similarity band
    batch = double(chunks.batch_groups(groups))
    with torch.no_grad():
        reference = flexmuse.pairwise_log_probs(anchor, batch)
    loss = flexmuse.preference_loss(policy, batch, reference, numbers)["mscdpo"]
    gradient = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    expected = expanded(policy, anchor, chunks, groups, numbers)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    other = torch.autograd.grad(expected, list(policy.parameters()), allow_unused=True)
    for mine, theirs in zip(gradient, other, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def expanded(policy, anchor, chunks, groups, numbers):
    """mscDPO one (picture, chosen, rejected) triple at a time."""

    def margin(picture, text):
        item, labels = double(chunks.batch([picture])), torch.tensor([chunks.labels[text]])
        with torch.no_grad():
            base = anchor.log_probs(anchor.encode(item, "always_pass"), labels)
        score = policy.log_probs(policy.encode(item, "always_pass"), labels)
        return (score - base)[0] / (labels.shape[1] if numbers.length_normalized else 1)

    losses = []
    for group in groups:
        for k, picture in enumerate(group.indices):
            gaps = [
                margin(picture, picture) - margin(picture, text)
                for j, text in enumerate(group.indices)
                if group.allowed[k, j]
            ]
            if numbers.loss_type == "pairwise":
                losses.append(-torch.stack([logsigmoid(numbers.beta * g) for g in gaps]).mean())
            else:
                total = sum(torch.exp(-numbers.beta * g) for g in gaps)
                losses.append(-logsigmoid(-total.log()))
    return torch.stack(losses).mean()


def test_pairs_that_are_not_allowed_are_not_even_scored(chunks):
    writer = model(chunks).eval()
    groups = chunks.build_groups(tiny_flexmuse.make_pairs())
    groups[1].allowed[0, 2] = False
    scores = flexmuse.pairwise_log_probs(writer, chunks.batch_groups(groups))
    assert scores[1, 0, 2] == 0
    assert (scores[1] != 0).sum() == 15


def test_an_item_shown_without_an_input_carries_the_sft_term_alone(chunks):
    torch.manual_seed(0)
    writer = model(chunks, image_drop_prob=0.5, topic_drop_prob=0.5).train()
    batch = chunks.batch_groups(chunks.build_groups(tiny_flexmuse.make_pairs()))
    reference = flexmuse.pairwise_log_probs(
        writer, batch
    ).detach()  # with both inputs, and without dropout
    terms = flexmuse.preference_loss(writer, batch, reference, NUMBERS)
    assert terms["mscdpo"].item() == 0  # every item lacks one of the two
    assert batch["allowed"].sum() == 6 + 12  # the batch itself is left as it was
    numbers = PreferenceConfig(
        beta=0.1, loss_type="pairwise", length_normalized=False, sft_weight=0.5
    )
    assert flexmuse.preference_loss(writer, batch, reference, numbers)["ntp"] > 0


@pytest.mark.parametrize("gate_predict", ["always_pass", "sample"])
def test_the_phase_begins_at_log_two_and_its_sft_term_is_the_weighted_token_loss(
    chunks, gate_predict
):
    """A gate that draws, draws the same for policy and reference, but not the same for all."""
    writer = model(chunks, gate_predict=gate_predict, sigma_map="affine").eval()
    batch = chunks.batch_groups(chunks.build_groups(tiny_flexmuse.make_pairs()))
    reference = flexmuse.pairwise_log_probs(writer, batch).detach()
    numbers = PreferenceConfig(
        beta=0.1, loss_type="pairwise", length_normalized=False, sft_weight=0.5
    )
    terms = flexmuse.preference_loss(writer, batch, reference, numbers)
    assert terms["mscdpo"].item() == pytest.approx(math.log(2), abs=1e-5)
    expected = 0.5 * flexmuse.sft_loss(writer, batch)["ntp"]
    torch.testing.assert_close(terms["ntp"], expected)
    passed = writer.encode(batch, gate_predict).gate
    assert passed.min() == (gate_predict == "always_pass") and passed.max() == 1


@pytest.mark.parametrize(
    ("form", "length_normalised", "gaps"),
    [
        ("pairwise", False, [4.0, 1.0]),
        ("pairwise", True, [1.25, 0.25]),
        ("softmax", True, [1.25, 0.25]),
    ],
)
def test_the_numbers_of_the_objective_by_hand(monkeypatch, form, length_normalised, gaps):
    """Two chunks of 2 and 4 tokens. lp - ref = [[1, -3], [0, 1]], by token [[.5, -.75], [0, .25]]:
    picture 0 prefers its own by 1 + 3 (.5 + .75), picture 1 by 1 - 0 (.25 - 0)."""
    scores = torch.tensor([[[-4.0, -9.0], [-6.0, -2.0]]])
    reference = torch.tensor([[[-5.0, -6.0], [-6.0, -3.0]]])
    monkeypatch.setattr(flexmuse, "pairwise_log_probs", lambda model, batch: scores)
    batch = {
        "labels": torch.tensor([[5, 1, -100, -100], [5, 6, 7, 1]]),
        "group": torch.tensor([0, 0]),
        "place": torch.tensor([0, 1]),
        "allowed": ~torch.eye(2, dtype=torch.bool)[None],
    }
    numbers = PreferenceConfig(
        beta=0.5, loss_type=form, length_normalized=length_normalised, sft_weight=2.0
    )
    terms = flexmuse.preference_loss(torch.nn.Identity().eval(), batch, reference, numbers)
    # One rejected chunk each, so that both forms are -log sigmoid(beta gap), averaged.
    expected = sum(math.log(1 + math.exp(-0.5 * gap)) for gap in gaps) / 2
    assert terms["mscdpo"].item() == pytest.approx(expected, rel=1e-6)
    assert terms["ntp"].item() == pytest.approx(2.0 * (4 + 2) / 6)  # of the chosen, by token
