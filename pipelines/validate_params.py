"""Read every section of params.yaml as its stage will, so that a slip shows before the first one.

python -m pipelines.validate_params     run in the project, whose own stages it asks
"""

from collections.abc import Collection, Iterable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Literal, get_args

from pipelines.cli import write
from pipelines.cli.label import LabelCommandConfig as Read
from pipelines.runner import dvc_repro
from stages import align, chunk, datasets, judge, models, train_classifier
from stages.augment import __main__ as augment
from stages.classify.config import ClassifyConfig as Label
from stages.evaluate import __main__ as evaluate
from stages.evaluate_classifier.common import EvaluateClassifierConfig as Score
from stages.illustrate import base as illustrators
from stages.ingest import __main__ as ingest
from stages.inpaint import __main__ as inpaint
from stages.predict import __main__ as predict
from stages.report import __main__ as report
from stages.shared.core.config import config_class, load_config, read_params
from stages.shared.data import parallel, text_cleaning
from stages.shared.encoders import extract
from stages.shared.generation import decoders
from stages.shared.generation import generator as generators
from stages.shared.modeling import registry
from stages.shared.runtime.stage import InputError, stage_process
from stages.shared.similarity import embedders
from stages.shared.training import loop as training_loop


@config_class
class CorpusConfig:
    kind: Literal["articles", "captions", "tweets", "posts", "memes"]
    format: str
    path: str
    records: str
    images: str


def import_modules(package: ModuleType) -> dict[str, ModuleType]:
    """The files and folders of a folder of code, by name."""
    return {name: import_module(f"{package.__name__}.{name}") for name in names(package)}


def names(package: ModuleType) -> list[str]:
    return [module.name for module in iter_modules(package.__path__)]


def make_section_class(name: str, parts: Iterable[tuple[str, type]]) -> type:
    """A config class with one field for each part of a section."""
    return config_class(type(name, (), {"__annotations__": dict(sorted(parts))}))


FORMATS = {  # the rest of the folder belongs to one of them
    name: module for name, module in import_modules(datasets).items() if hasattr(module, "KINDS")
}
MODEL_MODULES = {name: registry.load_paper(name) for name in names(models)}
GENERATOR_MODELS = [
    name for name, paper in MODEL_MODULES.items() if hasattr(paper, "PreferenceConfig")
]
CLASSIFIER_CONFIGS = {  # by model: what a row of readers holds
    name: module.RUN_CONFIG
    for name, module in import_modules(train_classifier).items()
    if hasattr(module, "RUN_CONFIG")
}


def list_section_parts(paper: ModuleType) -> list[tuple[str, type]]:
    """The parts of a model's section; readers have no second phase."""
    preference = (
        [("preference", paper.PreferenceConfig)] if hasattr(paper, "PreferenceConfig") else []
    )
    return [("network", paper.ModelConfig), *preference]


SOURCE_STAGES = {"memes": ("04_augment", "04_augment")}  # records and pictures that models read
MODEL_SECTIONS = {
    name: make_section_class(name, list_section_parts(paper))
    for name, paper in MODEL_MODULES.items()
}
SECTIONS = {
    "corpora": dict[str, CorpusConfig],
    "formats": make_section_class(
        "formats", [(name, module.CONFIG) for name, module in FORMATS.items()]
    ),
    "ingest": ingest.IngestConfig,
    "clean": text_cleaning.CleanConfig,
    "inpaint": inpaint.InpaintConfig,
    "parallel": parallel.EngineConfig,
    "augment": augment.AugmentConfig,
    "chunk": chunk.ChunkConfig,
    "align": align.AlignConfig,
    "embed": extract.EmbedConfig,
    "illustrate": illustrators.IllustrateConfig,
    "decoders": decoders.DecoderConfig,
    "models": make_section_class("models", MODEL_SECTIONS.items()),
    "generators": dict[str, generators.GeneratorRun],
    "rewards": embedders.RewardConfig,
    "predict": predict.PredictConfig,
    "evaluate": evaluate.EvaluateConfig,
    "classify": Label,
    "evaluate_classifier": Score,
    "judge": judge.JudgeConfig,
    "report": report.ReportConfig,
    "cli_label": Read,
    "cli_write": write.WriteCommandConfig,
    "training": training_loop.TrainingConfig,
    "run": dvc_repro.RunnerConfig,
}


def main() -> None:
    """Raises WrongInput that names the first section with a fault, and all faults in it."""
    unknown = [name for name in read_params() if name not in [*SECTIONS, "classifiers"]]
    if unknown:
        raise InputError(f"params.yaml: unknown section {', '.join(unknown)}: take it out")
    params = {name: load_config(kind, name) for name, kind in SECTIONS.items()}
    params["classifiers"] = load_classifier_configs()
    check_corpora(params["corpora"])
    check_chunk_corpora(params["chunk"].corpora, params["align"].corpus, params["corpora"])
    check_meme_corpora(params["inpaint"].corpora, params["augment"].corpora, params["corpora"])
    require_rows("generators and classifiers", params["generators"] | params["classifiers"])
    check_runs("generators", params["generators"], GENERATOR_MODELS, params["corpora"])
    check_runs("classifiers", params["classifiers"], list(CLASSIFIER_CONFIGS), params["corpora"])
    check_sources(params["classifiers"], params["corpora"])


