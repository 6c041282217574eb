"""MM-ORIENT: equations against explicit loops, and invariances of the model."""

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
    config_values,
    make_batch,
    make_full_batch,
    predict_probabilities,
    variant_id,
)

assert_close = torch.testing.assert_close
TIGHT = {"rtol": 0, "atol": 1e-6}
VARIED = pytest.mark.parametrize("changes", VARIANTS, ids=variant_id)
double = torch.double


# -------------------------------------------------------------------------------------- the config
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_layer_sizes": []}, "hidden_layer_sizes is empty: give one size or more"),
        ({"hidden_layer_sizes": [8, 0]}, r"hidden_layer_sizes\[1\] is 0: give 1 or more"),
        ({"relations__memory_bank_size": 0}, "relations.memory_bank_size is 0: give 1 or more"),
        ({"relations__output_dim": 0}, "relations.output_dim is 0: give 1 or more"),
        ({"attention_dim": 0}, "attention_dim is 0: give 1 or more"),
        ({"bias_momentum": 0.0}, "bias_momentum is 0.0: give more than 0"),
        ({"dropout": 1.0}, "dropout is 1.0: give less than 1"),
        ({"relations__thresholds": {"tt": 0.5}}, "thresholds must have the keys tt, ii, ti, it"),
        ({"relations__thresholds": dict.fromkeys(GRAPHS, 1.5)}, "thresholds.tt is 1.5: give 1 or"),
        ({"relations__density": 1.5}, "relations.density is 1.5: give 1 or less"),
        ({"feature_noise__train_std": -1.0}, "feature_noise.train_std is -1.0: give 0 or more"),
        (
            {"text_drop_prob": 0.6, "image_drop_prob": 0.5},
            r"image_drop_prob \+ text_drop_prob is above 1",
        ),
    ],
)
def test_values_out_of_range_are_rejected_in_one_sentence(changes, message):
    with pytest.raises(InputError, match=f"models.mm_orient.network.*{message}"):
        build_config(ModelConfig, config_values(**changes), "models.mm_orient.network")


def test_the_paper_preset_has_the_sizes_of_the_public_code():
    values = read_params()["models"]["mm_orient"]["network"]
    paper = YAML(typ="safe").load(Path("presets/paper_mm_orient.yaml"))
    changes = paper["models"]["mm_orient"]["network"]
    relations = values["relations"] | changes.pop("relations")
    config = build_config(ModelConfig, values | changes | {"relations": relations}, "preset")
    dims = InputDims(
        tasks={"sentiment": 3},
        text_width=768,
        region_width=2048,
        pooled_width=512,
        task_features=784,
    )
    model = Model(config, dims)
    # [HIMA 2 * 768 + 2 * 2048 | CMRL 4 * 512 | task features 784]
    assert model.learner[0].in_features == 8464
    assert [layer.out_features for layer in model.learner[::3]] == [4618, 2048]
    # As in the code: thresholds, relation features of length 1, no LayerNorm.
    assert set(config.relations.thresholds.values()) == {0.9}
    assert (config.relations.density, config.relations.scale, config.use_layer_norm) == (
        None,
        "unit",
        False,
    )


# -------------------------------------------------------------------------------------------- HIMA
def compute_score(attention, q: torch.Tensor) -> torch.Tensor:
    """h of one vector, from the weights."""
    u = F.gelu(attention.score.weight @ q + attention.score.bias)
    return u[0] if attention.context is None else attention.context.weight[0] @ u


