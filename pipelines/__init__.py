"""What drives the stages and uses what they made: the `polymuse` command, the Prefect flows."""

import os

# Telemetry off and the traps of a temporary Prefect server avoided, before Prefect is imported.
for _name, _value in {
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # its start alone takes about 20
    "NO_PROXY": "127.0.0.1,localhost",
    "PYTHONUNBUFFERED": "1",  # what DVC and its stages say appears in the order it was said
}.items():
    os.environ.setdefault(_name, _value)
