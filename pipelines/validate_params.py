"""Validate params.yaml: every section as its stage reads it, and references between sections.

python -m pipelines.validate_params     in the project's folder, with the project's own stages
"""

from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Literal, get_args

from pipelines import renamed_keys
from pipelines.cli import write
from pipelines.cli.label import LabelCommandConfig
from pipelines.cli.serve_llm import ServeLLMConfig
from pipelines.demo.config import DemoConfig
from pipelines.runner import dvc_repro
from stages import chunk, datasets, judge, models, train_classifier
from stages.align import __main__ as align
from stages.augment import __main__ as augment
from stages.classify.config import ClassifyConfig
from stages.evaluate import __main__ as evaluate
from stages.evaluate_classifier.common import EvaluateClassifierConfig
from stages.fit_baselines.config import FitBaselinesConfig
from stages.illustrate import base as illustrators
from stages.ingest import __main__ as ingest
from stages.inpaint import __main__ as inpaint
from stages.predict import __main__ as predict
from stages.report import __main__ as report
from stages.shared.core.config import Field, config_class, load_config, read_params
from stages.shared.data import parallel, text_cleaning
from stages.shared.encoders import extract, locked_towers
from stages.shared.generation import decoders
from stages.shared.generation import generator as generators
from stages.shared.modeling import registry
from stages.shared.runtime.stage import InputError, stage_process
from stages.shared.similarity import embedders
from stages.shared.training import loop as training_loop


@config_class
class CorpusConfig:
    """A row of `corpora`."""

    kind: Literal["articles", "captions", "tweets", "posts", "memes"] = Field(
        description="kind of the records"
    )
    format: str = Field(description="a package of stages/datasets")
    path: str = Field(description="folder with the files; not read by synthetic")
    records: str = Field(description="folder of data/ with the records that are embedded")
    images: str = Field(description="folder of data/ with the images that are embedded")


def import_modules(package: ModuleType) -> dict[str, ModuleType]:
    """The modules and subpackages of a package, by name."""
    return {name: import_module(f"{package.__name__}.{name}") for name in list_modules(package)}


def list_modules(package: ModuleType) -> list[str]:
    return [module.name for module in iter_modules(package.__path__)]


def make_section_class(name: str, parts: Iterable[tuple[str, Any]]) -> type:
    """A config class with one field for each (name, type) of a section."""
    return config_class(type(name, (), {"__annotations__": dict(sorted(parts))}))


FORMATS = {  # the other subpackages are helpers of formats
    name: module for name, module in import_modules(datasets).items() if hasattr(module, "KINDS")
}
MODEL_MODULES = {name: registry.load_paper(name) for name in list_modules(models)}
GENERATOR_MODELS = [
    name for name, paper in MODEL_MODULES.items() if hasattr(paper, "PreferenceConfig")
]
CLASSIFIER_CONFIGS = {  # model -> config class of its rows in `classifiers`
    name: module.RUN_CONFIG
    for name, module in import_modules(train_classifier).items()
    if hasattr(module, "RUN_CONFIG")
}


def list_section_parts(paper: ModuleType) -> list[tuple[str, type]]:
    """The parts of a model's section; only generators have a preference phase."""
    preference = (
        [("preference", paper.PreferenceConfig)] if hasattr(paper, "PreferenceConfig") else []
    )
    return [("network", paper.ModelConfig), *preference]


SOURCE_FOLDERS = {"memes": ("04_augment", "04_augment")}  # kind -> folders of records and images
DEFAULT_SOURCE_FOLDERS = ("02_clean", "01_ingest")
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
    "fit_baselines": FitBaselinesConfig,
    "classify": ClassifyConfig,
    "evaluate_classifier": EvaluateClassifierConfig,
    "judge": judge.JudgeConfig,
    "report": report.ReportConfig,
    "cli_demo": DemoConfig,
    "cli_label": LabelCommandConfig,
    "cli_serve_llm": ServeLLMConfig,
    "cli_write": write.WriteCommandConfig,
    "training": training_loop.TrainingConfig,
    "run": dvc_repro.RunnerConfig,
}


