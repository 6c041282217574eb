"""The files of this repository that a stage imports, for each row of params.yaml."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import yaml

from stages.shared.core.config import read_params

DAG = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
PARAMS = read_params()
RUNTIME = Path("stages/shared/runtime")  # not in dvc.yaml: it cannot change a result


def entry_point(stage: str) -> Path:
    """The file that `python -m stages.STAGE` runs."""
    file = Path("stages", f"{stage}.py")
    return file if file.exists() else Path("stages", stage, "__main__.py")


def row(address: str) -> dict[str, str]:
    """The row of params.yaml that a stage of `foreach` is for; empty without a row."""
    stage, _, key = address.partition("@")
    section = DAG[stage].get("foreach", "").strip("${}")
    return PARAMS.get(section, {}).get(key, {})  # a list such as chunk.corpora has no rows


def closure(file: Path, item: Mapping[str, str]) -> set[Path]:
    """`file` and the files that it imports directly or indirectly, for one row.

    For imports by name (`import_module(f"stages.models.{name}.model")`), the name is the `format`
    of the row for data sets, and its `model` otherwise.
    """
    files: set[Path] = set()
    pending = [file]
    while pending:
        file = pending.pop()
        if file not in files:
            files.add(file)
            pending += [path for path in direct(file, _choice(item)) if path.stat().st_size]
    return files


def _choice(item: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, item[key]) for key in ("format", "model") if key in item))


@cache
def direct(file: Path, choice: tuple[tuple[str, str], ...]) -> frozenset[Path]:
    """The files that `file` imports directly, without those for type checkers only."""
    files: set[Path] = set()
    for node in _executed(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            names = [_by_name(node, dict(choice))]
        else:
            continue
        for path in [Path(*name.split(".")) for name in names if name]:
            files |= {path.with_suffix(".py")} | {p / "__init__.py" for p in [path, *path.parents]}
    return frozenset(path for path in files if path.exists())


def _by_name(call: ast.Call, choice: Mapping[str, str]) -> str:
    """The module of `import_module(f"...{name}...")` for a row; '' if the row does not name one."""
    if not isinstance(call.args[0], ast.JoinedStr):
        return ""
    parts = call.args[0].values
    prefix = parts[0].value if isinstance(parts[0], ast.Constant) else ""
    name = choice.get("format" if prefix == "stages.datasets." else "model", "")
    text = [part.value if isinstance(part, ast.Constant) else name for part in parts]
    return "".join(text) if name else ""


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those in `if TYPE_CHECKING:` blocks."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and re.search("TYPE_CHECKING", ast.unparse(child.test))):
            yield from _executed(child)
