"""The HTTP server of the page.

GET  /                     the page, with a form for each model
GET  /report.css, /page.css, /page.js
GET  /models/N/examples    inputs of the test split for model N, JSON
POST /models/N             a DemoRequest; the answer is one JSON object a line: any number of
                           {"status": sentence}, then {"html": ..., "article": ...} or
                           {"error": sentence}

It is meant for the loopback interface. A request must name a loopback host, so that a site whose
name an attacker points here cannot read answers (DNS rebinding); a POST must not come from another
origin. Uploads are never served back: the page gets HTML whose values are escaped and images that
were decoded and encoded again.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.demo.examples import load_examples
from pipelines.demo.models import (
    PROCESSING,
    REPORT_TEMPLATES,
    TEMPLATES,
    DemoModel,
    DemoRequest,
    Log,
    render,
)
from pipelines.demo.sources import list_training_commands
from pipelines.results_table import MODELS, TASKS
from stages.datasets.common.files import describe_validation_error
from stages.shared.runtime.errors import describe_error

LOOPBACK_HOSTS = ["127.0.0.1", "localhost"]
DATA_DIR = Path("data")
STATIC_FILES = {
    "report.css": REPORT_TEMPLATES / "page.css",
    "page.css": TEMPLATES / "page.css",
    "page.js": TEMPLATES / "page.js",
}
# Shares of attention are style attributes; values in them are numbers.
SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class SecurityHeadersMiddleware:
    """Adds SECURITY_HEADERS to every response."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(k.lower().encode(), v.encode()) for k, v in SECURITY_HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def create_app(models: list[DemoModel], max_request_bytes: int) -> Starlette:
    """The page of these models."""
    endpoints = Endpoints(models, max_request_bytes)
    return Starlette(
        routes=[
            Route("/", endpoints.show_page),
            Route("/models/{number:int}/examples", endpoints.list_examples),
            Route("/models/{number:int}", endpoints.answer, methods=["POST"]),
            Route("/{name}", endpoints.send_file),
        ],
        middleware=[
            Middleware(SecurityHeadersMiddleware),
            Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_HOSTS, www_redirect=False),
        ],
        exception_handlers={HTTPException: send_error},
    )


class Endpoints:
    def __init__(self, models: list[DemoModel], max_request_bytes: int):
        self.models, self.max_request_bytes = models, max_request_bytes

    async def show_page(self, _: Request) -> Response:
        page = render(
            "page.html",
            models=self.models,
            papers=MODELS,
            tasks=TASKS,
            training_commands=list_training_commands(),
            max_request_bytes=self.max_request_bytes,
        )
        return HTMLResponse(page)

    async def send_file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC_FILES:
            raise HTTPException(404, "there is no such page")
        return FileResponse(STATIC_FILES[name])

    async def list_examples(self, request: Request) -> Response:
        model = self.find_model(request)
        corpus, kind = model.source.corpus, model.source.kind
        if corpus is None:
            return JSONResponse([])
        count = model.settings.demo.num_examples
        return JSONResponse(await run_in_threadpool(load_examples, DATA_DIR, corpus, kind, count))

    async def answer(self, request: Request) -> Response:
        check_origin(request)
        model = self.find_model(request)
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise HTTPException(415, "the request is not application/json")
        body = await self.read_body(request)
        try:
            demo_request = DemoRequest.model_validate_json(body)
        except ValidationError as error:
            raise HTTPException(400, f"the request is {describe_validation_error(error)}") from None
        events = stream_events(lambda log: vars(model.answer(demo_request, log)))
        return StreamingResponse(events, media_type="application/x-ndjson")

    def find_model(self, request: Request) -> DemoModel:
        number = request.path_params["number"]
        if number >= len(self.models):
            raise HTTPException(404, "there is no such model")
        return self.models[number]

    async def read_body(self, request: Request) -> bytes:
        """The body, read until it exceeds the limit."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.max_request_bytes:
                raise HTTPException(
                    413,
                    f"the request has more than {self.max_request_bytes // 2**20} MB "
                    "(cli_demo.max_request_megabytes): give fewer or smaller images",
                )
        return bytes(body)


def check_origin(request: Request) -> None:
    """Raises HTTPException for a request that another site makes. Programs send no origin."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers["host"]:
        raise HTTPException(403, "the request comes from another site")


async def send_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def stream_events(work: Callable[[Log], dict]) -> AsyncIterator[str]:
    """Do the work in a thread, one request after the other; the events as lines.

    Work that waits for another request is dropped if its client disconnects.
    """
    loop, disconnected = asyncio.get_running_loop(), Event()
    events: asyncio.Queue[dict] = asyncio.Queue()

    def put(event: dict) -> None:
        if not disconnected.is_set():
            loop.call_soon_threadsafe(events.put_nowait, event)

    def log(sentence: str) -> None:
        put({"status": sentence})

    def process() -> None:
        if PROCESSING.locked():
            log("Waiting for another request")
        with PROCESSING:
            try:
                result = {} if disconnected.is_set() else work(log)
            except Exception as error:
                result = {"error": describe_error(error)}
        put(result)

    Thread(target=process, daemon=True).start()
    try:
        while "status" in (event := await events.get()):
            yield f"{json.dumps(event)}\n"
        yield f"{json.dumps(event)}\n"
    finally:
        disconnected.set()
