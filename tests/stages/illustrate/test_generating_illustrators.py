"""Generating illustrators: a real diffusion pipeline, and a local server of the images API."""

import json
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

import pytest
from safetensors.torch import load_file, save_file

from stages.illustrate import base as illustrators
from stages.illustrate.base import (
    DiffusersIllustratorConfig,
    IllustrateConfig,
    Illustrator,
    OpenAIIllustratorConfig,
)
from stages.shared.data import image_store
from stages.shared.runtime.errors import InputError, TemporaryError
from tests.support import tiny_diffusion
from tests.support.color_caption_corpus import COLORS, make_image

SIZE = 64  # pixels
CONFIG = IllustrateConfig(
    backend="retrieve",
    seed=0,
    num_shards=2,
    diffusers=DiffusersIllustratorConfig(
        num_inference_steps=2, guidance_scale=5.0, image_size=SIZE
    ),
    openai=OpenAIIllustratorConfig(
        size="64x64", concurrency=3, max_retries=1, timeout=20.0, max_pixels=10_000
    ),
)
KEY = "sk-must-stay-secret"


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_diffusion.save_pipeline(tmp_path_factory.mktemp("weights") / "tiny-sd")


def diffusion(folder, config=CONFIG) -> Illustrator:
    return illustrators.load_illustrator(f"diffusers:{folder}", config, None)


def contents(illustrator, texts, count=1, seed=0) -> list[list[bytes]]:
    illustrations = illustrator.illustrate(texts, count, seed)
    return [[image.content for image in images] for images in illustrations]


def test_a_generated_image_depends_on_text_index_and_seed_only(weights, tmp_path, monkeypatch):
    together = contents(diffusion(weights), ["fox", "red boat", "rain"], count=2)
    assert len({content for pair in together for content in pair}) == 6
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "other"))
    alone = diffusion(weights)
    assert contents(alone, ["rain", "fox"], count=1) == [together[2][:1], together[0][:1]]
    assert contents(alone, ["fox"], seed=1) != [together[0][:1]]
    assert image_store.decode_image(together[0][0]).size == (SIZE, SIZE)


def test_cached_images_are_read_without_the_model(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "tiny-sd")
    first = diffusion(folder).illustrate(["fox", "rain"], 2, 0)
    again = diffusion(folder)
    shutil.rmtree(folder)
    assert again.illustrate(["rain", "fox"], 2, 0) == first[::-1]
    with pytest.raises(InputError):
        again.illustrate(["boat"], 1, 0)


def test_other_weights_or_other_settings_give_other_images(weights, tmp_path):
    more = replace(
        CONFIG,
        diffusers=DiffusersIllustratorConfig(
            num_inference_steps=3, guidance_scale=5.0, image_size=SIZE
        ),
    )
    variants = [
        diffusion(tiny_diffusion.save_pipeline(tmp_path / "b", seed=1)),
        diffusion(weights, more),
    ]
    images = [
        contents(illustrator, ["fox"])[0][0] for illustrator in [diffusion(weights), *variants]
    ]
    assert len(set(images)) == 3


def test_the_source_names_weights_and_index_and_the_name_has_no_folder(weights):
    illustrator = diffusion(weights)
    assert illustrator.name == "diffusers:tiny-sd"
    ((first, second),) = illustrator.illustrate(["fox"], 2, 0)
    assert first.source == f"{illustrator.fingerprint[:32]}/0"
    assert second.source == f"{illustrator.fingerprint[:32]}/1"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_pipeline_that_lacks_weights_is_an_input_error(weights, tmp_path, part):
    folder = shutil.copytree(weights, tmp_path / "broken")
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[3])
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="diffusers:broken lacks some of its weights"):
        diffusion(folder).illustrate(["fox"], 1, 0)


def test_a_missing_pipeline_or_an_invalid_size_is_an_input_error(weights, tmp_path):
    with pytest.raises(InputError, match="diffusers:nobody/nothing cannot be used"):
        diffusion("nobody/nothing")
    for name in ("../nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(InputError, match=f"diffusers:{name}: there is no such folder"):
            diffusion(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="diffusers:empty cannot be used"):
        diffusion(tmp_path / "empty").illustrate(["fox"], 1, 0)
    odd = replace(
        CONFIG,
        diffusers=DiffusersIllustratorConfig(
            num_inference_steps=2, guidance_scale=5.0, image_size=SIZE + 1
        ),
    )
    with pytest.raises(InputError, match="divisible by 8"):
        diffusion(weights, odd).illustrate(["fox"], 1, 0)


def test_a_missing_extra_is_an_input_error_that_names_it():
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "from stages.illustrate import base as illustrators\n"
        "from stages.shared.core.config import load_config\n"
        "from stages.shared.runtime.stage import stage_process\n"
        "config = load_config(illustrators.IllustrateConfig, 'illustrate')\n"
        "with stage_process(): illustrators.load_illustrator('diffusers:x', config, 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "needs the extra t2i" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


class Server:
    """The images API: each text gets an image of its own.

    responses: (status, headers, body) by text, sent in order before the image. An image takes
    `seconds`; these responses take no time.
    """

    def __init__(self):
        self.responses: dict[str, list[tuple[int, dict, bytes]]] = {}
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.num_running = self.max_running = 0
        self.seconds, self.lock = 0.0, Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, content = server.respond(self.path, self.headers, body)
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.http.serve_forever, daemon=True).start()

    def respond(self, path: str, headers: Message, body: dict) -> tuple[int, dict, bytes]:
        with self.lock:
            self.requests.append(body)
            self.times.append(time.monotonic())
            self.num_running += 1
            self.max_running = max(self.max_running, self.num_running)
            queued = self.responses.get(body["prompt"])
            response = queued.pop(0) if queued else None
        time.sleep(0 if response else self.seconds)
        with self.lock:
            self.num_running -= 1
        if path != "/v1/images/generations" or headers["Authorization"] != f"Bearer {KEY}":
            return 404, {}, b"{}"
        return response or (200, {}, image_response(image_of(body["prompt"])))


