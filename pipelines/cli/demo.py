"""`polymuse demo`: a web page on this machine to try trained models, until Ctrl-C.

reads   the model folders of the named runs or addresses, and outputs of stages for its examples
writes  nothing in the project
"""

import os
import signal
import socket
import sys
from contextlib import ExitStack

from pipelines.demo.sources import find_sources
from stages.shared.core.config import load_config
from stages.shared.runtime.stage import InputError

HOST = "127.0.0.1"


def main(addresses: list[str], port: int | None) -> None:
    """Serve until Ctrl-C. Raises InputError for an unknown model or a port that is in use."""
    if port is None:
        port = load_config(int, "cli_demo", "port")
    with ExitStack() as stack:
        listener = stack.enter_context(open_port(port))
        sources = find_sources(addresses, stack)

        from pipelines.demo import app  # imports the web framework, after the checks
        from pipelines.demo.models import PROCESSING, create_model, load_settings

        settings = load_settings()
        models = [create_model(source, settings) for source in sources]
        max_bytes = settings.demo.max_request_megabytes * 2**20
        names = ", ".join(source.name for source in sources) or "no trained model"
        print(f"http://{HOST}:{listener.getsockname()[1]}  {names}")
        print("Ctrl-C ends the server.", flush=True)
        try:
            run_server(app.create_app(models, max_bytes), listener)
        finally:
            if PROCESSING.locked():  # a thread that computes cannot be ended otherwise
                stack.close()
                sys.stdout.flush()
                os._exit(128 + signal.SIGINT)


def open_port(port: int) -> socket.socket:
    """A socket that listens on the loopback interface. Raises InputError if the port is in use."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}: give a number from 0 to 65535")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(
            f"port {port} cannot be used ({error.strerror}): end the program that uses it, or name "
            "another one with --port"
        ) from None
    return listener


def run_server(app, listener: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="critical",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,  # seconds
    )
    uvicorn.Server(config).run(sockets=[listener])
