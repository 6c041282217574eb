"""`polymuse params` prints every value with its meaning and writes a schema for editors."""

import json
from argparse import Namespace
from pathlib import Path

import jsonschema
import pytest

from pipelines import validate_params
from pipelines.cli import params
from stages.shared.core.config import read_params
from stages.shared.runtime.stage import InputError


def test_a_section_is_printed_with_the_meaning_of_each_value(capsys):
    params.main(Namespace(section="run", schema=None))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=2) == [
        "run.workers",
        "2",
        "stages that run at once; they share the cores",
    ]
    columns = {line.index(line.split(maxsplit=2)[2]) for line in lines}
    assert len(columns) == 1


def test_every_value_of_params_yaml_has_a_row():
    rows = {key: value for key, value, _ in params.list_params("")}

    def count(value) -> int:
        return sum(map(count, value.values())) if isinstance(value, dict) and value else 1

    assert len(rows) == count(read_params())
    assert rows["align.tiny.schedule.learning_rate"] == "0.002"
    assert rows["corpora.memes.records"] == "04_augment"
    assert rows["predict.splits"] == '["validation", "test"]'


def test_every_value_has_a_meaning():
    without = [key for key, _, meaning in params.list_params("") if not meaning]
    assert without == []


def test_a_nested_section_and_a_single_key_can_be_shown():
    nested = params.list_params("augment.openai")
    assert nested and all(key.startswith("augment.openai.") for key, _, _ in nested)
    assert [key for key, _, _ in params.list_params("models.muse.network.theta")] == [
        "models.muse.network.theta"
    ]


@pytest.mark.parametrize("section", ["augmnt", "augment.open", "augment.openai.timeouts"])
def test_an_unknown_section_names_the_known_ones(section):
    with pytest.raises(InputError, match=rf"params.yaml has no {section}: name one of corpora \|"):
        params.list_params(section)


def test_long_values_are_shortened_to_one_line():
    assert params.format_value("a\n  b") == "a b"
    assert params.format_value(None) == "null" and params.format_value(True) == "true"
    text = params.format_value("word " * 50)
    assert len(text) == params.MAX_VALUE_LENGTH and text.endswith("...")


def test_the_schema_accepts_params_yaml_and_rejects_mistakes(tmp_path):
    file = tmp_path / "schema.json"
    params.main(Namespace(section=None, schema=file))
    schema = json.loads(file.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    values = read_params()
    assert list(validator.iter_errors(values)) == []
    assert set(schema["properties"]) == {*validate_params.SECTIONS, "classifiers"}
    for section, mistake in {"clean": {"unicode_from": "NFC"}, "run": {"workers": 0}}.items():
        wrong = values | {section: values[section] | mistake}
        assert list(validator.iter_errors(wrong)) != []


def test_a_schema_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"--schema: .* cannot be written"):
        params.main(Namespace(section=None, schema=Path(tmp_path, "none", "schema.json")))
