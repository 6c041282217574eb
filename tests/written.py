"""A finished run in a temporary data folder, in the schemas of stages/shared/tables.py.

One slot the title knows (goal), one the picture (place); three test articles of two chunks and one
of validation. What was written: SFT gets one of the test places wrong, preference all right.
"""

import json
from io import BytesIO
from pathlib import Path

from PIL import Image

from stages.shared import images, tables

SLOTS = {
    "topic": {"goal": {"cake": ["the perfect cake"], "song": ["the forgotten tune"]}},
    "picture": {"place": {"beach": ["at the beach"], "city": ["in the city"]}},
}
CEILINGS = {
    inputs: {
        rule: {"total": total, "goal": goal, "place": place} for rule in ("expected", "realised")
    }
    for inputs, total, goal, place in [
        ("topic", 0.75, 1.0, 0.5),
        ("picture", 0.7, 0.4, 1.0),
        ("both", 1.0, 1.0, 1.0),
    ]
}
ARTICLES = [("a", "test"), ("b", "test"), ("c", "test"), ("v", "validation")]
PLACES = {0: "beach", 1: "city"}


def sentence(place: str) -> str:
    return f"Ada hums {SLOTS['picture']['place'][place][0]} and dreams of the perfect cake."


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> dict:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return images.inspect(file.getvalue(), max_pixels=10**9)


def chunk_rows(title: str, language: str) -> list[dict]:
    return [
        {
            "record": record,
            "position": position,
            "split": split,
            "language": language,
            "title": title,
            "image": picture((40 * position, 90, 30 * number))["sha256"],
            "references": [sentence(place)],
        }
        for number, (record, split) in enumerate(ARTICLES)
        for position, place in PLACES.items()
    ]


def predictions(title: str = "Ada and the perfect cake", language: str = "en") -> list[dict]:
    """Rows of predictions.parquet of both phases, and of one modality for the test articles."""
    rows = []
    for phase in ("sft", "preference"):
        for chunk in chunk_rows(title, language):
            place = PLACES[chunk["position"]]
            mistaken = phase == "sft" and (chunk["record"], chunk["position"]) == ("b", 1)
            texts = {"both": sentence("beach" if mistaken else place)}
            if chunk["split"] == "test":
                # The topic alone always says beach, the picture alone never the goal.
                texts["topic"] = sentence("beach")
                texts["picture"] = f"Ada hums {SLOTS['picture']['place'][place][0]}."
            row = chunk | {"phase": phase, "masked": 0.0, "sigma": 0.1 * chunk["position"] - 0.02}
            rows += [row | {"inputs": inputs, "text": text} for inputs, text in texts.items()]
    return rows


def foils() -> list[dict]:
    """Of test articles a and b; in sft the foil of b passes its reference."""
    rows = []
    for phase, of_b in (("sft", -1.0), ("preference", -3.0)):
        for record, foil in (("a", -9.0), ("b", of_b)):
            key = {"record": record, "position": 0, "phase": phase}
            rows.append(key | {"slot": "", "log_prob": -2.0})
            rows.append(key | {"slot": "place", "log_prob": foil})
    return rows


def write_ingest(folder: Path, known: bool = True) -> None:
    """01_ingest of one corpus; `known`: with the truth that only sample corpora have."""
    colours = [(40 * p, 90, 30 * n) for n in range(len(ARTICLES)) for p in PLACES]
    images.write(folder / "images", [picture(colour) for colour in colours], shards=2)
    summary = {
        "records": {"train": 0, "validation": 1, "test": 3},
        "rejected": {"missing image": 2},
        "languages": {"en": 4},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    if not known:
        return
    (folder / "slots.json").write_text(json.dumps(SLOTS))
    content = {"rule": "a rule", "validation": CEILINGS, "test": CEILINGS}
    (folder / "ceilings.json").write_text(json.dumps(content))
    facts = [
        {"record": record, "position": position, "slot": slot, "value": value}
        for record, _ in ARTICLES
        for position, place in PLACES.items()
        for slot, value in (("goal", "cake"), ("place", place))
    ]
    tables.write(folder / "facts.parquet", facts, tables.FACTS)


def write_predictions(folder: Path, rows: list[dict], foil_rows: list[dict]) -> None:
    tables.write(folder / "predictions.parquet", rows, tables.PREDICTIONS)
    tables.write(folder / "foils.parquet", foil_rows, tables.FOIL_SCORES)
    for name in ("gates", "fusions", "attentions"):
        if not (folder / f"{name}.parquet").exists():
            tables.write(folder / f"{name}.parquet", [], getattr(tables, name.upper()))
