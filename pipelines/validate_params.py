"""Read every section of params.yaml as its stage will, so that a slip shows before the first one.

python -m pipelines.validate_params     run in the project, whose own stages it asks
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, make_dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Literal, get_args

from pipelines.cli import write
from pipelines.cli.label import Params as Read
from pipelines.runner import dvc_repro
from stages import align, chunk, datasets, judge, models, train_classifier
from stages.augment import __main__ as augment
from stages.classify.config import Params as Label
from stages.evaluate import __main__ as evaluate
from stages.evaluate_classifier.common import Params as Score
from stages.illustrate import base as illustrators
from stages.ingest import __main__ as ingest
from stages.inpaint import __main__ as inpaint
from stages.predict import __main__ as predict
from stages.report import __main__ as report
from stages.shared.core.config import load, read
from stages.shared.data import parallel, text_cleaning
from stages.shared.encoders import extract
from stages.shared.generation import decoders
from stages.shared.generation import generator as generators
from stages.shared.modeling import registry
from stages.shared.runtime.stage import WrongInput, stage
from stages.shared.similarity import embedders
from stages.shared.training import loop as training_loop


@dataclass(frozen=True)
class Corpus:
    kind: Literal["articles", "captions", "tweets", "posts", "memes"]
    format: str
    path: str
    records: str
    pictures: str


def modules(package: ModuleType) -> dict[str, ModuleType]:
    """The files and folders of a folder of code, by name."""
    return {name: import_module(f"{package.__name__}.{name}") for name in names(package)}


def names(package: ModuleType) -> list[str]:
    return [module.name for module in iter_modules(package.__path__)]


def section(name: str, parts: Iterable[tuple[str, type]]) -> type:
    """A dataclass with one field for each part of a section."""
    return make_dataclass(name, sorted(parts), frozen=True)


FORMATS = {  # the rest of the folder belongs to one of them
    name: module for name, module in modules(datasets).items() if hasattr(module, "KINDS")
}
PAPERS = {name: registry.paper(name) for name in names(models)}
WRITE = [name for name, paper in PAPERS.items() if hasattr(paper, "Preference")]
READERS = {  # by model: what a row of readers holds
    name: module.Run for name, module in modules(train_classifier).items() if hasattr(module, "Run")
}


def numbers(paper: ModuleType) -> list[tuple[str, type]]:
    """The parts of a model's section; readers have no second phase."""
    preference = [("preference", paper.Preference)] if hasattr(paper, "Preference") else []
    return [("network", paper.Network), *preference]


MADE_BY = {"memes": ("04_augment", "04_augment")}  # records and pictures that models read
MODELS = {name: section(name, numbers(paper)) for name, paper in PAPERS.items()}
SECTIONS = {
    "corpora": dict[str, Corpus],
    "formats": section("formats", [(name, module.Params) for name, module in FORMATS.items()]),
    "ingest": ingest.Params,
    "clean": text_cleaning.Params,
    "inpaint": inpaint.Params,
    "engine": parallel.Params,
    "augment": augment.Params,
    "chunk": chunk.Params,
    "align": align.Params,
    "embed": extract.Params,
    "illustrate": illustrators.Params,
    "decoders": decoders.Params,
    "models": section("models", MODELS.items()),
    "writers": dict[str, generators.Run],
    "rewards": embedders.Params,
    "predict": predict.Params,
    "evaluate": evaluate.Params,
    "classify": Label,
    "evaluate_classifier": Score,
    "judge": judge.Params,
    "report": report.Params,
    "read": Read,
    "write": write.Params,
    "training": training_loop.Settings,
    "run": dvc_repro.Params,
}


def main() -> None:
    """Raises WrongInput that names the first section with a fault, and all faults in it."""
    unknown = [name for name in read() if name not in [*SECTIONS, "readers"]]
    if unknown:
        raise WrongInput(f"params.yaml: unknown section {', '.join(unknown)}: take it out")
    params = {name: load(kind, name) for name, kind in SECTIONS.items()}
    params["readers"] = reader_rows()
    check_corpora(params["corpora"])
    check_chunked(params["chunk"].corpora, params["align"].corpus, params["corpora"])
    check_memes(params["inpaint"].corpora, params["augment"].corpora, params["corpora"])
    at_least_one("writers and readers", params["writers"] | params["readers"])
    check_runs("writers", params["writers"], WRITE, params["corpora"])
    check_runs("readers", params["readers"], list(READERS), params["corpora"])
    check_sources(params["readers"], params["corpora"])


def reader_rows() -> dict[str, Any]:
    """The rows of readers, each as its own paper reads it. Raises WrongInput."""
    rows = {}
    for name in load(dict[str, Any], "readers"):
        model = load(str, "readers", name, "model")
        one_of(f"readers.{name}.model", model, READERS, "models of readers")
        rows[name] = load(READERS[model], "readers", name)
    return rows


