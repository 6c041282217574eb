"""The flow has the tasks, edges and logs of the stages in DVC, and ends with them."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from zoneinfo import ZoneInfo

import httpx
import prefect
import pytest
import yaml
from mlflow.tracking import MlflowClient
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ParameterTypeError
from prefect.flows import EntrypointType
from prefect.states import Cancelled, Crashed
from prefect.testing.utilities import prefect_test_harness
from prefect.utilities import services
from prefect.utilities.callables import parameter_schema

from pipelines import flow as pipeline_flow
from pipelines import flow_runs, project, serve
from pipelines.model_registry import ModelRegistry
from pipelines.runner import dag, process_group
from stages.shared.runtime.stage import InputError
from tests.support import evaluated_project, tiny_dvc_project
from tests.support.tiny_dvc_project import (
    SLEEP_COMMAND,
    is_sleeping,
    list_processes,
    make_copy_stage,
    make_failing_stage,
    make_rendezvous_stage,
    wait_until,
)

LEFT_AND_RIGHT = {
    "first": make_copy_stage("a"),
    "left": make_copy_stage("b", "a"),
    "right": make_copy_stage("c", "a"),
    "last": make_copy_stage("d", "b", "c"),
}


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    """The address of a Prefect server for these tests."""
    with prefect_test_harness(server_startup_timeout=120):
        yield prefect.settings.PREFECT_API_URL.value()


def enter(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Enter a project as the commands do; undone after the test."""
    monkeypatch.chdir(folder)
    for name in ("PATH", "POLYMUSE_HOME", "DVC_SITE_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("POLYMUSE_HOME", str(folder / ".polymuse"))
    project.enter_project()


def run_flow(**parameters):
    """The final state of the flow, and its task runs by stage."""
    state = pipeline_flow.build(**parameters, return_state=True)
    return state, task_runs(state.state_details.flow_run_id)


def task_runs(flow_run) -> dict:
    """The task runs of a flow run, by stage."""
    flow_filter = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
    with get_client(sync_client=True) as client:
        return {run.name: run for run in client.read_task_runs(flow_run_filter=flow_filter)}


@pytest.mark.slow
def test_tasks_and_edges_are_those_of_dvc_and_only_stale_stages_are_submitted(
    tmp_path, monkeypatch
):
    enter(monkeypatch, tiny_dvc_project.create_project(tmp_path / "project", **LEFT_AND_RIGHT))
    graph = dag.load_dag([])
    state, runs = run_flow()
    assert state.is_completed()
    assert runs.keys() == set(graph.stages)
    names = {run.id: name for name, run in runs.items()}
    edges = {
        (names[before.id], name)
        for name, run in runs.items()
        for before in run.task_inputs.get("wait_for", [])
    }
    assert edges == graph.edges

    Path("c").unlink()
    _, runs = run_flow()
    assert runs.keys() == {"right", "last"}
    _, runs = run_flow()
    assert runs == {}


def test_only_stages_downstream_of_a_failure_do_not_run(tmp_path, monkeypatch):
    stages = {
        "bad": make_failing_stage("a.txt is empty: fill it", "a"),
        "after": make_copy_stage("b", "a"),
        "other": make_copy_stage("c"),
    }
    enter(monkeypatch, tiny_dvc_project.create_project(tmp_path / "project", **stages))
    state, runs = run_flow()
    assert state.is_failed()
    assert state.message == "bad: a.txt is empty: fill it"
    assert runs["bad"].state.message == state.message
    assert runs["other"].state.is_completed()
    assert runs["after"].state.name == "NotReady"
    assert not Path("b").exists()


def test_a_waiting_stage_does_not_block_a_worker(tmp_path, monkeypatch):
    stages = {
        "first": make_rendezvous_stage("a", "c"),
        "next": make_copy_stage("b", "a"),
        "other": make_rendezvous_stage("c", "a"),
    }
    run = {"workers": 2, "stage_timeout": 60}
    enter(monkeypatch, tiny_dvc_project.create_project(tmp_path / "project", run, **stages))
    assert dag.load_dag([]).stale == ["first", "next", "other"]
    state, _ = run_flow()
    assert state.is_completed()


@pytest.mark.parametrize("ending", [Cancelled, Crashed])
def test_a_flow_fails_if_a_stage_was_cancelled_or_crashed(tmp_path, monkeypatch, ending):
    def stop_stage(*_) -> None:
        raise process_group.ProcessStopped

    stages = {"first": make_copy_stage("a"), "after": make_copy_stage("b", "a")}
    enter(monkeypatch, tiny_dvc_project.create_project(tmp_path / "project", **stages))
    monkeypatch.setattr(pipeline_flow.dvc_repro, "reproduce_stage", stop_stage)
    monkeypatch.setattr(pipeline_flow, "Cancelled", ending)
    state, runs = run_flow()
    assert runs["first"].state.name == ending.__name__
    assert runs["after"].state.name == "NotReady"
    assert state.is_failed()
    assert state.message == "first was stopped"


def test_a_stage_that_takes_too_long_is_killed_with_all_its_children(tmp_path, monkeypatch):
    stage = {"cmd": SLEEP_COMMAND, "outs": ["never"]}
    run = {"stage_timeout": 7200, "stage_timeouts": {"stage": 5}}
    folder = tiny_dvc_project.create_project(tmp_path / "project", run, stage=stage)
    enter(monkeypatch, folder)
    state, _ = run_flow()
    assert state.message == (
        "stage took more than 5 seconds, its limit in run.stage_timeout or run.stage_timeouts"
    )
    assert [process.pid for process in list_processes(folder) if process.pid != os.getpid()] == []


def test_a_stage_whose_server_is_away_is_repeated_and_one_with_wrong_input_is_not(
    tmp_path, monkeypatch
):
    # What stages print and return for TemporaryError and InputError.
    count = "n=$(cat tries 2>/dev/null || echo 0); echo $((n + 1)) > tries"
    away = f"{count}; [ $n = 2 ] || {{ echo 'error: no server responds' >&2; exit 75; }}; touch a"
    stages = {
        "away": {"cmd": away, "outs": ["a"]},
        "bad": make_failing_stage("b.txt is empty: fill it", "b"),
    }
    run = {"stage_retries": 2, "retry_delay": 0.1}
    enter(monkeypatch, tiny_dvc_project.create_project(tmp_path / "project", run, **stages))
    state, runs = run_flow()
    assert state.message == "bad: b.txt is empty: fill it"
    assert runs["away"].state.is_completed() and runs["away"].run_count == 3
    assert runs["bad"].run_count == 1

    Path("a").unlink()
    Path("tries").write_text("3")
    state, runs = run_flow(targets=["away"])
    assert state.message == "away: no server responds"
    assert runs["away"].run_count == 3 and runs["away"].state.name == pipeline_flow.SERVER_AWAY


def test_parameters_hold_for_one_run(tmp_path, monkeypatch):
    stages = {
        "train": {"cmd": "cp params.yaml a", "params": ["lr", "epochs"], "outs": ["a"]},
        "other": make_copy_stage("b"),
    }
    enter(monkeypatch, tiny_dvc_project.create_project(tmp_path / "project", **stages))
    with Path("params.yaml").open("a") as file:
        file.write("lr: 1  # learning rate\nepochs: 1\n")
    params = Path("params.yaml").read_bytes()
    Path("presets").mkdir()
    Path("presets/quick.yaml").write_text("{lr: 2, epochs: 2}")

    state, runs = run_flow(targets=["train"], preset="quick", overrides=["lr=3"])
    assert state.is_completed(), state.message
    assert runs.keys() == {"train"}
    trained = yaml.safe_load(Path("a").read_text())
    assert (trained["lr"], trained["epochs"]) == (3, 2)
    assert Path("params.yaml").read_bytes() == params

    _, runs = run_flow(targets=["other"])
    assert runs.keys() == {"other"}
    _, runs = run_flow(targets=["other"])
    assert runs == {}
    _, runs = run_flow(targets=["other"], force=True)
    assert runs["other"].state.is_completed()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"targets": ["trian"]}, "trian"),
        ({"preset": "quick"}, "presets/quick.yaml does not exist"),
        ({"overrides": ["run.nothing=1"]}, "params.yaml has no run.nothing: name one that"),
        ({"overrides": ["run.workers=none"]}, "run.workers is 'none': give int"),
    ],
)
def test_a_wrong_parameter_is_one_sentence(tmp_path, monkeypatch, parameters, message):
    folder = tiny_dvc_project.create_project(tmp_path / "project", stage=make_copy_stage("a"))
    enter(monkeypatch, folder)
    params = Path("params.yaml").read_bytes()
    state, _ = run_flow(**parameters)
    assert state.is_failed()
    assert message in state.message and "\n" not in state.message
    assert Path("params.yaml").read_bytes() == params


