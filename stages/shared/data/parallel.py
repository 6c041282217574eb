"""Map a function over batches in parallel. Results and their order do not depend on the backend.

`inline` runs in this process; `threads` in threads of it, for functions that release the GIL, such
as those of OpenCV and ONNX; `process` in separate processes; `ray` on the cluster at RAY_ADDRESS,
or on this machine. Ray must be installed separately.
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

PENDING_BATCHES_PER_WORKER = 2  # batches per worker that are in memory at the same time


@config_class
class EngineConfig:
    """The section `parallel`."""

    backend: Literal["inline", "threads", "process", "ray"] = Field(
        description="where batches are processed"
    )
    workers: int = Field(ge=0, description="batches at the same time; 0: one per thread")


def map_batches(
    function: Callable[[list[T]], list[R]], batches: Iterable[list[T]], config: EngineConfig
) -> Iterator[list[R]]:
    """Yields `function(batch)` for each batch, in order; an exception stops the iteration.

    `process` and `ray` pickle the function: it must be a module-level function or a partial of one.
    Raises InputError if the backend is `ray` and Ray is not installed.
    """
    workers = config.workers or get_num_threads()
    match config.backend:
        case "inline":
            yield from map(function, batches)
        case "threads":
            with ThreadPoolExecutor(workers) as pool:
                yield from _map_with_pool(pool, function, batches, workers)
        case "process":
            # A fork would copy locks that other threads hold.
            spawn = get_context("spawn")
            with ProcessPoolExecutor(workers, spawn, initializer=kill_when_parent_dies) as pool:
                yield from _map_with_pool(pool, function, batches, workers)
        case "ray":
            yield from _map_with_ray(function, batches, workers)


def get_num_cores() -> int:
    """The cores that this process may use, if the system reports them, else all cores."""
    affinity = getattr(os, "sched_getaffinity", None)  # only on Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def get_num_threads() -> int:
    """The number of threads of a stage: OMP_NUM_THREADS, or one per core."""
    value = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # the outermost level
    return int(value) if value.isdecimal() and int(value) else get_num_cores()


def _map_with_pool(
    pool: Executor, function: Callable[[list[T]], list[R]], batches: Iterable[list[T]], workers: int
) -> Iterator[list[R]]:
    pending: deque = deque()
    try:
        for batch in batches:
            pending.append(pool.submit(function, batch))
            if len(pending) >= workers * PENDING_BATCHES_PER_WORKER:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:  # after an exception, do not start the rest
            future.cancel()


def _map_with_ray(
    function: Callable[[list[T]], list[R]], batches: Iterable[list[T]], workers: int
) -> Iterator[list[R]]:
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError:
        raise InputError(
            "config/runner.yaml: parallel.backend is ray, which is not installed: run `pip install "
            "ray`, or give process"
        ) from None
    ray.init(address=os.environ.get("RAY_ADDRESS"), ignore_reinit_error=True)
    remote, pending = ray.remote(as_plain_function(function)), deque()
    for batch in batches:
        pending.append(remote.remote(batch))
        if len(pending) >= workers * PENDING_BATCHES_PER_WORKER:
            yield ray.get(pending.popleft())
    while pending:
        yield ray.get(pending.popleft())


def as_plain_function(function: Callable[[list[T]], list[R]]) -> Callable[[list[T]], list[R]]:
    """`function` wrapped in a plain function, because Ray does not accept a partial."""

    def call(batch: list[T]) -> list[R]:
        return function(batch)

    return call
