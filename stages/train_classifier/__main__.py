"""Train a classifier on the labels of a corpus.

python -m stages.train_classifier --run RUN --images IMAGES --records RECORDS --features FEATURES
    --encoder ENCODER --output OUTPUT

reads   IMAGES/images, RECORDS/records.parquet, FEATURES (stages/shared/features/store.py), ENCODER
        (the aligned encoder that computed them)
writes  OUTPUT/model, OUTPUT/history.csv

The weights with the best validation score are kept; without validation items, the last ones. Each
paper has a module in this folder, see `Trainer` in common.py.
"""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from stages.shared.backbones.classifier import CorpusFolders, load_model_config
from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage
from stages.shared.training.loop import TrainingConfig
from stages.train_classifier.common import Trainer, train


def logged_params(run: Any, network: Any) -> dict[str, Any]:
    """The params that are logged of a run: its own and those of its model's network."""
    return asdict(run) | {"network": asdict(network)}


def main(
    name: str, trainer: Trainer, corpus: CorpusFolders, encoder: Path, kind: str, output: Path
) -> None:
    """Train the run `name` and write its model and history.

    trainer: the module of the paper; encoder: folder of the aligned encoder; kind: of corpus
    """
    run = load_config(trainer.RUN_CONFIG, "classifiers", name)
    network = load_model_config(run.model)
    training = load_config(TrainingConfig, "training")
    params = logged_params(run, network)
    with tracking.start_run(stage="train_classifier", name=name, params=params) as tracked:
        with atomic_output_dir(output) as folder:
            classifier, rows, dataset = train(
                name,
                trainer,
                run,
                network,
                corpus,
                kind,
                checkpoint_interval_seconds=training.checkpoint_interval_seconds,
                log=tracked.log_metrics,
            )
            trainer.save(classifier, folder / "model", encoder)
            history.write_history(folder / "history.csv", rows)
        counts = {"items": len(dataset), "items_cut": dataset.num_truncated}
        tracked.log_metrics(counts | classifier.config["parameters"], run.training.max_steps)
        tracked.log_artifact_hash(output / "model", "model")
        tracked.log_model(output / "model", name)


def cli(run: str, images: Path, records: Path, features: Path, encoder: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    model = load_config(str, "classifiers", run, "model")
    kind = load_config(str, "corpora", load_config(str, "classifiers", run, "corpus"), "kind")
    trainer: Any = import_module(f"stages.train_classifier.{model}")
    main(run, trainer, CorpusFolders(images, records, features), encoder, kind, output)


if __name__ == "__main__":
    run_stage(cli)
