"""TIPPo's network: eq. 1 to 4, the decoder's input, and the effect of each option."""

import math

import pytest
import torch

from stages.models.tippo import model as tippo
from stages.models.tippo.model import Difference, DualAlignment, inference_lambda, training_lambda
from stages.shared.generation import decoding
from stages.shared.training.losses import IGNORE_INDEX
from tests.support import tiny_tippo

HALF = torch.tensor(0.5)


@pytest.fixture(scope="module")
def dataset():
    """Articles of 3, 1 and 5 images; the second image of the last one is missing."""
    rows = tiny_tippo.make_chunk_rows()
    rows[5] |= {"image": None}
    return tiny_tippo.build_article_dataset(rows=rows)


@pytest.fixture(scope="module")
def batch(dataset):
    return double(dataset.batch([0, 1, 2]))


def double(batch):
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def build_fitted_model(dataset, **changes):
    """A model in double precision with normalization, a stored prototype and a stored lambda."""
    model = tiny_tippo.build_model(dataset, **changes)
    texts = [0, 1, 2] if dataset.features.text_kind == "encoder" else []
    model.fit_normalization(dataset.features, list(range(9)), texts)
    model.common.normal_()
    model.balance.fill_(0.7)
    if model.network.use_do:
        torch.nn.init.normal_(model.differ.refine.weight)
    return model.double().eval()


def softmax(scores):
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


