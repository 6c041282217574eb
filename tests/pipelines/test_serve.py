"""Runs of the served flow, of `python -m pipelines.flow` and `polymuse run` meet, and are killed.

Real processes, with a real Prefect server.
"""

import signal
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event

from pipelines import flow_runs
from tests.support.meeting_commands import (
    COMMAND_TIMEOUT_SECONDS,
    FLOW,
    RUN,
    check_outcome,
    create_project,
    finish,
    list_mlflow_statuses,
    start,
    wait_for_start,
)
from tests.support.prefect_server import serve_prefect
from tests.support.tiny_dvc_project import KILL_TIMEOUT_SECONDS, list_processes, wait_until

pytestmark = pytest.mark.slow
SERVE = [sys.executable, "-m", "pipelines.serve", "--cron", "0 3 * * *", "--timezone", "UTC"]


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory) -> Iterator[str]:
    """The address of a Prefect server with all its services."""
    with serve_prefect(tmp_path_factory.mktemp("prefect")) as address:
        yield address


def trigger() -> UUID:
    """Start a run of the served flow, as `prefect deployment run build/polymuse` does."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("build/polymuse")
        return client.create_flow_run_from_deployment(deployment.id).id


def read_run(run_id: UUID) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id)


def newest_run() -> FlowRun:
    with get_client(sync_client=True) as client:
        return max(client.read_flow_runs(), key=lambda run: str(run.created))


def wait_for_state(run_id: UUID, state: StateType) -> None:
    wait_until(lambda: read_run(run_id).state_type == state, COMMAND_TIMEOUT_SECONDS)


def is_served() -> bool:
    with get_client(sync_client=True) as client:
        return any(deployment.status == "READY" for deployment in client.read_deployments())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A project that one command has brought up to date."""
    folder = create_project(tmp_path_factory.mktemp("alone") / "project")
    finish(start(RUN, folder))
    return folder


def test_flows_and_a_run_wait_for_each_other(tmp_path, alone):
    folder = create_project(tmp_path / "project")
    run = start(RUN, folder)
    wait_for_start("a", folder)
    flows = [start(FLOW, folder), start(FLOW, folder)]
    finish(run)
    outputs = [finish(flow) for flow in flows]
    assert f"Waiting for `polymuse run` (PID {run.pid})" in "".join(outputs)
    check_outcome(folder, alone)


def test_a_flow_that_runs_holds_up_a_second_flow_and_a_run(tmp_path, alone):
    folder = create_project(tmp_path / "project")
    first = start(FLOW, folder)
    wait_for_start("a", folder)
    others = [start(FLOW, folder), start(RUN, folder)]
    finish(first)
    for other in others:
        assert "Waiting for `flow run" in finish(other)
    check_outcome(folder, alone)


def test_a_killed_serve_takes_its_run_along_and_the_next_serve_continues(tmp_path, alone):
    folder = create_project(tmp_path / "project")
    serve = start(SERVE, folder)
    wait_until(is_served, COMMAND_TIMEOUT_SECONDS)
    orphan = trigger()
    wait_for_start("a", folder)
    serve.send_signal(signal.SIGKILL)
    wait_until(lambda: not list_processes(folder), KILL_TIMEOUT_SECONDS)
    assert read_run(orphan).state_type == StateType.RUNNING
    (folder / "log").unlink()

    serve = start(SERVE, folder)
    wait_for_state(orphan, StateType.CRASHED)
    wait_for_state(trigger(), StateType.COMPLETED)
    serve.terminate()
    serve.wait(60)
    check_outcome(folder, alone)
    assert list_mlflow_statuses()[-2:] == ["KILLED", "FINISHED"]


def test_a_run_without_heartbeat_crashes_and_a_completed_one_stays_completed(tmp_path):
    finish(start(FLOW, create_project(tmp_path / "completed")))
    completed = newest_run()
    assert completed.state_type == StateType.COMPLETED
    with get_client(sync_client=True) as client:
        client.create_automation(flow_runs.crash_detection("build", timedelta(seconds=10)))
    folder = create_project(tmp_path / "killed")
    killed_flow = start(FLOW, folder)
    wait_for_start("a", folder)
    killed = newest_run()
    killed_flow.send_signal(signal.SIGKILL)
    # A heartbeat after the end is the known cause of false alarms.
    emit_event(
        "prefect.flow-run.heartbeat",
        {"prefect.resource.id": f"prefect.flow-run.{completed.id}"},
        related=[
            {
                "prefect.resource.id": f"prefect.flow.{completed.flow_id}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": "build",
            }
        ],
    )
    wait_for_state(killed.id, StateType.CRASHED)
    time.sleep(30)  # the automation has come to the late heartbeat too
    assert read_run(completed.id).state_type == StateType.COMPLETED
