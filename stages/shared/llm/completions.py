"""Chat completion requests and the answers in their responses."""

import json
from typing import Any

from pydantic import BaseModel

from stages.shared.core.config import Field
from stages.shared.llm.answers import REFUSAL_FINISH, ChatAnswer
from stages.shared.llm.config import ChatConfig
from stages.shared.llm.endpoint import BASE_URL_ENV
from stages.shared.llm.transport import UNKNOWN_FIELD_STATUSES, ChatTransport, RequestFailed
from stages.shared.runtime.stage import InputError


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    total_tokens: int
    completion_tokens: int = 0


class _Completion(BaseModel):
    """The fields used of a response (OpenAI API reference, chat completion object)."""

    choices: list[_Choice] = Field(min_length=1)
    model: str | None = None
    usage: _Usage | None = None


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

        If no response was a completion so far, the address is wrong (InputError); otherwise this
        response was damaged (RequestFailed).
        """
        for _ in range(self.max_retries + 1):
            content = await self.transport.post(body)
            try:
                answer = parse_completion(json.loads(content), body, structured)
            except ValueError:  # not JSON, or not a completion
                continue
            self.has_completion = True
            return answer
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
    """The answer in a response to the request `body`. Raises ValueError if it is no completion."""
    completion = _Completion.model_validate(content)
    (choice, *_), usage = completion.choices, completion.usage
    text = choice.message.content or choice.message.refusal or ""
    text = text.encode(errors="replace").decode()  # a lone surrogate has no UTF-8 encoding
    # Without usage, bytes are an upper bound: a token has at least one byte.
    sent = len(json.dumps(body["messages"], ensure_ascii=False).encode())
    received = len(text.encode())
    return ChatAnswer(
        text=text,
        finish=REFUSAL_FINISH if choice.message.refusal else choice.finish_reason,
        model=completion.model,
        tokens=usage.total_tokens if usage else sent + received,
        structured=structured,
        received=usage.completion_tokens if usage else received,
    )