class Loops:
    """The paper's equations for one article, as loops over its signals."""

    def __init__(self, model, batch, item):
        self.model, self.network = model, model.network
        self.patches, self.pooled = batch["patches"][item], batch["pooled"][item]
        present, has = batch["present"][item], batch["has_picture"][item]
        self.present = [k for k in range(len(present)) if present[k]]
        self.here = [k for k in self.present if has[k]]
        self.topic = self.read_topic(batch, item)
        self.signals = {k: self.read(k) if has[k] else [model.no_picture] for k in self.present}
        self.prototype = list(model.common)
        if len(self.here) > 1:
            tokens = range(len(self.signals[self.here[0]]))
            values = [[self.signals[k][place] for k in self.here] for place in tokens]
            self.prototype = [sum(row) / len(self.here) for row in values]

    def read_topic(self, batch, item):
        model = self.model
        if not batch["has_topic"][item]:
            return [model.no_topic]
        if not model.shapes.topic_width:
            count = int(batch["topic_ids_mask"][item].sum())
            ids = batch["topic_ids"][item, :count]
            places = zip(ids, model.topic_position, strict=False)
            return [model.learned_topic.weight[signals] + place for signals, place in places]
        if self.network.topic_features == "pooled":
            return [model.adapt_topic(batch["topic_pooled"][item])]
        tokens = batch["topic"][item][batch["topic_mask"][item]]
        return [model.adapt_topic(token) for token in tokens]

    def read(self, k):
        if self.network.image_features == "patches":
            return self.read_patches(k)
        return [self.model.adapt_picture(self.pooled[k])]

    def read_patches(self, k):
        return list(self.model.adapt_patches(self.patches[k]))

    def weights(self, keys):
        """Eq. 2, in []: weights of keys (D,); the query is the mean of a signal's tokens"""
        align, width = self.model.align, len(keys[0])
        branches = []
        for branch, queries in enumerate([self.topic, self.prototype][: len(align.queries)]):
            q = align.queries[branch](sum(queries) / len(queries))
            scores = [(q @ align.keys[branch](key)).item() / math.sqrt(width) for key in keys]
            branches.append(softmax(scores))
        if len(branches) == 1:
            return branches[0]
        return [0.7 * p + 0.3 * t for t, p in zip(*branches, strict=True)]

    def augmented(self, k):
        if k not in self.here:
            return [self.model.no_picture]
        if not self.network.use_daa:
            return self.signals[k]
        value = self.model.align.value
        if self.network.softmax_axis == "patches" or len(self.here) == 1:
            keys = self.read_patches(k)
            weighed = zip(self.weights(keys), keys, strict=True)
            return [sum(weight * value(key) for weight, key in weighed)]
        means = [sum(self.signals[j]) / len(self.signals[j]) for j in self.here]
        weight = self.weights(means)[self.here.index(k)] * len(self.here)
        return [weight * value(token) for token in self.signals[k]]

    def differential(self, k):
        if not self.network.use_do or k not in self.here:
            return []
        pi = self.model.differ.refine
        gaps = [s - p for s, p in zip(self.signals[k], self.prototype, strict=True)]
        return [gap + pi(gap) for gap in gaps]

    def fused(self):
        """S^F as a list of vectors."""
        position, fusion = self.model.position, self.network.fusion
        if fusion == "feature":
            return [vector for k in self.present for vector in self.joined(k)]
        topic_kind, augmented_kind, *difference_kind = self.model.kind
        augmented = {k: [a + augmented_kind for a in self.augmented(k)] for k in self.present}
        differential = {
            k: [d + difference_kind[0] for d in self.differential(k)] for k in self.present
        }
        topic = [token + topic_kind for token in self.topic]
        if fusion == "literal":
            blocks = [(k, topic + augmented[k] + differential[k]) for k in self.present]
        else:
            blocks = [*augmented.items(), *differential.items()]
        result = [token + position[k] for k, tokens in blocks for token in tokens]
        return result if fusion == "literal" else topic + result

    def joined(self, k):
        a, d = self.augmented(k), self.differential(k)
        count = max(len(a), len(d))
        a = a * (count // len(a))
        mean = sum(self.topic) / len(self.topic)
        for place in range(count):
            parts = [mean, a[place]]
            if self.network.use_do:
                parts.append(d[place] if d else torch.zeros_like(mean))
            yield self.model.join(torch.cat(parts)) + self.model.position[k]


VARIANTS = [
    {},
    {"projection": "elementwise", "topic_features": "pooled"},
    {"image_features": "patches"},
    {"softmax_axis": "patches"},
    {"softmax_axis": "patches", "image_features": "patches"},
    {"fusion": "literal", "image_features": "patches"},
    {"fusion": "feature"},
    {"fusion": "feature", "image_features": "patches"},
    {"fusion": "feature", "softmax_axis": "patches", "use_do": False},
    {"use_daa": False, "image_features": "patches"},
    {"use_do": False, "use_daa": False},
    {"use_prototype": False, "use_do": False, "use_contrastive": False},
]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_the_decoder_input_matches_the_equations_written_as_loops(changes, learned):
    rows = tiny_tippo.make_chunk_rows()
    rows[5] |= {"image": None}
    dataset = tiny_tippo.build_article_dataset(learned, rows)
    model, batch = build_fitted_model(dataset, **changes), double(dataset.batch([0, 1, 2]))
    batch["has_topic"] = torch.tensor([True, True, False])
    output = model.encode(batch)
    for item in range(3):
        vectors = Loops(model, batch, item).fused()
        count = len(vectors)
        torch.testing.assert_close(output.hidden[item, :count], torch.stack(vectors))
        assert output.mask[item].sum() == count
        assert not output.hidden[item, count:].any()


@pytest.mark.parametrize("connection", ["encoder_outputs", "inputs_embeds"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_an_article_does_not_depend_on_its_batch(dataset, batch, changes, connection):
    model = build_fitted_model(dataset, t5_input=connection, **changes)
    together = log_probs(model, batch)
    for item in range(3):
        alone = log_probs(model, double(dataset.batch([item])))
        torch.testing.assert_close(alone[0], together[item, : alone.shape[1]])


def log_probs(model, batch):
    output = model.encode(batch)
    return decoding.compute_log_probs(model.t5, output.hidden, output.mask, batch["labels"])


def test_selecting_items_equals_encoding_these_items(dataset, batch):
    model = build_fitted_model(dataset)
    twice = model.encode(batch).select(torch.tensor([2, 2, 0]))
    again = model.encode(double(dataset.batch([2, 2, 0])))
    for name in ("hidden", "mask", "balance", "images", "patches"):
        torch.testing.assert_close(getattr(twice, name), getattr(again, name))


# ------------------------------------------------------------------------------------- eq. 1 and 2
def test_dual_alignment_matches_values_derived_by_hand():
    """Keys 0 and 2 of width 1 with elementwise weights 1, so that scores are q k. The queries
    log(3) / 2 (topic) and 0 (prototype) give the softmaxes (1/4, 3/4) and (1/2, 1/2)."""
    align = DualAlignment(1, tiny_tippo.build_model_config(projection="elementwise"))
    queries = [torch.tensor([[math.log(3) / 2]]), torch.tensor([[0.0]])]
    keys, mask = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[True, True]])
    weights, mixed = align(queries, keys, mask, torch.tensor(0.2))
    torch.testing.assert_close(weights[0], torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    torch.testing.assert_close(mixed[0], torch.tensor([0.3, 0.7]))  # 0.8 of text, 0.2 of prototype


def test_masked_weights_are_zero_and_finite():
    align = DualAlignment(4, tiny_tippo.build_model_config())
    queries = [torch.randn(2, 4), torch.randn(2, 4)]
    mask = torch.tensor([[True, False, True], [False, False, False]])
    weights, mixed = align(queries, torch.randn(2, 3, 4), mask, HALF)
    assert not weights[0, :, 1].any() and not weights[1].any() and not mixed[1].any()
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2))