@pytest.mark.parametrize("attention", ["linear", "context_vector"])
@pytest.mark.parametrize("hima", ["both", "first", "second", "none"])
def test_hima_matches_its_equations_item_by_item(hima, attention):
    model, batch = (
        build_model(
            double,
            hima_levels=hima,
            attention=attention,
            eval_bias="batch",
            use_layer_norm=False,
        ),
        make_full_batch(double),
    )
    output = model.compute_features(batch).text
    vectors, available = [], []
    for row, mask in zip(batch["tokens"], batch["token_mask"], strict=True):
        subwords = [q for q, valid in zip(row, mask, strict=True) if valid]
        if model.read_pieces.first is None:
            h = [torch.zeros((), dtype=double) for _ in subwords]
        else:
            h = [compute_score(model.read_pieces.first, q) for q in subwords]
        total = sum(torch.exp(x) for x in h)
        v = sum((torch.exp(x) / total * q for x, q in zip(h, subwords, strict=True)), row[0] * 0)
        vectors.append(v)
        available.append(bool(subwords))
    if model.read_pieces.second is not None:
        h = [compute_score(model.read_pieces.second, v) for v in vectors]
        total = sum(torch.exp(x) for x, has in zip(h, available, strict=True) if has)
        z = sum(torch.exp(h[i]) / total * vectors[i] for i in range(NUM_ITEMS) if available[i])
        vectors = [torch.cat([v, z]) for v in vectors]
    assert_close(output.vector, torch.stack(vectors), **TIGHT)


def test_evaluation_uses_the_running_mean_of_the_training_bias():
    model, batch = build_model(double), make_full_batch(double)
    hima = model.read_pieces
    hima.bias.zero_()
    biases = []
    for items in ([0, 1, 3], [4, 5, 6], [8, 9, 10]):
        train_batch = make_batch(*items, dtype=double)
        model.eval()
        hima.network = build_model_config(eval_bias="batch")
        biases.append(model.compute_features(train_batch).text.vector[0, D_T:].detach())
        model.train()
        model(train_batch)
    model.eval()
    expected = biases[0]  # the first one replaces the initial zero
    for z in biases[1:]:
        expected = 0.5 * expected + 0.5 * z
    hima.network = build_model_config()
    assert_close(
        model.compute_features(batch).text.vector[:, D_T:], expected.expand(NUM_ITEMS, -1), **TIGHT
    )
    hima.network = build_model_config(eval_bias="zero")
    assert not model.compute_features(batch).text.vector[:, D_T:].any()


def test_a_batch_without_texts_does_not_change_the_bias():
    model = build_model()
    before = model.read_pieces.bias.clone()
    model.train()(make_batch(*tiny_mm_orient.WITHOUT_TEXT))
    assert_close(model.read_pieces.bias, before, rtol=0, atol=0)


def test_attention_weights_under_bf16_respect_the_mask_and_sum_to_one():
    model, batch = build_model(), make_full_batch()
    with torch.autocast("cpu", torch.bfloat16):
        text, image = model.compute_features(batch).text, model.compute_features(batch).image
        logits = model(batch)
    for output in (text, image):
        assert not output.weights[~output.mask].any()
        available = output.mask.any(1)
        assert_close(output.weights.sum(1), available.float(), rtol=0, atol=1e-3)
    assert all(value.isfinite().all() for value in logits.values())
    assert_close(logits["humour"].float(), model(batch)["humour"], rtol=0.1, atol=0.1)


# ---------------------------------------------------------------------------------------- the loss
def test_the_loss_of_a_task_is_the_mean_over_its_labeled_items():
    model, batch = build_model(double), make_full_batch(double)
    logits, terms = model(batch), mm_orient.compute_loss(model, batch)
    assert list(terms) == list(TASKS)
    for index, task in enumerate(TASKS):
        nats = [
            math.log(sum(math.exp(x) for x in row)) - row[label]
            for row, label in zip(
                logits[task].tolist(), batch["labels"][:, index].tolist(), strict=True
            )
            if label != UNLABELED
        ]
        assert terms[task].item() == pytest.approx(sum(nats) / len(nats), abs=1e-6)


def test_balanced_weights_are_inversely_proportional_to_label_frequency():
    model, batch = build_model(double, class_weight="balanced"), make_full_batch(double)
    for index, (task, labels) in enumerate(TASKS.items()):
        gold = [label for label in batch["labels"][:, index].tolist() if label != UNLABELED]
        expected = [len(gold) / (labels * gold.count(label)) for label in range(labels)]
        assert_close(model.label_weights[index, :labels], torch.tensor(expected, dtype=double))
        logs = model(batch)[task].log_softmax(-1)
        labeled = [i for i in range(NUM_ITEMS) if batch["labels"][i, index] != UNLABELED]
        nats = [-logs[i, y] * expected[y] for i, y in zip(labeled, gold, strict=True)]
        mean = sum(nats) / sum(expected[y] for y in gold)
        assert_close(mm_orient.compute_loss(model, batch)[task], mean, **TIGHT)


