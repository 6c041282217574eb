"""A wrong params.yaml is one sentence that names every key and what to give."""

from dataclasses import asdict, replace
from typing import Literal

import pytest
from pydantic import ValidationError

from stages.shared.core.config import Field, build_config, config_class, load_config, read_params
from stages.shared.runtime.stage import InputError


@config_class
class StepConfig:
    steps: int
    learning_rate: float


@config_class
class ExampleConfig:
    schedule: StepConfig
    splits: list[str]
    rules: dict[str, str]
    mode: Literal["a", "b"]
    limit: int | None
    strict: bool


VALUES = {
    "schedule": {"steps": 3, "learning_rate": 1},
    "splits": ["test"],
    "rules": {"zh": "characters"},
    "mode": "b",
    "limit": None,
    "strict": True,
}


def error_of(kind: type, values: dict, name: str) -> str:
    with pytest.raises(InputError) as error:
        build_config(kind, values, name)
    return str(error.value)


def test_a_section_becomes_its_config_and_an_integer_is_accepted_as_a_float():
    config = build_config(ExampleConfig, VALUES, "stage")
    assert config == ExampleConfig(
        schedule=StepConfig(steps=3, learning_rate=1.0),
        splits=["test"],
        rules={"zh": "characters"},
        mode="b",
        limit=None,
        strict=True,
    )
    assert type(config.schedule.learning_rate) is float


def test_a_config_is_a_frozen_dataclass_that_validates_its_values():
    config = build_config(ExampleConfig, VALUES, "stage")
    assert asdict(config) == VALUES
    assert replace(config, limit=3).limit == 3
    with pytest.raises(ValidationError):
        replace(config, limit="3")
    with pytest.raises(AttributeError):
        config.limit = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "c"}, "stage.mode is 'c': choose one of a | b"),
        ({"strict": 1}, "stage.strict is 1: give bool"),
        ({"limit": True}, "stage.limit is True: give int"),
        ({"splits": "test"}, "stage.splits is 'test'"),
        ({"splits": ["test", 1]}, "stage.splits[1] is 1: give str"),
        ({"rules": {"zh": 1}}, "stage.rules.zh is 1: give str"),
        (
            {"schedule": {"steps": 1.5, "learning_rate": 1.0}},
            "stage.schedule.steps is 1.5: give int",
        ),
        (
            {"schedule": {"steps": "3", "learning_rate": 1.0}},
            "stage.schedule.steps is '3': give int",
        ),
        ({"schedule": 3}, "stage.schedule must be a section, not 3"),
    ],
)
def test_a_wrong_value_is_named_with_what_to_give(change, message):
    error = error_of(ExampleConfig, VALUES | change, "stage")
    assert message in error
    assert error.startswith("params.yaml: ")


def test_values_out_of_bounds_and_failed_checks_name_their_key_or_section():
    @config_class
    class BoundedConfig:
        steps: int = Field(ge=1, le=9)
        fraction: float = Field(ge=0, lt=1)

        def __post_init__(self) -> None:
            if self.steps % 2:
                raise ValueError("steps is odd: give an even number")

    def error(steps: object, fraction: object) -> str:
        return error_of(BoundedConfig, {"steps": steps, "fraction": fraction}, "stage.part")

    valid = BoundedConfig(steps=2, fraction=0.0)
    assert build_config(BoundedConfig, {"steps": 2, "fraction": 0.0}, "stage.part") == valid
    assert error(0, 0.5) == "params.yaml: stage.part.steps is 0: give 1 or more"
    assert error(10, 0.5) == "params.yaml: stage.part.steps is 10: give 9 or less"
    assert error(2, 1.0) == "params.yaml: stage.part.fraction is 1.0: give less than 1"
    assert error(2, -0.5) == "params.yaml: stage.part.fraction is -0.5: give 0 or more"
    assert "stage.part.fraction is nan: give" in error(2, float("nan"))
    assert error(3, 0.5) == "params.yaml: stage.part: steps is odd: give an even number"
    assert error(0, 1.0) == (
        "params.yaml: stage.part.steps is 0: give 1 or more; "
        "stage.part.fraction is 1.0: give less than 1"
    )


def test_every_missing_and_unknown_key_is_named_at_once():
    values = VALUES | {"mods": "a", "speed": 1}
    del values["mode"], values["limit"]
    assert error_of(ExampleConfig, values, "stage") == (
        "params.yaml: stage: missing limit, missing mode, unknown mods, unknown speed"
    )


def test_a_section_is_found_by_its_path_and_a_misspelt_one_names_its_neighbours(
    tmp_path, monkeypatch
):
    (tmp_path / "params.yaml").write_text("a: {b: {steps: 1, learning_rate: 0.1}}")
    monkeypatch.chdir(tmp_path)
    assert load_config(StepConfig, "a", "b") == StepConfig(steps=1, learning_rate=0.1)
    with pytest.raises(InputError, match=r"c is missing in a \(there: b\)"):
        load_config(StepConfig, "a", "c")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is missing"), ("a: [", "is not YAML"), ("", "holds no sections")],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, content, message):
    if content is not None:
        (tmp_path / "params.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        read_params()
    assert "\n" not in str(error.value)


def test_the_sections_of_all_parameter_files_are_merged(tmp_path, monkeypatch):
    (tmp_path / "config").mkdir()
    (tmp_path / "params.yaml").write_text("a: {b: {c: 1}}")
    (tmp_path / "config/one.yaml").write_text("a: {b: {d: 2}}")
    (tmp_path / "config/two.yaml").write_text("e: 3")
    monkeypatch.chdir(tmp_path)
    assert read_params() == {"a": {"b": {"c": 1, "d": 2}}, "e": 3}


def test_a_key_that_two_parameter_files_set_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "config").mkdir()
    (tmp_path / "params.yaml").write_text("a: {b: 1}")
    (tmp_path / "config/one.yaml").write_text("a: {b: 2}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"config/one\.yaml: a\.b is set in another parameter"):
        read_params()