def test_the_form_of_the_flow_describes_and_types_its_parameters():
    schema = parameter_schema(pipeline_flow.build).properties
    assert schema.keys() == {"targets", "preset", "overrides", "force", "promote"}
    assert all(field["description"] for field in schema.values())
    assert schema["force"]["type"] == "boolean"
    with pytest.raises(ParameterTypeError, match="overrides"):
        pipeline_flow.build.validate_parameters({"overrides": ["lr"]})


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict]]]:
    """The address of a web server, and the messages that it has received."""
    received: list[dict] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", received
        server.shutdown()


def test_a_failed_run_is_reported_by_the_block_and_a_completed_one_is_not(
    tmp_path, monkeypatch, webhook
):
    address, received = webhook
    CustomWebhookNotificationBlock(
        name="alerts", url=address, json_data={"subject": "{{subject}}", "body": "{{body}}"}
    ).save("alerts")
    stages = {"bad": make_failing_stage("a.txt is empty: fill it", "a"), "good": {"cmd": "true"}}
    run = {"notification_block": "custom-webhook/alerts"}
    enter(monkeypatch, tiny_dvc_project.create_project(tmp_path / "project", run, **stages))
    state, _ = run_flow(targets=["good"])
    assert state.is_completed() and received == []
    state, _ = run_flow()
    (message,) = received
    assert message["subject"].startswith("build ") and message["subject"].endswith(": Failed")
    assert message["body"].startswith("bad: a.txt is empty: fill it\n")
    assert message["body"].endswith(f"/runs/flow-run/{state.state_details.flow_run_id}")

    state, _ = run_flow(overrides=["run.notification_block=custom-webhook/nothing"])
    assert state.message.startswith("run.notification_block is 'custom-webhook/nothing', and")


