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
from stages.models.mm_orient.dataset import UNLABELED
from stages.models.mm_orient.model import GRAPHS, InputDims, Model, ModelConfig
from stages.shared.core.config import build_config, read_params
from stages.shared.runtime.stage import InputError
from tests.support import tiny_mm_orient
from tests.support.tiny_mm_orient import (
    D_T,
    NUM_ITEMS,
    TASKS,
    VARIANTS,
    build_model,
    build_model_config,
    make_batch,
    make_full_batch,
    predict_probabilities,
    variant_id,
)

close = torch.testing.assert_close
TIGHT = {"rtol": 0, "atol": 1e-6}
VARIED = pytest.mark.parametrize("changes", VARIANTS, ids=variant_id)
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
    with pytest.raises(InputError, match=f"models.mm_orient.network: .*{sentence}"):
        build_model_config(**changes)


def test_the_preset_of_the_paper_has_the_sizes_of_its_code():
    values = read_params()["models"]["mm_orient"]["network"]
    paper = YAML(typ="safe").load(Path("presets/paper_mm_orient.yaml"))
    changes = paper["models"]["mm_orient"]["network"]
    relations = values["relations"] | changes.pop("relations")
    found = build_config(ModelConfig, values | changes | {"relations": relations}, "preset")
    shapes = InputDims({"sentiment": 3}, 768, 2048, 512, 784)
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
        build_model(
            double,
            hima_levels=hima,
            attention_dim=attention,
            eval_bias="batch",
            use_layer_norm=False,
        ),
        make_full_batch(double),
    )
    found = of.compute_features(given).text
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
        z = sum(torch.exp(h[i]) / total * vectors[i] for i in range(NUM_ITEMS) if there[i])
        vectors = [torch.cat([v, z]) for v in vectors]
    close(found.vector, torch.stack(vectors), **TIGHT)


def test_evaluation_reads_the_running_mean_of_the_bias_of_training():
    of, given = build_model(double), make_full_batch(double)
    hima = of.read_pieces
    hima.bias.zero_()
    seen = []
    for places in ([0, 1, 3], [4, 5, 6], [8, 9, 10]):
        shown = make_batch(*places, dtype=double)
        of.eval()
        hima.network = build_model_config(eval_bias="batch")
        seen.append(of.compute_features(shown).text.vector[0, D_T:].detach())
        of.train()
        of(shown)
    of.eval()
    expected = seen[0]  # the first one is taken as it is
    for z in seen[1:]:
        expected = 0.5 * expected + 0.5 * z
    hima.network = build_model_config()
    close(of.compute_features(given).text.vector[:, D_T:], expected.expand(NUM_ITEMS, -1), **TIGHT)
    hima.network = build_model_config(eval_bias="zero")
    assert not of.compute_features(given).text.vector[:, D_T:].any()


def test_a_batch_without_text_leaves_the_bias_as_it_was():
    of = build_model()
    before = of.read_pieces.bias.clone()
    of.train()(make_batch(*tiny_mm_orient.WITHOUT_TEXT))
    close(of.read_pieces.bias, before, rtol=0, atol=0)


def test_attention_under_bf16_keeps_its_mask_and_sums_to_one():
    of, given = build_model(), make_full_batch()
    with torch.autocast("cpu", torch.bfloat16):
        words, regions = of.compute_features(given).text, of.compute_features(given).image
        logits = of(given)
    for found in (words, regions):
        assert not found.weights[~found.mask].any()
        held = found.mask.any(1)
        close(found.weights.sum(1), held.float(), rtol=0, atol=1e-3)
    assert all(value.isfinite().all() for value in logits.values())
    close(logits["humour"].float(), of(given)["humour"], rtol=0.1, atol=0.1)


# ---------------------------------------------------------------------------------------- the loss
def test_the_loss_is_the_mean_over_judged_items_of_each_task():
    of, given = build_model(double), make_full_batch(double)
    logits, terms = of(given), mm_orient.compute_loss(of, given)
    assert list(terms) == list(TASKS)
    for place, task in enumerate(TASKS):
        nats = [
            math.log(sum(math.exp(x) for x in row)) - row[label]
            for row, label in zip(
                logits[task].tolist(), given["labels"][:, place].tolist(), strict=True
            )
            if label != UNLABELED
        ]
        assert terms[task].item() == pytest.approx(sum(nats) / len(nats), abs=1e-6)


