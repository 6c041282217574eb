"""mscDPO, FlexMUSE's preference phase: its text is preferred to those of other pictures.

Chunks are compared in the groups of stages/chunk.py. What the reference, the SFT weights, says of a
group is kept under POLYMUSE_HOME: the same weights and content are scored once, whatever run asks.

Some validation chunks are written at each validation: the phase ends when their score has dropped
too far.
"""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from stages.shared.core import schemas
from stages.shared.data.cache import Store
from stages.shared.features import store as feature_store
from stages.shared.generation import chunk_dataset
from stages.shared.generation import generator as generators
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError, work_dir
from stages.shared.torch_setup.devices import inference_context, supports_bf16
from stages.shared.training.batching import Batch, shuffled_batch, to_device
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import ValidationResult, fit
from stages.train_preference.quality_monitor import build_monitor, build_scorer


def open_reference_store(sft: Path) -> Store:
    """Of what one SFT model, in one precision and by one version of the code, says of groups."""
    precision = "bf16" if supports_bf16() else "fp32"
    return Store(work_dir() / "store", f"reference-{fingerprint([precision], [sft])}")


def hash_batch(batch: Batch) -> str:
    """sha256 of everything that the model is shown: names, types, shapes and values."""
    digest = sha256()
    for name, value in sorted(batch.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


class ReferenceLogProbs:
    """The reference's matrix of every group, computed once for the same weights and content.

    Each group is scored by itself. Beside others it would be padded to their texts and topics and
    multiplied in matrices of another shape, which rounds its last bits another way, so that what
    is stored would depend on its neighbours.
    """

    def __init__(
        self,
        writer: generators.TextGenerator,
        chunks: chunk_dataset.ChunkDataset,
        groups,
        store: Store,
    ):
        device = next(writer.model.parameters()).device
        keys: list[str] = []

        def items() -> Iterator[tuple[str, Batch]]:
            for group in progress_bar(groups, "reference"):
                batch = chunks.batch_groups([group])
                keys.append(hash_batch(batch))
                yield keys[-1], batch

        def compute(contents: list[Batch]) -> list[bytes]:
            with inference_context():
                scores = [
                    writer.paper.pairwise_log_probs(writer.model, to_device(b, device))
                    for b in contents
                ]
            return [score[0].float().cpu().numpy().tobytes() for score in scores]

        store.compute_missing(items(), compute, 1)
        self.matrices = [
            torch.frombuffer(bytearray(row), dtype=torch.float32).view(group.allowed.shape)
            for row, group in zip(store.read(keys), groups, strict=True)
        ]

    def stack_matrices(self, indices: list[int]) -> Tensor:
        """Of groups by their numbers: (G, N, N), 0 where a group is smaller"""
        widest = max(len(self.matrices[index]) for index in indices)
        stacked = torch.zeros(len(indices), widest, widest)
        for row, matrix in zip(stacked, map(self.matrices.__getitem__, indices), strict=True):
            row[: len(matrix), : len(matrix)] = matrix
        return stacked


class GroupDataset:
    """The groups of one split as batches that carry the reference's matrix."""

    def __init__(self, writer, rows: list[dict], cached, pairs: list[dict], store: Store):
        self.chunks = writer.build_dataset(rows, cached)
        self.groups = self.chunks.build_groups(pairs)
        self.reference_log_probs = ReferenceLogProbs(writer, self.chunks, self.groups, store)

    def __len__(self) -> int:
        return len(self.groups)

    def batch(self, indices: list[int]) -> Batch:
        groups = [self.groups[index] for index in indices]
        return self.chunks.batch_groups(groups) | {
            "reference": self.reference_log_probs.stack_matrices(indices)
        }


def build_validator(
    held_out: GroupDataset, loss, watch: Callable[[], float], run: generators.GeneratorRun
):
    """Loss on held-out groups, and the watched score, which must not drop from its start."""
    start = watch()

    def validate(model) -> ValidationResult:
        device = next(model.parameters()).device
        total = count = 0.0
        for first in range(0, len(held_out), run.preference.batch_size):
            last = min(first + run.preference.batch_size, len(held_out))
            batch = to_device(held_out.batch(list(range(first, last))), device)
            total += sum(loss(model, batch).values()).item() * (last - first)
            count += last - first
        now = watch()
        dropped = start - now > run.quality_monitor.max_score_drop
        return ValidationResult({"watch": now}, total / count, stop=dropped)

    return validate


def train(
    name: str,
    run: generators.GeneratorRun,
    folders: list[Path],
    writer: generators.TextGenerator,
    log,
) -> list[dict[str, float]]:
    """The steps of the phase; `writer` is left with its best weights."""
    ingest, pair_file, chunk_folder, feature_folder, sft = folders
    cached = feature_store.read_features(feature_folder, chunk_folder / "features")
    pairs = schemas.read_parquet(pair_file, schemas.PREFERENCE_PAIRS)
    rows = chunk_dataset.load_training_chunks(chunk_folder)
    store = open_reference_store(sft)
    trained = GroupDataset(writer, rows, cached, pairs, store)
    if not len(trained):
        raise InputError(
            f"{pair_file}: the train split has no preference pairs: widen chunk.min_similarity and "
            "chunk.max_similarity, set chunk.single_chunk_articles to others, or add articles with "
            "more images"
        )
    rows = chunk_dataset.load_chunks(chunk_folder, "validation", with_picture=True)
    held_out = GroupDataset(writer, rows, cached, pairs, store)
    if not len(held_out):  # few articles: watch, and choose weights, on those trained on
        held_out = trained
    watched = writer.build_dataset(
        held_out.chunks.rows[: run.quality_monitor.max_eval_samples], cached
    )
    numbers = generators.load_preference_config(run)

    def loss(model, batch):
        return writer.paper.preference_loss(model, batch, batch["reference"], numbers)

    return fit(
        writer.model,
        loss,
        lambda step: trained.batch(
            shuffled_batch(len(trained), run.preference.batch_size, run.preference.seed, step)
        ),
        run.preference,
        name=f"train_preference@{name}",
        key=fingerprint([run.preference, run.quality_monitor, run.generation, numbers], folders),
        validate=build_validator(
            held_out, loss, build_monitor(writer, watched, run, build_scorer(ingest)), run
        ),
        log=log,
    )
