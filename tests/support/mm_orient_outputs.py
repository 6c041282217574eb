"""A corpus of memes and the outputs of MM-ORIENT on it, written to a temporary data folder.

Of the four test memes, c has no text, d no image, and b no label for sentiment. With both inputs,
the humour of d is predicted wrongly. Train meme t has two paraphrases, u has none. Images are
40 x 30 pixels. In a, b and t, text was removed from the left part; v has no overlay text.
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
WRONG_PREDICTIONS = {  # predictions that differ from the labels, by inputs
    "both": {("d", "humour"): "funny"},
    "text": {("a", "sentiment"): "bad", ("d", "humour"): "funny", ("c", "humour"): "not_funny"},
    "picture": {("a", "humour"): "not_funny", ("c", "sentiment"): "good"},
}
MASKED_SHARES = {"a": 0.5, "b": 0.125, "t": 0.25}  # fraction of the pixels
RECOGNIZED_TEXTS = {"c": "read in it"}
CEILINGS = {  # the same for each task
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
    """The IMAGES row of a record. stage: 0 ingested, 1 inpainted, 2 and above paraphrased."""
    if record == "d":
        return None
    color = (20 * "abcvtu".index(record), 90, 200 - 40 * stage)
    return generator_outputs.make_image_row(color, (40, 30))


def image_hash(record: str, stage: int) -> str | None:
    row = make_image_row(record, stage)
    return row["sha256"] if row else None


def classifier_image_hash(record: str) -> str | None:
    """Hash of the image that the classifier sees: the inpainted one if it had text."""
    return image_hash(record, 1 if record in MASKED_SHARES else 0)


def record_key(record: str) -> dict:
    return {"id": record, "split": SPLITS[record], "language": "en", "source": "by hand"}


def gold_labels(record: str) -> list[dict]:
    return [{"task": task, "label": label} for task, label in GOLD[record].items()]


def make_mask_png(record: str) -> bytes:
    """A mask of the left part of the image, with the area in MASKED_SHARES."""
    image = Image.new("L", (40, 30))
    image.paste(255, (0, 0, round(40 * MASKED_SHARES[record]), 30))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def make_inpainted_row(record: str) -> dict:
    """The INPAINTED_IMAGES row of a record."""
    has_text = record in MASKED_SHARES
    box = {"left": 0.0, "top": 0.0, "right": 4.0, "bottom": 8.0, "score": 0.9}
    return {
        "image": image_hash(record, 0),
        "inpainted": classifier_image_hash(record),
        "boxes": [box] if has_text else [],
        "quads": [[0.0, 0.0, 4.0, 0.0, 4.0, 8.0, 0.0, 8.0]] if has_text else [],
        "masked": MASKED_SHARES.get(record, 0.0),
        "text": RECOGNIZED_TEXTS.get(record),
        "mask": make_mask_png(record) if has_text else None,
    }


def make_meme_rows() -> list[dict]:
    """MEMES rows of all records, with paraphrases."""
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
        for variant, paraphrase in VARIANTS.items() if record == "t" else ():
            new = {"variant": variant, "image": image_hash(record, variant + 1), "text": paraphrase}
            rows.append(rows[-1] | new | {"id": f"t{variant}", "text_source": "rules"})
    rows[2] = rows[2] | {"text": "", "text_source": "corpus"}  # c has no text
    return rows


def write_corpus(data: Path, corpus: str) -> None:
    """Write the folders 01_ingest to 04_augment."""
    ingest, inpaint, augment = (data / stage / corpus for stage in ("01_ingest", *STAGE_DIRS))
    with_image = [record for record in TEXTS if record != "d"]
    image_store.write_images(
        ingest / "images", [make_image_row(record, 0) for record in with_image], shards=1
    )
    image_store.write_images(
        inpaint / "images", [make_image_row(record, 1) for record in MASKED_SHARES], shards=1
    )
    paraphrased = [make_image_row("t", variant + 1) for variant in VARIANTS]
    image_store.write_images(augment / "images", paraphrased, shards=1)
    summary = {"records": SPLIT_COUNTS, "rejected": {}, "languages": {"en": 7}}
    summary["without_picture"] = {"train": 0, "validation": 0, "test": 1}
    for folder, content in [
        (ingest, summary),
        (inpaint, INPAINTING_SUMMARY),
        (augment, AUGMENTATION_SUMMARY),
    ]:
        (folder / "summary.json").write_text(json.dumps(content))
    (augment / "tasks.json").write_text(json.dumps(TASKS))
    clean = [
        record_key(record)
        | {"image": image_hash(record, 0), "text": text, "original": text.upper()}
        | {"labels": gold_labels(record)}
        for record, text in TEXTS.items()
    ]
    schemas.write_parquet(
        data / "02_clean" / corpus / "records.parquet", clean, schemas.CLEAN_RECORDS["memes"]
    )
    rows = [make_inpainted_row(record) for record in with_image]
    schemas.write_parquet(inpaint / "pictures.parquet", rows, schemas.INPAINTED_IMAGES)
    schemas.write_parquet(augment / "records.parquet", make_meme_rows(), schemas.MEMES)


STAGE_DIRS = ("03_inpaint", "04_augment")


def write_ceilings(ingest: Path) -> None:
    """Write 01_ingest/ceilings.json of a synthetic corpus."""
    split = dict.fromkeys(TASKS, CEILINGS)
    content = {"rule": "a rule", "metric": "accuracy", "validation": split, "test": split}
    (ingest / "ceilings.json").write_text(json.dumps(content))


def make_label_rows() -> list[dict]:
    """Rows of labels.parquet: validation from both inputs, test also from each alone."""
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


def make_diagnostic_rows(diagnostics: dict[str, float]) -> list[dict]:
    """Rows of behaviour.parquet with these values for a and b."""
    return [
        {"record": record, "split": "test", "name": name, "value": value}
        for record in "ab"
        for name, value in diagnostics.items()
    ]


def make_attention_rows() -> list[dict]:
    """Rows of looks.parquet: a attends to its second word and last region, b uniformly."""
    subwords = {"a": ["my", "cat", "works", "hard"], "b": ["such", "work"]}
    weights = {"a": [0.125, 0.5, 0.25, 0.125], "b": [0.5, 0.5]}
    regions = {"a": [0.125, 0.125, 0.25, 0.5], "b": [0.25] * 4}
    rows = []
    for record in "ab":
        row = {"record": record, "modality": "text"}
        rows.append(row | {"tokens": subwords[record], "weights": weights[record]})
        rows.append(row | {"modality": "picture", "tokens": [], "weights": regions[record]})
    return rows


def write_classifier_outputs(
    folder: Path, rows: list[dict], diagnostics: dict[str, float] = DIAGNOSTICS
) -> None:
    """Write the folder 11_classify of one classifier."""
    schemas.write_parquet(folder / "labels.parquet", rows, schemas.LABEL_PREDICTIONS)
    schemas.write_parquet(
        folder / "behaviour.parquet", make_diagnostic_rows(diagnostics), schemas.DIAGNOSTICS
    )
    schemas.write_parquet(folder / "looks.parquet", make_attention_rows(), schemas.ATTENTION_MAPS)
    (folder / "parameters.json").write_text(json.dumps({"trained": 120, "frozen": 1000}))


def write_training(folder: Path) -> None:
    """Write the parts of 09_train_classifier that the report reads."""
    folder.mkdir(parents=True)
    history.write_history(folder / "history.csv", HISTORY)
