"""Preference optimization: continue training a generator from its SFT weights.

python -m stages.train_preference --run RUN --ingest INGEST --pairs PAIRS --chunks CHUNKS
    --features FEATURES --sft SFT --output OUTPUT

reads   INGEST/slots.json and facts.parquet (synthetic corpora only), PAIRS, CHUNKS/chunks.parquet,
        FEATURES and CHUNKS/features, SFT (the initial model, which is also the reference)
writes  OUTPUT/model, OUTPUT/history.csv

The objective of each paper is a module of this folder, named like the model, with a function

    train(name, config, inputs, generator, log) -> the rows of history.csv
"""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from stages.shared.core.config import load_config
from stages.shared.data import history
from stages.shared.features.encoder_files import ENCODER_DIR
from stages.shared.generation import generator as generators
from stages.shared.generation.paper import load_generator_paper
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import atomic_output_dir, run_stage
from stages.shared.similarity.embedders import RewardConfig
from stages.shared.training.loop import TrainingConfig
from stages.train_preference.inputs import PhaseConfig, PhaseInputs


def load_phase_config(run: str) -> PhaseConfig:
    """The config of a row of `generators`. Raises InputError."""
    row = load_config(generators.GeneratorRun, "generators", run)
    preference_config = load_generator_paper(row.model).PreferenceConfig
    return PhaseConfig(
        row,
        load_config(preference_config, "models", row.model, "preference"),
        load_config(RewardConfig, "rewards"),
        load_config(TrainingConfig, "training").checkpoint_interval_seconds,
    )


def main(name: str, config: PhaseConfig, inputs: PhaseInputs, output: Path) -> None:
    """Train the run `name` and write its model and history."""
    params = asdict(config.run) | {"objective": asdict(config.objective)}
    with tracking.start_run(stage="train_preference", name=name, params=params) as tracked:
        with atomic_output_dir(output) as folder:
            generator = generators.load_generator(inputs.sft)
            objective = import_module(f"stages.train_preference.{config.run.model}")
            steps = objective.train(name, config, inputs, generator, tracked.log_metrics)
            generators.save_generator(generator, folder / "model", inputs.sft / ENCODER_DIR)
            history.write_history(folder / "history.csv", steps)
        tracked.log_artifact_hash(output / "model", "model")
        tracked.log_model(output / "model", name)


def cli(
    run: str, ingest: Path, pairs: Path, chunks: Path, features: Path, sft: Path, output: Path
) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    main(run, load_phase_config(run), PhaseInputs(ingest, pairs, chunks, features, sft), output)


if __name__ == "__main__":
    run_stage(cli)
