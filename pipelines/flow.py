"""The Prefect flow that brings the DAG up to date: one task for each stale stage of DVC.

python -m pipelines.flow     on a temporary server, or on the one at PREFECT_API_URL

DVC decides which stages run and stores their outputs. Prefect schedules them and shows logs, times
and the final metrics.
"""

from collections.abc import Callable
from threading import Event

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from pipelines import flow_runs, promotion, summary
from pipelines.cli import run_in_project
from pipelines.prefect_server import check_server
from pipelines.runner import dag, dvc_locks, dvc_repro, process_group
from pipelines.runner.eta import StageDurations
from pipelines.runner.fork_server import ForkServer
from pipelines.runner.scheduler import StageScheduler
from stages.shared.runtime import tracking
from stages.shared.runtime.errors import describe_error
from stages.shared.runtime.project_lock import hold_project
from stages.shared.runtime.stage import InputError
from stages.shared.runtime.tracking import TrackingRun


@task(task_run_name="{stage}", cache_policy=NO_CACHE)  # only DVC decides what is cached
def reproduce(
    stage: str,
    parent: TrackingRun,
    threads: int,
    server: ForkServer | None,
    timeout: float,
    lock_timeout: float,
    stop: Event,
) -> State | None:
    """Run one stage and log its output; the stage never outlives the task."""
    log = get_run_logger()

    def log_line(line: str) -> None:
        if text := line.strip():
            log.info(text)

    try:
        dvc_repro.reproduce_stage(
            stage, log_line, parent, threads, server, timeout, lock_timeout, stop
        )
    except TimeoutError:
        return Failed(message=f"{stage} took more than run.stage_timeout, {timeout:g} seconds")
    except process_group.ProcessStopped:
        return Cancelled(message=f"{stage} was stopped")
    except Exception as error:  # Prefect would log its traceback
        return Failed(message=describe_error(error))
    return None


@flow(name="build")
def build(promote: list[str] | None = None) -> State | None:
    """Bring every stale stage up to date and publish the metrics of all runs.

    Waits for another run of the project, at most run.lock_timeout seconds. promote: runs to promote
    then, see pipelines/promotion.py; a champion that stays is no failure.
    """
    report = get_run_logger().info
    try:
        flow_runs.end_with_serve()
        settings = dvc_repro.load_runner_config()
        with (
            flow_runs.record_flow_run(str(flow_run.get_id())),
            hold_project(f"flow run {flow_run.get_name()}", settings.lock_timeout, report),
        ):
            run_stale_stages(settings, report)
            promote_runs(promote or [])
    except Exception as error:  # Prefect would log its traceback
        return Failed(message=describe_error(error))
    return None


def run_stale_stages(settings: dvc_repro.RunnerConfig, report: Callable[[str], object]) -> None:
    """Run every stale stage and publish the metrics of all runs. Raises InputError."""
    flow_runs.end_killed_flow_runs()
    tracking.end_killed_runs()
    graph = dvc_locks.retry_while_busy(
        lambda: dag.load_dag([]), settings.lock_timeout, report, Event()
    )
    if graph.stale:
        dvc_repro.check_params(graph)
        submit_stages(graph, settings)
    create_table_artifact(
        summary.build_rows(), key="metrics", description="Final phase of each run"
    )


def promote_runs(runs: list[str]) -> None:
    """Promote each run in turn, if it is better than the champion. Raises InputError."""
    for run in runs:
        get_run_logger().info(promotion.promote(run, force=False).sentence)


def submit_stages(graph: dag.Dag, settings: dvc_repro.RunnerConfig) -> None:
    """Run one task for each stale stage, after the stages whose outputs it reads.

    Raises InputError unless all tasks complete; a task can also crash or be cancelled.
    """
    schedule = StageScheduler(graph, StageDurations(settings.cpu_budget).estimate)
    tasks: dict[str, PrefectFuture] = {}
    running: dict[PrefectFuture, str] = {}
    pool = ThreadPoolTaskRunner(max_workers=settings.workers)
    threads = settings.threads_per_stage()
    with (
        dvc_repro.serve_forks(graph, threads) as server,
        dvc_repro.track_parent_run("Prefect flow", _flow_tags()) as parent,
        pool,
        process_group.stop_event_scope() as stop,
    ):
        options = {
            "parent": parent,
            "threads": threads,
            "server": server,
            "timeout": settings.stage_timeout,
            "lock_timeout": settings.lock_timeout,
            "stop": stop,
        }
        while schedule:
            # Only ready stages are submitted: a task that has to wait would block a worker.
            for stage in schedule.take_ready(settings.workers - len(running)):
                before = [tasks[name] for name in graph.dependencies(stage) if name in tasks]
                arguments = {"stage": stage, **options}
                tasks[stage] = pool.submit(reproduce, arguments, wait_for=before)
                running[tasks[stage]] = stage
            ended = next(as_completed(list(running)))
            ended.wait()
            schedule.mark_done(running.pop(ended))
        for stage in graph.stale:  # in DAG order, so that the first failure is reported
            if not (state := tasks[stage].state).is_completed():
                raise InputError(state.message or f"{stage} ended as {state.name}")


def _flow_tags() -> dict[str, str]:
    """A tag of MLflow with the id of this flow run."""
    flow_id = flow_run.get_id()
    return {"prefect.flow_run_id": flow_id} if flow_id else {}


def main() -> None:
    """Run the flow once. Raises InputError with the message of the first stage that failed."""
    check_server("unset the variable for a temporary one")
    state = build(return_state=True)
    if not state.is_completed():
        raise InputError(state.message)
    print(summary.format_summary(dvc_repro.load_runner_config().expected_skill, ""))


if __name__ == "__main__":
    run_in_project(main)
