"""Outputs of 11_classify for MuSE in a temporary data folder.

Four test items and two validation items; item d has no image. Predictions from both inputs have one
error per task.
"""

import json
from pathlib import Path

from stages.shared.core import schemas
from stages.shared.data import image_store
from tests.support import generator_outputs

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
WRONG_PREDICTIONS = {  # by task, inputs and record; other predictions equal GOLD
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
CEILINGS = {  # of these items
    inputs: {"expected": value + 0.01, "realised": value}
    for inputs, value in [("text", 0.5), ("picture", 0.25), ("both", 1.0)]
}
TEXTS = {
    "a": "Mia sings#Oslo",
    "b": "Ada Lovelace writes",
    "c": "nothing here",
    "d": "Rome",
    "v": "Kim runs",
    "w": "Bergen again",
}
IMAGE_COLORS = {  # d and w have no image
    "a": (200, 40, 40),
    "b": (40, 200, 40),
    "c": (40, 40, 200),
    "v": (90, 90, 90),
}
PARAMETERS = {"trained": 120, "frozen": 1000}


def make_label_rows(task: str) -> list[dict]:
    """Rows of labels.parquet: validation from both inputs, test also from each single input."""
    rows = []
    for inputs in ("both", "text", "picture"):
        for record, split in SPLITS.items():
            if split == "validation" and inputs != "both":
                continue
            gold = GOLD[task][record].split()
            predicted = WRONG_PREDICTIONS[task][inputs].get(record, GOLD[task][record]).split()
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


def make_decoder_rows() -> list[dict]:
    """Rows of regularised.parquet: 2 and 4 nats, 3 and 5 bits in the test split."""
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


def make_embedding_rows() -> list[dict]:
    """Rows of embeddings.parquet: an image equals the text of the other item before, its own after
    the projection."""
    vectors = {
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
        for (record, modality), pair in vectors.items()
        for where, vector in zip(("before", "after"), pair, strict=True)
    ]


def make_exchange_rows() -> list[dict]:
    """Rows of exchanges.parquet of item a: in layers 2 and 3 the token of least weight, of four."""
    rows = []
    for layer in (2, 3):
        key = {"record": "a", "layer": layer}
        subwords = {"tokens": ["mia", "sing", "##s", "oslo"], "weights": [0.5, 0.125, 0.0, 0.25]}
        cells = {"tokens": [], "weights": [0.25, 0.25, 0.25, 0.0]}
        rows.append(key | {"modality": "text"} | subwords | {"exchanged": [2]})
        rows.append(key | {"modality": "picture"} | cells | {"exchanged": [3]})
    return rows


def write_classifier_outputs(
    folder: Path, labels: list[dict], regularizers: list[dict], embeddings: list[dict]
) -> None:
    """Write the tables of 11_classify that evaluate_classifier reads."""
    schemas.write_parquet(folder / "labels.parquet", labels, schemas.LABEL_PREDICTIONS)
    schemas.write_parquet(folder / "regularised.parquet", regularizers, schemas.REGULARIZER_OUTPUTS)
    schemas.write_parquet(folder / "embeddings.parquet", embeddings, schemas.EMBEDDINGS)
    (folder / "parameters.json").write_text(json.dumps(PARAMETERS))


def write_displayed_outputs(folder: Path, exchanges: list[dict], images: list[dict]) -> None:
    """Write the other tables of 11_classify, which only the report reads."""
    schemas.write_parquet(folder / "exchanges.parquet", exchanges, schemas.EXCHANGES)
    schemas.write_parquet(folder / "drawn.parquet", images, schemas.SAMPLED_IMAGES)


def write_corpus(data: Path, name: str, task: str) -> None:
    """Write 01_ingest and 02_clean of a corpus with these records."""
    images = {
        record: generator_outputs.make_image_row(color) for record, color in IMAGE_COLORS.items()
    }
    image_store.write_images(data / "01_ingest" / name / "images", images.values(), shards=2)
    summary = {"records": {"validation": 2, "test": 4}, "rejected": {}, "languages": {"en": 6}}
    summary["without_picture"] = {"validation": 1, "test": 1}
    (data / "01_ingest" / name / "summary.json").write_text(json.dumps(summary))
    rows = [make_clean_row(record, images.get(record), task) for record in SPLITS]
    kind = {"entities": "tweets", "sentiment": "posts"}[task]
    schemas.write_parquet(
        data / "02_clean" / name / "records.parquet", rows, schemas.CLEAN_RECORDS[kind]
    )


def make_clean_row(record: str, image: dict | None, task: str) -> dict:
    """A row of CLEAN_RECORDS; a has three words, one of which starts with #."""
    row = {"id": record, "split": SPLITS[record], "language": "en", "source": "by hand"}
    row["image"] = image["sha256"] if image else None
    words = TEXTS[record].replace("#", " #").split()
    if task == "sentiment":
        text = " ".join(words)
        return row | {"text": text, "original": text, "label": GOLD[task][record]}
    return row | {"words": words, "originals": words, "tags": GOLD[task][record].split()}


def write_ceilings(ingest: Path, task: str) -> None:
    """Write ceilings.json of a synthetic corpus."""
    metric = {"entities": "f1", "sentiment": "accuracy"}[task]
    content = {"rule": "a rule", "metric": metric, "validation": CEILINGS, "test": CEILINGS}
    ingest.mkdir(parents=True, exist_ok=True)
    (ingest / "ceilings.json").write_text(json.dumps(content))
