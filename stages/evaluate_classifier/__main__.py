"""Score what a reader labelled, beside the ceilings where the corpus knows them.

python -m stages.evaluate_classifier --run RUN --ingest INGEST --predictions PREDICTIONS --output OUTPUT

reads   INGEST/ceilings.json   sample corpora only
        LABELS                 what stages/classify wrote
writes  TARGET/metrics.json
        TARGET/items.parquet   the counts of each item that was scored

Figures are of every test item with both inputs, `split` says so; where a corpus has no test item
they are of the validation split, and `split` says that. Beside them: `single_modality` (the same
items, text or picture alone) and `validation` (to choose settings by). What else, each paper says
in a file of its own beside this one, which has

    score(labels, known, params) -> the content of metrics.json, rows of items.parquet

with the folder LABELS and what ceilings.json holds, empty where there is none.
"""

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType

from stages.evaluate_classifier.common import EvaluateClassifierConfig, load_ceilings
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.metrics.common import flatten_metrics, round_metrics
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage


def main(
    name: str,
    paper: ModuleType,
    params: EvaluateClassifierConfig,
    ingest: Path,
    labels: Path,
    target: Path,
) -> None:
    with tracking.start_run(
        stage="evaluate_classifier", name=name, params={"score": asdict(params)}
    ) as tracked:
        with atomic_output_dir(target) as folder:
            found, rows = paper.compute_metrics(labels, load_ceilings(ingest), params)
            result = round_metrics(found)
            text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
            (folder / "metrics.json").write_text(f"{text}\n", encoding="utf-8")
            schemas.write_parquet(folder / "items.parquet", rows, schemas.LABEL_SCORES)
        tracked.log_metrics(dict(flatten_metrics(result)), step=0)
        tracked.log_artifact_hash(target / "metrics.json", "metrics.json")


def cli(run: str, ingest: Path, predictions: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    model = load_config(str, "classifiers", run, "model")
    paper = import_module(f"stages.evaluate_classifier.{model}")
    config = load_config(EvaluateClassifierConfig, "evaluate_classifier")
    main(run, paper, config, ingest, predictions, output)


if __name__ == "__main__":
    run_stage(cli)
