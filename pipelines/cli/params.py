"""`polymuse params`: each value of params.yaml with its meaning, and a JSON schema for editors.

reads   params.yaml, and the descriptions in the config classes
writes  with --schema a JSON schema that editors use to complete and check params.yaml
"""

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.dataclasses import is_pydantic_dataclass

from pipelines import renamed_keys, validate_params
from stages.shared.core.config import PARAMS_FILE, read_params
from stages.shared.runtime.stage import InputError

MAX_VALUE_LENGTH = 40  # characters of a value in the table; longer ones are shortened
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
ParamRow = tuple[str, str, str]  # dotted key, value, meaning


def main(options: Namespace) -> None:
    """Print the table or write the schema. Raises InputError for an unknown section."""
    if options.schema:
        write_schema(options.schema)
    else:
        print(format_rows(list_params(options.section or "")))


def list_params(section: str) -> list[ParamRow]:
    """The values of params.yaml at and below `section`, a dotted path; of all sections if empty.

    Raises InputError if params.yaml has no such section.
    """
    params = read_params()
    renamed_keys.check_names(params)
    rows = [
        row
        for name, value in params.items()
        for row in describe_values(name, value, find_type(name, value), "")
    ]
    selected = [row for row in rows if not section or f"{row[0]}.".startswith(f"{section}.")]
    if not selected:
        raise InputError(f"params.yaml has no {section}: name one of {' | '.join(params)}")
    return selected


def find_type(section: str, value: Any) -> Any:
    """The config class of a top-level section; None if no stage reads the section."""
    if section != "classifiers":
        return validate_params.SECTIONS.get(section)
    models = {name: row.get("model") for name, row in (value or {}).items()}
    configs = validate_params.CLASSIFIER_CONFIGS
    return validate_params.make_section_class(
        section, [(name, configs.get(model, Any)) for name, model in models.items()]
    )


def describe_values(key: str, value: Any, kind: Any, meaning: str) -> Iterator[ParamRow]:
    """One row for each value at and below `key`; `meaning` is the description of `kind`'s owner."""
    kind = _section_type(kind)
    if not isinstance(value, dict) or not value:
        yield key, format_value(value), meaning
        return
    for name, inner in value.items():
        inner_kind, inner_meaning = _member(kind, name, meaning)
        yield from describe_values(f"{key}.{name}", inner, inner_kind, inner_meaning)


def _section_type(kind: Any) -> Any:
    """The config class or dict type in an optional type; other types as they are."""
    sections = [one for one in get_args(kind) if is_dataclass(one) or get_origin(one) is dict]
    return sections[0] if sections and get_origin(kind) is not dict else kind


def _member(kind: Any, name: str, meaning: str) -> tuple[Any, str]:
    """Type and meaning of the key `name` in a section of type `kind`."""
    if is_pydantic_dataclass(kind):
        field = kind.__pydantic_fields__.get(name)
        return (field.annotation, field.description or "") if field else (None, "")
    if get_origin(kind) is dict:
        return get_args(kind)[1], meaning
    return None, meaning


def format_value(value: Any) -> str:
    """A value on one line, as in YAML."""
    text = " ".join(value.split()) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 3]}..."


def format_rows(rows: list[ParamRow]) -> str:
    """The rows in aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(
        f"{key:{widths[0]}}  {value:{widths[1]}}  {meaning}".rstrip()
        for key, value, meaning in rows
    )


def write_schema(file: Path) -> None:
    """Write the JSON schema of params.yaml. Raises InputError if `file` cannot be written."""
    try:
        file.write_text(json.dumps(build_schema(), indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"--schema: {file} cannot be written ({error.strerror}): name another file"
        ) from None


def build_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml: all sections, their keys, types, bounds and meanings."""
    classifier = Union[tuple(validate_params.CLASSIFIER_CONFIGS.values())]  # noqa: UP007
    sections = validate_params.SECTIONS | {"classifiers": dict[str, classifier]}
    params = validate_params.make_section_class("params", sections.items())
    schema = TypeAdapter(params).json_schema()
    return {"$schema": SCHEMA_DIALECT} | schema | {"title": str(PARAMS_FILE)}
