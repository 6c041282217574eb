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

from stages.shared.core.config import at_least
from stages.shared.llm import client as llm_client
from stages.shared.llm.client import SAID, Answer, Asking, Failed, Question, Reply, Settings
from stages.shared.llm.endpoint import ADDRESS, KEY, Endpoint, endpoint
from stages.shared.runtime.stage import WrongInput, home

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

WHERE = "/v1/chat/completions"  # what a batch asks
WINDOW = "24h"  # the only one that the API knows
UNDER_WAY = ("validating", "in_progress", "finalizing", "cancelling")  # `status` of a batch


@dataclass(frozen=True)
class Numbers:
    """What a section of params says of batches."""

    requests: int  # of one batch at most
    poll: float  # seconds between two looks at it

    def __post_init__(self) -> None:
        at_least(self, requests=1, poll=0)


@dataclass(frozen=True)
class Sent:
    """A batch as its file has it. file: the uploaded requests; batch: None until it is known."""

    keys: list[str]
    file: str
    batch: str | None

    @property
    def path(self) -> Path:
        return home() / "batches" / f"{sha256(' '.join(self.keys).encode()).hexdigest()[:32]}.json"

    def save(self) -> None:
        """All of it or nothing, and on the disk before this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.path)


def ask(
    section: str, settings: Settings, numbers: Numbers, questions: list[Question], named_by: str
) -> list[Reply]:
    """As llm.ask(), but no request is sent alone: what a batch leaves open is another batch.

    A batch holds no more requests than `max_tokens_total` leaves room for, even if each of them
    becomes as long as it can.
    """
    unique = list(dict.fromkeys(questions))
    failed: dict[str, Failed] = {}
    batches = _Batches(settings, numbers, named_by)
    while True:
        looking = replace(settings, max_failed=1.0)
        found = _Collecting(section, looking, len(unique), named_by, failed)
        asyncio.run(found.all(unique))
        if not found.waiting:
            break
        failed |= batches.answer(found)
    last = _Collecting(section, settings, len(unique), named_by, failed)
    by_question = dict(zip(unique, asyncio.run(last.all(unique)), strict=True))
    return [by_question[question] for question in questions]


class _Collecting(Asking):
    """It sends nothing: a request without stored answer waits, unless it is known to have failed.

    waiting: request by its key.
    """

    def __init__(
        self,
        section: str,
        settings: Settings,
        count: int,
        named_by: str,
        failed: dict[str, Failed],
    ):
        super().__init__(section, settings, count, named_by)
        self.failed, self.waiting = failed, {}

    async def _request(self, body: dict[str, Any]) -> Answer:
        key = llm_client.key_of(body)
        if key in self.failed:
            raise self.failed[key]
        self.waiting[key] = body
        raise Failed("no answer yet")


class _Batches:
    def __init__(self, settings: Settings, numbers: Numbers, named_by: str):
        self.settings, self.numbers, self.named_by = settings, numbers, named_by

    @cached_property
    def endpoint(self) -> Endpoint:
        return endpoint(self.named_by, llm_client.NOBODY)

    @cached_property
    def client(self) -> "OpenAI":
        from openai import OpenAI

        return OpenAI(
            base_url=self.endpoint.address,
            api_key=self.endpoint.key,
            max_retries=self.settings.retries,
            timeout=self.settings.timeout,
        )

    def answer(self, asked: _Collecting) -> dict[str, Failed]:
        """Store answers to requests that wait, of batches under way first; what failed of them.

        Raises WrongInput; what was sent is then waited for by the next run.
        """
        import openai

        try:
            under_way = [sent for sent in _open() if asked.waiting.keys() & set(sent.keys)]
            failed: dict[str, Failed] = {}
            for sent in under_way or [self._send(self._part(asked))]:
                failed |= self._finish(sent, asked)
            return failed
        except openai.APIConnectionError:  # and no answer in time
            raise WrongInput(
                f"{ADDRESS}: nothing answers there: start that server, or give another address; "
                "a batch that was sent is waited for by the next run"
            ) from None
        except openai.APIStatusError as error:
            raise self._refused(error.status_code, error.message) from None

    def _part(self, asked: _Collecting) -> dict[str, dict[str, Any]]:
        """The first requests that are waiting, as many as one batch may hold."""
        room, part = self.settings.max_tokens_total - asked.tokens, {}
        for key, body in list(asked.waiting.items())[: self.numbers.requests]:
            # A token has a byte or more, and a few frame each message.
            room -= len(json.dumps(body, ensure_ascii=False).encode())
            room -= self.settings.answer_tokens
            if room < 0:
                break
            part[key] = body
        if not part:
            raise WrongInput(asked.too_dear())
        return part

    def _send(self, requests: dict[str, dict[str, Any]]) -> Sent:
        lines = [
            json.dumps({"custom_id": key, "method": "POST", "url": WHERE, "body": body})
            for key, body in requests.items()
        ]
        content = "".join(f"{line}\n" for line in lines).encode()
        file = self.client.files.create(file=("requests.jsonl", content), purpose="batch")
        sent = Sent(list(requests), file.id, None)
        sent.save()
        return self._create(sent)

    def _create(self, sent: Sent) -> Sent:
        batch = self.client.batches.create(
            input_file_id=sent.file, endpoint=WHERE, completion_window=WINDOW
        )
        sent = replace(sent, batch=batch.id)
        sent.save()
        return sent

    def _finish(self, sent: Sent, asked: _Collecting) -> dict[str, Failed]:
        """Wait for a batch and store its answers; the requests that it has none to."""
        batch = self._wait(sent)
        if batch.status == "failed":
            sent.path.unlink()
            faults = (batch.errors and batch.errors.data) or []
            said = "; ".join(fault.message for fault in faults if fault.message)
            raise self._refused(0, said or "it says no reason")
        failed = {key: Failed(f"batch {batch.status}") for key in sent.keys}
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            rows = []
            for line in _lines(self.client.files.content(file).content):
                key = line.get("custom_id")
                if key not in failed:
                    continue
                body = asked.waiting.get(key, {"messages": []})
                found = _answer(line, body)
                if isinstance(found, Answer):
                    rows.append((key, found.model_dump_json().encode()))
                    del failed[key]
                else:
                    failed[key] = found
            asked.store.write(rows)
        sent.path.unlink()
        return failed

    def _wait(self, sent: Sent) -> "Batch":
        """The batch once it has ended."""
        batch = self.client.batches.retrieve(sent.batch or self._batch_of(sent))
        while batch.status in UNDER_WAY:
            done = batch.request_counts.completed if batch.request_counts else 0
            print(
                f"{self.named_by}: batch {batch.status}, {done} of {len(sent.keys)} answered",
                file=sys.stderr,
            )
            time.sleep(self.numbers.poll)
            batch = self.client.batches.retrieve(batch.id)
        return batch

    def _batch_of(self, sent: Sent) -> str:
        """The id of the batch of uploaded requests, made now if the last kill came before that."""
        for batch in self.client.batches.list(limit=100):  # it asks for the next hundred by itself
            if batch.input_file_id == sent.file:
                return batch.id
        return self._create(sent).batch

    def _refused(self, status: int, message: str) -> WrongInput:
        if status in (401, 403):  # servers repeat parts of a key, so nothing of theirs is shown
            return WrongInput(
                f"{KEY}: the server does not take it (HTTP {status}): give a valid one"
            )
        said = self.endpoint.clean(message.removeprefix(f"Error code: {status} - "))[:SAID]
        reason = f"HTTP {status}: {said}" if status else said
        return WrongInput(
            f"params.yaml: {self.named_by}: the server refused a batch ({reason}): give the "
            f"{ADDRESS} that batches under {home() / 'batches'} were sent to, or take them away "
            "there, or ask without the Batch API"
        )


def _open() -> Iterator[Sent]:
    """The batches whose answers are not stored."""
    for path in sorted((home() / "batches").glob("*.json")):
        with suppress(FileNotFoundError):  # finished by a stage beside this one
            yield Sent(**json.loads(path.read_text()))


def _lines(content: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects, one a line; a line that is none is no answer."""
    for line in content.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _answer(line: dict[str, Any], body: dict[str, Any]) -> Answer | Failed:
    """What a line of a batch's output or errors says of its request."""
    response = line.get("response") or {}
    status = response.get("status_code", 0)
    if status != 200:
        error = line.get("error") or {}
        return Failed(f"HTTP {status}" if status else str(error.get("code", "no answer")), status)
    try:
        return llm_client.completed(response.get("body"), body, structured=True)
    except ValueError:
        return Failed("no chat completion")
