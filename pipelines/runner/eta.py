"""Progress of a run: the number of the current stage and the estimated time left.

reads and writes  POLYMUSE_HOME/durations.json
"""

import json
import re
import time

from stages.shared.runtime.stage import work_dir

STAGE_START_PATTERN = re.compile(r"Running stage '(.+)':")


class StageDurations:
    """Measured durations of stages on this machine, with `run.expected_seconds` as the default.

    Durations are stored per expected value: a preset with other expected values, such as smoke,
    has measurements of its own.
    """

    def __init__(self, expected: dict[str, float]):
        self.expected_seconds = expected  # by stage@row or by stage
        self.file = work_dir() / "durations.json"
        self.measured_seconds = json.loads(self.file.read_text()) if self.file.exists() else {}

    def estimate(self, stage: str) -> float:
        """Expected duration of `stage` in seconds; 0 if params.yaml does not name it."""
        return self.measured_seconds.get(self._key(stage), self._expected(stage))

    def record(self, stage: str, seconds: float) -> None:
        """Store the measured duration of `stage`."""
        self.measured_seconds[self._key(stage)] = round(seconds, 1)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.measured_seconds, indent=1, sort_keys=True))
        partial.rename(self.file)

    def _key(self, stage: str) -> str:
        return f"{stage} expected {self._expected(stage):g}"

    def _expected(self, stage: str) -> float:
        name, _, _ = stage.partition("@")
        return self.expected_seconds.get(stage, self.expected_seconds.get(name, 0.0))


class RunProgress:
    """Headlines with the progress of a run, one for each stage that DVC executes.

    critical_path: stage -> seconds from its start to the end of the longest chain of stages that
    depend on it. workers: number of stages that run at once.
    """

    def __init__(self, critical_path: dict[str, float], durations: StageDurations, workers: int):
        self.critical_path_seconds, self.durations, self.workers = critical_path, durations, workers
        self.pending = list(critical_path)
        self.started_at: dict[str, float] = {}  # running stages

    def start_message(self, stage: str, line: str) -> str:
        """The headline if `line` is where `stage` starts to execute, else an empty string."""
        if stage in self.started_at or not STAGE_START_PATTERN.match(line):
            return ""
        self.pending.remove(stage)
        self.started_at[stage] = time.monotonic()
        total = len(self.critical_path_seconds)
        number, left = total - len(self.pending), format_clock(self.remaining_seconds())
        return f"stage {number} of {total}: {stage}, about {left} left"

    def record_end(self, stage: str) -> None:
        """Store the duration of a stage, unless DVC skipped it or restored it from its cache."""
        if stage in self.started_at:
            self.durations.record(stage, time.monotonic() - self.started_at.pop(stage))
        else:
            self.pending.remove(stage)

    def remaining_seconds(self) -> float:
        """Estimated seconds left: work divided by workers, but at least the critical path."""
        now = time.monotonic()
        elapsed = {stage: now - start for stage, start in self.started_at.items()}
        elapsed |= dict.fromkeys(self.pending, 0.0)
        estimates = {stage: self.durations.estimate(stage) for stage in elapsed}
        work = sum(max(0.0, estimates[stage] - elapsed[stage]) for stage in elapsed)
        longest = max(
            self.critical_path_seconds[stage] - min(elapsed[stage], estimates[stage])
            for stage in elapsed
        )
        return max(longest, work / self.workers)


def format_clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"
