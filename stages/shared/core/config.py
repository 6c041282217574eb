"""params.yaml -> frozen, validated configs. A value lives in a file or nowhere: no defaults in code.

A config class stands beside the code that it configures:

    @config_class
    class CleanConfig:
        unicode_form: Literal["NFKC", "NFC"] = Field(description="Unicode normalization form")
        max_length: int = Field(ge=1, description="characters")

`load_config(CleanConfig, "clean")` reads the section `clean`. Unknown and missing keys, wrong types
and values out of range stop the run with one sentence that names them all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.shared.runtime.stage import InputError

__all__ = ["Field", "build_config", "config_class", "load_config", "read_params"]

T = TypeVar("T")
PARAMS_FILE = Path("params.yaml")
_TYPES = {  # pydantic's error types -> what to give
    "int_type": "int",
    "int_from_float": "int",
    "float_type": "float",
    "bool_type": "bool",
    "string_type": "str",
    "none_required": "null",
    "list_type": "a list",
    "dict_type": "a section",
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "{le:g} or less",
    "less_than": "less than {lt:g}",
}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def config_class(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values are validated: strict types, bounds of `Field`, no extra key.

    `dataclasses.asdict`, `replace` and `fields` work on it.
    """
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic_dataclass(frozen=True, kw_only=True, config=strict)(cls)


def read_params() -> dict[str, Any]:
    """All sections of params.yaml. Raises InputError if it is missing or not valid YAML."""
    try:
        values = YAML(typ="safe").load(PARAMS_FILE)  # YAML 1.2, like DVC: 1e-05 is a number
    except FileNotFoundError:
        raise InputError(f"{PARAMS_FILE} is missing: run from the project's folder") from None
    except YAMLError as error:
        raise InputError(f"{PARAMS_FILE} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{PARAMS_FILE} holds no sections: restore it from git")
    return values


def load_config(kind: type[T], *section: str) -> T:
    """Build the config `kind` from one section, e.g. load_config(ModelConfig, "models", "flexmuse").

    Raises InputError that names every missing or unknown key and every wrong value.
    """
    values: Any = read_params()
    for depth, key in enumerate(section):
        if not isinstance(values, dict) or key not in values:
            present = ", ".join(values) if isinstance(values, dict) else "no section"
            parent = ".".join(section[:depth]) or "the top level"
            raise InputError(f"{PARAMS_FILE}: {key} is missing in {parent} (there: {present})")
        values = values[key]
    return build_config(kind, values, ".".join(section))


def build_config(kind: type[T], value: Any, name: str) -> T:
    """`value` (plain YAML or JSON) as `kind`: a config class, or any type that pydantic knows.

    name: the dotted path of `value`, for messages. Raises InputError.
    """
    try:  # as JSON: a strict validation of Python values would want instances of config classes
        return _adapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        raise InputError(f"{PARAMS_FILE}: {_describe(error, value, name)}") from None


@cache
def _adapter(kind: Any) -> TypeAdapter:
    strict = None if hasattr(kind, "__pydantic_config__") else ConfigDict(strict=True)
    return TypeAdapter(kind, config=strict)


def _describe(error: ValidationError, value: Any, name: str) -> str:
    """All faults in one sentence: keys by section first, then values."""
    keys: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    for fault in error.errors(include_url=False):
        path = _real_path(fault["loc"], value)
        if fault["type"] in ("missing", "unexpected_keyword_argument"):
            verb = "missing" if fault["type"] == "missing" else "unknown"
            *parent, key = fault["loc"]
            keys.setdefault(_dotted(name, parent), []).append(f"{verb} {key}")
        elif fault["type"] == "value_error":
            values.setdefault(_dotted(name, path), []).append(f": {fault['ctx']['error']}")
        else:
            place = _dotted(name, path)
            values.setdefault(place, []).append(_expected(fault, place))
    told = [f"{place}: {', '.join(sorted(found))}" for place, found in keys.items()]
    for place, found in values.items():
        first, *others = dict.fromkeys(found)
        told.append(place + first + "".join(f" or {_without_value(other)}" for other in others))
    return "; ".join(told)


def _expected(fault: Any, place: str) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in ("dataclass_type", "dataclass_exact_type"):
        return f" must be a section, not {fault['input']!r}"
    if kind == "literal_error":
        choices = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        wanted = f"choose one of {' | '.join(choices)}"
    elif kind in _BOUNDS:
        wanted = f"give {_BOUNDS[kind].format(**context)}"
    else:
        wanted = f"give {_TYPES.get(kind, fault['msg'])}"
    return f" is {fault['input']!r}: {wanted}"


def _without_value(said: str) -> str:
    return said.rpartition(": ")[2].removeprefix("give ")


def _real_path(location: Sequence[str | int], value: Any) -> list[str | int]:
    """`location` as far as it leads through `value`: pydantic adds names of a union's types."""
    path: list[str | int] = []
    for key in location:
        inside = isinstance(value, Mapping) and key in value
        if not inside and not (isinstance(value, list) and isinstance(key, int)):
            break
        value = value[key]
        path.append(key)
    return path


def _dotted(name: str, path: Sequence[str | int]) -> str:
    return name + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


def field_names(kind: Any) -> list[str]:
    """The keys of a section."""
    return [field.name for field in fields(kind)]


def raise_on_faults(faults: dict[str, bool]) -> None:
    """Raises ValueError that names those that are there."""
    if found := [fault for fault, here in faults.items() if here]:
        raise ValueError("; ".join(found))
