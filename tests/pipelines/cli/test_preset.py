"""Presets change params.yaml and can be undone without a trace."""

import math
import re
from pathlib import Path

import pytest
import yaml

from pipelines.cli import preset
from stages.models.tippo import model as tippo
from stages.shared.core.config import build_config, params_files, read_params
from stages.shared.runtime.stage import InputError
from stages.train_preference.tippo import find_collapse_reason
from tests.support.project_files import ROOT

PARAMS = """\
# Every number.
train:            # of all runs
  steps: 800      # updates
  rate: 0.00003
  splits: [validation, test]

name: "quoted"    # kept
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """params.yaml and two presets, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    Path("params.yaml").write_text(PARAMS)
    Path("presets").mkdir()
    Path("presets/quick.yaml").write_text("train: {steps: 8}\n")
    Path("presets/other.yaml").write_text("train: {steps: 9, splits: [test]}\nname: x\n")
    return tmp_path


def params() -> str:
    return Path("params.yaml").read_text()


def test_a_preset_changes_its_values_and_nothing_else(project):
    preset.apply_preset("quick")
    assert params() == PARAMS.replace("800 ", "8   ")


def test_lists_are_replaced_and_sections_merged(project):
    preset.apply_preset("other")
    assert yaml.safe_load(params()) == {
        "train": {"steps": 9, "rate": 0.00003, "splits": ["test"]},
        "name": "x",
    }


def test_undo_restores_every_byte(project):
    original = PARAMS.replace("\n", "\r\n").encode()
    Path("params.yaml").write_bytes(original)
    preset.apply_preset("quick")
    assert Path("params.yaml").read_bytes() != original
    preset.undo_preset()
    assert Path("params.yaml").read_bytes() == original


def test_presets_are_undone_in_reverse_order(project):
    preset.apply_preset("quick")
    quick = params()
    preset.apply_preset("other")
    preset.undo_preset()
    assert params() == quick
    preset.undo_preset()
    assert params() == PARAMS
    with pytest.raises(InputError, match="nothing to undo"):
        preset.undo_preset()


def test_a_preset_that_is_applied_twice_is_undone_once(project):
    preset.apply_preset("quick")
    assert "already" in preset.apply_preset("quick")
    preset.undo_preset()
    assert params() == PARAMS


def test_undo_stops_if_edits_would_be_lost(project):
    preset.apply_preset("quick")
    Path("params.yaml").write_text(edited := params() + "more: 1\n")
    with pytest.raises(InputError, match=r"edited after preset quick.*undo those edits first"):
        preset.undo_preset()
    assert params() == edited
    Path("params.yaml").write_text(edited.removesuffix("more: 1\n"))
    preset.undo_preset()
    assert params() == PARAMS


def test_edits_between_two_presets_are_kept(project):
    preset.apply_preset("quick")
    Path("params.yaml").write_text(edited := params() + "more: 1\n")
    preset.apply_preset("other")
    preset.undo_preset()
    assert params() == edited


def test_a_preset_that_git_reverted_can_still_be_undone(project):
    preset.apply_preset("quick")
    Path("params.yaml").write_text(PARAMS)
    preset.undo_preset()
    assert params() == PARAMS


def test_a_preset_changes_the_file_that_has_the_key_and_undo_restores_all_files(project):
    Path("config").mkdir()
    Path("config/more.yaml").write_text(more := "train:\n  workers: 2  # at once\n")
    Path("presets/quick.yaml").write_text("train: {steps: 8, workers: 3}\n")
    assert "params.yaml and config/more.yaml" in preset.apply_preset("quick")
    assert params() == PARAMS.replace("800 ", "8   ")
    assert Path("config/more.yaml").read_text() == more.replace("2", "3")
    preset.undo_preset()
    assert params() == PARAMS and Path("config/more.yaml").read_text() == more


