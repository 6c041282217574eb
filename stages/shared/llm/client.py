"""Questions to a language model behind an OpenAI-compatible server, answered as validated JSON.

Answers are stored under POLYMUSE_HOME by the sha256 of their request (model, messages, schema,
temperature and length, but not the server's address), so that no request is paid for twice, even
after a kill. If an answer does not match the schema of its question, the question is asked again
together with the fault, up to `max_attempts` times.

    replies = ask_questions("judge", config, [Question(instruction, data, schema), ...])

stages/augment/batch_client.py asks the same questions through the Batch API.
"""

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from html import escape
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from stages.shared.core.config import Field, config_class, params_file_of
from stages.shared.data.cache import Store
from stages.shared.llm.endpoint import API_KEY_ENV, BASE_URL_ENV, Endpoint, load_endpoint
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError, work_dir

if TYPE_CHECKING:  # the import takes half a second, which is wasted if no model is named
    from openai import APIStatusError, AsyncOpenAI

NO_MODEL = "none"  # the `model` that disables the language model
# A server that does not know a field of the request answers with one of these.
_UNKNOWN_FIELD_STATUSES = (400, 422)
# Faults of a single question: also too long (413), too slow (408), or blocked by a filter (400).
_QUESTION_ERROR_STATUSES = (*_UNKNOWN_FIELD_STATUSES, 408, 413)
_REFUSAL_FINISH = "refusal"  # our `finish` of a refusal; servers have no such value
_EARLY_FINISH_REASONS = {
    "length": "cut off at max_completion_tokens",
    "content_filter": "caught by a filter",
    _REFUSAL_FINISH: "refused by the model",
}
MAX_MESSAGE_CHARACTERS = 200  # length of a server's message in our messages


@config_class
class ChatConfig:
    """How a language model is asked; part of the section that asks it."""

    model: str = Field(description="model name on the server, or none: no questions")
    temperature: float | None = Field(description="sampling temperature; null: the server's own")
    max_completion_tokens: int = Field(ge=1, description="tokens per answer, including reasoning")
    concurrency: int = Field(ge=1, description="questions in flight")
    max_retries: int = Field(ge=0, description="per request that meets a busy server")
    timeout: float = Field(gt=0, description="per answer, seconds")
    max_attempts: int = Field(ge=1, description="answers per question until one fits the schema")
    max_total_tokens: int = Field(ge=0, description="sent and received, with stored answers")
    max_failed_fraction: float = Field(ge=0, description="failed questions that stop the stage")


@dataclass(frozen=True)
class Question:
    """One question. `instruction` is ours; `data` is untrusted text, marked by `quote_data`."""

    instruction: str
    data: str
    schema: type[BaseModel]


@dataclass(frozen=True)
class Reply:
    """The outcome of one question.

    value: the answer, or None if no answer matched the schema. failure: the reason for None, else
    "". total_tokens: of all attempts; completion_tokens: those of them that the model generated.
    models: as the server names them. structured: whether every request was sent with the schema,
    not in words only.
    """

    value: BaseModel | None
    failure: str
    total_tokens: int
    completion_tokens: int
    models: list[str]
    structured: bool


class ChatAnswer(BaseModel):
    """One answer as it is stored."""

    text: str
    finish: str | None  # why the model stopped: stop, length, content_filter, ...
    model: str | None
    tokens: int
    structured: bool
    received: int = 0  # part of tokens; 0 in answers that were stored before it was counted


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


class RequestFailed(Exception):
    """One question got no answer; the others continue. status: HTTP status, 0 without one."""

    def __init__(self, reason: str, status: int = 0):
        super().__init__(reason)
        self.status = status


def quote_data(**texts: str) -> str:
    """Untrusted texts between tags of their names; no text can close its tag or open another.

    <, > and & are escaped as in XML, which models read correctly.
    """
    return "\n".join(
        f"<{name}>\n{escape(text, quote=False)}\n</{name}>" for name, text in texts.items()
    )


def ask_questions(
    section: str,
    config: ChatConfig,
    questions: list[Question],
    model_param: str | None = None,
) -> list[Reply]:
    """Ask all questions, identical ones once; replies in the order of the questions.

    section: of params.yaml, which contains `config`. model_param: dotted path of the param that
    names the model, `SECTION.model` by default; its value `none` disables the model.

    Raises InputError if no server is configured or reachable, if the server rejects the key or the
    model, if `max_total_tokens` is reached, or if more than `max_failed_fraction` of the questions
    have failed. Running requests are finished and stored first.
    """
    unique = list(dict.fromkeys(questions))
    session = ChatSession(section, config, len(unique), model_param)
    replies = asyncio.run(session.answer_all(unique))
    by_question = dict(zip(unique, replies, strict=True))
    return [by_question[question] for question in questions]


