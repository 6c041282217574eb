"""A corpus of memes and what MM-ORIENT labelled of it, in a temporary data folder.

Four test memes: c has no text, d no picture. Nobody judged the sentiment of b. From both inputs the
humour of d is wrong. Of train t has two paraphrases, u none. Pictures are 40 x 30; of a, b and t
words were taken out, from the left part; v has none.
"""

import json
from io import BytesIO
from pathlib import Path

from PIL import Image

from stages.shared.core import schemas
from stages.shared.data import history, image_store
from tests.support import generator_outputs

TASKS = {"humour": ["not_funny", "funny"], "sentiment": ["neutral", "bad", "good"]}
SPLITS = dict.fromkeys("abcd", "test") | {"v": "validation"} | dict.fromkeys("tu", "train")
TEXTS = {
    "a": "my cat works hard",
    "b": "such work",
    "c": "",
    "d": "no picture here",
    "v": "one of validation",
    "t": "rain all day",
    "u": "sun all day",
}
VARIANTS = {1: "all day there is rain", 3: "it rains, the whole day"}
GOLD = {
    "a": {"humour": "funny", "sentiment": "good"},
    "b": {"humour": "not_funny"},
    "c": {"humour": "funny", "sentiment": "bad"},
    "d": {"humour": "not_funny", "sentiment": "neutral"},
    "v": {"humour": "funny", "sentiment": "good"},
    "t": {"humour": "funny", "sentiment": "bad"},
    "u": {"humour": "not_funny", "sentiment": "good"},
}
WRONG_PREDICTIONS = {  # what was predicted instead, by inputs
    "both": {("d", "humour"): "funny"},
    "text": {("a", "sentiment"): "bad", ("d", "humour"): "funny", ("c", "humour"): "not_funny"},
    "picture": {("a", "humour"): "not_funny", ("c", "sentiment"): "good"},
}
MASKED_SHARES = {"a": 0.5, "b": 0.125, "t": 0.25}  # share of the pixels
RECOGNIZED_TEXTS = {"c": "read in it"}
CEILINGS = {  # of each task
    inputs: {"expected": value, "realised": value}
    for inputs, value in [("text", 0.5), ("picture", 0.25), ("both", 1.0)]
}
DIAGNOSTICS = {
    **{f"density_{graph}": 0.05 for graph in ("tt", "ii")},
    **{f"isolated_{graph}": 0.125 for graph in ("tt", "ii", "it")},
    **{"density_ti": 0.0005, "isolated_ti": 0.25, "density_it": 0.875},
    **{"evenness_words": 0.75, "evenness_regions": 0.9875},
}
HISTORY = [
    {"step": 0, "validation_loss": 0.5, "validation_score": 0.5}
    | {"validation_score_humour": 0.4, "validation_density_tt": 0.1}
    | {"validation_isolated_tt": 0.2, "validation_evenness_words": 0.9},
    {"step": 1, "loss": 2.0, "learning_rate": 0.1, "humour": 1.5, "sentiment": 0.5},
    {"step": 2, "loss": 1.0, "learning_rate": 0.1, "humour": 0.7, "sentiment": 0.3}
    | {"validation_loss": 0.25, "validation_score": 0.75, "validation_score_humour": 0.7}
    | {"validation_density_tt": 0.05, "validation_isolated_tt": 0.1}
    | {"validation_evenness_words": 0.75},
]
INPAINTING_SUMMARY = {"pictures": 5, "with_text": 3, "passed_through": 2, "recognised": 1}
INPAINTING_SUMMARY |= {"failed": {"paint: ValueError: odd": 1}, "masked": 0.25}
SPLIT_COUNTS = {"train": 2, "validation": 1, "test": 4}
AUGMENTATION_SUMMARY = {
    "memes": SPLIT_COUNTS,
    "paraphrases": {"train": 2, "validation": 0, "test": 0},
    "texts": {"corpus": 6, "recognised": 1},
    "paraphraser": {"backend": "rules", "llm": False},
    "paraphrased": {
        "memes": 2,
        "without": {"no rule fits": 1},
        "given": 5,
        "kept": 2,
        "rejected": {"drift": 3},
        "drift_measured": 5,
        "drift_unavailable": {},
    },
    "picture": "mild",
}
LLM_PARAPHRASER = {
    "backend": "openai:some-model",
    "llm": True,
    "answered_by": ["some-model-1"],
    "answers": "by JSON schema",
    "questions": 2,
    "failed_questions": {"too long": 1},
    "tokens": {"sent": 1200, "received": 300},
    "cost": 0.125,
}


