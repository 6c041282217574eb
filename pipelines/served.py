"""How MLflow loads a logged model (stages/shared/logged_models.py) as a Python function.

    model = mlflow.pyfunc.load_model("models:/m-...")
    model.predict(pandas.DataFrame({"topic": ["A quiet harbour"], "image": [None]}))

A row has a topic, the bytes of a picture file, or both; predict gives one text a row, the most
probable one. Runs where this package is installed.
"""

from pathlib import Path

import pandas as pd

from pipelines.author import Author, Item
from stages.shared.runs import Generation


class Served:
    """What mlflow.pyfunc wraps."""

    def __init__(self, author: Author):
        self.author = author

    def predict(self, rows: pd.DataFrame, params: dict | None = None) -> list[str]:
        """One text a row. A row with neither topic nor image is told so by an exception."""
        items = [
            Item(_given(row, "topic"), _given(row, "image"))
            for row in rows.astype(object).to_dict("records")
        ]
        if empty := [number for number, item in enumerate(items) if not any(_fields(item))]:
            raise ValueError(f"row {empty[0]} has neither topic nor image")
        # No search and no drawing: whoever wants those writes with `polymuse write`.
        batch = max(1, len(items))
        greedy = Generation(beams=1, temperature=0.0, top_p=1.0, seed=0, batch=batch)
        return [text.text for text in self.author.write(items, greedy)]


def _given(row: dict, column: str) -> object:
    value = row.get(column)
    return value if isinstance(value, str | bytes) and value.strip() else None


def _fields(item: Item) -> tuple:
    return item.topic, item.picture


def _load_pyfunc(folder: str) -> Served:
    return Served(Author(Path(folder), folder))
