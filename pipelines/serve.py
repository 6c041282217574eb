"""Keep the flow of build.py on a schedule; one run at a time.

python -m pipelines.serve --cron "0 3 * * *" --timezone Europe/Berlin

Needs a Prefect server, because a schedule outlives a temporary one: `prefect server start`, and
PREFECT_API_URL in the environment.
"""

import argparse
import os

from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import EntrypointType
from pydantic import ValidationError

from pipelines.cli import run_in_project
from pipelines.flow import build
from stages.shared.runtime.stage import InputError


def parse_schedule(cron: str, timezone: str) -> CronSchedule:
    """When to run. Raises WrongInput that names the part which Prefect does not understand."""
    try:
        CronSchedule(cron=cron, timezone="UTC")
    except ValidationError:
        raise InputError(
            f"--cron {cron!r} is no cron line: give five fields, e.g. '0 3 * * *'"
        ) from None
    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValidationError:
        raise InputError(
            f"--timezone {timezone!r} is unknown: give an IANA name, e.g. Europe/Berlin"
        ) from None


def main() -> None:
    """Serve until Ctrl-C. Raises WrongInput."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.serve")
    parser.add_argument("--cron", required=True, help="five fields, e.g. '0 3 * * *'")
    parser.add_argument("--timezone", required=True, help="IANA name, e.g. Europe/Berlin")
    given = parser.parse_args()
    when = parse_schedule(given.cron, given.timezone)
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError("PREFECT_API_URL is not set: `prefect server start` says its address")
    build.serve("polymuse", schedule=when, limit=1, entrypoint_type=EntrypointType.MODULE_PATH)


if __name__ == "__main__":
    run_in_project(main)