def make_image_row(record: str, stage: int) -> dict | None:
    """The row of a record's picture as taken in (0), inpainted (1), paraphrased (2, ...)."""
    if record == "d":
        return None
    colour = (20 * "abcvtu".index(record), 90, 200 - 40 * stage)
    return generator_outputs.make_image_row(colour, (40, 30))


def image_hash(record: str, stage: int) -> str | None:
    row = make_image_row(record, stage)
    return row["sha256"] if row else None


def classifier_image_hash(record: str) -> str | None:
    """Of a picture as it is read: without words where there were some."""
    return image_hash(record, 1 if record in MASKED_SHARES else 0)


def record_key(record: str) -> dict:
    return {"id": record, "split": SPLITS[record], "language": "en", "source": "by hand"}


def gold_labels(record: str) -> list[dict]:
    return [{"task": task, "label": label} for task, label in GOLD[record].items()]


def make_mask_png(record: str) -> bytes:
    """The left part, of the share that is masked."""
    image = Image.new("L", (40, 30))
    image.paste(255, (0, 0, round(40 * MASKED_SHARES[record]), 30))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def make_inpainted_row(record: str) -> dict:
    """The INPAINTED row of its picture."""
    found = record in MASKED_SHARES
    box = {"left": 0.0, "top": 0.0, "right": 4.0, "bottom": 8.0, "score": 0.9}
    return {
        "image": image_hash(record, 0),
        "inpainted": classifier_image_hash(record),
        "boxes": [box] if found else [],
        "quads": [[0.0, 0.0, 4.0, 0.0, 4.0, 8.0, 0.0, 8.0]] if found else [],
        "masked": MASKED_SHARES.get(record, 0.0),
        "text": RECOGNIZED_TEXTS.get(record),
        "mask": make_mask_png(record) if found else None,
    }


def make_meme_rows() -> list[dict]:
    """MEMES rows."""
    rows = []
    for record, text in TEXTS.items():
        own = {"group": record, "labels": gold_labels(record), "pictured": image_hash(record, 0)}
        source = "recognised" if record in RECOGNIZED_TEXTS else "corpus"
        original = {
            "variant": 0,
            "image": classifier_image_hash(record),
            "text": text or RECOGNIZED_TEXTS.get(record, ""),
        }
        rows.append(record_key(record) | own | original | {"text_source": source})
        for variant, reworded in VARIANTS.items() if record == "t" else ():
            new = {"variant": variant, "image": image_hash(record, variant + 1), "text": reworded}
            rows.append(rows[-1] | new | {"id": f"t{variant}", "text_source": "rules"})
    rows[2] = rows[2] | {"text": "", "text_source": "corpus"}  # c stays without
    return rows


