"""The network of TIPPo: eq. 1 to 4, what the decoder attends to, and what each option changes."""

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
def items():
    """Articles of 3, 1 and 5 pictures; the second picture of the last is missing."""
    rows = tiny_tippo.make_chunk_rows()
    rows[5] |= {"image": None}
    return tiny_tippo.build_article_dataset(given=rows)


@pytest.fixture(scope="module")
def batch(items):
    return double(items.batch([0, 1, 2]))


def double(batch):
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def writer(of, **changes):
    """A model in double precision with statistics, a stored prototype and a stored lambda."""
    model = tiny_tippo.build_model(of, **changes)
    texts = [0, 1, 2] if of.features.text_kind == "encoder" else []
    model.fit_normalization(of.features, list(range(9)), texts)
    model.common.normal_()
    model.balance.fill_(0.7)
    if model.network.use_do:
        torch.nn.init.normal_(model.differ.refine.weight)
    return model.double().eval()


def softmax(scores):
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


class Loops:
    """The paper's equations for one article, signal by signal."""

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
            of_all = [[self.signals[k][place] for k in self.here] for place in tokens]
            self.prototype = [sum(values) / len(self.here) for values in of_all]

    def read_topic(self, batch, item):
        model = self.model
        if not batch["has_topic"][item]:
            return [model.no_topic]
        if not model.shapes.topic_width:
            count = int(batch["topic_ids_mask"][item].sum())
            ids = batch["topic_ids"][item, :count]
            places = zip(ids, model.topic_position, strict=False)
            return [model.learned_topic.weight[one] + place for one, place in places]
        if self.network.topic_features == "pooled":
            return [model.adapt_topic(batch["topic_pooled"][item])]
        shown = batch["topic"][item][batch["topic_mask"][item]]
        return [model.adapt_topic(token) for token in shown]

    def read(self, k):
        if self.network.image_features == "patches":
            return self.read_patches(k)
        return [self.model.adapt_picture(self.pooled[k])]

    def read_patches(self, k):
        return list(self.model.adapt_patches(self.patches[k]))

    def weights(self, keys):
        """Eq. 2, in []: of keys (D,), with the mean of a signal's tokens as query"""
        align, width = self.model.align, len(keys[0])
        branches = []
        for branch, asked in enumerate([self.topic, self.prototype][: len(align.queries)]):
            q = align.queries[branch](sum(asked) / len(asked))
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
        """S^F, vector by vector."""
        position, fusion = self.model.position, self.network.fusion
        if fusion == "feature":
            return [vector for k in self.present for vector in self.joined(k)]
        of_topic, of_augmented, *rest = self.model.kind
        augmented = {k: [a + of_augmented for a in self.augmented(k)] for k in self.present}
        differential = {k: [d + rest[0] for d in self.differential(k)] for k in self.present}
        topic = [token + of_topic for token in self.topic]
        if fusion == "literal":
            blocks = [(k, topic + augmented[k] + differential[k]) for k in self.present]
        else:
            blocks = [*augmented.items(), *differential.items()]
        found = [token + position[k] for k, tokens in blocks for token in tokens]
        return found if fusion == "literal" else topic + found

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
def test_what_the_decoder_attends_to_is_the_equations_written_as_loops(changes, learned):
    rows = tiny_tippo.make_chunk_rows()
    rows[5] |= {"image": None}
    items = tiny_tippo.build_article_dataset(learned, rows)
    model, batch = writer(items, **changes), double(items.batch([0, 1, 2]))
    batch["has_topic"] = torch.tensor([True, True, False])
    memory = model.encode(batch)
    for item in range(3):
        vectors = Loops(model, batch, item).fused()
        count = len(vectors)
        torch.testing.assert_close(memory.hidden[item, :count], torch.stack(vectors))
        assert memory.mask[item].sum() == count
        assert not memory.hidden[item, count:].any()


@pytest.mark.parametrize("connection", ["encoder_outputs", "inputs_embeds"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_an_article_is_the_same_alone_and_beside_longer_ones(items, batch, changes, connection):
    model = writer(items, t5_input=connection, **changes)
    together = log_probs(model, batch)
    for item in range(3):
        alone = log_probs(model, double(items.batch([item])))
        torch.testing.assert_close(alone[0], together[item, : alone.shape[1]])


def log_probs(model, batch):
    memory = model.encode(batch)
    return decoding.compute_log_probs(model.t5, memory.hidden, memory.mask, batch["labels"])


def test_rows_of_a_memory_are_the_memory_of_those_items(items, batch):
    model = writer(items)
    twice = model.encode(batch).select(torch.tensor([2, 2, 0]))
    again = model.encode(double(items.batch([2, 2, 0])))
    for name in ("hidden", "mask", "balance", "images", "patches"):
        torch.testing.assert_close(getattr(twice, name), getattr(again, name))


# ------------------------------------------------------------------------------------- eq. 1 and 2
def test_dual_alignment_by_hand():
    """Keys 0 and 2 of width 1, elementwise weights 1, so that scores are q k: with log(3) / 2 of
    the topic and 0 of the prototype their softmax is (1/4, 3/4) and (1/2, 1/2)."""
    align = DualAlignment(1, tiny_tippo.build_model_config(projection="elementwise"))
    asked = [torch.tensor([[math.log(3) / 2]]), torch.tensor([[0.0]])]
    keys, mask = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[True, True]])
    weights, mixed = align(asked, keys, mask, torch.tensor(0.2))
    torch.testing.assert_close(weights[0], torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    torch.testing.assert_close(mixed[0], torch.tensor([0.3, 0.7]))  # 0.8 of text, 0.2 of prototype


def test_weights_of_what_is_masked_are_zero_and_stay_finite():
    align = DualAlignment(4, tiny_tippo.build_model_config())
    asked = [torch.randn(2, 4), torch.randn(2, 4)]
    mask = torch.tensor([[True, False, True], [False, False, False]])
    weights, mixed = align(asked, torch.randn(2, 3, 4), mask, HALF)
    assert not weights[0, :, 1].any() and not weights[1].any() and not mixed[1].any()
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2))


