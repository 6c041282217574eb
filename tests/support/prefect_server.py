"""A real Prefect server with all its services, started as users do."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.support.free_port import find_free_port
from tests.support.meeting_commands import COMMAND_TIMEOUT_SECONDS, PATH
from tests.support.tiny_dvc_project import wait_until


@contextmanager
def serve_prefect(
    home: Path, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """Yields the address of the API, which is that of this process and its children."""
    port = find_free_port()
    address = f"http://127.0.0.1:{port}/api"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("PREFECT_API_URL", address)
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        process = subprocess.Popen(
            ["prefect", "server", "start", "--port", str(port)],
            env=os.environ | {"PATH": PATH} | dict(environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: responds(address), COMMAND_TIMEOUT_SECONDS)
            with temporary_settings({PREFECT_API_URL: address}):
                yield address
        finally:
            process.terminate()
            process.wait(60)


def responds(address: str) -> bool:
    try:
        urlopen(f"{address}/health", timeout=5).close()
    except URLError:
        return False
    return True