def test_uniform_weights_preserve_the_scale_for_any_number_of_images(dataset, batch):
    """Weights are multiplied by N: with equal keys, the weight of each image is 1."""
    model = build_fitted_model(dataset)
    for key in model.align.keys:
        torch.nn.init.zeros_(key.weight)
    signals = model.compute_signals(batch)
    augmented, _, images, _ = model.augment(batch, signals, HALF.double())
    torch.testing.assert_close(images[0, :, :3], torch.full((2, 3), 1 / 3).double())
    expected = model.align.value(signals.images)
    torch.testing.assert_close(augmented[0, :3], expected[0, :3])
    torch.testing.assert_close(augmented[2, 0], expected[2, 0])  # one of four existing images


def test_lambda_selects_the_branch(dataset, batch):
    model = build_fitted_model(dataset)
    signals, zero = model.compute_signals(batch), torch.tensor(0.0).double()
    other = model.compute_signals(batch | {"topic": torch.randn_like(batch["topic"])})
    for balance, ignores_topic in ((1 - zero, True), (zero, False)):
        augmented = [model.augment(batch, s, balance)[0] for s in (signals, other)]
        assert torch.allclose(*augmented) is ignores_topic


def test_lambda_rises_in_the_formula_and_falls_in_the_prose():
    progress = torch.tensor(0.25)
    assert training_lambda(progress, tiny_tippo.build_model_config()) == 0.25
    assert (
        training_lambda(progress, tiny_tippo.build_model_config(lambda_schedule="reverse")) == 0.75
    )


@pytest.mark.parametrize(
    ("kind", "expected"), [("last", [0, 0.6, 1]), ("half", [0.5] * 3), ("clip", [0.1, 0.6, 0.9])]
)
def test_the_lambda_of_generation_matches_values_derived_by_hand(kind, expected):
    network = tiny_tippo.build_model_config(lambda_predict=kind)
    result = inference_lambda(torch.tensor([0, 0.6, 1]), network)
    torch.testing.assert_close(result, torch.tensor(expected))


# ------------------------------------------------------------------------------------- eq. 3 and 4
def test_initial_differences_are_plain_and_sum_to_zero(dataset, batch):
    model = tiny_tippo.build_model(dataset).double()
    signals = model.compute_signals(batch)
    difference = model.differ(signals.images, signals.prototype)
    torch.testing.assert_close(difference, signals.images - signals.prototype[:, None])
    total = difference[0, :3].sum(0)
    torch.testing.assert_close(total, torch.zeros_like(total))


