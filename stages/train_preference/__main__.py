"""Preference optimization: continue training a generator from its SFT weights.

python -m stages.train_preference --run RUN --ingest INGEST --pairs PAIRS --chunks CHUNKS
    --features FEATURES --sft SFT --output OUTPUT

reads   INGEST/slots.json and facts.parquet (synthetic corpora only), PAIRS, CHUNKS/chunks.parquet,
        FEATURES and CHUNKS/features, SFT (the initial model, which is also the reference)
writes  OUTPUT/model, OUTPUT/history.csv

The objective of each paper is a module of this folder, named like the model, with a function

    train(name, run, folders, generator, log, checkpoint_interval_seconds)
        -> the rows of history.csv
"""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.features.encoder_files import ENCODER_DIR
from stages.shared.generation import generator as generators
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage
from stages.shared.training.loop import TrainingConfig


def main(name: str, run: generators.GeneratorRun, folders: list[Path], output: Path) -> None:
    """folders: ingest, pairs, chunks, features and the SFT model"""
    params = asdict(run) | {"objective": asdict(generators.load_preference_config(run))}
    with tracking.start_run(stage="train_preference", name=name, params=params) as tracked:
        with atomic_output_dir(output) as folder:
            sft = folders[-1]
            generator = generators.load_generator(sft)
            objective = import_module(f"stages.train_preference.{run.model}")
            checkpoint_interval = load_config(
                TrainingConfig, "training"
            ).checkpoint_interval_seconds
            steps = objective.train(
                name, run, folders, generator, tracked.log_metrics, checkpoint_interval
            )
            generators.save_generator(generator, folder / "model", sft / ENCODER_DIR)
            history.write_history(folder / "history.csv", steps)
        tracked.log_artifact_hash(output / "model", "model")
        tracked.log_model(output / "model", "model")


def cli(
    run: str, ingest: Path, pairs: Path, chunks: Path, features: Path, sft: Path, output: Path
) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    config = load_config(generators.GeneratorRun, "generators", run)
    main(run, config, [ingest, pairs, chunks, features, sft], output)


if __name__ == "__main__":
    run_stage(cli)
