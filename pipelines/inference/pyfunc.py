"""Load a logged model (stages/shared/runtime/model_logging.py) as a Python function of MLflow.

    model = mlflow.pyfunc.load_model("models:/m-...")
    model.predict(pandas.DataFrame({"topic": ["A quiet harbour"], "image": [None]}))
    model.predict(pandas.DataFrame({"text": ["what a harbour"], "image": [None]}))

A row has a text, an image, or both. An image is the content of an image file, over HTTP in base64;
null, NaN, an empty value and an absent column all mean that there is none.

- A generator takes `topic` and `image` and returns one text a row, by greedy decoding. A caption
  model needs the image and ignores the topic.
- A classifier of texts takes `text` and `image` and returns the columns `words`, `tags` and
  `entities`, or `label` and `probability`. A model for entities needs the text.
- A classifier of memes takes `text` and `image`, recognizes a missing text in the image and removes
  the text from the image. It returns a label and a probability column for each task.

A server (`mlflow models serve`) answers an invalid row with status 400 and one sentence.

Inputs follow the rules of `polymuse write` and `polymuse label`. This package must be installed.
The rules are read from params.yaml of the current folder's project, else from that of the package.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from pipelines import project
from pipelines.inference.generator import ArticleGenerator, GenerationInput
from pipelines.inference.input_rules import (
    InputRules,
    decode_base64,
    has_visible_text,
    load_input_rules,
)
from pipelines.inference.meme_labeler import MemeInput, MemeLabeler, prepare_memes, to_table_row
from pipelines.inference.model_bundle import detect_family, is_meme_classifier
from pipelines.inference.text_labeler import LabelInput, TextLabeler, build_input_from_text
from stages.inpaint import __main__ as inpaint
from stages.shared.core.config import load_config
from stages.shared.data.cache import batched
from stages.shared.generation.generator import GenerationConfig
from stages.shared.runtime.stage import InputError

T = TypeVar("T")


class RequestError(InputError, MlflowException):
    """An InputError that the server of MLflow answers with status 400 and the sentence alone."""

    def __init__(self, sentence: str):
        MlflowException.__init__(self, sentence, BAD_REQUEST)

    def serialize_as_json(self) -> str:
        """The body of the answer; that of MLflow would put the whole input before the sentence."""
        return json.dumps({"error_code": self.error_code, "message": str(self)})


class ServedGenerator:
    """The Python function of a generator."""

    def __init__(self, generator: ArticleGenerator, rules: InputRules, batch_size: int):
        self.generator, self.input_rules, self.batch_size = generator, rules, batch_size

    def predict(self, rows: pd.DataFrame, params: dict | None = None) -> list[str]:
        """One text a row. Raises RequestError that names the first invalid row."""
        with as_request_error():
            items = build_inputs(rows, self._build_input)
            return self._generate(items)

    def _generate(self, items: list[GenerationInput]) -> list[str]:
        # Greedy decoding; `polymuse write` offers beam search and sampling.
        greedy = GenerationConfig(
            num_beams=1,
            temperature=0.0,
            top_p=1.0,
            no_repeat_ngram_size=0,
            seed=0,
            batch_size=self.batch_size,
        )
        articles = self.generator.generate([[item] for item in items], greedy)
        return [self.input_rules.clean_text(text.text) for (text,) in articles]

    def _build_input(self, name: str, row: dict) -> GenerationInput:
        topic = self.input_rules.clean_topic(read_text(row, "topic"), f"{name}: topic")
        image = read_image(row, name, self.input_rules)
        if not topic and image is None:
            raise InputError(f"{name} has neither topic nor image: give it one")
        if image is None and not self.generator.uses_topics:
            raise InputError(
                f"{name} has no image, and this model was trained on captions and writes "
                "about images alone: give it one"
            )
        return GenerationInput(topic, image)


class ServedTextLabeler:
    """The Python function of a classifier of tweets or posts."""

    def __init__(self, labeler: TextLabeler, rules: InputRules, batch_size: int):
        self.labeler, self.input_rules, self.batch_size = labeler, rules, batch_size

    def predict(self, rows: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """The labels of each row. Raises RequestError that names the first invalid row."""
        with as_request_error():
            items = build_inputs(rows, self._build_input)
            batches = [self.labeler.label(batch) for batch in batched(items, self.batch_size)]
        return pd.DataFrame([asdict(labels) for batch in batches for labels in batch])

    def _build_input(self, name: str, row: dict) -> LabelInput:
        text = read_text(row, "text") or ""
        self.input_rules.check_length(text, f"{name}: text")
        image = read_image(row, name, self.input_rules)
        self.labeler.check_input(has_visible_text(text), image is not None, name)
        return build_input_from_text(text if has_visible_text(text) else "", image)


class ServedMemeLabeler:
    """The Python function of a classifier of memes."""

    def __init__(
        self,
        labeler: MemeLabeler,
        rules: InputRules,
        inpaint_config: inpaint.InpaintConfig,
        batch_size: int,
    ):
        self.labeler, self.input_rules = labeler, rules
        self.inpaint_config, self.batch_size = inpaint_config, batch_size

    def predict(self, rows: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """The labels of each row. Raises RequestError that names the first invalid row."""
        table = []
        with as_request_error():
            memes = build_inputs(rows, self._build_input)
            for batch in batched(memes, self.batch_size):
                prepared = prepare_memes(batch, self.inpaint_config, self.input_rules)
                table += map(to_table_row, prepared, self.labeler.label(prepared))
        return pd.DataFrame(table)

    def _build_input(self, name: str, row: dict) -> MemeInput:
        text = read_text(row, "text") or ""
        self.input_rules.check_length(text, f"{name}: text")
        image = read_image(row, name, self.input_rules)
        if image is None and not self.input_rules.clean_overlay(text):
            raise InputError(f"{name} has neither text nor image: give it one")
        return MemeInput(name, text, image)


@contextmanager
def as_request_error() -> Iterator[None]:
    """Turn an InputError of the block into a RequestError."""
    try:
        yield
    except InputError as error:
        raise RequestError(str(error)) from None


def build_inputs(rows: pd.DataFrame, build_input: Callable[[str, dict], T]) -> list[T]:
    """The input of each row; `build_input` gets its name for messages, and its values by column."""
    records = rows.astype(object).to_dict("records")
    return [build_input(f"row {number}", record) for number, record in enumerate(records)]


def read_text(row: dict[str, Any], column: str) -> str | None:
    value = row.get(column)
    return value if isinstance(value, str) else None  # pandas represents missing values as NaN


def read_image(row: dict[str, Any], name: str, rules: InputRules) -> bytes | None:
    """The content of the image of a row, if there is one. Raises InputError if it is invalid."""
    content = row.get("image")
    if isinstance(content, str):
        content = decode_base64(content, f"{name}: image")
    if not isinstance(content, bytes) or not content:
        return None
    return rules.check_image(content, f"{name}: image")


def _load_pyfunc(folder: str) -> ServedGenerator | ServedTextLabeler | ServedMemeLabeler:
    """Called by MLflow. Raises InputError if the folder is not a model or has no params.yaml."""
    path = Path(folder).resolve()
    config = json.loads((path / "config.json").read_text())
    nearest = find_nearest_project()
    if detect_family(config) == "generators":
        rules = load_input_rules("cli_write", nearest)
        batch_size = load_config(int, "cli_write", "batch_size", folder=nearest)
        return ServedGenerator(ArticleGenerator(path, folder), rules, batch_size)
    rules = load_input_rules("cli_label", nearest)
    batch_size = load_config(int, "cli_label", "batch_size", folder=nearest)
    inpaint_config = load_config(inpaint.InpaintConfig, "inpaint", folder=nearest)
    if is_meme_classifier(config):
        return ServedMemeLabeler(MemeLabeler(path, folder), rules, inpaint_config, batch_size)
    return ServedTextLabeler(TextLabeler(path, folder, rules.build_cleaner), rules, batch_size)


def find_nearest_project() -> Path:
    """The project of the current folder, else the one that contains this package."""
    try:
        return project.find_project(Path.cwd())
    except InputError:
        return project.find_project(Path(__file__).resolve().parent)
