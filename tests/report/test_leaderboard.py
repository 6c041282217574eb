"""Several runs on one page: side by side, of several corpora, with and without what others have."""

import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from stages.evaluate import __main__ as evaluate
from stages.report import leaderboard
from stages.report.plots import curves
from stages.shared.core import config
from stages.shared.data import history
from tests.support import generator_outputs
from tests.support.report_project import (
    EVALUATE_CONFIG,
    XSS_TEXT,
    ParsedPage,
    create_project,
    render_page,
)

POLISH = [
    {"step": 0, "validation_loss": -1.0, "validation_reward_literal": 0.4, "validation_watch": 0.9},
    {"step": 1, "loss": -0.1, "learning_rate": 0.1, "policy": -0.2, "kl": 0.1}
    | {"reward_literal": 0.5, "reward_semantic": 0.6, "return": 0.9, "entropy": 0.3}
    | {"tokens": 20.0, "clip_share": 0.05, "kl_to_sft": 0.01},
    {"step": 2, "loss": 0.1, "learning_rate": 0.1, "policy": -0.1, "kl": 0.2}
    | {"reward_literal": 0.7, "reward_semantic": 0.8, "return": 1.1, "entropy": 0.2}
    | {"tokens": 22.0, "clip_share": 0.15, "kl_to_sft": 0.03}
    | {"validation_loss": -1.2, "validation_characters": 80.0, "validation_watch": 0.8},
]


def captions() -> list[dict]:
    """Predictions of captioned pictures: one chunk a record, no title, two references."""
    rows = [row | {"title": "", "sigma": None} for row in generator_outputs.make_predictions()]
    kept = [row for row in rows if row["position"] == 0 and row["inputs"] == "both"]
    return [row | {"references": [*row["references"], "Another caption."]} for row in kept]


def add_run(place: Path, name: str, corpus: str, rows: list[dict]) -> None:
    """A run without gate, fusion and attention, trained by PolishPPO."""
    data = place / "data"
    for folder in ("09_train_sft", "10_train_preference", "13_judge"):
        shutil.copytree(data / folder / "muse", data / folder / name)
    history.write_history(data / "10_train_preference" / name / "history.csv", POLISH)
    generator_outputs.write_predictions(data / "11_predict" / name, rows, [])
    folders = [data / "01_ingest" / corpus, data / "11_predict" / name]
    evaluate.main(
        EVALUATE_CONFIG,
        generator_outputs.REWARDS_CONFIG,
        name,
        folders,
        data / "12_evaluate" / name,
    )
    named = yaml.safe_load((place / "params.yaml").read_text())
    named["generators"][name] = {"model": "tippo", "corpus": corpus, "decoder": "tiny"}
    (place / "params.yaml").write_text(yaml.safe_dump(named))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two runs on articles, one on captions."""
    with pytest.MonkeyPatch.context() as patch:
        place = create_project(tmp_path_factory.mktemp("runs"), patch)
        data = place / "data"
        shutil.copytree(data / "01_ingest/articles", data / "01_ingest/captions")
        shares = {"total": 0.8, "goal": 0.6, "place": 1.0}
        ceilings = {"picture": {"expected": shares, "realised": shares}}
        content = {"rule": "a rule", "validation": ceilings, "test": ceilings}
        (data / "01_ingest/captions/ceilings.json").write_text(json.dumps(content))
        generator_outputs.write_illustrations(data / "08_illustrate/captions", [])
        named = yaml.safe_load((place / "params.yaml").read_text())
        named["corpora"]["captions"] = {
            "kind": "captions",
            "format": "synthetic",
            "path": "somewhere",
        }
        (place / "params.yaml").write_text(yaml.safe_dump(named))
        add_run(place, "tippo", "articles", generator_outputs.make_predictions())
        add_run(place, "pictured", "captions", captions())
        yield place


@pytest.fixture(scope="module")
def content(built) -> str:
    """The page of all three."""
    return render_page(built)


@pytest.fixture
def metrics(built, tmp_path, monkeypatch) -> Path:
    """metrics.json of tippo, in a copy of the project to change."""
    shutil.copytree(built, tmp_path / "copy")
    monkeypatch.setattr(config, "PARAMS_FILE", tmp_path / "copy/params.yaml")
    return tmp_path / "copy/data/12_evaluate/tippo/metrics.json"


def section(content: str, name: str) -> str:
    """The text of one run's section."""
    for part in re.findall(r"<section id=\"run-\d+\">.*?</section>", content, re.DOTALL):
        if f"<h2>{name}</h2>" in part:
            return " ".join(ParsedPage(part).text.split())
    raise AssertionError(name)


def compared(content: str) -> str:
    (part,) = re.findall(r"<section id=\"comparison\">.*?</section>", content, re.DOTALL)
    return " ".join(ParsedPage(part).text.split())


def test_runs_stand_side_by_side_within_their_corpus_alone(content):
    text = compared(content)
    of_articles, of_captions = text.split("On captions")
    assert re.search(
        r"skill grounding ROUGE-L METEOR.* CIDEr BERTScore literal reward", of_articles
    )
    assert "share of ceiling" not in of_articles and "pictured" not in of_articles
    assert "muse sft 0.667 ± 0.333 0.917 ± 0.083" in of_articles
    assert "tippo preference 1.000 ± 0.000 1.000 ± 0.000" in of_articles
    assert "share of ceiling" in of_captions and "skill" not in of_captions
    assert "pictured preference 1.250 ± 0.000 1.000 ± 0.000" in of_captions