def test_the_log_of_a_task_is_the_output_of_its_stage(tmp_path, monkeypatch, caplog):
    stage = {"cmd": "printf 'hello\\n10%%\\r20%%\\n'; touch a", "outs": ["a"]}
    enter(monkeypatch, tiny_dvc_project.create_project(tmp_path / "project", stage=stage))
    expected = ["hello", "10%", "20%"]
    run_flow()
    messages = [line.getMessage() for line in caplog.records if line.name == "prefect.task_runs"]
    assert [line for line in messages if line in expected] == expected


def test_artifacts_have_the_metrics_the_stages_and_links(tmp_path, monkeypatch):
    command = """mkdir -p data/12_evaluate/tiny && echo '{"rouge_l": 0.5}' >"""
    metrics = "data/12_evaluate/tiny/metrics.json"
    stage = {"cmd": f"{command} {metrics}", "metrics": [metrics]}
    report = make_failing_stage("no", "report", metrics) | {"cmd": "exit 1"}
    stages = {"evaluate": stage, "report": report}
    enter(monkeypatch, tiny_dvc_project.create_project(tmp_path / "project", **stages))
    with Path("params.yaml").open("a") as file:
        file.write("generators: {tiny: {}}\n")
    Path("data/14_report").mkdir(parents=True)
    Path("data/14_report/index.html").touch()
    state, _ = run_flow()
    assert state.is_failed()
    artifacts = read_artifacts(state)
    assert artifacts.keys() == {"mlflow", "stages"}
    assert json.loads(artifacts["stages"]) == [
        {"stage": "evaluate", "reads": "", "state": "Completed"},
        {"stage": "report", "reads": "evaluate", "state": "Failed"},
    ]
    page = r"\[Parent run in MLflow\]\(http://127.0.0.1:5000/#/experiments/\w+/runs/(\w+)\)"
    (run_id,) = re.findall(page, artifacts["mlflow"])
    flow_tag = MlflowClient().get_run(run_id).data.tags["prefect.flow_run_id"]
    assert flow_tag == str(state.state_details.flow_run_id)

    state, _ = run_flow(targets=["evaluate"])
    artifacts = read_artifacts(state)
    assert '"run": "tiny"' in artifacts["metrics"]
    assert '"ROUGE-L": "0.500"' in artifacts["metrics"]
    assert Path("data/14_report/index.html").absolute().as_uri() in artifacts["report"]


