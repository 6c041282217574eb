"""TIPPo's objectives: the contrastive loss of eq. 5, SFT, and the equations of PolishPPO."""

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
def dataset():
    """Articles of 3, 1 and 5 images; the second image of the last one is missing."""
    rows = tiny_tippo.make_chunk_rows()
    rows[5] |= {"image": None}
    return tiny_tippo.build_article_dataset(rows=rows)


# -------------------------------------------------------------------------------------------- eq. 5
def contrast_in_loops(signals, prototypes, item, network):
    def cos(a, b):
        return (a @ b).item() / (a.norm() * b.norm()).item() / network.contrastive_temperature

    losses_by_article = {}
    for i, article in enumerate(item):
        positive = math.exp(cos(signals[i], prototypes[i]))
        denominator_sum = (
            positive
            if network.contrastive_denominator == "infonce"
            else math.exp(1 / network.contrastive_temperature)
        )
        masks = item.count(article) == 1
        for j, other in enumerate(item):
            allowed = {"article": other == article, "batch": other != article, "both": True}
            if j != i and (masks or allowed[network.contrastive_negatives]):
                denominator_sum += math.exp(cos(signals[i], signals[j]))
        losses_by_article.setdefault(article, []).append(-math.log(positive / denominator_sum))
    means = [sum(losses) / len(losses) for losses in losses_by_article.values()]
    return sum(means) / len(means)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
@pytest.mark.parametrize("negatives", ["article", "batch", "both"])
@pytest.mark.parametrize("denominator", ["infonce", "literal"])
def test_the_contrastive_loss_matches_its_equation_written_as_loops(
    denominator, negatives, temperature
):
    torch.manual_seed(0)
    network = tiny_tippo.build_model_config(
        contrastive_denominator=denominator,
        contrastive_negatives=negatives,
        contrastive_temperature=temperature,
    )
    item = [0, 0, 0, 1, 2, 2]
    signals, prototypes = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    result = contrastive_loss(signals, prototypes, torch.tensor(item), torch.arange(6), network)
    assert result.item() == pytest.approx(contrast_in_loops(signals, prototypes, item, network))


def test_the_contrastive_loss_matches_values_derived_by_hand():
    """Two orthogonal images of one article: cosine 0 to each other, 1 / sqrt(2) to their mean."""
    signals = torch.eye(2)
    prototypes = torch.full((2, 2), 0.5)
    positive = math.exp(math.sqrt(0.5))
    item = torch.tensor([4, 4])
    result = contrastive_loss(
        signals,
        prototypes,
        item,
        torch.arange(2),
        tiny_tippo.build_model_config(contrastive_denominator="infonce"),
    )
    assert result.item() == pytest.approx(math.log((positive + 1) / positive))
    result = contrastive_loss(
        signals,
        prototypes,
        item,
        torch.arange(2),
        tiny_tippo.build_model_config(contrastive_denominator="literal"),
    )
    assert result.item() == pytest.approx(math.log((math.e + 1) / positive))


@pytest.mark.parametrize(
    ("denominator", "expected"),
    [
        # cosines of image 0: positive 1, other image 0; without its copy, whose cosine is 1
        ("infonce", math.log((math.e + 1) / math.e)),
        ("literal", math.log((math.e + 1) / math.e)),
    ],
)
def test_the_same_image_in_another_article_is_no_negative(denominator, expected):
    signals = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    item, image = torch.arange(3), torch.tensor([7, 7, 9])
    network = tiny_tippo.build_model_config(contrastive_denominator=denominator)
    own = contrastive_loss(signals, signals, item, image, network)
    # Images 0 and 1 have one negative with cosine 0, image 2 has two.
    last = math.log((math.e + 2) / math.e)
    assert own.item() == pytest.approx((2 * expected + last) / 3)
    with_copies = contrastive_loss(signals, signals, item, torch.arange(3), network)
    assert with_copies > own


