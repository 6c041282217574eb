"""Questions to a language model behind an OpenAI-compatible server, answered as checked JSON.

What was answered is stored under POLYMUSE_HOME by the sha256 of the request (model, messages,
schema, temperature and length, not the server's address), so that nothing is paid twice, not after
a kill either. An answer that does not fit its question's schema is asked for again with what was
wrong with it, `attempts` times in all.

    replies = ask("judge", settings, [Question(instruction, data, schema), ...])

stages/augment/batch_client.py asks the same by the Batch API.
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

from stages.shared.core.config import Field, config_class
from stages.shared.data.cache import Store
from stages.shared.llm.endpoint import API_KEY_ENV, BASE_URL_ENV, Endpoint, load_endpoint
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError, work_dir

if TYPE_CHECKING:  # half a second to import, for nothing where no model is named
    from openai import APIStatusError, AsyncOpenAI

NO_MODEL = "none"  # the `model` that asks nobody
_UNKNOWN_FIELD_STATUSES = (
    400,
    422,
)  # what servers say of a request with a field that they do not know
_QUESTION_ERROR_STATUSES = (
    *_UNKNOWN_FIELD_STATUSES,
    408,
    413,
)  # as well: too long, or caught by a filter
_REFUSAL_FINISH = "refusal"  # `finish` of an answer that is one; no server says that
_EARLY_FINISH_REASONS = {
    "length": "cut off at max_completion_tokens",
    "content_filter": "caught by a filter",
    _REFUSAL_FINISH: "refused by the model",
}
MAX_MESSAGE_CHARACTERS = 200  # characters of a server's message that are shown


@config_class
class ChatConfig:
    """What a section of params says of the model that it asks."""

    model: str
    temperature: float | None
    max_completion_tokens: int = Field(ge=1)
    concurrency: int = Field(ge=1)
    max_retries: int = Field(ge=0)
    timeout: float = Field(gt=0)  # seconds
    max_attempts: int = Field(ge=1)
    max_total_tokens: int = Field(ge=0)
    max_failed_fraction: float = Field(ge=0)  # share of the questions


@dataclass(frozen=True)
class Question:
    """`instruction` is ours; `data` is what others wrote, as quote() marks it."""

    instruction: str
    data: str
    schema: type[BaseModel]


@dataclass(frozen=True)
class Reply:
    """value: the answer, None where none fitted; failure: why not, else "".

    tokens: of all attempts, `received` of them written by the model. models: as the server names
    them. structured: whether it took the schema each time, instead of being told of it in words
    alone.
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
    received: int = 0  # of tokens; answers that were stored before this was counted have none


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
    """What is read of a server's answer (OpenAI API reference, chat completion object)."""

    choices: list[_Choice] = Field(min_length=1)
    model: str | None = None
    usage: _Usage | None = None


class RequestFailed(Exception):
    """One question got no answer; the others go on. status: of HTTP, 0 without one."""

    def __init__(self, reason: str, status: int = 0):
        super().__init__(reason)
        self.status = status


def quote_data(**parts: str) -> str:
    """Texts as data between tags of their names. None can close its tag or open another.

    <, > and & are escaped as in XML, which models read as what they stand for.
    """
    return "\n".join(
        f"<{name}>\n{escape(text, quote=False)}\n</{name}>" for name, text in parts.items()
    )


def ask_questions(
    section: str, settings: ChatConfig, questions: list[Question], named_by: str | None = None
) -> list[Reply]:
    """One reply a question, in their order. `section` of params.yaml holds the settings.

    named_by: what names the model there, if that is not its `model`; its `none` asks nobody.
    Raises WrongInput if no server is named or answers, if it wants another key or model, at
    `max_tokens_total`, or once more than `max_failed` of the questions have failed. Requests under
    way are waited for and stored before that.
    """
    unique = list(dict.fromkeys(questions))
    replies = asyncio.run(ChatSession(section, settings, len(unique), named_by).answer_all(unique))
    by_question = dict(zip(unique, replies, strict=True))
    return [by_question[question] for question in questions]


