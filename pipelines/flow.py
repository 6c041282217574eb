"""The Prefect flow that brings the DAG up to date: one task for each stale stage of DVC.

python -m pipelines.flow     on a temporary server, or on the one at PREFECT_API_URL

DVC decides which stages run and stores their outputs. Prefect schedules them, repeats those whose
server is away, notifies about failures and shows logs, times and the final metrics.
"""

import argparse
from collections.abc import Callable
from threading import Event
from typing import Annotated, Any

from prefect import State, Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from pipelines import flow_artifacts, flow_runs, project, run_params, summary
from pipelines.cli import preset as presets
from pipelines.cli import run_in_project
from pipelines.flow_notifications import load_block, notify
from pipelines.prefect_server import check_server
from pipelines.runner import dag, dvc_locks, dvc_repro, process_group, up_to_date
from pipelines.runner.eta import StageDurations
from pipelines.runner.fork_server import ForkServer
from pipelines.runner.scheduler import StageScheduler
from stages.shared.runtime import tracking
from stages.shared.runtime.errors import TemporaryError, describe_error
from stages.shared.runtime.project_lock import hold_project
from stages.shared.runtime.stage import InputError
from stages.shared.runtime.tracking import TrackingRun

SERVER_AWAY = "ServerAway"  # name of the state of a stage that is repeated
Override = Annotated[str, Field(pattern=r"^[^=\s]+=")]


def is_server_away(_: Task, __: TaskRun, state: State) -> bool:
    """Whether a stage failed because of a server that may answer later."""
    return state.name == SERVER_AWAY


@task(  # only DVC decides what is cached
    task_run_name="{stage}", cache_policy=NO_CACHE, retry_condition_fn=is_server_away
)
def reproduce(
    stage: str,
    parent: TrackingRun,
    threads: int,
    server: ForkServer | None,
    timeout: float,
    lock_timeout: float,
    stop: Event,
    force: bool,
    retries: int,
    retry_delay: float,
) -> State | None:
    """Run one stage and log its output; the stage never outlives the task.

    If its server is away, waits before Prefect runs the task again, at most `retries` times.
    retry_delay: seconds before the first retry; doubled at each further one.
    """
    log = get_run_logger()

    def log_line(line: str) -> None:
        if text := line.strip():
            log.info(text)

    try:
        dvc_repro.reproduce_stage(
            stage, log_line, parent, threads, server, timeout, lock_timeout, stop, force
        )
    except TimeoutError:
        return Failed(
            message=f"{stage} took more than {timeout:g} seconds, its limit in run.stage_timeout "
            "or run.stage_timeouts"
        )
    except process_group.ProcessStopped:
        return Cancelled(message=f"{stage} was stopped")
    except TemporaryError as error:
        count = task_run.get_run_count()
        if count <= retries:
            delay = retry_delay * 2 ** (count - 1)
            log.warning(f"{error}; retry {count} of {retries} in {delay:g} seconds")
            # A delay of Prefect would hold up a flow that is stopped.
            if stop.wait(delay):
                return Cancelled(message=f"{stage} was stopped")
        return Failed(name=SERVER_AWAY, message=str(error))
    except Exception as error:  # Prefect would log its traceback
        return Failed(message=describe_error(error))
    return None


@flow(name="build", on_failure=[notify], on_crashed=[notify])
def build(
    targets: list[str] | None = None,
    preset: str | None = None,
    overrides: list[Override] | None = None,
    force: bool = False,
    promote: list[str] | None = None,
) -> State | None:
    """Bring stages up to date and publish the metrics of all runs.

    Waits for another run of the project, at most run.lock_timeout seconds. The form of Prefect's
    pages shows the descriptions of the parameters.

    Args:
        targets: Stages to bring up to date with those that they depend on, such as
            evaluate@flexmuse; all stages if empty.
        preset: A file of presets/ without its ending, such as smoke. Its values hold for this run
            alone; params.yaml is restored at its end.
        overrides: Values of single parameters for this run alone, as KEY=VALUE, such as
            models.tippo.preference.kl_coef=0.1.
        force: Run the targets, or all stages, even if nothing changed.
        promote: Runs to promote at the end, see `polymuse promote`; a champion that stays is no
            failure.
    """
    report = get_run_logger().info
    try:
        flow_runs.end_with_serve()
        project.enter_project()
        run_params.restore_params(report)
        lock_timeout = dvc_repro.load_runner_config().lock_timeout
        with (
            flow_runs.record_flow_run(str(flow_run.get_id())),
            hold_project(f"flow run {flow_run.get_name()}", lock_timeout, report),
            run_params.use_params(presets.merge_values(preset, overrides or []), report),
        ):
            run_stale_stages(targets or [], force, report)
            promote_runs(promote or [])
    except Exception as error:  # Prefect would log its traceback
        return Failed(message=describe_error(error))
    return None


