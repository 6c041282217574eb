"""How two ways to do the same are timed: interleaved, the median of several, as a ratio."""

import time
from collections.abc import Callable
from statistics import median

CLOCKS = {"wall": time.perf_counter, "CPU": time.process_time}


def time_interleaved(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way. They take turns, so that a busy moment hits all alike."""
    return time_by_clock(ways, rounds)["wall"]


def time_by_clock(
    ways: dict[str, Callable[[], object]], rounds: int
) -> dict[str, dict[str, float]]:
    """The same on the wall and of all cores together, which other work on the machine hits less."""
    seconds: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in ways} for clock in CLOCKS
    }
    for way in ways.values():
        way()  # warm-up: allocation and threads
    for _ in range(rounds):
        for name, way in ways.items():
            started = {clock: now() for clock, now in CLOCKS.items()}
            way()
            for clock, now in CLOCKS.items():
                seconds[clock][name].append(now() - started[clock])
    return {
        clock: {name: median(measured) for name, measured in of.items()}
        for clock, of in seconds.items()
    }
