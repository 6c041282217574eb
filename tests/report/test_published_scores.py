"""Published scores on a run's corpus beside those of the run."""

from dataclasses import replace

import pytest

from stages.report import published_scores
from stages.shared.runtime.stage import InputError
from tests.report.test_classifier_section import add_classifier
from tests.support import report_project
from tests.support.report_project import REPORT_CONFIG, create_project, page_text, render_page

ENTRIES = published_scores.load_entries()


@pytest.mark.parametrize("name", ENTRIES)
def test_every_system_has_a_score_within_the_scale_for_each_column(name):
    entry = ENTRIES[name]
    assert len(entry.scale) == len(entry.columns)
    for scores in entry.systems.values():
        assert len(scores) == len(entry.scale)
        for score, scale in zip(scores, entry.scale, strict=True):
            assert score is None or 0 < score < scale


def test_the_last_row_is_the_run_in_the_scale_of_the_publication():
    table = published_scores.build_table("twitter2017", "mine", {"strict": {"f1": 0.8125}})
    assert table is not None
    assert table.rows[0] == {"label": "MuSE", "scores": [88.62]}
    assert table.rows[-1] == {"label": "mine", "scores": [81.25], "total": True}


def test_a_score_that_the_run_lacks_is_none():
    metrics = {"by_article": {"meteor": 0.25, "bert_score": "unavailable"}}
    table = published_scores.build_table("artmuse", "mine", metrics)
    assert table is not None
    assert table.rows[-1]["scores"] == [25, None, None]
    assert published_scores.build_table(None, "mine", metrics) is None


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"mine": "twitter2017", "other": None}, "report.published names 'mine', which is no run"),
        ({"tagger": "twitter2016"}, r"published.tagger is 'twitter2016': give one of artmuse, .*"),
    ],
)
def test_an_unknown_run_or_corpus_is_named(published, message):
    with pytest.raises(InputError, match=message):
        published_scores.check_names(published, ["tagger"])


def test_the_report_shows_the_table_of_a_run_that_params_name(tmp_path, monkeypatch):
    project = create_project(tmp_path, monkeypatch)
    add_classifier(project, "tagger", "entities")
    assert "Published on this corpus" not in page_text(render_page(project))
    config = replace(REPORT_CONFIG, published={"tagger": "twitter2017"})
    monkeypatch.setattr(report_project, "REPORT_CONFIG", config)
    text = page_text(render_page(project))
    assert text.count("Published on this corpus") == 1
    assert "MuSE 88.62" in " ".join(text.split())
    assert "arXiv:2309.02190" in text
