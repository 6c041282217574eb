"""A small corpus of memes as written by `augment` and `embed`, and a project that uses it.

The color of the image determines the sentiment, a word of the text the humour, and both together
the offensiveness. Every fourth meme has no label for humour, and no meme has one for sarcasm. Two
train memes have a paraphrase with its own image. In each split item 1 has no text and item 2 no
image.
"""

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import yaml

from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient.checkpoint import MmOrientClassifier
from stages.shared.backbones.classifier import CorpusFolders, load_model_config
from stages.shared.core import schemas
from stages.shared.core.config import load_config, read_params
from stages.shared.data import image_store
from stages.shared.features import store as feature_store
from stages.train_classifier import common
from stages.train_classifier import mm_orient as train
from tests.support import tiny_bert
from tests.support.article_corpus import write_encoder_dir
from tests.support.color_caption_corpus import make_image
from tests.support.muse_corpus import encode_image, write_bert

RUN_NAME = "mm_orient"
TASKS = {
    "sentiment": ["negative", "neutral", "positive"],  # no meme is neutral
    "humour": ["not_funny", "funny"],
    "sarcasm": ["not_sarcastic", "general"],
    "offensive": ["not_offensive", "slight"],
}
LEARNED_TASKS = {task: labels for task, labels in TASKS.items() if task != "sarcasm"}
SPLITS = {"train": 12, "validation": 5, "test": 7}  # without paraphrases
WITHOUT_TEXT, WITHOUT_IMAGE, UNLABELED = 1, 2, 3  # item numbers in a split
PARAPHRASED = (4, 8)  # train items
MAX_SUBWORDS = 6  # of the classifier's own text encoder
FEATURE_DIM = 6  # width of pooled features, tokens and patches
NUM_CELLS = 4


def make_items(splits: Collection[str] = tuple(SPLITS)) -> list[tuple[dict, dict | None]]:
    """Pairs of a MEMES row and an IMAGES row (or None) of these splits."""
    items = []
    for split in splits:
        for number in range(SPLITS[split]):
            items.append(make_item(split, number, 0))
            if split == "train" and number in PARAPHRASED:
                items.append(make_item(split, number, 1))
    return items


def make_item(split: str, number: int, variant: int) -> tuple[dict, dict | None]:
    seed = 20 * list(SPLITS).index(split) + number
    red, funny = number % 2 == 0, number // 2 % 2 == 0
    image = None
    if number != WITHOUT_IMAGE:
        image = make_image("red" if red else "blue", seed=100 * variant + seed)
    words = [["the", "under"][variant], "fox" if funny else "lamp", tiny_bert.LETTERS[seed % 26]]
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
        "image": image["sha256"] if image else None,
        "pictured": image["sha256"] if image else None,
        "text": "" if number == WITHOUT_TEXT else " ".join(words + ["sat"] * (number % 3)),
        "sentence": "" if number == WITHOUT_TEXT else f"{' '.join(words)} {number}!",
        "text_source": "rules" if variant else "corpus",
        "labels": [{"task": task, "label": label} for task, label in labels.items()],
    }
    return row, image


def write_meme_corpus(
    folder: Path,
    splits: Collection[str] = tuple(SPLITS),
    *,
    texts: bool = True,
    change=lambda row: row,
) -> list[Path]:
    """Write the corpus; return its folders of images, records and features.

    texts: whether the aligned encoder supports the texts. change: applied to every row.
    """
    augment, embed = folder / "augment/memes", folder / "embed/memes"
    embed.mkdir(parents=True)
    augment.mkdir(parents=True)
    items = [(change(row), image) for row, image in make_items(splits)]
    (augment / "tasks.json").write_text(json.dumps(TASKS))
    schemas.write_parquet(augment / "records.parquet", [row for row, _ in items], schemas.MEMES)
    images = [image for row, image in items if row["image"]]
    image_store.write_images(augment / "images", images, shards=2)
    unique = list(dict.fromkeys(row["text"] for row, _ in items if row["text"]))
    words = [text.split() for text in unique]
    text_features = (unique, words, map(encode_words, words)) if texts and unique else None
    image_features = ([image["sha256"] for image in images], map(encode_image, images))
    feature_store.write_features(embed, image_features, text_features)
    return [augment, augment, embed]


def encode_words(words: list[str]) -> dict[str, np.ndarray]:
    """Stands in for a text encoder: a vector for each word, and their mean."""
    tokens = np.stack([word_vector(word) for word in words])
    mean = tokens.mean(0)
    return {"pooled": (mean / np.linalg.norm(mean)).astype("f2"), "tokens": tokens.astype("f2")}


def word_vector(word: str) -> np.ndarray:
    return np.random.default_rng(list(word.encode())).normal(size=FEATURE_DIM)


def create_project(folder: Path, changes: dict | None = None) -> None:
    """Write params.yaml as shipped, but with a tiny MM-ORIENT that trains in a second.

    changes: values by dotted key.
    """
    write_bert(folder / "bert")
    params = read_params()
    params["training"]["checkpoint_interval_seconds"] = 0.0
    network = params["models"][RUN_NAME]["network"]
    network |= {"attention_dim": 4, "hidden_layer_sizes": [16], "dropout": 0.0}
    network |= {"image_drop_prob": 0.0, "text_drop_prob": 0.0}
    network["relations"] |= {"output_dim": 4, "memory_bank_size": 8, "density": 0.3}
    run = params["classifiers"][RUN_NAME]
    run["text"]["max_subwords"] = run["task_features"]["max_subwords"] = MAX_SUBWORDS
    run["image"] |= {"image_size": 64, "grid_size": 2}
    run["training"] |= {"max_steps": 12, "batch_size": 4, "learning_rate": 0.02, "eval_steps": 4}
    run["eval_batch_size"] = 3
    params["classify"]["num_examples"] = 4
    for key, value in (changes or {}).items():
        *parents, leaf = key.split(".")
        section = params
        for parent in parents:
            section = section[parent]
        assert leaf in section
        section[leaf] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def prefix_run_changes(**changes) -> dict:
    """Changes for `create_project` to the section of the run; nested keys as text__encoder."""
    return {
        f"classifiers.{RUN_NAME}.{key.replace('__', '.')}": value for key, value in changes.items()
    }


def load_run_config() -> mm_orient_checkpoint.MmOrientRun:
    """The run of the project in the current folder."""
    return load_config(mm_orient_checkpoint.MmOrientRun, "classifiers", RUN_NAME)


def train_classifier(folders: list[Path]):
    """Train in the current project; return the classifier, its history and the train split."""
    return common.train(
        RUN_NAME,
        train,
        load_run_config(),
        load_model_config("mm_orient"),
        CorpusFolders(*folders),
        "memes",
        checkpoint_interval_seconds=0.0,
        log=lambda row, step: None,
    )


def save_trained_classifier(folder: Path, folders: list[Path]) -> tuple[MmOrientClassifier, Path]:
    """Train and save in the current project; return the classifier and its model folder."""
    classifier, _, _ = train_classifier(folders)
    mm_orient_checkpoint.save(classifier, folder / "model", write_encoder_dir(folder))
    return classifier, folder / "model"
