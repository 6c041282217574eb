"""Supervised fine-tuning: train a generator on the reference texts.

python -m stages.train_sft --run RUN --chunks CHUNKS --features FEATURES --encoder ENCODER
    --output OUTPUT

reads   CHUNKS/chunks.parquet, FEATURES and CHUNKS/features (stages/shared/features/store.py),
        ENCODER (the encoder that computed them)
writes  OUTPUT/model (with a copy of the encoder), OUTPUT/history.csv
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.features import store as feature_store
from stages.shared.generation import chunk_dataset
from stages.shared.generation import generator as generators
from stages.shared.generation.article_dataset import ArticleDataset, sample_excerpts
from stages.shared.generation.chunk_dataset import ChunkDataset
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage
from stages.shared.training.batching import Batch, shuffled_batch, to_device
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import TrainingConfig, ValidationResult, fit, seed_everything


def build_validator(
    dataset: ChunkDataset | ArticleDataset, paper: ModuleType, batch_size: int
) -> Callable[[nn.Module], ValidationResult]:
    """A function that computes the mean loss per token and the paper's diagnostics."""

    def validate(model: nn.Module) -> ValidationResult:
        device = next(model.parameters()).device
        total = count = 0.0
        diagnostics = []
        for start in range(0, len(dataset), batch_size):
            indices = list(range(start, min(start + batch_size, len(dataset))))
            batch = to_device(dataset.batch(indices), device)
            num_tokens = (batch["labels"] >= 0).sum().item()
            total += sum(paper.sft_loss(model, batch).values()).item() * num_tokens
            count += num_tokens
            diagnostics.append(paper.diagnostics(model, batch))
        metrics = {
            name: torch.cat([values[name] for values in diagnostics]).mean().item()
            for name in diagnostics[0]
        }
        return ValidationResult(metrics, total / count)

    return validate


def train(
    name: str,
    run: generators.GeneratorRun,
    chunk_folder: Path,
    feature_folder: Path,
    log: Callable,
    checkpoint_interval_seconds: float,
) -> tuple[generators.TextGenerator, list[dict[str, float]], ChunkDataset | ArticleDataset]:
    """Train a new generator.  -> the generator, the rows of history.csv, the training dataset"""
    seed_everything(run.sft.seed)
    rows = chunk_dataset.expand_references(chunk_dataset.load_training_chunks(chunk_folder))
    features = feature_store.read_features(feature_folder, chunk_folder / "features")
    generator = generators.create_generator(run, rows, features)
    network = generator.model.network
    if hasattr(network, "excerpt_ratio"):
        rows = rows + sample_excerpts(rows, network.excerpt_ratio, run.sft.seed)
    dataset = generator.build_dataset(rows, features)
    rows = chunk_dataset.load_chunks(chunk_folder, "validation", require_image=True)
    validation = generator.build_dataset(chunk_dataset.expand_references(rows), features)
    generator.model.fit_normalization(features, *collect_feature_rows(dataset))

    def batch_at(step: int) -> Batch:
        indices = shuffled_batch(len(dataset), run.sft.batch_size, run.sft.seed, step)
        return dataset.batch(indices) | {"progress": torch.tensor(step / run.sft.max_steps)}

    validate = build_validator(validation, generator.paper, run.sft.batch_size)
    steps = fit(
        generator.model,
        generator.paper.sft_loss,
        batch_at,
        run.sft,
        name=f"train_sft@{name}",
        key=fingerprint(
            [run.sft, generator.config, generator.model],
            [chunk_folder, feature_folder],
            "train_sft",
            run.model,
        ),
        checkpoint_interval_seconds=checkpoint_interval_seconds,
        validate=validate if len(validation) else None,
        log=log,
    )
    return generator, steps, dataset


def collect_feature_rows(dataset: ChunkDataset | ArticleDataset) -> tuple[list[int], list[int]]:
    """The rows of images and of topics in the features that a dataset uses, each once."""
    features = dataset.features
    chunks = [chunk for index in range(len(dataset)) for chunk in dataset.get_chunks(index)]
    images = {features.image_index[chunk["image"]] for chunk in chunks}
    text_index = features.text_index or {}
    texts = {text_index[chunk["title"]] for chunk in chunks if chunk["title"] in text_index}
    return sorted(images), sorted(texts)


def main(name: str, run: generators.GeneratorRun, folders: list[Path], output: Path) -> None:
    """folders: chunks, features and encoder"""
    chunk_folder, feature_folder, encoder = folders
    checkpoint_interval = load_config(TrainingConfig, "training").checkpoint_interval_seconds
    params = asdict(run) | {
        "network": asdict(generators.load_model_config(run)),
        "decoders": asdict(generators.load_decoder_config()),
    }
    with tracking.start_run(stage="train_sft", name=name, params=params) as tracked:
        with atomic_output_dir(output) as folder:
            generator, steps, dataset = train(
                name, run, chunk_folder, feature_folder, tracked.log_metrics, checkpoint_interval
            )
            generators.save_generator(generator, folder / "model", encoder)
            history.write_history(folder / "history.csv", steps)
        counts = {"texts": len(dataset), "texts_cut": dataset.num_truncated}
        tracked.log_metrics(counts, run.sft.max_steps)
        tracked.log_artifact_hash(output / "model", "model")
        tracked.log_model(output / "model", "model")


def cli(run: str, chunks: Path, features: Path, encoder: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    config = load_config(generators.GeneratorRun, "generators", run)
    main(run, config, [chunks, features, encoder], output)


if __name__ == "__main__":
    run_stage(cli)
