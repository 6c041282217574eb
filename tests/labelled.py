"""What a reader labelled, in a temporary data folder, in the schemas of stages/shared/tables.py.

Four test items and two of validation; item d has no picture. `both` gets one thing wrong.
"""

import json
from pathlib import Path

from stages.shared import tables

SPLITS = dict.fromkeys("abcd", "test") | dict.fromkeys("vw", "validation")
GOLD = {
    "entities": {
        "a": "B-PER O B-LOC",
        "b": "B-PER I-PER O",
        "c": "O O",
        "d": "B-LOC",
        "v": "B-PER O",
        "w": "B-LOC O",
    },
    "sentiment": {
        "a": "positive",
        "b": "negative",
        "c": "neutral",
        "d": "positive",
        "v": "neutral",
        "w": "negative",
    },
}
WRONG = {  # what was predicted instead, by inputs
    "entities": {
        "both": {"b": "O I-PER O", "c": "O B-NEW"},
        "text": {"a": "B-PER O B-PER", "b": "O O O", "c": "O B-LOC"},
        "picture": dict.fromkeys("a", "O O O") | {"b": "O O O", "d": "O"},
    },
    "sentiment": {
        "both": {"d": "negative"},
        "text": {"c": "positive", "d": "negative"},
        "picture": {"a": "negative", "b": "positive", "c": "positive", "d": "neutral"},
    },
}
CEILINGS = {  # of the same items
    inputs: {"expected": value + 0.01, "realised": value}
    for inputs, value in [("text", 0.5), ("picture", 0.25), ("both", 1.0)]
}
PARAMETERS = {"trained": 120, "frozen": 1000}


def labels(task: str) -> list[dict]:
    """Rows of labels.parquet: of validation from both inputs, of test from each as well."""
    rows = []
    for inputs in ("both", "text", "picture"):
        for record, split in SPLITS.items():
            if split == "validation" and inputs != "both":
                continue
            gold = GOLD[task][record].split()
            predicted = WRONG[task][inputs].get(record, GOLD[task][record]).split()
            rows.append(
                {
                    "record": record,
                    "split": split,
                    "inputs": inputs,
                    "task": task,
                    "gold": gold,
                    "predicted": predicted,
                    "probability": [0.75] if task == "sentiment" else [],
                    "cut": 2 if record == "b" else 0,
                }
            )
    return rows


def regularised() -> list[dict]:
    """Nats of 2 and 4, bits of 3 and 5 in the test split; item d has no picture."""
    nats = {"a": 2.0, "b": 4.0, "v": 1.0}
    return [
        {"record": record, "split": split}
        | {
            "caption_nats": nats.get(record),
            "drawing_bits": nats[record] + 1 if record in nats else None,
        }
        | {"caption": "Mia sings" if record == "a" else None}
        for record, split in SPLITS.items()
    ]


def embeddings() -> list[dict]:
    """Of a and b, and the text of d: pictures lie with the other's text before, with their own
    after."""
    places = {
        ("a", "text"): ([1, 0], [1, 0]),
        ("b", "text"): ([0, 1], [0, 1]),
        ("d", "text"): ([5, 5], [5, 5]),
        ("a", "picture"): ([0, 1], [1, 0]),
        ("b", "picture"): ([1, 0], [0, 1]),
        ("v", "text"): ([9, 9], [9, 9]),
        ("v", "picture"): ([-9, 9], [-9, 9]),
    }
    return [
        {"record": record, "modality": modality, "where": where, "vector": vector}
        for (record, modality), vectors in places.items()
        for where, vector in zip(("before", "after"), vectors, strict=True)
    ]


def write(folder: Path, rows: list[dict], lessons: list[dict], vectors: list[dict]) -> None:
    """11_label of one reader."""
    tables.write(folder / "labels.parquet", rows, tables.LABELS)
    tables.write(folder / "regularised.parquet", lessons, tables.REGULARISED)
    tables.write(folder / "embeddings.parquet", vectors, tables.EMBEDDINGS)
    (folder / "parameters.json").write_text(json.dumps(PARAMETERS))


def write_ceilings(ingest: Path, task: str) -> None:
    """01_ingest/ceilings.json of a sample corpus."""
    metric = {"entities": "f1", "sentiment": "accuracy"}[task]
    content = {"rule": "a rule", "metric": metric, "validation": CEILINGS, "test": CEILINGS}
    ingest.mkdir(parents=True, exist_ok=True)
    (ingest / "ceilings.json").write_text(json.dumps(content))
