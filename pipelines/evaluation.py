"""The evaluations of runs, and the paired comparison of two of them item by item.

reads   params.yaml, data/12_evaluate/RUN and data/12_evaluate_classifier/RUN

Two runs are compared on the same test items with the bootstrap that compares a run with its
baselines: every sample of records is scored for both, so that the standard error is that of the
difference (Koehn, https://aclanthology.org/W04-3250).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import summary
from pipelines.inference.model_bundle import ModelFamily
from stages.shared.core import config, schemas
from stages.shared.metrics.common import describe_difference, judge_difference
from stages.shared.runtime.stage import InputError

METRICS_FILE, ITEMS_FILE = "metrics.json", "items.parquet"
EVALUATION_DIRS: dict[ModelFamily, Path] = {
    "generators": summary.GENERATOR_METRICS_DIR,
    "classifiers": summary.CLASSIFIER_METRICS_DIR,
}
EVALUATION_STAGES: dict[ModelFamily, str] = {
    "generators": "evaluate",
    "classifiers": "evaluate_classifier",
}
SCORES = {"grounding": "grounding", "cider": "CIDEr", "rouge_l": "ROUGE-L"}  # of items, best first
ENTITY_COLUMNS = {  # counts of LABEL_SCORES by rule
    "lenient": ["right", "predicted", "gold"],
    "strict": ["strict_right", "strict_predicted", "strict_gold"],
}
ItemKey = tuple[str, int | str]  # record, and position of the text or task of the label


class NotComparableError(InputError):
    """Two evaluations have other items or scores. The message is a clause that says which."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a run's final phase.

    items: rows of ITEM_SCORES or LABEL_SCORES of the scored split, from both inputs.
    """

    run: str
    family: ModelFamily
    corpus: str
    metrics: dict[str, Any]
    items: dict[ItemKey, dict[str, Any]]


@dataclass(frozen=True)
class PairedComparison:
    """The difference of two runs in a score, with its paired standard error.

    verdict: better | worse if it is larger than two standard errors, else unclear.
    """

    score: str
    difference: dict[str, float]  # value, standard_error
    verdict: str

    def describe(self, run: str, other: str) -> str:
        """One sentence about `run` and `other`."""
        return describe_difference(run, f"{other} in {self.score}", self.difference)


def find_row(run: str) -> tuple[ModelFamily, dict[str, Any]]:
    """The family and the row of a run in params.yaml. Raises InputError if there is none."""
    params = config.read_params()
    names = []
    for family in EVALUATION_DIRS:
        rows = params.get(family) or {}
        if run in rows:
            return family, rows[run]
        names += rows
    raise InputError(
        f"params.yaml has no run {run!r} among its generators and classifiers: choose one of "
        f"{' | '.join(names) or 'none'}"
    )


def load_evaluation(run: str) -> Evaluation:
    """The present evaluation of a run. Raises InputError if there is none."""
    family, row = find_row(run)
    folder = EVALUATION_DIRS[family] / run
    if not (folder / METRICS_FILE).exists() or not (folder / ITEMS_FILE).exists():
        raise InputError(
            f"{run} is not evaluated yet: run `polymuse run {EVALUATION_STAGES[family]}@{run}`"
        )
    return read_evaluation(folder, run, family, row["corpus"])


def read_evaluation(folder: Path, run: str, family: ModelFamily, corpus: str) -> Evaluation:
    """The evaluation in the output folder of its stage. Raises InputError if it is damaged."""
    metrics = schemas.read_json(folder / METRICS_FILE)
    expected: dict[str, Any] = {"inputs": "both"}
    schema: pa.Schema
    if family == "generators":
        schema, position = schemas.ITEM_SCORES, "position"
        expected |= {"split": "test", "phase": metrics["phase"]}
    else:
        schema, position = schemas.LABEL_SCORES, "task"
        expected |= {"split": metrics["split"]}
    items = {
        (row["record"], row[position]): row
        for row in schemas.read_parquet(folder / ITEMS_FILE, schema)
        if all(row[key] == value for key, value in expected.items())
    }
    return Evaluation(run, family, corpus, metrics, items)


def compare_evaluations(run: Evaluation, other: Evaluation) -> PairedComparison:
    """Compare a run with another one. Raises NotComparableError."""
    _check_items(run, other)
    if run.family == "generators":
        score, title = _choose_score(run, other)
        difference = _compare_texts(run, other, score)
    else:
        title = run.metrics["score"]["metric"].replace("f1", "F1")
        difference = _compare_labels(run, other)
    return PairedComparison(title, difference, judge_difference(difference))


def _check_items(run: Evaluation, other: Evaluation) -> None:
    """Raises NotComparableError unless both have the same test items with the same labels."""
    if run.family != other.family:
        raise NotComparableError("one of them is a generator, the other one a classifier")
    common = run.items.keys() & other.items.keys()
    if len(common) < max(len(run.items), len(other.items)):
        raise NotComparableError(
            f"their test items differ: {len(common)} of {len(run.items)} and {len(other.items)} "
            "are the same"
        )
    if any(run.items[key].get("gold") != other.items[key].get("gold") for key in common):
        raise NotComparableError("the labels of their test items differ")


def _choose_score(run: Evaluation, other: Evaluation) -> tuple[str, str]:
    """Key and title of the first score that all items of both have, computed in the same way."""
    for score, title in SCORES.items():
        values = [row[score] for side in (run, other) for row in side.items.values()]
        tools = [side.metrics["measured_by"].get(score) for side in (run, other)]
        if None not in values and tools[0] == tools[1]:
            return score, title
    raise NotComparableError("they have no score that was computed in the same way")


def _compare_texts(run: Evaluation, other: Evaluation, score: str) -> dict[str, float]:
    from stages.evaluate.baselines import compare_systems

    keys = list(run.items)
    sides = [[side.items[key][score] for key in keys] for side in (run, other)]
    draws, seed = _load_bootstrap("evaluate")
    scores = np.array(sides, float).T
    return compare_systems(scores, [record for record, _ in keys], draws, seed)[1]["difference"]


def _compare_labels(run: Evaluation, other: Evaluation) -> dict[str, float]:
    from stages.evaluate_classifier.baselines import compute_statistics
    from stages.shared.metrics.common import bootstrap_standard_errors

    rule = run.metrics["score"].get("rule", "lenient")  # for a label both are the same
    columns = ENTITY_COLUMNS[rule]
    records = sorted({record for record, _ in run.items})
    tasks = sorted({task for _, task in run.items})
    counts = np.zeros((len(records), len(tasks), 2, 3), np.int64)
    row_of = {record: number for number, record in enumerate(records)}
    for column, side in enumerate((run, other)):
        for (record, task), row in side.items.items():
            place = row_of[record], tasks.index(str(task)), column
            counts[place] = [row[name] for name in columns]
    # The difference of the averages over tasks is the last statistic.
    draws, seed = _load_bootstrap("evaluate_classifier")
    value = compute_statistics(counts.sum(0)[None])[0, -1].item()
    error = bootstrap_standard_errors(counts, compute_statistics, draws, seed)[-1].item()
    return {"value": value, "standard_error": error}


def _load_bootstrap(section: str) -> tuple[int, int]:
    """Number of samples and seed in config/evaluation.yaml."""
    return (
        config.load_config(int, section, "num_bootstrap_samples"),
        config.load_config(int, section, "seed"),
    )
