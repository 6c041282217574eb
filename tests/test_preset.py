"""Presets are laid over params.yaml and taken back without a trace."""

from pathlib import Path

import pytest
import yaml

from pipelines import preset
from stages.shared.stage import WrongInput

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
    preset.apply("quick")
    assert params() == PARAMS.replace("800 ", "8   ")


def test_lists_are_replaced_and_sections_merged(project):
    preset.apply("other")
    assert yaml.safe_load(params()) == {
        "train": {"steps": 9, "rate": 0.00003, "splits": ["test"]},
        "name": "x",
    }


def test_undo_restores_every_byte(project):
    original = PARAMS.replace("\n", "\r\n").encode()
    Path("params.yaml").write_bytes(original)
    preset.apply("quick")
    assert Path("params.yaml").read_bytes() != original
    preset.undo()
    assert Path("params.yaml").read_bytes() == original


def test_presets_are_taken_back_one_by_one_the_last_first(project):
    preset.apply("quick")
    quick = params()
    preset.apply("other")
    preset.undo()
    assert params() == quick
    preset.undo()
    assert params() == PARAMS
    with pytest.raises(WrongInput, match="nothing to take back"):
        preset.undo()


def test_applying_a_preset_twice_is_applying_it_once(project):
    preset.apply("quick")
    assert "already" in preset.apply("quick")
    preset.undo()
    assert params() == PARAMS


def test_undo_refuses_to_lose_edits_and_says_what_to_do(project):
    preset.apply("quick")
    Path("params.yaml").write_text(edited := params() + "more: 1\n")
    with pytest.raises(WrongInput, match=r"edited after preset quick.*take those edits back"):
        preset.undo()
    assert params() == edited
    Path("params.yaml").write_text(edited.removesuffix("more: 1\n"))
    preset.undo()
    assert params() == PARAMS


def test_edits_between_two_presets_are_kept(project):
    preset.apply("quick")
    Path("params.yaml").write_text(edited := params() + "more: 1\n")
    preset.apply("other")
    preset.undo()
    assert params() == edited


def test_a_preset_that_git_took_back_can_still_be_undone(project):
    preset.apply("quick")
    Path("params.yaml").write_text(PARAMS)
    preset.undo()
    assert params() == PARAMS


@pytest.mark.parametrize(
    ("overlay", "fault"),
    [
        ("trian: {steps: 8}\ntrain: {step: 8}", "has no trian, train.step"),
        ("train: 8", "has no train:"),
        ("name: {first: x}", "has no name:"),
        ("8", "holds no sections"),
        ("", "holds no sections"),
        ("a: [", "quick.yaml is not YAML"),
    ],
)
def test_a_wrong_overlay_is_one_sentence_and_changes_nothing(project, overlay, fault):
    Path("presets/quick.yaml").write_text(overlay)
    with pytest.raises(WrongInput, match=fault) as error:
        preset.apply("quick")
    assert "\n" not in str(error.value)
    assert params() == PARAMS


def test_a_preset_that_does_not_exist_names_those_that_do(project):
    with pytest.raises(WrongInput, match=r"quik.*other, quick"):
        preset.apply("quik")


@pytest.mark.parametrize("name", [path.stem for path in Path("presets").glob("*.yaml")])
def test_every_preset_of_the_project_fits_params_yaml_and_comes_back(project, name, monkeypatch):
    root = Path(__file__).parents[1]
    original = (root / "params.yaml").read_bytes()
    Path("params.yaml").write_bytes(original)
    Path(f"presets/{name}.yaml").write_bytes((root / f"presets/{name}.yaml").read_bytes())
    preset.apply(name)
    changed = params()
    assert changed != original.decode()
    assert changed.count("#") == original.decode().count("#")
    preset.undo()
    assert Path("params.yaml").read_bytes() == original


def test_tippo_at_the_size_of_its_paper_has_the_numbers_that_the_paper_published():
    overlay = yaml.safe_load(Path("presets/paper_tippo.yaml").read_text())
    preference = overlay["models"]["tippo"]["preference"]
    assert preference["gamma"] == 0.95
    assert overlay["align"]["encoder"] == "hf:OFA-Sys/chinese-clip-vit-base-patch16"
    for run in overlay["writers"].values():
        assert run["decoder"] == "Langboat/mengzi-t5-base"
        assert (run["sft"]["steps"], run["sft"]["learning_rate"]) == (50_000, 5e-5)
        iterations = run["preference"]["steps"] / preference["epochs"]
        assert (iterations, run["preference"]["learning_rate"]) == (20_000, 1e-5)
