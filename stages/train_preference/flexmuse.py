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
from stages.shared.runtime.progress import bar
from stages.shared.runtime.stage import WrongInput, home
from stages.shared.torch_setup.devices import has_bf16, inference
from stages.shared.training.loop import Batch, Validation, batch_of, fingerprint, fit, to_device
from stages.train_preference.quality_monitor import score_of, watcher


def reference_store(sft: Path) -> Store:
    """Of what one SFT model, in one precision and by one version of the code, says of groups."""
    precision = "bf16" if has_bf16() else "fp32"
    return Store(home() / "store", f"reference-{fingerprint([precision], [sft])}")


def content_key(batch: Batch) -> str:
    """sha256 of everything that the model is shown: names, types, shapes and values."""
    digest = sha256()
    for name, value in sorted(batch.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Anchor:
    """The reference's matrix of every group, computed once for the same weights and content.

    Each group is scored by itself. Beside others it would be padded to their texts and topics and
    multiplied in matrices of another shape, which rounds its last bits another way, so that what
    is stored would depend on its neighbours.
    """

    def __init__(
        self, writer: generators.Writer, chunks: chunk_dataset.Chunks, groups, store: Store
    ):
        device = next(writer.model.parameters()).device
        keys: list[str] = []

        def items() -> Iterator[tuple[str, Batch]]:
            for group in bar(groups, "reference"):
                batch = chunks.batch_of_groups([group])
                keys.append(content_key(batch))
                yield keys[-1], batch

        def compute(contents: list[Batch]) -> list[bytes]:
            with inference():
                scores = [writer.paper.matrix(writer.model, to_device(b, device)) for b in contents]
            return [score[0].float().cpu().numpy().tobytes() for score in scores]

        store.fill(items(), compute, 1)
        self.matrices = [
            torch.frombuffer(bytearray(row), dtype=torch.float32).view(group.allowed.shape)
            for row, group in zip(store.rows(keys), groups, strict=True)
        ]

    def of(self, indices: list[int]) -> Tensor:
        """Of groups by their numbers: (G, N, N), 0 where a group is smaller"""
        widest = max(len(self.matrices[index]) for index in indices)
        stacked = torch.zeros(len(indices), widest, widest)
        for row, matrix in zip(stacked, map(self.matrices.__getitem__, indices), strict=True):
            row[: len(matrix), : len(matrix)] = matrix
        return stacked


class Groups:
    """The groups of one split as batches that carry the reference's matrix."""

    def __init__(self, writer, rows: list[dict], cached, pairs: list[dict], store: Store):
        self.chunks = writer.items(rows, cached)
        self.groups = self.chunks.groups(pairs)
        self.anchor = Anchor(writer, self.chunks, self.groups, store)

    def __len__(self) -> int:
        return len(self.groups)

    def batch(self, indices: list[int]) -> Batch:
        groups = [self.groups[index] for index in indices]
        return self.chunks.batch_of_groups(groups) | {"reference": self.anchor.of(indices)}


def validation(held_out: Groups, loss, watch: Callable[[], float], run: generators.Run):
    """Loss on held-out groups, and the watched score, which must not drop from its start."""
    start = watch()

    def validate(model) -> Validation:
        device = next(model.parameters()).device
        total = count = 0.0
        for first in range(0, len(held_out), run.preference.batch):
            last = min(first + run.preference.batch, len(held_out))
            batch = to_device(held_out.batch(list(range(first, last))), device)
            total += sum(loss(model, batch).values()).item() * (last - first)
            count += last - first
        now = watch()
        dropped = start - now > run.watch.max_drop
        return Validation({"watch": now}, total / count, stop=dropped)

    return validate


def train(
    name: str, run: generators.Run, folders: list[Path], writer: generators.Writer, log
) -> list[dict[str, float]]:
    """The steps of the phase; `writer` is left with its best weights."""
    ingest, pair_file, chunk_folder, feature_folder, sft = folders
    cached = feature_store.read(feature_folder, chunk_folder / "features")
    pairs = schemas.read(pair_file, schemas.PAIRS)
    rows = chunk_dataset.training_chunks(chunk_folder)
    store = reference_store(sft)
    trained = Groups(writer, rows, cached, pairs, store)
    if not len(trained):
        raise WrongInput(
            f"{pair_file}: the train split has no two chunks to prefer between: widen "
            "chunk.similarity_min and similarity_max, set chunk.alone to others, or bring articles "
            "with more pictures"
        )
    rows = chunk_dataset.read_chunks(chunk_folder, "validation", with_picture=True)
    held_out = Groups(writer, rows, cached, pairs, store)
    if not len(held_out):  # few articles: watch, and choose weights, on those trained on
        held_out = trained
    watched = writer.items(held_out.chunks.rows[: run.watch.items], cached)
    numbers = generators.preference(run)

    def loss(model, batch):
        return writer.paper.preference_loss(model, batch, batch["reference"], numbers)

    return fit(
        writer.model,
        loss,
        lambda step: trained.batch(
            batch_of(len(trained), run.preference.batch, run.preference.seed, step)
        ),
        run.preference,
        name=f"train_preference@{name}",
        key=fingerprint([run.preference, run.watch, run.generation, numbers], folders),
        validate=validation(held_out, loss, watcher(writer, watched, run, score_of(ingest)), run),
        log=log,
    )
