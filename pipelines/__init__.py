"""The `polymuse` command and the Prefect flow: they run the stages and use their outputs."""

import os

from stages.shared.runtime import errors

# Set before Prefect is imported: no telemetry, and enough time for a temporary Prefect server.
for _name, _value in {
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",  # seconds; see flow_runs.py
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # it needs about 20 to start
    "NO_PROXY": "127.0.0.1,localhost",
    "PYTHONUNBUFFERED": "1",  # keeps the lines of DVC and its stages in order
}.items():
    os.environ.setdefault(_name, _value)

errors.install_hooks()
