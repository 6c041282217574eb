"""Fit a reader's model to the labels of a corpus.

python -m stages.train READER INGEST CLEAN FEATURES ENCODER TARGET

reads   INGEST/images, CLEAN/records.parquet, FEATURES (stages/shared/features.py), ENCODER (what
        computed them)
writes  TARGET/model, TARGET/history.csv

The weights that are kept are those with the best score on the validation split: F1 of the entities,
or accuracy. Without validation items they are the last ones.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.shared import features, history, label_scores, labelled, readers, tracking
from stages.shared.labelled import Labelled, Task
from stages.shared.params import load
from stages.shared.readers import Reader, Run
from stages.shared.stage import WrongInput, output, stage
from stages.shared.training import (
    Batch,
    Validation,
    batch_of,
    fingerprint,
    fit,
    seed_everything,
    to_device,
)

Log = Callable[[dict[str, float], int], None]


def score(task: Task, gold: list[list[str]], predicted: list[list[str]]) -> float:
    """What weights are chosen by, 0 to 1: lenient F1 of the entities, or accuracy."""
    if task == "entities":
        pairs = label_scores.entities(gold, predicted)["lenient"]
        return label_scores.f1_of(pairs)
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)


def validation(reader: Reader, items: Labelled, batch: int) -> Callable[[nn.Module], Validation]:
    """1 - score of all validation items, and how the model behaves on them."""

    def validate(model) -> Validation:
        device = next(model.parameters()).device
        predicted: list[list[str]] = []
        seen = []
        for start in range(0, len(items), batch):
            indices = list(range(start, min(start + batch, len(items))))
            shown = to_device(items.batch(indices), device)
            decided = reader.paper.decide(model, shown).labels
            predicted += reader.names(decided, items, indices)
            seen.append(reader.paper.behaviour(model, shown))
        gold = [labelled.gold_of(row) for row in items.rows]
        reached = score(reader.coding.task, gold, predicted)
        return Validation({"score": reached, **means(seen)}, 1 - reached)

    return validate


def means(seen: list[dict[str, Tensor]]) -> dict[str, float]:
    """Of what batches say of their items, over those with a figure: NaN stands for none."""
    figures = {name: torch.cat([of[name] for of in seen]) for name in seen[0]}
    return {
        name: values.nanmean().item()
        for name, values in figures.items()
        if not values.isnan().all()
    }


def train(
    name: str, run: Run, kind: labelled.Kind, folders: list[Path], log: Log
) -> tuple[Reader, list[dict[str, float]], Labelled]:
    """The trained reader, a row of history for each step, and the items of the train split.

    folders: INGEST, CLEAN and FEATURES; log: takes a row and its step. Raises WrongInput if there
    is nothing to train on.
    """
    ingest, clean, feature_folder = folders
    seed_everything(run.training.seed)
    rows = labelled.read_rows(clean, kind)
    if not rows["train"]:
        raise WrongInput(
            f"{clean / 'records.parquet'} holds no record of the train split: give the corpus some"
        )
    cached = features.read(feature_folder)
    reader = readers.create(run, rows["train"], labelled.TASKS[kind], cached)
    items = reader.items(rows["train"], cached, ingest)
    held_out = reader.items(rows["validation"], cached, ingest)
    paper = reader.paper

    def batch_at(step: int) -> Batch:
        return items.batch(batch_of(len(items), run.training.batch, run.training.seed, step))

    steps = fit(
        reader.model,
        paper.loss,
        batch_at,
        run.training,
        name=f"train@{name}",
        key=fingerprint([run, reader.config, reader.model], folders),
        rates=readers.rates(run),
        validate=validation(reader, held_out, run.batch) if len(held_out) else None,
        log=log,
    )
    return reader, steps, items


def main(name: str, run: Run, kind: labelled.Kind, folders: list[Path], target: Path) -> None:
    *sources, encoder = folders
    numbers = asdict(run) | {"network": asdict(readers.network(run))}
    with tracking.run(stage="train", name=name, params=numbers) as tracked:
        with output(target) as folder:
            reader, steps, items = train(name, run, kind, sources, tracked.log)
            readers.save(reader, folder / "model", encoder)
            history.write(folder / "history.csv", steps)
        counts = {"items": len(items), "items_cut": items.cut, **reader.config["parameters"]}
        tracked.log(counts, run.training.steps)
        tracked.artifact(target / "model", "model")
        tracked.model(target / "model", "model")


if __name__ == "__main__":
    with stage():
        key, *paths = sys.argv[1:]
        *given, out = map(Path, paths)
        run_of = load(Run, "readers", key)
        main(key, run_of, load(labelled.Kind, "corpora", run_of.corpus, "kind"), given, out)
