"""The models of the page, from names of runs, model folders and MLflow addresses."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.inference import model_bundle
from pipelines.inference.model_bundle import MODEL_DIRS, ModelFamily
from stages.shared.core.config import read_params
from stages.shared.runtime.stage import InputError

LAST_TRAINING_STAGES: dict[ModelFamily, str] = {
    "generators": "train_preference",
    "classifiers": "train_classifier",
}
TEXT_KINDS = {"entities": "tweets", "sentiment": "posts"}  # task of a classifier -> kind of corpus


@dataclass(frozen=True)
class ModelSource:
    """A model folder.

    name: on the page. model: the folder of stages/models. kind: of the corpora that such models are
    trained on. run, corpus: the row of params.yaml whose settings and examples are used; None if no
    row fits. phase, uri: as in `article.json`.
    """

    name: str
    folder: Path
    family: ModelFamily
    model: str
    kind: str
    run: str | None
    corpus: str | None
    phase: str | None
    uri: str | None


def find_sources(addresses: list[str], stack: ExitStack) -> list[ModelSource]:
    """The named models; without names all trained runs of params.yaml, in its order.

    stack: owns downloaded copies. Raises InputError for an unknown address or an untrained run.
    """
    params = read_params()
    if addresses:
        return [_find_source(address, params, stack) for address in dict.fromkeys(addresses)]
    return [
        _build_run_source(run, family, *trained, params)
        for family, dirs in MODEL_DIRS.items()
        for run in params.get(family) or {}
        if (trained := model_bundle.find_trained_dir(run, dirs))
    ]


def list_training_commands() -> list[str]:
    """The commands that train the runs of params.yaml."""
    params = read_params()
    return [
        format_training_command(run, family)
        for family in MODEL_DIRS
        for run in params.get(family) or {}
    ]


def format_training_command(run: str, family: ModelFamily) -> str:
    return f"polymuse run {LAST_TRAINING_STAGES[family]}@{run}"


def _find_source(address: str, params: dict[str, Any], stack: ExitStack) -> ModelSource:
    for family, dirs in MODEL_DIRS.items():
        if address in (params.get(family) or {}):
            if trained := model_bundle.find_trained_dir(address, dirs):
                return _build_run_source(address, family, *trained, params)
            command = format_training_command(address, family)
            raise InputError(f"{address} is not trained yet: run `{command}`")
    if not model_bundle.is_mlflow_uri(address) and not Path(address).is_dir():
        runs = [run for family in MODEL_DIRS for run in params.get(family) or {}]
        raise InputError(
            f"{address} is neither a run of params.yaml nor a model folder nor an MLflow address: "
            f"choose one of {' | '.join(runs) or 'none'}, or models:/NAME/VERSION"
        )
    folder, _ = model_bundle.resolve_model_dir("", address, {}, "", stack)
    config = _read_model_config(folder, address)
    family, kind = model_bundle.detect_family(config), config["kind"]
    run = _find_run(family, kind, config, params)
    corpus = params[family][run]["corpus"] if run else None
    uri = model_bundle.format_model_source(address) or address
    return ModelSource(uri, folder, family, config["model"], kind, run, corpus, None, uri)


def _build_run_source(
    run: str, family: ModelFamily, folder: Path, phase: str, params: dict[str, Any]
) -> ModelSource:
    config, corpus = _read_model_config(folder, str(folder)), params[family][run]["corpus"]
    return ModelSource(
        run, folder, family, config["model"], config["kind"], run, corpus, phase, None
    )


def _read_model_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json of a model, with the kind of its corpora added.

    name: of the folder in messages. Raises InputError if it has no valid config.json.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config | {"model": config["model"], "kind": _get_kind(config)}
    except FileNotFoundError:
        raise InputError(
            f"{name} holds no trained model: name a folder that a training stage wrote"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{name} cannot be loaded (damaged config.json): train it again") from None


def _get_kind(config: dict[str, Any]) -> str:
    """The kind of the corpora that a model with this config.json is trained on."""
    if model_bundle.is_meme_classifier(config):
        return "memes"
    if model_bundle.detect_family(config) == "classifiers":
        return TEXT_KINDS[config["shapes"]["task"]]
    return "articles" if config["topics"] else "captions"


def _find_run(
    family: ModelFamily, kind: str, config: dict[str, Any], params: dict[str, Any]
) -> str | None:
    """The first run with this model on a corpus of this kind, else None."""
    corpora = params.get("corpora") or {}
    for run, row in (params.get(family) or {}).items():
        fits = corpora.get(row["corpus"], {}).get("kind") == kind
        if fits and row["model"] == config["model"]:
            return run
    return None
