"""Provide an encoder of images and texts in one space.

python -m stages.align --ingest INGEST --chunks CHUNKS --pairs PAIRS --output OUTPUT

reads   INGEST/images, CHUNKS/chunks.parquet; for efficientnet-lite0 PAIRS/<corpus> (stages/pair.py)
writes  OUTPUT: an encoder folder (stages/shared/encoders/base.py), summary.json (retrieval on
        held-out pairs) and, for trained encoders, history.csv

align.encoder is one of
    tiny                 trained here on align.corpus, for drawn scenes (tiny_training.py)
    efficientnet-lite0   for photographs; its weights and those of its text encoder are parts of
                         packages, projections between both are learned from align.corpora
                         (projections.py)
    openclip:ARCH/TAG    TAG may be a checkpoint file; or openclip:local-dir:/FOLDER
    hf:NAME              or hf:/FOLDER
Only the last two may use the network.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from stages.align.projections import LockedTowersConfig, fit_projections, measure, select_pairs
from stages.align.tiny_training import (
    LogMetrics,
    TinyEncoderTrainingConfig,
    check_language,
    select_examples,
    train_tiny_encoder,
)
from stages.shared.core.config import Field, config_class, load_config
from stages.shared.core.schemas import CHUNKS, read_parquet
from stages.shared.data import history
from stages.shared.encoders import base as encoders
from stages.shared.encoders import extract, locked_towers
from stages.shared.retrieval.evaluation import evaluate_encoder
from stages.shared.retrieval.pairs import read_pairs, select_held_out
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import InputError, allow_downloads, atomic_output_dir, run_stage
from stages.shared.training.loop import TrainingConfig


@config_class
class AlignConfig:
    """The section `align`."""

    encoder: str = Field(description="tiny | efficientnet-lite0 | openclip:ARCH/TAG | hf:NAME")
    corpus: str = Field(description="corpus whose train split trains the tiny encoder")
    corpora: list[str] = Field(description="corpora whose pairs align efficientnet-lite0")
    languages: list[str] = Field(description="languages of a named encoder, ISO 639-1")
    tiny: TinyEncoderTrainingConfig = Field(description="the tiny encoder and its training")
    locked: LockedTowersConfig = Field(description="efficientnet-lite0 and its projections")


def fetch_encoder(name: str, languages: list[str], folder: Path) -> None:
    """Save a named encoder in `folder`. Raises InputError if it does not exist."""
    kind, _, rest = name.partition(":")
    if kind not in ("openclip", "hf") or not rest:
        raise InputError(
            f"align.encoder is {name!r}: give tiny, efficientnet-lite0, openclip:ARCH/TAG, "
            "openclip:local-dir:/FOLDER or hf:NAME"
        )
    allow_downloads()
    encoders.module_of(kind).fetch(rest, languages, folder)


def align_locked_towers(
    config: AlignConfig,
    max_retrieval_pairs: int,
    pairs: Path,
    folder: Path,
    log: LogMetrics,
    checkpoint_interval_seconds: float,
) -> dict:
    """Learn the projections of efficientnet-lite0 and save the encoder in `folder`.

    Returns the summary: how the projections were chosen, and retrieval on each corpus.
    Raises InputError if align.corpora is empty or has too few pairs.
    """
    if not config.corpora:
        raise InputError(
            "align.corpora is empty: name the corpora whose image-text pairs align "
            "efficientnet-lite0 with its text encoder, such as [captions]"
        )
    corpora = {name: read_pairs(pairs / name) for name in config.corpora}
    projections, choice, steps = fit_projections(
        list(corpora.values()), config.locked, log, checkpoint_interval_seconds
    )
    locked_towers.save(folder, projections, config.locked.text_encoder, config.locked.max_tokens)
    history.write_history(folder / "history.csv", steps)
    retrieval = {}
    for name, features in corpora.items():
        split, held_out = select_held_out(features.pairs, max_retrieval_pairs)
        if held_out:
            images = {pair.image for pair in held_out}
            rows = [row for row, pair in enumerate(features.pairs) if pair.image in images]
            retrieval[name] = {"split": split} | measure(projections, select_pairs(features, rows))
    return {"retrieval": retrieval, "projections": choice}


def summarize_validation(
    encoder: encoders.Encoder,
    corpus: str,
    chunks: list[dict],
    ingest: Path,
    embed: extract.EmbedConfig,
) -> dict:
    """Retrieval on the validation examples in the encoder's languages, if there are any."""
    examples = select_examples(chunks, "validation", encoder.languages)
    if not examples:
        return {"retrieval": {}}
    summary = evaluate_encoder(encoder, examples, ingest / "images", embed)
    return {"retrieval": {corpus: {"split": "validation"} | summary}}


def list_recalls(summary: dict) -> Iterable[tuple[str, float]]:
    """The recalls of all corpora as metrics."""
    for corpus, retrieval in summary["retrieval"].items():
        for direction in ("image_to_text", "text_to_image"):
            for name, value in retrieval[direction].items():
                if name.startswith(("recall", "chance")):
                    yield f"{corpus}_{direction}_{name}", value


def main(
    config: AlignConfig,
    embed: extract.EmbedConfig,
    ingest: Path,
    chunk_folder: Path,
    pairs: Path,
    output: Path,
) -> None:
    """Run the stage. Raises InputError if the corpus or the named encoder is unusable."""
    chunks = read_parquet(chunk_folder / "chunks.parquet", CHUNKS)
    if config.encoder == "tiny":
        check_language(chunks, config.corpus, embed.min_supported_fraction)
    interval = load_config(TrainingConfig, "training").checkpoint_interval_seconds
    with tracking.start_run(stage="align", name="", params=asdict(config)) as tracked:
        log = tracked.log_metrics
        with atomic_output_dir(output) as folder:
            if config.encoder == locked_towers.KIND:
                summary = align_locked_towers(
                    config, embed.max_retrieval_pairs, pairs, folder, log, interval
                )
            else:
                if config.encoder == "tiny":
                    batch_size = embed.text_batch_size
                    train_tiny_encoder(
                        config.tiny, chunks, ingest, batch_size, folder, log, interval
                    )
                else:
                    fetch_encoder(config.encoder, config.languages, folder)
                encoder = encoders.load_encoder(folder)
                summary = summarize_validation(encoder, config.corpus, chunks, ingest, embed)
            (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        tracked.log_metrics(dict(list_recalls(summary)), 0)
        tracked.log_artifact_hash(output, "encoder")


def cli(ingest: Path, chunks: Path, pairs: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    embed = load_config(extract.EmbedConfig, "embed")
    main(load_config(AlignConfig, "align"), embed, ingest, chunks, pairs, output)


if __name__ == "__main__":
    run_stage(cli)
