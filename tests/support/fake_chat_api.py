"""A local server with the chat completions API; the test supplies its answers."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

API_KEY = "sk-secret-of-the-tests"  # no file may contain it
TOKENS_PER_ANSWER = 100  # the reported usage of each answer


class FakeChatServer(ThreadingHTTPServer):
    """Records requests. `answer(body, number)` returns the content of the answer to a request.

    number: of the request, from 0. `answer` may also return (status, headers, body).
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[dict, int], Any]):
        super().__init__(("127.0.0.1", 0), FakeChatHandler)
        self.answer, self.lock = answer, Lock()
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.times: list[float] = []
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"


class FakeChatHandler(BaseHTTPRequestHandler):
    server: FakeChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(body)
            names = {name.lower(): value for name, value in self.headers.items()}
            self.server.headers.append(names)
            self.server.times.append(time.monotonic())
        answer = self.server.answer(body, number)
        status, headers, content = (
            answer if isinstance(answer, tuple) else (200, {}, chat_completion(answer))
        )
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        defaults = {"Content-Type": "application/json", "Content-Length": str(len(raw))}
        for name, value in (defaults | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


def chat_completion(content: str | None, finish: str = "stop", usage: bool = True) -> dict:
    """A chat completion object of the API."""
    message = {"role": "assistant", "content": content}
    completion = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "judge-2026",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
    }
    usage_fields = {
        "prompt_tokens": TOKENS_PER_ANSWER - 10,
        "completion_tokens": 10,
        "total_tokens": TOKENS_PER_ANSWER,
    }
    return completion | ({"usage": usage_fields} if usage else {})


def error_response(status: int, message: str, code: str | None = None, **headers: str) -> tuple:
    """(status, headers, body) of an error; underscores in header names become hyphens."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, names, {"error": {"message": message, "type": "error", "code": code}}


@contextmanager
def serve_chat(answer: Callable[[dict, int], Any]) -> Iterator[FakeChatServer]:
    """A running server, which stops at the end of the block."""
    with FakeChatServer(answer) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
