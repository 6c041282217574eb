"""Runs side by side: values and intervals by hand, the params that differ, and the width."""

import json

import numpy as np
import pytest

from pipelines.cli import compare
from pipelines.comparison import (
    ComparedRun,
    list_unshared_params,
    load_mlflow_run,
    tabulate_metrics,
    tabulate_params,
)
from pipelines.evaluation import Evaluation, NotComparableError, compare_evaluations
from stages.shared.core.config import read_params
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import InputError

TOOLS = {"cider": "pycocoevalcap", "rouge_l": "pycocoevalcap"}


def make_generator(scores: dict, run: str = "tippo", **tools: str) -> Evaluation:
    """An evaluation of a generator with the scores of each (record, position)."""
    items = {key: {"record": key[0], "position": key[1]} | row for key, row in scores.items()}
    return Evaluation(run, "generators", "articles", {"measured_by": TOOLS | tools}, items)


def make_scores(score: str, values: list[float]) -> dict:
    """Two texts for each record."""
    empty = {"grounding": None, "cider": None, "rouge_l": None}
    return {(f"r{i // 2}", i % 2): empty | {score: value} for i, value in enumerate(values)}


def test_generators_are_compared_by_the_mean_difference_of_their_texts_by_record():
    """The error is that of the records' sums: with one difference for all records it is 0."""
    before = make_generator(make_scores("grounding", [0.1, 0.5, 0.3, 0.7]))
    after = make_generator(make_scores("grounding", [0.2, 0.8, 0.6, 0.8]))
    comparison = compare_evaluations(after, before)
    assert comparison.score == "grounding" and comparison.verdict == "better"
    assert comparison.difference["value"] == pytest.approx(0.2)
    assert comparison.difference["standard_error"] == pytest.approx(0, abs=1e-12)


def test_the_error_of_many_texts_is_that_of_the_mean_of_independent_differences():
    draws = np.random.default_rng(0).normal(0.1, 1, 400)
    keys = [(f"r{i}", 0) for i in range(400)]
    empty = {"grounding": None, "cider": 0.0, "rouge_l": None}
    before = make_generator(dict.fromkeys(keys, empty))
    after = {key: empty | {"cider": value} for key, value in zip(keys, draws, strict=True)}
    comparison = compare_evaluations(make_generator(after), before)
    assert comparison.score == "CIDEr"
    assert comparison.difference["value"] == pytest.approx(draws.mean())
    assert comparison.difference["standard_error"] == pytest.approx(draws.std() / 20, rel=0.1)


def test_scores_of_other_tools_are_not_compared():
    """ROUGE-L is used where CIDEr was computed in another way."""
    scores = make_scores("cider", [0.1, 0.5])
    rouge = {key: row | {"rouge_l": 0.5} for key, row in scores.items()}
    other = make_generator(scores, cider="another")
    with pytest.raises(NotComparableError, match="no score that was computed in the same way"):
        compare_evaluations(make_generator(scores), other)
    comparison = compare_evaluations(make_generator(rouge), make_generator(rouge, cider="another"))
    assert comparison.score == "ROUGE-L" and comparison.verdict == "unclear"


def test_a_generator_is_not_compared_with_a_classifier():
    generator = make_generator(make_scores("cider", [0.1, 0.5]))
    classifier = Evaluation("muse", "classifiers", "posts", {}, {})
    with pytest.raises(NotComparableError, match="a generator, the other one a classifier"):
        compare_evaluations(generator, classifier)


def test_metrics_have_intervals_of_two_standard_errors():
    first = ComparedRun("a", {"skill.value": 0.8, "skill.standard_error": 0.01, "bleu_4": 0.25}, {})
    memes = {"accuracy.value": 0.5, "score.standard_error": 0.02, "skill.value": 0.7}
    assert tabulate_metrics([first, ComparedRun("b", memes, {})]) == [
        ["skill", "0.800 [0.780, 0.820]", "0.700"],
        ["accuracy", "-", "0.500 [0.460, 0.540]"],
        ["BLEU-4", "0.250", "-"],
    ]


def test_runs_without_known_metrics_are_compared_by_those_they_share():
    runs = [ComparedRun("a", {"loss": 2.0, "x": 1.0}, {}), ComparedRun("b", {"loss": 1.5}, {})]
    assert tabulate_metrics(runs) == [["loss", "2", "1.5"]]


def test_only_params_that_differ_are_shown_and_unshared_ones_are_named_by_section():
    first = {"sft.max_steps": "30", "sft.seed": "0", "network.gate.train": "x"}
    second = {"sft.max_steps": "40", "sft.seed": "0", "quality": "1"}
    runs = [ComparedRun("a", {}, first), ComparedRun("b", {}, second)]
    assert tabulate_params(runs) == [["sft.max_steps", "30", "40"]]
    assert list_unshared_params(runs) == ["network.gate", "quality"]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 9])
def test_tables_of_any_number_of_runs_fit_120_columns_and_show_every_run(count):
    metrics = {"skill.value": -100.8, "skill.standard_error": 10.01}
    names = [f"a_run_with_a_long_name_{i}" for i in range(count)]
    runs = [ComparedRun(name, metrics, {"a." * 40: "x" * 100 + name}) for name in names]
    for title, rows in (("metric", tabulate_metrics(runs)), ("parameter", tabulate_params(runs))):
        text = compare.format_blocks(title, runs, rows)
        assert max(map(len, text.splitlines())) <= compare.WIDTH
        assert all(name in text for name in names)


def test_one_run_or_the_same_twice_is_refused():
    for names in (["tippo"], ["tippo", "tippo"]):
        with pytest.raises(InputError, match="needs two or more different runs"):
            compare.main(names)


def test_unknown_and_unevaluated_runs_are_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(json.dumps(read_params()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^params.yaml has no run 'a' among"):
        compare.main(["a", "tippo"])
    with pytest.raises(InputError, match=r"^tippo is not evaluated yet: run `polymuse run eval"):
        compare.main(["tippo", "flexmuse"])


def test_an_mlflow_run_has_the_params_of_the_model_that_it_evaluates(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model": "tippo"}')
    ids = []
    for steps in (30, 40):
        (model / "weights").write_text(str(steps))
        with tracking.start_run("train_sft", "tippo", {"sft": {"steps": steps, "seed": 0}}) as run:
            run.log_model(model, "tippo")
        with tracking.start_run("evaluate", "tippo", {"evaluate": {"seed": 0}}) as run:
            run.link_model(model)
            run.log_metrics({"skill.value": steps / 100, "skill.standard_error": 0.01}, 0)
        ids.append(run.run_id)
    assert load_mlflow_run(ids[0]).params["sft.steps"] == "30"
    compare.main(ids)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["skill", "0.300", "[0.280,", "0.320]", "0.400", "[0.380,", "0.420]"] in lines
    assert ["sft.steps", "30", "40"] in lines
    with pytest.raises(InputError, match=f"^MLflow has no run {'0' * 32} "):
        compare.main([ids[0], "0" * 32])