def test_uniform_weights_leave_the_scale_of_a_picture_whatever_their_number(items, batch):
    """Times N: with all keys alike, each picture's weight is 1."""
    model = writer(items)
    for key in model.align.keys:
        torch.nn.init.zeros_(key.weight)
    signals = model.compute_signals(batch)
    augmented, _, images, _ = model.augment(batch, signals, HALF.double())
    torch.testing.assert_close(images[0, :, :3], torch.full((2, 3), 1 / 3).double())
    expected = model.align.value(signals.images)
    torch.testing.assert_close(augmented[0, :3], expected[0, :3])
    torch.testing.assert_close(augmented[2, 0], expected[2, 0])  # of the four that are there


def test_lambda_says_which_branch_is_heard(items, batch):
    model = writer(items)
    signals, zero = model.compute_signals(batch), torch.tensor(0.0).double()
    other = model.compute_signals(batch | {"topic": torch.randn_like(batch["topic"])})
    for balance, deaf in ((1 - zero, True), (zero, False)):
        augmented = [model.augment(batch, of, balance)[0] for of in (signals, other)]
        assert torch.allclose(*augmented) is deaf


def test_the_paper_has_the_prototype_last_and_its_prose_has_it_first():
    progress = torch.tensor(0.25)
    assert training_lambda(progress, tiny_tippo.build_model_config()) == 0.25
    assert (
        training_lambda(progress, tiny_tippo.build_model_config(lambda_schedule="reverse")) == 0.75
    )


@pytest.mark.parametrize(
    ("kind", "expected"), [("last", [0, 0.6, 1]), ("half", [0.5] * 3), ("clip", [0.1, 0.6, 0.9])]
)
def test_lambda_when_writing_by_hand(kind, expected):
    network = tiny_tippo.build_model_config(lambda_predict=kind)
    found = inference_lambda(torch.tensor([0, 0.6, 1]), network)
    torch.testing.assert_close(found, torch.tensor(expected))


# ------------------------------------------------------------------------------------- eq. 3 and 4
def test_differences_begin_plain_and_sum_to_zero(items, batch):
    model = tiny_tippo.build_model(items).double()
    signals = model.compute_signals(batch)
    difference = model.differ(signals.images, signals.prototype)
    torch.testing.assert_close(difference, signals.images - signals.prototype[:, None])
    total = difference[0, :3].sum(0)
    torch.testing.assert_close(total, torch.zeros_like(total))


def test_the_difference_operator_can_silence_a_difference():
    differ = Difference(2)
    differ.refine.weight.data = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    signals, prototype = torch.tensor([[[[3.0, 5.0]]]]), torch.tensor([[[1.0, 2.0]]])
    # (2, 3) + (-2, 3): the first channel is off, the second twice as strong
    assert differ(signals, prototype).flatten().tolist() == [0, 6]


# ----------------------------------------------------------------------------------- the prototype
def test_one_picture_takes_the_mean_of_the_batch_in_training_and_the_stored_one_elsewhere(
    items, batch
):
    model = writer(items)
    learning, writing = model.compute_signals(batch, use_batch_mean=True), model.compute_signals(batch)
    pictures = learning.images[learning.image_mask]
    assert len(pictures) == 8  # of nine, one is missing
    torch.testing.assert_close(learning.prototype[1], pictures.mean(0))
    assert torch.equal(writing.prototype[1], model.common)
    for one in (learning, writing):  # articles of several have their own
        torch.testing.assert_close(one.prototype[0], one.images[0, :3].mean(0))
    assert not torch.equal(learning.prototype[1], learning.images[1, 0])  # a difference is left


def test_training_keeps_its_lambda_and_a_running_mean_of_its_pictures(items, batch):
    model = writer(items, prototype_momentum=0.25).train()
    before = model.common.clone()
    tippo.sft_loss(model, batch | {"progress": HALF.double()})
    assert model.balance == 0.5
    signals = model.compute_signals(batch)
    mean = signals.images[signals.image_mask].mean(0)
    torch.testing.assert_close(model.common, 0.75 * before + 0.25 * mean)
    stored = model.state_dict()
    assert stored["balance"] == 0.5 and torch.equal(stored["common"], model.common)
    tippo.sft_loss(model.eval(), batch)
    assert torch.equal(stored["common"], model.common)  # validation changes nothing


