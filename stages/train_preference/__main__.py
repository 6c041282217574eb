"""Teach a writer what readers prefer, starting from its SFT weights.

python -m stages.train_preference --run RUN --ingest INGEST --pairs PAIRS --chunks CHUNKS --features FEATURES --sft SFT --output OUTPUT

reads   INGEST/slots.json and facts.parquet (sample only), PAIRS, CHUNKS/chunks.parquet, FEATURES
        and CHUNKS/features, SFT/ (the model that starts the phase and that it is held to)
writes  TARGET/model, TARGET/history.csv

How, each paper says in a file of its own beside this one, which has a function

    train(name, run, folders, writer, log) -> the steps of history.csv
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


def main(name: str, run: generators.GeneratorRun, folders: list[Path], target: Path) -> None:
    numbers = asdict(run) | {"objective": asdict(generators.load_preference_config(run))}
    with tracking.start_run(stage="train_preference", name=name, params=numbers) as tracked:
        with atomic_output_dir(target) as folder:
            writer = generators.load_generator(folders[-1])
            phase = import_module(f"stages.train_preference.{run.model}")
            steps = phase.train(name, run, folders, writer, tracked.log_metrics)
            generators.save_generator(writer, folder / "model", folders[-1] / ENCODER_DIR)
            history.write_history(folder / "history.csv", steps)
        tracked.log_artifact_hash(target / "model", "model")
        tracked.log_model(target / "model", "model")


def cli(
    run: str, ingest: Path, pairs: Path, chunks: Path, features: Path, sft: Path, output: Path
) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    config = load_config(generators.GeneratorRun, "generators", run)
    main(run, config, [ingest, pairs, chunks, features, sft], output)


if __name__ == "__main__":
    run_stage(cli)
