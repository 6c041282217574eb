"""Prefect and MLflow keep their data in PostgreSQL, on a real server."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from tests.support.free_port import find_free_port
from tests.support.meeting_commands import FLOW, create_project, finish, start
from tests.support.prefect_server import serve_prefect

pytestmark = pytest.mark.slow
BINARIES = ":".join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])


@pytest.fixture
def database() -> Iterator[str]:
    """USER@HOST:PORT of a PostgreSQL server with the databases mlflow and prefect."""
    initdb = shutil.which("initdb", path=BINARIES)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed")
    # It refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    port = find_free_port()

    def run(command: str, *arguments: str) -> None:
        program = str(Path(initdb).with_name(command))
        options = ["-D", f"{folder}/data", *arguments]
        subprocess.run([*user, program, *options], cwd=folder, check=True)

    # Not in the folder of the test, which only its owner can enter.
    with TemporaryDirectory(prefix="polymuse-postgres-") as folder:
        if user:
            shutil.chown(folder, "postgres")
        run("initdb", "-A", "trust", "-U", "polymuse", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            address = f"polymuse@127.0.0.1:{port}"
            with psycopg.connect(f"postgresql://{address}/postgres", autocommit=True) as connection:
                connection.execute("CREATE DATABASE mlflow")
                connection.execute("CREATE DATABASE prefect")
            yield address
        finally:
            run("pg_ctl", "-m", "immediate", "stop")


def count(address: str, query: str) -> int:
    with psycopg.connect(address) as connection:
        (value,) = connection.execute(query).fetchone()  # pyright: ignore
    return value


def test_a_flow_run_is_recorded_in_postgresql(tmp_path, monkeypatch, database):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg://{database}/mlflow")
    connection = f"postgresql+asyncpg://{database}/prefect"
    with serve_prefect(
        tmp_path / "prefect", {"PREFECT_SERVER_DATABASE_CONNECTION_URL": connection}
    ):
        finish(start(FLOW, create_project(tmp_path / "project")))
    completed = "SELECT count(*) FROM flow_run WHERE state_type = 'COMPLETED'"
    assert count(f"postgresql://{database}/prefect", completed) == 1
    finished = "SELECT count(*) FROM runs WHERE status = 'FINISHED'"
    assert count(f"postgresql://{database}/mlflow", finished) == 1
