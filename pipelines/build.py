"""The flow that brings the DAG up to date: one task for each stale stage, edges and all from DVC.

python -m pipelines.build     on a temporary server, or on the one that PREFECT_API_URL names

DVC decides what runs and keeps what came out; Prefect decides when, and shows logs, times and the
figures at the end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from pipelines import dag, headline, process, repro
from pipelines.cli import in_project
from stages.shared.stage import WrongInput


@task(task_run_name="{stage}", cache_policy=NO_CACHE)  # DVC's cache is the one truth
def reproduce(stage: str, parent: str, timeout: float, stop: Event) -> State | None:
    """Run one stage, its lines in the log of the task; nothing of it outlives the task."""
    log = get_run_logger()

    def show(line: str) -> None:
        if text := line.strip():
            log.info(text)

    command = ["--wait-for-lock", "repro", "--single-item", stage]
    try:
        repro.reproduce(command, show, parent, timeout, stop)
    except WrongInput as error:
        return Failed(message=str(error))  # the sentence alone; an exception logs a traceback
    except TimeoutError:
        return Failed(message=f"{stage} took more than run.stage_timeout, {timeout:g} seconds")
    except process.Stopped:
        return Cancelled(message=f"{stage} was stopped")
    return None


@flow(name="build")
def build() -> State | None:
    """Bring every stale stage up to date and publish the figures of all runs."""
    try:
        graph = dag.read([])
        if graph.stale:
            repro.check(graph)
            submit(graph, repro.settings())
    except WrongInput as error:
        return Failed(message=str(error))
    create_table_artifact(headline.rows(), key="metrics", description="The final phase of each run")
    return None


def submit(graph: dag.Dag, settings: repro.Params) -> None:
    """One task for each stale stage, after those it reads from.

    Raises WrongInput unless all complete: one may also crash, be cancelled, or never be ready.
    """
    tasks: dict[str, PrefectFuture] = {}
    workers = ThreadPoolTaskRunner(max_workers=settings.workers)
    with repro.tracked("build") as parent, workers, stopping() as stop:
        given = {"parent": parent, "timeout": settings.stage_timeout, "stop": stop}
        for stage in graph.stale:
            before = [tasks[other] for other in graph.before(stage) if other in tasks]
            tasks[stage] = workers.submit(reproduce, {"stage": stage, **given}, wait_for=before)
        wait(list(tasks.values()))
        for stage, task in tasks.items():  # the first comes before those that waited for it
            if not task.state.is_completed():
                raise WrongInput(task.state.message or f"{stage} ended as {task.state.name}")


@contextmanager
def stopping() -> Iterator[Event]:
    """An event that is set when the block ends: a cancelled flow leaves no stage behind."""
    stop = Event()
    try:
        yield stop
    finally:
        stop.set()


def main() -> None:
    """Run the flow once. Raises WrongInput with the sentence of the first stage that failed."""
    state = build(return_state=True)
    if not state.is_completed():
        raise WrongInput(state.message)
    print(headline.table())


if __name__ == "__main__":
    in_project(main)