def test_sft_masks_an_image_that_two_articles_share(dataset):
    batch = dataset.batch([0, 1]) | {"progress": HALF}
    batch["image"][1, 0] = batch["image"][0, 0]
    batch["pooled"][1, 0], batch["patches"][1, 0] = batch["pooled"][0, 0], batch["patches"][0, 0]
    terms = []
    for masked in (False, True):
        model = tiny_tippo.build_model(dataset, mask_repeated_images=masked).train()
        torch.manual_seed(0)
        terms.append(tippo.sft_loss(model, batch).terms["contrast"])
    assert terms[1] < terms[0]


def test_the_contrastive_loss_of_a_single_image_is_zero():
    signals = torch.randn(1, 4, requires_grad=True)
    for subset in (signals, signals[:0]):
        loss = contrastive_loss(
            subset,
            subset,
            torch.zeros(len(subset)).long(),
            torch.arange(len(subset)),
            tiny_tippo.build_model_config(),
        )
        loss.backward()
        assert loss == 0 and not signals.grad.any()


def test_the_contrastive_loss_is_not_rounded_to_bf16():
    """The step of bf16 near 1 is 1/128; at a temperature of 0.01 that is most of a nat."""
    torch.manual_seed(0)
    signals = torch.ones(6, 8) + 0.1 * torch.randn(6, 8)
    item = torch.tensor([0, 0, 0, 1, 1, 1])
    prototypes = torch.stack([signals[:3].mean(0), signals[3:].mean(0)])[item]
    network = tiny_tippo.build_model_config(contrastive_temperature=0.01)
    exact = contrastive_loss(signals, prototypes, item, torch.arange(6), network).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive_loss(
            signals, prototypes, item, torch.arange(6), network
        ).item() == pytest.approx(exact, rel=1e-4)


def test_the_contrastive_loss_separates_collapsed_images():
    torch.manual_seed(0)
    signals = (torch.ones(6, 8) + 0.1 * torch.randn(6, 8)).requires_grad_()
    item = torch.tensor([0, 0, 0, 1, 1, 1])
    optimizer = torch.optim.SGD([signals], 1.0)
    start = cosine(signals[0], signals[3])
    for _ in range(200):
        prototypes = torch.stack([signals[:3].mean(0), signals[3:].mean(0)])[item]
        optimizer.zero_grad()
        contrastive_loss(
            signals,
            prototypes,
            item,
            torch.arange(6),
            tiny_tippo.build_model_config(contrastive_negatives="batch"),
        ).backward()
        optimizer.step()
    assert start > 0.95 and cosine(signals[0], signals[3]) < 0.0
    assert cosine(signals[0], signals[1]) > 0.95  # of one article


def cosine(a, b):
    return torch.cosine_similarity(a, b, 0).item()


# ---------------------------------------------------------------------------------------------- SFT
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("axis", ["images", "patches"])
@pytest.mark.parametrize("image_features", ["pooled", "patches"])
@pytest.mark.parametrize("fusion", ["sequence", "literal", "feature"])
def test_every_weight_gets_a_gradient_from_sft_and_from_generation(
    fusion, image_features, axis, learned
):
    rows = tiny_tippo.make_chunk_rows()
    rows[5] |= {"image": None}
    dataset = tiny_tippo.build_article_dataset(learned, rows)
    batch = dataset.batch([0, 1, 2])
    batch["has_topic"][2] = False
    model = tiny_tippo.build_model(
        dataset, fusion=fusion, image_features=image_features, softmax_axis=axis
    )
    loss = tippo.sft_loss(model.train(), batch | {"progress": HALF})
    sum(loss.terms.values()).backward()
    assert untrained_weights(model) == []
    tippo.after_step(model, loss.statistics)
    model.zero_grad()
    output = model.encode(batch)  # the stored l1 is 1/2
    decoding.compute_log_probs(
        model.t5, output.hidden, output.mask, batch["labels"]
    ).sum().backward()
    assert untrained_weights(model) == []


def test_excerpts_train_the_patch_adapter_that_single_images_need(dataset):
    rows = [row for item in dataset.rows if len(item) > 1 for row in item]
    for share, is_untrained in ((0.0, True), (1.0, False)):
        augmented = tiny_tippo.build_article_dataset(
            rows=rows + [p for seed in range(6) for p in sample_excerpts(rows, share, seed)]
        )
        model = tiny_tippo.build_model(augmented).train()
        batch = augmented.batch(list(range(len(augmented)))) | {"progress": HALF}
        sum(tippo.sft_loss(model, batch).terms.values()).backward()
        assert (
            any(name.startswith("adapt_patches.") for name in untrained_weights(model))
            is is_untrained
        )


