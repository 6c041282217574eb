"""Illustrators that make pictures: a real diffusion pipeline, a real server of the images API."""

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
from stages.shared.runtime.stage import InputError
from tests.support import tiny_diffusion
from tests.support.color_caption_corpus import COLORS, make_image

SIZE = 64  # pixels
PARAMS = IllustrateConfig(
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
KEY = "sk-not-to-be-told"


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_diffusion.save_pipeline(tmp_path_factory.mktemp("weights") / "tiny-sd")


def diffusion(folder, params=PARAMS) -> Illustrator:
    return illustrators.load_illustrator(f"diffusers:{folder}", params, None)


def contents(illustrator, texts, count=1, seed=0) -> list[list[bytes]]:
    found = illustrator.illustrate(texts, count, seed)
    return [[picture.content for picture in pictures] for pictures in found]


def test_a_drawn_picture_depends_on_its_text_index_and_seed_alone(weights, tmp_path, monkeypatch):
    together = contents(diffusion(weights), ["fox", "red boat", "rain"], count=2)
    assert len({content for pair in together for content in pair}) == 6
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "other"))
    alone = diffusion(weights)
    assert contents(alone, ["rain", "fox"], count=1) == [together[2][:1], together[0][:1]]
    assert contents(alone, ["fox"], seed=1) != [together[0][:1]]
    assert image_store.decode_image(together[0][0]).size == (SIZE, SIZE)


def test_what_was_drawn_is_read_back_without_the_model(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "tiny-sd")
    first = diffusion(folder).illustrate(["fox", "rain"], 2, 0)
    again = diffusion(folder)
    shutil.rmtree(folder)
    assert again.illustrate(["rain", "fox"], 2, 0) == first[::-1]
    with pytest.raises(InputError):
        again.illustrate(["boat"], 1, 0)


def test_other_weights_and_other_numbers_draw_anew(weights, tmp_path):
    more = replace(
        PARAMS,
        diffusers=DiffusersIllustratorConfig(
            num_inference_steps=3, guidance_scale=5.0, image_size=SIZE
        ),
    )
    others = [
        diffusion(tiny_diffusion.save_pipeline(tmp_path / "b", seed=1)),
        diffusion(weights, more),
    ]
    drawn = [contents(one, ["fox"])[0][0] for one in [diffusion(weights), *others]]
    assert len(set(drawn)) == 3


def test_outputs_name_weights_and_index_but_no_folder(weights):
    illustrator = diffusion(weights)
    assert illustrator.name == "diffusers:tiny-sd"
    ((first, second),) = illustrator.illustrate(["fox"], 2, 0)
    assert first.source == f"{illustrator.fingerprint[:32]}/0"
    assert second.source == f"{illustrator.fingerprint[:32]}/1"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_pipeline_that_lacks_weights_is_one_sentence(weights, tmp_path, part):
    folder = shutil.copytree(weights, tmp_path / "broken")
    (file,) = (folder / part).glob("*.safetensors")
    kept = load_file(file)
    kept.pop(sorted(kept)[3])
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="diffusers:broken lacks some of its weights"):
        diffusion(folder).illustrate(["fox"], 1, 0)


