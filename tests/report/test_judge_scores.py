"""What a language model gave a run, as the report shows it."""

import pytest

from stages.judge import INCOHERENCE, PERSPECTIVES, PERSPECTIVES_BY_PROMPT
from stages.report.judge_scores import PERSPECTIVE_LABELS, REFERENCE_LABELS, JudgeScores
from stages.shared.runtime.stage import InputError
from tests.support.report_project import (
    XSS_TEXT,
    ParsedPage,
    create_project,
    render_page,
    write_judge_results,
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    return create_project(tmp_path, monkeypatch)


def phase(first: float) -> dict:
    """Means from `first` on, in steps of 0.01, in the order of the table."""
    figures = [{"mean": first + i / 100, "standard_error": 0.5} for i in range(12)]
    return {
        "judged": {"free": 3, "aware": 2},
        "failures": {"no JSON object": 1},
        "overall": figures[0],
        "free": dict(zip(PERSPECTIVES, figures[1:6], strict=True)),
        "aware": dict(zip(PERSPECTIVES, figures[6:11], strict=True)),
        "incoherence": figures[11],
    }


def found(model: str = "a-model") -> dict:
    scale = {"model": model, "lowest": 1, "highest": 10}
    return scale | {"phase": "preference", **phase(7), "sft": phase(5)}


def test_every_perspective_of_the_judge_has_a_row_and_a_column():
    assert (list(PERSPECTIVE_LABELS), list(REFERENCE_LABELS)) == (
        PERSPECTIVES,
        list(PERSPECTIVES_BY_PROMPT),
    )
    rows = dict(JudgeScores(found()).rows())
    assert len(rows) == 6
    assert [cell.get("mean") for cell in rows["creativity"]] == [5.03, 5.08, 7.03, 7.08]
    assert [cell.get("mean") for cell in rows[f"{INCOHERENCE}, lower is better"]] == [
        *(5.11, None),
        *(7.11, None),
    ]


def test_the_scores_of_each_phase_stand_beside_each_other(place):
    write_judge_results(place / "data", found())
    page = ParsedPage(render_page(place))
    assert page.open_tags == []
    for text in ("sft, reference-free", "7.030", "\N{PLUS-MINUS SIGN} 0.500", "mean of the ten"):
        assert text in page.text
    assert "preference: 3 articles without and 2 with reference, failed questions: 1" in page.text


def test_without_a_judge_the_page_says_why(place):
    assert "Unavailable: nobody was asked." in ParsedPage(render_page(place)).text


def test_the_name_of_a_model_cannot_become_markup(place):
    write_judge_results(place / "data", found(XSS_TEXT))
    page = ParsedPage(render_page(place))
    assert not page.find_all("script") and XSS_TEXT in page.text


def test_a_run_that_was_not_judged_is_one_sentence(place):
    (place / "data/13_judge/muse/judge.json").unlink()
    with pytest.raises(InputError, match=r"13_judge/muse/judge.json is missing: run `dvc repro`"):
        render_page(place)
