"""Progress of a run: the number of the current stage and the estimated time left.

reads and writes  POLYMUSE_HOME/durations.json
"""

import json
import re
import time
from pathlib import Path

from pipelines.project import write_atomically
from stages.shared.runtime.stage import work_dir

STAGE_START_PATTERN = re.compile(r"Running stage '(.+)':")
PRIOR_SECONDS = 20.0  # weight of "this machine is as fast as planned", in planned seconds


class StageDurations:
    """Measured durations of stages on this machine, with `run.cpu_budget` as the default.

    A stage runs on as many threads as share the cores with the others, so that its CPU seconds are
    an estimate of its duration beside other stages. Durations are stored per budget: a preset with
    other budgets, such as smoke, has measurements of its own.
    """

    def __init__(self, budgets: dict[str, float]):
        self.budgets = budgets  # by stage@row or by stage
        self.file = work_dir() / "durations.json"
        self.measured_seconds = _read_durations(self.file)

    def estimate(self, stage: str) -> float:
        """Expected duration of `stage` in seconds; 0 if params.yaml does not name it."""
        return self.measured_seconds.get(self._key(stage), self.budget(stage))

    def budget(self, stage: str) -> float:
        """Planned CPU seconds of `stage`; 0 if params.yaml does not name it."""
        name, _, _ = stage.partition("@")
        return self.budgets.get(stage, self.budgets.get(name, 0.0))

    def record(self, stage: str, seconds: float) -> None:
        """Store the measured duration of `stage`."""
        self.measured_seconds[self._key(stage)] = round(seconds, 1)
        write_atomically(self.file, json.dumps(self.measured_seconds, indent=1, sort_keys=True))

    def _key(self, stage: str) -> str:
        return f"{stage} expected {self.budget(stage):g}"


def _read_durations(file: Path) -> dict[str, float]:
    """The stored durations; none if there are none, or if the file is damaged."""
    try:
        durations = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    values = durations.items() if isinstance(durations, dict) else ()
    return {key: value for key, value in values if isinstance(value, int | float)}


class RunProgress:
    """Headlines with the progress of a run, one for each stage that DVC executes.

    critical_path: stage -> seconds from its start to the end of the longest chain of stages that
    depend on it. workers: number of stages that run at once.
    """

    def __init__(self, critical_path: dict[str, float], durations: StageDurations, workers: int):
        self.critical_path_seconds, self.durations, self.workers = critical_path, durations, workers
        # Before the first stage ends, so that `record` does not change what a run is compared with.
        self.estimates = {stage: durations.estimate(stage) for stage in critical_path}
        self.pending = list(critical_path)
        self.started_at: dict[str, float] = {}  # running stages
        self.finished: dict[str, float] = {}  # seconds of the stages that were executed

    def start_message(self, stage: str, line: str) -> str:
        """The headline if `line` is where `stage` starts to execute, else an empty string."""
        if stage in self.started_at or not STAGE_START_PATTERN.match(line):
            return ""
        self.pending.remove(stage)
        self.started_at[stage] = time.monotonic()
        total = len(self.critical_path_seconds)
        number, left = total - len(self.pending), format_clock(self.remaining_seconds())
        return f"stage {number} of {total}: {stage}, about {left} left"

    def record_end(self, stage: str) -> float | None:
        """Store the duration of a stage and return it.

        None for a stage that DVC skipped or restored from its cache.
        """
        if stage not in self.started_at:
            self.pending.remove(stage)
            return None
        seconds = time.monotonic() - self.started_at.pop(stage)
        self.finished[stage] = seconds
        self.durations.record(stage, seconds)
        return seconds

    def remaining_seconds(self) -> float:
        """Estimated seconds left: work divided by workers, but at least the critical path."""
        slowdown = self._slowdown()
        estimates = {stage: seconds * slowdown for stage, seconds in self.estimates.items()}
        now = time.monotonic()
        elapsed = {stage: now - start for stage, start in self.started_at.items()}
        elapsed |= dict.fromkeys(self.pending, 0.0)
        work = sum(max(0.0, estimates[stage] - elapsed[stage]) for stage in elapsed)
        longest = max(
            self.critical_path_seconds[stage] * slowdown - min(elapsed[stage], estimates[stage])
            for stage in elapsed
        )
        return max(longest, work / self.workers)

    def _slowdown(self) -> float:
        """Measured over estimated seconds of the stages of this run that have ended."""
        known = [stage for stage in self.finished if self.estimates[stage]]
        measured = sum(self.finished[stage] for stage in known)
        estimated = sum(self.estimates[stage] for stage in known)
        return (PRIOR_SECONDS + measured) / (PRIOR_SECONDS + estimated)


def format_clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"
