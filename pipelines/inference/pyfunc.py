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
from pipelines.inference.generator import Author, Item
from pipelines.inference.input_rules import Rules, readable, rules
from pipelines.inference.meme_labeler import Meme, MemeLabeller, fields, prepare
from pipelines.inference.model_bundle import family_of, reads_memes
from pipelines.inference.text_labeler import Labeller, of_text
from stages.inpaint import __main__ as inpaint
from stages.shared.core import config as params_file
from stages.shared.data.cache import batched
from stages.shared.generation.generator import Generation
from stages.shared.runtime.stage import WrongInput


class Served:
    """What mlflow.pyfunc wraps of a writer."""

    def __init__(self, author: Author, limits: Rules):
        self.author, self.limits = author, limits

    def predict(self, rows: pd.DataFrame, params: dict | None = None) -> list[str]:
        """One text a row. Raises WrongInput that names the first row that cannot be used."""
        items = [self._item(f"row {number}", row) for number, row in enumerate(given(rows))]
        # No search and no drawing: whoever wants those writes with `polymuse write`.
        batch = max(1, len(items))
        greedy = Generation(beams=1, temperature=0.0, top_p=1.0, seed=0, batch=batch)
        written = self.author.write([[item] for item in items], greedy)
        return [self.limits.text(text.text) for (text,) in written]

    def _item(self, name: str, row: dict) -> Item:
        topic = self.limits.topic(words(row, "topic"), f"{name}: topic")
        picture = picture_of(row, name, self.limits)
        if not topic and picture is None:
            raise WrongInput(f"{name} has neither topic nor image: give it one")
        if picture is None and not self.author.reads_topics:
            raise WrongInput(
                f"{name} has no image, and this model was trained on captions and writes "
                "about pictures alone: give it one"
            )
        return Item(topic, picture)


class ServedLabels:
    """What mlflow.pyfunc wraps of a reader."""

    def __init__(self, labeller: Labeller, limits: Rules, batch: int):
        self.labeller, self.limits, self.batch = labeller, limits, batch

    def predict(self, rows: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """A row of labels a row. Raises WrongInput that names the first row that cannot be used."""
        items = []
        for number, row in enumerate(given(rows)):
            name, text = f"row {number}", words(row, "text") or ""
            self.limits.length(text, f"{name}: text")
            picture = picture_of(row, name, self.limits)
            self.labeller.check(readable(text), picture is not None, name)
            items.append(of_text(text if readable(text) else "", picture))
        found = [self.labeller.label(part) for part in batched(items, self.batch)]
        return pd.DataFrame([asdict(labels) for part in found for labels in part])


class ServedMemes:
    """What mlflow.pyfunc wraps of a reader of memes."""

    def __init__(self, labeller: MemeLabeller, limits: Rules, painting: inpaint.Params, batch: int):
        self.labeller, self.limits = labeller, limits
        self.painting, self.batch = painting, batch

    def predict(self, rows: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """A row of labels a row. Raises WrongInput that names the first row that cannot be used."""
        memes = [self._meme(f"row {number}", row) for number, row in enumerate(given(rows))]
        found = []
        for part in batched(memes, self.batch):
            prepared = prepare(part, self.painting, self.limits)
            found += map(fields, prepared, self.labeller.label(prepared))
        return pd.DataFrame(found)

    def _meme(self, name: str, row: dict) -> Meme:
        text = words(row, "text") or ""
        self.limits.length(text, f"{name}: text")
        picture = picture_of(row, name, self.limits)
        if picture is None and not self.limits.overlay(text):
            raise WrongInput(f"{name} has neither words nor picture: give it one")
        return Meme(name, text, picture)


def given(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return rows.astype(object).to_dict("records")


def words(row: dict[str, Any], column: str) -> str | None:
    value = row.get(column)
    return value if isinstance(value, str) else None  # absent, which pandas may say as NaN


def picture_of(row: dict[str, Any], name: str, limits: Rules) -> bytes | None:
    picture = row.get("image")
    if not isinstance(picture, bytes) or not picture:
        return None
    return limits.picture(picture, f"{name}: image")


def _load_pyfunc(folder: str) -> Served | ServedLabels | ServedMemes:
    """Raises WrongInput if the folder holds no model, or there is no params.yaml."""
    place = Path(folder).resolve()
    config = json.loads((place / "config.json").read_text())
    if reads_memes(config):
        with chdir(nearest_project()):
            limits, painting = rules("read"), params_file.load(inpaint.Params, "inpaint")
        return ServedMemes(MemeLabeller(place, folder), limits, painting, nearest_batch())
    if family_of(config) == "readers":
        limits = nearest_rules("read")
        return ServedLabels(Labeller(place, folder, limits.cleaner), limits, nearest_batch())
    return Served(Author(place, folder), nearest_rules("write"))


def nearest_rules(section: str) -> Rules:
    """Those of the nearest project."""
    with chdir(nearest_project()):
        return rules(section)


def nearest_batch() -> int:
    with chdir(nearest_project()):
        return params_file.load(int, "read", "batch")


def nearest_project() -> Path:
    """The current folder's, else the one that this package is in."""
    try:
        return project.find(Path.cwd())
    except WrongInput:
        return project.find(Path(__file__).resolve().parent)
