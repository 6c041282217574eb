"""The whole job in a copy of the project, on the smoke preset's sizes."""

import csv
import json
import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from dvc.repo import Repo
from mlflow.tracking import MlflowClient
from PIL import Image

from stages.shared.data import image_store
from tests.support.project_files import ROOT, clone_project

BIN = Path(sys.executable).parent
REAL = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset"))
TASKS = ["sentiment", "humour", "sarcasm", "offensive", "motivational"]
FOUND = {  # what formats.table says of cm_memes
    "columns": {"image": "Name", "text": "Text", "id": None, "split": None, "language": None},
    "tasks": {
        task: {"column": column, "labels": labels, "otherwise": None}
        for task, column, labels in [
            ("sentiment", "Valence", {n: n for n in ("negative", "neutral", "positive")}),
            ("sarcasm", "Sarcasm", {"non-sarcastic": "not_sarcastic", "sarcasm": "sarcastic"}),
            ("offensive", "Level1", {"non-off": "not_offensive", "off": "offensive"}),
        ]
    },
}
OWN = ("MLFLOW_TRACKING_URI", "POLYMUSE_HOME")  # a workspace keeps its runs to itself


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with the smoke preset, in which every stage has run."""
    folder = clone_project(tmp_path_factory.mktemp("end_to_end"))
    command(folder, "polymuse", "preset", "smoke")
    command(folder, "polymuse", "run")
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


def read_json(workspace: Path, path: str) -> dict:
    return json.loads((workspace / path).read_text())


def pixels(folder: Path) -> dict[str, np.ndarray]:
    """The pictures of an images folder by sha256, (H, W, 3)."""
    rows = image_store.read_images(folder)
    return {
        row["sha256"]: np.asarray(Image.open(BytesIO(row["bytes"])).convert("RGB")) for row in rows
    }


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
    metrics = json.loads((project / f"data/12_evaluate_classifier/{run}/metrics.json").read_text())
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
    rows = texts(project / f"data/11_classify/{run}/labels.parquet")
    for inputs in ("both", "text", "picture"):
        some = [row for row in rows if (row["split"], row["inputs"]) == ("test", inputs)]
        assert len({row["record"] for row in some}) == len(some) == metrics["items"]


@pytest.mark.parametrize("run", ["muse_entities", "muse_sentiment"])
def test_what_was_exchanged_and_drawn_is_kept_of_some_items(project, run):
    folder = project / f"data/11_classify/{run}"
    assert any(row["exchanged"] for row in texts(folder / "exchanges.parquet"))
    drawn = texts(folder / "drawn.parquet")
    assert len(drawn) == 4 and all(row["picture"].startswith(b"\x89PNG") for row in drawn)
    places = {(row["modality"], row["where"]) for row in texts(folder / "embeddings.parquet")}
    assert places == {(m, w) for m in ("text", "picture") for w in ("before", "after")}


def test_the_words_over_memes_are_found_and_painted_over(project):
    summary = read_json(project, "data/01_ingest/memes/summary.json")
    assert sum(summary["records"].values()) == 80 and summary["rejected"] == {}
    before = pixels(project / "data/01_ingest/memes/images")
    after = pixels(project / "data/03_inpaint/memes/images")
    rows = texts(project / "data/03_inpaint/memes/pictures.parquet")
    painted = [row for row in rows if row["mask"]]
    assert len(rows) == len(before) and len(painted) > 0.9 * len(rows)
    for row in painted:
        mask = np.asarray(Image.open(BytesIO(row["mask"])))
        was, became = before[row["image"]], after[row["inpainted"]]
        assert set(np.unique(mask)) == {0, 255} and mask.shape == was.shape[:2]
        assert (was == became)[mask == 0].all() and (was != became).any()
        assert row["boxes"] and row["masked"] == pytest.approx((mask > 0).mean(), abs=1e-6)


def test_paraphrases_are_made_of_train_memes_alone_and_all_memes_are_embedded(project):
    rows = texts(project / "data/04_augment/memes/records.parquet")
    originals = {row["id"]: row for row in rows if not row["variant"]}
    clean = texts(project / "data/02_clean/memes/records.parquet")
    kept = ("id", "split", "language", "text", "labels")
    assert [[row[key] for key in kept] for row in originals.values()] == [
        [row[key] for key in kept] for row in clean
    ]
    paraphrases = [row for row in rows if row["variant"]]
    assert len({row["group"] for row in paraphrases}) > 40  # of 60
    for row in paraphrases:
        original = originals[row["group"]]
        assert row["split"] == original["split"] == "train"
        assert row["labels"] == original["labels"] and row["pictured"] == original["pictured"]
        assert row["text"] != original["text"] and row["image"] != original["image"]
    summary = read_json(project, "data/07_embed/memes/summary.json")
    found = {"pictures": len({row["image"] for row in rows}), "text": "encoder"}
    assert summary == found | {"texts": len({row["text"] for row in rows})}


def test_every_meme_gets_a_label_of_each_task_with_its_probability(project):
    tasks = read_json(project, "data/01_ingest/memes/tasks.json")
    assert list(tasks) == TASKS
    memes = texts(project / "data/02_clean/memes/records.parquet")
    rows = texts(project / "data/11_classify/mm_orient/labels.parquet")
    for split, given in [("test", ("both", "text", "picture")), ("validation", ("both",))]:
        wanted = {
            (meme["id"], inputs, one["task"], one["label"])
            for meme in memes
            if meme["split"] == split
            for inputs in given
            for one in meme["labels"]
        }
        some = [row for row in rows if row["split"] == split]
        told = {(row["record"], row["inputs"], row["task"], *row["gold"]) for row in some}
        assert len(some) == len(wanted) > 0 and told == wanted
    for row in rows:
        (label,), (probability,) = row["predicted"], row["probability"]
        labels = tasks[row["task"]]
        assert label in labels and 1 / len(labels) <= probability <= 1


def test_each_task_of_memes_is_scored_beside_its_ceilings(project):
    metrics = read_json(project, "data/12_evaluate_classifier/mm_orient/metrics.json")
    assert (metrics["split"], metrics["items"]) == ("test", 12)
    assert list(metrics["tasks"]) == TASKS and metrics["validation"]["items"] == 8
    for figures in (metrics, *metrics["tasks"].values()):
        assert 0 <= figures["score"]["value"] <= 1
        assert isinstance(figures["skill"]["value"], float)
        ceilings = {inputs: found["realised"] for inputs, found in figures["ceilings"].items()}
        assert max(ceilings["text"], ceilings["picture"]) < ceilings["both"] <= 1
    assert set(metrics["single_modality"]) == {"text", "picture"}
    for alone in metrics["single_modality"].values():
        assert set(alone["tasks"]) == set(TASKS) and 0 <= alone["value"] <= 1
    assert metrics["behaviour"] and metrics["parameters"]["trained"] > 0


def test_the_report_shows_examples_with_their_pictures(project):
    page = (project / "data/14_report/index.html").read_text()
    rows = texts(project / "data/11_predict/flexmuse/predictions.parquet")
    shown = [row for row in rows if row["split"] == "test" and row["title"] in page]
    assert shown and "<img" in page
    assert str(project) not in page
    for shown in ("mm_orient", "Memes: memes", "before, mask, after", "Relation graphs"):
        assert shown in page
    reworded = texts(project / "data/04_augment/memes/records.parquet")
    assert any(row["variant"] and row["text"] in page for row in reworded)


def test_each_training_evaluation_and_report_is_a_run_tied_to_its_data(project):
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("polymuse").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    tracked = ["align", "train_sft@flexmuse", "train_preference@flexmuse", "evaluate@flexmuse"]
    tracked += [
        "train_classifier@muse_entities",
        "evaluate_classifier@muse_entities",
        "train_classifier@muse_sentiment",
    ]
    tracked += ["augment@memes", "train_classifier@mm_orient", "evaluate_classifier@mm_orient"]
    assert {*tracked, "report"} <= set(runs)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    for name in [*tracked, "report"]:
        deps = {f"dvc.md5.{dep['path']}": dep["md5"] for dep in lock[name]["deps"]}
        assert deps.items() <= runs[name].data.tags.items()
        assert runs[name].data.params and runs[name].inputs.dataset_inputs
    for name in (
        "train_sft@flexmuse",
        "train_classifier@muse_entities",
        "train_classifier@mm_orient",
    ):
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


def test_of_all_that_ran_a_report_can_show_memes_alone(project):
    given = (project / "params.yaml").read_bytes()
    keep(project, {"captions": "captions", "memes": "memes"}, "mm_orient")
    assert "mm_orient" in command(project, "polymuse", "run").splitlines()[-3]
    page = (project / "data/14_report/index.html").read_text()
    assert "mm_orient" in page and "before, mask, after" in page
    assert "muse_entities" not in page and "flexmuse" not in page
    (project / "params.yaml").write_bytes(given)


def test_a_project_needs_no_memes(project):
    given = (project / "params.yaml").read_bytes()
    keep(project, {"captions": "captions", "posts": "posts"}, "muse_sentiment")
    assert "muse_sentiment" in command(project, "polymuse", "run").splitlines()[-3]
    assert not [name for name in stages_of(project) if "memes" in name or "augment" in name]
    page = (project / "data/14_report/index.html").read_text()
    assert "muse_sentiment" in page and "mm_orient" not in page and "Memes: " not in page
    (project / "params.yaml").write_bytes(given)


def keep(project: Path, corpora: dict[str, dict | str], *runs: str, **formats: dict) -> None:
    """Take all but these corpora and runs out of params.yaml.

    corpora: a row each, or the name of one that params.yaml has. formats: what they change of one.
    """
    params = yaml.safe_load((project / "params.yaml").read_text())
    shipped = params["corpora"]  # named after their kinds
    params["corpora"] = {
        name: shipped[row] if isinstance(row, str) else shipped[row["kind"]] | row
        for name, row in corpora.items()
    }
    named = {
        kind: [name for name, row in params["corpora"].items() if row["kind"] == kind]
        for kind in shipped
    }
    params["chunk"]["corpora"] = named["articles"] + named["captions"]
    params["align"]["corpus"] = params["chunk"]["corpora"][-1]
    for section in ("inpaint", "augment"):
        params[section]["corpora"] = [*named["memes"]]
    for family in ("generators", "classifiers"):
        params[family] = {run: row for run, row in params[family].items() if run in runs}
    for name, changes in formats.items():
        params["formats"][name] |= changes
    (project / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True))


def leave(workspace: Path, corpora: dict[str, dict | str], *runs: str, **formats: dict) -> None:
    """Lay on the smoke preset, and keep these alone."""
    command(workspace, "polymuse", "preset", "smoke")
    keep(workspace, corpora, *runs, **formats)


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
    metrics = read_json(workspace, "data/12_evaluate_classifier/muse_sentiment/metrics.json")
    assert metrics["split"] == "test" and metrics["items"] == summary["records"]["test"]
    assert set(metrics["single_modality"]) == {"text", "picture"}
    assert set(metrics["regularisers"]) == {"caption_nats", "drawing_bits"}
    assert "ceilings" not in metrics
    page = (workspace / "data/14_report/index.html").read_text()
    assert "Examples: test split" in page and "<img" in page
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
    metrics = read_json(workspace, "data/12_evaluate_classifier/muse_entities/metrics.json")
    assert metrics["split"] == "validation" and metrics["items"] == 60
    assert "single_modality" not in metrics and metrics["regularisers"] == {}
    page = (workspace / "data/14_report/index.html").read_text()
    assert "Examples: validation split" in page and "no item has an image" in page


@pytest.mark.skipif(not (REAL / "cm_memes").is_dir(), reason="needs POLYMUSE_REAL_DATA/cm_memes")
def test_found_memes_with_three_tasks_are_inpainted_and_scored_by_params_alone(workspace):
    part = workspace / "data/00_raw/found"
    (part / "images").mkdir(parents=True)
    with (REAL / "cm_memes/labels.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    with (part / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows[::3]])
    for name in (row[0] for row in rows[::3]):
        shutil.copy(REAL / "cm_memes/images" / name, part / "images")
    memes = {"kind": "memes", "format": "table", "path": str(part)}
    leave(workspace, {"captions": "captions", "memes": memes}, "mm_orient", table=FOUND)
    assert "mm_orient" in command(workspace, "polymuse", "run").splitlines()[-3]
    summary = read_json(workspace, "data/01_ingest/memes/summary.json")
    assert sum(summary["records"].values()) == 60 and summary["rejected"] == {}
    pictures = texts(workspace / "data/03_inpaint/memes/pictures.parquet")
    assert sum(bool(row["mask"]) for row in pictures) > 30
    metrics = read_json(workspace, "data/12_evaluate_classifier/mm_orient/metrics.json")
    assert metrics["split"] == "test" and metrics["items"] == summary["records"]["test"]
    assert set(metrics["tasks"]) == set(FOUND["tasks"])  # nobody judged humour and motivation
    assert "skill" not in metrics and "ceilings" not in metrics
    page = (workspace / "data/14_report/index.html").read_text()
    assert "mm_orient" in page and "before, mask, after" in page and "<img" in page
