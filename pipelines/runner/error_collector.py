"""The error messages in the output of a stage, of DVC and of other commands of this project."""

import os

from pipelines.runner.eta import STAGE_START_PATTERN
from stages.shared.runtime.errors import InputError, TemporaryError


class ErrorCollector:
    """Collects the error messages of a stage and of DVC, so that they can be shown last."""

    def __init__(self) -> None:
        self.current_stage = ""
        self.stage_error = ""
        self.dvc_error = ""

    def collect(self, line: str) -> bool:
        """Whether `line` is an error message."""
        if start := STAGE_START_PATTERN.match(line):
            self.current_stage, self.stage_error = start[1], ""
        elif line.startswith("error: "):
            self.stage_error = line.removeprefix("error: ").strip()
        elif line.startswith("ERROR: "):
            self.dvc_error = line.removeprefix("ERROR: ").strip()
        else:
            return False
        return not start

    def to_error(self, command: list[str], code: int) -> InputError:
        """The error of a command that ended with exit code `code`.

        A TemporaryError if that of the stage, which DVC repeats, says that it may succeed later.
        """
        is_temporary = self.dvc_error.endswith(f"exited with {os.EX_TEMPFAIL}")
        kind = TemporaryError if is_temporary else InputError
        return kind(self.to_sentence(command, code))

    def to_sentence(self, command: list[str], code: int) -> str:
        """One sentence for a command that ended with exit code `code`."""
        if self.stage_error:
            prefix = f"{self.current_stage}: " if self.current_stage else ""
            return prefix + self.stage_error
        return self.dvc_error or f"{' '.join(command)} ended with exit code {code}"