def test_undo_checks_all_files_before_it_restores_one(project):
    Path("config").mkdir()
    Path("config/more.yaml").write_text("train: {workers: 2}\n")
    Path("presets/quick.yaml").write_text("train: {steps: 8, workers: 3}\n")
    preset.apply_preset("quick")
    applied = params()
    Path("config/more.yaml").write_text("train: {workers: 4}\n")
    with pytest.raises(InputError, match=r"config/more\.yaml was edited after preset quick"):
        preset.undo_preset()
    assert params() == applied


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("trian: {steps: 8}\ntrain: {step: 8}", "has no trian, train.step"),
        ("train: 8", "has no train:"),
        ("name: {first: x}", "has no name:"),
        ("8", "holds no sections"),
        ("", "holds no sections"),
        ("a: [", "quick.yaml is not YAML"),
    ],
)
def test_a_wrong_overlay_is_one_sentence_and_changes_nothing(project, overlay, message):
    Path("presets/quick.yaml").write_text(overlay)
    with pytest.raises(InputError, match=message) as error:
        preset.apply_preset("quick")
    assert "\n" not in str(error.value)
    assert params() == PARAMS


def test_a_preset_that_does_not_exist_names_those_that_do(project):
    with pytest.raises(InputError, match=r"quik.*other, quick"):
        preset.apply_preset("quik")


@pytest.mark.parametrize("name", [path.stem for path in Path("presets").glob("*.yaml")])
def test_every_preset_of_the_project_can_be_applied_and_undone(project, name):
    files = [ROOT / "params.yaml", *(ROOT / "config").glob("*.yaml"), ROOT / f"presets/{name}.yaml"]
    for file in files:
        copy = project / file.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    original = {file: file.read_text() for file in params_files()}
    preset.apply_preset(name)
    changed = {file: file.read_text() for file in params_files()}
    assert changed != original
    comments = [
        {file: text.count("#") for file, text in texts.items()} for texts in (original, changed)
    ]
    assert comments[0] == comments[1]
    preset.undo_preset()
    assert {file: file.read_text() for file in params_files()} == original


def test_paper_tippo_has_the_published_values():
    overlay = yaml.safe_load(Path("presets/paper_tippo.yaml").read_text())
    preference = overlay["models"]["tippo"]["preference"]
    assert preference["gamma"] == 0.95
    assert overlay["align"]["encoder"] == "hf:OFA-Sys/chinese-clip-vit-base-patch16"
    for run in overlay["generators"].values():
        assert run["decoder"] == "Langboat/mengzi-t5-base"
        assert (run["sft"]["max_steps"], run["sft"]["learning_rate"]) == (50_000, 5e-5)
        iterations = run["preference"]["max_steps"] / preference["num_ppo_epochs"]
        assert (iterations, run["preference"]["learning_rate"]) == (20_000, 1e-5)


def read_preset(name: str) -> dict:
    return yaml.safe_load(Path(f"presets/{name}.yaml").read_text())


# Values of the public code's runs on Twitter-2017 (README, run_t17.sh, defaults of main.py).
PUBLIC = {"alpha": 1e-4, "beta": 1e-4, "sigma": 1.0, "theta": 0.1, "batch": 40, "epochs": 10}
TWEETS, PIXELS, LENGTH = 3373, 32 * 32, 64  # size of the train split; divisors of its loss


@pytest.mark.parametrize("file", sorted(Path("presets").glob("paper_*.yaml")), ids=lambda f: f.stem)
def test_every_value_of_a_paper_preset_names_its_source(file):
    sources = r"(paper|code|ours|reading|replaced|TIPPo)\b"
    values = re.findall(r"^ *\w+: +([^#\s].*)$", file.read_text(), re.MULTILINE)
    assert values and [v for v in values if not re.search(rf" # {sources}", v)] == []


