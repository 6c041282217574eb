"""The artifacts of a flow run on the pages of Prefect: metrics, stages, links."""

from collections.abc import Mapping

from prefect import State
from prefect.artifacts import create_link_artifact, create_table_artifact

from pipelines import summary
from pipelines.runner.dag import Dag


def publish_metrics() -> None:
    """A table with the final metrics of all runs, and a link to the report if there is one."""
    create_table_artifact(
        summary.build_rows(), key="metrics", description="Final phase of each run"
    )
    if summary.REPORT_PATH.exists():
        address = summary.REPORT_PATH.absolute().as_uri()
        # Browsers do not open files from a page of a server: the address is also the text.
        create_link_artifact(address, address, key="report", description="On the flow's machine")


def publish_parent_run(address: str) -> None:
    """A link to the MLflow run that is the parent of the stages' runs."""
    create_link_artifact(address, "Parent run in MLflow", key="mlflow")


def publish_stages(graph: Dag, states: Mapping[str, State]) -> None:
    """A table with the edges of the DAG and the state of each stage in this flow run.

    states: of the stages that were submitted; the others were up to date or did not start.
    """
    rows = [
        {
            "stage": stage,
            "reads": ", ".join(graph.dependencies(stage)),
            "state": describe_stage(stage, graph, states),
        }
        for stage in graph.stages
    ]
    create_table_artifact(rows, key="stages", description="The DAG and its states in this run")


def describe_stage(stage: str, graph: Dag, states: Mapping[str, State]) -> str:
    """The name of the state of a stage, e.g. Completed; `up to date` if it was not stale."""
    if stage not in graph.stale:
        return "up to date"
    return states[stage].name or "" if stage in states else "not started"
