"""The model of a paper by its name in dvc.yaml and params.yaml: a folder of stages/models."""

from importlib import import_module
from types import ModuleType

from stages.shared.runtime.stage import InputError


def load_paper(name: str) -> ModuleType:
    """The module of one paper, by name: editing one paper must not retrain the others."""
    try:
        return import_module(f"stages.models.{name}.model")
    except ModuleNotFoundError as error:
        if error.name not in (f"stages.models.{name}", f"stages.models.{name}.model"):
            raise
        raise InputError(f"params.yaml: no model is called {name}: see stages/models") from None
