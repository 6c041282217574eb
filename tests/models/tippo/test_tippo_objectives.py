"""What TIPPo is trained on: the contrast of eq. 5, SFT as a whole, and PolishPPO's arithmetic."""

import math

import pytest
import torch

from stages.models.tippo import model as tippo
from stages.models.tippo.model import (
    compute_advantage,
    contrastive_loss,
    policy_loss,
    reward_discounts,
    total_return,
)
from stages.shared.generation import decoding
from stages.shared.generation.article_dataset import sample_excerpts
from tests.support import tiny_flexmuse, tiny_tippo

HALF = torch.tensor(0.5)


@pytest.fixture(scope="module")
def items():
    """Articles of 3, 1 and 5 pictures; the second picture of the last is missing."""
    rows = tiny_tippo.make_chunk_rows()
    rows[5] |= {"image": None}
    return tiny_tippo.build_article_dataset(given=rows)


# -------------------------------------------------------------------------------------------- eq. 5
def contrast_in_loops(signals, prototypes, item, network):
    def cos(a, b):
        return (a @ b).item() / (a.norm() * b.norm()).item() / network.contrastive_temperature

    of_articles = {}
    for i, own in enumerate(item):
        positive = math.exp(cos(signals[i], prototypes[i]))
        below = positive if network.contrastive_denominator == "infonce" else math.exp(1 / network.contrastive_temperature)
        alone = item.count(own) == 1
        for j, other in enumerate(item):
            allowed = {"article": other == own, "batch": other != own, "both": True}
            if j != i and (alone or allowed[network.contrastive_negatives]):
                below += math.exp(cos(signals[i], signals[j]))
        of_articles.setdefault(own, []).append(-math.log(positive / below))
    means = [sum(losses) / len(losses) for losses in of_articles.values()]
    return sum(means) / len(means)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
@pytest.mark.parametrize("negatives", ["article", "batch", "both"])
@pytest.mark.parametrize("denominator", ["infonce", "literal"])
def test_contrast_matches_its_equation_written_as_loops(denominator, negatives, temperature):
    torch.manual_seed(0)
    network = tiny_tippo.build_model_config(
        contrastive_denominator=denominator,
        contrastive_negatives=negatives,
        contrastive_temperature=temperature,
    )
    item = [0, 0, 0, 1, 2, 2]
    signals, prototypes = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    found = contrastive_loss(signals, prototypes, torch.tensor(item), network)
    assert found.item() == pytest.approx(contrast_in_loops(signals, prototypes, item, network))


def test_contrast_by_hand():
    """Two orthogonal pictures of one article: cos to each other 0, to their mean 1 / sqrt(2)."""
    signals = torch.eye(2)
    prototypes = torch.full((2, 2), 0.5)
    positive = math.exp(math.sqrt(0.5))
    item = torch.tensor([4, 4])
    found = contrastive_loss(
        signals, prototypes, item, tiny_tippo.build_model_config(contrastive_denominator="infonce")
    )
    assert found.item() == pytest.approx(math.log((positive + 1) / positive))
    found = contrastive_loss(
        signals, prototypes, item, tiny_tippo.build_model_config(contrastive_denominator="literal")
    )
    assert found.item() == pytest.approx(math.log((math.e + 1) / positive))


def test_a_single_picture_in_a_batch_has_nothing_to_be_told_from():
    signals = torch.randn(1, 4, requires_grad=True)
    for chosen in (signals, signals[:0]):
        loss = contrastive_loss(
            chosen, chosen, torch.zeros(len(chosen)).long(), tiny_tippo.build_model_config()
        )
        loss.backward()
        assert loss == 0 and not signals.grad.any()


