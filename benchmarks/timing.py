"""How two ways to do the same are timed: interleaved, the median of several, as a ratio."""

import time
from collections.abc import Callable
from statistics import median


def interleaved(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each way. They take turns, so that a busy moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # warm-up: allocation and threads
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(measured) for name, measured in seconds.items()}
