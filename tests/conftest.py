"""Every test has the project as current folder, a tracking store and a work folder of its own."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

# Tiny models gain nothing from threads, and test processes beside each other lose much.
os.environ["OMP_NUM_THREADS"] = "1"
# Nobody waits for a hub that a name which does not exist is looked up on.
os.environ["HF_HUB_OFFLINE"] = "1"

import stages  # noqa: F401  telemetry and hubs are off before a library is imported
from tests.support.project_files import ROOT, clone_project

# A server of the developer must not hear of tests; a parent run must not adopt theirs.
for name in ["PREFECT_API_URL", "POLYMUSE_PARENT_RUN", "MLFLOW_RUN_ID", "DVC_STAGE", "DVC_ROOT"]:
    os.environ.pop(name, None)

# A shell starts what it puts in the background deaf to SIGINT, which tests send to their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Read when Prefect is imported, so that it is set here.
PREFECT_HOME = TemporaryDirectory(prefix="polymuse-prefect-")
os.environ["PREFECT_HOME"] = PREFECT_HOME.name


@pytest.fixture(scope="session", autouse=True)
def _work_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One tracking store and work folder for each test process, away from the developer's own."""
    folder = tmp_path_factory.mktemp("polymuse")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    os.environ["POLYMUSE_HOME"] = str(folder / "home")


@pytest.fixture(autouse=True)
def _start_in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A copy of the project of the test's own."""
    return clone_project(tmp_path)


@pytest.fixture(scope="session")
def trained_readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which both readers are trained; a test that edits its files puts them back."""
    from tests.support import trained_muse_project

    place = tmp_path_factory.mktemp("label") / "project"
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        return trained_muse_project.create_trained_project(place, patch)


@pytest.fixture
def serve(monkeypatch):
    """serve(answer): a server behind OPENAI_BASE_URL until the test ends."""
    from tests.support.fake_chat_api import serve_chat

    with ExitStack() as open_until_then:

        def start(answer):
            server = open_until_then.enter_context(serve_chat(answer))
            monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
            return server

        yield start