def untrained_weights(model):
    weights = model.named_parameters()
    return [name for name, weight in weights if weight.grad is None or not weight.grad.any()]


@pytest.mark.parametrize(("progress", "idle"), [(1.0, 0), (0.0, 1)])
def test_a_branch_with_lambda_zero_gets_no_gradient(dataset, progress, idle):
    model = tiny_tippo.build_model(dataset).train()
    batch = dataset.batch([0, 1, 2]) | {"progress": torch.tensor(progress)}
    sum(tippo.sft_loss(model, batch).terms.values()).backward()
    grads = [query.weight.grad.any().item() for query in model.align.queries]
    assert grads == [idle != 0, idle != 1]


def test_one_batch_can_be_memorized(dataset):
    torch.manual_seed(0)
    model = tiny_tippo.build_model(dataset, use_contrastive=False).train()
    batch = dataset.batch([0, 1, 2])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(120):
        loss = tippo.sft_loss(model, batch | {"progress": torch.tensor(step / 120)})
        optimizer.zero_grad()
        loss.terms["ntp"].backward()
        optimizer.step()
        tippo.after_step(model, loss.statistics)
    assert loss.terms["ntp"] < 0.1
    output = model.eval().encode(batch)
    ids = decoding.generate(model.t5, output.hidden, output.mask, 80, 1, 0.0, 1.0, 0)
    texts = dataset.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert texts[1] == tiny_flexmuse.TEXTS[3]


def test_a_missing_image_is_excluded_from_the_contrastive_loss(dataset):
    batch = dataset.batch([0, 1, 2])
    model = tiny_tippo.build_model(dataset).train()
    masks = {"has_picture": torch.zeros(3, 5, dtype=torch.bool), "progress": HALF}
    masks["has_picture"][1, 0] = True
    assert tippo.sft_loss(model, batch | masks).terms["contrast"] == 0
    masks["has_picture"][0, 0] = True
    assert tippo.sft_loss(model, batch | masks).terms["contrast"] > 0


def test_diagnostics_of_an_idle_and_a_sharp_branch(dataset):
    """The focus of uniform weights is 1, of weights on one image the number of images."""
    model = tiny_tippo.build_model(dataset).eval()
    torch.nn.init.zeros_(model.align.keys[0].weight)
    model.align.keys[1].weight.data *= 1e4
    model.common.normal_()
    result = tippo.diagnostics(model, dataset.batch([0, 1, 2]))
    torch.testing.assert_close(result["text_focus"], torch.ones(3))
    # 3 and 4 images; 4 patches of the article with one image
    torch.testing.assert_close(result["prototype_focus"], torch.tensor([3.0, 4.0, 4.0]))
    assert result["lambda"].tolist() == pytest.approx(
        [0.1] * 3
    )  # clipped from its initial value, 0
    assert (result["likeness"].abs() <= 1).all()


def test_the_likeness_of_collapsed_images_is_one(dataset):
    model = tiny_tippo.build_model(dataset).eval()
    for parameter in model.adapt_picture.layers[2].parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.normal_(model.adapt_picture.layers[3].bias)
    model.common.copy_(model.adapt_picture.layers[3].bias)
    result = tippo.diagnostics(model, dataset.batch([0, 1, 2]))["likeness"]
    torch.testing.assert_close(result, torch.ones(3))


# ---------------------------------------------------------------------------------------- PolishPPO
def test_the_papers_exponents_make_all_returns_vanish():
    """At half of 20,000 steps both weights are 0.95^10,000, so that epsilon rules eq. 6."""
    config = tiny_tippo.build_preference_config(discount="literal")
    assert reward_discounts(10_000, 20_000, config) == pytest.approx((1.7e-223,) * 2, rel=0.01)
    rewards = torch.tensor([0.0, 1.0])
    returns = total_return(rewards, rewards, 10_000, 20_000, config)
    assert not returns.any()  # in fp32
    returns = total_return(rewards.double(), rewards.double(), 10_000, 20_000, config)
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
def test_returns_shift_from_the_literal_to_the_semantic_reward(discount, step, expected):
    config = tiny_tippo.build_preference_config(gamma=0.5, discount=discount, discount_steps=4.0)
    assert reward_discounts(step, 10, config) == pytest.approx(expected)
    result = total_return(torch.tensor([2.0]), torch.tensor([3.0]), step, 10, config)
    assert result.item() == pytest.approx(2 * expected[0] + 3 * expected[1])


