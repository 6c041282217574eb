"""Supervised fine-tuning: train a generator on the reference texts.

python -m stages.train_sft --run RUN --chunks CHUNKS --features FEATURES --encoder ENCODER
    --output OUTPUT

reads   CHUNKS/chunks.parquet, FEATURES and CHUNKS/features (stages/shared/features/store.py),
        ENCODER (the encoder that computed them)
writes  OUTPUT/model (with a copy of the encoder), OUTPUT/history.csv
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.features import store as feature_store
from stages.shared.generation import chunk_dataset
from stages.shared.generation import generator as generators
from stages.shared.generation.article_dataset import ArticleDataset, sample_excerpts
from stages.shared.generation.chunk_dataset import ChunkDataset
from stages.shared.generation.decoders import DecoderConfig
from stages.shared.generation.paper import (
    GeneratorModelConfig,
    GeneratorPaper,
    load_generator_paper,
)
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage
from stages.shared.training.batching import Batch, evaluation_batches, shuffled_batch
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import (
    LossTerms,
    TrainingConfig,
    ValidationResult,
    fit,
    seed_everything,
    sum_terms,
)


@dataclass(frozen=True)
class SftConfig:
    """The sections of params.yaml that the stage reads."""

    run: generators.GeneratorRun
    network: GeneratorModelConfig
    decoders: DecoderConfig
    checkpoint_interval_seconds: float


def load_sft_config(run: str) -> SftConfig:
    """The config of a row of `generators`. Raises InputError."""
    row = load_config(generators.GeneratorRun, "generators", run)
    model_config = load_generator_paper(row.model).ModelConfig
    return SftConfig(
        row,
        load_config(model_config, "models", row.model, "network"),
        load_config(DecoderConfig, "decoders"),
        load_config(TrainingConfig, "training").checkpoint_interval_seconds,
    )


class SftObjective:
    """A paper's SFT loss as `fit` calls it.

    It keeps the statistics of a batch from the loss until the optimizer has stepped.
    """

    def __init__(self, paper: GeneratorPaper):
        self.paper = paper
        self.statistics: Mapping[str, Tensor] = {}

    def loss(self, model: nn.Module, batch: Batch) -> LossTerms:
        result = self.paper.sft_loss(model, batch)
        self.statistics = result.statistics
        return result.terms

    def after_step(self, model: nn.Module) -> None:
        self.paper.after_step(model, self.statistics)


def build_validator(
    dataset: ChunkDataset | ArticleDataset, paper: GeneratorPaper, batch_size: int
) -> Callable[[nn.Module], ValidationResult]:
    """A function that computes the mean loss per token and the paper's diagnostics."""

    def validate(model: nn.Module) -> ValidationResult:
        device = next(model.parameters()).device
        total = count = 0.0
        diagnostics = []
        for _, batch in evaluation_batches(dataset, batch_size, device):
            num_tokens = (batch["labels"] >= 0).sum().item()
            total += sum_terms(paper.sft_loss(model, batch).terms).item() * num_tokens
            count += num_tokens
            diagnostics.append(paper.diagnostics(model, batch))
        metrics = {
            name: torch.cat([values[name] for values in diagnostics]).mean().item()
            for name in diagnostics[0]
        }
        return ValidationResult(metrics, total / count)

    return validate


def train(
    name: str, config: SftConfig, *, chunks: Path, features: Path, log: Callable
) -> tuple[generators.AnyGenerator, list[dict[str, float]], ChunkDataset | ArticleDataset]:
    """Train a new generator.  -> the generator, the rows of history.csv, the training dataset

    chunks, features: folders of the stages chunk or illustrate, and embed
    """
    run, network = config.run, config.network
    seed_everything(run.sft.seed)
    rows = chunk_dataset.expand_references(chunk_dataset.load_training_chunks(chunks))
    cached = feature_store.read_features(features, chunks / "features")
    generator = generators.create_generator(run, network, config.decoders, rows, cached)
    rows = rows + sample_excerpts(rows, network.excerpt_ratio, run.sft.seed)
    dataset = generator.build_dataset(rows, cached)
    rows = chunk_dataset.load_chunks(chunks, "validation", require_image=True)
    validation = generator.build_dataset(chunk_dataset.expand_references(rows), cached)
    generator.model.fit_normalization(cached, *collect_feature_rows(dataset))

    def batch_at(step: int) -> Batch:
        indices = shuffled_batch(len(dataset), run.sft.batch_size, run.sft.seed, step)
        return dataset.batch(indices) | {"progress": torch.tensor(step / run.sft.max_steps)}

    objective = SftObjective(generator.paper)
    validate = build_validator(validation, generator.paper, run.sft.batch_size)
    steps = fit(
        generator.model,
        objective.loss,
        batch_at,
        run.sft,
        name=f"train_sft@{name}",
        key=fingerprint(
            [run.sft, generator.config, generator.model], [chunks, features], "train_sft", run.model
        ),
        checkpoint_interval_seconds=config.checkpoint_interval_seconds,
        validate=validate if len(validation) else None,
        after_step=objective.after_step,
        log=log,
    )
    return generator, steps, dataset


def collect_feature_rows(dataset: ChunkDataset | ArticleDataset) -> tuple[list[int], list[int]]:
    """The rows of images and of topics in the features that a dataset uses, each once."""
    features = dataset.features
    chunks = [chunk for index in range(len(dataset)) for chunk in dataset.get_chunks(index)]
    images = {
        features.image_index[image]
        for index in range(len(dataset))
        for chunk_images in dataset.get_images(index)
        for image in chunk_images
        if image
    }
    index = features.text_index
    texts = {index[chunk["title"]] for chunk in chunks if chunk["title"] in index}
    return sorted(images), sorted(texts)


def main(
    name: str, config: SftConfig, *, chunks: Path, features: Path, encoder: Path, output: Path
) -> None:
    """Train the run `name` and write its model and history."""
    params = asdict(config.run) | {
        "network": asdict(config.network),
        "decoders": asdict(config.decoders),
    }
    with tracking.start_run(stage="train_sft", name=name, params=params) as tracked:
        with atomic_output_dir(output) as folder:
            generator, steps, dataset = train(
                name, config, chunks=chunks, features=features, log=tracked.log_metrics
            )
            generators.save_generator(generator, folder / "model", encoder)
            history.write_history(folder / "history.csv", steps)
        counts = {
            "texts": len(dataset),
            "texts_cut": dataset.num_truncated,
            "images_cut": dataset.num_images_cut,
        }
        tracked.log_metrics(counts, config.run.sft.max_steps)
        tracked.log_artifact_hash(output / "model", "model")
        tracked.log_model(output / "model", name)


def cli(run: str, chunks: Path, features: Path, encoder: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    config = load_sft_config(run)
    main(run, config, chunks=chunks, features=features, encoder=encoder, output=output)


if __name__ == "__main__":
    run_stage(cli)
