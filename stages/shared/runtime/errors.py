"""How a command ends with an error: one sentence on standard error, the traceback in a file.

    with report_errors():
        ...

writes  POLYMUSE_HOME/errors/DATE-COMMAND.txt, the traceback of an unexpected error

POLYMUSE_DEBUG=1 also prints the traceback. Only the standard library is imported, so that a broken
installation is reported too.
"""

import errno
import logging
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

DEBUG_ENV = "POLYMUSE_DEBUG"
COMMAND_FILES = ("polymuse", "-m")  # sys.argv[0] while the packages of a command are imported
MAX_REASON_LENGTH = 200  # characters of an error's message in the sentence
# Faults of the machine, which need no traceback -> what to do.
FIXES = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`)",
    errno.EROFS: "make it writable, or work in a copy of the project",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
}


class InputError(Exception):
    """Wrong input. The message is one sentence: the file or field, the problem, the fix."""


class TemporaryError(InputError):
    """A server does not respond or is busy. The same command may succeed later."""


def damaged_file(path: Path, error: Exception, fix: str) -> InputError:
    """The error for a file of ours that was cut or overwritten."""
    reason = " ".join(str(error).split())[:MAX_REASON_LENGTH] or type(error).__name__
    return InputError(f"{path} is damaged ({reason}): {fix}")


def work_dir() -> Path:
    """The folder of checkpoints, caches and locks: POLYMUSE_HOME, or .polymuse in the project."""
    return Path(os.environ.get("POLYMUSE_HOME") or ".polymuse").absolute()


@contextmanager
def report_errors() -> Iterator[None]:
    """Run the block as a command; an error ends the process with one sentence.

    Exit codes: 1 for an error, 75 (EX_TEMPFAIL) for a TemporaryError, 130 for Ctrl-C, 141 if the
    reader of the output has closed it.
    """
    install_hooks()
    for stream in (sys.stdout, sys.stderr):
        if stream and hasattr(stream, "reconfigure"):  # not the files that tests put there
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore
    try:
        yield
        if sys.stdout:
            sys.stdout.flush()  # a full disk is an error of the command
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(_report(error))


def install_hooks() -> None:
    """Report the errors that no block sees: while modules are imported, in threads, in finalizers.

    No effect unless this process is a command, so that importing the package changes nothing.
    """
    if Path(sys.argv[0]).name not in COMMAND_FILES and not _main_is_ours():
        return
    logging.raiseExceptions = False  # it prints a traceback if a log cannot be written
    if logging.getLogRecordFactory() is logging.LogRecord and os.environ.get(DEBUG_ENV) != "1":
        logging.setLogRecordFactory(_make_log_record)
    sys.excepthook = _exit_at_once
    threading.excepthook = lambda args: _print_warning(args.exc_value)
    sys.unraisablehook = lambda args: _print_warning(args.exc_value)


def describe_error(error: BaseException) -> str:
    """One sentence for any error; the traceback of an unexpected one is saved in a file."""
    if os.environ.get(DEBUG_ENV) == "1":
        _print("".join(traceback.format_exception(error)))
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory: end other programs, or lower run.workers"
    if isinstance(error, OSError) and error.errno in FIXES:
        name = f"{error.filename}: " if error.filename is not None else ""
        return f"{name}{error.strerror}: {FIXES[error.errno]}"
    if isinstance(error, FileNotFoundError) and error.filename is None:  # of os.getcwd
        return "the current folder no longer exists: go to another one"
    reason = redact_secrets(" ".join(str(error).split()))[:MAX_REASON_LENGTH]
    what = f"unexpected {type(error).__name__}" + (f" ({reason})" if reason else "")
    try:
        file = _save_traceback(error)
        return f"{what}: run `polymuse doctor`, and if it finds nothing, report the file {file}"
    except OSError:
        return f"{what}: run the command with {DEBUG_ENV}=1 to see the traceback"


def redact_secrets(text: str) -> str:
    """`text` with addresses stripped of user, password and query."""
    return re.sub(r"(\w+://)[^/\s]*@", r"\1", re.sub(r"(\w+://[^\s?]*)\?\S*", r"\1", text))


def _save_traceback(error: BaseException) -> Path:
    command = re.sub(r"[^\w.]+", "-", _command_name()).strip("-")
    file = work_dir() / "errors" / f"{datetime.now():%Y%m%d-%H%M%S}-{command}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = redact_secrets("".join(traceback.format_exception(error)))
    with file.open("a", encoding="utf-8", errors="backslashreplace") as content:
        content.write(f"{sys.version}\n{text}\n")
    return file


def _main_is_ours() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.partition(".")[0] in ("stages", "pipelines")


def _command_name() -> str:
    """The module that runs, or the command with its verb."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return spec.name.removesuffix(".__main__")
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])[:60]


def _report(error: BaseException) -> int:
    """Print the sentence of an error; the exit code of the process."""
    output_works = _flush_output()
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError) and not output_works:  # e.g. `polymuse params | head`
        return 128 + signal.SIGPIPE
    _print(f"error: {describe_error(error)}\n")
    return os.EX_TEMPFAIL if isinstance(error, TemporaryError) else 1


def _make_log_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """A record without traceback: libraries log the errors that they also raise."""
    record = logging.LogRecord(*args, **kwargs)
    record.exc_info = record.stack_info = None
    return record


def _exit_at_once(
    _: type[BaseException], error: BaseException, __: TracebackType | None = None
) -> None:
    code = _report(error)
    _flush_output()
    os._exit(code)  # an exception of this hook would be printed with its traceback


def _print_warning(error: BaseException | None) -> None:
    if error is not None and not isinstance(error, SystemExit):
        _print(f"warning: {describe_error(error)}\n")


def _flush_output() -> bool:
    """Whether standard output takes what was printed; if not, the rest of it is discarded."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):  # in memory, or closed
        return True
    poll = select.poll()
    poll.register(descriptor, 0)  # reports only errors: the reader has closed its end
    works = not poll.poll(0)
    try:
        sys.stdout.flush()
    except OSError:
        works = False
    if not works:  # what is in the buffer would raise at the end of the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return works


def _print(text: str) -> None:
    """Print to standard error, if it can be written."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()
