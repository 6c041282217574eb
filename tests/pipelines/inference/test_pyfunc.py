"""Which rows a served model accepts and rejects; its texts are tested in test_cli_write.py."""

import base64
import json
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from pipelines.inference.generator import GeneratedText, GenerationInput
from pipelines.inference.input_rules import InputRules, load_input_rules
from pipelines.inference.pyfunc import RequestError, ServedGenerator, find_nearest_project
from stages.shared.core.config import read_params
from stages.shared.data import text_cleaning
from stages.shared.runtime.stage import InputError
from tests.support.color_caption_corpus import make_image

OVERLAY = text_cleaning.OverlayCleanConfig(
    remove_mentions=True,
    remove_domains=[],
    case="lower",
    punctuation="drop",
    digits="drop",
    line_breaks="join",
)
CLEAN = text_cleaning.CleanConfig(
    unicode_form="NFKC", remove_urls=True, emoji="keep", memes=OVERLAY
)
RULES = InputRules(CLEAN, max_characters=40, max_pixels=2500, section="cli_write")
VALID = make_image("red", 0)["bytes"]  # 40 x 40 pixels
DIRTY = "a\u200b  \uff43at\u202e [here](https://a.org)"


class Echo:
    """A generator that returns its input, one article for each row."""

    def __init__(self, uses_topics: bool = True):
        self.uses_topics = uses_topics

    def generate(self, articles: list[list[GenerationInput]], _) -> list[list[GeneratedText]]:
        self.items = [item for (item,) in articles]
        return [
            [GeneratedText(f"\u202e{i.topic}  {bool(i.image)}", None, None)] for i in self.items
        ]


def predict(**columns: list) -> list[str]:
    return ServedGenerator(Echo(), RULES, 2).predict(pd.DataFrame(columns))


def test_topics_and_texts_are_cleaned_as_by_the_command():
    served = ServedGenerator(Echo(), RULES, 2)
    assert served.predict(pd.DataFrame({"topic": [DIRTY]})) == ["a cat here False"]
    assert served.generator.items == [GenerationInput("a cat here", None)]


def test_missing_values_can_be_none_nan_or_empty():
    missing = [None, float("nan"), pd.NA, ""]
    topics = predict(topic=["a cat"] * 5, image=[*missing, b""])
    assert topics == ["a cat False"] * 5
    assert predict(topic=missing, image=[VALID] * 4) == ["None True"] * 4


def test_an_image_can_be_base64_with_line_breaks():
    encoded = [base64.b64encode(VALID).decode(), base64.encodebytes(VALID).decode()]
    assert predict(image=encoded) == ["None True"] * 2


def test_the_answer_of_a_server_is_the_sentence_alone():
    """The server of MLflow changes the message, and puts the whole input before it."""
    with pytest.raises(RequestError) as error:
        predict(topic=[" "])
    error.value.message = f"Failed to predict data: {error.value.message}"
    assert json.loads(error.value.serialize_as_json()) == {
        "error_code": "BAD_REQUEST",
        "message": "row 0 has neither topic nor image: give it one",
    }
    assert error.value.get_http_status_code() == 400


def test_a_caption_model_rejects_a_row_without_an_image():
    served = ServedGenerator(Echo(uses_topics=False), RULES, 2)
    assert served.predict(pd.DataFrame({"topic": ["a cat"], "image": [VALID]})) == ["a cat True"]
    with pytest.raises(InputError, match="row 0 has no image, and this model was trained on capt"):
        served.predict(pd.DataFrame({"topic": ["a cat"]}))


def make_large_image() -> bytes:
    content = BytesIO()
    Image.new("1", (1000, 1000)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"topic": ["a", " "]}, "row 1 has neither topic nor image: give it one"),
        ({"topic": ["\u200b\u202e"]}, "row 0 has neither"),
        (
            {"topic": ["a" * 41]},
            "row 0: topic has 41 characters, more than cli_write.max_char",
        ),
        ({"image": ["data:image/png;base64,AA=="]}, "row 0: image is not base64: encode the "),
        ({"image": ["é"]}, "row 0: image is not base64"),
        ({"image": [VALID, b"no picture"]}, "row 1: image: unreadable image"),
        (
            {"image": [VALID, make_large_image()]},
            "row 1: image: image larger than max_pixels: 1000 x 1000",
        ),
        ({"image": [bytes(10**6)]}, "row 0: image has 1000000 bytes, more than an image of"),
    ],
)
def test_an_invalid_row_is_named(columns, message):
    with pytest.raises(InputError) as error:
        predict(**columns)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_rules_are_those_of_the_current_project(tmp_path, monkeypatch):
    shipped = load_input_rules("cli_write", find_nearest_project())
    params = read_params()
    params["cli_write"]["max_characters"] = 7
    (tmp_path / "project/data").mkdir(parents=True)
    (tmp_path / "project/params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "project/dvc.yaml").touch()
    monkeypatch.chdir(tmp_path / "project/data")
    assert (
        load_input_rules("cli_write", find_nearest_project()).max_characters == 7
        and Path.cwd().name == "data"
    )
    monkeypatch.chdir(tmp_path)
    assert load_input_rules("cli_write", find_nearest_project()) == shipped
