"""Every error of a command is one sentence; the traceback is in a file."""

import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.shared.runtime.errors import describe_error
from tests.support import tiny_dvc_project
from tests.support.project_files import ROOT
from tests.support.tiny_dvc_project import make_copy_stage

POLYMUSE = str(Path(sys.executable).with_name("polymuse"))
BLOCK = (
    "from stages.shared.runtime.errors import InputError, report_errors\nwith report_errors():\n"
)
# A command prefix after which permissions of files count, also for root.

AS_USER = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if os.geteuid() == 0 and shutil.which("setpriv")
    else ["env"]
    if os.geteuid()
    else []
)
LOCALES = {
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "io_encoding": {"PYTHONIOENCODING": "ascii:strict"},
    "no_terminal": {"TERM": "no-such-terminal", "COLUMNS": "0", "LINES": "0"},
}


@pytest.fixture
def project(tmp_path) -> Path:
    """A project of one stage, with presets."""
    folder = tiny_dvc_project.create_project(tmp_path / "project", first=make_copy_stage("a"))
    (folder / "presets").mkdir()
    (folder / "presets" / "quick.yaml").write_text("run: {workers: 7}")
    return folder


def run(command: list, folder: Path, environment: dict, **options) -> subprocess.CompletedProcess:
    """The command with its work folder in `folder`."""
    environment = environment | {"POLYMUSE_HOME": str(folder / ".polymuse")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, **options
    )


def run_code(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return run([sys.executable, "-c", code], folder, environment)


def assert_one_sentence(done: subprocess.CompletedProcess, start: str) -> None:
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {start}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout


def test_a_temporary_error_ends_with_the_exit_code_for_it(tmp_path):
    code = BLOCK.replace("InputError", "TemporaryError")
    done = run_code(f"{code}    raise TemporaryError('no server responds: start it')", tmp_path)
    assert done.stderr == "error: no server responds: start it\n"
    assert done.returncode == os.EX_TEMPFAIL


def test_an_input_error_is_its_message(tmp_path):
    done = run_code(f"{BLOCK}    raise InputError('a is 1: give 2')", tmp_path)
    assert_one_sentence(done, "a is 1: give 2")
    assert list(tmp_path.iterdir()) == []


def test_an_unexpected_error_is_a_sentence_that_names_the_file_with_the_traceback(tmp_path):
    code = f"{BLOCK}    open('http://me:secret@host/?key=secret')"
    done = run_code(code, tmp_path)
    assert_one_sentence(done, "unexpected FileNotFoundError (")
    (file,) = (tmp_path / ".polymuse" / "errors").iterdir()
    fix = f"run `polymuse doctor`, and if it finds nothing, report the file {file}\n"
    assert done.stderr.endswith(f"): {fix}")
    assert re.fullmatch(r"\d{8}-\d{6}-.*\.txt", file.name)
    content = file.read_text()
    assert "Traceback (most recent call last)" in content and sys.version in content
    assert "secret" not in done.stderr and "secret@" not in content


def test_polymuse_debug_also_prints_the_traceback(tmp_path):
    done = run_code(f"{BLOCK}    1 / 0", tmp_path, POLYMUSE_DEBUG="1")
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: unexpected ZeroDivisionError (")


def test_without_a_place_for_the_file_the_sentence_names_the_variable(tmp_path):
    (tmp_path / ".polymuse").write_text("a file")
    done = run_code(f"{BLOCK}    1 / 0", tmp_path)
    assert_one_sentence(done, "unexpected ZeroDivisionError (division by zero): run the command")
    assert "POLYMUSE_DEBUG=1" in done.stderr


@pytest.mark.parametrize(
    "code", ["raise KeyboardInterrupt", "import signal; signal.raise_signal(2)"]
)
def test_ctrl_c_ends_silently(tmp_path, code):
    done = run_code(f"{BLOCK}    {code}", tmp_path)
    assert (done.returncode, done.stderr) == (130, "")


def test_an_interrupt_while_the_modules_of_a_stage_are_imported_is_silent(tmp_path):
    stage = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "stages.align", "--help"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"POLYMUSE_HOME": str(tmp_path)},
    )
    assert stage.stderr
    for line in stage.stderr:
        if line.rstrip().endswith("torch._C"):
            break
    stage.send_signal(signal.SIGINT)
    rest = stage.stderr.read()
    stage.wait()
    assert stage.returncode == 130
    assert "Traceback" not in rest


