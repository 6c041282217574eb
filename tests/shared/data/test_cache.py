import os
import signal
import sqlite3
import subprocess
import sys
from hashlib import sha256

import pytest

from stages.shared.data.cache import Store

WRITER = """
import sys, time
from pathlib import Path
from hashlib import sha256
from stages.shared.data.cache import Store

def compute(contents):
    print("batch", flush=True)
    time.sleep(float(sys.argv[2]))
    return [content.encode() * 1000 for content in contents]

contents = [str(i) for i in range(int(sys.argv[3]))]
items = [(sha256(content.encode()).hexdigest(), content) for content in contents]
Store(Path(sys.argv[1]), "test").compute_missing(items, compute, 4)
"""


def key(content: str) -> str:
    return sha256(content.encode()).hexdigest()


def items(*contents: str) -> list[tuple[str, str]]:
    return [(key(content), content) for content in contents]


def upper(contents: list[str]) -> list[bytes]:
    return [content.upper().encode() for content in contents]


def start(folder, seconds: float, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(folder), str(seconds), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=os.getcwd())


def test_rows_are_read_in_the_order_of_the_keys(tmp_path):
    store = Store(tmp_path, "upper")
    store.compute_missing(items("a", "b", "c"), upper, 2)
    assert list(store.read([key("c"), key("a"), key("c")])) == [b"C", b"A", b"C"]


def test_only_missing_rows_are_computed_even_by_a_later_store(tmp_path):
    Store(tmp_path, "upper").compute_missing(items("a", "b"), upper, 2)
    computed = []
    store = Store(tmp_path, "upper")
    store.compute_missing(
        items("a", "x", "b", "x"), lambda part: computed.extend(part) or upper(part), 1
    )
    assert computed == ["x"]
    assert store.missing_keys([key("a"), key("y"), key("x"), key("y")]) == [key("y")]


def test_every_batch_has_the_same_size(tmp_path):
    sizes = []
    store = Store(tmp_path, "upper")
    store.compute_missing(items("b"), upper, 1)
    store.compute_missing(
        items(*"abcdefgh"), lambda part: sizes.append(len(part)) or upper(part), 3
    )
    assert sizes == [3, 3, 3]
    assert list(store.read(map(key, "abcdefgh"))) == [c.encode() for c in "ABCDEFGH"]


def test_stores_of_different_fingerprints_are_separate(tmp_path):
    Store(tmp_path, "upper").compute_missing(items("a"), upper, 1)
    assert Store(tmp_path, "lower").missing_keys([key("a")]) == [key("a")]


def test_a_key_without_a_row_is_an_error(tmp_path):
    with pytest.raises(KeyError):
        list(Store(tmp_path, "upper").read([key("a")]))


def test_a_failed_write_leaves_no_row(tmp_path):
    store = Store(tmp_path, "upper")

    def failing_rows():
        yield key("a"), b"A"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.write(failing_rows())
    with pytest.raises(sqlite3.Error):
        store.write([(key("b"), b"B"), (key("c"), None)])
    assert store.missing_keys(map(key, "abc")) == [key(content) for content in "abc"]


def test_finished_batches_survive_a_kill_and_the_rest_is_computed(tmp_path):
    writer = start(tmp_path, 0.2, 40)
    for _ in range(4):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    contents = [str(i) for i in range(40)]
    store = Store(tmp_path, "test")
    missing = store.missing_keys(map(key, contents))
    assert 0 < len(missing) <= 40 - 3 * 4  # three batches were written before the fourth began
    computed = []
    store.compute_missing(
        items(*contents),
        lambda part: computed.extend(part) or [content.encode() * 1000 for content in part],
        4,
    )
    assert {key(content) for content in computed} == set(missing)
    assert list(store.read(map(key, contents))) == [c.encode() * 1000 for c in contents]


def test_concurrent_writers_lose_no_row(tmp_path):
    writers = [start(tmp_path, 0.0, 400) for _ in range(3)]
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    contents = [str(i) for i in range(400)]
    rows = list(Store(tmp_path, "test").read(map(key, contents)))
    assert rows == [content.encode() * 1000 for content in contents]
    database = sqlite3.connect(next(tmp_path.glob("*.sqlite")))
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_hundred_thousand_rows_take_few_files(tmp_path):
    store = Store(tmp_path, "many")
    names = [key(str(i)) for i in range(100_000)]
    store.write((name, b"x" * 64) for name in names)
    assert store.missing_keys(names) == []
    assert len(list(tmp_path.iterdir())) <= 4