def test_the_contrast_of_close_pictures_is_not_rounded_to_bf16():
    """At a temperature of 0.01 the step of bf16 near 1, 1/128, would be most of a nat."""
    torch.manual_seed(0)
    signals = torch.ones(6, 8) + 0.1 * torch.randn(6, 8)
    item = torch.tensor([0, 0, 0, 1, 1, 1])
    prototypes = torch.stack([signals[:3].mean(0), signals[3:].mean(0)])[item]
    network = tiny_tippo.build_model_config(contrastive_temperature=0.01)
    exact = contrastive_loss(signals, prototypes, item, network).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive_loss(signals, prototypes, item, network).item() == pytest.approx(
            exact, rel=1e-4
        )


def test_contrast_pushes_collapsed_pictures_apart():
    torch.manual_seed(0)
    signals = (torch.ones(6, 8) + 0.1 * torch.randn(6, 8)).requires_grad_()
    item = torch.tensor([0, 0, 0, 1, 1, 1])
    optimizer = torch.optim.SGD([signals], 1.0)
    begun = likeness(signals[0], signals[3])
    for _ in range(200):
        prototypes = torch.stack([signals[:3].mean(0), signals[3:].mean(0)])[item]
        optimizer.zero_grad()
        contrastive_loss(
            signals, prototypes, item, tiny_tippo.build_model_config(contrastive_negatives="batch")
        ).backward()
        optimizer.step()
    assert begun > 0.95 and likeness(signals[0], signals[3]) < 0.0
    assert likeness(signals[0], signals[1]) > 0.95  # of one article


def likeness(a, b):
    return torch.cosine_similarity(a, b, 0).item()


# ---------------------------------------------------------------------------------------------- SFT
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("axis", ["images", "patches"])
@pytest.mark.parametrize("picture", ["pooled", "patches"])
@pytest.mark.parametrize("fusion", ["sequence", "literal", "feature"])
def test_every_weight_is_trained_by_sft_and_by_what_writing_uses(fusion, picture, axis, learned):
    rows = tiny_tippo.make_chunk_rows()
    rows[5] |= {"image": None}
    items = tiny_tippo.build_article_dataset(learned, rows)
    batch = items.batch([0, 1, 2])
    batch["has_topic"][2] = False
    model = tiny_tippo.build_model(items, fusion=fusion, image_features=picture, softmax_axis=axis)
    terms = tippo.sft_loss(model.train(), batch | {"progress": HALF})
    sum(terms.values()).backward()
    assert untrained(model) == []
    model.zero_grad()
    memory = model.encode(batch)  # l1 = 1/2 is stored
    decoding.compute_log_probs(
        model.t5, memory.hidden, memory.mask, batch["labels"]
    ).sum().backward()
    assert untrained(model) == []


def test_articles_of_several_pictures_teach_what_an_article_of_one_needs(items):
    rows = [row for item in items.rows if len(item) > 1 for row in item]
    for share, left in ((0.0, True), (1.0, False)):
        more = tiny_tippo.build_article_dataset(
            given=rows + [p for seed in range(6) for p in sample_excerpts(rows, share, seed)]
        )
        model = tiny_tippo.build_model(more).train()
        batch = more.batch(list(range(len(more)))) | {"progress": HALF}
        sum(tippo.sft_loss(model, batch).values()).backward()
        assert any(name.startswith("adapt_patches.") for name in untrained(model)) is left


def untrained(model):
    weights = model.named_parameters()
    return [name for name, weight in weights if weight.grad is None or not weight.grad.any()]


@pytest.mark.parametrize(("progress", "idle"), [(1.0, 0), (0.0, 1)])
def test_a_branch_that_lambda_silences_gets_no_gradient(items, progress, idle):
    model = tiny_tippo.build_model(items).train()
    batch = items.batch([0, 1, 2]) | {"progress": torch.tensor(progress)}
    sum(tippo.sft_loss(model, batch).values()).backward()
    grads = [query.weight.grad.any().item() for query in model.align.queries]
    assert grads == [idle != 0, idle != 1]


