"""The outputs of a finished generator run, in the schemas of stages/shared/core/schemas.py.

One slot is known from the title (goal), one from the image (place). There are three test articles
and one validation article with two chunks each. SFT gets one of the test places wrong, preference
none.
"""

import json
import re
from io import BytesIO
from pathlib import Path

from PIL import Image

from stages.shared.core import schemas
from stages.shared.data import image_store
from stages.shared.similarity import embedders

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
REWARDS_CONFIG = embedders.RewardConfig(
    max_tokens=64,
    openai=embedders.EmbeddingServerConfig(batch_size=1, concurrency=1, max_retries=0, timeout=1.0),
)
ARTICLES = [("a", "test"), ("b", "test"), ("c", "test"), ("v", "validation")]
PLACES = {0: "beach", 1: "city"}


def make_sentence(place: str) -> str:
    return f"Ada hums {SLOTS['picture']['place'][place][0]} and dreams of the perfect cake."


def make_image_row(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> dict:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return image_store.validate_image(file.getvalue(), max_pixels=10**9)


def make_chunk_rows(title: str, language: str) -> list[dict]:
    return [
        {
            "record": record,
            "position": position,
            "split": split,
            "language": language,
            "title": title,
            "image": make_image_row((40 * position, 90, 30 * number))["sha256"],
            "references": [make_sentence(place)],
        }
        for number, (record, split) in enumerate(ARTICLES)
        for position, place in PLACES.items()
    ]


def make_predictions(title: str = "Ada and the perfect cake", language: str = "en") -> list[dict]:
    """Rows of predictions.parquet for both phases, and for single inputs of the test articles."""
    rows = []
    for phase in ("sft", "preference"):
        for chunk in make_chunk_rows(title, language):
            place = PLACES[chunk["position"]]
            is_wrong = phase == "sft" and (chunk["record"], chunk["position"]) == ("b", 1)
            texts = {"both": make_sentence("beach" if is_wrong else place)}
            if chunk["split"] == "test":
                # The topic alone always gives beach; the image alone gives no goal.
                texts["topic"] = make_sentence("beach")
                texts["picture"] = f"Ada hums {SLOTS['picture']['place'][place][0]}."
            row = chunk | {"phase": phase, "masked": 0.0, "sigma": 0.1 * chunk["position"] - 0.02}
            rows += [row | {"inputs": inputs, "text": text} for inputs, text in texts.items()]
    return rows


def make_foil_rows() -> list[dict]:
    """Rows of test articles a and b; in sft the foil of b scores above its reference."""
    rows = []
    for phase, b_log_prob in (("sft", -1.0), ("preference", -3.0)):
        for record, foil in (("a", -9.0), ("b", b_log_prob)):
            key = {"record": record, "position": 0, "phase": phase}
            rows.append(key | {"slot": "", "log_prob": -2.0})
            rows.append(key | {"slot": "place", "log_prob": foil})
    return rows


def write_ingest(folder: Path, with_facts: bool = True) -> None:
    """01_ingest of one corpus; with_facts: with the facts that only synthetic corpora have."""
    colours = [(40 * p, 90, 30 * n) for n in range(len(ARTICLES)) for p in PLACES]
    image_store.write_images(
        folder / "images", [make_image_row(colour) for colour in colours], shards=2
    )
    summary = {
        "records": {"train": 0, "validation": 1, "test": 3},
        "rejected": {"missing image": 2},
        "languages": {"en": 4},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    if not with_facts:
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
    schemas.write_parquet(folder / "facts.parquet", facts, schemas.FACTS)


def make_baseline_rows(rows: list[dict]) -> list[dict]:
    """BASELINES for the test items of these predictions.

    Texts of the nearest image are the references, those of shuffled images are of another place.
    """
    chunks = {
        (row["record"], row["position"]): row
        for row in rows
        if (row["split"], row["inputs"]) == ("test", "both")
    }
    return [
        row | {"baseline": baseline, "text": text}
        for row in chunks.values()
        for baseline, text in (
            ("nearest_image", row["references"][0]),
            ("shuffled_images", make_sentence(PLACES[1 - row["position"]])),
        )
    ]


def write_predictions(folder: Path, rows: list[dict], foil_rows: list[dict]) -> None:
    schemas.write_parquet(folder / "predictions.parquet", rows, schemas.PREDICTIONS)
    schemas.write_parquet(folder / "foils.parquet", foil_rows, schemas.FOIL_SCORES)
    schemas.write_parquet(folder / "baselines.parquet", make_baseline_rows(rows), schemas.BASELINES)
    summary = {
        "model": "FlexMUSE",
        "omitted_baselines": {"nearest_topic": "no topic"},
        "preference": {"name": "mscDPO", "kept_sft_weights": False, "without_gain": "no reason"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    for name in ("gates", "fusions", "attentions"):
        if not (folder / f"{name}.parquet").exists():
            schemas.write_parquet(folder / f"{name}.parquet", [], getattr(schemas, name.upper()))


def write_chunks(folder: Path) -> None:
    """05_chunk of three train articles: two similar chunks, a single one, two unrelated ones."""
    similarities = {"t": [[1.0, 0.95], [0.95, 1.0]], "u": [[1.0]], "w": [[1.0, 0.04], [0.04, 1.0]]}
    keys = [
        (record, position)
        for record in similarities
        for position in range(len(similarities[record]))
    ]
    chunks = [
        {
            "record": record,
            "position": position,
            "split": "train",
            "language": "en",
            "title": f"Article {record}",
            "image": None,
            "text": f"Chunk {position} of {record}.",
            "references": [f"Chunk {position} of {record}."],
        }
        for record, position in keys
    ]
    schemas.write_parquet(folder / "chunks.parquet", chunks, schemas.CHUNKS)
    rows = [
        {"record": record, "position": position, "similarities": similarities[record][position]}
        for record, position in keys
    ]
    schemas.write_parquet(folder / "similarities.parquet", rows, schemas.SIMILARITIES)


def write_illustrations(folder: Path, rows: list[dict]) -> None:
    """08_illustrate of one corpus; rows have record, position, image, source and similarity."""
    every = {"split": "test", "text": "a title", "backend": "retrieve", "seed": 0}
    schemas.write_parquet(
        folder / "illustrations.parquet", [every | row for row in rows], schemas.ILLUSTRATIONS
    )
    known = [row["similarity"] for row in rows if row["similarity"] is not None]
    summary = {
        "backend": "retrieve",
        "illustrated": {"test": len(rows)},
        "left_without": {"nothing similar": 1},
        "similarity": sum(known) / len(known) if known else None,
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def make_attention_rows() -> list[dict]:
    """Rows for both phases and 4 patches.

    Patch p attends to token p of the title. The decoder attends to the last patch at the place, and
    uniformly elsewhere.
    """
    rows = []
    for row in make_predictions():
        if (row["split"], row["inputs"]) != ("test", "both"):
            continue
        tokens = row["title"].split()
        fusion = [0.6 if token == patch else 0.1 for patch in range(4) for token in range(5)]
        words = list(re.finditer(r"\s*\S+", row["text"]))
        is_place = [word[0].strip() in ("beach", "city") for word in words]
        decoder = [p for place in is_place for p in ([0.1, 0.1, 0.1, 0.7] if place else [0.25] * 4)]
        rows.append(
            {name: row[name] for name in ("record", "position", "phase", "text")}
            | {"tokens": tokens, "fusion": fusion}
            | {"ends": [word.end() for word in words], "decoder": decoder}
        )
    return rows


def write_attention(predicted: Path, ingest: Path) -> None:
    """Gate, fusion and attention of 11_predict, and the boxes of 01_ingest."""
    keys = [(record, position) for record, _ in ARTICLES for position in PLACES]
    sigmas = [0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, None]
    gates = [
        {"record": record, "position": position, "split": "test", "use": use, "mode": mode}
        | {"sigma": sigma, "mask_probability": sigma, "passed": float(passed)}
        for use, mode in (("train", "sample"), ("predict", "always_pass"))
        for (record, position), sigma in zip(keys, sigmas, strict=True)
        for passed in [use == "predict" or sigma != 0.9]
    ]
    schemas.write_parquet(predicted / "gates.parquet", gates, schemas.GATES)
    fusions = [
        {"record": record, "position": position, "phase": phase}
        | {"correlation": [0.25, 0.75], "entropy": 0.8, "spread": 0.1}
        for record, position in keys
        for phase in ("sft", "preference")
    ]
    schemas.write_parquet(predicted / "fusions.parquet", fusions, schemas.FUSIONS)
    schemas.write_parquet(
        predicted / "attentions.parquet", make_attention_rows(), schemas.ATTENTIONS
    )
    corner = {"slot": "place", "left": 0.5, "top": 0.5, "right": 1.0, "bottom": 1.0}
    boxes = [{"record": record, "position": position} | corner for record, position in keys]
    schemas.write_parquet(ingest / "boxes.parquet", boxes, schemas.BOXES)
