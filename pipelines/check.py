"""Read every section of params.yaml as its stage will, so that a slip shows before the first one.

python -m pipelines.check     run in the project, whose own stages it asks
"""

from dataclasses import dataclass
from importlib import import_module

from pipelines import repro
from stages.ingest import format_module
from stages.shared import decoders, runs, training
from stages.shared.params import load, read
from stages.shared.stage import WrongInput, stage

STAGES = {  # the sections that belong to one stage
    "ingest": "stages.ingest",
    "clean": "stages.clean",
    "chunk": "stages.chunk",
    "align": "stages.align",
    "embed": "stages.shared.embedding",
    "predict": "stages.predict",
    "evaluate": "stages.evaluate",
    "report": "stages.report.__main__",
}
SHARED = {"corpora", "formats", "decoders", "models", "runs", "training", "run"}


@dataclass(frozen=True)
class Corpus:
    kind: str
    format: str
    path: str


def main() -> None:
    """Raises WrongInput that names the first section with a fault, and all faults in it."""
    unknown = read().keys() - STAGES.keys() - SHARED
    if unknown:
        raise WrongInput(f"params.yaml: unknown section {', '.join(sorted(unknown))}: take it out")
    for section, module in STAGES.items():
        load(import_module(module).Params, section)
    load(decoders.Params, "decoders")
    load(training.Settings, "training")
    load(repro.Params, "run")
    for name, corpus in load(dict[str, Corpus], "corpora").items():
        load(format_module(corpus.format, name).Params, "formats", corpus.format)
    for run in load(dict[str, runs.Run], "runs").values():
        paper = runs.paper(run.model)
        load(paper.Network, "models", run.model, "network")
        load(paper.Preference, "models", run.model, "preference")


if __name__ == "__main__":
    with stage():
        main()
