"""Answers of a language model: their cache, and the JSON object in their text."""

import json
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, ValidationError

from stages.shared.data.cache import Store
from stages.shared.runtime.stage import work_dir

REFUSAL_FINISH = "refusal"  # our `finish` of a refusal; servers have no such value
EARLY_FINISH_REASONS = {
    "length": "cut off at max_completion_tokens",
    "content_filter": "caught by a filter",
    REFUSAL_FINISH: "refused by the model",
}


class ChatAnswer(BaseModel):
    """One answer as it is stored."""

    text: str
    finish: str | None  # why the model stopped: stop, length, content_filter, ...
    model: str | None
    tokens: int
    structured: bool
    received: int = 0  # part of tokens; 0 in answers that were stored before it was counted


class AnswerCache:
    """The answers under POLYMUSE_HOME, by `request_key`."""

    def __init__(self) -> None:
        self.store = Store(work_dir() / "store", "answers")

    def __contains__(self, key: str) -> bool:
        return not self.store.missing_keys([key])

    def read(self, key: str) -> ChatAnswer:
        (row,) = self.store.read([key])
        return ChatAnswer.model_validate_json(row)

    def write(self, answers: dict[str, ChatAnswer]) -> None:
        """Store answers by key, atomically. A key that already has an answer keeps it."""
        self.store.write(
            (key, answer.model_dump_json().encode()) for key, answer in answers.items()
        )


def request_key(body: dict[str, Any]) -> str:
    """The key of a request's answer in the cache."""
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


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
    return None, EARLY_FINISH_REASONS.get(answer.finish or "", failure)


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
