"""The `polymuse` command, run as a user runs it."""

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
from pipelines.runner.eta import RunProgress, StageDurations, format_clock
from pipelines.runner.scheduler import StageScheduler
from tests.support import tiny_dvc_project
from tests.support.tiny_dvc_project import (
    SLEEP_COMMAND,
    is_sleeping,
    list_processes,
    make_copy_stage,
    make_failing_stage,
    make_rendezvous_stage,
    wait_until,
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
    """Run the command in `folder`, with its work folder next to it."""
    environment = environment | {"POLYMUSE_HOME": str(folder.parent / "home")}
    return subprocess.run(
        [POLYMUSE, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_can_be_run_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "preset"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "smoke" in done.stdout.split()


def write_metrics(folder: Path, run: str, metrics: dict) -> None:
    """Write the metrics of a run as `evaluate` does, and add the run to params.yaml."""
    target, file = folder / summary.GENERATOR_METRICS_DIR / run, folder / "params.yaml"
    target.mkdir(parents=True, exist_ok=True)
    (target / "metrics.json").write_text(json.dumps(metrics))
    params = yaml.safe_load(file.read_text()) if file.exists() else {}
    params["generators"] = params.get("generators", {}) | {run: {}}
    file.write_text(yaml.safe_dump(params))


def search_runs(filter_string: str) -> tuple:
    """A client of MLflow, and the runs that match the filter, newest first."""
    from mlflow.tracking import MlflowClient

    from stages.shared.runtime import mlflow_store

    client = MlflowClient(mlflow_store.get_tracking_uri())
    experiment = client.get_experiment_by_name(mlflow_store.EXPERIMENT_NAME).experiment_id
    return client, client.search_runs([experiment], filter_string)


def list_headlines(output: str) -> list[str]:
    """The lines that announce a stage."""
    return [line for line in output.splitlines() if line.startswith("stage ")]


def test_a_run_announces_its_stages_prints_their_output_and_ends_with_the_metrics(tmp_path):
    stages = {
        "first": make_copy_stage("a"),
        "last": make_copy_stage("b", "a") | {"cmd": "echo hello; cp a b"},
    }
    folder = tiny_dvc_project.create_project(
        tmp_path / "project", {"cpu_budget": {"last": 61}}, **stages
    )
    write_metrics(folder, "flexmuse", METRICS)
    run = polymuse(folder, "run")
    assert run.returncode == 0, run.stderr
    assert list_headlines(run.stdout) == [
        "stage 1 of 2: first, about 1:01 left",
        "stage 2 of 2: last, about 1:01 left",
    ]
    assert "last | hello" in run.stdout.splitlines()
    assert "dvc push" not in run.stdout  # advice of DVC after every stage
    lines = run.stdout.splitlines()
    assert any(line.startswith("first: done in 0:") for line in lines)
    assert any(line.startswith("flexmuse  0.961") for line in lines)
    assert "The skill of flexmuse is at least what is expected." in lines
    assert any(line.startswith("CPU time: ") and line.endswith(" s planned") for line in lines)
    assert lines[-3:-1] == [
        "Try next:",
        '  polymuse write --topic "a red kite by the sea" -o article',
    ]

    began = time.monotonic()
    again = polymuse(folder, "run")
    assert time.monotonic() - began < 5
    assert again.stdout.splitlines()[0] == "Everything is up to date."
    assert list_headlines(again.stdout) == []


@pytest.mark.slow
def test_ready_stages_run_at_once_and_share_the_cores(tmp_path):
    counts = {"cmd": "echo threads $OMP_NUM_THREADS; cp b c", "deps": ["a", "b"], "outs": ["c"]}
    stages = {"left": make_rendezvous_stage("a", "b"), "right": make_rendezvous_stage("b", "a")}
    folder = tiny_dvc_project.create_project(
        tmp_path / "project", {"workers": 2}, **stages, last=counts
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    run = polymuse(folder, "run", environment=environment)
    assert run.returncode == 0, run.stderr
    order = [line.split()[4].strip(",") for line in list_headlines(run.stdout)]
    assert order[2] == "last" and set(order[:2]) == set(stages)
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"last | threads {threads}" in run.stdout.splitlines()

    tiny_dvc_project.write_stages(
        folder, **stages, last=counts | {"cmd": f"{counts['cmd']} && true"}
    )
    run = polymuse(folder, "run", environment=environment | {"OMP_NUM_THREADS": "7"})
    assert "last | threads 7" in run.stdout.splitlines()


@pytest.mark.slow
def test_after_a_failure_no_stage_starts_and_running_stages_finish(tmp_path):
    slow = "touch begun; while [ ! -e failing ]; do sleep .05; done; sleep 1; touch a"
    bad = "while [ ! -e begun ]; do sleep .05; done; touch failing; echo error: look; exit 1"
    stages = {"slow": {"cmd": slow, "outs": ["a"]}, "bad": {"cmd": bad, "outs": ["b"]}}
    stages |= {"after": make_copy_stage("c", "a"), "later": make_copy_stage("d", "b")}
    folder = tiny_dvc_project.create_project(tmp_path / "project", {"workers": 2}, **stages)
    run = polymuse(folder, "run")
    assert run.returncode == 1
    assert run.stderr == "error: bad: look\n"
    assert "bad | failed; waiting for slow" in run.stdout.splitlines()
    done = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert set(done) == {"slow"}
    _, (parent, *_) = search_runs("tags.`polymuse.parent` = 'true'")  # newest first
    assert parent.info.status == "FAILED"


@pytest.mark.slow
def test_a_restored_stage_is_tracked_as_cached(tmp_path):
    stages = {
        "first": make_copy_stage("cached_a") | {"deps": ["source"]},
        "last": make_copy_stage("b", "cached_a"),
    }
    folder = tiny_dvc_project.create_project(tmp_path / "project", **stages)
    (folder / "source").write_text("1")
    (folder / "c").touch()
    polymuse(folder, "run")
    (folder / "cached_a").unlink()
    (folder / "dvc.lock").unlink()
    write_metrics(folder, "flexmuse", METRICS)
    run = polymuse(folder, "run", "first")
    assert "'first' is cached" in run.stdout
    assert "dvc push" not in run.stdout
    assert list_headlines(run.stdout) == []

    client, (child, *_) = search_runs("tags.`dvc.stage` = 'first'")
    parent = client.get_run(child.data.tags["mlflow.parentRunId"])
    assert child.data.tags["polymuse.cached"] == "true"
    assert parent.data.tags["mlflow.source.name"] == "polymuse run"
    assert parent.data.metrics["flexmuse.skill"] == pytest.approx(0.9612)


def test_the_error_of_a_failed_stage_is_the_last_line(tmp_path):
    stages = {
        "first": make_copy_stage("a"),
        "bad": make_failing_stage("a.txt is empty: fill it", "b", "a"),
    }
    folder = tiny_dvc_project.create_project(
        tmp_path / "project", **stages, after=make_copy_stage("c", "b")
    )
    run = polymuse(folder, "run")
    assert run.returncode == 1
    assert run.stderr == "error: bad: a.txt is empty: fill it\n"
    assert "Traceback" not in run.stdout
    assert not (folder / "c").exists()


def test_a_stage_that_crashed_is_named(tmp_path):
    folder = tiny_dvc_project.create_project(
        tmp_path / "project", bad={"cmd": "exit 7", "outs": ["a"]}
    )
    run = polymuse(folder, "run")
    assert run.returncode == 1
    assert run.stderr.startswith("error: failed to reproduce 'bad'")
    assert run.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_no_process_and_can_be_repeated(tmp_path, sent):
    folder = tiny_dvc_project.create_project(
        tmp_path / "project", stage={"cmd": SLEEP_COMMAND, "outs": ["never"]}
    )
    run = subprocess.Popen(
        [POLYMUSE, "run"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: is_sleeping(folder))
    run.send_signal(sent)
    _, errors = run.communicate(timeout=30)
    assert run.returncode not in (0, None)
    assert "Traceback" not in errors
    wait_until(lambda: not list_processes(folder), tiny_dvc_project.KILL_TIMEOUT_SECONDS)

    tiny_dvc_project.write_stages(folder, stage=make_copy_stage("a"))
    assert polymuse(folder, "run").returncode == 0


def test_a_misspelt_key_stops_the_run_before_its_first_stage(workspace):
    file = workspace / "config" / "evaluation.yaml"
    file.write_text(file.read_text().replace("max_bertscore_samples:", "max_samples:"))
    subprocess.run([*tiny_dvc_project.DVC_COMMAND, "init", "-q", "-f"], cwd=workspace, check=True)
    run = polymuse(workspace, "run")
    assert run.returncode == 1
    assert run.stderr == (
        "error: config/evaluation.yaml: evaluate: "
        "missing max_bertscore_samples, unknown max_samples\n"
    )
    assert run.stdout == ""


def test_the_project_is_found_from_any_folder_within_it(tmp_path):
    folder = tiny_dvc_project.create_project(tmp_path / "project", first=make_copy_stage("a"))
    (folder / "deep" / "er").mkdir(parents=True)
    assert project.find_project(folder / "deep" / "er") == folder
    assert polymuse(folder / "deep" / "er", "run").returncode == 0
    assert (folder / "a").exists()


def test_outside_of_a_project_the_error_says_what_to_do(tmp_path):
    run = polymuse(tmp_path, "run")
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {tmp_path} is not in a Polymuse project: go to")
    assert run.stderr.count("\n") == 1


def test_presets_are_listed_applied_and_undone(tmp_path):
    folder = tiny_dvc_project.create_project(tmp_path / "project", first=make_copy_stage("a"))
    (folder / "presets").mkdir()
    (folder / "presets" / "quick.yaml").write_text("run: {workers: 7}")
    before = (folder / "params.yaml").read_bytes()
    assert polymuse(folder, "preset").stdout == "quick\n"
    assert polymuse(folder, "preset", "quick").returncode == 0
    assert yaml.safe_load((folder / "params.yaml").read_text())["run"]["workers"] == 7
    assert polymuse(folder, "preset", "--undo").returncode == 0
    assert (folder / "params.yaml").read_bytes() == before
    assert polymuse(folder, "preset", "slow").stderr.startswith("error: presets/slow.yaml does not")


def test_the_summary_has_a_row_for_each_run_and_dashes_for_missing_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_metrics(tmp_path, "flexmuse", METRICS)
    write_metrics(tmp_path, "recipes", {"rouge_l": 0.125})
    Path("data/14_report").mkdir()
    summary.REPORT_PATH.write_text("page")
    assert summary.format_table(summary.build_rows()).splitlines() == [
        "run       skill  ± se   grounding  ceiling  ROUGE-L  CIDEr",
        "flexmuse  0.961  0.012  0.950      0.976    0.500    3.250",
        "recipes   -      -      -          -        0.125    -",
    ]
    assert summary.format_summary({}, "").splitlines()[3:] == [
        "",
        f"report: {tmp_path}/data/14_report/index.html",
        "",
        "Try next:",
        '  polymuse write --topic "a red kite by the sea" -o article',
        "  polymuse ui",
    ]
    assert summary.collect_metrics() == {
        "flexmuse.score": 0.95,
        "flexmuse.ceiling": 0.9756,
        "flexmuse.skill": 0.9612,
    }


def test_the_summary_of_captions_has_their_share_of_the_image_ceiling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_metrics(tmp_path, "flexmuse", METRICS | {"rewards": {"literal": 0.75, "semantic": 0.5}})
    share = {"value": 0.8, "standard_error": 0.02}
    ceilings = {"picture": {"expected": 1.0, "realised": 1.0}}
    captions = {"share_of_ceiling": share, "ceilings": ceilings, "rouge_l": 0.25}
    write_metrics(tmp_path, "tippo_captions", captions)
    assert summary.format_table(summary.build_rows()).splitlines() == [
        "run             skill  of ceiling  ± se   grounding  ceiling  ROUGE-L  CIDEr  literal  "
        "semantic",
        "flexmuse        0.961  -           0.012  0.950      0.976    0.500    3.250  0.750    "
        "0.500",
        "tippo_captions  -      0.800       0.020  -          1.000    0.250    -      -        -",
    ]
    collected = summary.collect_metrics()
    assert collected["tippo_captions.skill"] == 0.8
    assert collected["tippo_captions.ceiling"] == 1


def test_the_summary_of_memes_has_the_means_over_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = {
        "skill": {"value": 0.9, "standard_error": 0.01},
        "score": {"metric": "accuracy", "value": 0.875, "standard_error": 0.02},
        **{name: {"value": 0.75} for name in ("accuracy", "weighted_f1", "macro_f1")},
        "ceilings": {"both": {"expected": 0.9375, "realised": 0.9375}},
        "tasks": {"humour": {"accuracy": {"value": 0.5, "standard_error": 0.1}}},
    }
    place = tmp_path / summary.CLASSIFIER_METRICS_DIR / "mm_orient"
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps(metrics))
    Path("params.yaml").write_text("classifiers: {mm_orient: {}}")
    assert summary.format_table(summary.build_rows()).splitlines() == [
        "run        skill  ± se   ceiling  accuracy  weighted F1",
        "mm_orient  0.900  0.010  0.938    0.750     0.750",
    ]
    assert summary.collect_metrics() == {
        "mm_orient.score": 0.875,
        "mm_orient.se": 0.02,
        "mm_orient.ceiling": 0.9375,
        "mm_orient.skill": 0.9,
    }


@pytest.mark.parametrize("rule", ["lenient", "strict"])
def test_the_summary_of_tweets_has_f1_by_the_rule_of_the_main_score(tmp_path, monkeypatch, rule):
    monkeypatch.chdir(tmp_path)
    f1 = {"lenient": 0.75, "strict": 0.625}
    metrics = {"score": {"metric": "f1", "rule": rule, "value": f1[rule]}}
    metrics |= {name: {"f1": value} for name, value in f1.items()}
    place = tmp_path / summary.CLASSIFIER_METRICS_DIR / "muse_entities"
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps(metrics))
    Path("params.yaml").write_text("classifiers: {muse_entities: {}}")
    assert summary.build_rows() == [{"run": "muse_entities", "F1": f"{f1[rule]:.3f}"}]
    assert summary.collect_metrics() == {"muse_entities.score": f1[rule]}


def test_a_run_that_is_not_in_params_has_no_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("flexmuse", "recipes"):
        write_metrics(tmp_path, run, {"rouge_l": 0.125})
    Path("params.yaml").write_text("generators: {recipes: {}}")
    assert summary.format_table(summary.build_rows()).splitlines() == [
        "run      ROUGE-L",
        "recipes  0.125",
    ]


def test_warnings_of_the_final_phase_follow_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    warnings = {"over_masking": "look at sigma", "single_position": "look at the maps"}
    write_metrics(
        tmp_path, "flexmuse", METRICS | {"warnings": warnings, "sft": {"warnings": {"a": "b"}}}
    )
    write_metrics(tmp_path, "recipes", {"rouge_l": 0.125})
    assert summary.format_table(summary.build_rows()).splitlines()[3:] == [
        "flexmuse: look at sigma",
        "flexmuse: look at the maps",
    ]


def test_durations_are_stored_for_each_expected_value(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path))
    StageDurations({"train_classifier": 100}).record("train_classifier@a", 40.04)
    assert StageDurations({"train_classifier": 100}).estimate("train_classifier@a") == 40.0
    assert StageDurations({"train_classifier": 100}).estimate("train_classifier@b") == 100
    assert StageDurations({"train_classifier": 5}).estimate("train_classifier@a") == 5
    assert StageDurations({}).estimate("train_classifier@a") == 0
    expected = {"train_classifier": 100, "train_classifier@b": 300}
    assert [StageDurations(expected).estimate(f"train_classifier@{row}") for row in "abc"] == [
        40.0,
        300,
        100,
    ]


def test_skipped_and_restored_stages_count_as_done(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path))
    durations = StageDurations({"a": 100, "b": 60, "c": 5})
    progress = RunProgress({"a": 165, "b": 65, "c": 5}, durations, 1)
    assert (
        progress.start_message("a", "Stage 'a' is cached - skipping run, checking out outputs\n")
        == ""
    )
    progress.record_end("a")
    assert progress.start_message("b", "anything else\n") == ""
    assert progress.start_message("b", "Running stage 'b':\n") == "stage 2 of 3: b, about 1:05 left"
    assert progress.start_message("b", "Running stage 'b':\n") == ""  # printed by the stage itself
    progress.record_end("b")
    # b took no time instead of 60 s, which counts 60 of 80 s.
    assert progress.start_message("c", "Running stage 'c':\n") == "stage 3 of 3: c, about 0:01 left"
    assert StageDurations({"a": 100}).estimate("a") == 100
    assert math.isclose(StageDurations({"b": 60}).estimate("b"), 0, abs_tol=1)


@pytest.mark.parametrize(("workers", "left"), [(1, "2:00"), (2, "1:10"), (9, "1:10")])
def test_the_time_left_is_the_critical_path_or_the_work_per_worker(
    tmp_path, monkeypatch, workers, left
):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path))
    durations = StageDurations({"long": 60, "last": 10, "short": 20, "other": 30})
    progress = RunProgress({"long": 70, "other": 30, "short": 20, "last": 10}, durations, workers)
    headline = progress.start_message("long", "Running stage 'long':\n")
    assert headline == f"stage 1 of 4: long, about {left} left"