def check_sources(rows: dict[str, Any], corpora: dict[str, Corpus]) -> None:
    """Raises WrongInput where a reader learns from other records or pictures than were embedded."""
    for name, run in rows.items():
        for what in ("records", "pictures"):
            embedded = getattr(corpora[run.corpus], what)
            if getattr(run, what) != embedded:
                raise WrongInput(
                    f"params.yaml: readers.{name}.{what} is {getattr(run, what)!r}, but those of "
                    f"{embedded!r} are embedded (corpora.{run.corpus}.{what}): make them equal"
                )


def check_memes(inpainted: list[str], augmented: list[str], corpora: dict[str, Corpus]) -> None:
    """Raises WrongInput unless stages 03 and 04 work on the corpora of memes, and on no other, and
    models read of each what the last one for its kind wrote."""
    known = [name for name, about in corpora.items() if about.kind == "memes"]
    for key, named in (("inpaint.corpora", inpainted), ("augment.corpora", augmented)):
        if named and not known:
            raise WrongInput(
                f"params.yaml: {key} names {', '.join(named)}, but no corpus is of kind memes: "
                "give [], or add its row to corpora"
            )
        for name in named:
            one_of(key, name, known, "corpora of kind memes")
        if lacking := [name for name in known if name not in named]:
            raise WrongInput(
                f"params.yaml: {key} lacks {', '.join(lacking)}, of kind memes: add it"
            )
    for name, about in corpora.items():
        records, pictures = MADE_BY.get(about.kind, ("02_clean", "01_ingest"))
        if (about.records, about.pictures) != (records, pictures):
            raise WrongInput(
                f"params.yaml: corpora.{name} has records of {about.records!r} and pictures of "
                f"{about.pictures!r}, but those of {about.kind} lie in {records} and {pictures}: "
                "give these"
            )


def check_corpora(corpora: dict[str, Corpus]) -> None:
    """Raises WrongInput where a corpus names no format of its kind, or no path that exists."""
    at_least_one("corpora", corpora)
    for name, corpus in corpora.items():
        one_of(f"corpora.{name}.format", corpus.format, FORMATS, "formats")
        kinds = FORMATS[corpus.format].KINDS
        one_of(f"corpora.{name}.kind", corpus.kind, kinds, f"kinds of format {corpus.format}")
        if not Path(corpus.path).exists():  # DVC asks for it even where the format draws its own
            raise WrongInput(
                f"params.yaml: corpora.{name}.path is {corpus.path!r}, which does not exist: "
                "put the corpus there, or name the folder that holds it"
            )


def check_runs(
    key: str,
    rows: dict[str, Any],
    papers: list[str],
    corpora: dict[str, Corpus],
) -> None:
    """Raises WrongInput where a run names none of these papers, or a corpus that its model cannot
    learn from."""
    for name, run in rows.items():
        one_of(f"{key}.{name}.model", run.model, papers, f"models of {key}")
        kinds = PAPERS[run.model].KINDS
        known = [corpus for corpus, about in corpora.items() if about.kind in kinds]
        one_of(f"{key}.{name}.corpus", run.corpus, known, f"corpora of kind {' or '.join(kinds)}")


def check_chunked(chunked: list[str], aligned: str, corpora: dict[str, Corpus]) -> None:
    """Raises WrongInput where a corpus is to be cut that cannot be, or the encoder of pictures has
    none to learn from, as where only tweets are left."""
    kinds = get_args(chunk.Kind)
    known = [name for name, about in corpora.items() if about.kind in kinds]
    if not known:
        raise WrongInput(
            f"params.yaml: align.corpus is {aligned!r}, but no corpus is of kind "
            f"{' or '.join(kinds)}: put the row of captions back (format sample is drawn, nothing "
            "to bring), and name it in chunk.corpora; the encoder of pictures learns from it"
        )
    for name in chunked:
        one_of("chunk.corpora", name, known, f"corpora of kind {' or '.join(kinds)}")
    one_of("align.corpus", aligned, known, f"corpora of kind {' or '.join(kinds)}")
    one_of("align.corpus", aligned, chunked, "chunk.corpora")


def at_least_one(key: str, rows: dict) -> None:
    if not rows:
        raise WrongInput(f"params.yaml: {key} have no row: put one back, e.g. from git")


def one_of(key: str, value: str, known: Collection[str], what: str) -> None:
    """Raises WrongInput unless the value at `key` names one of the known `what`."""
    if value not in known:
        choices = f"choose one of {' | '.join(known)}" if known else "there is none: add one"
        raise WrongInput(f"params.yaml: {key} is {value!r}, none of the {what}: {choices}")


if __name__ == "__main__":
    with stage():
        main()