def test_a_label_that_is_absent_in_training_has_weight_one():
    model, batch = build_model(class_weight="balanced"), make_full_batch()
    batch["labels"][batch["labels"] == 1] = 0
    mm_orient.fit_statistics(model, batch)
    assert model.label_weights[:, 1].tolist() == [1.0] * len(TASKS)


def test_learned_variances_weight_the_tasks():
    model, plain, batch = (
        build_model(double, task_weighting="uncertainty"),
        build_model(double),
        make_full_batch(double),
    )
    with torch.no_grad():
        model.log_variance.copy_(torch.tensor([0.0, 1.0, -2.0]))
    terms, bare = mm_orient.compute_loss(model, batch), mm_orient.compute_loss(plain, batch)
    for s, task in zip((0.0, 1.0, -2.0), TASKS, strict=True):
        assert terms[task].item() == pytest.approx(math.exp(-s) * bare[task].item() + s / 2)


@pytest.mark.parametrize("task_weighting", ["equal", "uncertainty"])
def test_a_task_without_labels_has_no_gradient(task_weighting):
    model, batch = build_model(task_weighting=task_weighting).train(), make_full_batch()
    batch["labels"][:, 1] = UNLABELED
    terms = mm_orient.compute_loss(model, batch)
    assert terms["humour"] == 0
    sum(terms.values()).backward()
    assert not model.heads[1].weight.grad.any()
    assert model.heads[0].weight.grad.any()
    if task_weighting == "uncertainty":
        assert model.log_variance.grad[1] == 0


def test_an_unlabeled_item_does_not_change_the_loss():
    model, batch = build_model(double, use_cmrl=False, hima_levels="first"), make_full_batch(double)
    without = make_batch(*(i for i in range(NUM_ITEMS) if i != 5), dtype=double)
    assert (batch["labels"][5] == UNLABELED).all()
    for task, term in mm_orient.compute_loss(model, batch).items():
        assert_close(term, mm_orient.compute_loss(model, without)[task], **TIGHT)


# -------------------------------------------------------------------------------------- invariances
@VARIED
def test_predictions_do_not_depend_on_batch_composition_or_order(changes):
    model = build_model(**changes)
    together = predict_probabilities(model, make_full_batch())
    order = torch.randperm(NUM_ITEMS, generator=torch.Generator().manual_seed(1)).tolist()
    for size in (1, 5, NUM_ITEMS):
        for start in range(0, NUM_ITEMS, size):
            items = order[start : start + size]
            assert_close(predict_probabilities(model, make_batch(*items)), together[items], **TIGHT)


@VARIED
def test_padding_and_values_of_missing_modalities_change_nothing(changes):
    model, batch = build_model(**changes), make_full_batch()
    padded = {key: value.clone() for key, value in batch.items()}
    padded["tokens"] = F.pad(padded["tokens"], (0, 0, 0, 3))
    padded["token_mask"] = F.pad(padded["token_mask"], (0, 3))
    padded["tokens"][~padded["token_mask"]] = 100.0
    for key, has in (("text_clip", "has_text"), ("task_features", "has_text")):
        padded[key][~padded[has]] = 100.0
    for key in ("regions", "picture_clip"):
        padded[key][~padded["has_picture"]] = 100.0
    for mode in (False, True):
        model.train(mode)
        assert_close(
            torch.cat(list(model(padded).values()), 1), torch.cat(list(model(batch).values()), 1)
        )


@VARIED
def test_every_weight_gets_a_gradient(changes):
    model = build_model(**changes).train()
    sum(mm_orient.compute_loss(model, make_full_batch()).values()).backward()
    without = [key for key, weight in model.named_parameters() if not weight.grad.any()]
    assert without == []


