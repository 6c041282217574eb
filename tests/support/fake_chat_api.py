"""A server on this machine that speaks the chat completions API and answers as a test says."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

API_KEY = "sk-secret-of-the-tests"  # no file may hold it
TOKENS_PER_ANSWER = 100  # that each answer is said to have used


class FakeChatServer(ThreadingHTTPServer):
    """`answer(body, number)` gives the content of the number-th request, from 0, or a (status,
    headers, body) of its own."""

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
        given = self.server.answer(body, number)
        status, headers, content = (
            given if isinstance(given, tuple) else (200, {}, chat_completion(given))
        )
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        always = {"Content-Type": "application/json", "Content-Length": str(len(raw))}
        for name, value in (always | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


def chat_completion(content: str | None, finish: str = "stop", usage: bool = True) -> dict:
    """A chat completion."""
    message = {"role": "assistant", "content": content}
    completion = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "judge-2026",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
    }
    used = {
        "prompt_tokens": TOKENS_PER_ANSWER - 10,
        "completion_tokens": 10,
        "total_tokens": TOKENS_PER_ANSWER,
    }
    return completion | ({"usage": used} if usage else {})


def error_response(status: int, message: str, code: str | None = None, **headers: str) -> tuple:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, names, {"error": {"message": message, "type": "error", "code": code}}


@contextmanager
def serve_chat(answer: Callable[[dict, int], Any]) -> Iterator[FakeChatServer]:
    with FakeChatServer(answer) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
