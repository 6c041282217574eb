"""Run the flow of pipelines/flow.py on a schedule, one run at a time.

python -m pipelines.serve --cron "0 3 * * *" --timezone Europe/Berlin

It also takes the options of `python -m pipelines.flow`. It needs a permanent Prefect server: run
`prefect server start` and set PREFECT_API_URL.
"""

import argparse
import os

from prefect.client.schemas.schedules import CronSchedule
from prefect.types.entrypoint import EntrypointType
from prefect.utilities import services
from pydantic import ValidationError

from pipelines import flow_runs
from pipelines.cli import run_in_project
from pipelines.flow import add_options, build, read_options
from pipelines.prefect_server import check_server
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import InputError


def parse_schedule(cron: str, timezone: str) -> CronSchedule:
    """The schedule of a cron line. Raises InputError that names the invalid argument."""
    try:
        if len(cron.split()) != 5 and not cron.startswith("@"):  # a sixth field would be seconds
            raise ValueError
        CronSchedule(cron=cron, timezone="UTC")
    except ValueError:  # includes ValidationError
        raise InputError(
            f"--cron {cron!r} is not a cron line: give five fields, e.g. '0 3 * * *'"
        ) from None
    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValidationError:
        raise InputError(
            f"--timezone {timezone!r} is unknown: give an IANA name, e.g. Europe/Berlin"
        ) from None


def format_briefly(_: type[Exception] | None, error: Exception, __: object) -> list[str]:
    """An error as one line, in place of its traceback."""
    return [f"{type(error).__name__}: {error}"]


def main() -> None:
    """Serve until Ctrl-C. Raises InputError if the schedule or the server is not usable."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.serve")
    parser.add_argument("--cron", required=True, help="five fields, e.g. '0 3 * * *'")
    parser.add_argument("--timezone", required=True, help="IANA name, e.g. Europe/Berlin")
    add_options(parser)
    arguments = parser.parse_args()
    parameters = read_options(arguments)
    schedule = parse_schedule(arguments.cron, arguments.timezone)
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError(
            "PREFECT_API_URL is not set: set it to the address that `prefect server start` prints"
        )
    fix = "give the address of another one"
    check_server(fix)
    flow_runs.end_killed_flow_runs()
    tracking.end_killed_runs()
    flow_runs.create_crash_detection(build.name)
    os.environ[flow_runs.SERVE_ENV] = str(os.getpid())
    # Prefect prints with it why its server does not respond, three tracebacks each time.
    services.format_exception = format_briefly  # pyright: ignore[reportPrivateImportUsage]
    try:
        build.serve(
            "polymuse",
            schedules=[schedule],
            parameters=parameters,
            limit=1,
            global_limit=1,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
    except Exception:
        check_server(fix)  # it may have ended meanwhile
        raise


if __name__ == "__main__":
    run_in_project(main)
