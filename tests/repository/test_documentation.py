"""Commands, paths, links and params keys in README and docs/ exist; the DAG's diagram is right."""

import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import networkx
import pytest
import yaml
from dvc.repo import Repo

from stages.shared.core.config import read_params

# docs/experiments.md is a log: its entries keep the names of their time.
LOG = Path("docs/experiments.md")
PAGES = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").glob("*.md"))]
TEXTS = {page: page.read_text() for page in PAGES if page != LOG}
README = TEXTS[Path("README.md")]
BIN = Path(sys.executable).parent
PARAMS = read_params()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {"make", "polymuse", "dvc", "mlflow", "prefect", "python", "pytest", "source", "export"}
REPO = Repo(".")
STAGES = {stage.addressing: stage for stage in REPO.index.stages}
OUTPUTS = {out.def_path for stage in STAGES.values() for out in stage.outs}


def blocks(text: str, language: str) -> list[str]:
    return [block for kind, block in FENCE.findall(text) if kind == language]


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def shell_lines(text: str) -> list[str]:
    return [line for block in blocks(text, "sh") for line in block.splitlines() if line]


def list_commands() -> list[str]:
    """The command lines of all pages."""
    lines = [line for text in TEXTS.values() for line in shell_lines(text) + inline_code(text)]
    return sorted({line for line in lines if line.split()[0] in PROGRAMS and " " in line})


def split_words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


@cache
def output_of(*command: str) -> str:
    done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def has_key(section: dict, dotted: str) -> bool:
    for key in dotted.split("."):
        if not isinstance(section, dict) or key not in section:
            return False
        section = section[key]
    return True


def test_the_readme_starts_with_the_two_make_targets():
    first, second = [split_words(line) for line in shell_lines(README)[:2]]
    assert (first, second) == (["make", "run"], ["make", "test"])
    assert README.index("make test") < README.index("\n## ")


@pytest.mark.parametrize("line", sorted({line for t in TEXTS.values() for line in shell_lines(t)}))
def test_every_shell_line_starts_a_known_program(line):
    assert split_words(line)[0] in PROGRAMS


@pytest.mark.slow
@pytest.mark.parametrize("command", list_commands())
def test_every_command_exists_with_its_options(command):
    program, *arguments = split_words(command)
    check = {
        "make": check_make,
        "polymuse": check_polymuse,
        "dvc": check_dvc,
        "python": check_python,
        "source": check_source,
    }.get(program, check_program)
    check(program, arguments)


def check_make(_: str, arguments: list[str]) -> None:
    assert re.search(rf"^{arguments[0]}:", Path("Makefile").read_text(), re.MULTILINE)


def check_polymuse(_: str, arguments: list[str]) -> None:
    options = [word for word in arguments[1:] if word.startswith("-")]
    help_text = output_of("polymuse", arguments[0], "--help")
    # In the help, an option with a value is followed by a name in capitals.
    with_value = {word for word in options if re.search(rf"{word} [A-Z]", help_text)}
    positional = [
        word
        for previous, word in pairwise(arguments)
        if word[0] != "-" and previous not in with_value and not word.startswith("models:/")
    ]
    assert all(option in help_text for option in options)
    if arguments[0] in ("init", "label"):
        assert len(positional) <= 1
    elif arguments[0] == "params":
        assert all(has_key(PARAMS, section) for section in positional)
    else:
        presets = {path.stem for path in Path("presets").glob("*.yaml")}
        runs = {*PARAMS["generators"], *PARAMS["classifiers"]}
        known = {"run": set(STAGES), "preset": presets}
        known |= dict.fromkeys(("compare", "demo", "promote", "verify"), runs)
        assert set(positional) <= known.get(arguments[0], set())


def check_dvc(_: str, arguments: list[str]) -> None:
    names = [word for word in arguments if re.fullmatch(r"[a-z]+", word)]
    help_text = output_of("dvc", *names, "--help")
    assert all(word in help_text for word in arguments if re.fullmatch("--?[a-zA-Z]+", word))
    changed = [word.split("=")[0] for word in arguments if "=" in word]
    assert all(has_key(PARAMS, key) for key in changed)


def check_python(_: str, arguments: list[str]) -> None:
    assert arguments[0] == "-m" and find_spec(arguments[1])
    code = Path(*arguments[1].split(".")).with_suffix(".py").read_text()
    assert all(f'"{word}"' in code for word in arguments[2:] if word.startswith("--"))


def check_source(_: str, arguments: list[str]) -> None:
    assert arguments[0].startswith(".venv/")


