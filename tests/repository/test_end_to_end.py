"""The whole pipeline in a copy of the project, with the smoke preset."""

import csv
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
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
from tests.support.project_files import ROOT
from tests.support.smoke_project import copy_project
from tests.support.smoke_project import run_command as command

pytestmark = pytest.mark.slow

REAL = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset"))
TASKS = ["sentiment", "humour", "sarcasm", "offensive", "motivational"]
CM_MEMES_FORMAT = {  # changes of formats.table for cm_memes
    "columns": {"image": "Name", "text": "Text", "id": None, "split": None, "language": None},
    "tasks": {
        task: {"column": column, "labels": labels, "default_label": None}
        for task, column, labels in [
            ("sentiment", "Valence", {n: n for n in ("negative", "neutral", "positive")}),
            ("sarcasm", "Sarcasm", {"non-sarcastic": "not_sarcastic", "sarcasm": "sarcastic"}),
            ("offensive", "Level1", {"non-off": "not_offensive", "off": "offensive"}),
        ]
    },
}


@pytest.fixture(scope="module")
def project(finished_project, tmp_path_factory) -> Path:
    """A copy of the project with the preset smoke in which every stage has run."""
    return copy_project(finished_project, tmp_path_factory.mktemp("end_to_end") / "project")


def stages_of(folder: Path) -> set[str]:
    with Repo(str(folder)) as repo:
        return {stage.addressing for stage in repo.index.stages}


def texts(table: Path) -> list[dict]:
    """The rows of a Parquet file."""
    return pq.read_table(table).to_pylist()


def read_json(workspace: Path, path: str) -> dict:
    return json.loads((workspace / path).read_text())


def pixels(folder: Path) -> dict[str, np.ndarray]:
    """The images of a folder by sha256, (H, W, 3)."""
    rows = image_store.read_images(folder)
    return {
        row["sha256"]: np.asarray(Image.open(BytesIO(row["bytes"])).convert("RGB")) for row in rows
    }


def test_metrics_of_both_phases_are_computed_with_ceilings(project):
    metrics = json.loads((project / "data/12_evaluate/flexmuse/metrics.json").read_text())
    for phase in [metrics, metrics["sft"]]:
        assert 0 <= phase["grounding"]["total"] <= 1
        assert phase["rouge_l"] > 0
    assert 0 < metrics["ceilings"]["both"]["realised"] <= 1


@pytest.mark.parametrize(
    ("run", "metric"), [("tippo", "skill"), ("tippo_captions", "share_of_ceiling")]
)
def test_tippo_generates_articles_and_captions_and_its_rewards_are_compared(project, run, metric):
    metrics = json.loads((project / f"data/12_evaluate/{run}/metrics.json").read_text())
    assert set(metrics["gain"]) == {"literal", "semantic", "grounding"}
    for phase in [metrics, metrics["sft"]]:
        assert isinstance(phase[metric]["value"], float)
        assert 0 <= phase["rewards"]["literal"] <= 1
    header = (project / f"data/10_train_preference/{run}/history.csv").read_text().split("\n")[0]
    columns = {"reward_literal", "reward_semantic", "kl_to_sft", "clip_share", "entropy", "tokens"}
    assert columns <= set(header.split(","))


@pytest.mark.parametrize("run", ["flexmuse", "tippo", "tippo_captions"])
def test_each_generator_is_compared_with_its_baselines(project, run):
    metrics = json.loads((project / f"data/12_evaluate/{run}/metrics.json").read_text())
    names = {"nearest_image", "nearest_topic", "consensus", "shuffled_images"}
    baselines, has_topics = metrics["baselines"], run != "tippo_captions"
    assert baselines["scores"].keys() == (names if has_topics else names - {"nearest_topic"})
    assert set(baselines["omitted"]) == (set() if has_topics else {"nearest_topic"})
    assert baselines["model"]["value"] == pytest.approx(metrics["cider"], abs=1e-5)
    page = (project / "data/14_report/index.html").read_text()
    assert baselines["comparison"]["sentence"] in page


@pytest.mark.parametrize("run", ["flexmuse", "tippo"])
def test_every_test_chunk_is_generated_by_each_phase_from_each_input(project, run):
    rows = texts(project / f"data/11_predict/{run}/predictions.parquet")
    predicted: dict[tuple, set] = {}
    for row in rows:
        if row["split"] == "test":
            key = row["phase"], row["inputs"]
            predicted.setdefault(key, set()).add((row["record"], row["position"]))
    phases, inputs = ["sft", "preference"], ["both", "topic", "picture"]
    assert set(predicted) == {(phase, source) for phase in phases for source in inputs}
    assert len({frozenset(chunks) for chunks in predicted.values()}) == 1


