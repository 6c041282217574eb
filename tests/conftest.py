"""Every test starts in the project's folder, with a tracking store and work folder for tests."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

# Threads do not speed up tiny models, and they slow down concurrent test processes.
os.environ["OMP_NUM_THREADS"] = "1"
# Unknown model names fail at once instead of asking a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

import stages  # noqa: F401  turns off telemetry and hubs before libraries are imported
from tests.support import smoke_project
from tests.support.project_files import ROOT, clone_project

# Tests must not use the developer's servers and runs.
for name in ["PREFECT_API_URL", "POLYMUSE_PARENT_RUN", "MLFLOW_RUN_ID", "DVC_STAGE", "DVC_ROOT"]:
    os.environ.pop(name, None)

# Shells start background processes with SIGINT ignored; tests send it to their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Prefect reads it when it is imported.
PREFECT_HOME = TemporaryDirectory(prefix="polymuse-prefect-")
os.environ["PREFECT_HOME"] = PREFECT_HOME.name


@pytest.fixture(scope="session", autouse=True)
def _work_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Set a tracking store and work folder for each test process."""
    folder = tmp_path_factory.mktemp("polymuse")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    os.environ["POLYMUSE_HOME"] = str(folder / "home")


@pytest.fixture(autouse=True)
def _start_in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A copy of the project for one test."""
    return clone_project(tmp_path)


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the preset smoke in which every stage has run; tests change copies of it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    return smoke_project.find_or_build(folder / "smoke")


@pytest.fixture(scope="session")
def trained_classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with both MuSE classifiers trained; tests that edit its files must restore them."""
    from tests.support import trained_muse_project

    place = tmp_path_factory.mktemp("label") / "project"
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        return trained_muse_project.create_trained_project(place, patch)


@pytest.fixture
def serve(monkeypatch):
    """serve(answer): a server behind OPENAI_BASE_URL until the test ends."""
    from tests.support.fake_chat_api import serve_chat

    with ExitStack() as stack:

        def start(answer):
            server = stack.enter_context(serve_chat(answer))
            monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
            return server

        yield start
