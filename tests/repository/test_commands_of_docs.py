"""Every command of README, CONTRIBUTING and docs/ runs as it is written, and prints what is shown.

Each page runs in a copy of a project in which every stage has run with the preset smoke. The tables
below name the commands that do not run here, with the reason, and what replaces them.
"""

import base64
import csv
import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import takewhile
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipelines.cli.preset import create_yaml
from stages.judge import PERSPECTIVES_BY_PROMPT
from tests.support import user_data
from tests.support.docs_pages import Item, Shell, mask_numbers, read_items
from tests.support.fake_chat_api import serve_chat
from tests.support.project_files import ROOT
from tests.support.smoke_project import build_environment, copy_project

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
ITEMS = {page: read_items(ROOT / page) for page in PAGES}
LANGUAGES = {"", "json", "markdown", "mermaid", "sh", "text", "yaml"}
SECTION_BY_SECTION = (
    "README.md",
    "docs/cli.md",
    "docs/real-data.md",
)  # each starts with the finished project


@dataclass(frozen=True)
class NotRun:
    reason: str


@dataclass(frozen=True)
class Instead:
    """Other commands run in this place."""

    commands: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Serves:
    """The command runs until the end of its page; then it gets Ctrl-C.

    signs: addresses that answer, or texts that it prints, when it is ready. ends: it gets Ctrl-C as
    soon as it is ready.
    """

    signs: tuple[str, ...]
    ends: bool = False


@dataclass(frozen=True)
class First:
    """The command runs after others."""

    commands: tuple[str, ...]


Treatment = NotRun | Instead | Serves | First
INSTALLS = NotRun("installs packages")
UI = Serves(("http://127.0.0.1:5000", "http://127.0.0.1:4200/api/health"))
DEMO = Serves(("http://127.0.0.1:7860",), ends=True)
WORKER = NotRun("tests/pipelines/test_deployment.py runs it")
POSTGRES = NotRun("needs PostgreSQL; tests/pipelines/test_postgres.py uses one")
UNDO = First(("polymuse preset --undo",))
DOWNLOADED = "trains for minutes on a corpus that has to be downloaded"


def dry_run(target: str) -> Instead:
    """The parameters are validated and DVC lists the stages."""
    commands = ("python -m pipelines.validate_params", f"dvc repro --dry {target}")
    return Instead(commands, DOWNLOADED)


def trains_one(command: str, target: str) -> Instead:
    return Instead((f"{command} {target}",), "trains several runs")


def confirmed(command: str) -> Instead:
    return Instead((f"{command} --force",), "DVC asks for confirmation, on a terminal only")


