"""Fit a run's model to the reference texts.

python -m stages.train_sft RUN CHUNKS FEATURES ENCODER TARGET

reads   CHUNKS/chunks.parquet, FEATURES and CHUNKS/features (stages/shared/features/store.py), ENCODER
        (what computed them)
writes  TARGET/model, which holds a copy of the encoder, TARGET/history.csv
"""

import sys
from dataclasses import asdict
from pathlib import Path

import torch

from stages.shared.core.config import load
from stages.shared.data import history
from stages.shared.features import store as feature_store
from stages.shared.generation import chunk_dataset
from stages.shared.generation import generator as generators
from stages.shared.generation.article_dataset import excerpts
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import output, stage
from stages.shared.training.loop import (
    Batch,
    Validation,
    batch_of,
    fingerprint,
    fit,
    seed_everything,
    to_device,
)


def validation(items, loss, paper, batch: int):
    """Mean loss over all validation items, and how the model behaves on them."""

    def validate(model) -> Validation:
        device = next(model.parameters()).device
        total = count = 0.0
        seen = []
        for start in range(0, len(items), batch):
            indices = list(range(start, min(start + batch, len(items))))
            shown = to_device(items.batch(indices), device)
            tokens = (shown["labels"] >= 0).sum().item()
            total += sum(loss(model, shown).values()).item() * tokens
            count += tokens
            seen.append(paper.behaviour(model, shown))
        metrics = {name: torch.cat([of[name] for of in seen]).mean().item() for name in seen[0]}
        return Validation(metrics, total / count)

    return validate


def train(name: str, run: generators.Run, chunk_folder: Path, feature_folder: Path, log) -> tuple:
    """The trained writer, its history, and its training items."""
    seed_everything(run.sft.seed)
    rows = chunk_dataset.by_reference(chunk_dataset.training_chunks(chunk_folder))
    cached = feature_store.read(feature_folder, chunk_folder / "features")
    writer = generators.create(run, rows, cached)
    share = getattr(writer.model.network, "excerpts", 0.0)
    items = writer.items(rows + excerpts(rows, share, run.sft.seed), cached)
    rows = chunk_dataset.read_chunks(chunk_folder, "validation", with_picture=True)
    held_out = writer.items(chunk_dataset.by_reference(rows), cached)
    writer.model.measure(cached, *statistics_of(items))
    loss = writer.paper.sft_loss

    def batch_at(step: int) -> Batch:
        indices = batch_of(len(items), run.sft.batch, run.sft.seed, step)
        return items.batch(indices) | {"progress": torch.tensor(step / run.sft.steps)}

    steps = fit(
        writer.model,
        loss,
        batch_at,
        run.sft,
        name=f"train_sft@{name}",
        key=fingerprint([run.sft, writer.config, writer.model], [chunk_folder, feature_folder]),
        validate=validation(held_out, loss, writer.paper, run.sft.batch) if len(held_out) else None,
        log=log,
    )
    return writer, steps, items


def statistics_of(items) -> tuple[list[int], list[int]]:
    """The rows of pictures and of topics in the caches that these items show, each once."""
    cached = items.features
    rows = [row for index in range(len(items)) for row in items.chunks_of(index)]
    pictures = {cached.image_index[row["image"]] for row in rows}
    known = cached.text_index or {}
    return sorted(pictures), sorted({known[row["title"]] for row in rows if row["title"] in known})


def main(name: str, run: generators.Run, folders: list[Path], target: Path) -> None:
    chunk_folder, feature_folder, encoder = folders
    numbers = asdict(run) | {
        "network": asdict(generators.network(run)),
        "decoders": asdict(generators.tiny()),
    }
    with tracking.run(stage="train_sft", name=name, params=numbers) as tracked:
        with output(target) as folder:
            writer, steps, items = train(name, run, chunk_folder, feature_folder, tracked.log)
            generators.save(writer, folder / "model", encoder)
            history.write(folder / "history.csv", steps)
        tracked.log({"texts": len(items), "texts_cut": items.cut}, run.sft.steps)
        tracked.artifact(target / "model", "model")
        tracked.model(target / "model", "model")


if __name__ == "__main__":
    with stage():
        key, *paths = sys.argv[1:]
        *sources, out = map(Path, paths)
        main(key, load(generators.Run, "writers", key), sources, out)