def write_corpus(data: Path, corpus: str) -> None:
    """01_ingest to 04_augment."""
    ingest, painted, made = (data / stage / corpus for stage in ("01_ingest", *STAGE_DIRS))
    shown = [record for record in TEXTS if record != "d"]
    image_store.write_images(
        ingest / "images", [make_image_row(record, 0) for record in shown], shards=1
    )
    image_store.write_images(
        painted / "images", [make_image_row(record, 1) for record in MASKED_SHARES], shards=1
    )
    drawn = [make_image_row("t", variant + 1) for variant in VARIANTS]
    image_store.write_images(made / "images", drawn, shards=1)
    summary = {"records": SPLIT_COUNTS, "rejected": {}, "languages": {"en": 7}}
    summary["without_picture"] = {"train": 0, "validation": 0, "test": 1}
    for folder, content in [
        (ingest, summary),
        (painted, INPAINTING_SUMMARY),
        (made, AUGMENTATION_SUMMARY),
    ]:
        (folder / "summary.json").write_text(json.dumps(content))
    (made / "tasks.json").write_text(json.dumps(TASKS))
    clean = [
        record_key(record)
        | {"image": image_hash(record, 0), "text": text, "original": text.upper()}
        | {"labels": gold_labels(record)}
        for record, text in TEXTS.items()
    ]
    schemas.write_parquet(
        data / "02_clean" / corpus / "records.parquet", clean, schemas.CLEAN_RECORDS["memes"]
    )
    rows = [make_inpainted_row(record) for record in shown]
    schemas.write_parquet(painted / "pictures.parquet", rows, schemas.INPAINTED_IMAGES)
    schemas.write_parquet(made / "records.parquet", make_meme_rows(), schemas.MEMES)


STAGE_DIRS = ("03_inpaint", "04_augment")


def write_ceilings(ingest: Path) -> None:
    """01_ingest/ceilings.json of a sample corpus."""
    split = dict.fromkeys(TASKS, CEILINGS)
    content = {"rule": "a rule", "metric": "accuracy", "validation": split, "test": split}
    (ingest / "ceilings.json").write_text(json.dumps(content))


def make_label_rows() -> list[dict]:
    """Rows of labels.parquet: of validation from both inputs, of test from each as well."""
    return [
        {"record": record, "split": SPLITS[record], "inputs": inputs, "task": task, "cut": 0}
        | {"gold": [GOLD[record][task]] if task in GOLD[record] else []}
        | {
            "predicted": [
                WRONG_PREDICTIONS[inputs].get((record, task), GOLD[record].get(task, names[0]))
            ]
        }
        | {"probability": [0.75]}
        for inputs in ("both", "text", "picture")
        for record in "abcdv"
        if SPLITS[record] == "test" or inputs == "both"
        for task, names in TASKS.items()
    ]


def make_diagnostic_rows(figures: dict[str, float]) -> list[dict]:
    """Rows of behaviour.parquet: these means, over a and b."""
    return [
        {"record": record, "split": "test", "name": figure, "value": value}
        for record in "ab"
        for figure, value in figures.items()
    ]


def make_attention_rows() -> list[dict]:
    """Of a: its second word and its lower right region of four have most; of b all alike."""
    pieces = {"a": ["my", "cat", "works", "hard"], "b": ["such", "work"]}
    weights = {"a": [0.125, 0.5, 0.25, 0.125], "b": [0.5, 0.5]}
    regions = {"a": [0.125, 0.125, 0.25, 0.5], "b": [0.25] * 4}
    rows = []
    for record in "ab":
        row = {"record": record, "modality": "text"}
        rows.append(row | {"tokens": pieces[record], "weights": weights[record]})
        rows.append(row | {"modality": "picture", "tokens": [], "weights": regions[record]})
    return rows


def write_classifier_outputs(
    folder: Path, rows: list[dict], figures: dict[str, float] = DIAGNOSTICS
) -> None:
    """11_classify of one reader."""
    schemas.write_parquet(folder / "labels.parquet", rows, schemas.LABEL_PREDICTIONS)
    schemas.write_parquet(
        folder / "behaviour.parquet", make_diagnostic_rows(figures), schemas.DIAGNOSTICS
    )
    schemas.write_parquet(folder / "looks.parquet", make_attention_rows(), schemas.ATTENTION_MAPS)
    (folder / "parameters.json").write_text(json.dumps({"trained": 120, "frozen": 1000}))


def write_training(folder: Path) -> None:
    """09_train_classifier of one reader, as far as the report reads it."""
    folder.mkdir(parents=True)
    history.write_history(folder / "history.csv", HISTORY)
