"""One paper, one file. A file's name is the model's name in dvc.yaml and params.yaml."""

from importlib import import_module
from types import ModuleType

from stages.shared.stage import WrongInput


def paper(name: str) -> ModuleType:
    """The module of one paper, by name: editing one paper must not retrain the others."""
    try:
        return import_module(f"stages.models.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"stages.models.{name}":
            raise
        raise WrongInput(f"params.yaml: no model is called {name}: see stages/models") from None
