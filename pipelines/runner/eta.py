"""How far a run is: which stage of how many, and the time left, from how long stages took before.

reads and writes  POLYMUSE_HOME/durations.json
"""

import json
import re
import time

from stages.shared.runtime.stage import work_dir

STAGE_START_PATTERN = re.compile(r"Running stage '(.+)':")


class StageDurations:
    """Seconds that stages took on this machine; before the first time, what params.yaml expects.

    A measurement stands beside the expectation it was made under, so that the quick runs of a
    preset, which brings its own expectations, say nothing about the slow ones.
    """

    def __init__(self, expected: dict[str, float]):
        self.expected_seconds = expected  # seconds, by stage or by its verb
        self.file = work_dir() / "durations.json"
        self.measured_seconds = json.loads(self.file.read_text()) if self.file.exists() else {}

    def estimate(self, stage: str) -> float:
        """How long `stage` will take; what nobody expected takes no time."""
        return self.measured_seconds.get(self._key(stage), self._expected(stage))

    def record(self, stage: str, seconds: float) -> None:
        """Remember how long `stage` took."""
        self.measured_seconds[self._key(stage)] = round(seconds, 1)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.measured_seconds, indent=1, sort_keys=True))
        partial.rename(self.file)

    def _key(self, stage: str) -> str:
        return f"{stage} expected {self._expected(stage):g}"

    def _expected(self, stage: str) -> float:
        verb, _, _ = stage.partition("@")
        return self.expected_seconds.get(stage, self.expected_seconds.get(verb, 0.0))


class RunProgress:
    """Says where a run stands whenever DVC begins to execute a stage.

    way: of each stage of the run the seconds from its start to the end of the last that waits for
    it; workers: stages that run at once
    """

    def __init__(self, way: dict[str, float], durations: StageDurations, workers: int):
        self.critical_path_seconds, self.durations, self.workers = way, durations, workers
        self.pending = list(way)
        self.started_at: dict[str, float] = {}  # of each stage that runs

    def start_message(self, stage: str, line: str) -> str:
        """The headline to show before this line of a stage's where it starts, otherwise nothing."""
        if stage in self.started_at or not STAGE_START_PATTERN.match(line):
            return ""
        self.pending.remove(stage)
        self.started_at[stage] = time.monotonic()
        place = len(self.critical_path_seconds) - len(self.pending)
        return f"stage {place} of {len(self.critical_path_seconds)}: {stage}, about {format_clock(self.remaining_seconds())} left"

    def record_end(self, stage: str) -> None:
        """Keep how long the stage took; nothing where DVC skipped it or had it in its cache."""
        if stage in self.started_at:
            self.durations.record(stage, time.monotonic() - self.started_at.pop(stage))
        else:
            self.pending.remove(stage)

    def remaining_seconds(self) -> float:
        """Seconds: what all workers share, or the longest way if it takes longer."""
        now = time.monotonic()
        passed = {stage: now - began for stage, began in self.started_at.items()}
        passed |= dict.fromkeys(self.pending, 0.0)
        seconds = {stage: self.durations.estimate(stage) for stage in passed}
        work = sum(max(0.0, seconds[stage] - passed[stage]) for stage in passed)
        longest = max(
            self.critical_path_seconds[stage] - min(passed[stage], seconds[stage])
            for stage in passed
        )
        return max(longest, work / self.workers)


def format_clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"