def test_a_pipeline_that_does_not_exist_or_refuses_its_size_is_one_sentence(weights, tmp_path):
    with pytest.raises(InputError, match="diffusers:nobody/nothing cannot be used"):
        diffusion("nobody/nothing")
    for name in ("../nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(InputError, match=f"diffusers:{name}: there is no such folder"):
            diffusion(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="diffusers:empty cannot be used"):
        diffusion(tmp_path / "empty").illustrate(["fox"], 1, 0)
    odd = replace(
        PARAMS,
        diffusers=DiffusersIllustratorConfig(
            num_inference_steps=2, guidance_scale=5.0, image_size=SIZE + 1
        ),
    )
    with pytest.raises(InputError, match="divisible by 8"):
        diffusion(weights, odd).illustrate(["fox"], 1, 0)


def test_without_the_extra_one_sentence_names_it():
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "from stages.illustrate import base as illustrators\n"
        "from stages.shared.core.config import load_config\n"
        "from stages.shared.runtime.stage import stage_process\n"
        "config = load_config(illustrators.IllustrateConfig, 'illustrate')\n"
        "with stage_process(): illustrators.load_illustrator('diffusers:x', config, 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs the extra t2i" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


class Server:
    """The images API: each text gets a picture of its own, or what `answers` says for it.

    An answer is (status, headers, body); of a list the first ones go first, then the picture.
    A picture takes `seconds`, other answers none.
    """

    def __init__(self):
        self.answers: dict[str, list[tuple[int, dict, bytes]]] = {}
        self.asked: list[dict] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.seconds, self.lock = 0.0, Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, content = server.answer(self.path, self.headers, body)
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

    def answer(self, path: str, headers: Message, body: dict) -> tuple[int, dict, bytes]:
        with self.lock:
            self.asked.append(body)
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            given = self.answers.get(body["prompt"])
            special = given.pop(0) if given else None
        time.sleep(0 if special else self.seconds)
        with self.lock:
            self.at_once -= 1
        if path != "/v1/images/generations" or headers["Authorization"] != f"Bearer {KEY}":
            return 404, {}, b"{}"
        return special or (200, {}, said(drawing(body["prompt"])))


def drawing(text: str) -> bytes:
    return make_image(list(COLORS)[len(text) % 4], len(text))["bytes"]


def said(content: bytes) -> bytes:
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
    numbers = replace(PARAMS, openai=replace(PARAMS.openai, **changes))
    return illustrators.load_illustrator(f"openai:{model}", numbers, None)


def test_the_pictures_of_a_server_are_asked_for_once(server):
    first = contents(api(), ["a", "bb", "ccc"])
    assert first == [[drawing(text)] for text in ("a", "bb", "ccc")]
    assert {asked["prompt"] for asked in server.asked} == {"a", "bb", "ccc"}
    sent = {"model": "tiny-image", "n": 1, "size": "64x64", "response_format": "b64_json"}
    assert all(asked == sent | {"prompt": asked["prompt"]} for asked in server.asked)
    assert contents(api(), ["ccc", "a"]) == [first[2], first[0]]
    assert len(server.asked) == 3
    contents(api("other-image"), ["a"])
    contents(api(), ["a"], seed=1)
    contents(api(size="32x32"), ["a"])
    assert len(server.asked) == 6


def test_equal_pictures_of_one_text_count_once(server):
    assert contents(api(), ["a"], count=3) == [[drawing("a")]]
    assert len(server.asked) == 3


def test_gpt_image_models_are_not_asked_for_a_format_they_refuse(server):
    contents(api("gpt-image-2"), ["a"])
    assert "response_format" not in server.asked[0]


def test_no_more_requests_run_at_once_than_params_say(server):
    server.seconds = 0.05
    contents(api(concurrency=2), [letter * n for letter in "abc" for n in (1, 2)])
    assert server.most_at_once == 2


def test_a_server_that_asks_to_wait_is_asked_again_after_that_time(server):
    server.answers["a"] = [(429, {"Retry-After": "2"}, error("rate_limit_exceeded"))]
    assert contents(api(), ["a"]) == [[drawing("a")]]
    # Without the header the package waits half a second at most before its first repetition.
    assert 2.0 <= server.times[1] - server.times[0] < 4.0


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"<html>not the API</html>"),
        (200, {"Content-Type": "text/html"}, b"<html>not the API</html>"),
        (200, {}, b'{"data": []}'),
        (200, {}, b'{"data": [{"url": "http://127.0.0.1/a.png"}]}'),
        (200, {}, b'{"data": [{"b64_json": "!!!"}]}'),
        (200, {}, said(b"no picture")),
        (200, {}, said(make_image("red", 0)["bytes"][:200])),
        (401, {}, error("invalid_api_key", f"Incorrect API key provided: {KEY[:9]}***")),
        (403, {}, error("unsupported_region", f"Not with {KEY[:9]}***")),
        (500, {}, error("broken", f"What is {KEY}?")),
        (404, {}, error("model_not_found")),
    ],
)
def test_an_answer_that_is_no_picture_is_one_sentence_without_the_key(server, answer):
    server.answers["a"] = [answer] * 9
    with pytest.raises(InputError) as error:
        api().illustrate(["a"], 1, 0)
    said = str(error.value)
    assert said.startswith("illustrate.backend: openai:tiny-image cannot be used")
    assert KEY[:9] not in said and "\n" not in said


def test_a_text_that_is_refused_stays_without_and_the_others_do_not(server):
    server.answers["bb"] = [(400, {}, error("moderation_blocked"))]
    assert contents(api(), ["a", "bb", "ccc"]) == [[drawing("a")], [], [drawing("ccc")]]


def test_what_was_made_before_a_failure_is_kept(server):
    server.answers["bb"] = [(500, {}, error("broken"))] * 2
    with pytest.raises(InputError):
        api(concurrency=1).illustrate(["a", "bb"], 1, 0)
    assert contents(api(), ["a", "bb"]) == [[drawing("a")], [drawing("bb")]]
    assert [asked["prompt"] for asked in server.asked].count("a") == 1


def test_a_failure_asks_for_nothing_more_and_keeps_what_is_under_way(server):
    server.seconds = 0.5
    server.answers["a"] = [(500, {}, error("broken"))]
    with pytest.raises(InputError):
        api(concurrency=3, max_retries=0).illustrate(["bb", "ccc", "a", "dddd"], 1, 0)
    assert sorted(asked["prompt"] for asked in server.asked) == ["a", "bb", "ccc"]
    assert contents(api(), ["bb", "ccc"]) == [[drawing("bb")], [drawing("ccc")]]
    assert len(server.asked) == 3


def test_without_a_key_or_a_server_one_sentence_says_so(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="OPENAI_BASE_URL"):
        api(max_retries=0).illustrate(["a"], 1, 0)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        api()


def test_the_key_is_written_nowhere(server, tmp_path):
    contents(api(), ["a"])
    stored = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert stored and not any(KEY.encode() in path.read_bytes() for path in stored)
