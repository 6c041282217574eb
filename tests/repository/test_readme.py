"""What README tells a reader to type exists, and its picture of the DAG is the DAG."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

README = Path("README.md").read_text()
BIN = Path(sys.executable).parent
PARAMS = yaml.safe_load(Path("params.yaml").read_text())
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S))
LINES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
PROGRAMS = {"make", "polymuse", "dvc", "mlflow", "prefect", "python", "pytest", "source", "export"}
COMMANDS = sorted({c for c in [*LINES, *INLINE] if c.split()[0] in PROGRAMS and " " in c})
STAGES = {stage.addressing: stage for stage in Repo(".").index.stages}
OUTS = {out.def_path for stage in STAGES.values() for out in stage.outs}


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def says(*command: str) -> str:
    done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def holds(section: dict, dotted: str) -> bool:
    for key in dotted.split("."):
        if not isinstance(section, dict) or key not in section:
            return False
        section = section[key]
    return True


def test_the_first_screen_has_the_two_commands():
    assert [words(line) for line in LINES[:2]] == [["make", "run"], ["make", "test"]]
    assert README.index("make test") < README.index("\n## ")


@pytest.mark.parametrize("command", [line for line in LINES if line])
def test_every_line_that_a_reader_is_to_type_starts_a_program_we_know(command):
    assert words(command)[0] in PROGRAMS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_what_exists(command):
    program, *given = words(command)
    check = {"make": target, "polymuse": verb, "dvc": dvc, "python": python, "source": path}
    check.get(program, installed)(program, given)


def target(_: str, given: list[str]) -> None:
    assert re.search(rf"^{given[0]}:", Path("Makefile").read_text(), re.MULTILINE)


def verb(_: str, given: list[str]) -> None:
    options = [word for word in given[1:] if word.startswith("-")]
    help_text = says("polymuse", given[0], "--help")
    # An option that its help shows with a name in capitals takes the word that follows.
    valued = {word for word in options if re.search(rf"{word} [A-Z]", help_text)}
    pairs = pairwise(given)
    arguments = [word for before, word in pairs if word[0] != "-" and before not in valued]
    assert all(option in help_text for option in options)
    if given[0] == "label":  # its argument is a text
        assert len(arguments) <= 1
        return
    known = {"run": set(STAGES), "preset": {p.stem for p in Path("presets").glob("*.yaml")}}
    assert set(arguments) <= known.get(given[0], set())


def dvc(_: str, given: list[str]) -> None:
    names = [word for word in given if re.fullmatch(r"[a-z]+", word)]
    help_text = says("dvc", *names, "--help")
    assert all(word in help_text for word in given if re.fullmatch("--?[a-zA-Z]+", word))
    changed = [word.split("=")[0] for word in given if "=" in word]
    assert all(holds(PARAMS, key) for key in changed)


def python(_: str, given: list[str]) -> None:
    assert given[0] == "-m" and find_spec(given[1])
    code = Path(*given[1].split(".")).with_suffix(".py").read_text()
    assert all(f'"{word}"' in code for word in given[2:] if word.startswith("--"))


def path(_: str, given: list[str]) -> None:
    assert given[0].startswith(".venv/")


def installed(program: str, given: list[str]) -> None:
    if program == "export":
        assert given[0].split("=")[0] in INLINE
        return
    if program == "pytest":
        markers = says("pytest", "--markers")
        assert given[0] != "-m" or f"@pytest.mark.{given[1]}" in markers
        return
    says(program, *[word for word in given if "/" not in word], "--help")


def test_the_deployment_that_is_triggered_is_the_one_that_is_served():
    flow, name = re.search(r"prefect deployment run (\w+)/(\w+)", README).groups()
    assert f'@flow(name="{flow}")' in Path("pipelines/flow.py").read_text()
    assert f'{flow}.serve("{name}"' in Path("pipelines/serve.py").read_text()


def test_every_path_exists_or_is_what_a_stage_writes():
    written = ("mlflow.db", ".polymuse", "dvc.lock", "rejected.parquet", ".venv/", "article.md")
    shape = re.compile(r"\.?[\w.]+(?:/[\w.]+)+/?|[\w.]+\.(?:yaml|py|md|toml|txt|lock|db|parquet)")
    paths = [text for text in INLINE if shape.fullmatch(text)]
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", README)
    assert len(paths) > 10
    for name in paths + links:
        inside = any(name == out or name.startswith(f"{out}/") for out in OUTS)
        assert inside or name.startswith(written) or Path(name).exists(), name


def test_every_key_and_block_of_params_exists():
    keys = [text for text in INLINE if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", text)]
    keys = [key for key in keys if key.split(".")[0] in PARAMS and not Path(key).exists()]
    assert len(keys) >= 3
    assert [key for key in keys if not holds(PARAMS, key)] == []
    for kind, block in BLOCKS:
        if kind == "yaml":
            assert [key for key in leaves(yaml.safe_load(block)) if not holds(PARAMS, key)] == []


def leaves(section: dict, above: str = "") -> list[str]:
    found = []
    for key, value in section.items():
        name = f"{above}{key}"
        found += leaves(value, f"{name}.") if isinstance(value, dict) else [name]
    return found


def test_every_environment_variable_is_read_by_somebody():
    ours = [name for name in INLINE if re.fullmatch(r"POLYMUSE_\w+", name)]
    folders = [Path("stages"), Path("pipelines"), Path("tests")]
    code = "".join(file.read_text() for folder in folders for file in folder.rglob("*.py"))
    assert ours and [name for name in ours if f'"{name}"' not in code] == []


def test_the_picture_of_the_dag_is_the_dag():
    (drawn,) = [block for kind, block in BLOCKS if kind == "mermaid"]
    assert drawn.split() == says("dvc", "dag", "--mermaid").split()


def test_every_link_to_a_heading_finds_it():
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
