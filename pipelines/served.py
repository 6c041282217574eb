"""How MLflow loads a logged model (stages/shared/logged_models.py) as a Python function.

    model = mlflow.pyfunc.load_model("models:/m-...")
    model.predict(pandas.DataFrame({"topic": ["A quiet harbour"], "image": [None]}))

A row has a topic, the bytes of a picture file, or both, and is an article by itself; predict gives
one text a row, the most probable one. A model of captions needs the picture and reads no topic.
Topics, pictures and texts pass the rules of `polymuse write`. Runs where this package is installed,
by the params.yaml of the current folder's project, else of the package's own.
"""

from contextlib import chdir
from pathlib import Path

import pandas as pd

from pipelines import project
from pipelines.author import Author, Item
from pipelines.given import Rules, rules
from stages.shared.runs import Generation
from stages.shared.stage import WrongInput


class Served:
    """What mlflow.pyfunc wraps."""

    def __init__(self, author: Author, limits: Rules):
        self.author, self.limits = author, limits

    def predict(self, rows: pd.DataFrame, params: dict | None = None) -> list[str]:
        """One text a row. Raises WrongInput that names the first row that cannot be used."""
        given = rows.astype(object).to_dict("records")
        items = [self._item(number, row) for number, row in enumerate(given)]
        # No search and no drawing: whoever wants those writes with `polymuse write`.
        batch = max(1, len(items))
        greedy = Generation(beams=1, temperature=0.0, top_p=1.0, seed=0, batch=batch)
        written = self.author.write([[item] for item in items], greedy)
        return [self.limits.text(text.text) for (text,) in written]

    def _item(self, number: int, row: dict) -> Item:
        topic, picture = row.get("topic"), row.get("image")
        topic = self.limits.topic(topic if isinstance(topic, str) else None, f"row {number}: topic")
        if not isinstance(picture, bytes) or not picture:
            picture = None  # absent, which pandas may say as NaN
        if not topic and picture is None:
            raise WrongInput(f"row {number} has neither topic nor image: give it one")
        if picture is None and not self.author.reads_topics:
            raise WrongInput(
                f"row {number} has no image, and this model was trained on captions and writes "
                "about pictures alone: give it one"
            )
        if picture is not None:
            self.limits.picture(picture, f"row {number}: image")
        return Item(topic, picture)


def _load_pyfunc(folder: str) -> Served:
    """Raises WrongInput if the folder holds no model, or there is no params.yaml."""
    return Served(Author(Path(folder).resolve(), folder), nearest_rules())


def nearest_rules() -> Rules:
    """Those of the current folder's project, else of the one that this package is in."""
    try:
        place = project.find(Path.cwd())
    except WrongInput:
        place = project.find(Path(__file__).resolve().parent)
    with chdir(place):
        return rules()
