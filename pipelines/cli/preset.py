"""Presets: small overlays on params.yaml that can be taken back.

reads   presets/NAME.yaml
writes  params.yaml, comments kept; POLYMUSE_HOME/presets.json, what `--undo` needs
"""

import json
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.shared.runtime.stage import WrongInput, home

FOLDER, PARAMS = Path("presets"), Path("params.yaml")
Overlay = dict[str, Any]


def names() -> list[str]:
    """The presets of the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def apply(name: str) -> str:
    """Merge presets/NAME.yaml into params.yaml and say what happened.

    Raises WrongInput for a preset that does not exist and for a key that params.yaml lacks.
    """
    if name not in names():
        raise WrongInput(f"presets/{name}.yaml does not exist: choose one of {', '.join(names())}")
    before = _text(PARAMS)
    after = merge(before, _text(FOLDER / f"{name}.yaml"), f"presets/{name}.yaml")
    if after == before:
        return f"params.yaml already holds what preset {name} asks for"
    _remember([*_applied(), {"name": name, "before": before, "after": after}])
    _replace(PARAMS, after)
    return f"params.yaml now follows preset {name}; `polymuse preset --undo` takes it back"


def undo() -> str:
    """Restore params.yaml, byte for byte, to what it was before the last preset.

    Raises WrongInput if there is no preset to take back, or if params.yaml was edited since.
    """
    applied = _applied()
    if not applied:
        raise WrongInput("no preset is applied: there is nothing to take back")
    last, current = applied.pop(), _text(PARAMS)
    if current not in (last["before"], last["after"]):
        raise WrongInput(
            f"params.yaml was edited after preset {last['name']} was applied: take those edits back"
            f" first, or take params.yaml from git and delete {_memory()}"
        )
    _replace(PARAMS, last["before"])
    _remember(applied)
    return f"params.yaml is what it was before preset {last['name']}"


def merge(params: str, overlay: str, name: str) -> str:
    """`params` (YAML text) with the values of `overlay`: sections are merged, the rest replaced.

    Raises WrongInput that names the keys of the overlay which `params` lacks.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1000  # no line of ours is broken in two
    values, changes = _parse(yaml, params, str(PARAMS)), _parse(yaml, overlay, name)
    if not isinstance(changes, dict):
        raise WrongInput(f"{name} holds no sections: give keys of {PARAMS} with other values")
    unknown = _unknown(values, changes)
    if unknown:
        raise WrongInput(f"{name}: {PARAMS} has no {', '.join(unknown)}: correct the preset")
    _overlay(values, changes)
    text = StringIO()
    yaml.dump(values, text)
    return text.getvalue()


def _parse(yaml: YAML, text: str, name: str) -> Any:
    try:
        return yaml.load(text)
    except YAMLError as error:
        raise WrongInput(f"{name} is not YAML: {' '.join(str(error).split())}") from None


def _unknown(values: Overlay, changes: Overlay, above: str = "") -> list[str]:
    """The keys of `changes`, dotted, that stand nowhere in `values` or are no section there."""
    unknown = []
    for key, value in changes.items():
        name = f"{above}{key}"
        if key not in values or isinstance(value, dict) != isinstance(values[key], dict):
            unknown.append(name)
        elif isinstance(value, dict):
            unknown += _unknown(values[key], value, f"{name}.")
    return unknown


def _overlay(values: Overlay, changes: Overlay) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            _overlay(values[key], value)
        else:
            values[key] = value


def _memory() -> Path:
    return home() / "presets.json"


def _applied() -> list[dict[str, str]]:
    """The presets that were applied and not taken back: name, params.yaml before and after."""
    return json.loads(_memory().read_text()) if _memory().exists() else []


def _remember(applied: list[dict[str, str]]) -> None:
    home().mkdir(parents=True, exist_ok=True)
    _replace(_memory(), json.dumps(applied))


def _text(path: Path) -> str:
    return path.read_bytes().decode()  # line endings as they are


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(text.encode())
    partial.rename(path)