def test_the_time_left_follows_the_speed_of_the_machine(tmp_path, monkeypatch):
    """Stages take twice as long as planned: 20 s are planned, (20 + 200) / (20 + 100) = 1.83."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path))
    clock = 0.0
    monkeypatch.setattr("pipelines.runner.eta.time.monotonic", lambda: clock)
    progress = RunProgress({"a": 220, "b": 120}, StageDurations({"a": 100, "b": 120}), 1)
    assert progress.start_message("a", "Running stage 'a':\n").endswith("about 3:40 left")
    clock = 200.0
    assert progress.record_end("a") == 200
    left = 120 * (20 + 200) / (20 + 100)
    assert progress.start_message("b", "Running stage 'b':\n").endswith(
        f"{format_clock(left)} left"
    )


def test_the_skill_of_each_run_is_compared_with_what_is_expected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("generators: {flexmuse: {}}")
    band = {"picture": {"verdict": "inside"}, "topic": {"verdict": "above"}}
    write_metrics(tmp_path, "flexmuse", METRICS)
    Path("params.yaml").write_text("generators: {flexmuse: {}}")
    expected = {"flexmuse": 0.9}
    assert summary.compare_skill(expected) == "The skill of flexmuse is at least what is expected."
    assert summary.compare_skill({}) == summary.compare_skill({"flexmuse": 0}) == ""
    write_metrics(tmp_path, "flexmuse", METRICS | {"single_modality": band})
    assert summary.compare_skill({"flexmuse": 0.97}) == (
        "flexmuse is below the expected skill (0.961, expected 0.97); "
        "flexmuse from the topic alone is above its band."
    )


def make_comparison(verdict: str, majority: str = "better", baseline: str = "crf") -> dict:
    """metrics.json with these verdicts, and no ceilings."""
    comparison = {"baseline": baseline, "verdict": verdict, "sentence": f"MuSE is {verdict}."}
    scores = {"majority": {"none": {"verdict": majority}}}
    return {"baselines": {"comparison": comparison, "scores": scores}}


def test_the_summary_names_classifiers_that_do_not_surely_beat_a_baseline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_metrics(tmp_path, "flexmuse", METRICS)
    write_metrics(tmp_path, "good", make_comparison("better"))
    assert summary.compare_baselines() == ""
    write_metrics(tmp_path, "tags", make_comparison("worse", "unclear"))
    write_metrics(tmp_path, "moods", make_comparison("unclear", "unclear", baseline="majority"))
    lines = [
        "moods: MuSE is unclear.",
        "tags: MuSE is worse.",
        "tags: the majority class is not surely beaten.",
    ]
    assert summary.compare_baselines().splitlines() == lines
    assert summary.format_summary({}, "").splitlines()[6:9] == lines


def test_the_summary_names_the_strongest_baseline_and_shuffled_images_if_not_surely_beaten(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    verdicts = {"nearest_image": "worse", "consensus": "unclear", "shuffled_images": "worse"}
    scores = {name: {"verdict": verdict, "sentence": name} for name, verdict in verdicts.items()}
    lead = {"baseline": "consensus", "difference": {"value": 0.25}}
    write_metrics(tmp_path, "tags", {"baselines": {"scores": scores, "comparison": lead}})
    assert summary.compare_baselines().splitlines() == ["tags: consensus", "tags: shuffled_images"]
    assert summary.collect_metrics() == {"tags.lead": 0.25}


def test_the_summary_says_what_each_preference_phase_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_metrics(tmp_path, "flexmuse", METRICS)
    assert summary.list_preference_outcomes() == ""
    outcome = "PolishPPO kept SFT's weights: no reward rose."
    write_metrics(tmp_path, "tippo", METRICS | {"preference_outcome": outcome})
    assert summary.list_preference_outcomes() == f"tippo: {outcome}"
    assert f"tippo: {outcome}" in summary.format_summary({}, "").splitlines()


def test_the_cpu_time_names_the_stages_far_above_their_plan():
    used = {"a": 10.0, "b": 1021.0, "c": 8.0}
    budget = {"a": 9.0, "b": 600.0, "c": 2.0}.get
    assert summary.format_usage(used, budget) == (
        "CPU time: 1,039 s used, 611 s planned; above the plan: b 1021 s (600)"
    )


def test_the_longest_path_starts_first_and_each_stage_after_its_dependencies():
    stages = ["a", "b", "c", "d", "e"]
    edges = {("a", "d"), ("b", "c"), ("c", "e")}
    graph = dag.Dag(stages, edges, stages, dict.fromkeys(stages, ""))
    schedule = StageScheduler(graph, {"a": 5, "b": 1, "c": 1, "d": 1, "e": 9}.get)
    assert schedule.critical_path_seconds == {"a": 6, "b": 11, "c": 10, "d": 1, "e": 9}
    assert schedule.take_ready(1) == ["b"]
    assert schedule.take_ready(0) == []
    assert schedule.take_ready(2) == ["a"]
    assert schedule.take_ready(2) == []
    schedule.mark_done("b")
    assert schedule.take_ready(2) == ["c"]
    schedule.mark_done("a")
    schedule.mark_done("c")
    assert schedule.take_ready(2) == ["e", "d"]
    schedule.mark_done("d")
    assert schedule
    schedule.mark_done("e")
    assert not schedule


def test_stages_that_are_up_to_date_are_not_waited_for():
    graph = dag.Dag(["a", "b"], {("a", "b")}, ["b"], {"a": "", "b": ""})
    assert StageScheduler(graph, lambda _: 1.0).take_ready(2) == ["b"]
