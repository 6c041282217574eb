"""The OpenAI-compatible server that params may name a model of: its address and key.

They come from the environment alone and are written nowhere, so that neither params, MLflow, logs
nor outputs can give them away.
"""

import os
import re
from dataclasses import dataclass, field

from stages.shared.runtime.stage import InputError

BASE_URL_ENV, API_KEY_ENV = "OPENAI_BASE_URL", "OPENAI_API_KEY"


@dataclass(frozen=True)
class Endpoint:
    base_url: str = field(repr=False)  # e.g. https://api.openai.com/v1; it may hold a password
    api_key: str = field(repr=False)

    def redact(self, text: str) -> str:
        """What a server said as one line without the key and the address, which it may repeat."""
        text = " ".join(text.split())
        for secret in (self.api_key, self.base_url):
            text = text.replace(secret, "***")
        return re.sub(r"(\w+://)[^/\s]*@", r"\1", text)


def load_endpoint(named_by: str, instead: str) -> Endpoint:
    """The server of the environment. Raises WrongInput, which names the param that asks for it and
    the value with which it would not."""
    values = {name: os.environ.get(name, "").strip() for name in (BASE_URL_ENV, API_KEY_ENV)}
    if missing := [name for name, value in values.items() if not value]:
        raise InputError(
            f"params.yaml: {named_by} names a model, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: set {BASE_URL_ENV} to an address such as "
            f"https://api.openai.com/v1 and {API_KEY_ENV} to its key, or {named_by} to {instead}"
        )
    if not re.match(r"https?://[^/\s]", values[BASE_URL_ENV]):
        raise InputError(
            f"{BASE_URL_ENV} is no address: give one such as https://api.openai.com/v1"
        )
    return Endpoint(values[BASE_URL_ENV], values[API_KEY_ENV])