class ChatSession:
    """The state of one call of ask()."""

    def __init__(self, section: str, settings: ChatConfig, count: int, named_by: str | None):
        self.section, self.settings, self.num_questions = section, settings, count
        self.named_by = named_by or f"{section}.model"
        self.store = Store(work_dir() / "store", "answers")
        self.structured = True  # until the server refuses a schema
        self.has_completion = False  # once something that it says is a chat completion
        self.total_tokens, self.num_replies = 0, 0
        self.failures: Counter[str] = Counter()
        self.fatal_error: BaseException | None = None  # what ends it all

    @cached_property
    def endpoint(self) -> Endpoint:
        """Read at the first request: who has all answers in the store needs no server."""
        return load_endpoint(self.named_by, NO_MODEL)

    @cached_property
    def client(self) -> "AsyncOpenAI":
        """It waits before a retry as long as Retry-After says, else 0.5 s, doubled up to 8 s.

        Asked to wait for more than 120 s, it does not retry.
        """
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.api_key,
            max_retries=self.settings.max_retries,
            timeout=self.settings.timeout,
        )

    async def answer_all(self, questions: list[Question]) -> list[Reply]:
        slots = asyncio.Semaphore(self.settings.concurrency)
        tasks = [
            asyncio.create_task(self._reply_in_slot(slots, question)) for question in questions
        ]
        for done in progress_bar(asyncio.as_completed(tasks), self.section, len(tasks)):
            await done
        if "client" in self.__dict__:
            await self.client.close()
        if self.fatal_error:
            raise self.fatal_error
        return [task.result() for task in tasks]

    async def _reply_in_slot(self, slots: asyncio.Semaphore, question: Question) -> Reply | None:
        """A reply; None where another question, or this one, ended it all."""
        async with slots:
            if self.fatal_error:
                return None
            try:
                return await self._reply(question)
            except Exception as error:
                self.fatal_error = self.fatal_error or error
                return None

    async def _reply(self, question: Question) -> Reply:
        """Ask until an answer fits."""
        messages = [
            {"role": "system", "content": question.instruction},
            {"role": "user", "content": question.data},
        ]
        answers: list[ChatAnswer] = []
        value, failure = None, ""
        for _ in range(self.settings.max_attempts):
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
        """Raises WrongInput once too many questions have failed."""
        self.num_replies += 1
        if not failure:
            return
        self.failures[failure] += 1
        if (
            failed := self.failures.total()
        ) > self.settings.max_failed_fraction * self.num_questions:
            (most, times), *_ = self.failures.most_common(1)
            raise InputError(
                f"params.yaml: {self.named_by}: {failed} of {self.num_questions} questions to "
                f"{self.settings.model} failed, {times} of them with: {most}; that is more than "
                f"{self.section}.max_failed_fraction allows, so change what it says, or raise that"
            )

    async def _answer(self, messages: list[dict], schema: type[BaseModel]) -> ChatAnswer:
        """The next answer to these messages, from the store if it is there. Raises Failed."""
        body = self._build_request(messages, schema)
        key = request_key(body)
        if self.store.missing_keys([key]):
            if self.total_tokens >= self.settings.max_total_tokens:
                raise InputError(self.budget_exceeded_message())
            answer = await self._request(body)
            self.store.write([(key, answer.model_dump_json().encode())])
        (row,) = self.store.read([key])
        answer = ChatAnswer.model_validate_json(row)
        self.total_tokens += answer.tokens
        return answer

    def budget_exceeded_message(self) -> str:
        most = self.settings.max_total_tokens
        return (
            f"params.yaml: {self.section}.max_total_tokens is {most}, and {self.total_tokens} tokens "
            f"answered {self.num_answered} of {self.num_questions} questions: raise it and run again, what was "
            "answered is kept and costs nothing"
        )

    def _build_request(self, messages: list[dict], schema: type[BaseModel]) -> dict[str, Any]:
        """The request in full; a server that refuses it may still take _plain() of it."""
        described = {"name": schema.__name__, "strict": True, "schema": schema.model_json_schema()}
        body = {
            "model": self.settings.model,
            "messages": messages,
            "response_format": {"type": "json_schema", "json_schema": described},
            "max_completion_tokens": self.settings.max_completion_tokens,
        }
        if self.settings.temperature is not None:
            body["temperature"] = self.settings.temperature
        return body

    async def _request(self, body: dict[str, Any]) -> ChatAnswer:
        """Ask the server; once it takes a request in plain form alone, the rest are plain too."""
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
        """What is no completion is asked for again, as often as a request that met a busy server.

        Where nothing ever was one, the address is wrong; else an answer broke on its way.
        """
        for _ in range(self.settings.max_retries + 1):
            content = await self._fetch_content(body)
            try:
                answer = parse_completion(json.loads(content), body, structured)
            except ValueError:  # no JSON, or other JSON
                continue
            self.has_completion = True
            return answer
        if self.has_completion:
            raise RequestFailed("no chat completion")
        raise InputError(
            f"{BASE_URL_ENV}: what answers there is no chat completion: give the address of an "
            "OpenAI-compatible API, which often ends in /v1"
        )

    async def _fetch_content(self, body: dict[str, Any]) -> bytes:
        import openai

        try:
            create = self.client.chat.completions.with_raw_response.create
            return (await create(**body)).http_response.content
        except openai.APITimeoutError:
            raise RequestFailed(f"no answer in {self.settings.timeout:g} s") from None
        except openai.APIConnectionError:
            raise InputError(
                f"{BASE_URL_ENV}: nothing answers there: start that server, or give another address"
            ) from None
        except openai.APIStatusError as error:
            raise self._status_error(error) from None

    def _status_error(self, error: "APIStatusError") -> Exception:
        """Failed where the next question may fare better, else WrongInput."""
        status, section = error.status_code, self.section
        reason = f"HTTP {status}"
        if status in (401, 403):  # servers repeat parts of a key, so nothing of theirs is shown
            return InputError(
                f"{API_KEY_ENV}: the server does not take it ({reason}): give a valid one"
            )
        message = error.message.removeprefix(f"Error code: {status} - ")
        said = self.endpoint.redact(message)[:MAX_MESSAGE_CHARACTERS]
        if status in _QUESTION_ERROR_STATUSES or status >= 500:
            print(f"{section}: {reason}: {said}", file=sys.stderr)
            return RequestFailed(reason, status)
        fix = {
            404: f"give another {self.named_by}, or another {BASE_URL_ENV}",
            429: f"wait, or lower {section}.concurrency, and run again; "
            f"{self.num_answered} of {self.num_questions} questions are answered and kept",
        }.get(status, f"see what that server asks for, or give another {BASE_URL_ENV}")
        return InputError(
            f"params.yaml: {self.named_by}: the server refused {self.settings.model} "
            f"({reason}: {said}): {fix}"
        )

    @property
    def num_answered(self) -> int:
        return self.num_replies - self.failures.total()


