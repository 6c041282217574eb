"""Train a classifier on the labels of a corpus.

python -m stages.train_classifier --run RUN --images IMAGES --records RECORDS --features FEATURES
    --encoder ENCODER --output OUTPUT

reads   IMAGES/images, RECORDS/records.parquet, FEATURES (stages/shared/features/store.py), ENCODER
        (the aligned encoder that computed them)
writes  OUTPUT/model, OUTPUT/history.csv

The weights with the best validation score are kept; without validation items, the last ones. Each
paper has a module in this folder with

    RUN_CONFIG                               config class of a row of params.yaml: classifiers
    train(name, run, folders, kind, log, checkpoint_interval_seconds)
                                             -> the classifier, the rows of history.csv, the dataset
    save(classifier, folder, encoder)        write a folder that loads by path
"""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.shared.backbones.classifier import load_model_config
from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage
from stages.shared.training.loop import TrainingConfig


def logged_params(run: Any) -> dict[str, Any]:
    """The params that are logged of a run: its own and those of its model's network."""
    return asdict(run) | {"network": asdict(load_model_config(run))}


def main(name: str, trainer: ModuleType, folders: list[Path], kind: str, output: Path) -> None:
    """Train the run `name` and write its model and history.

    trainer: the module of the paper; folders: IMAGES, RECORDS, FEATURES, ENCODER; kind: of corpus
    """
    *sources, encoder = folders
    checkpoint_interval = load_config(TrainingConfig, "training").checkpoint_interval_seconds
    run = load_config(trainer.RUN_CONFIG, "classifiers", name)
    with tracking.start_run(
        stage="train_classifier", name=name, params=logged_params(run)
    ) as tracked:
        with atomic_output_dir(output) as folder:
            classifier, rows, items = trainer.train(
                name, run, sources, kind, tracked.log_metrics, checkpoint_interval
            )
            trainer.save(classifier, folder / "model", encoder)
            history.write_history(folder / "history.csv", rows)
        counts = {"items": len(items), "items_cut": items.num_truncated}
        tracked.log_metrics(counts | classifier.config["parameters"], run.training.max_steps)
        tracked.log_artifact_hash(output / "model", "model")
        tracked.log_model(output / "model", "model")


def cli(run: str, images: Path, records: Path, features: Path, encoder: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    model = load_config(str, "classifiers", run, "model")
    kind = load_config(str, "corpora", load_config(str, "classifiers", run, "corpus"), "kind")
    trainer = import_module(f"stages.train_classifier.{model}")
    main(run, trainer, [images, records, features, encoder], kind, output)


if __name__ == "__main__":
    run_stage(cli)