def test_the_first_mean_of_pictures_is_stored_as_it_is(items, batch):
    model = tiny_tippo.build_model(items, prototype_momentum=0.25).double().train()
    assert not model.common.any()
    blind = batch | {"has_picture": torch.zeros_like(batch["has_picture"])}
    tippo.sft_loss(model, blind | {"progress": HALF.double()})
    assert not model.common.any()  # nothing was seen yet
    means = []
    for shown in (batch, batch | {"pooled": -batch["pooled"]}):
        tippo.sft_loss(model, shown | {"progress": HALF.double()})
        signals = model.compute_signals(shown)
        means.append(signals.images[signals.image_mask].mean(0))
        expected = means[0] if len(means) == 1 else 0.75 * means[0] + 0.25 * means[1]
        torch.testing.assert_close(model.common, expected)
    assert not torch.allclose(*means)


def test_a_batch_without_any_picture_trains_on_the_stored_prototype(items, batch):
    model = writer(items).train()
    blind = batch | {"has_picture": torch.zeros_like(batch["has_picture"])}
    before = model.common.clone()
    terms = tippo.sft_loss(model, blind | {"progress": HALF.double()})
    assert torch.isfinite(terms["ntp"]) and terms["contrast"] == 0
    assert torch.equal(model.common, before)


# ----------------------------------------------------------------------------------- flexible input
def test_a_missing_topic_and_a_missing_picture_are_read_from_nothing(items, batch):
    model = writer(items)
    bare = batch | {"has_topic": torch.zeros(3, dtype=torch.bool)}
    other = bare | {"topic": torch.randn_like(batch["topic"])}
    assert torch.equal(model.encode(bare).hidden, model.encode(other).hidden)
    hidden = model.encode(batch).hidden
    other = {k: batch[k].clone() for k in ("pooled", "patches")}
    other["pooled"][2, 1], other["patches"][2, 1] = 7.0, 7.0  # the missing one
    assert torch.equal(hidden, model.encode(batch | other).hidden)
    other["pooled"][2, 2] = 7.0
    assert not torch.equal(hidden, model.encode(batch | other).hidden)


def test_kinds_and_positions_are_told_apart_from_the_first_step_on(items, batch):
    """They begin in the size of the signals that they are added to."""
    model = tiny_tippo.build_model(items).double()
    signals = model.compute_signals(batch)
    size = signals.images[signals.image_mask].square().mean().sqrt().item()
    for told in (model.kind, model.position):
        assert told.square().mean().sqrt().item() == pytest.approx(size, rel=0.3)
        assert told.mean(1).abs().max() < size  # of both signs: no common shift


# ------------------------------------------------------------------------------------- the options
ABLATIONS = {
    "use_daa": ("align.", "adapt_patches."),
    "use_do": ("differ.",),
}


@pytest.mark.parametrize("flag", ABLATIONS)
def test_an_ablation_takes_its_part_and_its_weights_out(items, flag):
    def names(**changes):
        return {name for name, _ in tiny_tippo.build_model(items, **changes).named_parameters()}

    gone = names() - names(**{flag: False})
    assert gone and all(name.startswith(ABLATIONS[flag]) for name in gone)
    assert not names(**{flag: False}) - names()


def test_without_prototype_only_the_topic_weighs_pictures(items, batch):
    bare = {"use_prototype": False, "use_do": False, "use_contrastive": False}
    model = writer(items, **bare)
    assert len(model.align.queries) == len(model.align.keys) == 1
    assert model.encode(batch).images.shape == (3, 1, 5)
    hidden = model.encode(batch).hidden
    model.common.zero_()
    model.balance.zero_()
    assert torch.equal(model.encode(batch).hidden, hidden)


def test_the_contrast_is_a_term_of_the_loss_or_no_term(items, batch):
    batch = batch | {"progress": HALF.double()}
    with_it = tippo.sft_loss(writer(items, contrastive_weight=3.0).train(), batch)
    once = tippo.sft_loss(writer(items).train(), batch)
    without = tippo.sft_loss(writer(items, use_contrastive=False).train(), batch)
    assert without.keys() == {"ntp"}
    torch.testing.assert_close(with_it["contrast"], 3 * once["contrast"])
    torch.testing.assert_close(with_it["ntp"], without["ntp"])


def test_the_token_loss_is_a_mean_over_tokens(items, batch):
    model = writer(items)
    tokens = (batch["labels"] != IGNORE_INDEX).sum()
    expected = -log_probs(model, batch).sum() / tokens
    torch.testing.assert_close(tippo.sft_loss(model, batch)["ntp"], expected)


@pytest.mark.parametrize(
    ("changes", "said"),
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
def test_a_network_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        tiny_tippo.build_model_config(**changes)
