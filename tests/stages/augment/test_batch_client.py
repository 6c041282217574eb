"""The Batch API on this machine: paid once, whenever the process that asks is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from pydantic import BaseModel, ConfigDict, Field

from stages.augment import batch_client
from stages.augment.batch_client import BatchRequestConfig
from stages.shared.llm import client as llm_client
from stages.shared.llm.client import ChatConfig, Question
from stages.shared.runtime.stage import InputError, work_dir
from tests.shared.llm.test_llm_client import asked
from tests.support.fake_batch_api import FakeBatchServer, start_server
from tests.support.fake_chat_api import API_KEY, TOKENS_PER_ANSWER, chat_completion, error_response

SETTINGS = ChatConfig(
    model="writer",
    temperature=0.7,
    max_completion_tokens=50,
    concurrency=2,
    max_retries=0,
    timeout=5.0,
    max_attempts=3,
    max_total_tokens=10**6,
    max_failed_fraction=1.0,
)
NUMBERS = BatchRequestConfig(max_requests=100, poll_interval=0.01)
NAMED_BY = "augment.backend"


class Score(BaseModel):
    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})
    score: int = Field(ge=1, le=10)


GOOD = '{"score": 7}'


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """serve(answer): a server behind OPENAI_BASE_URL; a store of the test's own."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", API_KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def begin(answer) -> FakeBatchServer:
        servers.append(FakeBatchServer(answer))
        start_server(servers[-1])
        monkeypatch.setenv("OPENAI_BASE_URL", servers[-1].base_url)
        return servers[-1]

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def questions(*texts: str) -> list[Question]:
    return [Question("Score it.", llm_client.quote_data(text=text), Score) for text in texts]


def ask(*texts: str, numbers: BatchRequestConfig = NUMBERS, **changes):
    return batch_client.ask_questions(
        "s", replace(SETTINGS, **changes), numbers, questions(*texts), NAMED_BY
    )


def fault(*texts: str, **changes) -> str:
    with pytest.raises(InputError) as wrong:
        ask(*texts, **changes)
    assert API_KEY not in str(wrong.value) and "\n" not in str(wrong.value)
    return str(wrong.value)


def test_one_batch_answers_all_questions_in_their_order(serve):
    server = serve(lambda body, _: f'{{"score": {asked(body)}}}')
    replies = ask("3", "1", "2", "1")
    assert [reply.value.score for reply in replies] == [3, 1, 2, 1]
    assert len(server.batches) == 1 and len(server.requests) == 3
    assert {(r.failure, r.total_tokens, r.completion_tokens) for r in replies} == {
        ("", TOKENS_PER_ANSWER, 10)
    }
    assert not list((work_dir() / "batches").iterdir())


def test_a_batch_asks_what_a_request_asks_so_that_each_has_the_others_answers(serve, monkeypatch):
    serve(lambda *_: GOOD)
    first = ask("a", "b")
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert llm_client.ask_questions("s", SETTINGS, questions("a", "b"), NAMED_BY) == first
    assert ask("a", "b") == first


def test_what_does_not_fit_is_asked_again_in_another_batch(serve):
    def stubborn(body, _):
        attempts = len(body["messages"]) // 2  # 1, 2, 3
        return GOOD if asked(body) == "a" or attempts == 3 else "Seven!"

    server = serve(stubborn)
    replies = ask("a", "b")
    assert [(r.value.score, r.total_tokens) for r in replies] == [
        (7, TOKENS_PER_ANSWER),
        (7, 3 * TOKENS_PER_ANSWER),
    ]
    assert [len(server.uploads[b["input_file_id"]]) for b in server.batches.values()] == [2, 1, 1]


def test_what_a_batch_has_no_answer_to_has_failed_and_is_asked_by_the_next_run(serve):
    faults = {
        "refused": error_response(400, "too long"),
        "left": None,
        "other": (200, {}, {"choices": []}),
    }
    server = serve(lambda body, _: faults.get(asked(body), GOOD))
    server.final_status = "expired"
    replies = ask("good", *faults)
    assert [reply.failure for reply in replies] == [
        "",
        "HTTP 400",
        "batch_expired",
        "no chat completion",
    ]
    server.answer = lambda *_: GOOD
    assert [reply.failure for reply in ask("good", *faults)] == [""] * 4
    assert sorted(asked(body) for body in server.requests) == sorted([*faults, "good", *faults])


def test_too_many_failures_are_one_sentence(serve):
    serve(lambda *_: None)
    assert "2 of 2 questions to writer failed, 2 of them with: batch_expired" in fault(
        "a", "b", max_failed_fraction=0.5
    ) or "1 of 2" in fault("a", "b", max_failed_fraction=0.2)


def test_no_batch_is_larger_than_asked(serve):
    server = serve(lambda *_: GOOD)
    ask(*map(str, range(7)), numbers=replace(NUMBERS, max_requests=3))
    assert [len(lines) for lines in server.uploads.values()] == [3, 3, 1]


