"""Questions to a language model behind an OpenAI-compatible server, answered as validated JSON.

Answers are stored under POLYMUSE_HOME by the sha256 of their request (model, messages, schema,
temperature and length, but not the server's address), so that no answer is paid for twice, even
after a kill. If an answer does not match the schema of its question, the question is asked again
together with the fault, up to `max_attempts` times. The answers of a question are stored once one
of them fits: a later run asks a failed question again.

    replies = ask_questions("judge", config, [Question(instruction, data, schema), ...])

| module of stages/shared/llm | job |
|---|---|
| scheduler.py | runs a limited number of questions at a time |
| answers.py | stores answers and finds the JSON object in them |
| budget.py | counts tokens and failures, and stops at their limits |
| completions.py | builds requests, parses responses, adapts to servers without JSON schemas |
| transport.py | sends one HTTP request and classifies its error |

stages/augment/batch_client.py asks the same questions through the Batch API.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from pydantic import BaseModel

from stages.shared.llm.answers import AnswerCache, ChatAnswer, parse_answer, request_key
from stages.shared.llm.budget import Budget
from stages.shared.llm.completions import CompletionClient, build_request
from stages.shared.llm.config import ChatConfig
from stages.shared.llm.scheduler import run_all
from stages.shared.llm.transport import ChatTransport, RequestFailed


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
    budget = Budget(section, config, len(unique), model_param or f"{section}.model")
    replies = asyncio.run(_ask_server(config, budget, unique))
    by_question = dict(zip(unique, replies, strict=True))
    return [by_question[question] for question in questions]


async def _ask_server(config: ChatConfig, budget: Budget, questions: list[Question]) -> list[Reply]:
    transport = ChatTransport(config, budget)
    try:
        completions = CompletionClient(transport, config.max_retries)
        return await ChatSession(config, budget, completions.complete).reply_all(questions)
    finally:
        await transport.close()


class ChatSession:
    """Replies to questions with stored answers and those of `complete`, within a budget.

    complete: request -> answer; raises RequestFailed if the next question may succeed.
    """

    def __init__(
        self,
        config: ChatConfig,
        budget: Budget,
        complete: Callable[[dict[str, Any]], Awaitable[ChatAnswer]],
    ):
        self.config, self.budget, self.complete = config, budget, complete
        self.cache = AnswerCache()

    async def reply_all(self, questions: list[Question]) -> list[Reply]:
        return await run_all(self.reply, questions, self.config.concurrency, self.budget.section)

    async def reply(self, question: Question) -> Reply:
        """Ask until an answer matches the schema, up to `max_attempts` times."""
        messages = [
            {"role": "system", "content": question.instruction},
            {"role": "user", "content": question.data},
        ]
        by_key: dict[str, ChatAnswer] = {}
        value, failure, is_temporary = None, "", False
        for _ in range(self.config.max_attempts):
            body = build_request(self.config, messages, question.schema)
            try:
                answer = by_key[request_key(body)] = await self._answer(body)
            except RequestFailed as error:
                failure, is_temporary = str(error), error.is_temporary
                break
            value, failure = parse_answer(answer, question.schema)
            if value is not None:  # not stored before: a server may be ill for a while
                self.cache.write(by_key)
                break
            messages += [
                {"role": "assistant", "content": answer.text or "(empty)"},
                {
                    "role": "user",
                    "content": f"That was no valid answer ({failure}). Answer again, "
                    "with the JSON object alone.",
                },
            ]
        self.budget.add_reply(failure, is_temporary)
        answers = list(by_key.values())
        return Reply(
            value,
            failure,
            sum(answer.tokens for answer in answers),
            sum(answer.received for answer in answers),
            sorted({answer.model for answer in answers if answer.model}),
            all(answer.structured for answer in answers),
        )

    async def _answer(self, body: dict[str, Any]) -> ChatAnswer:
        """The answer to a request, stored or requested. Raises RequestFailed, InputError."""
        key = request_key(body)
        if key in self.cache:
            answer = self.cache.read(key)
        else:
            self.budget.check_tokens()
            answer = await self.complete(body)
        self.budget.add_tokens(answer.tokens)
        return answer