class ChatSession:
    """The state of one call of `ask_questions`."""

    def __init__(self, section: str, config: ChatConfig, count: int, model_param: str | None):
        self.section, self.config, self.num_questions = section, config, count
        self.model_param = model_param or f"{section}.model"
        self.store = Store(work_dir() / "store", "answers")
        self.structured = True  # until the server rejects a schema
        self.has_completion = False  # whether any response was a chat completion
        self.total_tokens, self.num_replies = 0, 0
        self.failures: Counter[str] = Counter()
        self.fatal_error: BaseException | None = None  # ends the session

    @cached_property
    def endpoint(self) -> Endpoint:
        """Read at the first request: if all answers are stored, no server is needed."""
        return load_endpoint(self.model_param, NO_MODEL)

    @cached_property
    def client(self) -> "AsyncOpenAI":
        """Before a retry it waits as long as Retry-After says, else 0.5 s, doubled up to 8 s.

        It does not retry if Retry-After is more than 120 s.
        """
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.api_key,
            max_retries=self.config.max_retries,
            timeout=self.config.timeout,
        )

    async def answer_all(self, questions: list[Question]) -> list[Reply]:
        slots = asyncio.Semaphore(self.config.concurrency)
        tasks = [
            asyncio.create_task(self._reply_in_slot(slots, question)) for question in questions
        ]
        for task in progress_bar(asyncio.as_completed(tasks), self.section, len(tasks)):
            await task
        if "client" in self.__dict__:
            await self.client.close()
        if self.fatal_error:
            raise self.fatal_error
        return [task.result() for task in tasks]

    async def _reply_in_slot(self, slots: asyncio.Semaphore, question: Question) -> Reply | None:
        """The reply, or None if a fatal error of this or another question ended the session."""
        async with slots:
            if self.fatal_error:
                return None
            try:
                return await self._reply(question)
            except Exception as error:
                self.fatal_error = self.fatal_error or error
                return None

    async def _reply(self, question: Question) -> Reply:
        """Ask until an answer matches the schema, up to `max_attempts` times."""
        messages = [
            {"role": "system", "content": question.instruction},
            {"role": "user", "content": question.data},
        ]
        answers: list[ChatAnswer] = []
        value, failure = None, ""
        for _ in range(self.config.max_attempts):
            try:
                answers.append(await self._answer(messages, question.schema))
            except RequestFailed as error:
                failure = str(error)
                break
            value, failure = parse_answer(answers[-1], question.schema)
            if value is not None:
                break
            messages += [
                {"role": "assistant", "content": answers[-1].text or "(empty)"},
                {
                    "role": "user",
                    "content": f"That was no valid answer ({failure}). Answer again, "
                    "with the JSON object alone.",
                },
            ]
        self._count_reply(failure)
        return Reply(
            value,
            failure,
            sum(answer.tokens for answer in answers),
            sum(answer.received for answer in answers),
            sorted({answer.model for answer in answers if answer.model}),
            all(answer.structured for answer in answers),
        )

    def _count_reply(self, failure: str) -> None:
        """Count a reply. Raises InputError if too many questions have failed."""
        self.num_replies += 1
        if not failure:
            return
        self.failures[failure] += 1
        failed = self.failures.total()
        if failed > self.config.max_failed_fraction * self.num_questions:
            (reason, count), *_ = self.failures.most_common(1)
            raise InputError(
                f"params.yaml: {self.model_param}: {failed} of {self.num_questions} questions to "
                f"{self.config.model} failed, {count} of them with: {reason}; give another model, "
                f"or raise {self.section}.max_failed_fraction"
            )

    async def _answer(self, messages: list[dict], schema: type[BaseModel]) -> ChatAnswer:
        """The answer to these messages, stored or requested. Raises RequestFailed, InputError."""
        body = self._build_request(messages, schema)
        key = request_key(body)
        if self.store.missing_keys([key]):
            if self.total_tokens >= self.config.max_total_tokens:
                raise InputError(self.budget_exceeded_message())
            answer = await self._request(body)
            self.store.write([(key, answer.model_dump_json().encode())])
        (row,) = self.store.read([key])
        answer = ChatAnswer.model_validate_json(row)
        self.total_tokens += answer.tokens
        return answer

    def budget_exceeded_message(self) -> str:
        return (
            f"{params_file_of(self.section)}: {self.section}.max_total_tokens is "
            f"{self.config.max_total_tokens}, and "
            f"{self.total_tokens} tokens answered {self.num_answered} of {self.num_questions} "
            "questions: raise it and run again; stored answers cost nothing"
        )

    def _build_request(self, messages: list[dict], schema: type[BaseModel]) -> dict[str, Any]:
        """The full request; a server that rejects it may accept `_to_legacy_request` of it."""
        json_schema = {
            "name": schema.__name__,
            "strict": True,
            "schema": schema.model_json_schema(),
        }
        body = {
            "model": self.config.model,
            "messages": messages,
            "response_format": {"type": "json_schema", "json_schema": json_schema},
            "max_completion_tokens": self.config.max_completion_tokens,
        }
        if self.config.temperature is not None:
            body["temperature"] = self.config.temperature
        return body

    async def _request(self, body: dict[str, Any]) -> ChatAnswer:
        """Send a request; once the server accepts only a legacy request, send only those."""
        if self.structured:
            try:
                return await self._send(body, structured=True)
            except RequestFailed as error:
                if error.status not in _UNKNOWN_FIELD_STATUSES:
                    raise
        answer = await self._send(_to_legacy_request(body), structured=False)
        self.structured = False
        return answer

    async def _send(self, body: dict[str, Any], structured: bool) -> ChatAnswer:
        """Send a request, again up to `max_retries` times if the response is not a completion.

        If no response of the session was a completion, the address is wrong (InputError); otherwise
        this response was damaged (RequestFailed).
        """
        for _ in range(self.config.max_retries + 1):
            content = await self._fetch_content(body)
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

    async def _fetch_content(self, body: dict[str, Any]) -> bytes:
        import openai

        try:
            create = self.client.chat.completions.with_raw_response.create
            return (await create(**body)).http_response.content
        except openai.APITimeoutError:
            raise RequestFailed(f"no answer in {self.config.timeout:g} s") from None
        except openai.APIConnectionError:
            raise InputError(
                f"{BASE_URL_ENV}: no server responds: start that server, or give another address"
            ) from None
        except openai.APIStatusError as error:
            raise self._status_error(error) from None

    def _status_error(self, error: "APIStatusError") -> Exception:
        """RequestFailed if the next question may succeed, else InputError."""
        status, section = error.status_code, self.section
        reason = f"HTTP {status}"
        if status in (401, 403):  # servers repeat parts of a key, so their message is not shown
            return InputError(f"{API_KEY_ENV}: the server rejects it ({reason}): give a valid one")
        message = error.message.removeprefix(f"Error code: {status} - ")
        message = self.endpoint.redact(message)[:MAX_MESSAGE_CHARACTERS]
        if status in _QUESTION_ERROR_STATUSES or status >= 500:
            print(f"{section}: {reason}: {message}", file=sys.stderr)
            return RequestFailed(reason, status)
        fix = {
            404: f"give another {self.model_param}, or another {BASE_URL_ENV}",
            429: f"wait, or lower {section}.concurrency, and run again; "
            f"{self.num_answered} of {self.num_questions} questions are answered and stored",
        }.get(status, f"check the requirements of the server, or give another {BASE_URL_ENV}")
        return InputError(
            f"params.yaml: {self.model_param}: the server refused {self.config.model} "
            f"({reason}: {message}): {fix}"
        )

    @property
    def num_answered(self) -> int:
        return self.num_replies - self.failures.total()