def test_rare_labels_count_more_by_how_rare_they_are():
    of, given = build_model(double, class_weight="balanced"), make_full_batch(double)
    for place, (task, labels) in enumerate(TASKS.items()):
        gold = [label for label in given["labels"][:, place].tolist() if label != UNLABELED]
        expected = [len(gold) / (labels * gold.count(label)) for label in range(labels)]
        close(of.label_weights[place, :labels], torch.tensor(expected, dtype=double))
        logs = of(given)[task].log_softmax(-1)
        held = [i for i in range(NUM_ITEMS) if given["labels"][i, place] != UNLABELED]
        nats = [-logs[i, y] * expected[y] for i, y in zip(held, gold, strict=True)]
        mean = sum(nats) / sum(expected[y] for y in gold)
        close(mm_orient.compute_loss(of, given)[task], mean, **TIGHT)


def test_a_label_that_training_never_shows_counts_as_the_others():
    of, given = build_model(class_weight="balanced"), make_full_batch()
    given["labels"][given["labels"] == 1] = 0
    mm_orient.fit_statistics(of, given)
    assert of.label_weights[:, 1].tolist() == [1.0] * len(TASKS)


def test_a_learned_variance_weighs_each_task():
    of, plain, given = (
        build_model(double, task_weighting="uncertainty"),
        build_model(double),
        make_full_batch(double),
    )
    with torch.no_grad():
        of.log_variance.copy_(torch.tensor([0.0, 1.0, -2.0]))
    terms, bare = mm_orient.compute_loss(of, given), mm_orient.compute_loss(plain, given)
    for s, task in zip((0.0, 1.0, -2.0), TASKS, strict=True):
        assert terms[task].item() == pytest.approx(math.exp(-s) * bare[task].item() + s / 2)


@pytest.mark.parametrize("task_weights", ["equal", "uncertainty"])
def test_a_task_that_nobody_judged_teaches_nothing(task_weights):
    of, given = build_model(task_weighting=task_weights).train(), make_full_batch()
    given["labels"][:, 1] = UNLABELED
    terms = mm_orient.compute_loss(of, given)
    assert terms["humour"] == 0
    sum(terms.values()).backward()
    assert not of.heads[1].weight.grad.any()
    assert of.heads[0].weight.grad.any()
    if task_weights == "uncertainty":
        assert of.log_variance.grad[1] == 0


def test_an_item_that_nobody_judged_does_not_change_the_heads():
    of, given = build_model(double, use_cmrl=False, hima_levels="first"), make_full_batch(double)
    without = make_batch(*(i for i in range(NUM_ITEMS) if i != 5), dtype=double)
    assert (given["labels"][5] == UNLABELED).all()
    for task, term in mm_orient.compute_loss(of, given).items():
        close(term, mm_orient.compute_loss(of, without)[task], **TIGHT)


# ------------------------------------------------------------------------- what must change nothing
@VARIED
def test_neither_batch_nor_order_changes_a_prediction(changes):
    of = build_model(**changes)
    together = predict_probabilities(of, make_full_batch())
    order = torch.randperm(NUM_ITEMS, generator=torch.Generator().manual_seed(1)).tolist()
    for size in (1, 5, NUM_ITEMS):
        for start in range(0, NUM_ITEMS, size):
            places = order[start : start + size]
            close(predict_probabilities(of, make_batch(*places)), together[places], **TIGHT)


@VARIED
def test_neither_padding_nor_what_is_missing_changes_anything(changes):
    of, given = build_model(**changes), make_full_batch()
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
    of = build_model(**changes).train()
    sum(mm_orient.compute_loss(of, make_full_batch()).values()).backward()
    without = [key for key, weight in of.named_parameters() if not weight.grad.any()]
    assert without == []


