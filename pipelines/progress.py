"""How far a run is: which stage of how many, and the time left, from how long stages took before.

reads and writes  POLYMUSE_HOME/durations.json
"""

import json
import re
import time

from stages.shared.stage import home

STARTS = re.compile(r"Running stage '(.+)':")
CACHED = re.compile(r"Stage '(.+)' is cached - skipping run")
SKIPPED = re.compile(r"Stage '(.+)' didn't change, skipping")


class Durations:
    """Seconds that stages took on this machine; before the first time, what params.yaml expects.

    A measurement stands beside the expectation it was made under, so that the quick runs of a
    preset, which brings its own expectations, say nothing about the slow ones.
    """

    def __init__(self, expected: dict[str, float]):
        self.expected = expected  # by verb: seconds
        self.file = home() / "durations.json"
        self.measured = json.loads(self.file.read_text()) if self.file.exists() else {}

    def seconds(self, stage: str) -> float:
        """How long `stage` will take; a verb that nobody expected takes no time."""
        return self.measured.get(self._key(stage), self.expected.get(_verb(stage), 0.0))

    def keep(self, stage: str, seconds: float) -> None:
        """Remember how long `stage` took."""
        self.measured[self._key(stage)] = round(seconds, 1)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.measured, indent=1, sort_keys=True))
        partial.rename(self.file)

    def _key(self, stage: str) -> str:
        return f"{stage} expected {self.expected.get(_verb(stage), 0.0):g}"


class Progress:
    """Follows what `dvc repro` writes and says where it stands at the start of each stage."""

    def __init__(self, stale: list[str], durations: Durations):
        self.waiting = list(stale)
        self.total = len(stale)
        self.durations = durations
        self.stage, self.since = "", 0.0  # the stage that runs, and when it began

    def starts(self, line: str) -> str:
        """The headline to show before `line` where it starts a stage, otherwise nothing."""
        found = STARTS.match(line) or CACHED.match(line) or SKIPPED.match(line)
        if not found:
            return ""
        self.ends()
        name = found[1]
        left = sum(map(self.durations.seconds, self.waiting))
        place = self.total - len(self.waiting) + 1
        if name not in self.waiting:
            return ""
        self.waiting.remove(name)
        if not STARTS.match(line):
            return ""
        self.stage, self.since = name, time.monotonic()
        return f"stage {place} of {self.total}: {name}, about {clock(left)} left"

    def ends(self) -> None:
        """Keep how long the stage took that ran until now, if one did."""
        if self.stage:
            self.durations.keep(self.stage, time.monotonic() - self.since)
            self.stage = ""


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


def _verb(stage: str) -> str:
    return stage.partition("@")[0]
