"""Timing of alternative implementations: interleaved runs, median of several rounds."""

import time
from collections.abc import Callable
from statistics import median

CLOCKS = {"wall": time.perf_counter, "CPU": time.process_time}


def time_interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall-clock seconds of each function.

    The functions take turns, so that other load on the machine affects all of them.
    """
    return time_by_clock(functions, rounds)["wall"]


def time_by_clock(
    functions: dict[str, Callable[[], object]], rounds: int
) -> dict[str, dict[str, float]]:
    """Median seconds by clock and function: wall-clock time and CPU time of all cores.

    CPU time depends less on other load on the machine.
    """
    seconds: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in functions} for clock in CLOCKS
    }
    for function in functions.values():
        function()  # warm-up: allocation and threads
    for _ in range(rounds):
        for name, function in functions.items():
            started = {clock: now() for clock, now in CLOCKS.items()}
            function()
            for clock, now in CLOCKS.items():
                seconds[clock][name].append(now() - started[clock])
    return {
        clock: {name: median(times) for name, times in by_name.items()}
        for clock, by_name in seconds.items()
    }
