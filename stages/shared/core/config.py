"""Load sections of params.yaml as frozen, validated configs. There are no defaults in code.

A config class is defined next to the code that it configures:

    @config_class
    class CleanConfig:
        unicode_form: Literal["NFKC", "NFC"] = Field(description="Unicode normalization form")
        max_length: int = Field(ge=1, description="characters")

`load_config(CleanConfig, "clean")` reads the section `clean`. Unknown or missing keys, wrong types
and values out of range raise InputError, whose message names them all.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform, overload

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.shared.runtime.stage import InputError

__all__ = ["Field", "build_config", "config_class", "load_config", "read_params"]

T = TypeVar("T")
PARAMS_FILE = Path("params.yaml")
CURRENT_FOLDER = Path()
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
    """Make `cls` a frozen, keyword-only dataclass with validated fields and no extra keys.

    Types are strict, but an int is accepted as a float; `Field` adds bounds and a description.
    `asdict`, `replace` and `fields` of dataclasses work on it.
    """
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    make = pydantic_dataclass(frozen=True, kw_only=True, config=strict)
    return make(cls)  # pyright: ignore[reportReturnType] (typed as a protocol of pydantic)


def params_files(folder: Path = CURRENT_FOLDER) -> list[Path]:
    """params.yaml, which holds what users tune, then the other parameter files in config/.

    folder: of the project
    """
    return [folder / PARAMS_FILE, *sorted((folder / "config").glob("*.yaml"))]


def read_params(folder: Path = CURRENT_FOLDER) -> dict[str, Any]:
    """The sections of all parameter files of the project in `folder`, merged.

    Raises InputError if a file is missing or not valid YAML, or if two files set the same key.
    """
    first, *others = params_files(folder)
    params = _read_file(first)
    for file in others:
        _merge(params, _read_file(file), file, "")
    return params


def _read_file(file: Path) -> dict[str, Any]:
    try:
        values = deepcopy(_parse_yaml(file.read_bytes()))
    except FileNotFoundError:
        raise InputError(f"{file} is missing: run from the project's folder") from None
    except YAMLError as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} holds no sections: restore it from git")
    return values


@lru_cache(maxsize=32)
def _parse_yaml(content: bytes) -> Any:
    """The values of a file, which takes 50 ms; callers must not change them."""
    return YAML(typ="safe").load(content)  # YAML 1.2, as in DVC: 1e-05 is a number


def _merge(params: dict[str, Any], other: dict[str, Any], file: Path, parent: str) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(params.get(key), dict):
            _merge(params[key], value, file, f"{parent}{key}.")
        elif key in params:
            raise InputError(f"{file}: {parent}{key} is set in another parameter file too")
        else:
            params[key] = value


@overload
def load_config(kind: type[T], *section: str, folder: Path = CURRENT_FOLDER) -> T: ...
@overload
def load_config(kind: object, *section: str, folder: Path = CURRENT_FOLDER) -> Any: ...
def load_config(kind: Any, *section: str, folder: Path = CURRENT_FOLDER) -> Any:
    """The section at a path of keys as `kind`, e.g. load_config(Schedule, "align", "schedule").

    folder: of the project. Raises InputError that names every missing or unknown key and every
    wrong value.
    """
    values: Any = read_params(folder)
    for depth, key in enumerate(section):
        if not isinstance(values, dict) or key not in values:
            present = ", ".join(values) if isinstance(values, dict) else "no section"
            parent = ".".join(section[:depth]) or "the top level"
            file = params_file_of(".".join(section[:depth]), folder)
            raise InputError(f"{file}: {key} is missing in {parent} (there: {present})")
        values = values[key]
    return build_config(kind, values, ".".join(section), folder)


def build_config(kind: type[T], value: Any, name: str, folder: Path = CURRENT_FOLDER) -> T:
    """Validate `value` (plain YAML or JSON) as `kind`: a config class or another type of pydantic.

    name: the dotted path of `value` in the parameter files, or the file that holds it (with its
    folder), for messages. folder: of the project. Raises InputError.
    """
    try:  # as JSON: strict validation of Python values rejects dicts for nested config classes
        return _adapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        file = "" if ".json" in name else f"{params_file_of(name, folder)}: "
        raise InputError(f"{file}{_describe(error, value, name)}") from None


def params_file_of(name: str, folder: Path = CURRENT_FOLDER) -> Path:
    """The parameter file that has the most of a dotted path of keys; params.yaml if several do.

    folder: of the project
    """
    section = name.split(".")

    def depth(file: Path) -> int:
        values: Any = _read_file(file)
        for number, key in enumerate(section):
            if not isinstance(values, dict) or key not in values:
                return number
            values = values[key]
        return len(section)

    files = [file for file in params_files(folder) if file.exists()]
    return max(files, key=depth, default=folder / PARAMS_FILE)


@cache
def _adapter(kind: Any) -> TypeAdapter:
    strict = None if hasattr(kind, "__pydantic_config__") else ConfigDict(strict=True)
    return TypeAdapter(kind, config=strict)


def _describe(error: ValidationError, value: Any, name: str) -> str:
    """All errors in one sentence: missing and unknown keys by section, then wrong values."""
    keys: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    for details in error.errors(include_url=False):
        path = _real_path(details["loc"], value)
        if details["type"] in ("missing", "unexpected_keyword_argument"):
            problem = "missing" if details["type"] == "missing" else "unknown"
            *parent, key = details["loc"]
            keys.setdefault(_dotted(name, parent), []).append(f"{problem} {key}")
        elif details["type"] == "value_error":
            problem = details.get("ctx", {}).get("error")
            values.setdefault(_dotted(name, path), []).append(f": {problem}")
        else:
            values.setdefault(_dotted(name, path), []).append(_describe_value(details))
    sentences = [f"{section}: {', '.join(sorted(listed))}" for section, listed in keys.items()]
    for place, messages in values.items():  # several for one value that fits no type of a union
        first, *more = dict.fromkeys(messages)
        sentences.append(place + first + "".join(f" or {_without_value(text)}" for text in more))
    return "; ".join(sentences)


def _describe_value(details: Any) -> str:
    """What is wrong with a value and what to give, e.g. ` is 0: give 1 or more`."""
    kind, context = details["type"], details.get("ctx", {})
    if kind in ("dataclass_type", "dataclass_exact_type"):
        return f" must be a section, not {details['input']!r}"
    if kind == "literal_error":
        choices = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        fix = f"choose one of {' | '.join(choices)}"
    elif kind in _BOUNDS:
        fix = f"give {_BOUNDS[kind].format(**context)}"
    else:
        fix = f"give {_TYPES.get(kind, details['msg'])}"
    return f" is {details['input']!r}: {fix}"


def _without_value(message: str) -> str:
    return message.rpartition(": ")[2].removeprefix("give ")


def _real_path(location: Sequence[str | int], value: Any) -> list[str | int]:
    """The part of `location` that exists in `value`: pydantic appends the types of a union."""
    path: list[str | int] = []
    for key in location:
        children = _children(value)
        if key not in children:
            break
        value = children[key]
        path.append(key)
    return path


def _children(value: Any) -> Mapping[Any, Any]:
    """The values in a section by key or in a list by index; none in a plain value."""
    if isinstance(value, list):
        return dict(enumerate(value))
    return value if isinstance(value, Mapping) else {}


def _dotted(name: str, path: Sequence[str | int]) -> str:
    return name + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
