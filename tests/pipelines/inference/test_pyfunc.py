"""What a served model takes and refuses; what it writes is in test_write.py."""

from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from pipelines.inference.generator import GeneratedText, GenerationInput
from pipelines.inference.input_rules import InputRules
from pipelines.inference.pyfunc import ServedGenerator, load_nearest_rules
from stages.shared.data import text_cleaning
from stages.shared.runtime.stage import InputError
from tests.support.color_caption_corpus import make_image

MEMES = text_cleaning.OverlayCleanConfig(
    remove_mentions=True,
    remove_domains=[],
    case="lower",
    punctuation="drop",
    digits="drop",
    line_breaks="join",
)
TIDY = text_cleaning.CleanConfig(unicode_form="NFKC", remove_urls=True, emoji="keep", memes=MEMES)
LIMITS = InputRules(TIDY, max_characters=40, max_pixels=2500, section="cli_write")
FINE = make_image("red", 0)["bytes"]  # 40 x 40 pixels
DIRTY = "a\u200b  \uff43at\u202e [here](https://a.org)"


class Echo:
    """An author that writes what it is asked to write about, each row an article by itself."""

    def __init__(self, reads_topics: bool = True):
        self.uses_topics = reads_topics

    def generate(self, articles: list[list[GenerationInput]], _) -> list[list[GeneratedText]]:
        self.items = [item for (item,) in articles]
        return [
            [GeneratedText(f"\u202e{i.topic}  {bool(i.image)}", None, None)] for i in self.items
        ]


def predict(**columns: list) -> list[str]:
    return ServedGenerator(Echo(), LIMITS).predict(pd.DataFrame(columns))


def test_topics_and_texts_are_cleaned_as_the_command_cleans_them():
    served = ServedGenerator(Echo(), LIMITS)
    assert served.predict(pd.DataFrame({"topic": [DIRTY]})) == ["a cat here False"]
    assert served.generator.items == [GenerationInput("a cat here", None)]


def test_what_is_absent_is_absent_however_a_table_says_it():
    absent = [None, float("nan"), pd.NA, ""]
    topics = predict(topic=["a cat"] * 4, image=[*absent[:3], b""])
    assert topics == ["a cat False"] * 4
    assert predict(topic=absent, image=[FINE] * 4) == ["None True"] * 4


def test_a_row_without_a_picture_is_refused_by_a_model_of_captions():
    served = ServedGenerator(Echo(reads_topics=False), LIMITS)
    assert served.predict(pd.DataFrame({"topic": ["a cat"], "image": [FINE]})) == ["a cat True"]
    with pytest.raises(InputError, match="row 0 has no image, and this model was trained on capt"):
        served.predict(pd.DataFrame({"topic": ["a cat"]}))


def wide() -> bytes:
    content = BytesIO()
    Image.new("1", (1000, 1000)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"topic": ["a", " "]}, "row 1 has neither topic nor image: give it one"),
        ({"topic": ["\u200b\u202e"]}, "row 0 has neither"),
        ({"topic": ["a" * 41]}, "row 0: topic has 41 characters, more than cli_write.max_characters"),
        ({"image": [FINE, b"no picture"]}, "row 1: image: unreadable image"),
        ({"image": [FINE, wide()]}, "row 1: image: image larger than max_pixels: 1000 x 1000"),
        ({"image": [bytes(10**6)]}, "row 0: image has 1000000 bytes, more than an image of"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(columns, said):
    with pytest.raises(InputError) as wrong:
        predict(**columns)
    assert str(wrong.value).startswith(said) and "\n" not in str(wrong.value)


def test_the_rules_are_those_of_the_project_where_one_stands(tmp_path, monkeypatch):
    shipped = load_nearest_rules("cli_write")
    text = Path("params.yaml").read_text()
    (tmp_path / "project/data").mkdir(parents=True)
    changed = text.replace("max_characters: 500", "max_characters: 7")
    (tmp_path / "project/params.yaml").write_text(changed)
    (tmp_path / "project/dvc.yaml").touch()
    monkeypatch.chdir(tmp_path / "project/data")
    assert load_nearest_rules("cli_write").max_characters == 7 and Path.cwd().name == "data"
    monkeypatch.chdir(tmp_path)
    assert load_nearest_rules("cli_write") == shipped
