"""`polymuse ui`: the web pages of MLflow and Prefect, until Ctrl-C."""

import math
import os
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

from pipelines.health.project import check_tracking
from pipelines.runner import dvc_repro, process_group
from stages.shared.runtime.errors import redact_secrets
from stages.shared.runtime.mlflow_store import get_tracking_uri, print_correction
from stages.shared.runtime.stage import InputError


def main() -> None:
    """Serve both pages; that of MLflow unless MLFLOW_TRACKING_URI is a server, which has its own.

    Raises InputError if one of the servers ends or has no usable database.
    """
    for problem in check_tracking().problems:
        raise InputError(str(problem))  # MLflow would print a traceback
    uri = get_tracking_uri()
    print_correction(uri)
    settings = dvc_repro.load_runner_config()
    mlflow, prefect = str(settings.mlflow_port), str(settings.prefect_port)
    commands = [["prefect", "server", "start", "--port", prefect]]
    if uri.startswith("http"):  # that server has pages of its own
        print(f"MLflow   {redact_secrets(uri)}")
    else:
        print(f"MLflow   http://127.0.0.1:{mlflow}")
        options = ["--backend-store-uri", uri, "--port", mlflow, "--workers", "1"]
        commands.append(["mlflow", "ui", *options])
    print(f"Prefect  http://127.0.0.1:{prefect}")
    print(f"Set PREFECT_API_URL=http://127.0.0.1:{prefect}/api to see flows there", flush=True)
    serve(*commands)


def serve(*commands: list[str]) -> None:
    """Run all commands until the first one ends, then stop the rest.

    Raises InputError that names the command which ended.
    """
    stop = Event()

    def run(command: list[str]) -> str:
        result = process_group.run_process(
            command, Path.cwd(), os.environ, _print_line, math.inf, stop
        )
        return f"{' '.join(command[:2])} ended with exit code {result.code}: see its output above"

    with ThreadPoolExecutor(len(commands)) as pool:
        try:
            futures = [pool.submit(run, command) for command in commands]
            ended, _ = wait(futures, None, FIRST_COMPLETED)
        finally:
            stop.set()
    raise InputError(ended.pop().result())


def _print_line(line: str) -> None:
    print(line, end="", flush=True)
