"""Questions to a language model through OpenAI's Batch API: cheaper, and answered within a day.

Answers go to the cache of stages/shared/llm/answers.py under the same keys. A submitted batch is
recorded as a file in POLYMUSE_HOME/batches until its answers are stored, so that a killed run can
resume waiting for it, and nothing is paid for twice. The file is written before the batch is
created: after a kill between the two, it contains the id of the uploaded requests, by which the
batch is found on the server.

    replies = ask_questions("augment.openai", chat_config, batch_config, questions, BACKEND_KEY)
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.shared.core.config import Field, config_class
from stages.shared.llm.answers import ChatAnswer, request_key
from stages.shared.llm.budget import Budget
from stages.shared.llm.client import ChatSession, Question, Reply
from stages.shared.llm.completions import ServerError, parse_completion
from stages.shared.llm.config import NO_MODEL, ChatConfig
from stages.shared.llm.endpoint import API_KEY_ENV, BASE_URL_ENV, Endpoint, load_endpoint
from stages.shared.llm.transport import MAX_MESSAGE_CHARACTERS, RequestFailed
from stages.shared.runtime.errors import InputError, TemporaryError, damaged_file, work_dir

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

COMPLETIONS_PATH = "/v1/chat/completions"  # the API that a batch calls
COMPLETION_WINDOW = "24h"  # the only value that the API accepts
PENDING_STATUSES = ("validating", "in_progress", "finalizing", "cancelling")  # of a batch


@config_class
class BatchRequestConfig:
    """Limits of the Batch API."""

    max_requests: int = Field(ge=1, description="per batch; the API accepts 50000")
    poll_interval: float = Field(ge=0, description="between two status checks, seconds")


@dataclass(frozen=True)
class SubmittedBatch:
    """A submitted batch, as its file records it.

    keys: of its requests. file: id of the uploaded requests. batch: its id, None until known.
    """

    keys: list[str]
    file: str
    batch: str | None

    @property
    def path(self) -> Path:
        name = sha256(" ".join(self.keys).encode()).hexdigest()[:32]
        return work_dir() / "batches" / f"{name}.json"

    def save(self) -> None:
        """Write the file atomically, and to the disk before this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.path)


def ask_questions(
    section: str,
    chat_config: ChatConfig,
    batch_config: BatchRequestConfig,
    questions: list[Question],
    model_param: str,
) -> list[Reply]:
    """Like `llm.client.ask_questions`, but all requests are sent in batches.

    Requests that follow from the answers of a batch form another batch. A batch contains no more
    requests than `max_total_tokens` allows even if every answer has its maximum length.
    """
    unique = list(dict.fromkeys(questions))
    batches = _BatchClient(chat_config, batch_config, model_param)
    # Pending requests count as failed questions until their batch is answered.
    tolerant = replace(chat_config, max_failed_fraction=1.0)
    while True:
        budget = Budget(section, tolerant, len(unique), model_param)
        collector = _RequestCollector(batches.answers)
        asyncio.run(ChatSession(tolerant, budget, collector.complete).reply_all(unique))
        if not collector.pending:
            break
        batches.answer_pending(collector.pending, budget)
    budget = Budget(section, chat_config, len(unique), model_param)
    session = ChatSession(chat_config, budget, collector.complete)
    try:
        replies = asyncio.run(session.reply_all(unique))
    finally:  # the answers that fit are stored; the next run asks the other questions again
        batches.forget_answered()
    by_question = dict(zip(unique, replies, strict=True))
    return [by_question[question] for question in questions]


class _RequestCollector:
    """Sends nothing: requests are collected in `pending`, unless `answers` has their outcome.

    Both are by request key.
    """

    def __init__(self, answers: "dict[str, ChatAnswer | RequestFailed]"):
        self.answers = answers
        self.pending: dict[str, dict[str, Any]] = {}

    async def complete(self, body: dict[str, Any]) -> ChatAnswer:
        key = request_key(body)
        answer = self.answers.get(key)
        if isinstance(answer, ChatAnswer):
            return answer
        if answer is not None:
            raise answer
        self.pending[key] = body
        raise RequestFailed("no answer yet")