def test_one_batch_can_be_memorised(items):
    torch.manual_seed(0)
    model = tiny_tippo.build_model(items, use_contrastive=False).train()
    batch = items.batch([0, 1, 2])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(120):
        loss = tippo.sft_loss(model, batch | {"progress": torch.tensor(step / 120)})["ntp"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    memory = model.eval().encode(batch)
    ids = decoding.generate(model.t5, memory.hidden, memory.mask, 80, 1, 0.0, 1.0)
    texts = items.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert texts[1] == tiny_flexmuse.TEXTS[3]


def test_a_hidden_picture_takes_no_part_in_the_contrast(items):
    batch = items.batch([0, 1, 2])
    model = tiny_tippo.build_model(items).train()
    alone = {"has_picture": torch.zeros(3, 5, dtype=torch.bool), "progress": HALF}
    alone["has_picture"][1, 0] = True
    assert tippo.sft_loss(model, batch | alone)["contrast"] == 0
    alone["has_picture"][0, 0] = True
    assert tippo.sft_loss(model, batch | alone)["contrast"] > 0


def test_behaviour_of_an_idle_and_of_a_sharp_branch(items):
    """Focus 1: uniform weights. A prototype that asks for one picture: as many as there are."""
    model = tiny_tippo.build_model(items).eval()
    torch.nn.init.zeros_(model.align.keys[0].weight)
    model.align.keys[1].weight.data *= 1e4
    model.common.normal_()
    found = tippo.diagnostics(model, items.batch([0, 1, 2]))
    torch.testing.assert_close(found["text_focus"], torch.ones(3))
    # 3 and 4 pictures; of the article of one, its 4 patches
    torch.testing.assert_close(found["prototype_focus"], torch.tensor([3.0, 4.0, 4.0]))
    assert found["lambda"].tolist() == pytest.approx([0.1] * 3)  # clipped from its first value, 0
    assert (found["likeness"].abs() <= 1).all()


def test_pictures_that_have_collapsed_are_all_alike(items):
    model = tiny_tippo.build_model(items).eval()
    for parameter in model.adapt_picture.layers[2].parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.normal_(model.adapt_picture.layers[3].bias)
    model.common.copy_(model.adapt_picture.layers[3].bias)
    found = tippo.diagnostics(model, items.batch([0, 1, 2]))["likeness"]
    torch.testing.assert_close(found, torch.ones(3))


# ---------------------------------------------------------------------------------------- PolishPPO
def test_the_papers_own_exponents_leave_no_return_at_all():
    """T14: at half of 20,000 steps both weigh 0.95^10,000, and eq. 6 has its epsilon alone."""
    numbers = tiny_tippo.build_preference_config(discount="literal")
    assert reward_discounts(10_000, 20_000, numbers) == pytest.approx((1.7e-223,) * 2, rel=0.01)
    rewards = torch.tensor([0.0, 1.0])
    returns = total_return(rewards, rewards, 10_000, 20_000, numbers)
    assert not returns.any()  # of fp32
    returns = total_return(rewards.double(), rewards.double(), 10_000, 20_000, numbers)
    assert compute_advantage(returns, returns.mean(), returns.std()).abs().max() < 1e-200


@pytest.mark.parametrize(
    ("discount", "step", "expected"),
    [
        ("literal", 0, (1, 0.5**10)),
        ("literal", 2, (0.25, 0.5**8)),
        ("literal", 10, (0.5**10, 1)),
        ("progress", 0, (1, 0.5**4)),  # K = 4
        ("progress", 5, (0.25, 0.25)),
        ("progress", 10, (0.5**4, 1)),
    ],
)
def test_returns_move_from_letters_to_meaning_by_hand(discount, step, expected):
    numbers = tiny_tippo.build_preference_config(gamma=0.5, discount=discount, discount_steps=4.0)
    assert reward_discounts(step, 10, numbers) == pytest.approx(expected)
    found = total_return(torch.tensor([2.0]), torch.tensor([3.0]), step, 10, numbers)
    assert found.item() == pytest.approx(2 * expected[0] + 3 * expected[1])


def test_advantage_by_hand():
    found = compute_advantage(torch.tensor([1.0, 4.0]), 2.0, 0.5)
    torch.testing.assert_close(found, torch.tensor([-2.0, 4.0]))


@pytest.mark.parametrize("spread", [0.0, 1e-17])  # 1e-17: alike but for rounding
def test_a_past_without_deviation_teaches_nothing(spread):
    found = compute_advantage(torch.tensor([2.01, -3.0]), torch.tensor(2.0), torch.tensor(spread))
    assert found.tolist() == [0, 0]


def test_policy_loss_matches_its_equation_written_as_loops():
    torch.manual_seed(0)
    new, old, reference = torch.randn(3, 2, 5).double().unbind()
    gains, numbers = (
        torch.tensor([1.5, -0.5]).double(),
        tiny_tippo.build_preference_config(clip_range=0.3, kl_coef=0.7),
    )
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    policy, distance = [], []
    for text, token in mask.nonzero().tolist():
        ratio = math.exp(new[text, token] - old[text, token])
        clipped = min(max(ratio, 0.7), 1.3)
        gain = gains[text].item()
        policy.append(-min(ratio * gain, clipped * gain))
        apart = (reference[text, token] - new[text, token]).item()
        distance.append(math.exp(apart) - apart - 1)
    terms = policy_loss(new, old, reference, gains, mask, numbers)
    assert terms["policy"].item() == pytest.approx(sum(policy) / 8)
    assert terms["kl"].item() == pytest.approx(0.7 * sum(distance) / 8)


def test_a_ratio_outside_the_clip_gets_no_gradient_where_it_would_go_on():
    new = torch.tensor([[0.5], [-0.5], [0.5], [-0.5]], requires_grad=True)
    zeros, gains = torch.zeros(4, 1), torch.tensor([1.0, 1.0, -1.0, -1.0])
    numbers = tiny_tippo.build_preference_config(kl_coef=0.0)
    terms = policy_loss(new, zeros, zeros, gains, torch.ones(4, 1), numbers)
    sum(terms.values()).backward()
    # A good text that is likelier already, and a bad one that is less likely, are left alone.
    assert (new.grad != 0).flatten().tolist() == [False, True, True, False]


def test_the_distance_from_sft_is_zero_where_nothing_has_moved():
    same, numbers = torch.randn(2, 3), tiny_tippo.build_preference_config()
    moved = policy_loss(same + 0.3, same, same, torch.zeros(2), torch.ones(2, 3), numbers)
    still = policy_loss(same, same, same, torch.ones(2), torch.ones(2, 3), numbers)
    assert still["kl"] == 0 and moved["kl"] > 0 and still["policy"] == -1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gamma": 1.5}, "gamma\n.*less than or equal to 1"),
        ({"baseline_window": 0}, "baseline_window\n.*greater than or equal to 1"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs\n.*greater than or equal to 1"),
        ({"num_generations": 0}, "num_generations\n.*greater than or equal to 1"),
        ({"discount_steps": 0.0}, "discount_steps\n.*greater than 0"),
        ({"clip_range": 0.0}, "clip_range\n.*greater than 0"),
        ({"max_kl": 0.0}, "max_kl\n.*greater than 0"),
        ({"kl_coef": -0.1}, "kl_coef\n.*greater than or equal to 0"),
        ({"min_gain_standard_errors": -1.0}, "min_gain_standard_errors\n.*greater than or equal to 0"),
        ({"max_length_change": -1.0}, "max_length_change\n.*greater than or equal to 0"),
        ({"temperature": 0.0}, "temperature\n.*greater than 0"),
    ],
)
def test_a_preference_phase_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        tiny_tippo.build_preference_config(**changes)