def load_classifier_configs() -> dict[str, Any]:
    """The rows of readers, each as its own paper reads it. Raises WrongInput."""
    rows = {}
    for name in load_config(dict[str, Any], "classifiers"):
        model = load_config(str, "classifiers", name, "model")
        require_choice(
            f"classifiers.{name}.model", model, CLASSIFIER_CONFIGS, "models of classifiers"
        )
        rows[name] = load_config(CLASSIFIER_CONFIGS[model], "classifiers", name)
    return rows


def check_sources(rows: dict[str, Any], corpora: dict[str, CorpusConfig]) -> None:
    """Raises WrongInput where a reader learns from other records or pictures than were embedded."""
    for name, run in rows.items():
        for what in ("records", "images"):
            embedded = getattr(corpora[run.corpus], what)
            if getattr(run, what) != embedded:
                raise InputError(
                    f"params.yaml: classifiers.{name}.{what} is {getattr(run, what)!r}, but those of "
                    f"{embedded!r} are embedded (corpora.{run.corpus}.{what}): make them equal"
                )


def check_meme_corpora(
    inpainted: list[str], augmented: list[str], corpora: dict[str, CorpusConfig]
) -> None:
    """Raises WrongInput unless stages 03 and 04 work on the corpora of memes, and on no other, and
    models read of each what the last one for its kind wrote."""
    known = [name for name, about in corpora.items() if about.kind == "memes"]
    for key, named in (("inpaint.corpora", inpainted), ("augment.corpora", augmented)):
        if named and not known:
            raise InputError(
                f"params.yaml: {key} names {', '.join(named)}, but no corpus is of kind memes: "
                "give [], or add its row to corpora"
            )
        for name in named:
            require_choice(key, name, known, "corpora of kind memes")
        if lacking := [name for name in known if name not in named]:
            raise InputError(
                f"params.yaml: {key} lacks {', '.join(lacking)}, of kind memes: add it"
            )
    for name, about in corpora.items():
        records, pictures = SOURCE_STAGES.get(about.kind, ("02_clean", "01_ingest"))
        if (about.records, about.images) != (records, pictures):
            raise InputError(
                f"params.yaml: corpora.{name} has records of {about.records!r} and pictures of "
                f"{about.images!r}, but those of {about.kind} lie in {records} and {pictures}: "
                "give these"
            )


def check_corpora(corpora: dict[str, CorpusConfig]) -> None:
    """Raises WrongInput where a corpus names no format of its kind, or no path that exists."""
    require_rows("corpora", corpora)
    for name, corpus in corpora.items():
        require_choice(f"corpora.{name}.format", corpus.format, FORMATS, "formats")
        kinds = FORMATS[corpus.format].KINDS
        require_choice(
            f"corpora.{name}.kind", corpus.kind, kinds, f"kinds of format {corpus.format}"
        )
        if not Path(corpus.path).exists():  # DVC asks for it even where the format draws its own
            raise InputError(
                f"params.yaml: corpora.{name}.path is {corpus.path!r}, which does not exist: "
                "put the corpus there, or name the folder that holds it"
            )


def check_runs(
    key: str,
    rows: dict[str, Any],
    papers: list[str],
    corpora: dict[str, CorpusConfig],
) -> None:
    """Raises WrongInput where a run names none of these papers, or a corpus that its model cannot
    learn from."""
    for name, run in rows.items():
        require_choice(f"{key}.{name}.model", run.model, papers, f"models of {key}")
        kinds = MODEL_MODULES[run.model].KINDS
        known = [corpus for corpus, about in corpora.items() if about.kind in kinds]
        require_choice(
            f"{key}.{name}.corpus", run.corpus, known, f"corpora of kind {' or '.join(kinds)}"
        )


def check_chunk_corpora(chunked: list[str], aligned: str, corpora: dict[str, CorpusConfig]) -> None:
    """Raises WrongInput where a corpus is to be cut that cannot be, or the encoder of pictures has
    none to learn from, as where only tweets are left."""
    kinds = get_args(chunk.ChunkableKind)
    known = [name for name, about in corpora.items() if about.kind in kinds]
    if not known:
        raise InputError(
            f"params.yaml: align.corpus is {aligned!r}, but no corpus is of kind "
            f"{' or '.join(kinds)}: put the row of captions back (format sample is drawn, nothing "
            "to bring), and name it in chunk.corpora; the encoder of pictures learns from it"
        )
    for name in chunked:
        require_choice("chunk.corpora", name, known, f"corpora of kind {' or '.join(kinds)}")
    require_choice("align.corpus", aligned, known, f"corpora of kind {' or '.join(kinds)}")
    require_choice("align.corpus", aligned, chunked, "chunk.corpora")


def require_rows(key: str, rows: dict) -> None:
    if not rows:
        raise InputError(f"params.yaml: {key} have no row: put one back, e.g. from git")


def require_choice(key: str, value: str, known: Collection[str], what: str) -> None:
    """Raises WrongInput unless the value at `key` names one of the known `what`."""
    if value not in known:
        choices = f"choose one of {' | '.join(known)}" if known else "there is none: add one"
        raise InputError(f"params.yaml: {key} is {value!r}, none of the {what}: {choices}")


if __name__ == "__main__":
    with stage_process():
        main()
