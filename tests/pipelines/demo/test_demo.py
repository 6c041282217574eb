"""The page of `polymuse demo` with tiny trained models, behind an HTTP client."""

import base64
import json
import re
import struct
import zlib
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipelines.cli import demo
from pipelines.demo.app import STATIC_FILES, create_app
from pipelines.demo.models import (
    PROCESSING,
    create_model,
    load_settings,
    number_entity_types,
    split_entities,
)
from pipelines.demo.sources import find_sources
from pipelines.inference.text_labeler import (
    Entity,
    EntityPrediction,
    SentimentPrediction,
    TextLabels,
    build_input_from_text,
)
from stages.shared.runtime.stage import InputError
from tests.pipelines.cli import test_cli_write
from tests.pipelines.cli.test_cli_write import HOSTILE, PageParser
from tests.support import trained_mm_orient_project
from tests.support.trained_mm_orient_project import draw_text_image
from tests.support.trained_muse_project import RED_IMAGE, get_model_dir, load_labeler

ADDRESS = "http://127.0.0.1:7860"
MAX_REQUEST_BYTES = 2**20
RED = {"name": "red.png", "content": base64.b64encode(RED_IMAGE).decode()}
SCRIPT = "<img src=x onerror=alert(1)><script>alert(2)</script>"
SAFE_TAGS = {"article", "section", "div", "p", "span", "b", "q", "h3", "h4", "h5", "img", "mark"}
SAFE_TAGS |= {"figure", "figcaption", "details", "summary", "ol", "li", "meter"}
SAFE_TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}
SAFE_ATTRIBUTES = {"alt", "aria-hidden", "class", "dir", "height", "lang", "max", "min", "scope"}
SAFE_ATTRIBUTES |= {"src", "style", "title", "value", "width"}


@pytest.fixture(scope="module")
def generator_project(tmp_path_factory):
    place = tmp_path_factory.mktemp("demo_articles") / "project"
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        return test_cli_write.create_trained_project(place, patch)


@pytest.fixture(scope="module")
def meme_project(tmp_path_factory):
    place = tmp_path_factory.mktemp("demo_memes") / "project"
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        return trained_mm_orient_project.create_trained_project(place, patch)


@pytest.fixture
def enter(monkeypatch):
    """enter(project): a client of the page with all models of the project, which is entered."""
    with ExitStack() as stack:

        def start(place: Path, *addresses: str) -> TestClient:
            monkeypatch.chdir(place)
            monkeypatch.setenv("POLYMUSE_HOME", str(place / "home"))
            settings = load_settings()
            sources = find_sources(list(addresses), stack)
            models = [create_model(source, settings) for source in sources]
            return TestClient(create_app(models, MAX_REQUEST_BYTES), base_url=ADDRESS)

        yield start


@pytest.fixture
def texts(enter, trained_classifiers):
    """A client of the classifiers of tweets (0) and posts (1)."""
    return enter(trained_classifiers)


def ask(client: TestClient, number: int, **request) -> tuple[list[str], dict]:
    """The sentences on the progress of a request, and its result."""
    answer = client.post(f"/models/{number}", json=request)
    assert answer.status_code == 200, answer.text
    *statuses, result = map(json.loads, answer.text.splitlines())
    return [event["status"] for event in statuses], result


def encode(content: bytes, name: str = "a.png") -> dict:
    return {"name": name, "content": base64.b64encode(content).decode()}


def assert_safe(html: str) -> None:
    """Only tags and attributes of the templates; images are data."""
    for tag, attributes in PageParser(html).tags:
        assert tag in SAFE_TAGS and attributes.keys() <= SAFE_ATTRIBUTES, (tag, attributes)
        assert attributes.get("src", "data:image/").startswith("data:image/")


# -------------------------------------------------------------------------------- answers
def test_an_article_is_the_one_that_the_command_writes(enter, generator_project, tmp_path):
    client = enter(generator_project)
    expected = test_cli_write.write_article(tmp_path / "out", topic="a red cat", images=2)
    statuses, result = ask(client, 0, text="a red cat", num_images=2)
    assert statuses == ["Loading flexmuse", "Adding 2 images by retrieve", "Writing 2 texts"]
    words = "".join(PageParser(result["html"]).words)
    assert all(chunk["text"] in words and chunk["source"] in words for chunk in expected["chunks"])
    assert result["html"].count("data:image/") == 2
    assert result["article"] == (tmp_path / "out/article.html").read_text()
    assert ask(client, 0, text="a red cat", num_images=2) == (statuses[1:], result)


