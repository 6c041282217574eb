"""The OpenAI-compatible server that params may name a model of: its address and key.

They come from the environment alone and are written nowhere, so that neither params, MLflow, logs
nor outputs can give them away.
"""

import os
import re
from dataclasses import dataclass, field

from stages.shared.runtime.stage import WrongInput

ADDRESS, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"


@dataclass(frozen=True)
class Endpoint:
    address: str = field(repr=False)  # e.g. https://api.openai.com/v1; it may hold a password
    key: str = field(repr=False)

    def clean(self, text: str) -> str:
        """What a server said as one line without the key and the address, which it may repeat."""
        text = " ".join(text.split())
        for secret in (self.key, self.address):
            text = text.replace(secret, "***")
        return re.sub(r"(\w+://)[^/\s]*@", r"\1", text)


def endpoint(named_by: str, instead: str) -> Endpoint:
    """The server of the environment. Raises WrongInput, which names the param that asks for it and
    the value with which it would not."""
    values = {name: os.environ.get(name, "").strip() for name in (ADDRESS, KEY)}
    if missing := [name for name, value in values.items() if not value]:
        raise WrongInput(
            f"params.yaml: {named_by} names a model, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: set {ADDRESS} to an address such as "
            f"https://api.openai.com/v1 and {KEY} to its key, or {named_by} to {instead}"
        )
    if not re.match(r"https?://[^/\s]", values[ADDRESS]):
        raise WrongInput(f"{ADDRESS} is no address: give one such as https://api.openai.com/v1")
    return Endpoint(values[ADDRESS], values[KEY])
