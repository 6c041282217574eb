"""Which files of this repository a stage imports, row by row of params.yaml."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import yaml

from stages.shared.core.config import read_params

DAG = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
PARAMS = read_params()
RUNTIME = Path("stages/shared/runtime")  # DVC is not told about it: it cannot change a result


def entry_point(stage: str) -> Path:
    """The file that `python -m stages.STAGE` runs."""
    file = Path("stages", f"{stage}.py")
    return file if file.exists() else Path("stages", stage, "__main__.py")


def row(address: str) -> dict[str, str]:
    """The row of params.yaml that `foreach` gave a stage; empty for a stage without rows."""
    stage, _, key = address.partition("@")
    section = DAG[stage].get("foreach", "").strip("${}")
    return PARAMS.get(section, {}).get(key, {})  # a list such as chunk.corpora has no rows


def closure(file: Path, item: Mapping[str, str]) -> set[Path]:
    """The files that `file` imports, directly or not, for one row; itself included.

    A module that is imported by name (`import_module(f"stages.models.{name}.model")`) is the one
    that the row names: its `format` for a data set, its `model` for all else.
    """
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += [other for other in direct(file, _choice(item)) if other.stat().st_size]
    return found


def _choice(item: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, item[key]) for key in ("format", "model") if key in item))


@cache
def direct(file: Path, choice: tuple[tuple[str, str], ...]) -> frozenset[Path]:
    """The files that `file` itself imports, those that only a type checker sees left out."""
    needed: set[Path] = set()
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
            needed |= {path.with_suffix(".py")} | {p / "__init__.py" for p in [path, *path.parents]}
    return frozenset(path for path in needed if path.exists())


def _by_name(call: ast.Call, choice: Mapping[str, str]) -> str:
    """The module that a row means by `import_module(f"...{name}...")`; '' where it names none."""
    if not isinstance(call.args[0], ast.JoinedStr):
        return ""
    parts = call.args[0].values
    before = parts[0].value if isinstance(parts[0], ast.Constant) else ""
    name = choice.get("format" if before == "stages.datasets." else "model", "")
    text = [part.value if isinstance(part, ast.Constant) else name for part in parts]
    return "".join(text) if name else ""


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those of `if TYPE_CHECKING:` blocks."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and re.search("TYPE_CHECKING", ast.unparse(child.test))):
            yield from _executed(child)
