"""Questions to a language model by OpenAI's Batch API: cheaper, and answered within a day.

Answers go to the store of stages/shared/llm/client.py under the same keys. A batch that was sent stands as
a file in POLYMUSE_HOME/batches until its answers are stored, so that who is killed waits for it
again and pays nothing twice. The file is written before the batch is paid for: a kill between the
two leaves the name of the uploaded requests, by which the batch is found on the server.

    replies = ask("augment.openai", settings, numbers, questions, "augment.backend")
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
from stages.shared.llm import client as llm_client
from stages.shared.llm.client import (
    MAX_MESSAGE_CHARACTERS,
    ChatAnswer,
    ChatConfig,
    ChatSession,
    Question,
    Reply,
    RequestFailed,
)
from stages.shared.llm.endpoint import API_KEY_ENV, BASE_URL_ENV, Endpoint, load_endpoint
from stages.shared.runtime.stage import InputError, work_dir

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

COMPLETIONS_PATH = "/v1/chat/completions"  # what a batch asks
COMPLETION_WINDOW = "24h"  # the only one that the API knows
PENDING_STATUSES = ("validating", "in_progress", "finalizing", "cancelling")  # `status` of a batch


@config_class
class BatchRequestConfig:
    """What a section of params says of batches."""

    max_requests: int = Field(ge=1)  # of one batch at most
    poll_interval: float = Field(ge=0)  # seconds between two looks at it


@dataclass(frozen=True)
class SubmittedBatch:
    """A batch as its file has it. file: the uploaded requests; batch: None until it is known."""

    keys: list[str]
    file: str
    batch: str | None

    @property
    def path(self) -> Path:
        return (
            work_dir() / "batches" / f"{sha256(' '.join(self.keys).encode()).hexdigest()[:32]}.json"
        )

    def save(self) -> None:
        """All of it or nothing, and on the disk before this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.path)


def ask_questions(
    section: str,
    settings: ChatConfig,
    numbers: BatchRequestConfig,
    questions: list[Question],
    named_by: str,
) -> list[Reply]:
    """As llm.ask(), but no request is sent alone: what a batch leaves open is another batch.

    A batch holds no more requests than `max_tokens_total` leaves room for, even if each of them
    becomes as long as it can.
    """
    unique = list(dict.fromkeys(questions))
    failed: dict[str, RequestFailed] = {}
    batches = _BatchClient(settings, numbers, named_by)
    while True:
        looking = replace(settings, max_failed_fraction=1.0)
        found = _PendingCollector(section, looking, len(unique), named_by, failed)
        asyncio.run(found.answer_all(unique))
        if not found.pending:
            break
        failed |= batches.answer_pending(found)
    last = _PendingCollector(section, settings, len(unique), named_by, failed)
    by_question = dict(zip(unique, asyncio.run(last.answer_all(unique)), strict=True))
    return [by_question[question] for question in questions]


class _PendingCollector(ChatSession):
    """It sends nothing: a request without stored answer waits, unless it is known to have failed.

    waiting: request by its key.
    """

    def __init__(
        self,
        section: str,
        settings: ChatConfig,
        count: int,
        named_by: str,
        failed: dict[str, RequestFailed],
    ):
        super().__init__(section, settings, count, named_by)
        self.failed, self.pending = failed, {}

    async def _request(self, body: dict[str, Any]) -> ChatAnswer:
        key = llm_client.request_key(body)
        if key in self.failed:
            raise self.failed[key]
        self.pending[key] = body
        raise RequestFailed("no answer yet")


