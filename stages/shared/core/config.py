"""params.yaml -> frozen dataclasses. A value lives in params.yaml or nowhere: no defaults."""

import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.shared.runtime.stage import InputError

T = TypeVar("T")
PARAMS_FILE = Path("params.yaml")


def read_params() -> dict[str, Any]:
    """The whole of params.yaml. Raises WrongInput if it is missing or not YAML."""
    try:
        values = YAML(typ="safe").load(PARAMS_FILE)  # YAML 1.2 as DVC writes it: 1e-05 is a number
    except FileNotFoundError:
        raise InputError(f"{PARAMS_FILE} is missing: run from the project's folder") from None
    except YAMLError as error:
        raise InputError(f"{PARAMS_FILE} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{PARAMS_FILE} holds no sections: restore it from git")
    return values


def load_config(kind: type[T], *section: str) -> T:
    """Fill the dataclass `kind` from one section, e.g. load(Params, "models", "flexmuse").

    Raises WrongInput that names every missing and unknown key, or the value of a wrong type.
    """
    values: Any = read_params()
    for depth, key in enumerate(section):
        if not isinstance(values, dict) or key not in values:
            given = ", ".join(values) if isinstance(values, dict) else "no section"
            above = ".".join(section[:depth]) or "the top level"
            raise InputError(f"{PARAMS_FILE}: {key} is missing in {above} (there: {given})")
        values = values[key]
    return build_config(kind, values, ".".join(section))


def build_config(kind: Any, value: Any, name: str) -> Any:
    """`value` (plain YAML) as `kind`: a dataclass, list, dict, union, Literal or scalar type.

    A dataclass that refuses its values with ValueError need not know its section's name.
    """
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _build_dataclass(kind, value, name)
    origin = get_origin(kind)
    if origin is list and isinstance(value, list):
        (inner,) = get_args(kind)
        return [build_config(inner, item, f"{name}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        _, inner = get_args(kind)
        return {key: build_config(inner, item, f"{name}.{key}") for key, item in value.items()}
    if origin is Literal:
        if value in get_args(kind):
            return value
        choices = " | ".join(map(str, get_args(kind)))
        raise InputError(f"{PARAMS_FILE}: {name} is {value!r}: choose one of {choices}")
    if origin in (Union, types.UnionType):
        return _build_union(get_args(kind), value, name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is None and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise InputError(f"{PARAMS_FILE}: {name} is {value!r}: give {expected}")


def _build_dataclass(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(
            f"{PARAMS_FILE}: {name} must be a section with {_field_names(fields(kind))}"
        )
    known, given = {field.name for field in fields(kind)}, set(value)
    if known != given:
        faults = [f"missing {key}" for key in sorted(known - given)]
        faults += [f"unknown {key}" for key in sorted(given - known, key=str)]
        raise InputError(f"{PARAMS_FILE}: {name}: {', '.join(faults)}")
    hints = get_type_hints(kind)
    values = {key: build_config(hints[key], value[key], f"{name}.{key}") for key in value}
    try:
        return kind(**values)
    except ValueError as fault:
        raise InputError(f"{PARAMS_FILE}: {name}: {fault}") from None


def raise_on_faults(faults: dict[str, bool]) -> None:
    """Raises ValueError that says those which are there."""
    if found := [fault for fault, here in faults.items() if here]:
        raise ValueError("; ".join(found))


def check_at_least(section: Any, **lowest: float) -> None:
    """Raises ValueError if one of these keys of a section lies below its lowest value."""
    given = {key: getattr(section, key) for key in lowest}
    raise_on_faults(
        {
            f"{key} is {value}: give {lowest[key]} or more": not value >= lowest[key]
            for key, value in given.items()
        }
    )


def check_between(section: Any, low: float, high: float, *keys: str) -> None:
    """Raises ValueError if one of these keys of a section lies outside of low to high."""
    given = {key: getattr(section, key) for key in keys}
    raise_on_faults(
        {
            f"{key} is {value}: give {low} to {high}": not low <= value <= high
            for key, value in given.items()
        }
    )


def check_fraction(section: Any, *keys: str) -> None:
    """Raises ValueError if one of these keys of a section is below 0, or is not below 1."""
    given = {key: getattr(section, key) for key in keys}
    raise_on_faults(
        {
            f"{key} is {value}: give 0 or more and less than 1": not 0 <= value < 1
            for key, value in given.items()
        }
    )


def _build_union(kinds: tuple, value: Any, name: str) -> Any:
    """`value` as the first of these types that takes it; the last one says what is wrong."""
    if value is None and types.NoneType in kinds:
        return None
    *first, last = [kind for kind in kinds if kind is not types.NoneType]
    for kind in first:
        try:
            return build_config(kind, value, name)
        except InputError:
            pass
    return build_config(last, value, name)


def _field_names(of: Any) -> str:
    return ", ".join(field.name for field in of)
