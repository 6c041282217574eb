"""Teach a writer what readers prefer, starting from its SFT weights.

python -m stages.train_preference RUN INGEST PAIRS CHUNKS FEATURES SFT TARGET

reads   INGEST/slots.json and facts.parquet (sample only), PAIRS, CHUNKS/chunks.parquet, FEATURES
        and CHUNKS/features, SFT/ (the model that starts the phase and that it is held to)
writes  TARGET/model, TARGET/history.csv

How, each paper says in a file of its own beside this one, which has a function

    train(name, run, folders, writer, log) -> the steps of history.csv
"""

import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from stages.shared.core.config import load
from stages.shared.data import history
from stages.shared.features.encoder_files import ENCODER
from stages.shared.generation import generator as generators
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import output, stage


def main(name: str, run: generators.Run, folders: list[Path], target: Path) -> None:
    numbers = asdict(run) | {"objective": asdict(generators.preference(run))}
    with tracking.run(stage="train_preference", name=name, params=numbers) as tracked:
        with output(target) as folder:
            writer = generators.restore(folders[-1])
            phase = import_module(f"stages.train_preference.{run.model}")
            steps = phase.train(name, run, folders, writer, tracked.log)
            generators.save(writer, folder / "model", folders[-1] / ENCODER)
            history.write(folder / "history.csv", steps)
        tracked.artifact(target / "model", "model")
        tracked.model(target / "model", "model")


if __name__ == "__main__":
    with stage():
        key, *paths = sys.argv[1:]
        *sources, out = map(Path, paths)
        main(key, load(generators.Run, "writers", key), sources, out)
