"""`polymuse ui`: the pages of MLflow and Prefect together, until Ctrl-C."""

import math
import os
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

from pipelines.runner import dvc_repro, process_group
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import InputError


def main() -> None:
    """Serve both; when one ends, so does the other. Raises WrongInput if one ends by itself."""
    settings = dvc_repro.load_runner_config()
    mlflow, prefect = str(settings.mlflow_port), str(settings.prefect_port)
    print(f"MLflow   http://127.0.0.1:{mlflow}")
    print(f"Prefect  http://127.0.0.1:{prefect}")
    print(f"Flows appear there with PREFECT_API_URL=http://127.0.0.1:{prefect}/api", flush=True)
    serve(
        [
            "mlflow",
            "ui",
            "--backend-store-uri",
            tracking.get_tracking_uri(),
            "--port",
            mlflow,
            "--workers",
            "1",
        ],
        ["prefect", "server", "start", "--port", prefect],
    )


def serve(*commands: list[str]) -> None:
    """Run all commands until the first ends. Raises WrongInput that names it."""
    stop = Event()

    def run(command: list[str]) -> str:
        code = process_group.run_process(command, Path.cwd(), os.environ, _show, math.inf, stop)
        return f"{' '.join(command[:2])} ended with exit code {code}: see what it wrote above"

    with ThreadPoolExecutor(len(commands)) as pool:
        try:
            ended, _ = wait([pool.submit(run, one) for one in commands], None, FIRST_COMPLETED)
        finally:
            stop.set()
    raise InputError(ended.pop().result())


def _show(line: str) -> None:
    print(line, end="", flush=True)
