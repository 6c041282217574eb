"""Write the result table of README.md from the metrics of the last run.

python -m pipelines.results_table     run in the project, after `make run`

reads   params.yaml, metrics.json of every run, POLYMUSE_HOME/durations.json (the time of each stage
        on this machine; if it is missing, config/runner.yaml: run.cpu_budget)
writes  README.md, between the comments `<!-- results: ... -->` and `<!-- /results -->`
"""

import re
from pathlib import Path
from typing import Any

from pipelines import summary
from pipelines.cli import run_in_project
from pipelines.runner.eta import StageDurations
from stages.shared.core.config import read_params
from stages.shared.runtime.stage import InputError

README = Path("README.md")
BLOCK = re.compile(r"(<!-- results: .* -->\n).*?(<!-- /results -->)", re.DOTALL)
GENERATOR_STAGES = ("train_sft", "train_preference", "predict", "evaluate")
CLASSIFIER_STAGES = ("train_classifier", "classify", "evaluate_classifier")
MODELS = {"flexmuse": "FlexMUSE", "tippo": "TIPPo", "muse": "MuSE", "mm_orient": "MM-ORIENT"}
TASKS = {  # kind of the corpus -> what a model is asked for
    "articles": "illustrated articles",
    "captions": "captions",
    "tweets": "entities in tweets",
    "posts": "sentiment of posts",
    "memes": "labels of memes",
}


def build_table() -> str:
    """The table in Markdown, one row per run. Raises InputError if a run has no metrics."""
    params = read_params()
    metrics = summary.load_metrics()
    durations = StageDurations(params["run"]["cpu_budget"])
    rows = {**(params["generators"] or {}), **(params["classifiers"] or {})}
    if missing := [run for run in rows if run not in metrics]:
        raise InputError(f"{missing[0]} has no metrics.json: run `make run` first")
    lines = [
        "| run | model | task | score | ceiling | skill ± standard error | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for run, row in rows.items():
        kind = params["corpora"][row["corpus"]]["kind"]
        stages = GENERATOR_STAGES if run in params["generators"] else CLASSIFIER_STAGES
        cells = [f"`{run}`", MODELS[row["model"]], TASKS[kind], *_scores(metrics[run])]
        lines.append(f"| {' | '.join([*cells, _minutes(durations, run, stages)])} |")
    return "\n".join(lines) + "\n"


def _scores(metrics: dict[str, Any]) -> list[str]:
    """Score, ceiling and skill as text. Captions have the share of their ceiling as skill."""
    if "grounding" in metrics:
        score, name = metrics["grounding"]["total"], "grounding"
    else:
        score, name = metrics["score"]["value"], metrics["score"]["metric"].replace("f1", "F1")
    ceilings = metrics["ceilings"]
    ceiling = ceilings.get("both", ceilings.get("picture"))["realised"]
    skill = metrics.get("skill") or metrics["share_of_ceiling"]
    of_ceiling = "" if metrics.get("skill") else " of ceiling"
    value, error = skill["value"], skill["standard_error"]
    return [f"{name} {score:.3f}", f"{ceiling:.3f}", f"{value:.3f} ± {error:.3f}{of_ceiling}"]


def _minutes(durations: StageDurations, run: str, stages: tuple[str, ...]) -> str:
    return f"{sum(durations.estimate(f'{stage}@{run}') for stage in stages) / 60:.0f}"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        raise InputError(f"{README} has no block of results")
    table = build_table()
    README.write_text(BLOCK.sub(lambda block: block[1] + table + block[2], text), encoding="utf-8")


if __name__ == "__main__":
    run_in_project(main)
