"""What all stages share: command-line options, one-sentence errors and atomic outputs.

def main(records: Path, output: Path) -> None: ...

if __name__ == "__main__":
    run_stage(main)  # python -m stages.NAME --records RECORDS --output OUTPUT
"""

import argparse
import ctypes
import inspect
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from filelock import FileLock, Timeout

from stages.shared.runtime.errors import InputError, report_errors, work_dir
from stages.shared.runtime.progress import log_hub_downloads
from stages.shared.runtime.project_lock import wait_for_holder

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def kill_when_parent_dies() -> None:
    """Ask Linux to kill this process when its parent ends, even if the parent is killed.

    DVC does not forward signals to the command of a stage. Without this, a killed DVC leaves the
    stage running, and the next `dvc repro` starts a second one. No effect on other systems.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def allow_downloads() -> bool:
    """Allow access to model hubs unless the user has set HF_HUB_OFFLINE; returns whether it is.

    Called when params.yaml names a model that may need a download.
    """
    if os.environ.get("POLYMUSE_MAY_LIFT_OFFLINE") == "1":
        os.environ["HF_HUB_OFFLINE"] = "0"
        if "huggingface_hub.constants" in sys.modules:  # it reads the variable once, at import
            vars(sys.modules["huggingface_hub.constants"])["HF_HUB_OFFLINE"] = False
    log_hub_downloads()
    return os.environ.get("HF_HUB_OFFLINE") != "1"


def model_load_error(description: str, alternatives: str, error: Exception) -> InputError:
    """The error for a named model that cannot be loaded.

    description: how params.yaml names it. alternatives: what else can be given.
    """
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(
        f"{description} could not be loaded ({explain_hub_error(error) or reason}): check the "
        f"name, the network and HF_HUB_OFFLINE, or give {alternatives}"
    )


def public_model_name(name: str) -> str:
    """A model's Hugging Face name, or the last part of its folder's path: paths are private."""
    return Path(name).name if Path(name).is_dir() else name


def explain_hub_error(error: BaseException | None) -> str:
    """Why the Hugging Face Hub refused a model, "" if it did not.

    Libraries wrap its errors in messages of several sentences.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    while error is not None:
        if isinstance(error, GatedRepoError):
            return "its license must be accepted: do that on its page, and set HF_TOKEN"
        if isinstance(error, RepositoryNotFoundError):
            return "the hub has no such model, or only with an HF_TOKEN that may read it"
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def stage_process() -> Iterator[None]:
    """Run the block as the process of a stage.

    The process is killed when its parent ends, and an error is one sentence, see errors.py.
    """
    kill_when_parent_dies()
    with report_errors():
        yield


def run_stage(main: Callable[..., None]) -> None:
    """Run the `main` of a stage with the options of the command line.

    Each parameter is a required option: `features: Path` is `--features FEATURES`.
    """
    module = sys.modules[main.__module__]
    parser = argparse.ArgumentParser(_program_name(module), description=module.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name, parameter in inspect.signature(main).parameters.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, required=True, type=parameter.annotation)
    options = vars(parser.parse_args())
    with stage_process():
        wait_for_holder(lambda line: print(line, file=sys.stderr, flush=True))
        main(**options)


def _program_name(module: ModuleType) -> str | None:
    """`python -m stages.NAME`; None, argparse's default, for code that is not in a file."""
    if module.__spec__ is None:
        return None
    return f"python -m {module.__spec__.name.removesuffix('.__main__')}"


@contextmanager
def atomic_output_dir(target: Path) -> Iterator[Path]:
    """A folder that replaces `target` when the block succeeds and is deleted when it fails.

    Raises InputError if another process is writing to `target`.
    """
    target = target.absolute()
    lock = work_dir() / "locks" / sha256(str(target).encode()).hexdigest()[:16]
    lock.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with FileLock(lock, timeout=0):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                yield partial
                _fsync_tree(partial)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Timeout:
        raise InputError(
            f"{target} is being written by another process: wait for it or stop it"
        ) from None


def _fsync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
