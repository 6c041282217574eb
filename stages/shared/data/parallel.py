"""One small interface for work on many items: batch -> batch, in order, whichever engine runs it.

`inline` works in this process, `threads` beside each other in it (for work that leaves Python's
lock, as OpenCV and ONNX do), `process` in processes of their own, `ray` on the cluster at
RAY_ADDRESS or on this machine; Ray has to be installed. What comes out is the same.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from typing import Any, Literal, TypeVar

from stages.shared.core.config import at_least
from stages.shared.runtime.stage import WrongInput, die_with_parent

T = TypeVar("T")
R = TypeVar("R")

WAITING = 2  # batches a worker that are in memory at once


@dataclass(frozen=True)
class Params:
    """The section `engine`."""

    kind: Literal["inline", "threads", "process", "ray"]
    workers: int

    def __post_init__(self) -> None:
        at_least(self, workers=0)


def run(
    function: Callable[[list[T]], list[R]], batches: Iterable[list[T]], params: Params
) -> Iterator[list[R]]:
    """What `function` gives for each batch, in order; an exception ends the work.

    `process` and `ray` pickle the function, which must be one of a module, or a partial of one.
    """
    workers = params.workers or share()
    match params.kind:
        case "inline":
            yield from map(function, batches)
        case "threads":
            with ThreadPoolExecutor(workers) as pool:
                yield from _pooled(pool, function, batches, workers)
        case "process":
            # A fork would copy locks that other threads hold.
            fresh = get_context("spawn")
            with ProcessPoolExecutor(workers, fresh, initializer=die_with_parent) as pool:
                yield from _pooled(pool, function, batches, workers)
        case "ray":
            yield from _ray(function, batches, workers)


def cores() -> int:
    """Those that this process may run on, where the system tells; else all."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def share() -> int:
    """The threads that a stage may have: OMP_NUM_THREADS, or one a core."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # of nested levels the first
    return int(given) if given.isdecimal() and int(given) else cores()


def _pooled(
    pool: Executor, function: Callable[[list[T]], list[R]], batches: Iterable[list[T]], workers: int
) -> Iterator[list[R]]:
    started: deque = deque()
    try:
        for batch in batches:
            started.append(pool.submit(function, batch))
            if len(started) >= workers * WAITING:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    finally:
        for future in started:  # of an exception: what has not begun need not begin
            future.cancel()


def _ray(
    function: Callable[[list[T]], list[R]], batches: Iterable[list[T]], workers: int
) -> Iterator[list[R]]:
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError:
        raise WrongInput(
            "params.yaml: engine.kind is ray, which is not installed: run `pip install ray`, or "
            "give process"
        ) from None
    ray.init(address=os.environ.get("RAY_ADDRESS"), ignore_reinit_error=True)
    remote, started = ray.remote(function_of(function)), deque()
    for batch in batches:
        started.append(remote.remote(batch))
        if len(started) >= workers * WAITING:
            yield ray.get(started.popleft())
    while started:
        yield ray.get(started.popleft())


def function_of(function: Callable[[list[T]], list[R]]) -> Callable[[list[T]], list[R]]:
    """The same as a plain function: Ray takes no partial."""

    def call(batch: list[T]) -> list[R]:
        return function(batch)

    return call
