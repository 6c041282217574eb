"""The scores of a language model judge in the report."""

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
def project(tmp_path, monkeypatch):
    return create_project(tmp_path, monkeypatch)


def make_phase(first_mean: float) -> dict:
    """Means from `first_mean` on, in steps of 0.01, in the order of the table."""
    scores = [{"mean": first_mean + i / 100, "standard_error": 0.5} for i in range(12)]
    return {
        "judged": {"free": 3, "aware": 2},
        "failures": {"no JSON object": 1},
        "overall": scores[0],
        "free": dict(zip(PERSPECTIVES, scores[1:6], strict=True)),
        "aware": dict(zip(PERSPECTIVES, scores[6:11], strict=True)),
        "incoherence": scores[11],
    }


def make_results(model: str = "a-model") -> dict:
    scale = {"model": model, "lowest": 1, "highest": 10}
    return scale | {"phase": "preference", **make_phase(7), "sft": make_phase(5)}


def test_every_perspective_of_the_judge_has_a_row_and_a_column():
    assert (list(PERSPECTIVE_LABELS), list(REFERENCE_LABELS)) == (
        PERSPECTIVES,
        list(PERSPECTIVES_BY_PROMPT),
    )
    rows = dict(JudgeScores(make_results()).rows())
    assert len(rows) == 6
    assert [score.get("mean") for score in rows["creativity"]] == [5.03, 5.08, 7.03, 7.08]
    assert [score.get("mean") for score in rows[f"{INCOHERENCE}, lower is better"]] == [
        *(5.11, None),
        *(7.11, None),
    ]


def test_the_page_has_the_scores_of_each_phase(project):
    write_judge_results(project / "data", make_results())
    page = ParsedPage(render_page(project))
    assert page.open_tags == []
    for text in (
        "sft, reference-free",
        "7.030",
        "\N{PLUS-MINUS SIGN} 0.500",
        "mean without incoherence",
    ):
        assert text in page.text
    assert (
        "preference: 3 articles judged without and 2 with the reference, 1 failed requests"
        in page.text
    )


def test_without_a_judge_the_page_gives_the_reason(project):
    assert "Unavailable: the judge is disabled." in ParsedPage(render_page(project)).text


def test_the_name_of_a_judge_is_escaped(project):
    write_judge_results(project / "data", make_results(XSS_TEXT))
    page = ParsedPage(render_page(project))
    assert not page.find_all("script") and XSS_TEXT in page.text


def test_a_missing_judge_file_is_an_input_error(project):
    (project / "data/13_judge/muse/judge.json").unlink()
    with pytest.raises(InputError, match=r"13_judge/muse/judge.json is missing: run `dvc repro`"):
        render_page(project)