@VARIED
def test_one_batch_can_be_memorized(changes):
    if changes.get("inputs") in ("text_only", "regions_only"):
        pytest.skip("items without this modality are identical")
    model, batch = build_model(**changes | {"hidden_layer_sizes": [64]}).train(), make_full_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        total = sum(mm_orient.compute_loss(model, batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    logits = model(batch)
    for index, task in enumerate(TASKS):
        labeled = batch["labels"][:, index] != UNLABELED
        assert torch.equal(logits[task].argmax(-1)[labeled], batch["labels"][labeled, index])


@VARIED
def test_a_saved_model_predicts_the_same_without_fitting_statistics(changes, tmp_path):
    model, batch = build_model(**changes), make_full_batch()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    restored = Model(
        build_config(ModelConfig, asdict(model.network), "network"),
        build_config(InputDims, asdict(model.shapes), "shapes"),
    ).eval()
    restored.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(predict_probabilities(restored, batch), predict_probabilities(model, batch))


def test_a_model_without_task_features_works():
    model, batch = build_model(features=0), make_full_batch()
    batch["task_features"] = batch["task_features"][:, :0]
    assert predict_probabilities(model, batch).shape == (NUM_ITEMS, sum(TASKS.values()))
    sum(mm_orient.compute_loss(model.train(), batch).values()).backward()


def test_training_drops_modalities_at_random():
    model, batch = build_model(text_drop_prob=1.0), make_batch(0, 1, 3, 5)
    without_text = batch | {"has_text": torch.zeros(4, dtype=torch.bool)}
    assert_close(predict_probabilities(model, batch), predict_probabilities(build_model(), batch))
    expected = mm_orient.compute_loss(build_model().train(), without_text)
    for task, term in mm_orient.compute_loss(model.train(), batch).items():
        assert_close(term, expected[task])


# -------------------------------------------------------------------------------------------- noise
def test_evaluation_noise_depends_on_the_item_alone_and_is_not_used_in_training():
    noisy, plain = build_model(feature_noise__eval_std=0.5), build_model()
    together = predict_probabilities(noisy, make_full_batch())
    assert (together - predict_probabilities(plain, make_full_batch())).abs().max() > 1e-3
    for start in range(0, NUM_ITEMS, 5):
        items = range(start, min(start + 5, NUM_ITEMS))
        expected = together[list(items)]
        assert_close(predict_probabilities(noisy, make_batch(*items)), expected, **TIGHT)
    for task, logits in noisy.train()(make_full_batch()).items():
        assert_close(logits, plain.train()(make_full_batch())[task])


def test_training_noise_is_drawn_for_each_pass():
    model = build_model(feature_noise__train_std=0.5)
    assert_close(
        predict_probabilities(model, make_full_batch()),
        predict_probabilities(build_model(), make_full_batch()),
    )
    first, second = (model.train()(make_full_batch())["humour"] for _ in range(2))
    assert not torch.equal(first, second)


# ---------------------------------------------------------------------- predictions and diagnostics
def test_predictions_are_the_most_probable_labels():
    predictions = mm_orient.predict(build_model(), make_full_batch())
    for task, labels in TASKS.items():
        assert predictions.probabilities[task].shape == (NUM_ITEMS, labels)
        assert_close(predictions.probabilities[task].sum(1), torch.ones(NUM_ITEMS))
        assert torch.equal(predictions.labels[task], predictions.probabilities[task].argmax(1))


def test_normalized_entropy_is_one_for_uniform_weights_and_zero_for_a_single_one():
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.5, 0.25, 0.25], [1.0, 0, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    entropy = mm_orient.normalized_entropy(weights, mask).tolist()
    assert entropy[:3] == pytest.approx([1.0, 0.0, 1.5 * math.log(2) / math.log(3)])
    assert math.isnan(entropy[3])


@VARIED
def test_attention_maps_are_weights_of_subwords_regions_and_items(changes):
    model, batch = build_model(**changes), make_full_batch()
    maps, inputs = mm_orient.attention_maps(model, batch), changes.get("inputs", "full")
    assert (maps.subwords is None) == (inputs in ("regions_only", "clip"))
    assert (maps.regions is None) == (inputs in ("text_only", "clip"))
    if maps.subwords is not None:
        assert_close(maps.subwords.sum(1), batch["has_text"].float())
        assert not maps.subwords[~batch["token_mask"]].any()
    if maps.batch_image is not None:
        assert inputs == "full"
        assert_close(maps.batch_image.sum(), torch.tensor(1.0))
        assert not maps.batch_image[~batch["has_picture"]].any()