@pytest.mark.parametrize(
    ("run", "corpus", "task"),
    [("muse_entities", "tweets", "entities"), ("muse_sentiment", "posts", "sentiment")],
)
def test_every_test_item_is_classified_from_each_input_and_scored(project, run, corpus, task):
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
        selected = [row for row in rows if (row["split"], row["inputs"]) == ("test", inputs)]
        assert len({row["record"] for row in selected}) == len(selected) == metrics["items"]


@pytest.mark.parametrize("run", ["muse_entities", "muse_sentiment"])
def test_exchanges_generated_images_and_embeddings_are_stored(project, run):
    folder = project / f"data/11_classify/{run}"
    assert any(row["exchanged"] for row in texts(folder / "exchanges.parquet"))
    drawn = texts(folder / "drawn.parquet")
    assert len(drawn) == 4 and all(row["picture"].startswith(b"\x89PNG") for row in drawn)
    places = {(row["modality"], row["where"]) for row in texts(folder / "embeddings.parquet")}
    assert places == {(m, w) for m in ("text", "picture") for w in ("before", "after")}


def test_the_text_of_memes_is_detected_and_inpainted(project):
    summary = read_json(project, "data/01_ingest/memes/summary.json")
    assert sum(summary["records"].values()) == 80 and summary["rejected"] == {}
    before = pixels(project / "data/01_ingest/memes/images")
    after = pixels(project / "data/03_inpaint/memes/images")
    rows = texts(project / "data/03_inpaint/memes/pictures.parquet")
    painted = [row for row in rows if row["mask"]]
    assert len(rows) == len(before) and len(painted) > 0.9 * len(rows)
    for row in painted:
        mask = np.asarray(Image.open(BytesIO(row["mask"])))
        original, inpainted = before[row["image"]], after[row["inpainted"]]
        assert set(np.unique(mask)) == {0, 255} and mask.shape == original.shape[:2]
        assert (original == inpainted)[mask == 0].all() and (original != inpainted).any()
        assert row["boxes"] and row["masked"] == pytest.approx((mask > 0).mean(), abs=1e-6)


def test_only_train_memes_are_paraphrased_and_all_memes_are_embedded(project):
    rows = texts(project / "data/04_augment/memes/records.parquet")
    originals = {row["id"]: row for row in rows if not row["variant"]}
    clean = texts(project / "data/02_clean/memes/records.parquet")
    columns = ("id", "split", "language", "text", "labels")
    assert [[row[key] for key in columns] for row in originals.values()] == [
        [row[key] for key in columns] for row in clean
    ]
    paraphrases = [row for row in rows if row["variant"]]
    assert len({row["group"] for row in paraphrases}) > 40  # of 60
    for row in paraphrases:
        original = originals[row["group"]]
        assert row["split"] == original["split"] == "train"
        assert row["labels"] == original["labels"] and row["pictured"] == original["pictured"]
        assert row["text"] != original["text"] and row["image"] != original["image"]
    summary = read_json(project, "data/07_embed/memes/summary.json")
    counts = {"pictures": len({row["image"] for row in rows}), "text": "encoder"}
    assert summary == counts | {"texts": len({row["text"] for row in rows})}


def test_every_meme_has_a_label_with_probability_for_each_task(project):
    tasks = read_json(project, "data/01_ingest/memes/tasks.json")
    assert list(tasks) == TASKS
    memes = texts(project / "data/02_clean/memes/records.parquet")
    rows = texts(project / "data/11_classify/mm_orient/labels.parquet")
    for split, sources in [("test", ("both", "text", "picture")), ("validation", ("both",))]:
        expected = {
            (meme["id"], inputs, label["task"], label["label"])
            for meme in memes
            if meme["split"] == split
            for inputs in sources
            for label in meme["labels"]
        }
        selected = [row for row in rows if row["split"] == split]
        actual = {(row["record"], row["inputs"], row["task"], *row["gold"]) for row in selected}
        assert len(selected) == len(expected) > 0 and actual == expected
    for row in rows:
        (label,), (probability,) = row["predicted"], row["probability"]
        labels = tasks[row["task"]]
        assert label in labels and 1 / len(labels) <= probability <= 1


