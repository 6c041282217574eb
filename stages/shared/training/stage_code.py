"""The files of code that a stage runs, found in their import statements without importing them."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

RUNTIME = Path("stages/shared/runtime")  # code that cannot change a result


def entry_point(stage: str, root: Path) -> Path:
    """The file that `python -m stages.STAGE` runs, relative to the project's folder `root`."""
    file = Path("stages", f"{stage}.py")
    return file if (root / file).exists() else Path("stages", stage, "__main__.py")


def imported_files(file: Path, choice: Mapping[str, str], root: Path) -> set[Path]:
    """`file` and the files that it imports directly or indirectly, relative to `root`.

    choice: `format` and `model` of the row that the stage runs for. An import by name, such as
    `import_module(f"stages.models.{name}.model")`, takes the format in stages/datasets and the
    model elsewhere; it is skipped if `choice` lacks it. Empty files are left out.
    """
    files: set[Path] = set()
    pending = [file]
    while pending:
        file = pending.pop()
        if file not in files:
            files.add(file)
            imports = direct_imports(file, choice, root)
            pending += [path for path in imports if (root / path).stat().st_size]
    return files


def direct_imports(file: Path, choice: Mapping[str, str], root: Path) -> set[Path]:
    """The files that `file` imports itself, without those for type checkers only."""
    names = []
    for name in _imported_names((root / file).read_text(encoding="utf-8")):
        key = "format" if name.startswith("stages.datasets.{}") else "model"
        if "{}" not in name:
            names.append(name)
        elif key in choice:
            names.append(name.replace("{}", choice[key]))
    paths = {Path(*name.split(".")) for name in names}
    candidates = {path.with_suffix(".py") for path in paths}
    candidates |= {folder / "__init__.py" for path in paths for folder in [path, *path.parents]}
    return {path for path in candidates if (root / path).exists()}


@cache
def _imported_names(source: str) -> tuple[str, ...]:
    """The modules that a source imports, perhaps inside functions; {} is a name known at run time.

    Only modules of this repository are listed.
    """
    tree = ast.parse(source)
    names = []
    for node in _executed_statements(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    if "import_module(" in source:
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names += [
            "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in name.values
            )
            for call in calls
            if getattr(call.func, "id", "") == "import_module"
            and isinstance(name := call.args[0], ast.JoinedStr)
        ]
    return tuple(name for name in names if re.match(r"(stages|pipelines|tests)\b", name))


def _executed_statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node except those in `if TYPE_CHECKING:` blocks."""
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        children = getattr(node, field, [])
        for child in children if isinstance(children, list) else []:
            if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                yield child
                yield from _executed_statements(child)