def main() -> None:
    """Validate params.yaml. Raises InputError that names all errors of the first wrong section."""
    values = read_params()
    renamed_keys.check_names(values)
    unknown = [name for name in values if name not in [*SECTIONS, "classifiers"]]
    if unknown:
        raise InputError(f"params.yaml: unknown section {', '.join(unknown)}: remove it")
    params = {name: load_config(kind, name) for name, kind in SECTIONS.items()}
    params["classifiers"] = load_classifier_configs()
    check_corpora(params["corpora"])
    check_chunk_corpora(params["chunk"].corpora, params["align"].corpus, params["corpora"])
    check_one_text_corpora(params["chunk"], params["corpora"])
    check_aligned_corpora(params["align"].encoder, params["align"].corpora, params["corpora"])
    check_meme_corpora(params["inpaint"].corpora, params["augment"].corpora, params["corpora"])
    require_rows("generators and classifiers", params["generators"] | params["classifiers"])
    check_runs("generators", params["generators"], GENERATOR_MODELS, params["corpora"])
    check_runs("classifiers", params["classifiers"], list(CLASSIFIER_CONFIGS), params["corpora"])
    check_sources(params["classifiers"], params["corpora"])
    check_published_memes(
        params["report"].published, params["classifiers"], params["inpaint"], params["augment"]
    )


def load_classifier_configs() -> dict[str, Any]:
    """The rows of `classifiers`, each as the config class of its model. Raises InputError."""
    rows = {}
    for name in load_config(dict[str, Any], "classifiers"):
        model = load_config(str, "classifiers", name, "model")
        require_choice(
            f"classifiers.{name}.model", model, CLASSIFIER_CONFIGS, "models of classifiers"
        )
        rows[name] = load_config(CLASSIFIER_CONFIGS[model], "classifiers", name)
    return rows


def check_sources(rows: dict[str, Any], corpora: dict[str, CorpusConfig]) -> None:
    """Raises InputError if a classifier uses other records or images than those embedded."""
    for name, run in rows.items():
        for key in ("records", "images"):
            value, embedded = getattr(run, key), getattr(corpora[run.corpus], key)
            if value != embedded:
                raise InputError(
                    f"params.yaml: classifiers.{name}.{key} is {value!r}, but {embedded!r} is "
                    f"embedded (corpora.{run.corpus}.{key}): make them equal"
                )


def check_meme_corpora(
    inpainted: list[str], augmented: list[str], corpora: dict[str, CorpusConfig]
) -> None:
    """Raises InputError unless inpaint and augment process all corpora of memes and no others,
    and each corpus names the output folders of the last stage for its kind."""
    meme_corpora = [name for name, corpus in corpora.items() if corpus.kind == "memes"]
    for key, names in (("inpaint.corpora", inpainted), ("augment.corpora", augmented)):
        if names and not meme_corpora:
            raise InputError(
                f"params.yaml: {key} names {', '.join(names)}, but no corpus is of kind memes: "
                "give [], or add its row to corpora"
            )
        for name in names:
            require_choice(key, name, meme_corpora, "corpora of kind memes")
        if missing := [name for name in meme_corpora if name not in names]:
            raise InputError(
                f"params.yaml: {key} lacks {', '.join(missing)}, of kind memes: add it"
            )
    for name, corpus in corpora.items():
        records, images = SOURCE_FOLDERS.get(corpus.kind, DEFAULT_SOURCE_FOLDERS)
        if (corpus.records, corpus.images) != (records, images):
            raise InputError(
                f"params.yaml: corpora.{name} has records {corpus.records!r} and images "
                f"{corpus.images!r}, but a corpus of {corpus.kind} needs {records!r} and "
                f"{images!r}: set these"
            )


def check_corpora(corpora: dict[str, CorpusConfig]) -> None:
    """Raises InputError if a corpus has an unknown format, a wrong kind or a missing path."""
    require_rows("corpora", corpora)
    for name, corpus in corpora.items():
        require_choice(f"corpora.{name}.format", corpus.format, FORMATS, "formats")
        kinds = FORMATS[corpus.format].KINDS
        require_choice(
            f"corpora.{name}.kind", corpus.kind, kinds, f"kinds of format {corpus.format}"
        )
        if not Path(corpus.path).exists():  # a dependency in DVC even if the format is synthetic
            raise InputError(
                f"params.yaml: corpora.{name}.path is {corpus.path!r}, which does not exist: "
                "put the corpus there, name the folder that holds it, or run `dvc pull` if DVC "
                "tracks it"
            )


