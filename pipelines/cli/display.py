"""What `polymuse run` shows: live progress bars on a terminal, sparse lines in a log."""

import re
import sys
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

from pipelines.runner.eta import STAGE_START_PATTERN, format_clock

if TYPE_CHECKING:
    from rich.progress import TaskID

LOG_PROGRESS_SECONDS = 60.0  # between two progress lines of a stage in a log
# A bar of tqdm, such as "train_sft:  63%|██████▎   | 886/1400 [06:56<04:14,  2.02it/s]".
BAR_PATTERN = re.compile(r"\s*(?P<what>.*?):?\s*\d+%\|.*\|\s*(?P<done>\d+)/(?P<total>\d+) \[")
UNKNOWN_BAR_PATTERN = re.compile(r".*\d+it \[")  # tqdm without a total
# What DVC prints of every stage: its command, and that it writes dvc.lock.
DVC_PATTERN = re.compile(r"> |Updating lock file |WARNING: .*\.gitignore")


class RunDisplay(AbstractContextManager, ABC):
    """The output of a run. Use it as a context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the live output."""

    @abstractmethod
    def show(self, text: str) -> None:
        """Print a line that stays."""

    def start(self, stage: str, headline: str) -> None:
        """A stage starts to execute."""
        self.show(headline)

    @abstractmethod
    def update(self, stage: str, what: str, done: int, total: int) -> None:
        """A stage has processed `done` of `total` items."""

    def end(self, stage: str, seconds: float) -> None:
        """A stage that has been executed has ended."""
        self.show(f"{stage}: done in {format_clock(seconds)}")

    def show_output(self, stage: str, line: str) -> None:
        """Show a line of a stage's output: a progress bar or a message."""
        text = line.strip()
        if bar := BAR_PATTERN.match(line):
            what = "" if bar["what"] == stage else bar["what"]
            self.update(stage, what, int(bar["done"]), int(bar["total"]))
        elif not any(
            pattern.match(text)
            for pattern in (STAGE_START_PATTERN, DVC_PATTERN, UNKNOWN_BAR_PATTERN)
        ):
            self.show(f"{stage} | {text}")


class LogDisplay(RunDisplay):
    """Lines for a file or a pipe; a stage reports its progress once a minute."""

    def __init__(self) -> None:
        self._shown_at: dict[str, float] = {}

    def show(self, text: str) -> None:
        print(text, flush=True)

    def start(self, stage: str, headline: str) -> None:
        self._shown_at[stage] = time.monotonic()
        super().start(stage, headline)

    def update(self, stage: str, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown_at.get(stage, -LOG_PROGRESS_SECONDS) >= LOG_PROGRESS_SECONDS:
            self._shown_at[stage] = now
            self.show(
                f"{stage} | {what}: {done} of {total}" if what else f"{stage} | {done} of {total}"
            )


class TerminalDisplay(RunDisplay):
    """One bar for each running stage, below the lines that stay."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed()
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        self._bars.stop()

    def show(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, stage: str, headline: str) -> None:
        super().start(stage, headline)
        self._tasks[stage] = self._bars.add_task(stage, total=None)

    def update(self, stage: str, what: str, done: int, total: int) -> None:
        if stage in self._tasks:
            description = f"{stage}: {what}" if what else stage
            self._bars.update(
                self._tasks[stage], description=description, completed=done, total=total
            )

    def end(self, stage: str, seconds: float) -> None:
        self._bars.remove_task(self._tasks.pop(stage))
        super().end(stage, seconds)


def create_display() -> RunDisplay:
    """A display for standard output; lines for a terminal that has no width."""
    if not sys.stdout.isatty():
        return LogDisplay()
    from rich.console import Console

    return TerminalDisplay() if Console().width > 0 else LogDisplay()
