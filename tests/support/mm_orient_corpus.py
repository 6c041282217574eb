"""Memes on disk as augment and embed leave them, and a project that reads them.

The colour of the picture says the sentiment, a word of the text the humour, which nobody judged of
every fourth meme; an offence takes both. Nobody judged sarcasm. Two train memes have a paraphrase,
with a picture of its own. In each split item 1 has no text, item 2 no picture, item 3 neither the
label of its humour.
"""

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import yaml

from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient.checkpoint import MmOrientClassifier
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.features import store as feature_store
from stages.train_classifier import mm_orient as train
from tests.support import tiny_bert
from tests.support.article_corpus import write_encoder_dir
from tests.support.color_caption_corpus import make_image
from tests.support.muse_corpus import encode_image, write_bert

RUN_NAME = "mm_orient"
TASKS = {
    "sentiment": ["negative", "neutral", "positive"],  # nothing is neutral
    "humour": ["not_funny", "funny"],
    "sarcasm": ["not_sarcastic", "general"],
    "offensive": ["not_offensive", "slight"],
}
LEARNED_TASKS = {task: labels for task, labels in TASKS.items() if task != "sarcasm"}
SPLITS = {"train": 12, "validation": 5, "test": 7}  # without paraphrases
WITHOUT_TEXT, WITHOUT_IMAGE, UNLABELED = 1, 2, 3  # numbers of items
PARAPHRASED = (4, 8)  # of train
MAX_SUBWORDS = 6  # that a text encoder of the reader's own reads
FEATURE_DIM = 6  # of pooled features, of tokens and of patches
NUM_CELLS = 4


def make_items(splits: Collection[str] = tuple(SPLITS)) -> list[tuple[dict, dict | None]]:
    """The rows of MEMES of these splits, each with its picture."""
    found = []
    for split in splits:
        for number in range(SPLITS[split]):
            found.append(make_item(split, number, 0))
            if split == "train" and number in PARAPHRASED:
                found.append(make_item(split, number, 1))
    return found


def make_item(split: str, number: int, variant: int) -> tuple[dict, dict | None]:
    place = 20 * list(SPLITS).index(split) + number
    red, funny = number % 2 == 0, number // 2 % 2 == 0
    drawn = None
    if number != WITHOUT_IMAGE:
        drawn = make_image("red" if red else "blue", seed=100 * variant + place)
    words = [["the", "under"][variant], "fox" if funny else "lamp", tiny_bert.LETTERS[place % 26]]
    labels = {"sentiment": "positive" if red else "negative"}
    if number % 4 != UNLABELED:
        labels["humour"] = "funny" if funny else "not_funny"
    labels["offensive"] = "slight" if red and funny else "not_offensive"
    row = {
        "id": f"{split}-{number}" + f"-{variant}" * bool(variant),
        "split": split,
        "language": "en",
        "source": "by hand",
        "group": f"{split}-{number}",
        "variant": variant,
        "image": drawn["sha256"] if drawn else None,
        "pictured": drawn["sha256"] if drawn else None,
        "text": "" if number == WITHOUT_TEXT else " ".join(words + ["sat"] * (number % 3)),
        "text_source": "rules" if variant else "corpus",
        "labels": [{"task": task, "label": label} for task, label in labels.items()],
    }
    return row, drawn


def write_meme_corpus(
    folder: Path,
    splits: Collection[str] = tuple(SPLITS),
    *,
    texts: bool = True,
    change=lambda row: row,
) -> list[Path]:
    """The folders augment and embed of the corpus.

    texts: whether the aligned encoder reads them. change: of every row.
    """
    augment, embed = folder / "augment/memes", folder / "embed/memes"
    embed.mkdir(parents=True)
    augment.mkdir(parents=True)
    given = [(change(row), drawn) for row, drawn in make_items(splits)]
    (augment / "tasks.json").write_text(json.dumps(TASKS))
    schemas.write_parquet(augment / "records.parquet", [row for row, _ in given], schemas.MEMES)
    shown = [drawn for row, drawn in given if row["image"]]
    image_store.write_images(augment / "images", shown, shards=2)
    words = list(dict.fromkeys(row["text"] for row, _ in given if row["text"]))
    spelt = [text.split() for text in words]
    read = (words, spelt, map(encode_words, spelt)) if texts and words else None
    feature_store.write_features(
        embed, ([one["sha256"] for one in shown], map(encode_image, shown)), read
    )
    return [augment, augment, embed]


def encode_words(words: list[str]) -> dict[str, np.ndarray]:
    """What stands for an encoder of texts: a vector for each word, and their mean."""
    tokens = np.stack([word_vector(word) for word in words])
    mean = tokens.mean(0)
    return {"pooled": (mean / np.linalg.norm(mean)).astype("f2"), "tokens": tokens.astype("f2")}


def word_vector(word: str) -> np.ndarray:
    return np.random.default_rng(list(word.encode())).normal(size=FEATURE_DIM)


def create_project(folder: Path, changes: dict | None = None) -> None:
    """params.yaml as shipped, with a reader of memes that is trained in a second.

    changes: values by dotted key
    """
    write_bert(folder / "bert")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["training"]["checkpoint_seconds"] = 0.0
    network = params["models"][RUN_NAME]["network"]
    network |= {"attention_width": 4, "hidden": [16], "dropout": 0.0}
    network |= {"missing_picture": 0.0, "missing_text": 0.0}
    network["relations"] |= {"width": 4, "bank": 8, "density": 0.3}
    run = params["classifiers"][RUN_NAME]
    run["text"]["pieces"] = run["task_features"]["pieces"] = MAX_SUBWORDS
    run["picture"] |= {"size": 64, "grid": 2}
    run["training"] |= {"steps": 12, "batch": 4, "learning_rate": 0.02, "validate_every": 4}
    run["batch"] = 3
    params["classify"]["examples"] = 4
    for key, value in (changes or {}).items():
        *above, last = key.split(".")
        section = params
        for part in above:
            section = section[part]
        assert last in section
        section[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def prefix_run_changes(**changes) -> dict:
    """Changes of a project: keys of the reader's row, those below as text__encoder."""
    return {
        f"classifiers.{RUN_NAME}.{key.replace('__', '.')}": value for key, value in changes.items()
    }


def load_run_config() -> mm_orient_checkpoint.MmOrientRun:
    """Of the project that is current."""
    return load_config(mm_orient_checkpoint.MmOrientRun, "classifiers", RUN_NAME)


def train_classifier(folders: list[Path]):
    """reader, history and items of the project that is current."""
    return train.train(RUN_NAME, load_run_config(), folders, "memes", lambda row, step: None)


def save_trained_classifier(folder: Path, folders: list[Path]) -> tuple[MmOrientClassifier, Path]:
    """A reader that was trained in the current project, and the folder of its model."""
    reader, _, _ = train_classifier(folders)
    mm_orient_checkpoint.save(reader, folder / "model", write_encoder_dir(folder))
    return reader, folder / "model"
