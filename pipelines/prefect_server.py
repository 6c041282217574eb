"""The Prefect server at PREFECT_API_URL."""

import os
from urllib.error import HTTPError
from urllib.request import urlopen

from stages.shared.runtime.errors import redact_secrets
from stages.shared.runtime.stage import InputError

API_URL_ENV = "PREFECT_API_URL"
TIMEOUT_SECONDS = 10.0


def check_server(fix: str, timeout: float = TIMEOUT_SECONDS) -> None:
    """Raises InputError, which ends with `fix`, if PREFECT_API_URL is set and does not respond.

    timeout: seconds
    """
    address = os.environ.get(API_URL_ENV)
    if not address:
        return
    try:
        urlopen(f"{address.rstrip('/')}/health", timeout=timeout).close()
    except HTTPError:  # it responds; Prefect reports a wrong key
        pass
    except (OSError, ValueError):
        raise InputError(
            f"{API_URL_ENV}: no server responds at {redact_secrets(address)}: start it with "
            f"`prefect server start`, or {fix}"
        ) from None
