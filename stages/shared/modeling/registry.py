"""Models by their names in dvc.yaml and params.yaml, which are folders of stages/models."""

from importlib import import_module
from types import ModuleType

from stages.shared.runtime.stage import InputError


def load_paper(name: str) -> ModuleType:
    """The model module of one paper. Raises InputError if there is none of that name.

    It is imported by name, so that editing one paper does not retrain the others.
    """
    try:
        return import_module(f"stages.models.{name}.model")
    except ModuleNotFoundError as error:
        if error.name not in (f"stages.models.{name}", f"stages.models.{name}.model"):
            raise
        raise InputError(f"params.yaml: there is no model {name}: see stages/models") from None
