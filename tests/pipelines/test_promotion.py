"""A model becomes champion only if it is surely better on the same test items."""

import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from pipelines import promotion
from pipelines.cli import main
from pipelines.evaluation import NotComparableError, compare_evaluations, load_evaluation
from stages.shared.runtime import mlflow_store, tracking
from stages.shared.runtime.stage import InputError
from tests.support import evaluated_project
from tests.support.evaluated_project import CORPUS, NUM_POSTS, NUM_WRONG


@pytest.fixture(scope="module")
def original(tmp_path_factory, trained_classifiers) -> Path:
    model = trained_classifiers / "data/09_train_classifier/muse_sentiment/model"
    return evaluated_project.create_project(tmp_path_factory.mktemp("runs") / "project", model)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def place(original, database, tmp_path, monkeypatch) -> Path:
    """The project as working directory, with an empty tracking store."""
    folder = tmp_path / "project"
    shutil.copytree(original, folder, symlinks=True)
    shutil.copy(database, folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setenv("POLYMUSE_HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    return folder


def champion():
    """Version and run of the champion."""
    client = MlflowClient(tracking.get_tracking_uri())
    version = client.get_model_version_by_alias(CORPUS, "champion")
    return int(version.version), version.tags["polymuse.run"]


def test_the_first_model_is_promoted_and_loads_by_the_alias(place):
    result = promotion.promote("weak", force=False)
    assert result == promotion.Promotion(
        "promoted",
        "weak is the first champion of posts. It is now models:/posts@champion, version 1.",
    )
    served = mlflow.pyfunc.load_model("models:/posts@champion")
    frame = pd.DataFrame({"text": ["the fox sat"], "image": [None]})
    assert list(served.predict(frame).columns) == ["label", "probability", "words_not_read"]
    assert len(served.predict(served.input_example)) == 1
    copied = tracking.download_model("models:/posts@champion", place / "copy")
    for file in (place / "source/weak/model").rglob("*"):
        if file.is_file():
            assert (copied / file.relative_to(place / "source/weak/model")).read_bytes() == (
                file.read_bytes()
            )


def test_a_model_that_is_champion_already_is_not_registered_again(place):
    promotion.promote("weak", force=False)
    result = promotion.promote("weak", force=False)
    sentence = "weak is the champion already: version 1 of posts (weak)."
    assert result == promotion.Promotion("unchanged", sentence)
    assert champion() == (1, "weak")


def test_a_surely_better_model_replaces_the_champion_and_a_worse_one_does_not(place):
    promotion.promote("weak", force=False)
    better = promotion.promote("strong", force=False)
    assert better.outcome == "promoted"
    gain = (NUM_WRONG["weak"] - NUM_WRONG["strong"]) / NUM_POSTS
    assert better.sentence.startswith(
        f"strong beats the champion, version 1 of posts (weak), in accuracy by {gain:.3f} ("
    )
    assert better.sentence.endswith("It is now models:/posts@champion, version 2.")
    worse = promotion.promote("weak", force=False)
    assert worse.outcome == "refused"
    assert worse.sentence.startswith(
        f"weak is below the champion, version 2 of posts (strong), in accuracy by {gain:.3f} ("
    )
    assert worse.sentence.endswith("The champion stays; --force replaces it.")
    assert champion() == (2, "strong")
    assert promotion.promote("weak", force=True).outcome == "promoted"
    assert champion() == (3, "weak")


def test_a_model_that_does_not_differ_surely_leaves_the_champion(place):
    """Also if it is a little better: one of 40 posts."""
    promotion.promote("twin", force=False)
    result = promotion.promote("strong", force=False)
    assert result.outcome == "refused"
    assert "does not differ surely from the champion, version 1 of posts (twin)," in result.sentence
    assert "in accuracy: +0.025 (" in result.sentence
    assert champion() == (1, "twin")


def test_a_model_with_other_test_items_is_refused(place):
    promotion.promote("weak", force=False)
    result = promotion.promote("other_posts", force=False)
    assert result.outcome == "refused"
    assert "because their test items differ: 20 of 40 and 40 are the same." in result.sentence
    assert champion() == (1, "weak")


def test_a_champion_whose_evaluation_was_deleted_is_not_replaced_without_force(place):
    promotion.promote("weak", force=False)
    client = MlflowClient(tracking.get_tracking_uri())
    tags = client.get_model_version_by_alias(CORPUS, "champion").tags
    folder = client.get_run(tags["polymuse.promotion"]).info.artifact_uri.removeprefix("file://")
    shutil.rmtree(Path(folder, "evaluation"))
    result = promotion.promote("strong", force=False)
    assert result.outcome == "refused" and "cannot be compared" in result.sentence
    assert promotion.promote("strong", force=True).outcome == "promoted"


def test_every_attempt_is_a_run_with_the_difference(place):
    promotion.promote("weak", force=False)
    promotion.promote("twin", force=False)
    client = MlflowClient(tracking.get_tracking_uri())
    experiment = client.get_experiment_by_name(mlflow_store.EXPERIMENT_NAME).experiment_id
    by_name = {run.info.run_name: run.data for run in client.search_runs([experiment])}
    assert by_name["promote@weak"].metrics == {}
    metrics = by_name["promote@twin"].metrics
    assert metrics["value"] == pytest.approx(15 / 40) and metrics["standard_error"] > 0


def test_a_model_that_training_logged_is_registered_and_not_logged_again(place):
    with tracking.start_run("train_classifier", "weak", {"training": {"seed": 5}}) as run:
        run.log_model(Path("data/09_train_classifier/weak/model"), "weak")
    promotion.promote("weak", force=False)
    client = MlflowClient(tracking.get_tracking_uri())
    experiment = client.get_experiment_by_name(mlflow_store.EXPERIMENT_NAME).experiment_id
    (model,) = client.search_logged_models([experiment])
    version = client.get_model_version_by_alias(CORPUS, "champion")
    assert version.source == f"models:/{model.model_id}" and version.run_id == run.run_id


FAULTS = {
    "nobody": "params.yaml has no run 'nobody' among its generators and classifiers: choose one of",
    "weak": "weak is not evaluated yet: run `polymuse run evaluate_classifier@weak`",
    "twin": "data/09_train_classifier/twin/model is missing: run `polymuse run` or `dvc checkout`",
    "strong": "strong was not evaluated as it is now (data/09_train_classifier/strong/model was",
}


@pytest.mark.parametrize("run", FAULTS)
def test_a_run_without_a_present_evaluation_or_model_is_one_sentence(place, run):
    Path("data/12_evaluate_classifier/weak/items.parquet").unlink()
    shutil.rmtree("data/09_train_classifier/twin/model")
    config = Path("data/09_train_classifier/strong/model/config.json")
    content = config.read_text()
    config.unlink()  # a link into the cache of DVC
    config.write_text(content + " ")
    with pytest.raises(InputError) as error:
        promotion.promote(run, force=False)
    assert str(error.value).startswith(FAULTS[run]) and "\n" not in str(error.value)


def test_the_command_prints_the_sentence_and_fails_if_the_champion_stays(
    place, monkeypatch, capsys
):
    monkeypatch.setattr("sys.argv", ["polymuse", "promote", "strong"])
    main()
    assert capsys.readouterr().out.startswith("strong is the first champion of posts.")
    monkeypatch.setattr("sys.argv", ["polymuse", "promote", "weak"])
    with pytest.raises(SystemExit):
        main()
    assert "error: weak is below the champion" in capsys.readouterr().err


def test_the_paired_error_is_that_of_the_difference_item_by_item(place):
    """15 posts differ: each bootstrap sample has a binomial number of them."""
    comparison = compare_evaluations(load_evaluation("twin"), load_evaluation("weak"))
    share = 15 / 40
    assert comparison.difference["value"] == pytest.approx(share)
    expected = (share * (1 - share) / 40) ** 0.5
    assert comparison.difference["standard_error"] == pytest.approx(expected, rel=0.08)


def test_runs_with_other_labels_of_the_same_posts_are_not_compared(place):
    weak, strong = load_evaluation("weak"), load_evaluation("strong")
    key = next(iter(weak.items))
    weak.items[key] = weak.items[key] | {"gold": 2}
    with pytest.raises(NotComparableError, match="the labels of their test items differ"):
        compare_evaluations(weak, strong)