class _BatchClient:
    """Sends batches and collects their answers, or the failures of requests, by request key.

    `ChatSession` stores those that fit.
    """

    def __init__(self, chat_config: ChatConfig, batch_config: BatchRequestConfig, model_param: str):
        self.chat_config, self.batch_config = chat_config, batch_config
        self.model_param = model_param
        self.answers: dict[str, ChatAnswer | RequestFailed] = {}
        self.answered: list[SubmittedBatch] = []

    @cached_property
    def endpoint(self) -> Endpoint:
        return load_endpoint(self.model_param, NO_MODEL)

    @cached_property
    def client(self) -> "OpenAI":
        from openai import OpenAI

        return OpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.api_key,
            max_retries=self.chat_config.max_retries,
            timeout=self.chat_config.timeout,
        )

    def answer_pending(self, pending: dict[str, dict[str, Any]], budget: Budget) -> None:
        """Collect the answers to pending requests (by key).

        Waits for the open batches with pending requests, or else submits a new batch. budget: of
        the session that collected the requests. Raises InputError; the next run then waits for the
        submitted batches.
        """
        import openai

        try:
            open_batches = [
                batch for batch in _iter_open_batches() if pending.keys() & set(batch.keys)
            ]
            for submitted in open_batches or [self._submit(self._select_requests(pending, budget))]:
                self.answers |= self._fetch_answers(submitted, pending)
                self.answered.append(submitted)
        except openai.APIConnectionError:  # includes timeouts
            raise TemporaryError(
                f"{BASE_URL_ENV}: no server responds: start that server, or give another address; "
                "the next run waits for the submitted batches"
            ) from None
        except openai.APIStatusError as error:
            raise self._refusal_error(error.status_code, error.message) from None

    def _select_requests(
        self, pending: dict[str, dict[str, Any]], budget: Budget
    ) -> dict[str, dict[str, Any]]:
        """The first pending requests, as many as one batch and the token budget allow."""
        remaining, selected = self.chat_config.max_total_tokens - budget.total_tokens, {}
        for key, body in list(pending.items())[: self.batch_config.max_requests]:
            # An upper bound: a token has at least one byte, and the JSON syntax covers the few
            # tokens that frame each message.
            remaining -= len(json.dumps(body, ensure_ascii=False).encode())
            remaining -= self.chat_config.max_completion_tokens
            if remaining < 0:
                break
            selected[key] = body
        if not selected:
            raise budget.token_error()
        return selected

    def _submit(self, requests: dict[str, dict[str, Any]]) -> SubmittedBatch:
        lines = [
            json.dumps({"custom_id": key, "method": "POST", "url": COMPLETIONS_PATH, "body": body})
            for key, body in requests.items()
        ]
        content = "".join(f"{line}\n" for line in lines).encode()
        file = self.client.files.create(file=("requests.jsonl", content), purpose="batch")
        submitted = SubmittedBatch(list(requests), file.id, None)
        submitted.save()
        return replace(submitted, batch=self._create_batch(submitted))

    def _create_batch(self, submitted: SubmittedBatch) -> str:
        """Create the batch of the uploaded requests and record it; returns its id."""
        batch = self.client.batches.create(
            input_file_id=submitted.file,
            endpoint=COMPLETIONS_PATH,
            completion_window=COMPLETION_WINDOW,
        )
        replace(submitted, batch=batch.id).save()
        return batch.id

    def forget_answered(self) -> None:
        """Delete the files of the batches whose answers are stored."""
        for submitted in self.answered:
            submitted.path.unlink(missing_ok=True)

    def _fetch_answers(
        self, submitted: SubmittedBatch, pending: dict[str, dict[str, Any]]
    ) -> dict[str, ChatAnswer | RequestFailed]:
        """Wait for a batch; its answers and failures, by key."""
        batch = self._wait_until_ended(submitted)
        if batch.status == "failed":
            submitted.path.unlink()
            errors = (batch.errors and batch.errors.data) or []
            message = "; ".join(error.message for error in errors if error.message)
            raise self._refusal_error(0, message or "it gives no reason")
        answers: dict[str, ChatAnswer | RequestFailed] = {
            key: RequestFailed(f"batch {batch.status}") for key in submitted.keys
        }
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in _iter_json_lines(self.client.files.content(file).content):
                key = str(line.get("custom_id"))
                if isinstance(answers.get(key), RequestFailed):
                    answers[key] = _parse_answer_line(line, pending.get(key, {"messages": []}))
        return answers

    def _wait_until_ended(self, submitted: SubmittedBatch) -> "Batch":
        """Poll a batch until it has ended."""
        batch = self.client.batches.retrieve(submitted.batch or self._find_batch_id(submitted))
        while batch.status in PENDING_STATUSES:
            count = batch.request_counts.completed if batch.request_counts else 0
            print(
                f"{self.model_param}: batch {batch.status}, "
                f"{count} of {len(submitted.keys)} requests answered",
                file=sys.stderr,
            )
            time.sleep(self.batch_config.poll_interval)
            batch = self.client.batches.retrieve(batch.id)
        return batch

    def _find_batch_id(self, submitted: SubmittedBatch) -> str:
        """The id of the batch of the uploaded requests; creates it if a kill prevented that."""
        for batch in self.client.batches.list(limit=100):  # iterates over all pages
            if batch.input_file_id == submitted.file:
                return batch.id
        return self._create_batch(submitted)

    def _refusal_error(self, status: int, message: str) -> InputError:
        if status in (401, 403):  # servers repeat parts of a key, so their message is not shown
            return InputError(
                f"{API_KEY_ENV}: the server rejects it (HTTP {status}): give a valid one"
            )
        message = self.endpoint.redact(message.removeprefix(f"Error code: {status} - "))
        message = message[:MAX_MESSAGE_CHARACTERS]
        reason = f"HTTP {status}: {message}" if status else message
        kind = TemporaryError if status == 429 or status >= 500 else InputError
        return kind(
            f"params.yaml: {self.model_param}: the server refused a batch ({reason}): give the "
            f"{BASE_URL_ENV} to which the batches in {work_dir() / 'batches'} were sent, or delete "
            "these files, or set use_batch_api to false"
        )