def request_key(body: dict[str, Any]) -> str:
    """Of a request and its answer in the store."""
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def parse_completion(content: Any, body: dict[str, Any], structured: bool) -> ChatAnswer:
    """A chat completion, as JSON, that answers this request. Raises ValueError if it is none."""
    completion = _Completion.model_validate(content)
    (choice, *_), usage = completion.choices, completion.usage
    text = choice.message.content or choice.message.refusal or ""
    text = text.encode(errors="replace").decode()  # half a character has no UTF-8
    # A token has a byte or more: an upper bound where the server does not say what it used.
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
    """The request in the words that older and smaller servers know."""
    kept = {key: value for key, value in body.items() if key != "response_format"}
    return kept | {"max_tokens": kept.pop("max_completion_tokens")}


def parse_answer(answer: ChatAnswer, schema: type[BaseModel]) -> tuple[BaseModel | None, str]:
    """The last JSON object in an answer as the schema has it, or None and why there is none.

    The last, because models think aloud before they answer; text around it, such as a code fence,
    is passed over.
    """
    failure = "no JSON object"
    for found in reversed(_find_json_objects(answer.text)):
        try:
            return schema.model_validate_json(found), ""
        except ValidationError as error:
            fields = {".".join(map(str, fault["loc"])) or "a character" for fault in error.errors()}
            failure = f"missing or wrong: {', '.join(sorted(fields))}"
    return None, _EARLY_FINISH_REASONS.get(answer.finish or "", failure)


def _find_json_objects(text: str) -> list[str]:
    """The JSON objects in a text that stand in no other one, as they are written."""
    decoder, found, start = json.JSONDecoder(), [], text.find("{")
    while start >= 0:
        try:
            _, end = decoder.raw_decode(text, start)
            found.append(text[start:end])
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
    return found
