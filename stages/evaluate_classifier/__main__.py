"""Score a classifier's predictions, and compare them to the ceilings of a synthetic corpus.

python -m stages.evaluate_classifier --run RUN --ingest INGEST --predictions PREDICTIONS
    --baselines BASELINES --output OUTPUT

reads   INGEST/ceilings.json   synthetic corpora only
        PREDICTIONS            output of stages/classify
        BASELINES              output of stages/fit_baselines
writes  OUTPUT/metrics.json
        OUTPUT/headline.json   the few of them that DVC shows
        OUTPUT/items.parquet   counts of each scored item

The metrics are of all test items from both inputs, or of the validation items if the corpus has no
test items; `split` tells which. `single_modality` has the same items from text or image alone, and
`validation` the metrics to select settings by. `baselines` compares the model with the majority
class and with logistic regression or a CRF on the same items. Each paper has a module in this
folder, see `MetricsModule`.
"""

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from stages.evaluate_classifier.baselines import compute_baselines
from stages.evaluate_classifier.common import EvaluateClassifierConfig, load_ceilings
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.metrics import headline
from stages.shared.metrics.common import flatten_metrics, round_metrics
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage


class MetricsModule(Protocol):
    """The module of a paper in this folder."""

    @property
    def MODEL_NAME(self) -> str:
        """The model's name in sentences, a constant of the module."""
        ...

    def compute_metrics(
        self, predictions: Path, ceilings: dict[str, Any], config: EvaluateClassifierConfig
    ) -> tuple[dict[str, Any], list[dict]]:
        """The content of metrics.json and the rows of items.parquet.

        predictions: the folder; ceilings: the content of ceilings.json, empty without one
        """
        ...


def main(
    name: str,
    paper: MetricsModule,
    config: EvaluateClassifierConfig,
    ingest: Path,
    predictions: Path,
    baselines: Path,
    output: Path,
) -> None:
    """Score the predictions of the run `name` with `paper`, its module in this folder."""
    with tracking.start_run(
        stage="evaluate_classifier", name=name, params={"evaluate_classifier": asdict(config)}
    ) as tracked:
        with atomic_output_dir(output) as folder:
            metrics, rows = paper.compute_metrics(predictions, load_ceilings(ingest), config)
            metrics["baselines"] = compute_baselines(
                predictions, baselines, metrics["split"], paper.MODEL_NAME, config
            )
            metrics = round_metrics(metrics)
            text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
            (folder / "metrics.json").write_text(f"{text}\n", encoding="utf-8")
            headline.write_headline(folder, metrics)
            schemas.write_parquet(folder / "items.parquet", rows, schemas.LABEL_SCORES)
        tracked.link_model(predictions.parents[1] / "09_train_classifier" / name / "model")
        tracked.log_metrics(headline.select_tracked(metrics), step=0)
        tracked.log_to_parent(dict(flatten_metrics({name: headline.select_headline(metrics)})))
        tracked.log_table(dict(flatten_metrics(metrics)), "all_metrics")
        tracked.log_artifact_hash(output / "metrics.json", "metrics.json")


def cli(run: str, ingest: Path, predictions: Path, baselines: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    model = load_config(str, "classifiers", run, "model")
    paper: Any = import_module(f"stages.evaluate_classifier.{model}")
    config = load_config(EvaluateClassifierConfig, "evaluate_classifier")
    main(run, paper, config, ingest, predictions, baselines, output)


if __name__ == "__main__":
    run_stage(cli)