def run_stale_stages(targets: list[str], force: bool, report: Callable[[str], object]) -> None:
    """Run the stale stages and publish the metrics of all runs. Raises InputError."""
    settings = dvc_repro.load_runner_config()
    if settings.notification_block:
        load_block(settings.notification_block)
    flow_runs.end_killed_flow_runs()
    tracking.end_killed_runs()
    if targets or force or not up_to_date.is_up_to_date():
        graph = dvc_locks.retry_while_busy(
            lambda: dag.load_dag(targets, force), settings.lock_timeout, report, Event()
        )
        if graph.stale:
            dvc_repro.check_params(graph)
            submit_stages(graph, settings)
    flow_artifacts.publish_metrics()


def promote_runs(runs: list[str]) -> None:
    """Promote each run in turn, if it is better than the champion. Raises InputError."""
    from pipelines import promotion  # imports numpy

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
    repeated = reproduce.with_options(retries=settings.stage_retries)
    with (
        dvc_repro.serve_forks(graph, threads) as server,
        dvc_repro.track_parent_run("Prefect flow", _flow_tags()) as parent,
        pool,
        process_group.stop_event_scope() as stop,
    ):
        flow_artifacts.publish_parent_run(parent.page_address(settings.mlflow_port))
        options = {
            "parent": parent,
            "threads": threads,
            "server": server,
            "lock_timeout": settings.lock_timeout,
            "stop": stop,
            "retries": settings.stage_retries,
            "retry_delay": settings.retry_delay,
        }
        while schedule:
            # Only ready stages are submitted: a task that has to wait would block a worker.
            for stage in schedule.take_ready(settings.workers - len(running)):
                before = [tasks[name] for name in graph.dependencies(stage) if name in tasks]
                arguments = {
                    "stage": stage,
                    "timeout": settings.timeout_of(stage),
                    "force": stage in graph.forced,
                    **options,
                }
                tasks[stage] = pool.submit(repeated, arguments, wait_for=before)
                running[tasks[stage]] = stage
            ended = next(as_completed(list(running)))
            ended.wait()
            schedule.mark_done(running.pop(ended))
        states = {stage: tasks[stage].state for stage in graph.stale}  # in DAG order
        flow_artifacts.publish_stages(graph, states)
        for stage, state in states.items():  # the first failure is reported
            if not state.is_completed():
                raise InputError(state.message or f"{stage} ended as {state.name}")


def _flow_tags() -> dict[str, str]:
    """A tag of MLflow with the id of this flow run."""
    flow_id = flow_run.get_id()
    return {"prefect.flow_run_id": flow_id} if flow_id else {}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the parameters of the flow as options of a command."""
    option = parser.add_argument
    option("targets", nargs="*", metavar="TARGET", help="a stage of dvc.yaml; default: all")
    option("--preset", metavar="NAME", help="a preset whose values hold for the run alone")
    option(
        "-S",
        "--set-param",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="a value that holds for the run alone; repeat",
    )
    option("--force", action="store_true", help="run the targets even if nothing changed")
    option("--promote", metavar="RUN", action="append", default=[], help="a run to promote; repeat")


def read_options(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters of the flow from the options of a command.

    Raises InputError for an unknown run, preset or parameter.
    """
    if options.promote:
        from pipelines.evaluation import find_row  # imports numpy

        for run in options.promote:
            find_row(run)
    presets.merge_values(options.preset, options.overrides)
    names = ("targets", "preset", "overrides", "force", "promote")
    return {name: getattr(options, name) for name in names}


def main() -> None:
    """Run the flow once. Raises InputError with the message of the first stage that failed."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.flow")
    add_options(parser)
    parameters = read_options(parser.parse_args())
    fix = "unset the variable for a temporary one"
    check_server(fix)
    try:
        state = build(**parameters, return_state=True)
    except Exception:
        check_server(fix)  # it may have ended meanwhile
        raise
    if not state.is_completed():
        raise InputError(state.message)
    print(summary.format_summary(dvc_repro.load_runner_config().expected_skill, ""))


if __name__ == "__main__":
    run_in_project(main)
