"""Flow runs whose process is gone: Prefect shows them as running until somebody ends them.

A run of `pipelines.serve` dies with it. The next start of `serve` or of the flow marks it as
Crashed, and so does an automation of the Prefect server some minutes after its last heartbeat.

writes  POLYMUSE_HOME/flow_runs/ID, locked while the process of that run lives
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import prefect
from filelock import FileLock, Timeout
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from stages.shared.runtime.stage import InputError, kill_when_parent_dies, work_dir

SERVE_ENV = "POLYMUSE_SERVE_PID"  # environment variable with the process that serves the flow
CRASH_MESSAGE = "the process of this run was killed"
MISSED_HEARTBEATS = 3  # after which a run counts as crashed
FINAL_STATES = ("Completed", "Failed", "Cancelled", "Crashed")


def end_with_serve() -> None:
    """Kill this process when `serve`, if that has started it, ends. Raises InputError if it has."""
    if server := os.environ.get(SERVE_ENV):
        kill_when_parent_dies()
        if os.getppid() != int(server):
            raise InputError("the process that served the flow has ended")


@contextmanager
def record_flow_run(run_id: str) -> Iterator[None]:
    """Record that this process executes a flow run."""
    lock = FileLock(work_dir() / "flow_runs" / run_id)
    os.makedirs(work_dir() / "flow_runs", exist_ok=True)
    with lock:
        try:
            yield
        finally:
            os.unlink(lock.lock_file)


def end_killed_flow_runs() -> None:
    """Mark the recorded flow runs whose process was killed as Crashed, unless they have ended."""
    for file in (work_dir() / "flow_runs").glob("*"):
        with suppress(Timeout), FileLock(file, timeout=0), get_client(sync_client=True) as client:
            with suppress(ObjectNotFound):  # it is on another server, or was deleted
                # The server refuses the change of a run that has ended.
                client.set_flow_run_state(file.name, Crashed(message=CRASH_MESSAGE))
            file.unlink(missing_ok=True)


def crash_detection(flow_name: str, within: timedelta) -> AutomationCore:
    """The automation of Prefect's documentation that marks runs without heartbeat as Crashed.

    Source: https://docs.prefect.io/v3/advanced/detect-zombie-flows. It covers the runs of one flow.
    within: time without heartbeat. It does not force the change, so that the server refuses it for
    a run that has ended: a heartbeat may arrive late.
    """
    heartbeat = "prefect.flow-run.heartbeat"
    crash = ChangeFlowRunState(
        name="Crashed", state=StateType.CRASHED, message=CRASH_MESSAGE, force=False
    )
    return AutomationCore(
        name=f"Crash runs of {flow_name} without heartbeat",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{name}" for name in FINAL_STATES)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "flow", "prefect.resource.name": flow_name}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[crash],
    )


def create_crash_detection(flow_name: str) -> None:
    """Create the automation on the server, unless it has one of this name."""
    heartbeat_seconds = prefect.settings.get_current_settings().flows.heartbeat_frequency
    within = timedelta(seconds=MISSED_HEARTBEATS * (heartbeat_seconds or 0))
    automation = crash_detection(flow_name, within)
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(automation.name):
            client.create_automation(automation)