def check_runs(
    section: str,
    rows: dict[str, Any],
    known_models: list[str],
    corpora: dict[str, CorpusConfig],
) -> None:
    """Raises InputError if a run has an unknown model, or a corpus of a kind it cannot use."""
    for name, run in rows.items():
        require_choice(f"{section}.{name}.model", run.model, known_models, f"models of {section}")
        kinds = MODEL_MODULES[run.model].KINDS
        usable = [key for key, corpus in corpora.items() if corpus.kind in kinds]
        require_choice(
            f"{section}.{name}.corpus", run.corpus, usable, f"corpora of kind {' or '.join(kinds)}"
        )


def check_chunk_corpora(chunked: list[str], aligned: str, corpora: dict[str, CorpusConfig]) -> None:
    """Raises InputError if chunk.corpora has a corpus of another kind, or align.corpus is not one
    of chunk.corpora."""
    kinds = get_args(chunk.ChunkableKind)
    known = [name for name, corpus in corpora.items() if corpus.kind in kinds]
    if not known:
        raise InputError(
            f"params.yaml: align.corpus is {aligned!r}, but no corpus is of kind "
            f"{' or '.join(kinds)}: put the row of captions back (its format synthetic needs no "
            "files) and name it in chunk.corpora; the encoder is trained on it"
        )
    for name in chunked:
        require_choice("chunk.corpora", name, known, f"corpora of kind {' or '.join(kinds)}")
    require_choice("align.corpus", aligned, known, f"corpora of kind {' or '.join(kinds)}")
    require_choice("align.corpus", aligned, chunked, "chunk.corpora")


def check_one_text_corpora(config: chunk.ChunkConfig, corpora: dict[str, CorpusConfig]) -> None:
    """Raises InputError if chunk.one_text_corpora has a corpus without chunks or no articles."""
    articles = [name for name in config.corpora if corpora[name].kind == "articles"]
    for name in config.one_text_corpora:
        require_choice(
            "chunk.one_text_corpora", name, articles, "corpora of kind articles in chunk.corpora"
        )


def check_aligned_corpora(
    encoder: str, aligned: list[str], corpora: dict[str, CorpusConfig]
) -> None:
    """Raises InputError unless align.corpora names corpora exactly if the encoder needs them."""
    for name in aligned:
        require_choice("align.corpora", name, corpora, "corpora")
    if (encoder == locked_towers.KIND) != bool(aligned):
        fix = (
            "set []"
            if aligned
            else "name the corpora whose image-text pairs align it with its text encoder, such as "
            "[captions]"
        )
        raise InputError(
            f"params.yaml: align.corpora is {aligned!r}, but align.encoder is {encoder!r}: {fix}"
        )


def check_published_memes(
    published: Mapping[str, str | None],
    classifiers: Mapping[str, Any],
    inpainting: inpaint.InpaintConfig,
    augmentation: augment.AugmentConfig,
) -> None:
    """Raises InputError if MM-ORIENT, compared with published scores, reads data of a stand-in.

    The preset of the paper names the scores. The rules change a few words of a meme and Telea fills
    a mask from its border, where the paper has a language model and a network for inpainting.
    """
    compared = [
        name
        for name, run in classifiers.items()
        if run.model == "mm_orient" and published.get(name)
    ]
    stand_ins = {
        "augment.backend": (augmentation.backend, "rules", "none or openai:MODEL"),
        "inpaint.inpainting.backend": (inpainting.inpainting.backend, "telea", "none or lama"),
    }
    for key, (backend, stand_in, others) in stand_ins.items():
        if compared and backend == stand_in:
            raise InputError(
                f"params.yaml: {key} is {stand_in}, which is not the method of the paper whose "
                f"scores report.published compares with {compared[0]}: set it to {others}, or "
                f"report.published.{compared[0]} to null"
            )


def require_rows(section: str, rows: dict) -> None:
    if not rows:
        raise InputError(f"params.yaml: {section} have no row: put one back, e.g. from git")


def require_choice(key: str, value: str, known: Collection[str], description: str) -> None:
    """Raises InputError unless `value`, the value at `key`, is one of the known ones."""
    if value not in known:
        choices = f"choose one of {' | '.join(known)}" if known else "there is none: add one"
        raise InputError(f"params.yaml: {key} is {value!r}, none of the {description}: {choices}")


if __name__ == "__main__":
    with stage_process():
        main()
