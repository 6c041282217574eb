"""What every stage does around its work: options, errors in one sentence, all output or none.

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

from filelock import FileLock, Timeout

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class InputError(Exception):
    """The user's mistake, in one sentence: the file or field, what is wrong, the fix."""


def kill_when_parent_dies() -> None:
    """Ask Linux to kill this process when its parent ends, however the parent ends.

    DVC forwards no signal to a stage's command and a killed DVC would leave it running, so that
    the next `dvc repro` would start a second writer beside it. Elsewhere than on Linux: no effect.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def work_dir() -> Path:
    """The work folder (checkpoints, stores, locks): POLYMUSE_HOME, or .polymuse in the project."""
    return Path(os.environ.get("POLYMUSE_HOME", ".polymuse")).absolute()


def allow_downloads() -> bool:
    """Let hubs be reached, as params name a model, unless the user forbids it; whether they may."""
    if os.environ.get("POLYMUSE_MAY_LIFT_OFFLINE") == "1":
        os.environ["HF_HUB_OFFLINE"] = "0"
        if "huggingface_hub.constants" in sys.modules:  # it reads the variable once, at import
            sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE = False
    return os.environ.get("HF_HUB_OFFLINE") != "1"


def model_load_error(asked: str, remedy: str, error: Exception) -> InputError:
    """What is said where a named model cannot be had: how params ask for it, what to give."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(
        f"{asked} could not be loaded ({reason}): check the name, the network and HF_HUB_OFFLINE, "
        f"or give {remedy}"
    )


@contextmanager
def stage_process() -> Iterator[None]:
    """The process of a stage: it dies with its parent, and an InputError ends it with one sentence
    and exit code 1."""
    kill_when_parent_dies()
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def run_stage(main: Callable[..., None]) -> None:
    """Run a stage's `main`, whose parameters are the options of its command.

    A parameter `features: Path` is the required option `--features FEATURES`.
    """
    parser = argparse.ArgumentParser(description=inspect.getmodule(main).__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name, parameter in inspect.signature(main).parameters.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, required=True, type=parameter.annotation)
    options = vars(parser.parse_args())
    with stage_process():
        main(**options)


@contextmanager
def atomic_output_dir(target: Path) -> Iterator[Path]:
    """A folder to write into; it becomes `target` when the block ends well, and vanishes if not.

    Raises WrongInput if another process is writing the same target.
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
