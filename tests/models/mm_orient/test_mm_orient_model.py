"""MM-ORIENT: each equation against loops, and what must change nothing."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from stages.models.mm_orient import model as mm_orient
from stages.models.mm_orient.dataset import UNJUDGED
from stages.models.mm_orient.model import GRAPHS, Model, Network, Shapes
from stages.shared.core.config import fill, read
from stages.shared.runtime.stage import WrongInput
from tests.support import tiny_mm_orient
from tests.support.tiny_mm_orient import (
    D_T,
    ITEMS,
    TASKS,
    VARIANTS,
    batch,
    everything,
    model,
    name,
    network,
    probabilities,
)

close = torch.testing.assert_close
TIGHT = {"rtol": 0, "atol": 1e-6}
VARIED = pytest.mark.parametrize("changes", VARIANTS, ids=name)
double = torch.double


# -------------------------------------------------------------------------------------- the numbers
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden": []}, "hidden must name a layer"),
        ({"hidden": [8, 0]}, "sizes of hidden must be 1 or more"),
        ({"relations__bank": 0}, "relations.bank .* must be 1 or more"),
        ({"relations__width": 0}, "relations.width"),
        ({"attention_width": 0}, "attention_width"),
        ({"bias_momentum": 0.0}, "bias_momentum must be above 0"),
        ({"dropout": 1.0}, "dropout must be 0 or more and below 1"),
        ({"relations__thresholds": {"tt": 0.5}}, "relations.thresholds must be of tt, ii, ti, it"),
        ({"relations__thresholds": dict.fromkeys(GRAPHS, 1.5)}, "must be from -1 to 1"),
        ({"relations__density": 1.5}, "relations.density must be from 0 to 1, or null"),
        ({"noise__training": -1.0}, "noise, missing_picture and missing_text must be 0 or more"),
        ({"missing_text": 0.6, "missing_picture": 0.5}, "missing_picture [+] missing_text pass 1"),
    ],
)
def test_numbers_out_of_bounds_are_a_sentence(changes, sentence):
    with pytest.raises(WrongInput, match=f"models.mm_orient.network: .*{sentence}"):
        network(**changes)


def test_the_preset_of_the_paper_has_the_sizes_of_its_code():
    values = read()["models"]["mm_orient"]["network"]
    paper = YAML(typ="safe").load(Path("presets/paper_mm_orient.yaml"))
    changes = paper["models"]["mm_orient"]["network"]
    relations = values["relations"] | changes.pop("relations")
    found = fill(Network, values | changes | {"relations": relations}, "preset")
    shapes = Shapes({"sentiment": 3}, 768, 2048, 512, 784)
    made = Model(found, shapes)
    # [HIMA 2 * 768 + 2 * 2048 | CMRL 4 * 512 | task features 784]
    assert made.learner[0].in_features == 8464
    assert [layer.out_features for layer in made.learner[::3]] == [4618, 2048]
    # The code's thresholds; its relation features have length 1, its regions no LayerNorm.
    assert set(found.relations.thresholds.values()) == {0.9}
    assert (found.relations.density, found.relations.scale, found.layer_norm) == (
        None,
        "unit",
        False,
    )


# -------------------------------------------------------------------------------------------- HIMA
def scores_of(attention, q: torch.Tensor) -> torch.Tensor:
    """h of one vector, written out."""
    u = F.gelu(attention.score.weight @ q + attention.score.bias)
    return u[0] if attention.context is None else attention.context.weight[0] @ u


@pytest.mark.parametrize("attention", ["linear", "context_vector"])
@pytest.mark.parametrize("hima", ["both", "first", "second", "none"])
def test_hima_is_its_equations_item_by_item(hima, attention):
    of, given = (
        model(double, hima=hima, attention=attention, bias="batch", layer_norm=False),
        everything(double),
    )
    found = of.read(given).words
    vectors, there = [], []
    for row, mask in zip(given["tokens"], given["token_mask"], strict=True):
        pieces = [q for q, held in zip(row, mask, strict=True) if held]
        if of.read_pieces.first is None:
            h = [torch.zeros((), dtype=double) for _ in pieces]
        else:
            h = [scores_of(of.read_pieces.first, q) for q in pieces]
        total = sum(torch.exp(x) for x in h)
        v = sum((torch.exp(x) / total * q for x, q in zip(h, pieces, strict=True)), row[0] * 0)
        vectors.append(v)
        there.append(bool(pieces))
    if of.read_pieces.second is not None:
        h = [scores_of(of.read_pieces.second, v) for v in vectors]
        total = sum(torch.exp(x) for x, held in zip(h, there, strict=True) if held)
        z = sum(torch.exp(h[i]) / total * vectors[i] for i in range(ITEMS) if there[i])
        vectors = [torch.cat([v, z]) for v in vectors]
    close(found.vector, torch.stack(vectors), **TIGHT)


def test_evaluation_reads_the_running_mean_of_the_bias_of_training():
    of, given = model(double), everything(double)
    hima = of.read_pieces
    hima.bias.zero_()
    seen = []
    for places in ([0, 1, 3], [4, 5, 6], [8, 9, 10]):
        shown = batch(*places, dtype=double)
        of.eval()
        hima.network = network(bias="batch")
        seen.append(of.read(shown).words.vector[0, D_T:].detach())
        of.train()
        of(shown)
    of.eval()
    expected = seen[0]  # the first one is taken as it is
    for z in seen[1:]:
        expected = 0.5 * expected + 0.5 * z
    hima.network = network()
    close(of.read(given).words.vector[:, D_T:], expected.expand(ITEMS, -1), **TIGHT)
    hima.network = network(bias="zero")
    assert not of.read(given).words.vector[:, D_T:].any()


def test_a_batch_without_text_leaves_the_bias_as_it_was():
    of = model()
    before = of.read_pieces.bias.clone()
    of.train()(batch(*tiny_mm_orient.WITHOUT_TEXT))
    close(of.read_pieces.bias, before, rtol=0, atol=0)


def test_attention_under_bf16_keeps_its_mask_and_sums_to_one():
    of, given = model(), everything()
    with torch.autocast("cpu", torch.bfloat16):
        words, regions = of.read(given).words, of.read(given).regions
        logits = of(given)
    for found in (words, regions):
        assert not found.weights[~found.mask].any()
        held = found.mask.any(1)
        close(found.weights.sum(1), held.float(), rtol=0, atol=1e-3)
    assert all(value.isfinite().all() for value in logits.values())
    close(logits["humour"].float(), of(given)["humour"], rtol=0.1, atol=0.1)


# ---------------------------------------------------------------------------------------- the loss
def test_the_loss_is_the_mean_over_judged_items_of_each_task():
    of, given = model(double), everything(double)
    logits, terms = of(given), mm_orient.loss(of, given)
    assert list(terms) == list(TASKS)
    for place, task in enumerate(TASKS):
        nats = [
            math.log(sum(math.exp(x) for x in row)) - row[label]
            for row, label in zip(
                logits[task].tolist(), given["labels"][:, place].tolist(), strict=True
            )
            if label != UNJUDGED
        ]
        assert terms[task].item() == pytest.approx(sum(nats) / len(nats), abs=1e-6)


def test_rare_labels_count_more_by_how_rare_they_are():
    of, given = model(double, class_weights="balanced"), everything(double)
    for place, (task, labels) in enumerate(TASKS.items()):
        gold = [label for label in given["labels"][:, place].tolist() if label != UNJUDGED]
        expected = [len(gold) / (labels * gold.count(label)) for label in range(labels)]
        close(of.label_weights[place, :labels], torch.tensor(expected, dtype=double))
        logs = of(given)[task].log_softmax(-1)
        held = [i for i in range(ITEMS) if given["labels"][i, place] != UNJUDGED]
        nats = [-logs[i, y] * expected[y] for i, y in zip(held, gold, strict=True)]
        mean = sum(nats) / sum(expected[y] for y in gold)
        close(mm_orient.loss(of, given)[task], mean, **TIGHT)


def test_a_label_that_training_never_shows_counts_as_the_others():
    of, given = model(class_weights="balanced"), everything()
    given["labels"][given["labels"] == 1] = 0
    mm_orient.measure(of, given)
    assert of.label_weights[:, 1].tolist() == [1.0] * len(TASKS)


def test_a_learned_variance_weighs_each_task():
    of, plain, given = (
        model(double, task_weights="uncertainty"),
        model(double),
        everything(double),
    )
    with torch.no_grad():
        of.log_variance.copy_(torch.tensor([0.0, 1.0, -2.0]))
    terms, bare = mm_orient.loss(of, given), mm_orient.loss(plain, given)
    for s, task in zip((0.0, 1.0, -2.0), TASKS, strict=True):
        assert terms[task].item() == pytest.approx(math.exp(-s) * bare[task].item() + s / 2)


@pytest.mark.parametrize("task_weights", ["equal", "uncertainty"])
def test_a_task_that_nobody_judged_teaches_nothing(task_weights):
    of, given = model(task_weights=task_weights).train(), everything()
    given["labels"][:, 1] = UNJUDGED
    terms = mm_orient.loss(of, given)
    assert terms["humour"] == 0
    sum(terms.values()).backward()
    assert not of.heads[1].weight.grad.any()
    assert of.heads[0].weight.grad.any()
    if task_weights == "uncertainty":
        assert of.log_variance.grad[1] == 0


def test_an_item_that_nobody_judged_does_not_change_the_heads():
    of, given = model(double, use_cmrl=False, hima="first"), everything(double)
    without = batch(*(i for i in range(ITEMS) if i != 5), dtype=double)
    assert (given["labels"][5] == UNJUDGED).all()
    for task, term in mm_orient.loss(of, given).items():
        close(term, mm_orient.loss(of, without)[task], **TIGHT)


# ------------------------------------------------------------------------- what must change nothing
@VARIED
def test_neither_batch_nor_order_changes_a_prediction(changes):
    of = model(**changes)
    together = probabilities(of, everything())
    order = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(1)).tolist()
    for size in (1, 5, ITEMS):
        for start in range(0, ITEMS, size):
            places = order[start : start + size]
            close(probabilities(of, batch(*places)), together[places], **TIGHT)


@VARIED
def test_neither_padding_nor_what_is_missing_changes_anything(changes):
    of, given = model(**changes), everything()
    shown = {key: value.clone() for key, value in given.items()}
    shown["tokens"] = F.pad(shown["tokens"], (0, 0, 0, 3))
    shown["token_mask"] = F.pad(shown["token_mask"], (0, 3))
    shown["tokens"][~shown["token_mask"]] = 100.0
    for key, has in (("text_clip", "has_text"), ("task_features", "has_text")):
        shown[key][~shown[has]] = 100.0
    for key in ("regions", "picture_clip"):
        shown[key][~shown["has_picture"]] = 100.0
    for mode in (False, True):
        of.train(mode)
        close(torch.cat(list(of(shown).values()), 1), torch.cat(list(of(given).values()), 1))


@VARIED
def test_every_weight_gets_a_gradient(changes):
    of = model(**changes).train()
    sum(mm_orient.loss(of, everything()).values()).backward()
    without = [key for key, weight in of.named_parameters() if not weight.grad.any()]
    assert without == []


@VARIED
def test_one_batch_can_be_memorised(changes):
    if changes.get("inputs") in ("text_only", "regions_only"):
        pytest.skip("items without this modality look alike")
    of, given = model(**changes | {"hidden": [64]}).train(), everything()
    optimizer = torch.optim.Adam(of.parameters(), lr=0.02)
    for _ in range(60):
        total = sum(mm_orient.loss(of, given).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    logits = of(given)
    for place, task in enumerate(TASKS):
        judged = given["labels"][:, place] != UNJUDGED
        assert torch.equal(logits[task].argmax(-1)[judged], given["labels"][judged, place])


@VARIED
def test_a_saved_model_predicts_the_same_without_being_measured(changes, tmp_path):
    of, given = model(**changes), everything()
    save_file(of.state_dict(), tmp_path / "model.safetensors")
    values = asdict(of.network), asdict(of.shapes)
    again = Model(fill(Network, values[0], "n"), fill(Shapes, values[1], "s")).eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(probabilities(again, given), probabilities(of, given))


def test_without_task_features_the_rest_works():
    of, given = model(features=0), everything()
    given["task_features"] = given["task_features"][:, :0]
    assert probabilities(of, given).shape == (ITEMS, sum(TASKS.values()))
    sum(mm_orient.loss(of.train(), given).values()).backward()


def test_training_hides_a_share_of_texts_and_pictures():
    of, given = model(missing_text=1.0), batch(0, 1, 3, 5)
    hidden = given | {"has_text": torch.zeros(4, dtype=torch.bool)}
    close(probabilities(of, given), probabilities(model(), given))
    expected = mm_orient.loss(model().train(), hidden)
    for task, term in mm_orient.loss(of.train(), given).items():
        close(term, expected[task])


# -------------------------------------------------------------------------------------------- noise
def test_noise_in_evaluation_is_an_items_own_and_training_has_none_of_it():
    noisy, plain = model(noise__evaluation=0.5), model()
    together = probabilities(noisy, everything())
    assert (together - probabilities(plain, everything())).abs().max() > 1e-3
    for start in range(0, ITEMS, 5):
        places = range(start, min(start + 5, ITEMS))
        close(probabilities(noisy, batch(*places)), together[list(places)], **TIGHT)
    for task, logits in noisy.train()(everything()).items():
        close(logits, plain.train()(everything())[task])


def test_noise_in_training_is_drawn_anew():
    of = model(noise__training=0.5)
    close(probabilities(of, everything()), probabilities(model(), everything()))
    first, second = (of.train()(everything())["humour"] for _ in range(2))
    assert not torch.equal(first, second)


# ------------------------------------------------------------------------------------ what is shown
def test_decisions_are_the_most_probable_labels():
    found = mm_orient.decide(model(), everything())
    for task, labels in TASKS.items():
        assert found.probabilities[task].shape == (ITEMS, labels)
        close(found.probabilities[task].sum(1), torch.ones(ITEMS))
        assert torch.equal(found.labels[task], found.probabilities[task].argmax(1))


def test_evenness_is_one_of_equal_weights_and_zero_of_a_single_one():
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.25, 0.25], [1.0, 0, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    found = mm_orient.evenness(weights, mask).tolist()
    assert found[:3] == pytest.approx([1.0, 0.0, 1.5 * math.log(2) / math.log(3)])
    assert math.isnan(found[3])


@VARIED
def test_looks_are_weights_of_pieces_regions_and_items(changes):
    of, given = model(**changes), everything()
    found, inputs = mm_orient.look(of, given), changes.get("inputs", "full")
    assert (found.words is None) == (inputs in ("regions_only", "clip"))
    assert (found.regions is None) == (inputs in ("text_only", "clip"))
    if found.words is not None:
        close(found.words.sum(1), given["has_text"].float())
        assert not found.words[~given["token_mask"]].any()
    if found.batch_regions is not None:
        assert inputs == "full"
        close(found.batch_regions.sum(), torch.tensor(1.0))
        assert not found.batch_regions[~given["has_picture"]].any()
