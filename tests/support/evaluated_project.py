"""A small DVC project with evaluated classifiers of posts, for tests of promote, compare, verify.

Each run has the model folder of a trained MuSE and an evaluation of known predictions. Its two
stages copy them from `source`, so that DVC records them as it does the real ones.
"""

import json
import shutil
import subprocess
from pathlib import Path

import yaml

from stages.evaluate_classifier import muse as evaluate_muse
from stages.evaluate_classifier.common import EvaluateClassifierConfig
from stages.shared.core import schemas
from stages.shared.core.config import load_config, read_params
from stages.shared.metrics.common import round_metrics
from tests.support.muse_outputs import write_classifier_outputs
from tests.support.tiny_dvc_project import DVC_COMMAND

NUM_POSTS = 40
FIRST_POST = {"other_posts": 20}  # by run: the number of its first test post
NUM_WRONG = {"weak": 20, "strong": 4, "twin": 5, "other_posts": 4}  # by run
CORPUS = "posts"
TRAINED, EVALUATED = "data/09_train_classifier/${key}", "data/12_evaluate_classifier/${key}"
STAGES = {
    "train_classifier": {
        "foreach": "${classifiers}",
        "do": {
            "cmd": f"mkdir -p {TRAINED} && cp -r source/${{key}}/model {TRAINED}/model",
            "deps": ["source/${key}/model"],
            "params": ["classifiers.${key}"],
            "outs": [f"{TRAINED}/model"],
        },
    },
    "evaluate_classifier": {
        "foreach": "${classifiers}",
        "do": {
            "cmd": f"mkdir -p {EVALUATED} && cp source/${{key}}/evaluation/* {EVALUATED}/",
            "deps": [f"{TRAINED}/model", "source/${key}/evaluation"],
            "outs": [f"{EVALUATED}/metrics.json", f"{EVALUATED}/items.parquet"],
        },
    },
}


def create_project(folder: Path, model: Path) -> Path:
    """Create the project in `folder`, with every run evaluated, and return it.

    model: the folder of a trained classifier of posts, of which each run has a copy
    """
    params = read_params()
    row = params["classifiers"]["muse_sentiment"]
    params["classifiers"] = {run: json.loads(json.dumps(row)) for run in NUM_WRONG}
    params["classifiers"]["strong"]["training"]["max_steps"] = 123
    params["generators"] = {}
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for run in NUM_WRONG:
        write_source(folder, run, model, NUM_WRONG[run])
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    for command in (["git", "init", "-q"], [*DVC_COMMAND, "init", "-q"], [*DVC_COMMAND, "repro"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def write_source(folder: Path, run: str, model: Path, num_wrong: int) -> None:
    """Write what the stages of a run copy. The config of each model names its run."""
    source = folder / "source" / run
    shutil.copytree(model, source / "model", dirs_exist_ok=True)
    config = json.loads((source / "model/config.json").read_text())
    (source / "model/config.json").write_text(json.dumps(config | {"run": run}))
    predictions = source / "predictions"
    predictions.mkdir(exist_ok=True)
    labels = make_label_rows(FIRST_POST.get(run, 0), num_wrong)
    write_classifier_outputs(predictions, labels, [], [])
    config = load_config(EvaluateClassifierConfig, "evaluate_classifier")
    metrics, items = evaluate_muse.compute_metrics(predictions, {}, config)
    evaluation = source / "evaluation"
    evaluation.mkdir(exist_ok=True)
    (evaluation / "metrics.json").write_text(json.dumps(round_metrics(metrics)))
    schemas.write_parquet(evaluation / "items.parquet", items, schemas.LABEL_SCORES)


def make_label_rows(first: int, num_wrong: int) -> list[dict]:
    """LABEL_PREDICTIONS of NUM_POSTS test posts; the first `num_wrong` of them are wrong."""
    return [
        {
            "record": f"post-{number:03}",
            "split": "test",
            "inputs": "both",
            "task": "sentiment",
            "gold": ["positive" if number % 2 else "negative"],
            "predicted": [
                "neutral"
                if number < first + num_wrong
                else "positive"
                if number % 2
                else "negative"
            ],
            "probability": [0.75],
            "cut": 0,
        }
        for number in range(first, first + NUM_POSTS)
    ]
