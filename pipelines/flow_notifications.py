"""Notify about flow runs that fail or crash, by a block that is saved on the Prefect server."""

import prefect.blocks.notifications  # noqa: F401  registers the types of blocks
from prefect import Flow, State
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.schemas.objects import FlowRun
from prefect.logging import get_logger
from prefect.utilities.urls import url_for

from stages.shared.core.config import load_config
from stages.shared.runtime.errors import describe_error
from stages.shared.runtime.stage import InputError

PARAM = "run.notification_block"


def load_block(name: str) -> NotificationBlock:
    """The block TYPE/NAME of the server, such as slack-webhook/alerts. Raises InputError."""
    try:
        block = Block.load(name)
    except ValueError:  # no such block, or no slash in the name
        block = None
    if not isinstance(block, NotificationBlock):
        raise InputError(
            f"{PARAM} is {name!r}, and the Prefect server has no such notification block: create "
            "it on the Blocks page, or give null"
        )
    return block


def notify(flow: Flow, flow_run: FlowRun, state: State) -> None:
    """Report the end of a flow run by `run.notification_block`; a hook of the flow.

    If that fails, the log says so.
    """
    try:
        # Only this key: other wrong parameters may be what ended the run.
        name = load_config(str | None, *PARAM.split("."))
        if name is None:
            return
        subject = f"{flow.name} {flow_run.name}: {state.name}"
        body = "\n".join(filter(None, [state.message, url_for(flow_run)]))
        block = load_block(name)
        with block.raise_on_failure():
            block.notify(body, subject)  # pyright: ignore[reportUnusedCoroutine] (sync here)
    except Exception as error:  # blocks, servers and sockets have their own types
        get_logger("flow_runs").warning("%s: %s", PARAM, describe_error(error))
