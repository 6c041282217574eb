"""The commands of a documentation page, in order, and a shell that runs them."""

import logging
import os
import re
import resource
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.support.tiny_dvc_project import wait_until

FENCE = re.compile(r" *```(\w*)$")
COMMAND_CELL = re.compile(r"\| `([^`]+)` \|")
COMMAND_HEADERS = ("| command |", "| target |")
COMMAND_TIMEOUT_SECONDS = 600
START_TIMEOUT_SECONDS = 600  # of a server, on a busy machine
STOP_TIMEOUT_SECONDS = 60
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """A command (`kind` "sh") or another fenced block of a page, below a heading of level 2."""

    kind: str
    text: str
    section: str
    line: int


def read_items(page: Path) -> list[Item]:
    """Commands, one a line of a block or a row of a table of commands, and all other blocks."""
    items: list[Item] = []
    section, kind, in_command_table = "", None, False
    block: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if fence and kind is None:
            kind, block = fence[1], []
        elif fence and kind is not None:
            texts = block if kind == "sh" else ["\n".join(block)]
            items += [Item(kind, text, section, number) for text in texts if text]
            kind = None
        elif kind is not None:
            block.append(line)
        elif line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("|"):
            in_command_table |= line.startswith(COMMAND_HEADERS)
            if in_command_table and (cell := COMMAND_CELL.match(line)):
                items.append(Item("sh", cell[1], section, number))
        else:
            in_command_table = False
    return items


def mask_numbers(text: str) -> list[str]:
    """The lines of an output with its words, but without its numbers, hashes and widths."""
    text = re.sub(r"(?<![\w.])-?\d+(\.\d+)?(e-?\d+)?(?![\w.])", "N", text)
    text = re.sub(r"\b(?=\w*\d)[0-9a-f]{7}\b", "HASH", text)
    lines = [" ".join(line.split()) for line in re.sub("─+", "─", text).splitlines()]
    return [line for line in lines if line]


@dataclass
class Server:
    """A command that runs until it gets SIGINT, with all its processes in one group."""

    command: str
    process: subprocess.Popen
    log: Path

    def is_ready(self, sign: str) -> bool:
        """Whether the address `sign` answers, or the output contains the text `sign`."""
        assert self.process.poll() is None, f"`{self.command}` ended:\n{self.log.read_text()}"
        if not sign.startswith("http"):
            return sign in self.log.read_text()
        try:
            urlopen(sign, timeout=5).close()
        except (URLError, ConnectionError, TimeoutError):
            return False
        return True

    def stop(self) -> None:
        """Press Ctrl-C. Fails if the command does not end, or ends with an error."""
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            code = self.process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        output = self.log.read_text()
        # MLflow's command line ends with 1 and "Aborted!" on Ctrl-C.
        is_interrupted = code in (0, 130, -signal.SIGINT) or output.endswith("Aborted!\n")
        assert is_interrupted, f"`{self.command}` ended with {code}:\n{output}"


@dataclass
class Shell:
    """Runs commands one after the other in `folder`, like a user in one terminal.

    environment: changed by `export` and `source`. replacements: texts of the page -> what a test
    has in their place.
    """

    folder: Path
    environment: dict[str, str]
    replacements: dict[str, str]
    servers: list[Server] = field(default_factory=list)

    def run(self, command: str, folder: Path | None = None) -> str:
        """The standard output of a command, which must succeed."""
        variables = self.folder.parent / "variables"
        line = f'{self.fill(command)}\ncode=$?\nenv -0 > "{variables}"\nexit $code'
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=folder or self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        LOG.info("%5.1f CPU s  %s", seconds, self.fill(command))
        output = f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
        assert done.returncode == 0, f"`{command}` ended with {done.returncode}:\n{output}"
        assert "Traceback (most recent call last)" not in output, f"`{command}`:\n{output}"
        pairs = (entry.split("=", 1) for entry in variables.read_text().split("\0") if entry)
        self.environment = dict(pairs)
        return done.stdout

    def start(self, command: str, signs: tuple[str, ...]) -> Server:
        """Start a server and wait for all `signs` that it is ready."""
        log = self.folder.parent / f"server-{len(self.servers)}.log"
        begin = time.monotonic()
        with log.open("w") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self.fill(command)}"],
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(command, process, log)
        self.servers.append(server)
        for sign in signs:
            wait_until(lambda sign=sign: server.is_ready(self.fill(sign)), START_TIMEOUT_SECONDS)
        LOG.info("%5.1f s to start  %s", time.monotonic() - begin, self.fill(command))
        return server

    def stop_servers(self) -> None:
        while self.servers:
            self.servers.pop().stop()

    def fill(self, text: str) -> str:
        """`text` with what the test has in place of the page's addresses and names."""
        for name, value in self.replacements.items():
            text = text.replace(name, value)
        return text
