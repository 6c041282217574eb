"""The `polymuse` command, as a user meets it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from pipelines import project, summary
from pipelines.runner import dag
from pipelines.runner.eta import Durations, Progress
from pipelines.runner.scheduler import Schedule
from tests.support import tiny_dvc_project
from tests.support.tiny_dvc_project import (
    SLEEPER,
    fails,
    meets,
    processes,
    sleeps,
    wait_until,
    writes,
)

POLYMUSE = str(Path(sys.executable).with_name("polymuse"))
METRICS = {
    "skill": {"value": 0.9612, "standard_error": 0.0123},
    "grounding": {"total": 0.95, "by_slot": {"place": 1.0}},
    "ceilings": {"both": {"expected": 0.98, "realised": 0.9756}},
    "rouge_l": 0.5,
    "cider": 3.25,
    "bert_score": "unavailable",
}


def polymuse(
    folder: Path, *arguments: str, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess:
    """Run the command in `folder`, with a work folder beside it."""
    environment = environment | {"POLYMUSE_HOME": str(folder.parent / "home")}
    return subprocess.run(
        [POLYMUSE, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "preset"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "smoke" in done.stdout.split()


def evaluated(folder: Path, run: str, metrics: dict) -> None:
    """Put the metrics of a run where evaluate does, and name it in params.yaml."""
    target, file = folder / summary.METRICS / run, folder / "params.yaml"
    target.mkdir(parents=True)
    (target / "metrics.json").write_text(json.dumps(metrics))
    params = yaml.safe_load(file.read_text()) if file.exists() else {}
    params["writers"] = params.get("writers", {}) | {run: {}}
    file.write_text(yaml.safe_dump(params))


def tracked(filter_string: str) -> tuple:
    """A client of MLflow, and the runs that the filter lets pass, newest first."""
    from mlflow.tracking import MlflowClient

    from stages.shared.runtime import tracking

    client = MlflowClient(tracking.uri())
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
    return client, client.search_runs([experiment], filter_string)


def started(output: str) -> list[str]:
    """The lines that announce a stage."""
    return [line for line in output.splitlines() if line.startswith("stage ")]


def test_a_run_announces_its_stages_passes_their_output_on_and_ends_with_the_figures(tmp_path):
    stages = {"first": writes("a"), "last": writes("b", "a") | {"cmd": "echo hello; cp a b"}}
    folder = tiny_dvc_project.make(
        tmp_path / "project", {"expected_seconds": {"last": 61}}, **stages
    )
    evaluated(folder, "flexmuse", METRICS)
    run = polymuse(folder, "run")
    assert run.returncode == 0, run.stderr
    assert started(run.stdout) == [
        "stage 1 of 2: first, about 1:01 left",
        "stage 2 of 2: last, about 1:01 left",
    ]
    assert "last | hello" in run.stdout.splitlines()
    assert "dvc push" not in run.stdout  # advice for every stage
    assert "flexmuse  0.961" in run.stdout.splitlines()[-1]

    began = time.monotonic()
    again = polymuse(folder, "run")
    assert time.monotonic() - began < 5
    assert again.stdout.splitlines()[0] == "Everything is up to date."
    assert started(again.stdout) == []


def test_stages_that_wait_for_nothing_run_at_once_and_share_the_cores(tmp_path):
    counts = {"cmd": "echo threads $OMP_NUM_THREADS; cp b c", "deps": ["a", "b"], "outs": ["c"]}
    stages = {"left": meets("a", "b"), "right": meets("b", "a")}
    folder = tiny_dvc_project.make(tmp_path / "project", {"workers": 2}, **stages, last=counts)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run = polymuse(folder, "run", environment=environment)
    assert run.returncode == 0, run.stderr
    begun = [line.split()[4].strip(",") for line in started(run.stdout)]
    assert begun[2] == "last" and set(begun[:2]) == set(stages)
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"last | threads {threads}" in run.stdout.splitlines()

    tiny_dvc_project.write(folder, **stages, last=counts | {"cmd": f"{counts['cmd']} && true"})
    run = polymuse(folder, "run", environment=environment | {"OMP_NUM_THREADS": "7"})
    assert "last | threads 7" in run.stdout.splitlines()


def test_once_a_stage_has_failed_none_starts_and_what_runs_beside_it_ends(tmp_path):
    slow = "touch begun; while [ ! -e failing ]; do sleep .05; done; sleep 1; touch a"
    bad = "while [ ! -e begun ]; do sleep .05; done; touch failing; echo error: look; exit 1"
    stages = {"slow": {"cmd": slow, "outs": ["a"]}, "bad": {"cmd": bad, "outs": ["b"]}}
    stages |= {"after": writes("c", "a"), "later": writes("d", "b")}
    folder = tiny_dvc_project.make(tmp_path / "project", {"workers": 2}, **stages)
    run = polymuse(folder, "run")
    assert run.returncode == 1
    assert run.stderr == "error: bad: look\n"
    assert "bad | failed; slow will end" in run.stdout.splitlines()
    done = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert set(done) == {"slow"}
    _, (parent, *_) = tracked("run_name = 'run'")  # newest first
    assert parent.info.status == "FAILED"


def test_a_restored_stage_becomes_a_cached_child_of_the_run(tmp_path):
    stages = {"first": writes("cached_a") | {"deps": ["source"]}, "last": writes("b", "cached_a")}
    folder = tiny_dvc_project.make(tmp_path / "project", **stages)
    (folder / "source").write_text("1")
    (folder / "c").touch()
    polymuse(folder, "run")
    (folder / "cached_a").unlink()
    (folder / "dvc.lock").unlink()
    evaluated(folder, "flexmuse", METRICS)
    run = polymuse(folder, "run", "first")
    assert "'first' is cached" in run.stdout
    assert "dvc push" not in run.stdout
    assert started(run.stdout) == []

    client, (child, *_) = tracked("tags.`dvc.stage` = 'first'")
    parent = client.get_run(child.data.tags["mlflow.parentRunId"])
    assert child.data.tags["polymuse.cached"] == "true"
    assert parent.info.run_name == "run"
    assert parent.data.metrics["flexmuse.skill.value"] == pytest.approx(0.9612)


def test_the_sentence_of_a_failed_stage_is_the_last_line(tmp_path):
    stages = {"first": writes("a"), "bad": fails("a.txt is empty: fill it", "b", "a")}
    folder = tiny_dvc_project.make(tmp_path / "project", **stages, after=writes("c", "b"))
    run = polymuse(folder, "run")
    assert run.returncode == 1
    assert run.stderr == "error: bad: a.txt is empty: fill it\n"
    assert "Traceback" not in run.stdout
    assert not (folder / "c").exists()


def test_a_stage_that_crashed_is_named(tmp_path):
    folder = tiny_dvc_project.make(tmp_path / "project", bad={"cmd": "exit 7", "outs": ["a"]})
    run = polymuse(folder, "run")
    assert run.returncode == 1
    assert run.stderr.startswith("error: failed to reproduce 'bad'")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_leaves_no_stage_behind_and_can_be_repeated(tmp_path, way):
    folder = tiny_dvc_project.make(tmp_path / "project", stage={"cmd": SLEEPER, "outs": ["never"]})
    run = subprocess.Popen(
        [POLYMUSE, "run"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: sleeps(folder))
    run.send_signal(way)
    _, errors = run.communicate(timeout=30)
    assert run.returncode not in (0, None)
    assert "Traceback" not in errors
    wait_until(lambda: not processes(folder), tiny_dvc_project.SOON)

    tiny_dvc_project.write(folder, stage=writes("a"))
    assert polymuse(folder, "run").returncode == 0


def test_a_misspelt_number_stops_the_run_before_its_first_stage(workspace):
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("bertscore_items:", "bertscore_itmes:"))
    subprocess.run([*tiny_dvc_project.DVC, "init", "-q", "-f"], cwd=workspace, check=True)
    run = polymuse(workspace, "run")
    assert run.returncode == 1
    assert run.stderr == (
        "error: params.yaml: evaluate: missing bertscore_items, unknown bertscore_itmes\n"
    )
    assert run.stdout == ""


def test_the_project_is_found_from_any_folder_within_it(tmp_path):
    folder = tiny_dvc_project.make(tmp_path / "project", first=writes("a"))
    (folder / "deep" / "er").mkdir(parents=True)
    assert project.find(folder / "deep" / "er") == folder
    assert polymuse(folder / "deep" / "er", "run").returncode == 0
    assert (folder / "a").exists()


def test_outside_of_a_project_one_sentence_says_what_to_do(tmp_path):
    run = polymuse(tmp_path, "run")
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {tmp_path} is in no Polymuse project: go to")
    assert run.stderr.count("\n") == 1


def test_presets_are_listed_applied_and_taken_back(tmp_path):
    folder = tiny_dvc_project.make(tmp_path / "project", first=writes("a"))
    (folder / "presets").mkdir()
    (folder / "presets" / "quick.yaml").write_text("run: {workers: 7}")
    before = (folder / "params.yaml").read_bytes()
    assert polymuse(folder, "preset").stdout == "quick\n"
    assert polymuse(folder, "preset", "quick").returncode == 0
    assert yaml.safe_load((folder / "params.yaml").read_text())["run"]["workers"] == 7
    assert polymuse(folder, "preset", "--undo").returncode == 0
    assert (folder / "params.yaml").read_bytes() == before
    assert polymuse(folder, "preset", "slow").stderr.startswith("error: presets/slow.yaml does not")


def test_the_headline_table_shows_each_run_and_dashes_what_it_has_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluated(tmp_path, "flexmuse", METRICS)
    evaluated(tmp_path, "recipes", {"rouge_l": 0.125})
    Path("data/14_report").mkdir()
    summary.REPORT.write_text("page")
    assert summary.table().splitlines() == [
        "run       skill  ± se   grounding  ceiling  ROUGE-L  CIDEr",
        "flexmuse  0.961  0.012  0.950      0.976    0.500    3.250",
        "recipes   -      -      -          -        0.125    -",
        "",
        f"report: {tmp_path}/data/14_report/index.html",
    ]
    assert summary.metrics()["flexmuse.ceilings.both.realised"] == 0.9756
    assert "flexmuse.bert_score" not in summary.metrics()


def test_captions_have_their_share_of_the_pictures_ceiling_in_the_headline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluated(tmp_path, "flexmuse", METRICS | {"rewards": {"literal": 0.75, "semantic": 0.5}})
    share = {"value": 0.8, "standard_error": 0.02}
    ceilings = {"picture": {"expected": 1.0, "realised": 1.0}}
    captions = {"share_of_ceiling": share, "ceilings": ceilings, "rouge_l": 0.25}
    evaluated(tmp_path, "tippo_captions", captions)
    assert summary.table().splitlines() == [
        "run             skill  of ceiling  ± se   grounding  ceiling  ROUGE-L  CIDEr  literal  "
        "semantic",
        "flexmuse        0.961  -           0.012  0.950      0.976    0.500    3.250  0.750    "
        "0.500",
        "tippo_captions  -      0.800       0.020  -          1.000    0.250    -      -        -",
    ]
    found = summary.metrics()
    assert found["tippo_captions.share_of_ceiling.value"] == 0.8
    assert found["tippo_captions.ceilings.picture.realised"] == 1
    assert found["flexmuse.rewards.semantic"] == 0.5


def test_memes_have_the_means_over_their_tasks_in_the_headline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {
        "skill": {"value": 0.9, "standard_error": 0.01},
        "score": {"metric": "accuracy", "value": 0.875, "standard_error": 0.02},
        **{name: {"value": 0.75} for name in ("accuracy", "weighted_f1", "macro_f1")},
        "ceilings": {"both": {"expected": 0.9375, "realised": 0.9375}},
        "tasks": {"humour": {"accuracy": {"value": 0.5, "standard_error": 0.1}}},
    }
    place = tmp_path / summary.SCORES / "mm_orient"
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps(found))
    Path("params.yaml").write_text("readers: {mm_orient: {}}")
    assert summary.table().splitlines() == [
        "run        skill  ± se   ceiling  accuracy  weighted F1",
        "mm_orient  0.900  0.010  0.938    0.750     0.750",
    ]
    assert summary.metrics()["mm_orient.weighted_f1.value"] == 0.75


def test_a_run_that_params_no_longer_name_has_no_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("flexmuse", "recipes"):
        evaluated(tmp_path, run, {"rouge_l": 0.125})
    Path("params.yaml").write_text("writers: {recipes: {}}")
    assert summary.table().splitlines() == ["run      ROUGE-L", "recipes  0.125"]


def test_warnings_of_the_final_phase_stand_under_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = {"over_masking": "look at sigma", "single_position": "look at the maps"}
    evaluated(tmp_path, "flexmuse", METRICS | {"warnings": said, "sft": {"warnings": {"a": "b"}}})
    evaluated(tmp_path, "recipes", {"rouge_l": 0.125})
    assert summary.table().splitlines()[3:] == [
        "flexmuse: look at sigma",
        "flexmuse: look at the maps",
    ]


def test_the_time_left_comes_from_earlier_runs_under_the_same_expectation(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path))
    Durations({"train": 100}).keep("train_classifier@a", 40.04)
    assert Durations({"train": 100}).seconds("train_classifier@a") == 40.0
    assert Durations({"train": 100}).seconds("train_classifier@b") == 100
    assert Durations({"train": 5}).seconds("train_classifier@a") == 5
    assert Durations({}).seconds("train_classifier@a") == 0
    expected = {"train": 100, "train_classifier@b": 300}
    assert [Durations(expected).seconds(f"train_classifier@{row}") for row in "abc"] == [
        40.0,
        300,
        100,
    ]


def test_stages_that_are_skipped_or_restored_count_as_done(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path))
    durations = Durations({"a": 100, "b": 60, "c": 5})
    progress = Progress({"a": 165, "b": 65, "c": 5}, durations, 1)
    assert progress.starts("a", "Stage 'a' is cached - skipping run, checking out outputs\n") == ""
    progress.ends("a")
    assert progress.starts("b", "anything else\n") == ""
    assert progress.starts("b", "Running stage 'b':\n") == "stage 2 of 3: b, about 1:05 left"
    assert progress.starts("b", "Running stage 'b':\n") == ""  # it wrote such a line itself
    progress.ends("b")
    assert progress.starts("c", "Running stage 'c':\n") == "stage 3 of 3: c, about 0:05 left"
    assert Durations({"a": 100}).seconds("a") == 100
    assert math.isclose(Durations({"b": 60}).seconds("b"), 0, abs_tol=1)


@pytest.mark.parametrize(("workers", "left"), [(1, "2:00"), (2, "1:10"), (9, "1:10")])
def test_the_time_left_is_that_of_the_longest_way_or_of_all_work_shared(
    tmp_path, monkeypatch, workers, left
):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path))
    durations = Durations({"long": 60, "last": 10, "short": 20, "other": 30})
    progress = Progress({"long": 70, "other": 30, "short": 20, "last": 10}, durations, workers)
    headline = progress.starts("long", "Running stage 'long':\n")
    assert headline == f"stage 1 of 4: long, about {left} left"


def test_the_longest_way_starts_first_and_each_stage_after_what_it_reads_from():
    stages = ["a", "b", "c", "d", "e"]
    edges = {("a", "d"), ("b", "c"), ("c", "e")}
    graph = dag.Dag(stages, edges, stages, dict.fromkeys(stages, ""))
    schedule = Schedule(graph, {"a": 5, "b": 1, "c": 1, "d": 1, "e": 9}.get)
    assert schedule.way == {"a": 6, "b": 11, "c": 10, "d": 1, "e": 9}
    assert schedule.start(1) == ["b"]
    assert schedule.start(0) == []
    assert schedule.start(2) == ["a"]
    assert schedule.start(2) == []
    schedule.end("b")
    assert schedule.start(2) == ["c"]
    schedule.end("a")
    schedule.end("c")
    assert schedule.start(2) == ["e", "d"]
    schedule.end("d")
    assert schedule
    schedule.end("e")
    assert not schedule


def test_what_is_up_to_date_holds_nothing_up():
    graph = dag.Dag(["a", "b"], {("a", "b")}, ["b"], {"a": "", "b": ""})
    assert Schedule(graph, lambda _: 1.0).start(2) == ["b"]
