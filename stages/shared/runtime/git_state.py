"""The state of the project's git repository, which MLflow runs are tagged with."""

import subprocess
from dataclasses import dataclass

MAX_PATCH_CHARACTERS = 1_000_000  # a longer one is not uploaded


@dataclass(frozen=True)
class GitState:
    """commit: the full hash. branch: "" if HEAD is detached. patch: what is not committed.

    is_dirty: whether tracked files differ from the commit, or there are untracked ones.
    """

    commit: str
    branch: str
    is_dirty: bool
    patch: str


def read_git_state() -> GitState | None:
    """The state of the current folder's repository; None without git, repository or commit."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return GitState(
        commit=commit.strip(),
        branch=(_git("symbolic-ref", "--short", "HEAD") or "").strip(),
        is_dirty=bool(_git("status", "--porcelain")),
        patch=_git("diff", "HEAD") or "",
    )


def _git(*arguments: str) -> str | None:
    """The output of a git command; None if it fails or git is not installed."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