def check_program(program: str, arguments: list[str]) -> None:
    if program == "export":
        variables = {name for text in TEXTS.values() for name in inline_code(text)}
        assert arguments[0].split("=")[0] in variables
    elif program == "pytest":
        markers = output_of("pytest", "--markers")
        assert arguments[0] != "-m" or f"@pytest.mark.{arguments[1]}" in markers
    else:
        output_of(program, *[word for word in arguments if "/" not in word], "--help")


def test_the_deployment_in_the_docs_is_the_one_that_is_served():
    text = "".join(TEXTS.values())
    flow, name = re.search(r"prefect deployment run (\w+)/(\w+)", text).groups()
    assert f'@flow(name="{flow}"' in Path("pipelines/flow.py").read_text()
    served = re.sub(r"\(\s+", "(", Path("pipelines/serve.py").read_text())
    assert f'{flow}.serve("{name}"' in served


@pytest.mark.parametrize("page", TEXTS, ids=str)
def test_every_path_exists_or_is_an_output(page):
    written = ("mlflow.db", ".polymuse", "dvc.lock", "rejected.parquet", ".venv/", "article.md")
    shape = re.compile(r"stages(?:/[\w.]+)+/?|(?:pipelines|tests|docs|presets|data)(?:/[\w.]+)+/?")
    paths = [text for text in inline_code(TEXTS[page]) if shape.fullmatch(text)]
    for name in paths:
        is_output = any(
            f"{name}/".startswith(f"{out}/") or out.startswith(f"{name}/") for out in OUTPUTS
        )
        if "NAME" not in name:  # a placeholder
            assert is_output or name.startswith(written) or Path(name).exists(), name


@pytest.mark.parametrize("page", TEXTS, ids=str)
def test_every_link_leads_to_a_file_and_a_heading(page):
    prose = re.sub(r"`[^`\n]+`", "", FENCE.sub("", TEXTS[page]))
    for target in re.findall(r"\]\((?!http)([^)]+)\)", prose):
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), target
        if anchor:
            assert anchor in list_anchors(path.resolve().read_text()), target


def list_anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_key_of_params_exists():
    for page, text in TEXTS.items():
        keys = [code for code in inline_code(text) if re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", code)]
        keys = [key for key in keys if key.split(".")[0] in PARAMS]
        keys = [key for key in keys if not key.endswith((".json", ".py", ".yaml"))]  # file names
        assert [key for key in keys if not has_key(PARAMS, key)] == [], page
        for block in blocks(text, "yaml"):
            sections = yaml.safe_load(block)
            added = sections.get("corpora", {}).keys() - PARAMS["corpora"].keys()
            for name in added:  # a corpus of the user, with the keys of every corpus
                assert sections["corpora"].pop(name).keys() == PARAMS["corpora"]["captions"].keys()
            table = PARAMS["formats"]["table"]["tasks"]["sentiment"]
            for task in sections.get("formats", {}).get("table", {}).pop("tasks", {}).values():
                assert task.keys() == table.keys()  # tasks are named by the user
            assert [key for key in list_keys(sections) if not has_key(PARAMS, key)] == [], page


def list_keys(section: dict, parent: str = "") -> list[str]:
    """The dotted keys of all values in a section."""
    keys = []
    for key, value in section.items():
        name = f"{parent}{key}"
        is_section = isinstance(value, dict) and value
        keys += list_keys(value, f"{name}.") if is_section else [name]
    return keys


def test_every_environment_variable_is_read_by_the_code():
    variables = {
        code
        for text in TEXTS.values()
        for code in inline_code(text)
        if re.fullmatch(r"POLYMUSE_\w+", code)
    }
    folders = [Path("stages"), Path("pipelines"), Path("tests")]
    code = "".join(file.read_text() for folder in folders for file in folder.rglob("*.py"))
    assert variables and [name for name in variables if f'"{name}"' not in code] == []


def test_the_diagram_of_the_stages_agrees_with_dvc():
    (diagram,) = blocks(README, "mermaid")
    drawn = set()
    for line in diagram.splitlines()[1:]:
        names = [name.strip() for name in line.split("-->")]
        drawn |= set(pairwise(names))
    edges = {
        (before.addressing.split("@")[0], after.addressing.split("@")[0])
        for after, before in REPO.index.graph.edges  # from a stage to what it reads
    }
    edges = {(before, after) for before, after in edges if before != after}
    assert drawn <= edges
    closures = [networkx.transitive_closure(networkx.DiGraph(graph)) for graph in (drawn, edges)]
    assert set(closures[0].edges) == set(closures[1].edges)
