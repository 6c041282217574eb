"""mscDPO, FlexMUSE's preference phase: prefer an image's own text to the texts of other images.

Chunks are compared within the groups of stages/chunk.py. The log-probabilities of the reference,
which is the SFT model, are cached under POLYMUSE_HOME by weights and content: they are computed
once, whichever run needs them.

Each validation generates some validation texts; the phase ends when their score has dropped too
far.
"""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from stages.models.flexmuse import model as flexmuse
from stages.shared.core import schemas
from stages.shared.data.cache import Store
from stages.shared.features import store as feature_store
from stages.shared.features.store import Features
from stages.shared.generation import chunk_dataset
from stages.shared.generation import generator as generators
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError, work_dir
from stages.shared.torch_setup.devices import inference_context, supports_bf16
from stages.shared.training.batching import (
    Batch,
    evaluation_batches,
    shuffled_batch,
    to_device,
)
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import LossTerms, ValidationResult, fit, sum_terms
from stages.train_preference.inputs import PhaseConfig, PhaseInputs
from stages.train_preference.quality_monitor import build_monitor, build_scorer

FlexMuseGenerator = generators.TextGenerator[flexmuse.Model, chunk_dataset.ChunkDataset]


def open_reference_store(sft: Path, max_sequences: int | None) -> Store:
    """The cache for one SFT model, precision, number of texts at once and version of the code."""
    precision = "bf16" if supports_bf16() else "fp32"
    key = fingerprint([precision, max_sequences], [sft], "train_preference", "flexmuse")
    return Store(work_dir() / "store", f"reference-{key}")


def hash_batch(batch: Batch) -> str:
    """sha256 of all that the model sees: names, types, shapes and values."""
    digest = sha256()
    for name, value in sorted(batch.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


class ReferenceLogProbs:
    """The reference's `pairwise_log_probs` of each group, cached by weights and content.

    Each group is scored in a batch of its own. In a batch with others it would be padded to their
    lengths and multiplied in matrices of another shape, which changes its last bits, so that cached
    values would depend on the rest of the batch.

    max_sequences: see pairwise_log_probs
    """

    def __init__(
        self,
        generator: FlexMuseGenerator,
        chunks: chunk_dataset.ChunkDataset,
        groups: list[chunk_dataset.ChunkGroup],
        store: Store,
        max_sequences: int | None,
    ):
        device = next(generator.model.parameters()).device
        keys: list[str] = []

        def keyed_batches() -> Iterator[tuple[str, Batch]]:
            for group in progress_bar(groups, "reference"):
                batch = chunks.batch_groups([group])
                keys.append(hash_batch(batch))
                yield keys[-1], batch

        def compute(batches: list[Batch]) -> list[bytes]:
            with inference_context():
                matrices = [
                    flexmuse.pairwise_log_probs(
                        generator.model, to_device(batch, device), max_sequences
                    )
                    for batch in batches
                ]
            return [matrix[0].float().cpu().numpy().tobytes() for matrix in matrices]

        store.compute_missing(keyed_batches(), compute, 1)
        self.matrices = [
            torch.frombuffer(bytearray(row), dtype=torch.float32).view(group.allowed.shape)
            for row, group in zip(store.read(keys), groups, strict=True)
        ]

    def stack_matrices(self, indices: list[int]) -> Tensor:
        """The matrices of groups by their indices: (G, N, N), 0 where a group is smaller"""
        matrices = [self.matrices[index] for index in indices]
        max_size = max(map(len, matrices))
        stacked = torch.zeros(len(indices), max_size, max_size)
        for row, matrix in zip(stacked, matrices, strict=True):
            row[: len(matrix), : len(matrix)] = matrix
        return stacked


class GroupDataset:
    """The groups of one split as batches that include the reference's log-probabilities."""

    def __init__(
        self,
        generator: FlexMuseGenerator,
        rows: list[dict],
        features: Features,
        pairs: list[dict],
        store: Store,
        max_sequences: int | None,
    ):
        self.chunks = generator.build_dataset(rows, features)
        self.groups = self.chunks.build_groups(pairs)
        self.reference_log_probs = ReferenceLogProbs(
            generator, self.chunks, self.groups, store, max_sequences
        )

    def __len__(self) -> int:
        return len(self.groups)

    def batch(self, indices: list[int]) -> Batch:
        groups = [self.groups[index] for index in indices]
        return self.chunks.batch_groups(groups) | {
            "reference": self.reference_log_probs.stack_matrices(indices)
        }


def build_validator(
    validation: GroupDataset,
    loss: Callable[[flexmuse.Model, Batch], LossTerms],
    monitor: Callable[[], float],
    run: generators.GeneratorRun,
) -> Callable[[flexmuse.Model], ValidationResult]:
    """A function that computes the mean loss per group and the monitored score of texts.

    It stops the phase when the score has dropped by more than `max_score_drop` from its start.
    """
    start_score = monitor()

    def validate(model: flexmuse.Model) -> ValidationResult:
        device = next(model.parameters()).device
        total = count = 0.0
        for indices, batch in evaluation_batches(validation, run.preference.batch_size, device):
            total += sum_terms(loss(model, batch)).item() * len(indices)
            count += len(indices)
        score = monitor()
        has_dropped = start_score - score > run.quality_monitor.max_score_drop
        return ValidationResult({"watch": score}, total / count, stop=has_dropped)

    return validate


def train(
    name: str,
    config: PhaseConfig,
    inputs: PhaseInputs,
    generator: FlexMuseGenerator,
    log: Callable,
) -> list[dict[str, float]]:
    """Train `generator`, which keeps its best weights.  -> the rows of history.csv

    Raises InputError if the train split has no preference pairs.
    """
    run = config.run
    features = feature_store.read_features(inputs.features, inputs.chunks / "features")
    pairs = schemas.read_parquet(inputs.pairs, schemas.PREFERENCE_PAIRS)
    rows = chunk_dataset.load_training_chunks(inputs.chunks)
    max_sequences = config.objective.max_sequences
    store = open_reference_store(inputs.sft, max_sequences)
    dataset = GroupDataset(generator, rows, features, pairs, store, max_sequences)
    if not len(dataset):
        raise InputError(
            f"{inputs.pairs}: the train split has no preference pairs: widen chunk.min_similarity "
            "and chunk.max_similarity, set chunk.single_chunk_articles to others, or add articles "
            "with more images"
        )
    rows = chunk_dataset.load_chunks(inputs.chunks, "validation", require_image=True)
    validation = GroupDataset(generator, rows, features, pairs, store, max_sequences)
    if not len(validation):  # a small corpus: validate on the training groups
        validation = dataset
    monitored_chunks = validation.chunks.items[: run.quality_monitor.max_eval_samples]
    monitored = generator.build_dataset(
        [row for rows in monitored_chunks for row in rows], features
    )

    def loss(model: flexmuse.Model, batch: Batch) -> LossTerms:
        return flexmuse.preference_loss(model, batch, batch["reference"], config.objective)

    def batch_at(step: int) -> Batch:
        schedule = run.preference
        return dataset.batch(shuffled_batch(len(dataset), schedule.batch_size, schedule.seed, step))

    monitor = build_monitor(generator, monitored, run, build_scorer(inputs.ingest))
    configs = [run.preference, run.quality_monitor, run.generation, config.objective]
    return fit(
        generator.model,
        loss,
        batch_at,
        run.preference,
        name=f"train_preference@{name}",
        key=fingerprint(configs, inputs.paths, "train_preference", run.model),
        checkpoint_interval_seconds=config.checkpoint_interval_seconds,
        validate=build_validator(validation, loss, monitor, run),
        log=log,
    )
