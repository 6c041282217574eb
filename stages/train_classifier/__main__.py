"""Fit a reader's model to the labels of a corpus.

python -m stages.train_classifier --run RUN --images IMAGES --records RECORDS --features FEATURES --encoder ENCODER --output OUTPUT

reads   PICTURES/images, RECORDS/records.parquet, FEATURES (stages/shared/features/store.py), ENCODER
        (what computed them)
writes  TARGET/model, TARGET/history.csv

The weights that are kept are those with the best score on the validation split; without validation
items they are the last ones. How, each paper says in a file of its own beside this one, which has

    RUN_CONFIG                               what a row of readers holds
    train(name, run, folders, kind, log) -> the reader, the steps of history.csv, its items
    save(reader, folder, encoder)            a folder that loads by path
"""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType

from stages.shared.backbones.classifier import load_model_config
from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage


def logged_params(run) -> dict:
    """What is compared of a run: those of its row and those of its model's network."""
    return asdict(run) | {"network": asdict(load_model_config(run))}


def main(name: str, paper: ModuleType, folders: list[Path], kind: str, target: Path) -> None:
    *sources, encoder = folders
    run = load_config(paper.RUN_CONFIG, "classifiers", name)
    with tracking.start_run(
        stage="train_classifier", name=name, params=logged_params(run)
    ) as tracked:
        with atomic_output_dir(target) as folder:
            reader, steps, items = paper.train(name, run, sources, kind, tracked.log_metrics)
            paper.save(reader, folder / "model", encoder)
            history.write_history(folder / "history.csv", steps)
        counts = {"items": len(items), "items_cut": items.num_truncated, **reader.config["parameters"]}
        tracked.log_metrics(counts, run.training.max_steps)
        tracked.log_artifact_hash(target / "model", "model")
        tracked.log_model(target / "model", "model")


def cli(run: str, images: Path, records: Path, features: Path, encoder: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    model = load_config(str, "classifiers", run, "model")
    kind = load_config(str, "corpora", load_config(str, "classifiers", run, "corpus"), "kind")
    trainer = import_module(f"stages.train_classifier.{model}")
    main(run, trainer, [images, records, features, encoder], kind, output)


if __name__ == "__main__":
    run_stage(cli)