def test_the_advantage_matches_values_derived_by_hand():
    result = compute_advantage(torch.tensor([1.0, 4.0]), 2.0, 0.5)
    torch.testing.assert_close(result, torch.tensor([-2.0, 4.0]))


@pytest.mark.parametrize("spread", [0.0, 1e-17])  # 1e-17: equal up to rounding
def test_equal_returns_have_no_advantage(spread):
    result = compute_advantage(torch.tensor([2.01, -3.0]), torch.tensor(2.0), torch.tensor(spread))
    assert result.tolist() == [0, 0]


def test_policy_loss_matches_its_equation_written_as_loops():
    torch.manual_seed(0)
    new, old, reference = torch.randn(3, 2, 5).double().unbind()
    advantages, config = (
        torch.tensor([1.5, -0.5]).double(),
        tiny_tippo.build_preference_config(clip_range=0.3, kl_coef=0.7),
    )
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    policy, distance = [], []
    for text, token in mask.nonzero().tolist():
        ratio = math.exp(new[text, token] - old[text, token])
        clipped = min(max(ratio, 0.7), 1.3)
        gain = advantages[text].item()
        policy.append(-min(ratio * gain, clipped * gain))
        log_ratio = (reference[text, token] - new[text, token]).item()
        distance.append(math.exp(log_ratio) - log_ratio - 1)
    terms = policy_loss(new, old, reference, advantages, mask, config)
    assert terms["policy"].item() == pytest.approx(sum(policy) / 8)
    assert terms["kl"].item() == pytest.approx(0.7 * sum(distance) / 8)


def test_a_clipped_ratio_gets_no_gradient_in_its_direction():
    new = torch.tensor([[0.5], [-0.5], [0.5], [-0.5]], requires_grad=True)
    zeros, advantages = torch.zeros(4, 1), torch.tensor([1.0, 1.0, -1.0, -1.0])
    config = tiny_tippo.build_preference_config(kl_coef=0.0)
    terms = policy_loss(new, zeros, zeros, advantages, torch.ones(4, 1), config)
    sum(terms.values()).backward()
    # A good text that is already likelier and a bad one that is less likely get no gradient.
    assert (new.grad != 0).flatten().tolist() == [False, True, True, False]


def test_the_kl_divergence_from_sft_is_zero_at_the_start():
    same, config = torch.randn(2, 3), tiny_tippo.build_preference_config()
    moved = policy_loss(same + 0.3, same, same, torch.zeros(2), torch.ones(2, 3), config)
    still = policy_loss(same, same, same, torch.ones(2), torch.ones(2, 3), config)
    assert still["kl"] == 0 and moved["kl"] > 0 and still["policy"] == -1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.5}, "gamma\n.*less than or equal to 1"),
        ({"baseline_window": 0}, "baseline_window\n.*greater than or equal to 1"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs\n.*greater than or equal to 1"),
        ({"num_generations": 0}, "num_generations\n.*greater than or equal to 1"),
        ({"discount_steps": 0.0}, "discount_steps\n.*greater than 0"),
        ({"clip_range": 0.0}, "clip_range\n.*greater than 0"),
        ({"max_kl": 0.0}, "max_kl\n.*greater than 0"),
        ({"kl_coef": -0.1}, "kl_coef\n.*greater than or equal to 0"),
        (
            {"min_gain_standard_errors": -1.0},
            "min_gain_standard_errors\n.*greater than or equal to 0",
        ),
        ({"max_length_change": -1.0}, "max_length_change\n.*greater than or equal to 0"),
        ({"temperature": 0.0}, "temperature\n.*greater than 0"),
    ],
)
def test_an_invalid_preference_config_is_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_tippo.build_preference_config(**changes)