def test_own_images_come_first_and_a_caption_names_them(enter, generator_project):
    client = enter(generator_project)
    _, result = ask(client, 0, text="a red cat", images=[encode(RED_IMAGE, "my\tred  cat.png")])
    assert result["html"].count("<img") == 1 and "Provided image, my red cat.png" in result["html"]
    _, result = ask(client, 0, images=[encode(RED_IMAGE)])
    assert "<h3" not in result["html"]


@pytest.mark.parametrize(
    ("request_fields", "sentence"),
    [
        ({"text": " \n"}, "there is nothing to write about: give a topic or an image"),
        ({"text": "a" * 501}, "the text has 501 characters, more than cli_write.max_characters"),
        ({"text": "a", "num_images": 21}, "21 images are not 0 to 20 (cli_write.max_images of"),
        ({"text": "a", "images": [RED] * 21}, "there are 21 images, more than 20: give fewer"),
    ],
)
def test_wrong_input_of_an_article_is_one_sentence(
    enter, generator_project, request_fields, sentence
):
    statuses, result = ask(enter(generator_project), 0, **request_fields)
    assert statuses == [] and result["error"].startswith(sentence)


def label(place: Path, run: str, text: str) -> TextLabels:
    """What `polymuse label` predicts for a text with the red image."""
    labeler = load_labeler(get_model_dir(place, run))
    (labels,) = labeler.label([build_input_from_text(text, RED_IMAGE)])
    return labels


def test_tags_are_those_of_the_command_and_the_exchange_is_shown(texts, trained_classifiers):
    text = "the fox lamp sat"
    statuses, result = ask(texts, 0, text=text, images=[RED])
    assert statuses == ["Loading muse_entities", "Labeling"]
    labels = label(trained_classifiers, "muse_entities", text)
    assert isinstance(labels, EntityPrediction)
    assert re.findall(r'class="tag">([^<]+)', result["html"]) == labels.tags
    assert result["html"].count('<span class="entity') == len(labels.entities)
    assert "layer 1: " in result["html"] and result["article"] is None
    layers = result["html"].count('class="layer"')
    assert result["html"].count("<img") == 1 + layers > 1
    assert_safe(result["html"])
    _, result = ask(texts, 0, text=text)
    assert "layer 1" not in result["html"] and "No image: a placeholder" in result["html"]


def test_entities_divide_the_text_and_each_type_has_a_color():
    item = build_input_from_text("Mia saw the New York sky", None)
    entities = [Entity("PER", "Mia", 0, 0, 0, 3), Entity("LOC", "New York", 3, 4, 12, 20)]
    labels = EntityPrediction(item.words, [], entities, 0)
    assert split_entities(item, labels) == [
        ("Mia", "PER"),
        (" saw the ", ""),
        ("New York", "LOC"),
        (" sky", ""),
    ]
    colors = number_entity_types(["O", "B-PER", "I-PER", "B-LOC", "B-A", "B-B", "B-C"])
    assert colors == {"A": 1, "B": 2, "C": 3, "LOC": 4, "PER": 1}


def test_a_sentiment_has_its_probability_and_needs_no_text(texts, trained_classifiers):
    _, result = ask(texts, 1, text="the fox lamp sat", images=[RED])
    labels = label(trained_classifiers, "muse_sentiment", "the fox lamp sat")
    assert isinstance(labels, SentimentPrediction)
    assert f'type-1">{labels.label}</span>' in result["html"]
    assert f'value="{labels.probability:.3f}"' in result["html"]
    _, result = ask(texts, 1, images=[RED])
    assert "No text: a placeholder is used." in result["html"]
    _, result = ask(texts, 1)
    assert result["error"] == "the request has neither text nor image: give it one"
    _, result = ask(texts, 0, images=[RED])
    assert result["error"] == "the request has no text, and this model labels words: give it one"