def test_paper_tippo_ends_no_phase_early_and_keeps_the_last_weights():
    overlay = read_preset("paper_tippo")
    for run in overlay["generators"].values():
        for phase in (run["sft"], run["preference"]):
            validations = phase["max_steps"] // phase["eval_steps"] + 1  # the first before a step
            assert (phase["keep"], phase["patience"]) == ("last", validations)
        assert run["quality_monitor"]["max_score_drop"] == 1.0
    preference = build_config(
        tippo.PreferenceConfig,
        read_params()["models"]["tippo"]["preference"] | overlay["models"]["tippo"]["preference"],
        "paper_tippo",
    )
    start = {"watch": 1.0, "characters": 400.0, "entropy": 3.0}
    collapsed = {"watch": 0.0, "characters": 0.0, "entropy": 0.001, "kl_to_sft": 900.0}
    assert find_collapse_reason(collapsed, start, 1.0, preference) == ""


def test_paper_mm_orient_inpaints_with_a_network_and_paraphrases_with_a_language_model():
    overlay = read_preset("paper_mm_orient")
    assert overlay["inpaint"]["inpainting"]["backend"] == "lama"
    assert overlay["augment"]["backend"] == "openai:gpt-3.5-turbo"
    assert (overlay["augment"]["num_paraphrases"], overlay["augment"]["image"]["policy"]) == (
        5,
        "paper",
    )
    assert read_params()["augment"]["openai"]["temperature"] == 0.7  # the public code's


def test_the_network_of_paper_muse_has_the_published_values():
    network = read_preset("paper_muse")["models"]["muse"]["network"]
    expected = {"d_model": 768, "num_heads": 12, "d_ff": 2048, "num_layers": 6, "norm": "post"}
    expected |= {"dropout": 0.2, "head_dropout": 0.5, "head": "linear"}  # cross_, crf_dropout
    expected |= {
        "mu": 1 + 1,
        "eta": 3 + 1,
    }  # replace_start, replace_end: counted from 0, both included
    expected |= {"theta": PUBLIC["theta"], "sigma": PUBLIC["sigma"], "min_exchanged_tokens": 0}
    expected |= {
        "exchange": "residual",
        "exchange_count": "quantile",
    }  # skip_connection, use_quantile
    expected |= {"image_pooling": "cell", "share_projection": False}
    expected |= {"image_drop_prob": 0.0, "text_drop_prob": 0.0}
    assert {key: network[key] for key in expected} == expected
    captioning, generation = network["captioning"], network["image_generation"]
    # The public code takes the mean over 64 cells; here it is the sum.
    decoder = {"embedding_dim": 512, "hidden_size": 512, "attention_dim": 512, "dropout": 0.5}
    assert captioning["decoder"] == decoder | {"doubly_stochastic_weight": 1 / 64}
    assert (captioning["min_count"], captioning["max_length"]) == (2, 64)
    decoder = {
        "image_size": 32,
        "num_blocks": 5,
        "num_filters": 80,
        "num_mixtures": 10,
        "dropout": 0.5,
        "initial_gain": "norm",
    }
    assert generation["decoder"] == decoder
    assert (generation["max_images_per_batch"], generation["lr_multiplier"]) == (
        PUBLIC["batch"],
        1.0,
    )
    # alpha L_it / 64 + beta L_ti / 1024 + sigma L_task / 64, times 64. L_ti: a batch's nats, added,
    # of 3 colours of each of 1024 pixels: bits a dimension times ln 2, 3, 1024 and the batch.
    assert captioning["alpha"] == PUBLIC["alpha"]
    beta = PUBLIC["beta"] * LENGTH / PIXELS * math.log(2) * 3 * PIXELS * PUBLIC["batch"]
    assert generation["beta"] == pytest.approx(beta, rel=1e-3)


