"""One HTTP request to an OpenAI-compatible server, and what its error means."""

import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stages.shared.llm.budget import Budget
from stages.shared.llm.config import NO_MODEL, ChatConfig
from stages.shared.llm.endpoint import API_KEY_ENV, BASE_URL_ENV, Endpoint, load_endpoint
from stages.shared.runtime.errors import InputError, TemporaryError

if TYPE_CHECKING:  # the import takes half a second, which is wasted if no model is named
    from openai import AsyncOpenAI

# A server that does not know a field of the request answers with one of these.
UNKNOWN_FIELD_STATUSES = (400, 422)
# Faults of a single question: also too long (413), too slow (408), or blocked by a filter (400).
_QUESTION_ERROR_STATUSES = (*UNKNOWN_FIELD_STATUSES, 408, 413)
MAX_MESSAGE_CHARACTERS = 200  # length of a server's message in our messages


def retry_delay(attempt: int) -> float:
    """Seconds before a repeated request (1, 2, ...), as in the openai package."""
    return min(8.0, 0.5 * 2 ** (attempt - 1))


class RequestFailed(Exception):
    """One question got no answer; the others continue.

    status: HTTP status, 0 without one. is_temporary: whether the server was overloaded or ill.
    """

    def __init__(self, reason: str, status: int = 0, is_temporary: bool = False):
        super().__init__(reason)
        self.status, self.is_temporary = status, is_temporary


class ChatTransport:
    """Sends chat completion requests.

    budget: error messages name its params and how many questions it has counted as answered.
    """

    def __init__(self, config: ChatConfig, budget: Budget):
        self.config, self.budget = config, budget
        self._client: AsyncOpenAI | None = None

    @cached_property
    def endpoint(self) -> Endpoint:
        """Read at the first request: if all answers are stored, no server is needed."""
        return load_endpoint(self.budget.model_param, NO_MODEL)

    @property
    def client(self) -> "AsyncOpenAI":
        """Before a retry it waits as long as Retry-After says, else 0.5 s, doubled up to 8 s.

        It does not retry if Retry-After is more than 120 s.
        """
        from openai import AsyncOpenAI

        if self._client is None:
            self._client = AsyncOpenAI(
                base_url=self.endpoint.base_url,
                api_key=self.endpoint.api_key,
                max_retries=self.config.max_retries,
                timeout=self.config.timeout,
            )
        return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def post(self, body: dict[str, Any]) -> bytes:
        """The content of the response.

        Raises RequestFailed if the next question may succeed, TemporaryError if no server responds
        or the server is busy, else InputError.
        """
        import openai

        try:
            create = self.client.chat.completions.with_raw_response.create
            return (await create(**body)).http_response.content
        except openai.APITimeoutError:
            reason = f"no answer in {self.config.timeout:g} s"
            raise RequestFailed(reason, is_temporary=True) from None
        except openai.APIConnectionError:
            raise TemporaryError(
                f"{BASE_URL_ENV}: no server responds: start that server, or give another address"
            ) from None
        except openai.APIStatusError as error:
            raise self.classify(error.status_code, error.message) from None

    def classify(self, status: int, message: str) -> RequestFailed | InputError:
        """What an error of the server means for the other questions."""
        budget, reason = self.budget, f"HTTP {status}"
        if status in (401, 403):  # servers repeat parts of a key, so their message is not shown
            return InputError(f"{API_KEY_ENV}: the server rejects it ({reason}): give a valid one")
        message = message.removeprefix(f"Error code: {status} - ")
        message = self.endpoint.redact(message)[:MAX_MESSAGE_CHARACTERS]
        if status in _QUESTION_ERROR_STATUSES or status >= 500:
            print(f"{budget.section}: {reason}: {message}", file=sys.stderr)
            return RequestFailed(reason, status, is_temporary=status == 408 or status >= 500)
        fix = {
            404: f"give another {budget.model_param}, or another {BASE_URL_ENV}",
            429: f"wait, or lower {budget.section}.concurrency, and run again; "
            f"{budget.num_answered} of {budget.num_questions} questions are answered and stored",
        }.get(status, f"check the requirements of the server, or give another {BASE_URL_ENV}")
        kind = TemporaryError if status == 429 else InputError
        return kind(
            f"params.yaml: {budget.model_param}: the server refused {self.config.model} "
            f"({reason}: {message}): {fix}"
        )