def test_a_batch_never_goes_beyond_the_ceiling(serve):
    """A request here has about 400 bytes, each a token at most, and 50 tokens of answer."""
    server = serve(lambda *_: GOOD)
    texts = [*map(str, range(20))]
    found = fault(*texts, max_total_tokens=1500)
    assert found.startswith("params.yaml: s.max_total_tokens is 1500, and ")
    paid = TOKENS_PER_ANSWER * len(server.requests)
    assert 0 < paid <= 1500
    assert len(ask(*texts)) == 20
    assert len(server.requests) == 20


ASKER = """
import json, sys
from tests.stages.augment.test_batch_client import NUMBERS, SETTINGS, batch_client, questions, NAMED_BY
texts = questions(*map(str, range(int(sys.argv[1]))))
print(len(batch_client.ask_questions("s", SETTINGS, NUMBERS, texts, NAMED_BY)))
"""


def killed_at(call: str, server: FakeBatchServer) -> None:
    """Run ASKER and kill it once the server has had this call, before it answers."""
    server.calls.clear()
    server.reject = lambda now: time.sleep(60) if now.startswith(call) else None
    process = subprocess.Popen([sys.executable, "-c", ASKER, "5"], cwd=os.getcwd())
    while not any(now.startswith(call) for now in server.calls):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.reject = lambda now: None


def test_a_kill_while_a_batch_is_under_way_pays_nothing_twice(serve):
    server = serve(lambda *_: GOOD)
    killed_at("GET /v1/batches/", server)
    assert len(server.batches) == 1
    # More questions than before: those under way are not sent again.
    assert [reply.value.score for reply in ask(*map(str, range(7)))] == [7] * 7
    assert sorted(asked(body) for body in server.requests) == sorted(map(str, range(7)))
    assert len(server.batches) == 2


def test_a_kill_while_answers_are_fetched_pays_nothing_twice(serve):
    server = serve(lambda *_: GOOD)
    killed_at("GET /v1/files/", server)
    assert len(ask(*map(str, range(5)))) == 5
    assert len(server.batches) == 1 and len(server.requests) == 5


def test_a_kill_between_the_batch_and_its_file_pays_nothing_twice(serve):
    """The server has made the batch, and whoever asked never heard of it."""
    server = serve(lambda *_: GOOD)
    killed_at("POST /v1/batches", server)
    (file,) = (work_dir() / "batches").glob("*.json")
    sent = json.loads(file.read_text())
    assert sent["batch"] is None and server.batches == {}
    server.batches["made"] = {
        "id": "made",
        "object": "batch",
        "status": "in_progress",
        "looks": 0,
        "input_file_id": sent["file"],
    }
    assert len(ask(*map(str, range(5)))) == 5
    assert list(server.batches) == ["made"]


def test_a_kill_before_the_batch_makes_it_of_what_was_uploaded(serve):
    server = serve(lambda *_: GOOD)
    killed_at("POST /v1/batches", server)
    assert len(ask(*map(str, range(5)))) == 5
    assert len(server.batches) == len(server.uploads) == 1


def test_a_batch_that_the_server_refuses_is_one_sentence_and_forgotten(serve):
    server = serve(lambda *_: GOOD)
    server.final_status = "failed"
    found = fault("a")
    assert found.startswith("params.yaml: augment.backend: the server refused a batch (")
    server.final_status = "completed"
    assert ask("a")[0].value.score == 7


@pytest.mark.parametrize("call", ["POST /v1/files", "POST /v1/batches", "GET /v1/batches/batch-0"])
def test_a_key_that_is_not_taken_or_a_server_without_batches_is_one_sentence(serve, call):
    server = serve(lambda *_: GOOD)
    server.reject = lambda now: refused_as(401, now, call)
    assert fault("a") == "OPENAI_API_KEY: the server does not take it (HTTP 401): give a valid one"
    server.reject = lambda now: refused_as(404, now, call)
    assert "the server refused a batch (HTTP 404: no such thing)" in fault("a")
    server.reject = lambda now: None
    assert ask("a")[0].value.score == 7
    assert len(server.batches) == 1


def refused_as(status: int, now: str, call: str) -> tuple | None:
    if now != call:
        return None
    return status, {}, {"error": {"message": f"no such {'thing' if status == 404 else API_KEY}"}}


def test_an_address_where_nothing_answers_is_one_sentence(serve, monkeypatch):
    serve(lambda *_: GOOD)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert fault("a").startswith("OPENAI_BASE_URL: nothing answers there")


def test_broken_lines_of_an_output_are_no_answers(serve):
    server = serve(lambda *_: (200, {}, chat_completion(GOOD)))
    work = server.process_batch

    def broken(batch):
        work(batch)
        name = batch["output_file_id"]
        server.contents[name] = "[1]\nnot JSON\n" + server.contents[name][:-30]

    server.process_batch = broken
    assert ask("a")[0].failure == "batch completed"


def test_neither_files_nor_lines_hold_the_key_or_the_address(serve, tmp_path, capsys):
    server = serve(lambda *_: GOOD)
    server.polls_until_done = 3
    server.final_status = "failed"
    fault("a")
    killed_at("GET /v1/batches/", server)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.parent.name == "batches" for path in files)
    shown = capsys.readouterr()
    for secret in (API_KEY, f":{server.server_port}"):
        assert secret not in shown.err + shown.out
        assert not any(secret.encode() in path.read_bytes() for path in files)
