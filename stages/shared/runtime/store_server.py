"""One MLflow store for all stages of a driver, so that no stage has to import MLflow.

    with serve_store(store):      # the driver: `polymuse run` or the flow
        ...                       # in its stages, find_store() returns the store

The driver listens on a Unix socket in a folder that only the user can read; the stages get its
address and key as an environment variable. A stage without a driver (`dvc repro`, `dvc exp run`)
uses a store of its own.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

from stages.shared.runtime.mlflow_store import MlflowStore, TrackingError

if TYPE_CHECKING:
    from multiprocessing.connection import PipeConnection

SERVER_ENV = "POLYMUSE_TRACKING_SERVER"  # environment variable: KEY@SOCKET


class RemoteStore:
    """The methods of the driver's MlflowStore, called over a connection."""

    def __init__(self, connection: "Connection | PipeConnection"):
        self._connection, self._lock = connection, Lock()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._call, method)

    def _call(self, method: str, *arguments: Any) -> Any:
        with self._lock:
            try:
                self._connection.send((method, arguments))
                result = self._connection.recv()
            except (OSError, EOFError):
                raise TrackingError("the process that started this stage has ended") from None
        if isinstance(result, TrackingError):
            raise result
        return result


def find_store() -> MlflowStore | RemoteStore:
    """The store of the driver, else a store of this process. Raises InputError."""
    key, _, address = os.environ.get(SERVER_ENV, "").partition("@")
    if address:
        with suppress(OSError, EOFError, AuthenticationError):  # that driver has ended
            return RemoteStore(Client(address, authkey=key.encode()))
    return MlflowStore()


@contextmanager
def serve_store(store: MlflowStore) -> Iterator[None]:
    """Let the stages that are started in this block use `store`."""
    key, closed = token_hex(), Event()
    with TemporaryDirectory(prefix="polymuse-") as folder:
        address = str(Path(folder, "tracking"))
        with Listener(address, backlog=16, authkey=key.encode()) as listener:
            thread = Thread(target=_accept, args=[listener, store, closed], daemon=True)
            thread.start()
            os.environ[SERVER_ENV] = f"{key}@{address}"
            try:
                yield
            finally:
                del os.environ[SERVER_ENV]
                closed.set()
                Client(address, authkey=key.encode()).close()  # ends the last `accept`
                thread.join()


def _accept(listener: Listener, store: MlflowStore, closed: Event) -> None:
    """Answer each connection in a thread of its own, until the first one after `closed`."""
    while not closed.is_set():
        # That process was killed, or has another key.
        with suppress(OSError, EOFError, AuthenticationError):
            connection = listener.accept()
            Thread(target=_answer, args=[connection, store], daemon=True).start()


def _answer(connection: Connection, store: MlflowStore) -> None:
    with connection, suppress(OSError, EOFError):  # the stage has ended
        while True:
            method, arguments = connection.recv()
            try:
                result = getattr(store, method)(*arguments)
            except TrackingError as error:
                result = error
            connection.send(result)