def test_a_meme_is_shown_with_its_mask_and_without_its_text(enter, meme_project):
    client = enter(meme_project)
    statuses, result = ask(client, 0, images=[encode(draw_text_image("MONDAY AGAIN"))])
    assert statuses == ["Loading mm_orient", "Finding and removing the text", "Labeling"]
    assert result["html"].count("<img") == 3 and "the mask is orange" in result["html"]
    assert "Recognized text: " in result["html"] and "MONDAY AGAIN" in result["html"]
    assert all(task in result["html"] for task in ("sentiment", "humour"))
    assert_safe(result["html"])
    plain = BytesIO()
    Image.new("RGB", (64, 64), "gold").save(plain, "PNG")
    _, result = ask(client, 0, text="when the cat", images=[encode(plain.getvalue())])
    assert result["html"].count("<img") == 1 and "No text was found" in result["html"]
    _, result = ask(client, 0, text="...")
    assert result["error"] == "the request has neither text nor image: give it one"


def test_a_request_waits_for_the_one_before(texts):
    ask(texts, 0, text="the fox")
    answers = []
    with PROCESSING:
        thread = Thread(target=lambda: answers.append(ask(texts, 0, text="the fox")))
        thread.start()
        thread.join(0.5)
        assert not answers
    thread.join()
    ((statuses, result),) = answers
    assert statuses == ["Waiting for another request", "Labeling"] and "html" in result


def test_an_unexpected_error_is_a_sentence_and_the_next_request_is_answered(texts, monkeypatch):
    def fail(*_):
        raise ValueError("odd")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.demo.models.DemoTextLabeler.process", fail)
        _, result = ask(texts, 0, text="the fox")
    assert result["error"].startswith("unexpected ValueError (odd): run `polymuse doctor`")
    assert "html" in ask(texts, 0, text="the fox")[1]


# -------------------------------------------------------------------------------- examples
def test_examples_are_items_of_the_test_split_that_a_request_can_hold(enter, meme_project):
    client = enter(meme_project)
    examples = client.get("/models/0/examples").json()
    assert 0 < len(examples) <= load_settings().demo.num_examples
    assert all(example["text"] == "" and len(example["images"]) == 1 for example in examples)
    assert "html" in ask(client, 0, **examples[0])[1]


def test_without_the_outputs_of_the_stages_there_are_no_examples(texts):
    assert texts.get("/models/0/examples").json() == []


# -------------------------------------------------------------------------------- security
@pytest.mark.parametrize("text", [SCRIPT, *HOSTILE])
def test_uploads_and_texts_are_escaped(texts, text):
    image = encode(RED_IMAGE, f"{text}.png"[:255])
    for number in range(2):
        _, result = ask(texts, number, text=text, images=[image])
        assert_safe(result["html"])


def test_a_topic_and_a_file_name_are_escaped(enter, generator_project):
    client = enter(generator_project)
    _, result = ask(client, 0, text=SCRIPT, images=[encode(RED_IMAGE, SCRIPT)])
    assert_safe(result["html"])
    assert "onerror=alert(1)" in "".join(PageParser(result["html"]).words)
    tags = {tag for tag, _ in PageParser(result["article"]).tags}
    assert tags <= test_cli_write.PAGE


def test_an_image_is_encoded_again_without_what_follows_it(texts):
    content = RED_IMAGE + SCRIPT.encode()
    _, result = ask(texts, 1, images=[encode(content)])
    data = [
        attributes["src"] for tag, attributes in PageParser(result["html"]).tags if tag == "img"
    ]
    assert data and all(b"script" not in base64.b64decode(uri.split(",")[1]) for uri in data)