def test_each_task_of_memes_is_scored_with_its_ceilings(project):
    metrics = read_json(project, "data/12_evaluate_classifier/mm_orient/metrics.json")
    assert (metrics["split"], metrics["items"]) == ("test", 12)
    assert list(metrics["tasks"]) == TASKS and metrics["validation"]["items"] == 8
    for scores in (metrics, *metrics["tasks"].values()):
        assert 0 <= scores["score"]["value"] <= 1
        assert isinstance(scores["skill"]["value"], float)
        ceilings = {inputs: value["realised"] for inputs, value in scores["ceilings"].items()}
        assert max(ceilings["text"], ceilings["picture"]) < ceilings["both"] <= 1
    assert set(metrics["single_modality"]) == {"text", "picture"}
    for scores in metrics["single_modality"].values():
        assert set(scores["tasks"]) == set(TASKS) and 0 <= scores["value"] <= 1
    assert metrics["behaviour"] and metrics["parameters"]["trained"] > 0


@pytest.mark.parametrize("run", ["muse_entities", "muse_sentiment", "mm_orient"])
def test_every_classifier_is_compared_with_baselines_on_the_same_items(project, run):
    baselines = read_json(project, f"data/12_evaluate_classifier/{run}/metrics.json")["baselines"]
    name = "crf" if run == "muse_entities" else "logistic_regression"
    fusion = set() if run == "muse_entities" else {"decision_fusion"}
    assert set(baselines["scores"]) == {"majority", name} | fusion
    assert (baselines["comparison"]["baseline"], baselines["comparison"]["inputs"]) == (
        name,
        "both",
    )
    assert (
        baselines["comparison"]["sentence"] in (project / "data/14_report/index.html").read_text()
    )
    model = texts(project / f"data/11_classify/{run}/labels.parquet")
    for row in texts(project / f"data/10_fit_baselines/{run}/labels.parquet"):
        assert row["split"] in ("validation", "test") and len(row["predicted"]) == len(row["gold"])
    items = {(row["record"], row["task"]) for row in model}
    rows = texts(project / f"data/10_fit_baselines/{run}/labels.parquet")
    assert {(row["record"], row["task"]) for row in rows} == items


def test_the_report_shows_examples_with_their_images(project):
    page = (project / "data/14_report/index.html").read_text()
    rows = texts(project / "data/11_predict/flexmuse/predictions.parquet")
    shown = [row for row in rows if row["split"] == "test" and row["title"] in page]
    assert shown and "<img" in page
    assert str(project) not in page
    for text in ("mm_orient", "Memes: memes", "before, mask, after", "Relation graphs"):
        assert text in page
    memes = texts(project / "data/04_augment/memes/records.parquet")
    assert any(row["variant"] and row["text"] in page for row in memes)


def test_the_commands_of_the_report_make_what_it_shows(project):
    page = (project / "data/14_report/index.html").read_text()
    section = page.split('<section id="made">')[1].split("</section>")[0]
    article, meme, tweet = section.split("<article>")[1:]
    write, label_meme, label_tweet = (shlex.split(line) for line in find_texts(section, "code"))

    command(project, *write)
    written = read_json(project, "article/article.json")
    (title,), paragraphs = find_texts(article, "h4"), find_texts(article, "p")
    assert title == written["title"] and len(written["chunks"]) > 1
    assert paragraphs[:-1] == [chunk["text"] for chunk in written["chunks"]]

    labels = json.loads(command(project, *label_meme, "--json"))
    rows = zip(find_texts(meme, "th"), find_texts(meme, "td"), strict=True)
    assert [(task, text.split(", true")[0]) for task, text in rows] == [
        (task, f"{labels[task]} {labels[f'{task}_probability']:.2f}") for task in TASKS
    ]

    entities = json.loads(command(project, *label_tweet, "--json"))["entities"]
    predicted = tweet.split("<p>")[1].split("</p>")[0]
    assert find_texts(predicted, "span") == [
        f"{entity['text']}\N{NO-BREAK SPACE}{entity['type']}" for entity in entities
    ]


def find_texts(page: str, tag: str) -> list[str]:
    """The text of each element with this tag, which must not contain the same tag."""
    elements = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", page, re.DOTALL)
    return [unescape(re.sub(r"<[^>]+>", "", element)).strip() for element in elements]


def test_stages_are_tracked_with_the_hashes_of_their_data(project):
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
        deps = {dep["path"]: dep["md5"] for dep in lock[name]["deps"]}
        file = client.download_artifacts(runs[name].info.run_id, "dependencies.json")
        assert json.loads(Path(file).read_text())["md5"] == deps
        assert runs[name].data.params and runs[name].inputs.dataset_inputs
    for name in (
        "train_sft@flexmuse",
        "train_classifier@muse_entities",
        "train_classifier@mm_orient",
    ):
        history = client.get_metric_history(runs[name].info.run_id, "loss")
        assert len({metric.step for metric in history}) > 1


