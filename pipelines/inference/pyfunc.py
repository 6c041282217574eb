"""How MLflow loads a logged model (stages/shared/runtime/model_logging.py) as a Python function.

    model = mlflow.pyfunc.load_model("models:/m-...")
    model.predict(pandas.DataFrame({"topic": ["A quiet harbour"], "image": [None]}))
    model.predict(pandas.DataFrame({"text": ["what a harbour"], "image": [None]}))

A row has words, the bytes of a picture file, or both. A writer takes a `topic` and makes an article
of each row by itself: one text, the most probable one. A reader takes a `text` and gives each row
its labels: `words`, `tags` and `entities`, or `label` and `probability`. A writer of captions needs
the picture and reads no topic; a reader of entities needs the text. A reader of memes reads a
`text` that is absent from the picture, paints its words over, and gives a column for each task and
one for its probability.

The rules are those of `polymuse write` and `polymuse label`. Runs where this package is installed,
by the params.yaml of the current folder's project, else of the package's own.
"""

import json
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines import project
from pipelines.inference.generator import ArticleGenerator, GenerationInput
from pipelines.inference.input_rules import InputRules, has_visible_text, load_input_rules
from pipelines.inference.meme_labeler import MemeInput, MemeLabeler, prepare_memes, to_table_row
from pipelines.inference.model_bundle import detect_family, is_meme_classifier
from pipelines.inference.text_labeler import TextLabeler, build_input_from_text
from stages.inpaint import __main__ as inpaint
from stages.shared.core import config as params_file
from stages.shared.data.cache import batched
from stages.shared.generation.generator import GenerationConfig
from stages.shared.runtime.stage import InputError


class ServedGenerator:
    """What mlflow.pyfunc wraps of a writer."""

    def __init__(self, author: ArticleGenerator, limits: InputRules):
        self.generator, self.input_rules = author, limits

    def predict(self, rows: pd.DataFrame, params: dict | None = None) -> list[str]:
        """One text a row. Raises WrongInput that names the first row that cannot be used."""
        items = [
            self._build_input(f"row {number}", row) for number, row in enumerate(to_records(rows))
        ]
        # No search and no drawing: whoever wants those writes with `polymuse write`.
        batch = max(1, len(items))
        greedy = GenerationConfig(num_beams=1, temperature=0.0, top_p=1.0, seed=0, batch_size=batch)
        written = self.generator.generate([[item] for item in items], greedy)
        return [self.input_rules.clean_text(text.text) for (text,) in written]

    def _build_input(self, name: str, row: dict) -> GenerationInput:
        topic = self.input_rules.clean_topic(read_text(row, "topic"), f"{name}: topic")
        picture = read_image(row, name, self.input_rules)
        if not topic and picture is None:
            raise InputError(f"{name} has neither topic nor image: give it one")
        if picture is None and not self.generator.uses_topics:
            raise InputError(
                f"{name} has no image, and this model was trained on captions and writes "
                "about pictures alone: give it one"
            )
        return GenerationInput(topic, picture)


class ServedTextLabeler:
    """What mlflow.pyfunc wraps of a reader."""

    def __init__(self, labeller: TextLabeler, limits: InputRules, batch: int):
        self.labeler, self.input_rules, self.batch_size = labeller, limits, batch

    def predict(self, rows: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """A row of labels a row. Raises WrongInput that names the first row that cannot be used."""
        items = []
        for number, row in enumerate(to_records(rows)):
            name, text = f"row {number}", read_text(row, "text") or ""
            self.input_rules.check_length(text, f"{name}: text")
            picture = read_image(row, name, self.input_rules)
            self.labeler.check_input(has_visible_text(text), picture is not None, name)
            items.append(build_input_from_text(text if has_visible_text(text) else "", picture))
        found = [self.labeler.label(part) for part in batched(items, self.batch_size)]
        return pd.DataFrame([asdict(labels) for part in found for labels in part])


class ServedMemeLabeler:
    """What mlflow.pyfunc wraps of a reader of memes."""

    def __init__(
        self, labeller: MemeLabeler, limits: InputRules, painting: inpaint.InpaintConfig, batch: int
    ):
        self.labeler, self.input_rules = labeller, limits
        self.inpaint_config, self.batch_size = painting, batch

    def predict(self, rows: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """A row of labels a row. Raises WrongInput that names the first row that cannot be used."""
        memes = [
            self._build_input(f"row {number}", row) for number, row in enumerate(to_records(rows))
        ]
        found = []
        for part in batched(memes, self.batch_size):
            prepared = prepare_memes(part, self.inpaint_config, self.input_rules)
            found += map(to_table_row, prepared, self.labeler.label(prepared))
        return pd.DataFrame(found)

    def _build_input(self, name: str, row: dict) -> MemeInput:
        text = read_text(row, "text") or ""
        self.input_rules.check_length(text, f"{name}: text")
        picture = read_image(row, name, self.input_rules)
        if picture is None and not self.input_rules.clean_overlay(text):
            raise InputError(f"{name} has neither words nor picture: give it one")
        return MemeInput(name, text, picture)


def to_records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return rows.astype(object).to_dict("records")


def read_text(row: dict[str, Any], column: str) -> str | None:
    value = row.get(column)
    return value if isinstance(value, str) else None  # absent, which pandas may say as NaN


def read_image(row: dict[str, Any], name: str, limits: InputRules) -> bytes | None:
    picture = row.get("image")
    if not isinstance(picture, bytes) or not picture:
        return None
    return limits.check_image(picture, f"{name}: image")


def _load_pyfunc(folder: str) -> ServedGenerator | ServedTextLabeler | ServedMemeLabeler:
    """Raises WrongInput if the folder holds no model, or there is no params.yaml."""
    place = Path(folder).resolve()
    config = json.loads((place / "config.json").read_text())
    if is_meme_classifier(config):
        with chdir(find_nearest_project()):
            limits, painting = (
                load_input_rules("cli_label"),
                params_file.load_config(inpaint.InpaintConfig, "inpaint"),
            )
        return ServedMemeLabeler(
            MemeLabeler(place, folder), limits, painting, load_nearest_batch_size()
        )
    if detect_family(config) == "classifiers":
        limits = load_nearest_rules("cli_label")
        return ServedTextLabeler(
            TextLabeler(place, folder, limits.build_cleaner), limits, load_nearest_batch_size()
        )
    return ServedGenerator(ArticleGenerator(place, folder), load_nearest_rules("cli_write"))


def load_nearest_rules(section: str) -> InputRules:
    """Those of the nearest project."""
    with chdir(find_nearest_project()):
        return load_input_rules(section)


def load_nearest_batch_size() -> int:
    with chdir(find_nearest_project()):
        return params_file.load_config(int, "cli_label", "batch_size")


def find_nearest_project() -> Path:
    """The current folder's, else the one that this package is in."""
    try:
        return project.find_project(Path.cwd())
    except InputError:
        return project.find_project(Path(__file__).resolve().parent)
