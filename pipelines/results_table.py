"""Write the result table of README.md from the metrics of the last run.

python -m pipelines.results_table     run in the project, after `make run`

reads   params.yaml, metrics.json of every run, POLYMUSE_HOME/durations.json
writes  README.md, between the comments `<!-- results: ... -->` and `<!-- /results -->`
"""

import json
import re
from pathlib import Path
from typing import Any

from pipelines import summary
from pipelines.cli import run_in_project
from stages.shared.core.config import read_params
from stages.shared.runtime.stage import InputError, work_dir

README = Path("README.md")
BLOCK = re.compile(r"(<!-- results: .* -->\n).*?(<!-- /results -->)", re.DOTALL)
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
    rows = {**(params["generators"] or {}), **(params["classifiers"] or {})}
    if missing := [run for run in rows if run not in metrics]:
        raise InputError(f"{missing[0]} has no metrics.json: run `make run` first")
    lines = [
        "| run | model | task | score | ceiling | skill ± standard error | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for run, row in rows.items():
        kind = params["corpora"][row["corpus"]]["kind"]
        cells = [
            f"`{run}`",
            MODELS[row["model"]],
            TASKS[kind],
            *_scores(metrics[run]),
            _minutes(run),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _scores(metrics: dict[str, Any]) -> list[str]:
    """Score, ceiling and skill as text. Captions have the share of their ceiling as skill."""
    if "grounding" in metrics:
        score, name = metrics["grounding"]["total"], "grounding"
    else:
        score, name = metrics["score"]["value"], metrics["score"]["metric"].replace("_", " ")
    ceilings = metrics["ceilings"]
    ceiling = ceilings.get("both", ceilings.get("picture"))["realised"]
    skill = metrics.get("skill") or metrics["share_of_ceiling"]
    of_ceiling = "" if metrics.get("skill") else " of ceiling"
    value, error = skill["value"], skill["standard_error"]
    return [f"{name} {score:.3f}", f"{ceiling:.3f}", f"{value:.3f} ± {error:.3f}{of_ceiling}"]


def _minutes(run: str) -> str:
    """What the stages of a run took on this machine, two of them at once."""
    file = work_dir() / "durations.json"
    durations = json.loads(file.read_text()) if file.exists() else {}
    seconds = [took for stage, took in durations.items() if f"@{run} " in stage]
    return f"{sum(seconds) / 60:.0f}" if seconds else "-"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        raise InputError(f"{README} has no block of results")
    table = build_table()
    README.write_text(BLOCK.sub(lambda block: block[1] + table + block[2], text), encoding="utf-8")


if __name__ == "__main__":
    run_in_project(main)
