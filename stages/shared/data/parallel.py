"""One small interface for work on many items: batch -> batch, in order, whichever engine runs it.

`inline` works in this process, `threads` beside each other in it (for work that leaves Python's
lock, as OpenCV and ONNX do), `process` in processes of their own, `ray` on the cluster at
RAY_ADDRESS or on this machine; Ray has to be installed. What comes out is the same.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from typing import Any, Literal, TypeVar

from stages.shared.core.config import Field, config_class
from stages.shared.runtime.stage import InputError, kill_when_parent_dies

T = TypeVar("T")
R = TypeVar("R")

PENDING_BATCHES_PER_WORKER = 2  # batches a worker that are in memory at once


@config_class
class EngineConfig:
    """The section `parallel`."""

    backend: Literal["inline", "threads", "process", "ray"]
    workers: int = Field(ge=0)


def map_batches(
    function: Callable[[list[T]], list[R]], batches: Iterable[list[T]], params: EngineConfig
) -> Iterator[list[R]]:
    """What `function` gives for each batch, in order; an exception ends the work.

    `process` and `ray` pickle the function, which must be one of a module, or a partial of one.
    """
    workers = params.workers or get_num_threads()
    match params.backend:
        case "inline":
            yield from map(function, batches)
        case "threads":
            with ThreadPoolExecutor(workers) as pool:
                yield from _map_with_pool(pool, function, batches, workers)
        case "process":
            # A fork would copy locks that other threads hold.
            fresh = get_context("spawn")
            with ProcessPoolExecutor(workers, fresh, initializer=kill_when_parent_dies) as pool:
                yield from _map_with_pool(pool, function, batches, workers)
        case "ray":
            yield from _map_with_ray(function, batches, workers)


def get_num_cores() -> int:
    """Those that this process may run on, where the system tells; else all."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def get_num_threads() -> int:
    """The threads that a stage may have: OMP_NUM_THREADS, or one a core."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # of nested levels the first
    return int(given) if given.isdecimal() and int(given) else get_num_cores()


def _map_with_pool(
    pool: Executor, function: Callable[[list[T]], list[R]], batches: Iterable[list[T]], workers: int
) -> Iterator[list[R]]:
    started: deque = deque()
    try:
        for batch in batches:
            started.append(pool.submit(function, batch))
            if len(started) >= workers * PENDING_BATCHES_PER_WORKER:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    finally:
        for future in started:  # of an exception: what has not begun need not begin
            future.cancel()


def _map_with_ray(
    function: Callable[[list[T]], list[R]], batches: Iterable[list[T]], workers: int
) -> Iterator[list[R]]:
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError:
        raise InputError(
            "params.yaml: parallel.backend is ray, which is not installed: run `pip install ray`, or "
            "give process"
        ) from None
    ray.init(address=os.environ.get("RAY_ADDRESS"), ignore_reinit_error=True)
    remote, started = ray.remote(as_plain_function(function)), deque()
    for batch in batches:
        started.append(remote.remote(batch))
        if len(started) >= workers * PENDING_BATCHES_PER_WORKER:
            yield ray.get(started.popleft())
    while started:
        yield ray.get(started.popleft())


def as_plain_function(function: Callable[[list[T]], list[R]]) -> Callable[[list[T]], list[R]]:
    """The same as a plain function: Ray takes no partial."""

    def call(batch: list[T]) -> list[R]:
        return function(batch)

    return call