def make_bomb(side: int) -> bytes:
    """A PNG file of some kilobytes that decodes to side * side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    pixels = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (encode(b"<svg onload=alert(1)>", "a.svg"), "a.svg: unreadable image"),
        (encode(b"", "a.png"), "a.png: unreadable image"),
        ({"name": "a.png", "content": "?"}, "a.png is not base64"),
        (encode(make_bomb(20000)), "a.png: image larger than max_pixels: 20000 x 20000"),
    ],
)
def test_a_file_that_is_no_acceptable_image_is_refused(texts, image, sentence):
    _, result = ask(texts, 1, text="a", images=[image])
    assert result["error"].startswith(sentence) and "\n" not in result["error"]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:7860", "0.0.0.0:7860", ""]
)
def test_a_foreign_host_is_refused(texts, host):
    assert texts.get("/", headers={"Host": host}).status_code == 400
    answer = texts.post("/models/0", json={"text": "a"}, headers={"Host": host})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:7861", "null", "http://localhost:7860"]
)
def test_a_request_from_another_origin_is_refused(texts, origin):
    answer = texts.post("/models/0", json={"text": "a"}, headers={"Origin": origin})
    assert (answer.status_code, answer.json()) == (
        403,
        {"error": "the request comes from another site"},
    )
    answer = texts.post("/models/0", json={"text": "a"}, headers={"Origin": ADDRESS})
    assert answer.status_code == 200


def test_a_malformed_request_is_one_sentence(texts):
    headers = {"Content-Type": "text/plain"}  # what a form of another site can send
    assert texts.post("/models/0", content='{"text": "a"}', headers=headers).status_code == 415
    headers = {"Content-Type": "application/json"}
    for body in (b"{", b'{"texts": 1}', b'{"text": "\\ud800"}', b'{"images": [{"name": "a"}]}'):
        answer = texts.post("/models/0", content=body, headers=headers)
        assert answer.status_code == 400 and answer.json()["error"].startswith("the request is ")
    for method, path in (("GET", "/models/2/examples"), ("POST", "/models/9"), ("GET", "/..%2Fa")):
        assert texts.request(method, path).status_code == 404


def test_a_request_above_the_limit_is_refused(texts):
    image = {"name": "a.png", "content": "A" * MAX_REQUEST_BYTES}
    answer = texts.post("/models/0", json={"text": "a", "images": [image]})
    assert answer.status_code == 413
    assert answer.json()["error"].startswith("the request has more than 1 MB (cli_demo.max_requ")


def test_every_answer_has_the_security_headers(texts):
    answers = [texts.get(path) for path in ("/", "/nothing", "/models/0/examples")]
    answers += [texts.get(f"/{name}") for name in STATIC_FILES]
    answers.append(texts.get("/", headers={"Host": "evil.example"}))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_has_no_address_of_another_host(texts):
    for path in ("", *STATIC_FILES):
        text = texts.get(f"/{path}").text
        assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text


# -------------------------------------------------------------------------------- models
def test_the_page_escapes_the_address_of_a_model(enter, trained_classifiers, tmp_path):
    folder = tmp_path / "<script>alert(1)<"
    folder.symlink_to(get_model_dir(trained_classifiers, "muse_sentiment"))
    client = enter(trained_classifiers, str(folder))
    page = PageParser(client.get("/").text)
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [
        {"src": "/page.js", "defer": None}
    ]
    assert "html" in ask(client, 0, text="a")[1]


def test_a_model_folder_and_a_run_are_named_together(enter, trained_classifiers):
    folder = get_model_dir(trained_classifiers, "muse_sentiment")
    client = enter(trained_classifiers, "muse_entities", str(folder))
    assert "MuSE: entities in tweets" in client.get("/").text
    _, run = ask(enter(trained_classifiers), 1, text="the fox")
    assert ask(client, 1, text="the fox")[1] == run


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("tippo", "tippo is not trained yet: run `polymuse run train_preference@tippo`"),
        ("nothing", "nothing is neither a run of params.yaml nor a model folder nor an MLflow"),
        ("/", "/ holds no trained model: name a folder that a training stage wrote"),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence(enter, trained_classifiers, address, sentence):
    with pytest.raises(InputError) as error:
        enter(trained_classifiers, address)
    assert str(error.value).startswith(sentence)


def test_without_a_trained_run_the_page_says_what_trains_one(enter, workspace):
    page = enter(workspace).get("/").text
    assert "No model is trained yet" in page and "polymuse run train_preference@tippo" in page


# -------------------------------------------------------------------------------- command
def test_a_port_in_use_is_one_sentence():
    with demo.open_port(0) as listener:
        port = listener.getsockname()[1]
        assert listener.getsockname()[0] == "127.0.0.1"
        with pytest.raises(InputError, match=f"port {port} cannot be used .*--port"):
            demo.open_port(port)
    with pytest.raises(InputError, match="--port is 65536: give a number from 0 to 65535"):
        demo.open_port(65536)
