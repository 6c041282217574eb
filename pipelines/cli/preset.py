"""`polymuse preset`: apply small overlays to the parameter files, and undo them.

reads   presets/NAME.yaml
writes  params.yaml and config/*.yaml with their comments; POLYMUSE_HOME/presets.json, the history
        for `--undo`
"""

import json
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from pipelines.project import write_atomically
from stages.shared.core.config import params_files
from stages.shared.runtime.errors import damaged_file
from stages.shared.runtime.stage import InputError, work_dir

PRESET_DIR = Path("presets")
ROW_SECTIONS = ("corpora", "generators", "classifiers")  # README says to delete rows of them
INIT = "polymuse init"  # name of its changes in the history
PRESET_KEYS = {"name", "before", "after"}  # of an applied preset in the history
ParamTree = dict[str, Any]  # sections of params.yaml


def list_presets() -> list[str]:
    """The names of the project's presets, sorted."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def apply_preset(name: str) -> str:
    """Merge presets/NAME.yaml into the parameter files and return a message for the user.

    Raises InputError if the preset does not exist or has a key that no file has.
    """
    before = read_param_files()
    overlay, file = _read_preset(name)
    after = merge_overlay(before, overlay, file)
    deleted = ", ".join(find_deleted_rows(before, overlay, file))
    note = f"; left out, because params.yaml does not have them: {deleted}" if deleted else ""
    if after == before:
        return f"params.yaml already has all values of preset {name}{note}"
    changed = write_params(name, before, after)
    return (
        f"{' and '.join(changed)} now {'has' if len(changed) == 1 else 'have'} the values of "
        f"preset {name}; "
        f"undo with `polymuse preset --undo`{note}"
    )


def read_param_files() -> dict[str, str]:
    """The parameter files of the current folder's project: name -> text."""
    return {str(file): _read_text(file) for file in params_files()}


def _read_preset(name: str) -> tuple[str, str]:
    """The text of a preset and its file. Raises InputError if it does not exist."""
    if name not in list_presets():
        raise InputError(
            f"presets/{name}.yaml does not exist: choose one of {', '.join(list_presets())}"
        )
    return _read_text(PRESET_DIR / f"{name}.yaml"), f"presets/{name}.yaml"


def merge_values(preset: str | None, overrides: list[str]) -> dict[str, str]:
    """The parameter files (name -> text) with a preset and then KEY=VALUE overrides merged.

    KEY: dotted, as `polymuse params` lists it. VALUE: YAML. Nothing is written. Raises InputError.
    """
    files = read_param_files()
    if preset is not None:
        files = merge_overlay(files, *_read_preset(preset))
    for override in overrides:
        files = _merge_value(files, override)
    return files


def _merge_value(files: dict[str, str], override: str) -> dict[str, str]:
    """The parameter files with one KEY=VALUE override merged."""
    key, separator, text = override.partition("=")
    if not separator:
        raise InputError(f"override {override!r} has no value: give KEY=VALUE")
    changes = _parse(YAML(typ="safe"), text, f"the value of override {override!r}")
    for name in reversed(key.strip().split(".")):
        changes = {name: changes}
    fix = "name one that `polymuse params` lists"
    return _merge_changes(files, _parse_files(files), changes, f"override {override!r}", fix)