class _BatchClient:
    def __init__(self, settings: ChatConfig, numbers: BatchRequestConfig, named_by: str):
        self.settings, self.batch_config, self.named_by = settings, numbers, named_by

    @cached_property
    def endpoint(self) -> Endpoint:
        return load_endpoint(self.named_by, llm_client.NO_MODEL)

    @cached_property
    def client(self) -> "OpenAI":
        from openai import OpenAI

        return OpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.endpoint.api_key,
            max_retries=self.settings.max_retries,
            timeout=self.settings.timeout,
        )

    def answer_pending(self, asked: _PendingCollector) -> dict[str, RequestFailed]:
        """Store answers to requests that wait, of batches under way first; what failed of them.

        Raises WrongInput; what was sent is then waited for by the next run.
        """
        import openai

        try:
            under_way = [
                sent for sent in _iter_open_batches() if asked.pending.keys() & set(sent.keys)
            ]
            failed: dict[str, RequestFailed] = {}
            for sent in under_way or [self._submit(self._select_requests(asked))]:
                failed |= self._store_answers(sent, asked)
            return failed
        except openai.APIConnectionError:  # and no answer in time
            raise InputError(
                f"{BASE_URL_ENV}: nothing answers there: start that server, or give another address; "
                "a batch that was sent is waited for by the next run"
            ) from None
        except openai.APIStatusError as error:
            raise self._refusal_error(error.status_code, error.message) from None

    def _select_requests(self, asked: _PendingCollector) -> dict[str, dict[str, Any]]:
        """The first requests that are waiting, as many as one batch may hold."""
        room, part = self.settings.max_total_tokens - asked.total_tokens, {}
        for key, body in list(asked.pending.items())[: self.batch_config.max_requests]:
            # A token has a byte or more, and a few frame each message.
            room -= len(json.dumps(body, ensure_ascii=False).encode())
            room -= self.settings.max_completion_tokens
            if room < 0:
                break
            part[key] = body
        if not part:
            raise InputError(asked.budget_exceeded_message())
        return part

    def _submit(self, requests: dict[str, dict[str, Any]]) -> SubmittedBatch:
        lines = [
            json.dumps({"custom_id": key, "method": "POST", "url": COMPLETIONS_PATH, "body": body})
            for key, body in requests.items()
        ]
        content = "".join(f"{line}\n" for line in lines).encode()
        file = self.client.files.create(file=("requests.jsonl", content), purpose="batch")
        sent = SubmittedBatch(list(requests), file.id, None)
        sent.save()
        return self._create_batch(sent)

    def _create_batch(self, sent: SubmittedBatch) -> SubmittedBatch:
        batch = self.client.batches.create(
            input_file_id=sent.file, endpoint=COMPLETIONS_PATH, completion_window=COMPLETION_WINDOW
        )
        sent = replace(sent, batch=batch.id)
        sent.save()
        return sent

    def _store_answers(
        self, sent: SubmittedBatch, asked: _PendingCollector
    ) -> dict[str, RequestFailed]:
        """Wait for a batch and store its answers; the requests that it has none to."""
        batch = self._wait_until_ended(sent)
        if batch.status == "failed":
            sent.path.unlink()
            faults = (batch.errors and batch.errors.data) or []
            said = "; ".join(fault.message for fault in faults if fault.message)
            raise self._refusal_error(0, said or "it says no reason")
        failed = {key: RequestFailed(f"batch {batch.status}") for key in sent.keys}
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            rows = []
            for line in _iter_json_lines(self.client.files.content(file).content):
                key = line.get("custom_id")
                if key not in failed:
                    continue
                body = asked.pending.get(key, {"messages": []})
                found = _parse_answer_line(line, body)
                if isinstance(found, ChatAnswer):
                    rows.append((key, found.model_dump_json().encode()))
                    del failed[key]
                else:
                    failed[key] = found
            asked.store.write(rows)
        sent.path.unlink()
        return failed

    def _wait_until_ended(self, sent: SubmittedBatch) -> "Batch":
        """The batch once it has ended."""
        batch = self.client.batches.retrieve(sent.batch or self._find_batch_id(sent))
        while batch.status in PENDING_STATUSES:
            done = batch.request_counts.completed if batch.request_counts else 0
            print(
                f"{self.named_by}: batch {batch.status}, {done} of {len(sent.keys)} answered",
                file=sys.stderr,
            )
            time.sleep(self.batch_config.poll_interval)
            batch = self.client.batches.retrieve(batch.id)
        return batch

    def _find_batch_id(self, sent: SubmittedBatch) -> str:
        """The id of the batch of uploaded requests, made now if the last kill came before that."""
        for batch in self.client.batches.list(limit=100):  # it asks for the next hundred by itself
            if batch.input_file_id == sent.file:
                return batch.id
        return self._create_batch(sent).batch

    def _refusal_error(self, status: int, message: str) -> InputError:
        if status in (401, 403):  # servers repeat parts of a key, so nothing of theirs is shown
            return InputError(
                f"{API_KEY_ENV}: the server does not take it (HTTP {status}): give a valid one"
            )
        said = self.endpoint.redact(message.removeprefix(f"Error code: {status} - "))[
            :MAX_MESSAGE_CHARACTERS
        ]
        reason = f"HTTP {status}: {said}" if status else said
        return InputError(
            f"params.yaml: {self.named_by}: the server refused a batch ({reason}): give the "
            f"{BASE_URL_ENV} that batches under {work_dir() / 'batches'} were sent to, or take them away "
            "there, or ask without the Batch API"
        )


def _iter_open_batches() -> Iterator[SubmittedBatch]:
    """The batches whose answers are not stored."""
    for path in sorted((work_dir() / "batches").glob("*.json")):
        with suppress(FileNotFoundError):  # finished by a stage beside this one
            yield SubmittedBatch(**json.loads(path.read_text()))


def _iter_json_lines(content: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects, one a line; a line that is none is no answer."""
    for line in content.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _parse_answer_line(line: dict[str, Any], body: dict[str, Any]) -> ChatAnswer | RequestFailed:
    """What a line of a batch's output or errors says of its request."""
    response = line.get("response") or {}
    status = response.get("status_code", 0)
    if status != 200:
        error = line.get("error") or {}
        return RequestFailed(
            f"HTTP {status}" if status else str(error.get("code", "no answer")), status
        )
    try:
        return llm_client.parse_completion(response.get("body"), body, structured=True)
    except ValueError:
        return RequestFailed("no chat completion")