def test_the_runs_of_paper_muse_have_the_published_values():
    classifiers = read_preset("paper_muse")["classifiers"]
    for run in classifiers.values():
        text, image, training = run["text"], run["image"], run["training"]
        assert (text["encoder"], text["num_tuned_layers"], text["lr_multiplier"]) == (
            "bert-base-uncased",
            "all",
            1.0,
        )
        assert (
            text["max_subwords"] + 2 == LENGTH == image["grid_size"] ** 2
        )  # max_seq_length, cells
        assert (image["encoder"], image["image_size"]) == ("resnet152", 224)
        assert image["weights"] == "IMAGENET1K_V1"
        assert (training["batch_size"], training["learning_rate"]) == (PUBLIC["batch"], 1e-4)
        assert (training["warmup_ratio"], training["lr_scheduler_type"]) == (0.1, "linear")
        assert training["eval_steps"] == 100
    # Gradients are clipped to 1, for tags after a division of the loss by 64.
    tags, posts = (classifiers[name]["training"] for name in ("muse_entities", "muse_sentiment"))
    assert (tags["max_grad_norm"], tags["weight_decay"]) == (1.0 * LENGTH, 0.01)
    assert (posts["max_grad_norm"], posts["weight_decay"]) == (1.0, 0.0)
    steps = PUBLIC["epochs"] * math.ceil(TWEETS / PUBLIC["batch"])
    assert classifiers["muse_entities"]["training"]["max_steps"] == steps


def test_paper_muse_posts_has_alpha_and_beta_for_a_task_weight_of_64():
    """sigma 64 L_task / 64 equals L_task; the other terms keep their divisors."""
    network = read_preset("paper_muse_posts")["models"]["muse"]["network"]
    assert network["captioning"]["alpha"] == PUBLIC["alpha"] / LENGTH
    beta = PUBLIC["beta"] / PIXELS * math.log(2) * 3 * PIXELS * PUBLIC["batch"]
    assert network["image_generation"]["beta"] == pytest.approx(beta, rel=1e-3)


def test_rows_that_were_deleted_from_params_yaml_are_left_out_and_named(project):
    Path("params.yaml").write_text(
        PARAMS + "generators:\n  tippo:\n    steps: 9\nclassifiers: {}\n"
    )
    overlay = {"generators": {"tippo": {"steps": 1}, "flexmuse": {"steps": 1}}}
    overlay |= {"classifiers": {"mm_orient": {"steps": 1}}, "corpora": {"memes": {"path": "x"}}}
    Path("presets/small.yaml").write_text(yaml.safe_dump(overlay))
    message = preset.apply_preset("small")
    assert (
        "does not have them: corpora.memes, generators.flexmuse, classifiers.mm_orient" in message
    )
    assert yaml.safe_load(params())["generators"] == {"tippo": {"steps": 1}}
    preset.undo_preset()
    overlay["generators"]["tippo"] = {"step": 1}  # a misspelled key of a row is still an error
    Path("presets/small.yaml").write_text(yaml.safe_dump(overlay))
    with pytest.raises(InputError, match=r"params\.yaml has no generators\.tippo\.step: correct"):
        preset.apply_preset("small")


def test_the_smoke_preset_shrinks_what_is_left_in_params_yaml(project):
    kept = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, rows in {"generators": ["flexmuse"], "classifiers": ["mm_orient"]}.items():
        for row in rows:
            del kept[section][row]
    Path("params.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
    Path("config").mkdir()
    for file in (ROOT / "config").glob("*.yaml"):
        Path("config", file.name).write_text(file.read_text())
    Path("presets/smoke.yaml").write_text((ROOT / "presets/smoke.yaml").read_text())
    assert "left out" in preset.apply_preset("smoke")
    assert yaml.safe_load(params())["generators"]["tippo"]["sft"]["max_steps"] == 30


def test_values_are_merged_after_the_preset_and_nothing_is_written(project):
    merged = preset.merge_values("quick", ["train.rate=1e-4", "train.splits=[test]", "name="])
    assert yaml.safe_load(merged["params.yaml"]) == {
        "train": {"steps": 8, "rate": 1e-4, "splits": ["test"]},
        "name": None,
    }
    assert "# of all runs" in merged["params.yaml"]
    assert params() == PARAMS


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=8", "override 'train.step=8': params.yaml has no train.step: name one that"),
        ("train=8", "params.yaml has no train: name one that"),
        ("train", "override 'train' has no value: give KEY=VALUE"),
        ("name=[", "the value of override 'name=\\[' is not YAML"),
    ],
)
def test_a_wrong_value_is_one_sentence(project, override, message):
    with pytest.raises(InputError, match=message):
        preset.merge_values(None, [override])
