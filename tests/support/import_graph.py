"""The files of this repository that a stage imports, for each row of params.yaml."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml

from stages.shared.core.config import read_params
from stages.shared.training import stage_code

DAG = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
PARAMS = read_params()
ROOT = Path(".")


def entry_point(stage: str) -> Path:
    return stage_code.entry_point(stage, ROOT)


def row(address: str) -> dict[str, str]:
    """The row of params.yaml that a stage of `foreach` is for; empty without a row."""
    stage, _, key = address.partition("@")
    section = DAG[stage].get("foreach", "").strip("${}")
    return PARAMS.get(section, {}).get(key, {})  # a list such as chunk.corpora has no rows


def closure(file: Path, item: Mapping[str, str]) -> frozenset[Path]:
    """`file` and the files that it imports directly or indirectly, for one row of params.yaml."""
    return _closure(file, _choice(item))


def direct(file: Path, item: Mapping[str, str]) -> set[Path]:
    """The files that `file` imports directly, without those for type checkers only."""
    return stage_code.direct_imports(file, item, ROOT)


@cache
def _closure(file: Path, choice: tuple[tuple[str, str], ...]) -> frozenset[Path]:
    return frozenset(stage_code.imported_files(file, dict(choice), ROOT))


def _choice(item: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, item[key]) for key in ("format", "model") if key in item))