def test_the_difference_operator_can_remove_a_difference():
    differ = Difference(2)
    differ.refine.weight.data = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    signals, prototype = torch.tensor([[[[3.0, 5.0]]]]), torch.tensor([[[1.0, 2.0]]])
    # (2, 3) + (-2, 3): the first channel is removed, the second doubled
    assert differ(signals, prototype).flatten().tolist() == [0, 6]


# ----------------------------------------------------------------------------------- the prototype
def test_a_single_image_uses_the_batch_mean_in_training_and_the_running_mean_elsewhere(
    dataset, batch
):
    model = build_fitted_model(dataset)
    training = model.compute_signals(batch, use_batch_mean=True)
    inference = model.compute_signals(batch)
    images = training.images[training.image_mask]
    assert len(images) == 8  # one of nine is missing
    torch.testing.assert_close(training.prototype[1], images.mean(0))
    assert torch.equal(inference.prototype[1], model.common)
    for signals in (training, inference):  # longer articles have their own
        torch.testing.assert_close(signals.prototype[0], signals.images[0, :3].mean(0))
    assert not torch.equal(training.prototype[1], training.images[1, 0])  # so that S^D is not zero


def test_training_stores_its_lambda_and_a_running_mean_of_images(dataset, batch):
    model = build_fitted_model(dataset, prototype_momentum=0.25).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = tippo.sft_loss(model, batch | {"progress": HALF.double()})
    unchanged = model.state_dict()  # the loss itself stores nothing
    assert all(torch.equal(value, unchanged[name]) for name, value in before.items())
    tippo.after_step(model, loss.statistics)
    assert model.balance == 0.5
    signals = model.compute_signals(batch)
    mean = signals.images[signals.image_mask].mean(0)
    torch.testing.assert_close(model.common, 0.75 * before["common"] + 0.25 * mean)
    stored = model.state_dict()
    assert stored["balance"] == 0.5 and torch.equal(stored["common"], model.common)
    assert not tippo.sft_loss(model.eval(), batch).statistics  # validation changes nothing
    assert torch.equal(stored["common"], model.common)


def test_the_running_mean_starts_at_the_first_mean(dataset, batch):
    model = tiny_tippo.build_model(dataset, prototype_momentum=0.25).double().train()
    assert not model.common.any()
    blind = batch | {"has_picture": torch.zeros_like(batch["has_picture"])}
    loss = tippo.sft_loss(model, blind | {"progress": HALF.double()})
    tippo.after_step(model, loss.statistics)
    assert not model.common.any()  # no image yet
    means = []
    for current in (batch, batch | {"pooled": -batch["pooled"]}):
        loss = tippo.sft_loss(model, current | {"progress": HALF.double()})
        tippo.after_step(model, loss.statistics)
        signals = model.compute_signals(current)
        means.append(signals.images[signals.image_mask].mean(0))
        expected = means[0] if len(means) == 1 else 0.75 * means[0] + 0.25 * means[1]
        torch.testing.assert_close(model.common, expected)
    assert not torch.allclose(*means)


def test_a_batch_without_images_trains_on_the_stored_prototype(dataset, batch):
    model = build_fitted_model(dataset).train()
    blind = batch | {"has_picture": torch.zeros_like(batch["has_picture"])}
    before = model.common.clone()
    loss = tippo.sft_loss(model, blind | {"progress": HALF.double()})
    tippo.after_step(model, loss.statistics)
    assert torch.isfinite(loss.terms["ntp"]) and loss.terms["contrast"] == 0
    assert torch.equal(model.common, before)


# ----------------------------------------------------------------------------------- flexible input
def test_the_features_of_a_missing_topic_or_image_are_ignored(dataset, batch):
    model = build_fitted_model(dataset)
    bare = batch | {"has_topic": torch.zeros(3, dtype=torch.bool)}
    other = bare | {"topic": torch.randn_like(batch["topic"])}
    assert torch.equal(model.encode(bare).hidden, model.encode(other).hidden)
    hidden = model.encode(batch).hidden
    other = {k: batch[k].clone() for k in ("pooled", "patches")}
    other["pooled"][2, 1], other["patches"][2, 1] = 7.0, 7.0  # the missing image
    assert torch.equal(hidden, model.encode(batch | other).hidden)
    other["pooled"][2, 2] = 7.0
    assert not torch.equal(hidden, model.encode(batch | other).hidden)