def read_artifacts(state) -> dict[str, str]:
    """The artifacts of a flow run by key."""
    flow_run = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts()
    return {one.key: one.data for one in artifacts if one.flow_run_id == flow_run}


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_flow_leaves_no_process(tmp_path, server, sent):
    stages = {"one": {"cmd": SLEEP_COMMAND, "outs": ["never"]}, "two": make_copy_stage("b")}
    folder = tiny_dvc_project.create_project(tmp_path / "project", {"workers": 1}, **stages)
    environment = os.environ | {"PREFECT_API_URL": server}
    flow = subprocess.Popen(
        [sys.executable, "-m", "pipelines.flow"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: is_sleeping(folder), 120)
    flow.send_signal(sent)
    assert flow.wait(30) != 0
    wait_until(lambda: not list_processes(folder), tiny_dvc_project.KILL_TIMEOUT_SECONDS)
    assert not (folder / "b").exists()


@pytest.mark.slow
def test_an_interrupted_flow_does_not_wait_for_a_retry(tmp_path, server):
    stage = {"cmd": "touch tried; exit 75", "outs": ["never"]}
    run = {"stage_retries": 1, "retry_delay": 300}
    folder = tiny_dvc_project.create_project(tmp_path / "project", run, stage=stage)
    flow = subprocess.Popen(
        [sys.executable, "-m", "pipelines.flow"],
        cwd=folder,
        env=os.environ | {"PREFECT_API_URL": server},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert flow.stdout is not None
    assert any("retry 1 of 1 in 300 seconds" in line for line in flow.stdout)
    flow.terminate()
    flow.communicate(timeout=60)
    assert flow.returncode != 0


@pytest.mark.parametrize(
    ("cron", "timezone", "message"),
    [
        ("61 3 * * *", "Europe/Berlin", "--cron '61 3 .*five fields"),
        ("0 0 3 * * *", "Europe/Berlin", "--cron '0 0 3 .*five fields"),
        ("0 3 * *", "Europe/Berlin", "--cron '0 3 .*five fields"),
        ("0 3 * * *", "Europe/Berln", "--timezone 'Europe/Berln' is unknown"),
    ],
)
def test_an_invalid_schedule_is_one_sentence(cron, timezone, message):
    with pytest.raises(InputError, match=message):
        serve.parse_schedule(cron, timezone)


def test_scheduled_runs_use_the_time_zone():
    deployment = pipeline_flow.build.to_deployment(
        "test",
        schedule=serve.parse_schedule("0 3 * * *", "Europe/Berlin"),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    name = deployment.apply()
    with get_client(sync_client=True) as client:
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": name})
        runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_ASC)
    planned = [run.expected_start_time for run in runs if run.deployment_id == name]
    assert planned
    assert {time.astimezone(ZoneInfo("Europe/Berlin")).hour for time in planned} == {3}


def test_a_flow_ends_with_promotions_and_a_champion_that_stays_is_no_failure(tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    config = {"labels": ["negative", "positive"], "shapes": {"task": "sentiment"}}
    (model / "config.json").write_text(json.dumps(config))
    enter(monkeypatch, evaluated_project.create_project(tmp_path / "project", model))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    state = pipeline_flow.build(promote=["weak", "strong", "weak"], return_state=True)
    assert state.is_completed(), state.message
    champion = ModelRegistry().find_champion(evaluated_project.CORPUS)
    assert champion is not None and (champion.number, champion.run) == ("2", "strong")
    state = pipeline_flow.build(promote=["nobody"], return_state=True)
    assert state.is_failed() and state.message.startswith("params.yaml has no run 'nobody' among")


def test_a_flow_with_promotions_of_unknown_runs_is_not_served(monkeypatch):
    arguments = ["serve", "--cron", "0 3 * * *", "--timezone", "UTC", "--promote", "nobody"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(InputError, match=r"^params.yaml has no run 'nobody' among"):
        serve.main()


def test_serve_reports_a_server_that_ends_without_a_traceback(webhook, monkeypatch, capsys):
    address, _ = webhook

    async def fail() -> None:
        raise httpx.ConnectError("All connection attempts failed")

    def lose_server(*_, **__) -> None:
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        asyncio.run(services.critical_service_loop(fail, 0))

    monkeypatch.setenv("PREFECT_API_URL", address)
    monkeypatch.setenv(flow_runs.SERVE_ENV, "")
    monkeypatch.setattr(services, "format_exception", services.format_exception)
    monkeypatch.setattr(flow_runs, "create_crash_detection", lambda _: None)
    monkeypatch.setattr(pipeline_flow.build, "serve", lose_server)
    monkeypatch.setattr("sys.argv", ["serve", "--cron", "0 3 * * *", "--timezone", "UTC"])
    with pytest.raises(InputError, match=r"^PREFECT_API_URL: no server responds at"):
        serve.main()
    assert "\nConnectError: All connection attempts failed\n" in capsys.readouterr().out


@pytest.mark.parametrize("main", [pipeline_flow.main, serve.main])
@pytest.mark.parametrize("address", ["http://user:secret@127.0.0.1:9/api", "localhost:9", "x"])
def test_a_server_that_is_away_is_one_sentence(monkeypatch, main, address):
    monkeypatch.setenv("PREFECT_API_URL", address)
    options = ["--cron", "0 3 * * *", "--timezone", "UTC"] if main is serve.main else []
    monkeypatch.setattr("sys.argv", ["command", *options])
    with pytest.raises(InputError, match=r"^PREFECT_API_URL: no server responds at") as error:
        main()
    assert "secret" not in str(error.value)
