"""The flow that brings the DAG up to date: one task for each stale stage, edges and all from DVC.

python -m pipelines.flow     on a temporary server, or on the one that PREFECT_API_URL names

DVC decides what runs and keeps what came out; Prefect decides when, and shows logs, times and the
figures at the end.
"""

from threading import Event

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from pipelines import summary
from pipelines.cli import run_in_project
from pipelines.runner import dag, dvc_repro, process_group
from pipelines.runner.eta import StageDurations
from pipelines.runner.scheduler import StageScheduler
from stages.shared.runtime.stage import InputError


@task(task_run_name="{stage}", cache_policy=NO_CACHE)  # DVC's cache is the one truth
def reproduce(stage: str, parent: str, threads: int, timeout: float, stop: Event) -> State | None:
    """Run one stage, its lines in the log of the task; nothing of it outlives the task."""
    log = get_run_logger()

    def show(line: str) -> None:
        if text := line.strip():
            log.info(text)

    try:
        dvc_repro.reproduce_stage(stage, show, parent, threads, timeout, stop)
    except InputError as error:
        return Failed(message=str(error))  # the sentence alone; an exception logs a traceback
    except TimeoutError:
        return Failed(message=f"{stage} took more than run.stage_timeout, {timeout:g} seconds")
    except process_group.ProcessStopped:
        return Cancelled(message=f"{stage} was stopped")
    return None


@flow(name="build")
def build() -> State | None:
    """Bring every stale stage up to date and publish the figures of all runs."""
    try:
        graph = dag.load_dag([])
        if graph.stale:
            dvc_repro.check_params(graph)
            submit_stages(graph, dvc_repro.load_runner_config())
    except InputError as error:
        return Failed(message=str(error))
    create_table_artifact(
        summary.build_rows(), key="metrics", description="The final phase of each run"
    )
    return None


def submit_stages(graph: dag.Dag, settings: dvc_repro.RunnerConfig) -> None:
    """One task for each stale stage, after those it reads from.

    Raises WrongInput unless all complete: one may also crash, be cancelled, or never be ready.
    """
    schedule = StageScheduler(graph, StageDurations(settings.expected_seconds).estimate)
    tasks: dict[str, PrefectFuture] = {}
    running: dict[PrefectFuture, str] = {}
    pool = ThreadPoolTaskRunner(max_workers=settings.workers)
    with (
        dvc_repro.track_parent_run("build") as parent,
        pool,
        process_group.stop_event_scope() as stop,
    ):
        given = {"parent": parent, "threads": settings.threads_per_stage(), "stop": stop}
        given["timeout"] = settings.stage_timeout
        while schedule:
            # A task that is submitted before it may start keeps a worker waiting.
            for stage in schedule.take_ready(settings.workers - len(running)):
                before = [tasks[other] for other in graph.dependencies(stage) if other in tasks]
                tasks[stage] = pool.submit(reproduce, {"stage": stage, **given}, wait_for=before)
                running[tasks[stage]] = stage
            ended = next(as_completed(list(running)))
            ended.wait()
            schedule.mark_done(running.pop(ended))
        for stage in graph.stale:  # the first comes before those that waited for it
            if not (state := tasks[stage].state).is_completed():
                raise InputError(state.message or f"{stage} ended as {state.name}")


def main() -> None:
    """Run the flow once. Raises WrongInput with the sentence of the first stage that failed."""
    state = build(return_state=True)
    if not state.is_completed():
        raise InputError(state.message)
    print(summary.format_table())


if __name__ == "__main__":
    run_in_project(main)
