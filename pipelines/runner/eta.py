"""How far a run is: which stage of how many, and the time left, from how long stages took before.

reads and writes  POLYMUSE_HOME/durations.json
"""

import json
import re
import time

from stages.shared.runtime.stage import home

STARTS = re.compile(r"Running stage '(.+)':")


class Durations:
    """Seconds that stages took on this machine; before the first time, what params.yaml expects.

    A measurement stands beside the expectation it was made under, so that the quick runs of a
    preset, which brings its own expectations, say nothing about the slow ones.
    """

    def __init__(self, expected: dict[str, float]):
        self.expected = expected  # seconds, by stage or by its verb
        self.file = home() / "durations.json"
        self.measured = json.loads(self.file.read_text()) if self.file.exists() else {}

    def seconds(self, stage: str) -> float:
        """How long `stage` will take; what nobody expected takes no time."""
        return self.measured.get(self._key(stage), self._expected(stage))

    def keep(self, stage: str, seconds: float) -> None:
        """Remember how long `stage` took."""
        self.measured[self._key(stage)] = round(seconds, 1)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.measured, indent=1, sort_keys=True))
        partial.rename(self.file)

    def _key(self, stage: str) -> str:
        return f"{stage} expected {self._expected(stage):g}"

    def _expected(self, stage: str) -> float:
        verb, _, _ = stage.partition("@")
        return self.expected.get(stage, self.expected.get(verb, 0.0))


class Progress:
    """Says where a run stands whenever DVC begins to execute a stage.

    way: of each stage of the run the seconds from its start to the end of the last that waits for
    it; workers: stages that run at once
    """

    def __init__(self, way: dict[str, float], durations: Durations, workers: int):
        self.way, self.durations, self.workers = way, durations, workers
        self.waiting = list(way)
        self.began: dict[str, float] = {}  # of each stage that runs

    def starts(self, stage: str, line: str) -> str:
        """The headline to show before this line of a stage's where it starts, otherwise nothing."""
        if stage in self.began or not STARTS.match(line):
            return ""
        self.waiting.remove(stage)
        self.began[stage] = time.monotonic()
        place = len(self.way) - len(self.waiting)
        return f"stage {place} of {len(self.way)}: {stage}, about {clock(self.left())} left"

    def ends(self, stage: str) -> None:
        """Keep how long the stage took; nothing where DVC skipped it or had it in its cache."""
        if stage in self.began:
            self.durations.keep(stage, time.monotonic() - self.began.pop(stage))
        else:
            self.waiting.remove(stage)

    def left(self) -> float:
        """Seconds: what all workers share, or the longest way if it takes longer."""
        now = time.monotonic()
        passed = {stage: now - began for stage, began in self.began.items()}
        passed |= dict.fromkeys(self.waiting, 0.0)
        seconds = {stage: self.durations.seconds(stage) for stage in passed}
        work = sum(max(0.0, seconds[stage] - passed[stage]) for stage in passed)
        longest = max(self.way[stage] - min(passed[stage], seconds[stage]) for stage in passed)
        return max(longest, work / self.workers)


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"
