"""Fit a run's model to the reference texts.

python -m stages.train_sft --run RUN --chunks CHUNKS --features FEATURES --encoder ENCODER --output OUTPUT

reads   CHUNKS/chunks.parquet, FEATURES and CHUNKS/features (stages/shared/features/store.py), ENCODER
        (what computed them)
writes  TARGET/model, which holds a copy of the encoder, TARGET/history.csv
"""

from dataclasses import asdict
from pathlib import Path

import torch

from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.features import store as feature_store
from stages.shared.generation import chunk_dataset
from stages.shared.generation import generator as generators
from stages.shared.generation.article_dataset import sample_excerpts
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage
from stages.shared.training.batching import Batch, shuffled_batch, to_device
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import ValidationResult, fit, seed_everything


def build_validator(items, loss, paper, batch: int):
    """Mean loss over all validation items, and how the model behaves on them."""

    def validate(model) -> ValidationResult:
        device = next(model.parameters()).device
        total = count = 0.0
        seen = []
        for start in range(0, len(items), batch):
            indices = list(range(start, min(start + batch, len(items))))
            shown = to_device(items.batch(indices), device)
            tokens = (shown["labels"] >= 0).sum().item()
            total += sum(loss(model, shown).values()).item() * tokens
            count += tokens
            seen.append(paper.diagnostics(model, shown))
        metrics = {name: torch.cat([of[name] for of in seen]).mean().item() for name in seen[0]}
        return ValidationResult(metrics, total / count)

    return validate


def train(
    name: str, run: generators.GeneratorRun, chunk_folder: Path, feature_folder: Path, log
) -> tuple:
    """The trained writer, its history, and its training items."""
    seed_everything(run.sft.seed)
    rows = chunk_dataset.expand_references(chunk_dataset.load_training_chunks(chunk_folder))
    cached = feature_store.read_features(feature_folder, chunk_folder / "features")
    writer = generators.create_generator(run, rows, cached)
    share = getattr(writer.model.network, "excerpt_ratio", 0.0)
    items = writer.build_dataset(rows + sample_excerpts(rows, share, run.sft.seed), cached)
    rows = chunk_dataset.load_chunks(chunk_folder, "validation", with_picture=True)
    held_out = writer.build_dataset(chunk_dataset.expand_references(rows), cached)
    writer.model.fit_normalization(cached, *collect_feature_rows(items))
    loss = writer.paper.sft_loss

    def batch_at(step: int) -> Batch:
        indices = shuffled_batch(len(items), run.sft.batch_size, run.sft.seed, step)
        return items.batch(indices) | {"progress": torch.tensor(step / run.sft.max_steps)}

    steps = fit(
        writer.model,
        loss,
        batch_at,
        run.sft,
        name=f"train_sft@{name}",
        key=fingerprint([run.sft, writer.config, writer.model], [chunk_folder, feature_folder]),
        validate=build_validator(held_out, loss, writer.paper, run.sft.batch_size)
        if len(held_out)
        else None,
        log=log,
    )
    return writer, steps, items


def collect_feature_rows(items) -> tuple[list[int], list[int]]:
    """The rows of pictures and of topics in the caches that these items show, each once."""
    cached = items.features
    rows = [row for index in range(len(items)) for row in items.chunks_of(index)]
    pictures = {cached.image_index[row["image"]] for row in rows}
    known = cached.text_index or {}
    return sorted(pictures), sorted({known[row["title"]] for row in rows if row["title"] in known})


def main(name: str, run: generators.GeneratorRun, folders: list[Path], target: Path) -> None:
    chunk_folder, feature_folder, encoder = folders
    numbers = asdict(run) | {
        "network": asdict(generators.load_model_config(run)),
        "decoders": asdict(generators.load_decoder_config()),
    }
    with tracking.start_run(stage="train_sft", name=name, params=numbers) as tracked:
        with atomic_output_dir(target) as folder:
            writer, steps, items = train(
                name, run, chunk_folder, feature_folder, tracked.log_metrics
            )
            generators.save_generator(writer, folder / "model", encoder)
            history.write_history(folder / "history.csv", steps)
        tracked.log_metrics(
            {"texts": len(items), "texts_cut": items.num_truncated}, run.sft.max_steps
        )
        tracked.log_artifact_hash(target / "model", "model")
        tracked.log_model(target / "model", "model")


def cli(run: str, chunks: Path, features: Path, encoder: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    config = load_config(generators.GeneratorRun, "generators", run)
    main(run, config, [chunks, features, encoder], output)


if __name__ == "__main__":
    run_stage(cli)
