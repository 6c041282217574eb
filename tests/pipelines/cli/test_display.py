"""A run shows one bar for each running stage on a terminal, and sparse lines in a log."""

import io

import pytest
from tqdm import tqdm

from pipelines.cli import display
from pipelines.cli.display import LogDisplay, TerminalDisplay


def draw_bars(total: int, description: str | None = "images") -> list[str]:
    """The lines that tqdm writes to a pipe."""
    file = io.StringIO()
    bar = tqdm(range(total), description, file=file, mininterval=0, miniters=1)
    for _ in bar:
        pass
    return [line + "\r" for line in file.getvalue().split("\r") if line.strip()]


def test_a_log_has_a_progress_line_of_a_stage_once_a_minute(monkeypatch, capsys):
    clock = 100.0
    monkeypatch.setattr(display.time, "monotonic", lambda: clock)
    with LogDisplay() as shown:
        shown.start("embed@memes", "stage 1 of 2: embed@memes, about 0:30 left")
        for number, line in enumerate(draw_bars(20)):
            clock = 100.0 + 7 * number
            shown.show_output("embed@memes", line)
        shown.end("embed@memes", 140)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stage 1 of 2: embed@memes, about 0:30 left"
    assert lines[1:-1] == [
        "embed@memes | images: 9 of 20",
        "embed@memes | images: 18 of 20",
    ]
    assert lines[-1] == "embed@memes: done in 2:20"


@pytest.mark.parametrize(
    "line",
    [
        "Running stage 'embed@memes':\n",
        "> exec python -m stages.embed\n",
        "Updating lock file 'dvc.lock'\n",
        "12it [00:00, 30.1it/s]\r",
    ],
)
def test_lines_of_dvc_that_say_nothing_new_are_hidden(line, capsys):
    LogDisplay().show_output("embed@memes", line)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("line", ["warning: 3 of 20 images are blank\n", "50% of it\n", "a > b\n"])
def test_messages_of_a_stage_are_shown_with_its_name(line, capsys):
    LogDisplay().show_output("embed@memes", line)
    assert capsys.readouterr().out == f"embed@memes | {line}"


@pytest.mark.parametrize("description", [None, "judge"])
def test_the_bar_of_a_whole_stage_is_not_named_twice(description, capsys):
    LogDisplay().show_output("judge", draw_bars(3, description)[1])
    assert capsys.readouterr().out == "judge | 1 of 3\n"


def test_a_terminal_has_one_bar_for_each_running_stage(monkeypatch):
    with TerminalDisplay() as shown:
        shown.start("a", "stage 1 of 2: a, about 0:30 left")
        shown.start("b", "stage 2 of 2: b, about 0:30 left")
        for line in draw_bars(4)[:3]:
            shown.show_output("a", line)
        shown.show_output("late", draw_bars(4)[0])  # output of a stage without a bar
        (first, second) = shown._bars.tasks
        assert (first.description, first.completed, first.total) == ("a: images", 2, 4)
        assert (second.description, second.total) == ("b", None)
        shown.end("a", 3)
        assert [task.description for task in shown._bars.tasks] == ["b"]
