"""A local server with the download protocol of the Hugging Face Hub, and plain files beside it.

It serves folders as repositories: `GET /api/models/NAME[/revision/REVISION]` (siblings and commit),
`/api/models/NAME/tree/REVISION` (files with sizes and hashes), and `HEAD` and `GET
/NAME/resolve/REVISION/FILE` with ETag, X-Repo-Commit and Range. As on the Hub, weights are
redirected to another host (`/cdn/`), with their size and SHA-256 in X-Linked-Size and
X-Linked-Etag.
Sources: https://huggingface.co/docs/hub/api and `get_hf_file_metadata` of huggingface_hub.

`files` are served at their own path, after a redirect to another host, as by release pages.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE_FILE_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}  # stored with Git LFS


@dataclass
class Repository:
    """A folder that is served; gated: only after its license was accepted (status 401)."""

    folder: Path
    gated: bool = False

    def files(self) -> list[str]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in paths)

    def commit(self) -> str:
        """40 hexadecimal digits that change with the content."""
        digest = sha1(usedforsecurity=False)
        for name in self.files():
            digest.update(name.encode() + (self.folder / name).read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None  # of the header
    status: int


@dataclass
class HubState:
    """What the server holds and has been asked.

    cuts: path -> number of bytes after which its next response is cut, once.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # path, such as /lama.pt -> content
    cuts: dict[str, int] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def downloads(self, suffix: str) -> list[Request]:
        """The GET requests of paths with an ending, that were answered with content."""
        return [
            request
            for request in self.requests
            if request.method == "GET"
            and request.status in (200, 206)
            and request.path.endswith(suffix)
        ]


class ModelHub(ThreadingHTTPServer):
    """The server; `address` is the value of HF_ENDPOINT."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ModelHubHandler)
        self.state = HubState()
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.storage_address = f"http://localhost:{self.server_port}"  # another host to clients

    def add(self, name: str, folder: Path, gated: bool = False) -> None:
        self.state.repositories[name] = Repository(folder, gated)


class ModelHubHandler(BaseHTTPRequestHandler):
    server: ModelHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._send(404, {}, b"")

    def _answer(self) -> None:
        path, state = unquote(urlsplit(self.path).path), self.server.state
        if path in state.files:
            if self.headers["Host"].startswith("127."):  # release pages redirect to another host
                return self._send(302, {"Location": f"{self.server.storage_address}{path}"}, b"")
            return self._send_file(state.files[path], {})
        if path.startswith("/cdn/"):
            _, _, repository, name = path.split("/", 3)
            folder = state.repositories[repository.replace("--", "/")].folder
            return self._send_file((folder / name).read_bytes(), {})
        if match := re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+)(/.+)?)?", path):
            if repository := self._find(match[1]):
                if match[4]:  # a folder of the repository: none of ours is listed by itself
                    return self._send_error(404, "EntryNotFound", "Entry not found")
                content = self._tree if match[2] == "tree" else self._info
                self._send_json(content(match[1], repository))
            return None
        if match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            if repository := self._find(match[1]):
                self._resolve(match[1], repository, match[3])
            return None
        return self._send(404, {}, b"")

    def _find(self, name: str) -> Repository | None:
        """The repository, if it may be read; otherwise the error is sent."""
        repository = self.server.state.repositories.get(name)
        if repository is None:  # the Hub does not tell private from missing repositories
            self._send_error(401, "RepoNotFound", "Invalid username or password.")
        elif repository.gated:
            self._send_error(401, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        return repository

    def _info(self, name: str, repository: Repository) -> Any:
        siblings = [{"rfilename": file} for file in repository.files()]
        commit = repository.commit()
        return {"_id": commit[:24], "id": name, "sha": commit, "siblings": siblings, "tags": []}

    def _tree(self, name: str, repository: Repository) -> Any:
        return [_tree_entry(repository.folder / file, file) for file in repository.files()]

    def _resolve(self, name: str, repository: Repository, file: str) -> None:
        path, headers = repository.folder / file, {"X-Repo-Commit": repository.commit()}
        if file not in repository.files():
            return self._send_error(404, "EntryNotFound", "Entry not found", headers)
        entry = _tree_entry(path, file)
        if "lfs" not in entry:
            return self._send_file(path.read_bytes(), headers | {"ETag": f'"{entry["oid"]}"'})
        headers |= {
            "X-Linked-Size": str(entry["size"]),
            "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"',
            "Location": f"{self.server.storage_address}/cdn/{name.replace('/', '--')}/{file}",
        }
        return self._send(302, headers, b"")

    def _send_file(self, content: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        headers = headers | {"Accept-Ranges": "bytes"}
        if not match:
            return self._send(200, headers, content)
        start, size = int(match[1]), len(content)
        if start >= size:
            return self._send(416, headers | {"Content-Range": f"bytes */{size}"}, b"")
        headers |= {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        return self._send(206, headers, content[start:])

    def _send_json(self, content: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _send_error(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        errors = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, (headers or {}) | errors, json.dumps({"error": message}).encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        state = self.server.state
        with state.lock:
            request = Request(self.command, self.path, self.headers.get("Range"), status)
            state.requests.append(request)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if status in (200, 206) and self.path in state.cuts:
            content = content[: state.cuts.pop(self.path)]
            self.close_connection = True
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _tree_entry(path: Path, name: str) -> dict[str, Any]:
    """A file as the tree API lists it: its Git blob hash, and the SHA-256 of large files."""
    content = path.read_bytes()
    blob = sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
    if path.suffix in LARGE_FILE_SUFFIXES:
        entry["lfs"] = {
            "oid": sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 134,
        }
    return entry


@contextmanager
def serve_models() -> Iterator[ModelHub]:
    """A running server, which stops at the end of the block."""
    with ModelHub() as hub:
        Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        hub.shutdown()
