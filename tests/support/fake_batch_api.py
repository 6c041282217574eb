"""A local server with the Batch API and its files; the test supplies its answers."""

import json
import re
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

from tests.support.fake_chat_api import FakeChatHandler, chat_completion


class FakeBatchServer(ThreadingHTTPServer):
    """`answer(body, number)` as in FakeChatServer, for the requests of a batch; None: no answer.

    polls_until_done: status checks of a batch before it ends. final_status: its status then.
    reject(call): (status, headers, body) of the response to a call such as "POST /v1/files", or
    None to handle it.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[dict, int], Any]):
        super().__init__(("127.0.0.1", 0), FakeBatchHandler)
        self.answer, self.lock = answer, Lock()
        self.polls_until_done, self.final_status = 1, "completed"
        self.uploads: dict[str, list[dict]] = {}
        self.batches: dict[str, dict] = {}
        self.contents: dict[str, str] = {}
        self.calls: list[str] = []
        self.reject: Callable[[str], tuple | None] = lambda call: None
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def requests(self) -> list[dict]:
        """The requests of all created batches."""
        return [
            line["body"]
            for batch in self.batches.values()
            for line in self.uploads[batch["input_file_id"]]
        ]

    def process_batch(self, batch: dict) -> None:
        """Answer a batch; failed requests go to its error file."""
        lines = {"output": [], "error": []}
        for number, line in enumerate(self.uploads[batch["input_file_id"]]):
            answer = self.answer(line["body"], number)
            if answer is None:  # not processed, as in an expired batch
                lines["error"].append(
                    {"custom_id": line["custom_id"], "error": {"code": "batch_expired"}}
                )
                continue
            status, _, body = (
                answer if isinstance(answer, tuple) else (200, {}, chat_completion(answer))
            )
            row = {
                "custom_id": line["custom_id"],
                "response": {"status_code": status, "body": body},
            }
            lines["output" if status == 200 else "error"].append(row)
        for kind, rows in lines.items():
            if rows:
                name = f"file-{kind}-{batch['id']}"
                self.contents[name] = "".join(f"{json.dumps(row)}\n" for row in reversed(rows))
                batch[f"{kind}_file_id"] = name


class FakeBatchHandler(FakeChatHandler):
    server: FakeBatchServer

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if rejection := self._record_call(f"POST {path}"):
            return self._send_response(*rejection)
        with self.server.lock:
            if path == "/v1/files":
                return self._upload(content)
            if path == "/v1/batches":
                return self._create(json.loads(content))
        return self._send_response(404, {}, {"error": {"message": f"no {path}"}})

    def _upload(self, content: bytes) -> None:
        assert b'name="purpose"' in content and b"batch" in content
        lines = re.findall(rb'^\{"custom_id.*$', content, re.MULTILINE)
        name = f"file-{len(self.server.uploads)}"
        self.server.uploads[name] = [json.loads(line) for line in lines]
        self._send_response(200, {}, {"id": name, "object": "file", "purpose": "batch"})

    def _create(self, body: dict) -> None:
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        name = f"batch-{len(self.server.batches)}"
        batch = {"id": name, "object": "batch", "status": "in_progress", "polls": 0} | body
        self.server.batches[name] = batch
        self._send_response(200, {}, batch)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if rejection := self._record_call(f"GET {path}"):
            return self._send_response(*rejection)
        *_, kind, name = path.removesuffix("/content").split("/")
        with self.server.lock:
            if name == "batches":
                rows = list(self.server.batches.values())
                return self._send_response(
                    200, {}, {"object": "list", "data": rows, "has_more": False}
                )
            if kind == "files":
                return self._send_response(200, {}, self.server.contents[name].encode())
            if name not in self.server.batches:
                return self._send_response(404, {}, {"error": {"message": f"no batch {name}"}})
            batch = self.server.batches[name]
            batch["polls"] += 1
            if batch["status"] == "in_progress" and batch["polls"] > self.server.polls_until_done:
                batch["status"] = self.server.final_status
                self.server.process_batch(batch)
        return self._send_response(200, {}, batch)

    def _record_call(self, call: str) -> tuple | None:
        with self.server.lock:
            self.server.calls.append(call)
        return self.server.reject(call)

    def _send_response(self, status: int, headers: dict, content: Any) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def start_server(server: FakeBatchServer) -> None:
    """Serve in a daemon thread."""
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
