"""The checks of `polymuse doctor`. A check returns one line and the problems that it found."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Repair:
    """What `polymuse doctor --fix` does: a phrase, and the function that does it.

    A repair deletes or moves only what is computed again, and migrates only after a backup.
    """

    phrase: str
    apply: Callable[[], object]


@dataclass(frozen=True)
class Problem:
    """Something wrong. fix: what mends it, usually a command; repair: if that is `--fix`."""

    text: str
    fix: str
    repair: Repair | None = None

    def __str__(self) -> str:
        return f"{self.text}: {self.fix}"


@dataclass(frozen=True)
class CheckResult:
    """summary: what was checked, for the case that there is no problem."""

    summary: str
    problems: list[Problem] = field(default_factory=list)


def fixable(text: str, phrase: str, apply: Callable[[], object]) -> Problem:
    """A problem that `polymuse doctor --fix` mends."""
    return Problem(text, f"run `polymuse doctor --fix`, which {phrase}", Repair(phrase, apply))
