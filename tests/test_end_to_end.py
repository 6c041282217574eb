"""The whole job in a copy of the project, on the smoke preset's sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import clone
from dvc.repo import Repo
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
REAL = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset"))
OWN = ("MLFLOW_TRACKING_URI", "POLYMUSE_HOME")  # a workspace keeps its runs to itself


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with the smoke preset, in which every stage has run."""
    folder = clone(tmp_path_factory.mktemp("end_to_end"))
    command(folder, "polymuse", "preset", "smoke")
    command(folder, "dvc", "repro")
    return folder


def command(folder: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def stages_of(folder: Path) -> set[str]:
    with Repo(str(folder)) as repo:
        return {stage.addressing for stage in repo.index.stages}


def texts(table: Path) -> list[dict]:
    """The rows of a Parquet file."""
    return pq.read_table(table).to_pylist()


def test_metrics_of_both_phases_stand_beside_their_ceilings(project):
    metrics = json.loads((project / "data/12_evaluate/flexmuse/metrics.json").read_text())
    for phase in [metrics, metrics["sft"]]:
        assert 0 <= phase["grounding"]["total"] <= 1
        assert phase["rouge_l"] > 0
    assert 0 < metrics["ceilings"]["both"]["realised"] <= 1


@pytest.mark.parametrize(
    ("run", "figure"), [("tippo", "skill"), ("tippo_captions", "share_of_ceiling")]
)
def test_tippo_writes_articles_and_captions_and_its_rewards_are_compared(project, run, figure):
    metrics = json.loads((project / f"data/12_evaluate/{run}/metrics.json").read_text())
    assert set(metrics["gain"]) == {"literal", "semantic", "grounding"}
    for phase in [metrics, metrics["sft"]]:
        assert isinstance(phase[figure]["value"], float)
        assert 0 <= phase["rewards"]["literal"] <= 1
    header = (project / f"data/10_train_preference/{run}/history.csv").read_text().split("\n")[0]
    measured = {"reward_literal", "reward_semantic", "kl_to_sft", "clip_share", "entropy", "tokens"}
    assert measured <= set(header.split(","))


@pytest.mark.parametrize("run", ["flexmuse", "tippo"])
def test_every_test_chunk_is_written_by_each_phase_from_each_input(project, run):
    rows = texts(project / f"data/11_predict/{run}/predictions.parquet")
    written: dict[tuple, set] = {}
    for row in rows:
        if row["split"] == "test":
            key = row["phase"], row["inputs"]
            written.setdefault(key, set()).add((row["record"], row["position"]))
    phases, inputs = ["sft", "preference"], ["both", "topic", "picture"]
    assert set(written) == {(phase, given) for phase in phases for given in inputs}
    assert len({frozenset(chunks) for chunks in written.values()}) == 1


@pytest.mark.parametrize(
    ("run", "corpus", "task"),
    [("muse_entities", "tweets", "entities"), ("muse_sentiment", "posts", "sentiment")],
)
def test_every_test_item_is_labelled_from_each_input_and_scored(project, run, corpus, task):
    summary = json.loads((project / f"data/02_clean/{corpus}/summary.json").read_text())
    metrics = json.loads((project / f"data/12_score/{run}/metrics.json").read_text())
    assert (metrics["task"], metrics["split"]) == (task, "test")
    assert metrics["items"] == summary["records"]["test"] > 0
    assert metrics["validation"]["items"] == summary["records"]["validation"] > 0
    for split in (metrics, metrics["validation"]):
        assert 0 <= split["score"]["value"] <= 1 == split["ceilings"]["both"]["realised"]
        assert isinstance(split["skill"]["value"], float)
        assert split["regularisers"]["caption_nats"]["value"] > 0
        assert split["regularisers"]["drawing_bits"]["value"] > 0
    assert set(metrics["single_modality"]) == {"text", "picture"}
    assert metrics["parameters"]["trained"] > 0 and metrics["alignment"]
    rows = texts(project / f"data/11_label/{run}/labels.parquet")
    for inputs in ("both", "text", "picture"):
        some = [row for row in rows if (row["split"], row["inputs"]) == ("test", inputs)]
        assert len({row["record"] for row in some}) == len(some) == metrics["items"]


@pytest.mark.parametrize("run", ["muse_entities", "muse_sentiment"])
def test_what_was_exchanged_and_drawn_is_kept_of_some_items(project, run):
    folder = project / f"data/11_label/{run}"
    assert any(row["exchanged"] for row in texts(folder / "exchanges.parquet"))
    drawn = texts(folder / "drawn.parquet")
    assert len(drawn) == 4 and all(row["picture"].startswith(b"\x89PNG") for row in drawn)
    places = {(row["modality"], row["where"]) for row in texts(folder / "embeddings.parquet")}
    assert places == {(m, w) for m in ("text", "picture") for w in ("before", "after")}


def test_the_report_shows_an_example_with_its_picture(project):
    page = (project / "data/14_report/index.html").read_text()
    rows = texts(project / "data/11_predict/flexmuse/predictions.parquet")
    shown = [row for row in rows if row["split"] == "test" and row["title"] in page]
    assert shown and "<img" in page
    assert str(project) not in page


def test_each_training_evaluation_and_report_is_a_run_tied_to_its_data(project):
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("polymuse").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    tracked = ["align", "train_sft@flexmuse", "train_preference@flexmuse", "evaluate@flexmuse"]
    tracked += ["train@muse_entities", "score@muse_entities", "train@muse_sentiment"]
    assert {*tracked, "report"} <= set(runs)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    for name in [*tracked, "report"]:
        deps = {f"dvc.md5.{dep['path']}": dep["md5"] for dep in lock[name]["deps"]}
        assert deps.items() <= runs[name].data.tags.items()
        assert runs[name].data.params and runs[name].inputs.dataset_inputs
    for name in ("train_sft@flexmuse", "train@muse_entities"):
        history = client.get_metric_history(runs[name].info.run_id, "loss")
        assert len({metric.step for metric in history}) > 1


def test_nothing_that_dvc_keeps_names_this_machine_or_this_run(project):
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("polymuse").experiment_id
    ids = [run.info.run_id.encode() for run in client.search_runs([experiment])]
    for file in (path for path in (project / "data").rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert not [text for text in [str(project).encode(), *ids] if text in content], file


def test_a_second_repro_runs_nothing(project):
    assert "Running stage" not in command(project, "dvc", "repro")


def test_the_preset_is_taken_back_with_nothing_left_of_it(project):
    kept = (project / "params.yaml").read_bytes()
    command(project, "polymuse", "preset", "--undo")
    assert (project / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    (project / "params.yaml").write_bytes(kept)


def leave(workspace: Path, corpora: dict[str, dict | str], *runs: str) -> None:
    """Lay on the smoke preset, with these corpora and runs alone; readers learn for a few steps.

    corpora: a row each, or the name of one that params.yaml has.
    """
    command(workspace, "polymuse", "preset", "smoke")
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    shipped = params["corpora"]
    params["corpora"] = {
        name: shipped[row] if isinstance(row, str) else row for name, row in corpora.items()
    }
    params["chunk"]["corpora"] = [
        name for name, row in params["corpora"].items() if row["kind"] in ("articles", "captions")
    ]
    params["align"]["corpus"] = params["chunk"]["corpora"][-1]
    for family in ("writers", "readers"):
        params[family] = {run: row for run, row in params[family].items() if run in runs}
    for row in params["readers"].values():
        row["training"] |= {"steps": 12, "batch": 16, "validate_every": 6}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True))


def read_json(workspace: Path, path: str) -> dict:
    return json.loads((workspace / path).read_text())


@pytest.mark.skipif(not (REAL / "howtocook").is_dir(), reason="needs POLYMUSE_REAL_DATA/howtocook")
def test_a_folder_of_chinese_recipes_ends_in_a_report_with_their_photographs(workspace):
    recipes = {"kind": "articles", "format": "markdown", "path": str(REAL / "howtocook")}
    leave(workspace, {"articles": recipes, "captions": "captions"}, "flexmuse", "tippo")
    command(workspace, "dvc", "repro")
    summary = read_json(workspace, "data/01_ingest/articles/summary.json")
    assert set(summary["languages"]) == {"zh"}
    metrics = read_json(workspace, "data/12_evaluate/flexmuse/metrics.json")
    assert metrics["bert_score"] == "unavailable"
    written = texts(workspace / "data/11_predict/flexmuse/predictions.parquet")
    assert written and not any("[UNK]" in row["text"] for row in written)
    page = (workspace / "data/14_report/index.html").read_text()
    assert any(row["title"] in page for row in written if row["split"] == "test")
    assert "<img" in page


@pytest.mark.skipif(not (REAL / "flickr8k_cn").is_dir(), reason="needs POLYMUSE_REAL_DATA")
def test_photographs_with_chinese_captions_are_evaluated_by_params_alone(workspace):
    photographs = {"kind": "captions", "format": "flickr8k_cn", "path": str(REAL / "flickr8k_cn")}
    leave(workspace, {"captions": photographs, "drawn": "captions"}, "tippo_captions")
    command(workspace, "polymuse", "run", "evaluate@tippo_captions")
    summary = read_json(workspace, "data/01_ingest/captions/summary.json")
    assert summary["languages"] == {"zh": 400} and summary["rejected"] == {}
    metrics = read_json(workspace, "data/12_evaluate/tippo_captions/metrics.json")
    assert metrics["items"] == summary["records"]["test"]
    assert metrics["measured_by"]["tokenizer"] == "zh: characters"
    assert metrics["by_tokenizer"]["jieba"]["measured_by"]["tokenizer"] == "zh: jieba"
    assert metrics["bert_score"] == "unavailable"


@pytest.mark.skipif(not (REAL / "mvsa_single").is_dir(), reason="needs POLYMUSE_REAL_DATA")
def test_the_sentiment_of_photographs_with_tweets_is_scored_by_params_alone(workspace):
    posts = {"kind": "posts", "format": "mvsa", "path": str(REAL / "mvsa_single")}
    leave(workspace, {"captions": "captions", "posts": posts}, "muse_sentiment")
    assert "muse_sentiment" in command(workspace, "polymuse", "run").splitlines()[-3]
    summary = read_json(workspace, "data/01_ingest/posts/summary.json")
    assert sum(summary["records"].values()) == 168 and summary["rejected"] == {}
    assert set(summary["without_picture"].values()) == {0}
    metrics = read_json(workspace, "data/12_score/muse_sentiment/metrics.json")
    assert metrics["split"] == "test" and metrics["items"] == summary["records"]["test"]
    assert set(metrics["single_modality"]) == {"text", "picture"}
    assert set(metrics["regularisers"]) == {"caption_nats", "drawing_bits"}
    assert "ceilings" not in metrics
    page = (workspace / "data/14_report/index.html").read_text()
    assert "Items of the test split" in page and "<img" in page
    assert "\ufffd" not in page  # texts of several encodings


@pytest.mark.skipif(not (REAL / "mner").is_dir(), reason="needs POLYMUSE_REAL_DATA/mner")
def test_tweets_without_pictures_and_without_a_test_split_are_scored_on_validation(workspace):
    part = workspace / "data/00_raw/twitter2015"
    part.mkdir()
    for name, count in [("train.txt", 300), ("valid.txt", 60)]:  # the first of them
        tweets = (REAL / "mner/twitter2015" / name).read_text().split("\n\n")[:count]
        (part / name).write_text("\n\n".join(tweets) + "\n")
    tweets = {"kind": "tweets", "format": "twitter", "path": str(part)}
    leave(workspace, {"captions": "captions", "tweets": tweets}, "muse_entities")
    assert "muse_entities" in command(workspace, "polymuse", "run").splitlines()[-3]
    summary = read_json(workspace, "data/01_ingest/tweets/summary.json")
    assert summary["records"] == {"train": 300, "validation": 60, "test": 0}
    assert summary["without_picture"] == summary["records"]
    metrics = read_json(workspace, "data/12_score/muse_entities/metrics.json")
    assert metrics["split"] == "validation" and metrics["items"] == 60
    assert "single_modality" not in metrics and metrics["regularisers"] == {}
    page = (workspace / "data/14_report/index.html").read_text()
    assert "Items of the validation split" in page and "no picture is there" in page