def _iter_open_batches() -> Iterator[SubmittedBatch]:
    """The submitted batches whose answers are not stored yet. Raises InputError if damaged."""
    for path in sorted((work_dir() / "batches").glob("*.json")):
        with suppress(FileNotFoundError):  # just finished by another process
            try:
                batch = SubmittedBatch(**json.loads(path.read_text()))
            except (ValueError, TypeError) as error:
                fix = "delete it; its questions are sent again, and paid again"
                raise damaged_file(path, error, fix) from None
            yield batch


def _iter_json_lines(content: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects, one per line; other lines are skipped."""
    for line in content.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _parse_answer_line(line: dict[str, Any], body: dict[str, Any]) -> ChatAnswer | RequestFailed:
    """The answer, or the failure, in a line of a batch's output or error file."""
    response = line.get("response") or {}
    status = response.get("status_code", 0)
    if status != 200:
        error = line.get("error") or {}
        return RequestFailed(
            f"HTTP {status}" if status else str(error.get("code", "no answer")), status
        )
    try:
        return parse_completion(response.get("body"), body, structured=True)
    except ServerError as error:
        return RequestFailed(f"HTTP {error.status}", error.status)
    except RequestFailed as error:
        return error
    except ValueError:
        return RequestFailed("no chat completion")