def test_a_broken_installation_is_one_sentence_of_a_stage(tmp_path):
    (tmp_path / "pyarrow.py").write_text("raise ImportError('libarrow.so is missing')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "POLYMUSE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "stages.clean", "--help"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert_one_sentence(done, "unexpected ImportError (libarrow.so is missing): run `polymuse")
    assert next((tmp_path / "errors").iterdir()).name.endswith("-stages.clean.txt")


def test_an_error_in_a_thread_is_a_warning(tmp_path):
    thread = "import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()"
    done = run_code("import sys; sys.argv[0] = 'polymuse'\n" + BLOCK + f"    {thread}", tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: unexpected ZeroDivisionError (")
    assert done.stderr.count("\n") == 1


def test_a_log_of_a_library_has_no_traceback_unless_asked_for(tmp_path):
    code = (
        "import sys; sys.argv[0] = 'polymuse'\n"
        f"import logging\n{BLOCK}    try: 1 / 0\n"
        "    except ZeroDivisionError: logging.getLogger('mlflow').exception('it failed')"
    )
    assert run_code(code, tmp_path).stderr == "it failed\n"
    assert "Traceback" in run_code(code, tmp_path, POLYMUSE_DEBUG="1").stderr


def test_importing_the_package_changes_no_hook(tmp_path):
    code = "import sys, stages, pipelines\nassert sys.excepthook is sys.__excepthook__"
    assert run_code(code, tmp_path).returncode == 0


def test_faults_of_the_machine_name_the_file_and_the_fix():
    for error, sentence in {
        PermissionError(
            13, "Permission denied", "x"
        ): "x: Permission denied: change its permissions",
        OSError(28, "No space left on device"): "No space left on device: free disk space",
        OSError(30, "Read-only file system", "x"): (
            "x: Read-only file system: make it writable, or work in a copy of the project"
        ),
        MemoryError(): "there is not enough memory: end other programs, or lower run.workers",
    }.items():
        assert describe_error(error) == sentence


def test_the_runner_shows_the_sentence_of_a_stage(tmp_path):
    (tmp_path / "crash.py").write_text(f"{BLOCK}    1 / 0")
    command = f"PYTHONPATH={ROOT} {sys.executable} {tmp_path / 'crash.py'}"
    folder = tiny_dvc_project.create_project(
        tmp_path / "project", crash={"cmd": command, "outs": ["a"]}
    )
    done = run([POLYMUSE, "run"], folder, dict(os.environ))
    assert_one_sentence(done, "crash: unexpected ZeroDivisionError (division by zero): run `poly")
    assert len(list((folder / ".polymuse" / "errors").iterdir())) == 1


def test_output_to_a_full_disk_is_an_error(project):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [POLYMUSE, "preset"], cwd=project, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (
        1,
        "error: No space left on device: free disk space\n",
    )


def test_a_closed_pipe_ends_a_command_silently(project):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([POLYMUSE, "preset"], cwd=project, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_limit_of_file_sizes_is_one_sentence(project):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    done = run([POLYMUSE, "preset", "quick"], project, dict(os.environ), preexec_fn=limit)
    assert_one_sentence(done, "File too large: raise the limit of file sizes")


@pytest.mark.skipif(not AS_USER, reason="root may write anywhere, and there is no setpriv")
def test_a_project_without_write_permission_is_one_sentence(project):
    for folder, *_ in os.walk(project):
        os.chmod(folder, 0o555)
    for verb in (["preset", "quick"], ["run"]):
        done = run([*AS_USER, POLYMUSE, *verb], project, dict(os.environ))
        assert_one_sentence(done, "")
        assert "ermission" in done.stderr


@pytest.mark.parametrize("name", LOCALES)
def test_commands_work_in_any_locale_and_on_any_terminal(project, name):
    for verb in (["preset"], ["preset", "quick"], ["run"]):
        done = run([POLYMUSE, *verb], project, os.environ | LOCALES[name])
        assert (done.returncode, done.stderr) == (0, "")


def test_commands_work_without_a_home_and_an_environment(project):
    environment = {"MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"]}
    for verb in (["preset"], ["run"]):
        done = run([POLYMUSE, *verb], project, environment)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_run_works_on_a_terminal_without_width_and_name(project):
    controller, terminal = pty.openpty()
    environment = os.environ | {"TERM": "no-such-terminal", "COLUMNS": "0"}
    command = subprocess.Popen(
        [POLYMUSE, "run"],
        cwd=project,
        env=environment | {"POLYMUSE_HOME": str(project / ".polymuse")},
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    output = b""
    while chunk := _read_terminal(controller):
        output += chunk
    assert command.wait() == 0, output
    assert b"Traceback" not in output and b"first: done" in output


def _read_terminal(controller: int) -> bytes:
    try:
        return os.read(controller, 65536)
    except OSError:  # Linux: the last process has closed the terminal
        return b""


def test_a_deleted_folder_is_one_sentence(tmp_path):
    (tmp_path / "gone").mkdir()
    code = f"import os; os.rmdir('../gone'); os.execv({POLYMUSE!r}, ['polymuse', 'preset'])"
    done = run_code(code, tmp_path / "gone")
    assert_one_sentence(done, "the current folder no longer exists: go to another one")