def test_kinds_and_positions_are_distinguishable_from_the_first_step(dataset, batch):
    """They are initialized at the scale of the signals that they are added to."""
    model = tiny_tippo.build_model(dataset).double()
    signals = model.compute_signals(batch)
    size = signals.images[signals.image_mask].square().mean().sqrt().item()
    for embedding in (model.kind, model.position):
        assert embedding.square().mean().sqrt().item() == pytest.approx(size, rel=0.3)
        assert embedding.mean(1).abs().max() < size  # centered: no common shift


# ------------------------------------------------------------------------------------- the options
ABLATIONS = {
    "use_daa": ("align.", "adapt_patches."),
    "use_do": ("differ.",),
}


@pytest.mark.parametrize("flag", ABLATIONS)
def test_an_ablation_removes_its_weights(dataset, flag):
    def names(**changes):
        return {name for name, _ in tiny_tippo.build_model(dataset, **changes).named_parameters()}

    removed = names() - names(**{flag: False})
    assert removed and all(name.startswith(ABLATIONS[flag]) for name in removed)
    assert not names(**{flag: False}) - names()


def test_without_a_prototype_only_the_topic_weighs_images(dataset, batch):
    bare = {"use_prototype": False, "use_do": False, "use_contrastive": False}
    model = build_fitted_model(dataset, **bare)
    assert len(model.align.queries) == len(model.align.keys) == 1
    assert model.encode(batch).images.shape == (3, 1, 5)
    hidden = model.encode(batch).hidden
    model.common.zero_()
    model.balance.zero_()
    assert torch.equal(model.encode(batch).hidden, hidden)


def test_the_contrastive_loss_is_an_optional_term(dataset, batch):
    batch = batch | {"progress": HALF.double()}
    with_it = tippo.sft_loss(
        build_fitted_model(dataset, contrastive_weight=3.0).train(), batch
    ).terms
    once = tippo.sft_loss(build_fitted_model(dataset).train(), batch).terms
    without = tippo.sft_loss(
        build_fitted_model(dataset, use_contrastive=False).train(), batch
    ).terms
    assert without.keys() == {"ntp"}
    torch.testing.assert_close(with_it["contrast"], 3 * once["contrast"])
    torch.testing.assert_close(with_it["ntp"], without["ntp"])


def test_the_token_loss_is_the_mean_over_tokens(dataset, batch):
    model = build_fitted_model(dataset)
    tokens = (batch["labels"] != IGNORE_INDEX).sum()
    expected = -log_probs(model, batch).sum() / tokens
    torch.testing.assert_close(tippo.sft_loss(model, batch).terms["ntp"], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_prototype": False, "use_contrastive": False}, "use_do needs use_prototype"),
        ({"use_prototype": False, "use_do": False}, "use_contrastive needs use_prototype"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature\n.*greater than 0"),
        ({"lambda_margin": 0.6}, "lambda_margin\n.*less than or equal to 0.5"),
        ({"image_drop_prob": 0.6, "topic_drop_prob": 0.6}, "topic_drop_prob must not exceed 1"),
        ({"excerpt_ratio": 1.5}, "excerpt_ratio\n.*less than or equal to 1"),
        ({"image_drop_prob": -0.1}, "image_drop_prob\n.*greater than or equal to 0"),
        ({"topic_drop_prob": -0.1}, "topic_drop_prob\n.*greater than or equal to 0"),
        ({"prototype_momentum": -0.1}, "prototype_momentum\n.*greater than or equal to 0"),
        ({"prototype_momentum": 1.1}, "prototype_momentum\n.*less than or equal to 1"),
        ({"max_images": 0}, "max_images\n.*greater than or equal to 1"),
        ({"contrastive_weight": -1.0}, "contrastive_weight\n.*greater than or equal to 0"),
    ],
)
def test_an_invalid_network_config_is_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_tippo.build_model_config(**changes)
