from dataclasses import dataclass
from typing import Literal

import pytest

from stages.shared.core.config import (
    build_config,
    check_at_least,
    check_between,
    check_fraction,
    load_config,
    raise_on_faults,
    read_params,
)
from stages.shared.runtime.stage import InputError


@dataclass(frozen=True)
class Schedule:
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Params:
    schedule: Schedule
    splits: list[str]
    rules: dict[str, str]
    mode: Literal["a", "b"]
    limit: int | None
    strict: bool


GOOD = {
    "schedule": {"steps": 3, "learning_rate": 1},
    "splits": ["test"],
    "rules": {"zh": "characters"},
    "mode": "b",
    "limit": None,
    "strict": True,
}


def test_a_section_fills_its_dataclass_and_a_whole_number_serves_as_float():
    params = build_config(Params, GOOD, "stage")
    assert params == Params(Schedule(3, 1.0), ["test"], {"zh": "characters"}, "b", None, True)
    assert type(params.schedule.learning_rate) is float


@pytest.mark.parametrize(
    ("change", "said"),
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
        ({"schedule": 3}, "stage.schedule must be a section with steps, learning_rate"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(change, said):
    with pytest.raises(InputError) as wrong:
        build_config(Params, GOOD | change, "stage")
    assert said in str(wrong.value)
    assert str(wrong.value).startswith("params.yaml: ")


def test_a_section_that_refuses_its_values_is_named():
    @dataclass(frozen=True)
    class Bounded:
        steps: int
        share: float

        def __post_init__(self) -> None:
            check_at_least(self, steps=1)
            check_fraction(self, "share")
            check_between(self, 1, 9, "steps")
            raise_on_faults({"steps are odd: give an even number": self.steps % 2 > 0})

    def said(steps, share) -> str:
        with pytest.raises(InputError) as wrong:
            build_config(Bounded, {"steps": steps, "share": share}, "stage.part")
        return str(wrong.value)

    assert build_config(Bounded, {"steps": 2, "share": 0.0}, "stage.part") == Bounded(2, 0.0)
    assert said(0, 0.5) == "params.yaml: stage.part: steps is 0: give 1 or more"
    assert said(10, 0.5) == "params.yaml: stage.part: steps is 10: give 1 to 9"
    wanted = "params.yaml: stage.part: share is {}: give 0 or more and less than 1"
    for share in (1.0, -0.5, float("nan")):
        assert said(2, share) == wanted.format(share)
    assert said(3, 0.5) == "params.yaml: stage.part: steps are odd: give an even number"


def test_every_missing_and_unknown_key_is_named_at_once():
    given = GOOD | {"mods": "a", "speed": 1}
    del given["mode"], given["limit"]
    with pytest.raises(InputError) as wrong:
        build_config(Params, given, "stage")
    for part in ["missing limit", "missing mode", "unknown mods", "unknown speed"]:
        assert part in str(wrong.value)


def test_a_section_is_found_by_its_path_and_a_misspelt_one_names_its_neighbours(
    tmp_path, monkeypatch
):
    (tmp_path / "params.yaml").write_text("a: {b: {steps: 1, learning_rate: 0.1}}")
    monkeypatch.chdir(tmp_path)
    assert load_config(Schedule, "a", "b") == Schedule(1, 0.1)
    with pytest.raises(InputError, match=r"c is missing in a \(there: b\)"):
        load_config(Schedule, "a", "c")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "is missing"), ("a: [", "is not YAML"), ("", "holds no sections")],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, content, said):
    if content is not None:
        (tmp_path / "params.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as wrong:
        read_params()
    assert "\n" not in str(wrong.value)
