"""A local server with the Batch API: requests are paid for once, even if a run is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from stages.augment import batch_client
from stages.augment.batch_client import BatchRequestConfig
from stages.shared.llm import client as llm_client
from stages.shared.llm.client import Question
from stages.shared.llm.config import ChatConfig
from stages.shared.runtime.stage import InputError, work_dir
from tests.shared.llm.test_llm_client import GOOD, Score, question_text
from tests.support.fake_batch_api import FakeBatchServer, start_server
from tests.support.fake_chat_api import API_KEY, TOKENS_PER_ANSWER, chat_completion, error_response

CHAT_CONFIG = ChatConfig(
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
BATCH_CONFIG = BatchRequestConfig(max_requests=100, poll_interval=0.01)
MODEL_PARAM = "augment.backend"


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """serve(answer): a server behind OPENAI_BASE_URL, with a work folder for the test."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", API_KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(answer) -> FakeBatchServer:
        servers.append(FakeBatchServer(answer))
        start_server(servers[-1])
        monkeypatch.setenv("OPENAI_BASE_URL", servers[-1].base_url)
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def questions(*texts: str) -> list[Question]:
    return [Question("Score it.", llm_client.quote_data(text=text), Score) for text in texts]


def ask(*texts: str, batch_config: BatchRequestConfig = BATCH_CONFIG, **changes):
    return batch_client.ask_questions(
        "s", replace(CHAT_CONFIG, **changes), batch_config, questions(*texts), MODEL_PARAM
    )


def error_message(*texts: str, **changes) -> str:
    with pytest.raises(InputError) as error:
        ask(*texts, **changes)
    assert API_KEY not in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_one_batch_answers_all_questions_in_order(serve):
    server = serve(lambda body, _: f'{{"score": {question_text(body)}}}')
    replies = ask("3", "1", "2", "1")
    assert [reply.value.score for reply in replies] == [3, 1, 2, 1]
    assert len(server.batches) == 1 and len(server.requests) == 3
    assert {(r.failure, r.total_tokens, r.completion_tokens) for r in replies} == {
        ("", TOKENS_PER_ANSWER, 10)
    }
    assert not list((work_dir() / "batches").iterdir())


def test_batches_and_direct_requests_share_stored_answers(serve, monkeypatch):
    serve(lambda *_: GOOD)
    first = ask("a", "b")
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert llm_client.ask_questions("s", CHAT_CONFIG, questions("a", "b"), MODEL_PARAM) == first
    assert ask("a", "b") == first


def test_invalid_answers_are_requested_again_in_another_batch(serve):
    def answer_third_attempt(body, _):
        attempts = len(body["messages"]) // 2  # 1, 2, 3
        return GOOD if question_text(body) == "a" or attempts == 3 else "Seven!"

    server = serve(answer_third_attempt)
    replies = ask("a", "b")
    assert [(r.value.score, r.total_tokens) for r in replies] == [
        (7, TOKENS_PER_ANSWER),
        (7, 3 * TOKENS_PER_ANSWER),
    ]
    assert [len(server.uploads[b["input_file_id"]]) for b in server.batches.values()] == [2, 1, 1]


def test_requests_that_a_batch_does_not_answer_fail_and_are_sent_by_the_next_run(serve):
    faults = {
        "refused": error_response(400, "too long"),
        "left": None,
        "other": (200, {}, {"choices": []}),
    }
    server = serve(lambda body, _: faults.get(question_text(body), GOOD))
    server.final_status = "expired"
    replies = ask("good", *faults)
    assert [reply.failure for reply in replies] == [
        "",
        "HTTP 400",
        "batch_expired",
        "caught by a filter",
    ]
    server.answer = lambda *_: GOOD
    assert [reply.failure for reply in ask("good", *faults)] == [""] * 4
    assert sorted(question_text(body) for body in server.requests) == sorted(
        [*faults, "good", *faults]
    )


def test_answers_that_do_not_fit_are_not_stored(serve):
    server = serve(lambda *_: "Sorry, we are overloaded.")
    assert ask("a")[0].value is None and not list((work_dir() / "batches").glob("*.json"))
    assert error_message("a", max_failed_fraction=0.0).startswith("params.yaml: augment.backend")
    server.answer = lambda *_: GOOD
    assert ask("a")[0].value.score == 7


def test_too_many_failures_are_reported(serve):
    serve(lambda *_: None)
    assert "2 of 2 questions to writer failed, 2 of them with: batch_expired" in error_message(
        "a", "b", max_failed_fraction=0.5
    ) or "1 of 2" in error_message("a", "b", max_failed_fraction=0.2)


def test_no_batch_is_larger_than_max_requests(serve):
    server = serve(lambda *_: GOOD)
    ask(*map(str, range(7)), batch_config=replace(BATCH_CONFIG, max_requests=3))
    assert [len(lines) for lines in server.uploads.values()] == [3, 3, 1]


