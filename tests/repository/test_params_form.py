"""The parameter files are stored in the form that `dvc exp run -S` writes."""

import difflib

import pytest
from dvc.utils.hydra import apply_overrides

from pipelines.cli import preset
from stages.shared.core.config import params_files
from tests.support.project_files import ROOT

FILES = [file.relative_to(ROOT) for file in params_files(ROOT)]


def changed_lines(before: str, after: str) -> list[str]:
    diff = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in diff if line.startswith("+") and not line.startswith("+++")]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_dvc_writes_a_parameter_file_as_it_is_stored(file, tmp_path):
    copy, text = tmp_path / file.name, (ROOT / file).read_text()
    copy.write_text(text)
    apply_overrides(copy, [])
    assert changed_lines(text, copy.read_text()) == []
    assert copy.read_text() == text


def test_one_changed_number_is_one_changed_line(tmp_path):
    copy, text = tmp_path / "params.yaml", (ROOT / "params.yaml").read_text()
    copy.write_text(text)
    apply_overrides(copy, ["models.tippo.preference.kl_coef=0.125"])
    assert [line.split()[1:3] for line in changed_lines(text, copy.read_text())] == [
        ["kl_coef:", "0.125"]
    ]


@pytest.mark.parametrize("name", ["smoke", "photographs"])
def test_a_preset_keeps_that_form(name, tmp_path):
    files = {file.name: (ROOT / file).read_text() for file in FILES}
    overlay = (ROOT / "presets" / f"{name}.yaml").read_text()
    for file, text in preset.merge_overlay(files, overlay, name).items():
        copy = tmp_path / file
        copy.write_text(text)
        apply_overrides(copy, [])
        assert changed_lines(text, copy.read_text()) == []