def test_outputs_contain_neither_paths_nor_run_ids(project):
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("polymuse").experiment_id
    ids = [run.info.run_id.encode() for run in client.search_runs([experiment])]
    for file in (path for path in (project / "data").rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert not [text for text in [str(project).encode(), *ids] if text in content], file


def test_a_second_repro_runs_no_stage(project):
    assert "Running stage" not in command(project, "dvc", "repro")


def test_undoing_the_preset_restores_the_parameter_files(project):
    with restored_params(project):
        command(project, "polymuse", "preset", "--undo")
        for file in list_params_files(project):
            assert file.read_bytes() == (ROOT / file.relative_to(project)).read_bytes()


def test_a_project_can_have_memes_alone(project):
    with restored_params(project):
        keep(project, {"captions": "captions", "memes": "memes"}, "mm_orient")
        output = command(project, "polymuse", "run")
    assert list_scored_runs(output) == ["mm_orient"]
    assert "  polymuse label data/14_report/example/meme.png\n" in output
    page = (project / "data/14_report/index.html").read_text()
    assert "mm_orient" in page and "before, mask, after" in page
    assert "muse_entities" not in page and "flexmuse" not in page


def test_a_project_needs_no_memes(project):
    with restored_params(project):
        keep(project, {"captions": "captions", "posts": "posts"}, "muse_sentiment")
        assert list_scored_runs(command(project, "polymuse", "run")) == ["muse_sentiment"]
        assert not [name for name in stages_of(project) if "memes" in name or "augment" in name]
    page = (project / "data/14_report/index.html").read_text()
    assert "muse_sentiment" in page and "mm_orient" not in page and "Memes: " not in page
    assert "example/post.png --run muse_sentiment" in page


def list_scored_runs(output: str) -> list[str]:
    """The runs in the table that `polymuse run` ends with."""
    table = output[output.index("\nrun ") + 1 :].split("\n\n")[0]
    return [line.split()[0] for line in table.splitlines()[1:]]


def list_params_files(project: Path) -> list[Path]:
    return [project / "params.yaml", *sorted((project / "config").glob("*.yaml"))]


@contextmanager
def restored_params(project: Path) -> Iterator[None]:
    """Restore the parameter files and the history of presets after the block."""
    history = project / ".polymuse" / "presets.json"
    contents = {file: file.read_bytes() for file in [*list_params_files(project), history]}
    try:
        yield
    finally:
        for file, content in contents.items():
            file.write_bytes(content)


def keep(project: Path, corpora: dict[str, dict | str], *runs: str, **formats: dict) -> None:
    """Remove all other corpora and runs from params.yaml.

    corpora: rows, or names of shipped rows. formats: changed values of formats.
    """
    params = yaml.safe_load((project / "params.yaml").read_text())
    shipped = params["corpora"]  # by kind
    params["corpora"] = {
        name: shipped[row] if isinstance(row, str) else shipped[row["kind"]] | row
        for name, row in corpora.items()
    }
    by_kind = {
        kind: [name for name, row in params["corpora"].items() if row["kind"] == kind]
        for kind in shipped
    }
    params["chunk"]["corpora"] = by_kind["articles"] + by_kind["captions"]
    params["align"]["corpus"] = params["chunk"]["corpora"][-1]
    for section in ("inpaint", "augment"):
        params[section]["corpora"] = [*by_kind["memes"]]
    for section in ("generators", "classifiers"):
        params[section] = {run: row for run, row in params[section].items() if run in runs}
    (project / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True))
    formats_file = project / "config/formats.yaml"
    values = yaml.safe_load(formats_file.read_text())
    for name, changes in formats.items():
        values["formats"][name] |= changes
    formats_file.write_text(yaml.safe_dump(values, allow_unicode=True))


def apply_smoke_and_keep(
    workspace: Path, corpora: dict[str, dict | str], *runs: str, **formats: dict
) -> None:
    """Apply the smoke preset, and keep only these corpora and runs."""
    command(workspace, "polymuse", "preset", "smoke")
    keep(workspace, corpora, *runs, **formats)


