"""Runs beside each other: metrics with their intervals, and the parameters that differ.

reads   metrics.json, items.parquet and dvc.lock of a row of params.yaml; of an MLflow run its
        metrics and parameters, and those of the model that it evaluates
"""

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from pipelines.evaluation import Evaluation, find_row, load_evaluation
from pipelines.health.project import read_lock
from pipelines.verification import flatten
from stages.shared.metrics.common import (
    SURE_STANDARD_ERRORS,
    clustered_standard_error,
    flatten_metrics,
)
from stages.shared.runtime.mlflow_store import MlflowStore, error_reason
from stages.shared.runtime.stage import InputError

MLFLOW_ID = re.compile(r"[0-9a-f]{32}")
# Title -> names of the value and of its standard error in flattened metrics. The score of a
# classifier of memes is its accuracy.
METRICS: dict[str, tuple[str, list[str]]] = {
    "skill": ("skill.value", ["skill.standard_error"]),
    "share of ceiling": ("share_of_ceiling.value", ["share_of_ceiling.standard_error"]),
    "grounding": ("grounding.total", ["grounding.standard_error"]),
    "F1, lenient": ("lenient.f1", ["lenient.standard_error"]),
    "F1, strict": ("strict.f1", ["strict.standard_error"]),
    "accuracy": ("accuracy.value", ["accuracy.standard_error", "score.standard_error"]),
    "weighted F1": ("weighted_f1.value", ["weighted_f1.standard_error"]),
    "macro F1": ("macro_f1.value", ["macro_f1.standard_error"]),
    "BLEU-4": ("bleu_4", []),
    "ROUGE-L": ("rouge_l", ["rouge_l.standard_error"]),
    "METEOR": ("meteor", ["meteor.standard_error"]),
    "METEOR, exact + stem": ("meteor_exact_stem", ["meteor_exact_stem.standard_error"]),
    "CIDEr": ("cider", ["cider.standard_error"]),
    "BERTScore": ("bert_score", ["bert_score.standard_error"]),
    "literal reward": ("rewards.literal", []),
    "semantic reward": ("rewards.semantic", []),
}
ITEM_COLUMNS = ("rouge_l", "meteor", "meteor_exact_stem", "cider", "bert_score")
MAX_OTHER_METRICS = 40  # shown of an MLflow run that has none of METRICS


@dataclass(frozen=True)
class ComparedRun:
    """Flattened metrics and parameters of a run; its evaluation, if it is a row of params.yaml."""

    label: str
    metrics: dict[str, float]
    params: dict[str, str]
    evaluation: Evaluation | None = field(default=None, repr=False)


def load_run(name: str) -> ComparedRun:
    """The present outputs of a row of params.yaml, or the MLflow run with this id.

    Raises InputError if there is no such run, or if the row is not evaluated.
    """
    return load_mlflow_run(name) if MLFLOW_ID.fullmatch(name) else load_row(name)


def load_row(run: str) -> ComparedRun:
    evaluation = load_evaluation(run)
    metrics = dict(flatten_metrics(evaluation.metrics)) | _item_errors(evaluation)
    return ComparedRun(run, metrics, read_params_of(run), evaluation)


def _item_errors(evaluation: Evaluation) -> dict[str, float]:
    """Standard errors of the text scores, which metrics.json does not have."""
    errors = {}
    for name in ITEM_COLUMNS:
        scored = [row for row in evaluation.items.values() if row.get(name) is not None]
        if scored:
            records = [row["record"] for row in scored]
            error = clustered_standard_error([row[name] for row in scored], records)
            errors[f"{name}.standard_error"] = error
    return errors


def read_params_of(run: str) -> dict[str, str]:
    """The parameters in dvc.lock that the present outputs of a run were made with.

    Those of its row and of its model have the names that MLflow has them by: sft.max_steps,
    network.d_model. Raises InputError if dvc.lock is damaged.
    """
    family, row = find_row(run)
    sections = {f"{family}.{run}.": "", f"models.{row['model']}.": ""}
    try:
        stages = read_lock()
    except ValueError as error:
        raise InputError(f"dvc.lock is damaged ({error}): run `polymuse doctor --fix`") from None
    params = {"model": row["model"], "corpus": row["corpus"]}
    for name, stage in stages.items():
        if name == "report" or name.partition("@")[2] not in (run, row["corpus"], ""):
            continue
        for section in stage.get("params", {}).values():
            for key, value in section.items():
                for leaf, number in flatten({key: value}).items():
                    prefix = next((p for p in sections if leaf.startswith(p)), "")
                    params[leaf.removeprefix(prefix)] = _to_text(number)
    return params


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def load_mlflow_run(run_id: str) -> ComparedRun:
    """An MLflow run. Raises InputError if the store does not have it."""
    client = MlflowStore().client
    try:
        run = client.get_run(run_id)
        inputs = (run.inputs and run.inputs.model_inputs) or []
        models = [client.get_logged_model(entry.model_id) for entry in inputs]
    except Exception as error:  # stores and servers have their own types
        raise InputError(
            f"MLflow has no run {run_id} ({error_reason(error)}): see its page for the id"
        ) from None
    params = {key: value for model in models for key, value in (model.params or {}).items()}
    label = f"{run.info.run_name or 'run'} {run_id[:8]}"
    return ComparedRun(label, dict(run.data.metrics), params | run.data.params)


def tabulate_metrics(runs: list[ComparedRun]) -> list[list[str]]:
    """Rows of a table: title, then one cell a run, the value and its interval of two errors.

    Runs of MLflow that have none of METRICS are compared by the metrics that all of them have.
    """
    known = [
        [title, *(_format_cell(run.metrics, value, errors) for run in runs)]
        for title, (value, errors) in METRICS.items()
        if any(value in run.metrics for run in runs)
    ]
    if known:
        return known
    common = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    return [
        [name, *(f"{run.metrics[name]:.4g}" for run in runs)]
        for name in sorted(common)[:MAX_OTHER_METRICS]
    ]


def _format_cell(metrics: dict[str, float], value: str, errors: list[str]) -> str:
    """E.g. `0.815 [0.789, 0.841]`; without a standard error only the value."""
    if value not in metrics:
        return "-"
    text = f"{metrics[value]:.3f}"
    error = next((metrics[name] for name in errors if name in metrics), math.nan)
    if math.isnan(error):
        return text
    margin = SURE_STANDARD_ERRORS * error
    return f"{text} [{metrics[value] - margin:.3f}, {metrics[value] + margin:.3f}]"


def tabulate_params(runs: list[ComparedRun]) -> list[list[str]]:
    """Rows of a table: the parameters that all runs have and whose values differ."""
    common = [key for key in runs[0].params if all(key in run.params for run in runs)]
    return [
        [key, *(run.params[key] for run in runs)]
        for key in sorted(common)
        if len({run.params[key] for run in runs}) > 1
    ]


def list_unshared_params(runs: list[ComparedRun]) -> list[str]:
    """Sections of the parameters that only some of the runs have."""
    keys = {key for run in runs for key in run.params}
    unshared = {key for key in keys if any(key not in run.params for run in runs)}
    return sorted({key.rpartition(".")[0] or key for key in unshared})
