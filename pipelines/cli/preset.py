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

from stages.shared.runtime.stage import InputError, work_dir

PRESET_DIR, PARAMS_FILE = Path("presets"), Path("params.yaml")
ParamTree = dict[str, Any]


def list_presets() -> list[str]:
    """The presets of the project."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def apply_preset(name: str) -> str:
    """Merge presets/NAME.yaml into params.yaml and say what happened.

    Raises WrongInput for a preset that does not exist and for a key that params.yaml lacks.
    """
    if name not in list_presets():
        raise InputError(
            f"presets/{name}.yaml does not exist: choose one of {', '.join(list_presets())}"
        )
    before = _read_text(PARAMS_FILE)
    after = merge_overlay(before, _read_text(PRESET_DIR / f"{name}.yaml"), f"presets/{name}.yaml")
    if after == before:
        return f"params.yaml already holds what preset {name} asks for"
    _save_applied([*_load_applied(), {"name": name, "before": before, "after": after}])
    _write_atomically(PARAMS_FILE, after)
    return f"params.yaml now follows preset {name}; `polymuse preset --undo` takes it back"


def undo_preset() -> str:
    """Restore params.yaml, byte for byte, to what it was before the last preset.

    Raises WrongInput if there is no preset to take back, or if params.yaml was edited since.
    """
    applied = _load_applied()
    if not applied:
        raise InputError("no preset is applied: there is nothing to take back")
    last, current = applied.pop(), _read_text(PARAMS_FILE)
    if current not in (last["before"], last["after"]):
        raise InputError(
            f"params.yaml was edited after preset {last['name']} was applied: take those edits back"
            f" first, or take params.yaml from git and delete {_history_file()}"
        )
    _write_atomically(PARAMS_FILE, last["before"])
    _save_applied(applied)
    return f"params.yaml is what it was before preset {last['name']}"


def merge_overlay(params: str, overlay: str, name: str) -> str:
    """`params` (YAML text) with the values of `overlay`: sections are merged, the rest replaced.

    Raises WrongInput that names the keys of the overlay which `params` lacks.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1000  # no line of ours is broken in two
    values, changes = _parse(yaml, params, str(PARAMS_FILE)), _parse(yaml, overlay, name)
    if not isinstance(changes, dict):
        raise InputError(f"{name} holds no sections: give keys of {PARAMS_FILE} with other values")
    unknown = _find_unknown_keys(values, changes)
    if unknown:
        raise InputError(f"{name}: {PARAMS_FILE} has no {', '.join(unknown)}: correct the preset")
    _merge_values(values, changes)
    text = StringIO()
    yaml.dump(values, text)
    return text.getvalue()


def _parse(yaml: YAML, text: str, name: str) -> Any:
    try:
        return yaml.load(text)
    except YAMLError as error:
        raise InputError(f"{name} is not YAML: {' '.join(str(error).split())}") from None


def _find_unknown_keys(values: ParamTree, changes: ParamTree, above: str = "") -> list[str]:
    """The keys of `changes`, dotted, that stand nowhere in `values` or are no section there."""
    unknown = []
    for key, value in changes.items():
        name = f"{above}{key}"
        if key not in values or isinstance(value, dict) != isinstance(values[key], dict):
            unknown.append(name)
        elif isinstance(value, dict):
            unknown += _find_unknown_keys(values[key], value, f"{name}.")
    return unknown


def _merge_values(values: ParamTree, changes: ParamTree) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            _merge_values(values[key], value)
        else:
            values[key] = value


def _history_file() -> Path:
    return work_dir() / "presets.json"


def _load_applied() -> list[dict[str, str]]:
    """The presets that were applied and not taken back: name, params.yaml before and after."""
    return json.loads(_history_file().read_text()) if _history_file().exists() else []


def _save_applied(applied: list[dict[str, str]]) -> None:
    work_dir().mkdir(parents=True, exist_ok=True)
    _write_atomically(_history_file(), json.dumps(applied))


def _read_text(path: Path) -> str:
    return path.read_bytes().decode()  # line endings as they are


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(text.encode())
    partial.rename(path)