# Commands as they are written, with comment where it says in which folder they run.
EVERYWHERE: dict[str, Treatment] = {
    "make test": NotRun("runs these tests"),
    "make test-all": NotRun("runs these tests"),
    "make lint": NotRun("takes a minute; .ci/run runs it"),
    "make fuzz": NotRun("takes two minutes for each format"),
    "make bench": NotRun("takes minutes and needs peer implementations"),
    "make local-llm": INSTALLS,
    "polymuse serve-llm": NotRun("needs `make local-llm`; tests/stages/test_local_llm.py runs it"),
    "make ui": UI,
    "polymuse ui": UI,
    "polymuse demo": DEMO,
}
BY_PAGE: dict[str, dict[str, Treatment]] = {
    "README.md": {
        "polymuse run": First(("polymuse preset --undo",)),
        "polymuse run # in ../my_project": Instead(
            ("polymuse run ingest@memes ingest@articles",), "the whole run takes minutes"
        ),
        "dvc exp run -S models.flexmuse.preference.beta=0.2": NotRun(
            "docs/experiments-howto.md runs it"
        ),
    },
    "docs/cli.md": {
        "polymuse init . --data memes=../memes --text Caption --labels Valence --labels Sarcasm": (
            UNDO
        ),
        "polymuse init . --data posts=../posts --data tweets=../tweets --force": UNDO,
        "polymuse init . --data memes=data/00_raw/memes": First(
            ("cp -r ../memes/. data/00_raw/memes",)
        ),
        "dvc exp run -S models.tippo.preference.kl_coef=0.1": trains_one(
            "dvc exp run -S models.tippo.preference.kl_coef=0.1", "train_preference@tippo_captions"
        ),
        "dvc exp diff": NotRun("docs/experiments-howto.md compares two experiments"),
        "polymuse demo flexmuse muse_entities": DEMO,
        "polymuse demo models:/articles@champion": NotRun(
            "tests/pipelines/demo/test_demo.py opens an address"
        ),
        "polymuse demo --port 8080": Serves(("http://127.0.0.1:8080",), ends=True),
    },
    "docs/configuration.md": {
        "dvc exp run -S models.muse.network.theta=0.2": trains_one(
            "dvc exp run -S models.muse.network.theta=0.2", "train_classifier@muse_sentiment"
        ),
    },
    "docs/raw-data.md": {
        "dvc pull data/00_raw/mine.dvc # in a clone": First(
            ("git add --all", "git commit -q -m Corpus", "git clone -q . ../clone")
        ),
        "dvc gc --all-commits --cloud": confirmed("dvc gc --all-commits --cloud"),
        "dvc gc --workspace --cloud": confirmed("dvc gc --workspace --cloud"),
    },
    "docs/scheduling.md": {
        "make ui": NotRun("`polymuse ui` runs already"),
        'python -m pipelines.serve --cron "0 3 * * *" --timezone Europe/Berlin': Serves(
            ("is being served",)
        ),
        "prefect deployment run build/polymuse --param preset=smoke "
        "--param 'targets=[\"report\"]'": WORKER,
        "dvc update data/00_raw/news.dvc": NotRun("docs/raw-data.md updates such a file"),
        "prefect work-pool create --type process polymuse": WORKER,
        "prefect deploy --all": WORKER,
        "prefect worker start --pool polymuse": WORKER,
        "export PREFECT_SERVER_DATABASE_CONNECTION_URL="
        "postgresql+asyncpg://polymuse@localhost/prefect": POSTGRES,
        "export MLFLOW_TRACKING_URI=postgresql+psycopg://polymuse@localhost/mlflow": POSTGRES,
        "polymuse ui # MLflow and Prefect": UI,
        "polymuse ui": POSTGRES,
    },
    "docs/serving.md": {
        "mlflow models serve --env-manager local --port 5001 --model-uri=models:/NAME/1": Serves(
            ("http://127.0.0.1:5001/health",)
        ),
    },
    "docs/real-data.md": {
        f"polymuse run {target}": dry_run(target)
        for target in (
            "evaluate_classifier@muse_sentiment",
            "evaluate_classifier@mm_orient",
            "evaluate_classifier@muse_entities",
            "evaluate@tippo_captions",
            "evaluate@tippo",
        )
    },
}
# Outputs that stand before their command: first words -> the command.
OUTPUTS = {"run skill of ceiling": "polymuse run"}
# Blocks that are no output of a command of their page.
NO_OUTPUTS = {
    "dvc.yaml params.yaml": "a file tree",
    "Waiting for `polymuse run`": "tests/pipelines/runner/test_project_lock.py",
    "mlflow.db was in": "tests/shared/runtime/test_artifact_addresses.py",
    "cp deploy/": "needs systemd; tests/pipelines/test_deployment.py verifies the units",
    "docker build": "needs Docker; tests/pipelines/test_deployment.py checks the Dockerfile",
    "POST /invocations": "check_requests",
    '{"error_code"': "check_requests",
}
# Pages whose rows are the metrics that changed, which differ between machines.
ONLY_HEADINGS = ("docs/experiments-howto.md",)
FOLDERS = {"# in ../my_project": "../my_project", "# in a clone": "../clone"}


# ---------------------------------------------------------------------------- what a page assumes
def write_user_files(project: Path) -> None:
    """The files that the commands of the pages name."""
    for name in ("me.jpg", "meme.jpg", "beach.jpg", "cake.jpg", "memes/1.jpg", "memes/2.jpg"):
        user_data.write_photograph(project / name, len(name))
    (project / "lines.txt").write_text("Mia is back in Oslo\nwhat a day\n")
    tweets = [{"text": "Mia is back in Oslo", "image": "me.jpg"}, {"words": ["what", "a", "day"]}]
    user_data.write_lines(project / "tweets.jsonl", tweets)
    user_data.write_lines(project / "data/00_raw/mine/rows.jsonl", [{"text": "a"}])
    (project.parent / "memes").mkdir()
    user_data.memes_table(project.parent / "memes")
    table = project.parent / "memes/labels.csv"
    with table.open(newline="") as file:
        header, *rows = csv.reader(file)
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    columns = {"Caption" if name == "Text" else name: cells for name, cells in columns.items()}
    sarcasm = ["yes" if number % 3 else "no" for number in range(user_data.NUM_ROWS)]
    user_data.write_table(table, columns | {"Sarcasm": sarcasm})
    for number in range(user_data.NUM_ROWS):
        folder = project.parent / f"notes/{number}"
        folder.mkdir(parents=True)
        user_data.write_photograph(folder / "a.jpg", number)
        text = f"# Title {number}\n\n![](a.jpg)\n\n{user_data.sentence(number)}.\n"
        (folder / "note.md").write_text(text)
    for name, write in (("posts", user_data.mvsa_posts), ("tweets", user_data.twitter_tweets)):
        (project.parent / name).mkdir()
        write(project.parent / name)


