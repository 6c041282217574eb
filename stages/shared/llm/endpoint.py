"""Address and key of the OpenAI-compatible server whose models params.yaml may name.

They are read from the environment only and never stored, so that params, MLflow, logs and outputs
cannot leak them.
"""

import os
import re
from dataclasses import dataclass, field

from stages.shared.runtime.stage import InputError

BASE_URL_ENV, API_KEY_ENV = "OPENAI_BASE_URL", "OPENAI_API_KEY"


@dataclass(frozen=True)
class Endpoint:
    base_url: str = field(repr=False)  # e.g. https://api.openai.com/v1; may contain a password
    api_key: str = field(repr=False)

    def redact(self, text: str) -> str:
        """A server's message as one line, without key and address, which it may repeat."""
        text = " ".join(text.split())
        for secret in (self.api_key, self.base_url):
            text = text.replace(secret, "***")
        return re.sub(r"(\w+://)[^/\s]*@", r"\1", text)


def load_endpoint(param: str, fallback: str) -> Endpoint:
    """Read the endpoint from the environment.

    param: dotted path of the param that names a model. fallback: value of that param that needs no
    server. Raises InputError, which names both, if the environment has no valid endpoint.
    """
    values = {name: os.environ.get(name, "").strip() for name in (BASE_URL_ENV, API_KEY_ENV)}
    if missing := [name for name, value in values.items() if not value]:
        raise InputError(
            f"params.yaml: {param} names a model, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: set {BASE_URL_ENV} to an address "
            f"such as https://api.openai.com/v1 and {API_KEY_ENV} to its key, "
            f"or {param} to {fallback}"
        )
    if not re.match(r"https?://[^/\s]", values[BASE_URL_ENV]):
        raise InputError(
            f"{BASE_URL_ENV} is not an address: give one such as https://api.openai.com/v1"
        )
    return Endpoint(values[BASE_URL_ENV], values[API_KEY_ENV])
