"""All backends give the same results in the same order."""

import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest

from stages.shared.data import parallel
from stages.shared.data.parallel import EngineConfig
from stages.shared.runtime.stage import InputError

BATCHES = [list(range(start, start + 3)) for start in range(0, 30, 3)]


def squares(add: int, batch: list[int]) -> list[int]:
    time.sleep(0.01 * (batch[0] % 2))  # every second batch finishes before its predecessor
    return [number**2 + add for number in batch]


def fail(batch: list[int]) -> list[int]:
    if 12 in batch:
        raise ValueError("twelve")
    return batch


@pytest.mark.parametrize("backend", ["inline", "threads", "process"])
def test_results_are_in_the_order_of_the_batches(backend):
    results = parallel.map_batches(
        partial(squares, 1), iter(BATCHES), EngineConfig(backend=backend, workers=2)
    )
    assert list(results) == [squares(1, batch) for batch in BATCHES]


@pytest.mark.parametrize("backend", ["inline", "threads", "process"])
def test_an_exception_stops_the_iteration(backend):
    results = parallel.map_batches(fail, iter(BATCHES), EngineConfig(backend=backend, workers=2))
    with pytest.raises(ValueError, match="twelve"):
        list(results)


def test_the_number_of_pending_batches_is_limited():
    started, lock = [], threading.Lock()

    def batches():
        for batch in BATCHES:
            with lock:
                started.append(batch)
            yield batch

    results = parallel.map_batches(
        lambda batch: batch, batches(), EngineConfig(backend="threads", workers=2)
    )
    next(results)
    assert len(started) == 2 * parallel.PENDING_BATCHES_PER_WORKER
    results.close()


@pytest.mark.parametrize(
    ("threads", "workers"), [("", 3), ("2", 2), ("5,2", 5), ("0", 3), ("many", 3)]
)
def test_zero_workers_means_one_per_thread(monkeypatch, threads, workers):
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    barrier = threading.Barrier(workers, timeout=10)  # passed only if all run concurrently
    batches = [[number] for number in range(workers)]
    results = parallel.map_batches(
        lambda batch: [barrier.wait() and batch],
        batches,
        EngineConfig(backend="threads", workers=0),
    )
    assert len(list(results)) == workers
    assert parallel.get_num_threads() == workers


def test_missing_ray_is_an_input_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="run `pip install ray`, or give process"):
        list(parallel.map_batches(fail, BATCHES, EngineConfig(backend="ray", workers=2)))


def test_ray_gets_a_plain_function_and_the_address_of_the_cluster(monkeypatch):
    """With a fake of Ray that calls the function immediately."""
    init_options = {}
    ray = SimpleNamespace(
        init=lambda **options: init_options.update(options),
        remote=lambda function: SimpleNamespace(remote=function),
        get=lambda value: value,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    results = parallel.map_batches(
        partial(squares, 1), iter(BATCHES), EngineConfig(backend="ray", workers=2)
    )
    assert list(results) == [squares(1, batch) for batch in BATCHES]
    assert init_options["address"] == "ray://head:10001"