@VARIED
def test_one_batch_can_be_memorised(changes):
    if changes.get("inputs") in ("text_only", "regions_only"):
        pytest.skip("items without this modality look alike")
    of, given = build_model(**changes | {"hidden": [64]}).train(), make_full_batch()
    optimizer = torch.optim.Adam(of.parameters(), lr=0.02)
    for _ in range(60):
        total = sum(mm_orient.compute_loss(of, given).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    logits = of(given)
    for place, task in enumerate(TASKS):
        judged = given["labels"][:, place] != UNLABELED
        assert torch.equal(logits[task].argmax(-1)[judged], given["labels"][judged, place])


@VARIED
def test_a_saved_model_predicts_the_same_without_being_measured(changes, tmp_path):
    of, given = build_model(**changes), make_full_batch()
    save_file(of.state_dict(), tmp_path / "model.safetensors")
    values = asdict(of.network), asdict(of.shapes)
    again = Model(
        build_config(ModelConfig, values[0], "n"), build_config(InputDims, values[1], "s")
    ).eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(predict_probabilities(again, given), predict_probabilities(of, given))


def test_without_task_features_the_rest_works():
    of, given = build_model(features=0), make_full_batch()
    given["task_features"] = given["task_features"][:, :0]
    assert predict_probabilities(of, given).shape == (NUM_ITEMS, sum(TASKS.values()))
    sum(mm_orient.compute_loss(of.train(), given).values()).backward()


def test_training_hides_a_share_of_texts_and_pictures():
    of, given = build_model(text_drop_prob=1.0), make_batch(0, 1, 3, 5)
    hidden = given | {"has_text": torch.zeros(4, dtype=torch.bool)}
    close(predict_probabilities(of, given), predict_probabilities(build_model(), given))
    expected = mm_orient.compute_loss(build_model().train(), hidden)
    for task, term in mm_orient.compute_loss(of.train(), given).items():
        close(term, expected[task])


# -------------------------------------------------------------------------------------------- noise
def test_noise_in_evaluation_is_an_items_own_and_training_has_none_of_it():
    noisy, plain = build_model(noise__evaluation=0.5), build_model()
    together = predict_probabilities(noisy, make_full_batch())
    assert (together - predict_probabilities(plain, make_full_batch())).abs().max() > 1e-3
    for start in range(0, NUM_ITEMS, 5):
        places = range(start, min(start + 5, NUM_ITEMS))
        close(predict_probabilities(noisy, make_batch(*places)), together[list(places)], **TIGHT)
    for task, logits in noisy.train()(make_full_batch()).items():
        close(logits, plain.train()(make_full_batch())[task])


def test_noise_in_training_is_drawn_anew():
    of = build_model(noise__training=0.5)
    close(
        predict_probabilities(of, make_full_batch()),
        predict_probabilities(build_model(), make_full_batch()),
    )
    first, second = (of.train()(make_full_batch())["humour"] for _ in range(2))
    assert not torch.equal(first, second)


# ------------------------------------------------------------------------------------ what is shown
def test_decisions_are_the_most_probable_labels():
    found = mm_orient.predict(build_model(), make_full_batch())
    for task, labels in TASKS.items():
        assert found.probabilities[task].shape == (NUM_ITEMS, labels)
        close(found.probabilities[task].sum(1), torch.ones(NUM_ITEMS))
        assert torch.equal(found.labels[task], found.probabilities[task].argmax(1))


def test_evenness_is_one_of_equal_weights_and_zero_of_a_single_one():
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.25, 0.25], [1.0, 0, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    found = mm_orient.normalized_entropy(weights, mask).tolist()
    assert found[:3] == pytest.approx([1.0, 0.0, 1.5 * math.log(2) / math.log(3)])
    assert math.isnan(found[3])


@VARIED
def test_looks_are_weights_of_pieces_regions_and_items(changes):
    of, given = build_model(**changes), make_full_batch()
    found, inputs = mm_orient.attention_maps(of, given), changes.get("inputs", "full")
    assert (found.subwords is None) == (inputs in ("regions_only", "clip"))
    assert (found.regions is None) == (inputs in ("text_only", "clip"))
    if found.subwords is not None:
        close(found.subwords.sum(1), given["has_text"].float())
        assert not found.subwords[~given["token_mask"]].any()
    if found.batch_image is not None:
        assert inputs == "full"
        close(found.batch_image.sum(), torch.tensor(1.0))
        assert not found.batch_image[~given["has_picture"]].any()