def request_key(body: dict[str, Any]) -> str:
    """The key of a request's answer in the store."""
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


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
        finish=_REFUSAL_FINISH if choice.message.refusal else choice.finish_reason,
        model=completion.model,
        tokens=usage.total_tokens if usage else sent + received,
        structured=structured,
        received=usage.completion_tokens if usage else received,
    )


def _to_legacy_request(body: dict[str, Any]) -> dict[str, Any]:
    """The request with only the fields that older and smaller servers know."""
    fields = {key: value for key, value in body.items() if key != "response_format"}
    return fields | {"max_tokens": fields.pop("max_completion_tokens")}


def parse_answer(answer: ChatAnswer, schema: type[BaseModel]) -> tuple[BaseModel | None, str]:
    """The last JSON object in an answer that matches the schema, or None and the reason.

    The last, because models reason before they answer. Text around it, such as a code fence, is
    ignored.
    """
    failure = "no JSON object"
    for content in reversed(_find_json_objects(answer.text)):
        try:
            return schema.model_validate_json(content), ""
        except ValidationError as error:
            fields = {".".join(map(str, fault["loc"])) or "a character" for fault in error.errors()}
            failure = f"missing or wrong: {', '.join(sorted(fields))}"
    return None, _EARLY_FINISH_REASONS.get(answer.finish or "", failure)


def _find_json_objects(text: str) -> list[str]:
    """The source of the JSON objects in a text that are not inside another object."""
    decoder, objects, start = json.JSONDecoder(), [], text.find("{")
    while start >= 0:
        try:
            _, end = decoder.raw_decode(text, start)
            objects.append(text[start:end])
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
    return objects
