"""Promote the model of a run: register it in MLflow and make it the champion of its corpus.

A run replaces the champion only if it is better by more than two standard errors in a paired
comparison on the same test items (pipelines/evaluation.py). Otherwise the champion stays, also
where the difference is not sure: a new model is work for those who use it.

reads   the evaluation and the model of the run, dvc.lock, and the evaluation of the champion
writes  the tracking store: one run for each attempt, and the registered model
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pipelines.evaluation import (
    EVALUATION_DIRS,
    EVALUATION_STAGES,
    Evaluation,
    PairedComparison,
    compare_evaluations,
    load_evaluation,
    read_evaluation,
)
from pipelines.inference.model_bundle import MODEL_DIRS
from pipelines.model_registry import CHAMPION, PROMOTION_TAG, ModelRegistry, ModelVersion
from pipelines.verification import verify
from stages.shared.runtime import model_logging, tracking
from stages.shared.runtime.stage import InputError

Outcome = Literal["promoted", "unchanged", "refused"]


@dataclass(frozen=True)
class Promotion:
    """The outcome of an attempt, and a sentence that gives the reason."""

    outcome: Outcome
    sentence: str


def promote(run: str, force: bool) -> Promotion:
    """Register the model of `run` as champion, if it is better than the present one.

    force: also if it is not, cannot be compared, or does not match dvc.lock. Raises InputError if
    there is no such run, no evaluation or no model.
    """
    evaluation = load_evaluation(run)
    phase = evaluation.metrics.get("phase", "train_classifier")
    folder = Path(MODEL_DIRS[evaluation.family][phase], run, "model")
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: run `polymuse run` or `dvc checkout`")
    if not force and (changes := verify(run).changes):
        raise InputError(
            f"{run} was not evaluated as it is now ({changes[0].text}): run "
            f"`polymuse run {EVALUATION_STAGES[evaluation.family]}@{run}`, see "
            f"`polymuse verify {run}`"
        )
    registry = ModelRegistry()
    champion = registry.find_champion(evaluation.corpus)
    sha256 = model_logging.hash_folder(folder)
    if champion and champion.sha256 == sha256:
        return Promotion("unchanged", f"{run} is the champion already: {_name(champion)}.")
    with tracking.start_run("promote", run, {"force": force}) as tracked:
        comparison, reason = _judge(registry, evaluation, champion)
        if comparison:
            tracked.log_metrics(comparison.difference, 0)
        if champion and not force and not (comparison and comparison.verdict == "better"):
            return Promotion("refused", f"{reason} The champion stays; --force replaces it.")
        model_id = registry.find_model(sha256)
        if model_id is None:  # trained with another tracking store, or pulled with DVC
            tracked.log_model(folder, run)
            model_id = registry.find_model(sha256)
        if model_id is None:
            raise InputError(f"MLflow did not accept the model {folder}: see the warning above")
        registry.upload_evaluation(tracked.run_id, EVALUATION_DIRS[evaluation.family] / run)
        tags = {
            model_logging.RUN_TAG: run,
            model_logging.HASH_TAG: sha256,
            PROMOTION_TAG: tracked.run_id,
        }
        number = registry.register_champion(evaluation.corpus, model_id, tags, reason)
    address = f"models:/{evaluation.corpus}@{CHAMPION}"
    return Promotion("promoted", f"{reason} It is now {address}, version {number}.")


def _judge(
    registry: ModelRegistry, evaluation: Evaluation, champion: ModelVersion | None
) -> tuple[PairedComparison | None, str]:
    """The comparison with the champion, None without one; and a sentence about it."""
    run, corpus = evaluation.run, evaluation.corpus
    if champion is None:
        return None, f"{run} is the first champion of {corpus}."
    name = f"the champion, {_name(champion)},"
    with TemporaryDirectory(prefix="polymuse-") as temporary:
        try:
            folder = registry.download_evaluation(champion, Path(temporary))
            other = read_evaluation(folder, champion.run, evaluation.family, corpus)
            comparison = compare_evaluations(evaluation, other)
        except InputError as error:  # other items; or its artifacts were deleted
            return None, f"{run} cannot be compared with {name} because {error}."
    return comparison, comparison.describe(run, name)


def _name(version: ModelVersion) -> str:
    return f"version {version.number} of {version.name} ({version.run})"