def test_a_batch_never_exceeds_the_token_limit(serve):
    """A request has about 400 bytes, at most one token each, and an answer at most 50 tokens."""
    server = serve(lambda *_: GOOD)
    texts = [*map(str, range(20))]
    message = error_message(*texts, max_total_tokens=1500)
    assert message.startswith("params.yaml: s.max_total_tokens is 1500, and ")
    assert 0 < TOKENS_PER_ANSWER * len(server.requests) <= 1500
    assert len(ask(*texts)) == 20
    assert len(server.requests) == 20


ASK_QUESTIONS = """
import json, sys
from tests.stages.augment.test_batch_client import ask
print(len(ask(*map(str, range(int(sys.argv[1]))))))
"""


def kill_at(call: str, server: FakeBatchServer) -> None:
    """Run ASK_QUESTIONS and kill it when the server has received a call, before it responds."""
    server.calls.clear()
    server.reject = lambda received: time.sleep(60) if received.startswith(call) else None
    process = subprocess.Popen([sys.executable, "-c", ASK_QUESTIONS, "5"], cwd=os.getcwd())
    while not any(received.startswith(call) for received in server.calls):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.reject = lambda received: None


def test_a_kill_while_a_batch_is_processed_pays_nothing_twice(serve):
    server = serve(lambda *_: GOOD)
    kill_at("GET /v1/batches/", server)
    assert len(server.batches) == 1
    # More questions than before: the submitted ones are not sent again.
    assert [reply.value.score for reply in ask(*map(str, range(7)))] == [7] * 7
    assert sorted(question_text(body) for body in server.requests) == sorted(map(str, range(7)))
    assert len(server.batches) == 2


def test_a_kill_while_answers_are_downloaded_pays_nothing_twice(serve):
    server = serve(lambda *_: GOOD)
    kill_at("GET /v1/files/", server)
    assert len(ask(*map(str, range(5)))) == 5
    assert len(server.batches) == 1 and len(server.requests) == 5


def test_a_kill_before_the_id_of_a_batch_is_saved_pays_nothing_twice(serve):
    """The server has created the batch, but the run was killed before the response."""
    server = serve(lambda *_: GOOD)
    kill_at("POST /v1/batches", server)
    (file,) = (work_dir() / "batches").glob("*.json")
    submitted = json.loads(file.read_text())
    assert submitted["batch"] is None and server.batches == {}
    server.batches["created"] = {
        "id": "created",
        "object": "batch",
        "status": "in_progress",
        "polls": 0,
        "input_file_id": submitted["file"],
    }
    assert len(ask(*map(str, range(5)))) == 5
    assert list(server.batches) == ["created"]


def test_after_a_kill_before_the_batch_it_is_created_from_the_uploaded_file(serve):
    server = serve(lambda *_: GOOD)
    kill_at("POST /v1/batches", server)
    assert len(ask(*map(str, range(5)))) == 5
    assert len(server.batches) == len(server.uploads) == 1


def test_a_batch_that_the_server_refuses_is_reported_and_deleted(serve):
    server = serve(lambda *_: GOOD)
    server.final_status = "failed"
    message = error_message("a")
    assert message.startswith("params.yaml: augment.backend: the server refused a batch (")
    server.final_status = "completed"
    assert ask("a")[0].value.score == 7


@pytest.mark.parametrize("call", ["POST /v1/files", "POST /v1/batches", "GET /v1/batches/batch-0"])
def test_a_rejected_key_and_a_server_without_batches_are_reported(serve, call):
    server = serve(lambda *_: GOOD)
    server.reject = lambda received: rejection(401, received, call)
    assert (
        error_message("a") == "OPENAI_API_KEY: the server rejects it (HTTP 401): give a valid one"
    )
    server.reject = lambda received: rejection(404, received, call)
    assert "the server refused a batch (HTTP 404: no such thing)" in error_message("a")
    server.reject = lambda received: None
    assert ask("a")[0].value.score == 7
    assert len(server.batches) == 1


def rejection(status: int, received: str, call: str) -> tuple | None:
    if received != call:
        return None
    return status, {}, {"error": {"message": f"no such {'thing' if status == 404 else API_KEY}"}}


def test_an_address_without_a_server_is_reported(serve, monkeypatch):
    serve(lambda *_: GOOD)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert error_message("a").startswith("OPENAI_BASE_URL: no server responds")


def test_invalid_lines_of_an_output_file_are_skipped(serve):
    server = serve(lambda *_: (200, {}, chat_completion(GOOD)))
    process_batch = server.process_batch

    def process_and_damage(batch):
        process_batch(batch)
        name = batch["output_file_id"]
        server.contents[name] = "[1]\nnot JSON\n" + server.contents[name][:-30]

    server.process_batch = process_and_damage
    assert ask("a")[0].failure == "batch completed"


def test_no_file_and_no_output_contains_the_key_or_the_address(serve, tmp_path, capsys):
    server = serve(lambda *_: GOOD)
    server.polls_until_done = 3
    server.final_status = "failed"
    error_message("a")
    kill_at("GET /v1/batches/", server)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.parent.name == "batches" for path in files)
    captured = capsys.readouterr()
    for secret in (API_KEY, f":{server.server_port}"):
        assert secret not in captured.err + captured.out
        assert not any(secret.encode() in path.read_bytes() for path in files)
