"""Chat completion requests and the answers in their responses."""

import asyncio
import json
import math
from typing import Any

from pydantic import BaseModel

from stages.shared.llm.answers import EARLY_FINISH_REASONS, REFUSAL_FINISH, ChatAnswer
from stages.shared.llm.config import ChatConfig
from stages.shared.llm.endpoint import BASE_URL_ENV
from stages.shared.llm.transport import (
    UNKNOWN_FIELD_STATUSES,
    ChatTransport,
    RequestFailed,
    retry_delay,
)
from stages.shared.runtime.stage import InputError


class _Part(BaseModel):
    text: str = ""


class _Message(BaseModel):
    content: str | list[_Part] | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message | None = None
    finish_reason: str | None = None
    error: Any = None  # of OpenRouter


class _Completion(BaseModel):
    """The fields used of a response (OpenAI API reference, chat completion object).

    choices: empty if a filter caught the question. usage: servers leave out any of its counts.
    error: some servers answer 200 with the error of the model behind them.
    """

    choices: list[_Choice] | None = None
    model: str | None = None
    usage: Any = None
    error: Any = None


# Names of errors in the API reference, and the status that they come with.
STATUS_BY_ERROR_NAME = {
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "overloaded_error": 503,
}
RETRIED_STATUSES = (408, 409, 429)  # and 500 or more, as in the openai package


class ServerError(Exception):
    """An error in a response with status 200. status: the one that it stands for."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class CompletionClient:
    """Gets the answers to requests, from a server with or without JSON schemas."""

    def __init__(self, transport: ChatTransport, max_retries: int):
        self.transport, self.max_retries = transport, max_retries
        self.structured = True  # until the server rejects a schema
        self.has_completion = False  # whether any response was a chat completion

    async def complete(self, body: dict[str, Any]) -> ChatAnswer:
        """Send a request; once the server accepts only a legacy request, send only those.

        Raises RequestFailed, InputError.
        """
        if self.structured:
            try:
                return await self._send(body, structured=True)
            except RequestFailed as error:
                if error.status not in UNKNOWN_FIELD_STATUSES:
                    raise
        answer = await self._send(_to_legacy_request(body), structured=False)
        self.structured = False
        return answer

    async def _send(self, body: dict[str, Any], structured: bool) -> ChatAnswer:
        """Send a request, again up to `max_retries` times if the response is not a completion.

        An error in a response with status 200 is treated like one with the status that it names. If
        no response was a completion so far, the address is wrong (InputError); otherwise this
        response was damaged (RequestFailed).
        """
        failure: ServerError | None = None
        for attempt in range(self.max_retries + 1):
            if attempt:
                await asyncio.sleep(retry_delay(attempt))
            content = await self.transport.post(body)
            try:
                answer = parse_completion(json.loads(content), body, structured)
            except ServerError as error:
                failure = error
                if error.status not in RETRIED_STATUSES and error.status < 500:
                    break
                continue
            except ValueError:  # not JSON, or not a completion
                failure = None
                continue
            except RequestFailed:
                self.has_completion = True
                raise
            self.has_completion = True
            return answer
        if failure:
            raise self.transport.classify(failure.status, failure.message)
        if self.has_completion:
            raise RequestFailed("no chat completion")
        raise InputError(
            f"{BASE_URL_ENV}: the server returns no chat completion: give the address of an "
            "OpenAI-compatible API, which often ends in /v1"
        )


def build_request(
    config: ChatConfig, messages: list[dict[str, str]], schema: type[BaseModel]
) -> dict[str, Any]:
    """The full request, by which the answer is stored, even if a legacy request was sent."""
    json_schema = {"name": schema.__name__, "strict": True, "schema": schema.model_json_schema()}
    body = {
        "model": config.model,
        "messages": messages,
        "response_format": {"type": "json_schema", "json_schema": json_schema},
        "max_completion_tokens": config.max_completion_tokens,
    }
    if config.temperature is not None:
        body["temperature"] = config.temperature
    return body


def _to_legacy_request(body: dict[str, Any]) -> dict[str, Any]:
    """The request with only the fields that older and smaller servers know."""
    fields = {key: value for key, value in body.items() if key != "response_format"}
    return fields | {"max_tokens": fields.pop("max_completion_tokens")}


def parse_completion(content: Any, body: dict[str, Any], structured: bool) -> ChatAnswer:
    """The answer in a response to the request `body`.

    Raises ServerError if it is an error, RequestFailed if it has no answer, and ValueError if it is
    no completion.
    """
    completion = _Completion.model_validate(content)
    choice = completion.choices[0] if completion.choices else None
    if error := completion.error or (choice and choice.error):
        raise ServerError(*_parse_error(error))
    if completion.choices is None:
        raise ValueError("no choices")
    if choice is None:
        raise RequestFailed(EARLY_FINISH_REASONS["content_filter"])
    message = choice.message or _Message()
    text = message.content or message.refusal or ""
    if isinstance(text, list):
        text = "".join(part.text for part in text)
    text = text.encode(errors="replace").decode()  # a lone surrogate has no UTF-8 encoding
    received = _read_count(completion.usage, "completion_tokens")
    sent = _read_count(completion.usage, "prompt_tokens")
    total = _read_count(completion.usage, "total_tokens")
    if total is None:
        # Without counts, bytes are an upper bound: a token has at least one byte.
        size = len(json.dumps(body["messages"], ensure_ascii=False).encode())
        received = len(text.encode()) if received is None else received
        total = (size if sent is None else sent) + received
    return ChatAnswer(
        text=text,
        finish=REFUSAL_FINISH if message.refusal else choice.finish_reason,
        model=completion.model,
        tokens=total,
        structured=structured,
        received=received or 0,
    )


def _read_count(usage: Any, name: str) -> int | None:
    """A number of tokens, None if the server gives none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return math.ceil(value) if 0 <= value < math.inf else None


def _parse_error(error: Any) -> tuple[int, str]:
    """The HTTP status and the message of an `error` object; a name without status is a 500."""
    if not isinstance(error, dict):
        return 500, str(error)
    names = [str(error.get(key, "")) for key in ("status", "code", "type")]
    statuses = (
        int(name) if name.isdecimal() and 400 <= int(name) < 600 else STATUS_BY_ERROR_NAME.get(name)
        for name in names
    )
    return next(filter(None, statuses), 500), str(error.get("message") or names[1])
