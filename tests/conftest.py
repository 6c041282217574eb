"""Every test has the project as current folder, and a tracking store and work folder of its own."""

import os
from pathlib import Path

import pytest

import stages  # noqa: F401  telemetry and hubs are off before a library is imported

ROOT = Path(__file__).parents[1]

# A server of the developer must not hear of tests; a parent run must not adopt theirs.
for name in ["PREFECT_API_URL", "POLYMUSE_PARENT_RUN", "MLFLOW_RUN_ID", "DVC_STAGE", "DVC_ROOT"]:
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _work_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One tracking store and work folder for each test process, away from the developer's own."""
    folder = tmp_path_factory.mktemp("polymuse")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    os.environ["POLYMUSE_HOME"] = str(folder / "home")


@pytest.fixture(autouse=True)
def _start_in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
