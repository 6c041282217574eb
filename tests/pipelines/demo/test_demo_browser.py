"""`polymuse demo` in a browser: a round trip, the keyboard, no errors, no sideways scrolling."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import browser
from tests.support.trained_muse_project import RED_IMAGE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium"),
]
WIDTHS = (1280, 390)
PANEL = ".panel:not([hidden])"
# The text of the result without the types of its entities, each after a non-breaking space.
SHOWN_TEXT = (
    "[...document.querySelector('.labeled .text').childNodes]"
    ".map((node) => (node.firstChild ?? node).textContent.replace('\\u00a0', '')).join('')"
)


@contextmanager
def serve_demo(folder: Path) -> Iterator[str]:
    """The address of the running command, which Ctrl-C must end without a message."""
    command = [sys.executable, "-m", "pipelines.cli", "demo", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield f"{line.split()[0]}/"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (128 + signal.SIGINT, "")
    finally:
        process.kill()


@pytest.fixture(scope="module")
def address(trained_classifiers):
    with serve_demo(trained_classifiers) as address:
        yield address


def wait_for_result(page: browser.Page) -> str:
    """The text of the result of the visible panel."""
    page.wait_until(f"document.querySelector('{PANEL} .output').getAttribute('aria-busy')")
    page.wait_until(f"document.querySelector('{PANEL} .progress').hidden")
    return page.evaluate(f"document.querySelector('{PANEL} .output').innerText")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_text_with_an_image_is_labeled(address, tmp_path, width):
    image = tmp_path / "<img src=x onerror=alert(1)>.png".replace("/", "")
    image.write_bytes(RED_IMAGE)
    text = "the fox lamp <b>sat</b>"
    with browser.open_page(address, width) as page:
        page.evaluate("document.querySelector('textarea').focus()")
        page.call("Input.insertText", text=text)
        page.choose_files(f"{PANEL} input[type=file]", [image])
        page.wait_until(f"document.querySelectorAll('{PANEL} .uploads li').length === 1")
        page.evaluate(f"document.querySelector('{PANEL} .submit').click()")
        result = wait_for_result(page)
        assert page.evaluate(SHOWN_TEXT) == text
        assert "layer 1: " in result
        assert page.evaluate("document.activeElement.className") == "output"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.console == []


def test_the_keyboard_changes_the_model_and_an_error_is_announced(address):
    with browser.open_page(address, WIDTHS[0]) as page:
        page.evaluate("document.querySelector('[role=tab]').focus()")
        page.press("ArrowRight")
        assert page.evaluate("document.activeElement.textContent") == "muse_sentiment"
        assert page.evaluate(f"document.querySelector('{PANEL} h2').textContent") == (
            "muse_sentiment"
        )
        page.evaluate(f"document.querySelector('{PANEL} form').requestSubmit()")
        assert wait_for_result(page) == "the request has neither text nor image: give it one"
        assert page.evaluate(f"document.querySelector('{PANEL} [role=alert]') !== null")
        assert page.console == []


def test_every_control_has_a_name(address):
    with browser.open_page(address, WIDTHS[0]) as page:
        page.call("Accessibility.enable")
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "textbox", "tab", "spinbutton", "form", "tabpanel"}
        controls = [node for node in nodes if node.get("role", {}).get("value") in roles]
        assert len(controls) > 5
        assert all(node.get("name", {}).get("value") for node in controls)


def test_the_policy_of_the_page_runs_no_inline_script(address):
    with browser.open_page(address, WIDTHS[0]) as page:
        page.evaluate(
            "document.querySelector('.output').innerHTML = "
            "'<img src=x onerror=\"window.hacked = true\">'"
        )
        page.evaluate("new Promise((resolve) => setTimeout(resolve, 300))")
        assert page.evaluate("window.hacked === undefined")
        assert any("Content Security Policy" in text for text in page.console)