@pytest.mark.skipif(not (REAL / "howtocook").is_dir(), reason="needs POLYMUSE_REAL_DATA/howtocook")
def test_chinese_recipes_are_reported_with_their_photos(workspace):
    recipes = {"kind": "articles", "format": "markdown", "path": str(REAL / "howtocook")}
    apply_smoke_and_keep(
        workspace, {"articles": recipes, "captions": "captions"}, "flexmuse", "tippo"
    )
    command(workspace, "dvc", "repro")
    summary = read_json(workspace, "data/01_ingest/articles/summary.json")
    assert set(summary["languages"]) == {"zh"}
    metrics = read_json(workspace, "data/12_evaluate/flexmuse/metrics.json")
    assert metrics["bert_score"] == "unavailable"
    predictions = texts(workspace / "data/11_predict/flexmuse/predictions.parquet")
    assert predictions and not any("[UNK]" in row["text"] for row in predictions)
    page = (workspace / "data/14_report/index.html").read_text()
    assert any(row["title"] in page for row in predictions if row["split"] == "test")
    assert "<img" in page


@pytest.mark.skipif(not (REAL / "flickr8k_cn").is_dir(), reason="needs POLYMUSE_REAL_DATA")
def test_photos_with_chinese_captions_need_only_params(workspace):
    photographs = {"kind": "captions", "format": "flickr8k_cn", "path": str(REAL / "flickr8k_cn")}
    apply_smoke_and_keep(
        workspace, {"captions": photographs, "synthetic": "captions"}, "tippo_captions"
    )
    command(workspace, "polymuse", "run", "evaluate@tippo_captions")
    summary = read_json(workspace, "data/01_ingest/captions/summary.json")
    assert summary["languages"] == {"zh": 400} and summary["rejected"] == {}
    metrics = read_json(workspace, "data/12_evaluate/tippo_captions/metrics.json")
    assert metrics["items"] == summary["records"]["test"]
    assert metrics["measured_by"]["tokenizer"] == "zh: characters"
    assert metrics["by_tokenizer"]["jieba"]["measured_by"]["tokenizer"] == "zh: jieba"
    assert metrics["bert_score"] == "unavailable"


@pytest.mark.skipif(not (REAL / "mvsa_single").is_dir(), reason="needs POLYMUSE_REAL_DATA")
def test_photos_with_sentiments_need_only_params(workspace):
    posts = {"kind": "posts", "format": "mvsa", "path": str(REAL / "mvsa_single")}
    apply_smoke_and_keep(workspace, {"captions": "captions", "posts": posts}, "muse_sentiment")
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
def test_tweets_without_images_and_test_split_are_scored_on_validation(workspace):
    folder = workspace / "data/00_raw/twitter2015"
    folder.mkdir()
    for name, count in [("train.txt", 300), ("valid.txt", 60)]:  # the first ones
        tweets = (REAL / "mner/twitter2015" / name).read_text().split("\n\n")[:count]
        (folder / name).write_text("\n\n".join(tweets) + "\n")
    tweets = {"kind": "tweets", "format": "twitter", "path": str(folder)}
    apply_smoke_and_keep(workspace, {"captions": "captions", "tweets": tweets}, "muse_entities")
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
def test_memes_with_three_tasks_need_only_params(workspace):
    folder = workspace / "data/00_raw/found"
    (folder / "images").mkdir(parents=True)
    with (REAL / "cm_memes/labels.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows[::3]])
    for name in (row[0] for row in rows[::3]):
        shutil.copy(REAL / "cm_memes/images" / name, folder / "images")
    memes = {"kind": "memes", "format": "table", "path": str(folder)}
    apply_smoke_and_keep(
        workspace, {"captions": "captions", "memes": memes}, "mm_orient", table=CM_MEMES_FORMAT
    )
    assert "mm_orient" in command(workspace, "polymuse", "run").splitlines()[-3]
    summary = read_json(workspace, "data/01_ingest/memes/summary.json")
    assert sum(summary["records"].values()) == 60 and summary["rejected"] == {}
    pictures = texts(workspace / "data/03_inpaint/memes/pictures.parquet")
    assert sum(bool(row["mask"]) for row in pictures) > 30
    metrics = read_json(workspace, "data/12_evaluate_classifier/mm_orient/metrics.json")
    assert metrics["split"] == "test" and metrics["items"] == summary["records"]["test"]
    assert set(metrics["tasks"]) == set(
        CM_MEMES_FORMAT["tasks"]
    )  # no labels of humour and motivation
    assert "skill" not in metrics and "ceilings" not in metrics
    page = (workspace / "data/14_report/index.html").read_text()
    assert "mm_orient" in page and "before, mask, after" in page and "<img" in page
