"""Fit a run's model to the reference texts.

python -m stages.train_sft RUN CHUNKS FEATURES ENCODER TARGET

reads   CHUNKS/chunks.parquet, FEATURES and CHUNKS/features (stages/shared/features.py), ENCODER
        (what computed them)
writes  TARGET/model, which holds a copy of the encoder, TARGET/history.csv
"""

import sys
from dataclasses import asdict
from pathlib import Path

import torch

from stages.shared import batches, features, history, runs, tracking
from stages.shared.params import load
from stages.shared.stage import output, stage
from stages.shared.training import (
    Validation,
    batch_of,
    fingerprint,
    fit,
    seed_everything,
    to_device,
)


def validation(chunks: batches.Chunks, loss, batch: int):
    """Mean loss over all validation chunks, and how the gate and the fusion behave on them."""

    def validate(model) -> Validation:
        device = next(model.parameters()).device
        total = count = 0.0
        seen = []
        for start in range(0, len(chunks), batch):
            indices = list(range(start, min(start + batch, len(chunks))))
            items = to_device(chunks.batch(indices), device)
            tokens = (items["labels"] >= 0).sum().item()
            total += sum(loss(model, items).values()).item() * tokens
            count += tokens
            memory = model.remember(items, model.network.gate_train)
            behaviour = {"sigma": items["sigma"], "mask_rate": 1 - memory.gate}
            if memory.correlation is not None:
                behaviour["lambda"] = memory.correlation.mean((1, 2))
            seen.append(behaviour)
        metrics = {name: torch.cat([of[name] for of in seen]).mean().item() for name in seen[0]}
        return Validation(metrics, total / count)

    return validate


def train(name: str, run: runs.Run, chunk_folder: Path, feature_folder: Path, log) -> tuple:
    """The trained writer, its history, and its training chunks."""
    seed_everything(run.sft.seed)
    rows = batches.training_chunks(chunk_folder)
    cached = features.read(feature_folder, chunk_folder / "features")
    writer = runs.create(run, [row["text"] for row in rows], cached)
    chunks = writer.chunks(rows, cached)
    held_out = writer.chunks(
        batches.read_chunks(chunk_folder, "validation", with_picture=True), cached
    )
    measure(writer.model, chunks)
    loss = writer.paper.sft_loss
    steps = fit(
        writer.model,
        loss,
        lambda step: chunks.batch(batch_of(len(chunks), run.sft.batch, run.sft.seed, step)),
        run.sft,
        name=f"train_sft@{name}",
        key=fingerprint([run.sft, writer.config, writer.model], [chunk_folder, feature_folder]),
        validate=validation(held_out, loss, run.sft.batch) if len(held_out) else None,
        log=log,
    )
    return writer, steps, chunks


def main(name: str, run: runs.Run, folders: list[Path], target: Path) -> None:
    chunk_folder, feature_folder, encoder = folders
    numbers = asdict(run) | {"network": asdict(runs.network(run)), "decoders": asdict(runs.tiny())}
    with tracking.run(stage="train_sft", name=name, params=numbers) as tracked:
        with output(target) as folder:
            writer, steps, chunks = train(name, run, chunk_folder, feature_folder, tracked.log)
            runs.save(writer, folder / "model", encoder)
            history.write(folder / "history.csv", steps)
        tracked.log({"texts": len(chunks), "texts_cut": chunks.cut}, run.sft.steps)
        tracked.artifact(target / "model", "model")
        tracked.model(target / "model", "model")


def measure(model, train: batches.Chunks) -> None:
    """Give the model the statistics of the train split's pictures and topics, each counted once."""
    cached = train.features
    images = sorted({cached.image_index[row["image"]] for row in train.rows})
    patches = torch.from_numpy(cached.patches[images]).float().flatten(0, 1)
    topics = None
    if cached.text == "encoder":
        texts = sorted(
            {
                cached.text_index[row["title"]]
                for row in train.rows
                if row["title"] in cached.text_index
            }
        )
        topics = torch.from_numpy(cached.tokens[texts][cached.token_mask[texts]]).float()
    model.measure(patches, topics)


if __name__ == "__main__":
    with stage():
        key, *paths = sys.argv[1:]
        *sources, out = map(Path, paths)
        main(key, load(runs.Run, "runs", key), sources, out)
