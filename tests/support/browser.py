"""Headless Chromium, driven over the Chrome DevTools Protocol.

with open_page(address, width=390) as page:
    page.evaluate("document.title")
"""

import json
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import connect
from websockets.sync.connection import Connection

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = [
    "--headless=new",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-port=0",
]
START_SECONDS, WAIT_SECONDS, POLL_SECONDS = 60, 120, 0.1


class Page:
    """A tab. console: the texts of console errors, exceptions and failed loads so far."""

    def __init__(self, connection: Connection):
        self.connection, self.last_id = connection, 0
        self.console: list[str] = []

    def call(self, method: str, **params: Any) -> dict:
        """The result of a command; events that arrive before it are recorded."""
        self.last_id += 1
        self.connection.send(json.dumps({"id": self.last_id, "method": method, "params": params}))
        while (message := json.loads(self.connection.recv(WAIT_SECONDS))).get("id") != self.last_id:
            self._record(message)
        assert "error" not in message, message
        return message["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(POLL_SECONDS)

    def press(self, key: str) -> None:
        """Press and release a key, named as in KeyboardEvent.key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def choose_files(self, selector: str, files: list[Path]) -> None:
        """Choose the files of an <input type=file>."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=list(map(str, files)))

    def take_screenshot(self) -> bytes:
        """The whole page as PNG."""
        return b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _record(self, message: dict) -> None:
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif message["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.console.append(json.dumps(params["args"]))
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.console.append(params["entry"]["text"])


@contextmanager
def open_page(
    address: str, width: int, height: int = 900, color_scheme: str = "light"
) -> Iterator[Page]:
    """A loaded page in a new browser. width, height: of the viewport, CSS pixels."""
    with (
        TemporaryDirectory(prefix="polymuse-chromium-", ignore_cleanup_errors=True) as profile,
        _start_chromium(Path(profile)) as port,
    ):
        tabs = json.load(urlopen(f"http://127.0.0.1:{port}/json"))
        url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        with connect(url, max_size=None, proxy=None) as connection:
            page = Page(connection)
            for domain in ("Page", "Runtime", "Log", "DOM"):
                page.call(f"{domain}.enable")
            page.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=False,
            )
            page.call("Emulation.setScrollbarsHidden", hidden=True)
            features = [{"name": "prefers-color-scheme", "value": color_scheme}]
            page.call("Emulation.setEmulatedMedia", features=features)
            page.call("Page.navigate", url=address)
            page.wait_until(
                f"document.readyState === 'complete' && location.href.startsWith('{address}')"
            )
            yield page


@contextmanager
def _start_chromium(profile: Path) -> Iterator[int]:
    """The debugging port of a new browser with this profile folder."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        file, deadline = profile / "DevToolsActivePort", time.monotonic() + START_SECONDS
        while not file.exists() or not file.read_text().strip():
            assert process.poll() is None and time.monotonic() < deadline, "chromium did not start"
            time.sleep(POLL_SECONDS)
        yield int(file.read_text().split()[0])
    finally:
        process.terminate()
        process.wait(START_SECONDS)