def use_free_ports(project: Path) -> dict[str, str]:
    """Give the servers free ports; returns the ports of the pages with their replacements."""
    ports: list[str] = ["4200", "5000", "5001", "7860", "8000", "8080"]
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in ports]
    free = [str(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    file, replacements = project / "config/runner.yaml", dict(zip(ports, free, strict=True))
    text = file.read_text()
    for name, port in (("mlflow_port", "5000"), ("prefect_port", "4200"), ("port", "7860")):
        assert f" {name}: {port}" in text
        text = text.replace(f" {name}: {port}", f" {name}: {replacements[port]}")
    file.write_text(text)
    return replacements


@contextmanager
def language_model(shell: Shell) -> Iterator[None]:
    """A server at OPENAI_BASE_URL that gives every article the same scores."""
    scores = dict.fromkeys([*PERSPECTIVES_BY_PROMPT["free"]], 5)
    with serve_chat(lambda *_: json.dumps({"comment": "fine", **scores})) as server:
        shell.replacements["8000"] = str(server.server_port)
        yield
        assert server.requests


@contextmanager
def remotes(shell: Shell) -> Iterator[None]:
    """An S3 server with a bucket, a web server with a file, and a clone of the project."""
    shell.environment |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    site = shell.folder.parent / "site"
    site.mkdir()
    (site / "posts.tar").write_text("posts")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        address = "http://{}:{}".format(*server.get_host_and_port())
        with pytest.MonkeyPatch.context() as patch:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
                patch.setenv(name, shell.environment[name])
            boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
        shell.replacements["https://s3.example.org"] = address
        shell.replacements["https://example.org"] = f"http://127.0.0.1:{web.server_port}"
        yield
        web.shutdown()
    server.stop()


@contextmanager
def registered_model(shell: Shell) -> Iterator[None]:
    shell.run("polymuse promote muse_sentiment")
    shell.replacements["NAME"] = "posts"
    yield


SURROUNDINGS: dict[str, Callable[[Shell], AbstractContextManager]] = {
    "docs/llm.md": language_model,
    "docs/raw-data.md": remotes,
    "docs/serving.md": registered_model,
}
APPLIED_YAML = ("docs/llm.md",)  # its blocks are written into params.yaml


def apply_yaml(file: Path, block: str) -> None:
    yaml = create_yaml()
    params = yaml.load(file)
    for section, values in yaml.load(block).items():
        params[section].update(values)
    yaml.dump(params, file)


# ---------------------------------------------------------------------------- the tests
def list_cases() -> list[tuple[str, str | None]]:
    """Pages, and sections of some pages, with a command that runs."""
    cases = dict.fromkeys(
        (page, item.section if page in SECTION_BY_SECTION else None)
        for page, items in ITEMS.items()
        for item in items
        if item.kind == "sh" and not isinstance(find_treatment(page, item), NotRun)
    )
    return list(cases)


def find_treatment(page: str, item: Item) -> Treatment | None:
    treatments = EVERYWHERE | BY_PAGE.get(page, {})
    return treatments.get(collapse(item.text)) or treatments.get(strip_comment(item.text))


def collapse(command: str) -> str:
    return " ".join(command.split())


def strip_comment(command: str) -> str:
    return collapse(command.split(" # ")[0])


@pytest.mark.slow
@pytest.mark.parametrize(("page", "section"), list_cases())
def test_the_commands_of_a_page_run(page, section, finished_project, tmp_path, record_property):
    project = copy_project(finished_project, tmp_path / "project")
    write_user_files(project)
    ports = use_free_ports(project)
    make_virtual_environment(project)
    environment = build_environment() | {
        "MLFLOW_PORT": ports["5000"],
        "PREFECT_SERVER_API_PORT": ports["4200"],
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "COLUMNS": "200",
    }
    shell = Shell(project, environment, ports)
    items = [item for item in ITEMS[page] if section in (None, item.section)]
    try:
        with SURROUNDINGS.get(page, nullcontext)(shell):
            run_items(page, items, shell)
    finally:
        shell.stop_servers()


def run_items(page: str, items: list[Item], shell: Shell) -> None:
    """Run the commands in their order, and compare what the page shows of their output."""
    outputs: dict[str, str] = {}  # by command
    last_output: str | None = None  # of the command directly before a block
    shown_before: list[tuple[Item, str]] = []  # a block and its command
    for item in items:
        where = f"{page}, line {item.line}"
        if item.kind == "sh":
            last_output = run_item(page, item, shell)
            outputs[strip_comment(item.text)] = last_output or ""
        elif item.kind == "text":
            if item.text.startswith(("POST", '{"error_code"')):
                check_requests(item.text, shell.fill("http://127.0.0.1:5001"))
            elif names := [
                name for name in OUTPUTS if " ".join(item.text.split()).startswith(name)
            ]:
                shown_before += [(item, OUTPUTS[name]) for name in names]
            elif not item.text.startswith(tuple(NO_OUTPUTS)):
                check_output(item.text, last_output, where, page in ONLY_HEADINGS)
            last_output = None
        elif item.kind == "yaml" and page in APPLIED_YAML:
            apply_yaml(shell.folder / "params.yaml", item.text)
    for item, command in shown_before:
        check_output(item.text, outputs[command], f"{page}, line {item.line}")


def run_item(page: str, item: Item, shell: Shell) -> str | None:
    command, treatment = strip_comment(item.text), find_treatment(page, item)
    folder = next((name for end, name in FOLDERS.items() if item.text.endswith(end)), ".")
    match treatment:
        case NotRun():
            return None
        case Serves(signs, ends):
            shell.start(command, signs)
            if ends:
                shell.servers.pop().stop()
            return None
        case Instead(commands):
            return [shell.run(other, shell.folder / folder) for other in commands][-1]
        case First(commands):
            for other in commands:
                shell.run(other)
    return shell.run(command, shell.folder / folder)


def check_output(shown: str, output: str | None, where: str, only_headings: bool = False) -> None:
    """The page shows consecutive lines of the output, except for numbers.

    only_headings: compare the lines before the first one with a number.
    """
    assert output is not None, f"{where}: no command was run before this output"
    expected, lines = mask_numbers(shown), mask_numbers(output)
    if only_headings:
        expected = list(takewhile(lambda line: "N" not in line.split(), expected))
        assert expected, f"{where}: the output starts with a number"
    found = any(lines[n : n + len(expected)] == expected for n in range(len(lines)))
    assert found, f"{where}: shown\n{chr(10).join(expected)}\nprinted\n{chr(10).join(lines)}"


def check_requests(block: str, address: str) -> None:
    """Send the request of the page, and the one whose answer is the error that the page shows."""
    page = Path("docs/serving.md").read_text()
    if block.startswith("POST"):
        image = base64.b64encode(Path("docs/images/report.png").read_bytes()).decode()
        head, body = block.split("\n\n")
        body = body.replace("iVBORw0KGgo...", image)
        assert image in body and "/invocations" in head
        rows = send_request(address, body)["predictions"]
        columns = {"label", "probability", "words_not_read"}
        assert len(rows) == 2 and all(row.keys() == columns for row in rows)
        (line,) = [line for line in page.splitlines() if line.startswith("| classifier of posts")]
        assert columns == set(re.findall(r"`(\w+)`", line.split("|")[3]))
    else:
        assert send_request(address, '{"dataframe_records": [{"text": ""}]}') == json.loads(block)


def send_request(address: str, body: str) -> dict:
    headers = {"Content-Type": "application/json"}
    request = Request(f"{address}/invocations", body.encode(), headers)
    try:
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except HTTPError as error:
        return json.load(error)


def make_virtual_environment(project: Path) -> None:
    """`.venv` of the project, with the packages of the tests; `make` finds it up to date."""
    folder = project / ".venv"
    folder.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != "installed":
            (folder / entry.name).symlink_to(entry)
    (folder / "installed").touch()


def test_every_exception_is_a_command_of_its_page():
    commands = {
        page: {text for item in items if item.kind == "sh" for text in spellings(item)}
        for page, items in ITEMS.items()
    }
    assert EVERYWHERE.keys() <= set().union(*commands.values())
    for page, treatments in BY_PAGE.items():
        assert treatments.keys() <= commands[page], page


def spellings(item: Item) -> tuple[str, str]:
    return collapse(item.text), strip_comment(item.text)


def test_commands_stand_in_blocks_that_are_run():
    for page, items in ITEMS.items():
        assert {item.kind for item in items} <= LANGUAGES, page
        assert not [item for item in items if item.kind != "sh" and item.text.startswith("$ ")]
