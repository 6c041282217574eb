"""Teach a writer what readers prefer, starting from its SFT weights.

python -m stages.train_preference RUN INGEST PAIRS CHUNKS FEATURES SFT TARGET

reads   INGEST/slots.json and facts.parquet (sample only), PAIRS, CHUNKS/chunks.parquet, FEATURES
        and CHUNKS/features, SFT/ (the model that starts the phase and that its log-probabilities
        refer to)
writes  TARGET/model, TARGET/history.csv

A policy can write ever worse while its loss and its ranking look perfect, so some validation chunks
are written at each validation: the phase ends when their score has dropped too far.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from rapidfuzz.distance import Indel
from torch import Tensor

from stages.shared import batches, features, grounding, history, runs, tables, tracking
from stages.shared.devices import inference
from stages.shared.params import load
from stages.shared.progress import bar
from stages.shared.stage import WrongInput, output, stage
from stages.shared.training import (
    Batch,
    Validation,
    batch_of,
    fingerprint,
    fit,
    to_device,
)

Score = Callable[[dict, str], float]  # chunk, written text -> 0 to 1


class Anchor:
    """The reference's matrix of every article, computed once, in articles of one size at a time.

    An article's matrix never shares a batch with wider ones: its bits depend on nothing else.
    """

    def __init__(self, writer: runs.Writer, chunks: batches.Chunks, articles, batch: int):
        self.matrices: dict[str, Tensor] = {}
        device = next(writer.model.parameters()).device
        by_size: dict[int, list[batches.Article]] = {}
        for article in articles:
            by_size.setdefault(len(article.rows), []).append(article)
        groups = [
            same[start : start + batch]
            for same in by_size.values()
            for start in range(0, len(same), batch)
        ]
        with inference():
            for group in bar(groups, "reference"):
                items = to_device(chunks.documents(group), device)
                scores = writer.paper.matrix(writer.model, items).cpu()
                for article, score in zip(group, scores, strict=True):
                    self.matrices[article.record] = score.clone()

    def of(self, articles: list[batches.Article]) -> Tensor:
        """(A, N, N), 0 where an article is smaller"""
        widest = max(len(article.rows) for article in articles)
        stacked = torch.zeros(len(articles), widest, widest)
        for row, article in enumerate(articles):
            size = len(article.rows)
            stacked[row, :size, :size] = self.matrices[article.record]
        return stacked


class Documents:
    """Articles of one split as batches that carry the reference's matrix."""

    def __init__(self, writer, rows: list[dict], cached, pairs: list[dict], batch: int):
        self.chunks = writer.chunks(rows, cached)
        self.articles = self.chunks.articles(pairs)
        self.anchor = Anchor(writer, self.chunks, self.articles, batch)

    def batch(self, indices: list[int]) -> Batch:
        articles = [self.articles[index] for index in indices]
        return self.chunks.documents(articles) | {"reference": self.anchor.of(articles)}


def score_of(ingest: Path) -> Score:
    """How good a written text is: its grounding, or its likeness to the reference elsewhere."""
    slots = grounding.load_slots(ingest)
    if slots is None:
        return lambda row, text: Indel.normalized_similarity(row["text"], text)
    truth = grounding.load_truth(ingest)

    def score(row: dict, text: str) -> float:
        facts = truth[row["record"], row["position"]]
        return grounding.total(grounding.score(text, facts, slots))

    return score


def watcher(writer: runs.Writer, watched: batches.Chunks, run: runs.Run, score: Score):
    """A function that writes the watched chunks with the present weights and scores the texts."""

    def watch() -> float:
        scores = []
        for start in range(0, len(watched), run.generation.batch):
            rows = watched.rows[start : start + run.generation.batch]
            indices = list(range(start, start + len(rows)))
            written = writer.write(watched.batch(indices), run.generation)
            scores += map(score, rows, written.texts)
        return sum(scores) / len(scores)

    return watch


def validation(held_out: Documents, loss, watch: Callable[[], float], run: runs.Run):
    """Loss on held-out articles, and the watched score, which must not drop from its start."""
    start = watch()

    def validate(model) -> Validation:
        device = next(model.parameters()).device
        total = count = 0.0
        for first in range(0, len(held_out.articles), run.preference.batch):
            last = min(first + run.preference.batch, len(held_out.articles))
            batch = to_device(held_out.batch(list(range(first, last))), device)
            total += sum(loss(model, batch).values()).item() * (last - first)
            count += last - first
        now = watch()
        dropped = start - now > run.watch.max_drop
        return Validation({"watch": now}, total / count, stop=dropped)

    return validate


def train(name: str, run: runs.Run, folders: list[Path], log) -> tuple[runs.Writer, list[dict]]:
    ingest, pair_file, chunk_folder, feature_folder, sft = folders
    writer = runs.restore(sft)
    cached = features.read(feature_folder, chunk_folder / "features")
    pairs = tables.read(pair_file, tables.PAIRS)
    rows = batches.training_chunks(chunk_folder)
    trained = Documents(writer, rows, cached, pairs, run.preference.batch)
    if not trained.articles:
        raise WrongInput(
            f"{chunk_folder}: no article of the train split has two chunks to prefer between: "
            "widen chunk.similarity_min and similarity_max, or bring articles with more pictures"
        )
    rows = batches.read_chunks(chunk_folder, "validation", with_picture=True)
    held_out = Documents(writer, rows, cached, pairs, run.preference.batch)
    if not held_out.articles:  # few articles: watch, and choose weights, on those trained on
        held_out = trained
    watched = writer.chunks(held_out.chunks.rows[: run.watch.items], cached)
    numbers = runs.preference(run)

    def loss(model, batch):
        return writer.paper.preference_loss(model, batch, batch["reference"], numbers)

    steps = fit(
        writer.model,
        loss,
        lambda step: trained.batch(
            batch_of(len(trained.articles), run.preference.batch, run.preference.seed, step)
        ),
        run.preference,
        name=f"train_preference@{name}",
        key=fingerprint([run.preference, run.watch, run.generation, numbers], folders),
        validate=validation(held_out, loss, watcher(writer, watched, run, score_of(ingest)), run),
        log=log,
    )
    return writer, steps


def main(name: str, run: runs.Run, folders: list[Path], target: Path) -> None:
    numbers = asdict(run) | {"objective": asdict(runs.preference(run))}
    with tracking.run(stage="train_preference", name=name, params=numbers) as tracked:
        with output(target) as folder:
            writer, steps = train(name, run, folders, tracked.log)
            runs.save(writer, folder / "model", folders[-1] / runs.ENCODER)
            history.write(folder / "history.csv", steps)
        tracked.artifact(target / "model", "model")
        tracked.model(target / "model", "model")


if __name__ == "__main__":
    with stage():
        key, *paths = sys.argv[1:]
        *sources, out = map(Path, paths)
        main(key, load(runs.Run, "runs", key), sources, out)