def write_params(name: str, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Write the parameter files that differ, so that `undo_preset` restores them; their names.

    name: of the preset, or INIT. before, after: name of a file -> text
    """
    changed = [file for file in before if after[file] != before[file]]
    state = {
        "name": name,
        "before": {file: before[file] for file in changed},
        "after": {file: after[file] for file in changed},
    }
    _save_applied([*_load_applied(), state])
    for file in changed:
        write_atomically(Path(file), after[file])
    return changed


def undo_preset() -> str:
    """Restore the parameter files before the last preset or `polymuse init`; returns a message.

    Raises InputError if there is none or if one of its files was edited since.
    """
    applied = _load_applied()
    if not applied:
        raise InputError("no preset is applied: there is nothing to undo")
    last = applied.pop()
    cause = "`polymuse init`" if last["name"] == INIT else f"preset {last['name']}"
    for file, before in last["before"].items():
        if _read_text(Path(file)) not in (before, last["after"][file]):
            raise InputError(
                f"{file} was edited after {cause} was applied: undo those edits "
                f"first, or restore {file} from git and delete {_history_file()}"
            )
    for file, before in last["before"].items():
        write_atomically(Path(file), before)
    _save_applied(applied)
    return f"{' and '.join(last['before'])} is restored to its state before {cause}"


def find_deleted_rows(files: dict[str, str], overlay: str, name: str) -> list[str]:
    """The rows of an overlay, such as generators.flexmuse, that no parameter file has."""
    yaml = YAML(typ="safe")
    trees = [_parse(yaml, text, file) for file, text in files.items()]
    changes = _parse(yaml, overlay, name)
    return _find_deleted_rows(trees, changes) if isinstance(changes, dict) else []


def merge_overlay(files: dict[str, str], overlay: str, name: str) -> dict[str, str]:
    """The parameter files (name -> YAML text) with the values of `overlay`.

    Each key is changed in the file that has it; sections are merged, other values replaced.
    name: the file of the overlay, for messages. Raises InputError that names the keys of the
    overlay that no file has. Rows that were deleted from params.yaml are left out.
    """
    changes = _parse(create_yaml(), overlay, name)
    if not isinstance(changes, dict):
        raise InputError(f"{name} holds no sections: give it sections of params.yaml")
    trees = _parse_files(files)
    for name_of_row in _find_deleted_rows(list(trees.values()), changes):
        section, _, row = name_of_row.partition(".")
        del changes[section][row]
    changes = {section: value for section, value in changes.items() if value != {}}
    return _merge_changes(files, trees, changes, name, "correct the preset")


def _parse_files(files: dict[str, str]) -> dict[str, Any]:
    return {file: _parse(create_yaml(), text, file) for file, text in files.items()}


def _merge_changes(
    files: dict[str, str], trees: dict[str, Any], changes: ParamTree, name: str, fix: str
) -> dict[str, str]:
    """The parameter files, whose `trees` receive the values of `changes`.

    Raises InputError that starts with `name` and ends with `fix` for keys that no file has.
    """
    if unknown := _find_unknown_keys(list(trees.values()), changes):
        raise InputError(f"{name}: params.yaml has no {', '.join(unknown)}: {fix}")
    merged = dict(files)
    for file, tree in trees.items():
        if _set_values(tree, changes):
            text = StringIO()
            create_yaml().dump(tree, text)
            merged[file] = text.getvalue()
    return merged


def create_yaml() -> YAML:
    """A parser and writer of parameter files that keeps comments, quotes and long lines."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1000
    return yaml


def _parse(yaml: YAML, text: str, name: str) -> Any:
    try:
        return yaml.load(text)
    except YAMLError as error:
        raise InputError(f"{name} is not YAML: {' '.join(str(error).split())}") from None


def _find_deleted_rows(trees: list[Any], changes: ParamTree) -> list[str]:
    """The rows of `changes`, such as generators.flexmuse, that no tree has."""
    return [
        f"{section}.{row}"
        for section in ROW_SECTIONS
        for row in changes.get(section, {})
        if not any(isinstance(tree, dict) and row in (tree.get(section) or ()) for tree in trees)
    ]


def _find_unknown_keys(trees: list[Any], changes: ParamTree, above: str = "") -> list[str]:
    """The dotted keys of `changes` that no tree has, or has as a section where it is a value."""
    unknown = []
    for key, value in changes.items():
        name = f"{above}{key}"
        inner = [tree[key] for tree in trees if isinstance(tree, dict) and key in tree]
        if not inner or isinstance(value, dict) != isinstance(inner[0], dict):
            unknown.append(name)
        elif isinstance(value, dict):
            unknown += _find_unknown_keys(inner, value, f"{name}.")
    return unknown


def _set_values(tree: ParamTree, changes: ParamTree) -> bool:
    """Change the values that `tree` has; whether there are any."""
    changed = False
    for key, value in changes.items():
        if key not in tree:
            continue
        if isinstance(value, dict):
            changed |= _set_values(tree[key], value)
        elif tree[key] != value:
            replace_value(tree, key, value)
            changed = True
    return changed


def replace_value(tree: ParamTree, key: str, value: Any) -> None:
    """Replace a value of a section that ruamel.yaml has loaded, in the form that DVC writes.

    The comment of a key is lost with a list, or ends up in the wrong place, unless it is set again.
    """
    tree[key] = list(value) if isinstance(value, list) else value
    if isinstance(tree, CommentedMap) and isinstance(value, list) and key in tree.ca.items:
        comment = tree.ca.items.pop(key)[2]  # behind the key
        text = comment.value.strip().removeprefix("# ")
        tree.yaml_add_eol_comment(text, key, column=comment.start_mark.column)


def _history_file() -> Path:
    return work_dir() / "presets.json"


def _load_applied() -> list[dict[str, Any]]:
    """The presets in force: name, and the text of each changed file before and after.

    Raises InputError if the history is damaged.
    """
    if not _history_file().exists():
        return []
    try:
        applied = json.loads(_history_file().read_text())
        if not all(state.keys() >= PRESET_KEYS for state in applied):
            raise ValueError("it holds other keys")
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged_file(
            _history_file(),
            error,
            "delete it; `--undo` cannot restore params.yaml then, but git can",
        ) from None
    return applied


def _save_applied(applied: list[dict[str, Any]]) -> None:
    write_atomically(_history_file(), json.dumps(applied))


def _read_text(path: Path) -> str:
    return path.read_bytes().decode()  # keeps the line endings