def test_a_figure_that_one_run_lacks_is_dashed(metrics):
    """One was evaluated where Java works."""
    found = json.loads(metrics.read_text())
    for phase in (found, found["sft"]):
        phase["meteor"] = phase.pop("meteor_exact_stem")
        phase["measured_by"]["meteor"] = "meteor-1.5.jar"
    metrics.write_text(json.dumps(found))
    text = compared(render_page(metrics.parents[3]))
    assert "METEOR METEOR, exact and stem only" in text
    assert re.search(r"muse preference( 1\.000 ± 0\.000){2} 1\.000 \N{EM DASH} \d", text)
    assert re.search(r"tippo preference( 1\.000 ± 0\.000){2} 1\.000 \d\.\d+ \N{EM DASH}", text)


def test_every_column_of_the_comparison_is_a_place_of_metrics():
    metrics = {"skill": {"value": 0.5, "standard_error": 0.1}, "rouge_l": 0.3}
    run = Mock(params={"corpus": "c"}, phases={"sft": metrics})
    run.name = "one"
    (found,) = leaderboard.build_leaderboards([run], [])
    assert found.columns == ["skill", "ROUGE-L"]
    assert found.rows == [
        (
            "one",
            "sft",
            [
                {"value": 0.5, "standard_error": 0.1, "ceiling": None},
                {"value": 0.3, "standard_error": None, "ceiling": None},
            ],
        )
    ]


def test_captions_stand_beside_their_picture_with_every_reference(content):
    text = section(content, "pictured")
    assert "Test captions" in text and "(no title)" not in text
    assert text.count("Another caption.") == 2  # of two examples
    assert content.count("The picture of these captions") == 2
    assert "the picture 0.800 0.800 1.000 ± 0.000 1.000 ± 0.000" in text
    assert "share of ceiling 1.000 1.250 ± 0.000" in text
    assert "Whole articles" not in text and "topic alone" not in text


def test_a_run_without_traces_has_nothing_to_say_of_them(content):
    text = section(content, "tippo")
    assert "Gate and fusion" not in text and "Where it looked" not in text
    assert "No similarity" not in text and "Warning" not in text
    assert "Whole articles" in text


def test_gains_stand_in_tiles_beside_what_was_before(content):
    text = section(content, "tippo")
    # Of grounding: from 11 of 12 slots to all; the error of test_evaluate.
    assert "after SFT alone 0.917, gain 0.083 ± 0.083" in text
    assert "Literal reward 1.000 of 2 whole texts after SFT alone 0.967, gain 0.033 ± 0.033" in text


def test_a_further_tokenizer_has_rows_of_its_own(metrics):
    block = {"rouge_l": 0.25, "measured_by": {"tokenizer": "zh: jieba", "rouge_l": XSS_TEXT}}
    found = json.loads(metrics.read_text())
    found["sft"]["by_tokenizer"] = found["by_tokenizer"] = {"jieba": block}
    metrics.write_text(json.dumps(found))
    text = section(render_page(metrics.parents[3]), "tippo")
    assert f"ROUGE-L, jieba 0.250 0.250 {XSS_TEXT}" in text


def test_the_curves_of_polish_ppo_have_charts_of_their_own(content):
    text = section(content, "tippo")
    titles = [title for title in curves.METRIC_CHARTS if f"{title}, preference" in text]
    assert titles == curves.list_metric_charts(POLISH) != []
    assert "Rewards, sft" not in text
    assert "Rewards, preference" not in section(content, "muse")


def test_measures_are_no_terms_of_the_loss_and_nothing_watched():
    assert curves.list_monitored_metrics(POLISH) == ["validation_watch"]
    drawn = curves.draw_loss("one", POLISH, "nats")
    assert ">policy<" in drawn and ">kl<" in drawn
    assert ">reward literal<" not in drawn and ">validation loss<" not in drawn
    drawn = curves.draw_metric_chart("one", "Rewards", POLISH)
    for name in ("reward literal", "reward semantic", "validation reward literal"):
        assert drawn.count(f">{name}<") == 1
    assert ">return<" in curves.draw_metric_chart("one", "Return of drawn texts", POLISH)
    assert curves.list_metric_charts([{"step": 1, "loss": 1.0}]) == []


def test_a_running_mean_is_of_the_last_steps():
    """Of 60 steps the last 3."""
    steps = [{"step": n, "entropy": float(n)} for n in range(60)]
    found = curves._running_mean(steps, "entropy")
    assert [row["entropy"] for row in found[:4]] == [0.0, 0.5, 1.0, 2.0]
    assert found[59] == {"step": 59, "entropy": 58.0}


def test_every_run_of_the_page_is_linked_and_every_id_there_once(content):
    page = ParsedPage(content)
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids)) and page.open_tags == []
    assert {link["href"].removeprefix("#") for link in page.find_all("a")} <= set(ids)
