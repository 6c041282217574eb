"""Whatever runs the batches, the same comes out, in their order."""

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
    time.sleep(0.01 * (batch[0] % 2))  # the later one is ready first
    return [number**2 + add for number in batch]


def fail(batch: list[int]) -> list[int]:
    if 12 in batch:
        raise ValueError("twelve")
    return batch


@pytest.mark.parametrize("kind", ["inline", "threads", "process"])
def test_batches_come_out_in_order(kind):
    found = parallel.map_batches(partial(squares, 1), iter(BATCHES), EngineConfig(backend=kind, workers=2))
    assert list(found) == [squares(1, batch) for batch in BATCHES]


@pytest.mark.parametrize("kind", ["inline", "threads", "process"])
def test_an_exception_ends_the_work(kind):
    found = parallel.map_batches(fail, iter(BATCHES), EngineConfig(backend=kind, workers=2))
    with pytest.raises(ValueError, match="twelve"):
        list(found)


def test_no_more_batches_are_in_memory_than_workers_need():
    taken, lock = [], threading.Lock()

    def batches():
        for batch in BATCHES:
            with lock:
                taken.append(batch)
            yield batch

    found = parallel.map_batches(lambda batch: batch, batches(), EngineConfig(backend="threads", workers=2))
    next(found)
    assert len(taken) == 2 * parallel.PENDING_BATCHES_PER_WORKER
    found.close()


@pytest.mark.parametrize(
    ("threads", "workers"), [("", 3), ("2", 2), ("5,2", 5), ("0", 3), ("many", 3)]
)
def test_zero_workers_are_as_many_as_a_stage_has_threads(monkeypatch, threads, workers):
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    met = threading.Barrier(workers, timeout=10)  # none goes on before so many have come
    batches = [[number] for number in range(workers)]
    found = parallel.map_batches(
        lambda batch: [met.wait() and batch], batches, EngineConfig(backend="threads", workers=0)
    )
    assert len(list(found)) == workers
    assert parallel.get_num_threads() == workers


def test_ray_is_asked_for_in_one_sentence_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="run `pip install ray`, or give process"):
        list(parallel.map_batches(fail, BATCHES, EngineConfig(backend="ray", workers=2)))


def test_ray_gets_a_plain_function_and_the_address_of_its_cluster(monkeypatch):
    """A stand-in that runs at once what it is given."""
    asked = {}
    ray = SimpleNamespace(
        init=lambda **options: asked.update(options),
        remote=lambda function: SimpleNamespace(remote=function),
        get=lambda found: found,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    found = parallel.map_batches(partial(squares, 1), iter(BATCHES), EngineConfig(backend="ray", workers=2))
    assert list(found) == [squares(1, batch) for batch in BATCHES]
    assert asked["address"] == "ray://head:10001"