def image_of(text: str) -> bytes:
    return make_image(list(COLORS)[len(text) % 4], len(text))["bytes"]


def image_response(content: bytes) -> bytes:
    return json.dumps({"created": 0, "data": [{"b64_json": b64encode(content).decode()}]}).encode()


def error(code: str, message: str = "no") -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "type": "x"}}).encode()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    server = Server()
    address = f"http://127.0.0.1:{server.http.server_port}/v1"
    for name, value in {"BASE_URL": address, "API_KEY": KEY}.items():
        monkeypatch.setenv(f"OPENAI_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.http.shutdown()
    server.http.server_close()


def api(model="tiny-image", **changes) -> Illustrator:
    config = replace(CONFIG, openai=replace(CONFIG.openai, **changes))
    return illustrators.load_illustrator(f"openai:{model}", config, None)


def test_each_image_is_requested_once(server):
    first = contents(api(), ["a", "bb", "ccc"])
    assert first == [[image_of(text)] for text in ("a", "bb", "ccc")]
    assert {request["prompt"] for request in server.requests} == {"a", "bb", "ccc"}
    fixed = {"model": "tiny-image", "n": 1, "size": "64x64", "response_format": "b64_json"}
    assert all(request == fixed | {"prompt": request["prompt"]} for request in server.requests)
    assert contents(api(), ["ccc", "a"]) == [first[2], first[0]]
    assert len(server.requests) == 3
    contents(api("other-image"), ["a"])
    contents(api(), ["a"], seed=1)
    contents(api(size="32x32"), ["a"])
    assert len(server.requests) == 6


def test_equal_images_of_one_text_are_returned_once(server):
    assert contents(api(), ["a"], count=3) == [[image_of("a")]]
    assert len(server.requests) == 3


def test_gpt_image_models_get_no_response_format(server):
    contents(api("gpt-image-2"), ["a"])
    assert "response_format" not in server.requests[0]


def test_concurrency_limits_the_running_requests(server):
    server.seconds = 0.05
    contents(api(concurrency=2), [letter * n for letter in "abc" for n in (1, 2)])
    assert server.max_running == 2


def test_a_request_is_retried_after_the_retry_after_of_the_server(server):
    server.responses["a"] = [(429, {"Retry-After": "2"}, error("rate_limit_exceeded"))]
    assert contents(api(), ["a"]) == [[image_of("a")]]
    # Without the header, the package waits at most half a second before its first retry.
    assert 2.0 <= server.times[1] - server.times[0] < 4.0


@pytest.mark.parametrize(
    "response",
    [
        (200, {}, b"<html>not the API</html>"),
        (200, {"Content-Type": "text/html"}, b"<html>not the API</html>"),
        (200, {}, b'{"data": []}'),
        (200, {}, b'{"data": [{"url": "http://127.0.0.1/a.png"}]}'),
        (200, {}, b'{"data": [{"b64_json": "!!!"}]}'),
        (200, {}, image_response(b"no picture")),
        (200, {}, image_response(make_image("red", 0)["bytes"][:200])),
        (401, {}, error("invalid_api_key", f"Incorrect API key provided: {KEY[:9]}***")),
        (403, {}, error("unsupported_region", f"Not with {KEY[:9]}***")),
        (500, {}, error("broken", f"What is {KEY}?")),
        (404, {}, error("model_not_found")),
    ],
)
def test_an_invalid_response_is_an_input_error_without_the_key(server, response):
    server.responses["a"] = [response] * 9
    with pytest.raises(InputError) as error:
        api().illustrate(["a"], 1, 0)
    message = str(error.value)
    assert message.startswith("illustrate.backend: openai:tiny-image cannot be used")
    assert KEY[:9] not in message and "\n" not in message
    assert isinstance(error.value, TemporaryError) == (response[0] >= 500)


def test_a_refused_text_has_no_image_and_the_others_do(server):
    server.responses["bb"] = [(400, {}, error("moderation_blocked"))]
    assert contents(api(), ["a", "bb", "ccc"]) == [[image_of("a")], [], [image_of("ccc")]]


def test_images_made_before_a_failure_are_kept(server):
    server.responses["bb"] = [(500, {}, error("broken"))] * 2
    with pytest.raises(InputError):
        api(concurrency=1).illustrate(["a", "bb"], 1, 0)
    assert contents(api(), ["a", "bb"]) == [[image_of("a")], [image_of("bb")]]
    assert [request["prompt"] for request in server.requests].count("a") == 1


def test_after_a_failure_no_request_is_sent_and_running_ones_are_kept(server):
    server.seconds = 0.5
    server.responses["a"] = [(500, {}, error("broken"))]
    with pytest.raises(InputError):
        api(concurrency=3, max_retries=0).illustrate(["bb", "ccc", "a", "dddd"], 1, 0)
    assert sorted(request["prompt"] for request in server.requests) == ["a", "bb", "ccc"]
    assert contents(api(), ["bb", "ccc"]) == [[image_of("bb")], [image_of("ccc")]]
    assert len(server.requests) == 3


def test_a_missing_key_or_server_is_an_input_error(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="OPENAI_BASE_URL"):
        api(max_retries=0).illustrate(["a"], 1, 0)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        api()


def test_the_key_is_not_written_to_disk(server, tmp_path):
    contents(api(), ["a"])
    stored = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert stored and not any(KEY.encode() in path.read_bytes() for path in stored)
