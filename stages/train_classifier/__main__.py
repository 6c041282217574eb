"""Fit a reader's model to the labels of a corpus.

python -m stages.train_classifier READER PICTURES RECORDS FEATURES ENCODER TARGET

reads   PICTURES/images, RECORDS/records.parquet, FEATURES (stages/shared/features/store.py), ENCODER
        (what computed them)
writes  TARGET/model, TARGET/history.csv

The weights that are kept are those with the best score on the validation split; without validation
items they are the last ones. How, each paper says in a file of its own beside this one, which has

    Run                                      what a row of readers holds
    train(name, run, folders, kind, log) -> the reader, the steps of history.csv, its items
    save(reader, folder, encoder)            a folder that loads by path
"""

import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType

from stages.shared.backbones.classifier import network
from stages.shared.core.config import load
from stages.shared.data import history
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import output, stage


def numbers(run) -> dict:
    """What is compared of a run: those of its row and those of its model's network."""
    return asdict(run) | {"network": asdict(network(run))}


def main(name: str, paper: ModuleType, folders: list[Path], kind: str, target: Path) -> None:
    *sources, encoder = folders
    run = load(paper.Run, "readers", name)
    with tracking.run(stage="train_classifier", name=name, params=numbers(run)) as tracked:
        with output(target) as folder:
            reader, steps, items = paper.train(name, run, sources, kind, tracked.log)
            paper.save(reader, folder / "model", encoder)
            history.write(folder / "history.csv", steps)
        counts = {"items": len(items), "items_cut": items.cut, **reader.config["parameters"]}
        tracked.log(counts, run.training.steps)
        tracked.artifact(target / "model", "model")
        tracked.model(target / "model", "model")


if __name__ == "__main__":
    with stage():
        key, *paths = sys.argv[1:]
        *given, out = map(Path, paths)
        model = load(str, "readers", key, "model")
        kind_of_corpus = load(str, "corpora", load(str, "readers", key, "corpus"), "kind")
        main(key, import_module(f"stages.train_classifier.{model}"), given, kind_of_corpus, out)
