"""Tweets and posts on disk as the outputs of ingest, clean and embed, and a project that uses them.

The color of the image determines the entity type of a tweet and the sentiment of a post. Item 1 of
each split has no image, and its first word tells so. Test item 0 exceeds the encoder's limit, test
item 2 has a label that is not in the train split.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import yaml
from torch import nn

from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.models.muse.checkpoint import MuseClassifier
from stages.shared.backbones.classifier import CorpusFolders, load_model_config
from stages.shared.core import schemas
from stages.shared.core.config import load_config, read_params
from stages.shared.data import image_store
from stages.shared.features import store as feature_store
from stages.train_classifier import common as train_classifier_common
from stages.train_classifier import muse as train
from tests.support import tiny_bert
from tests.support.article_corpus import write_encoder_dir
from tests.support.color_caption_corpus import make_image

SPLITS = {"train": 8, "validation": 3, "test": 5}
CORPUS_KINDS = {"muse_entities": "tweets", "muse_sentiment": "posts"}  # by run
MAX_SUBWORDS = 12
NUM_CELLS, CELL_DIM = 4, 6
COLORS = ("red", "blue")
ENTITY_TYPES = {"red": "PER", "blue": "LOC"}
SENTIMENTS = {"red": "positive", "blue": "negative"}
TOO_LONG, WITHOUT_IMAGE, UNSEEN_LABEL = 0, 1, 2  # indices of items


def make_items(
    kind: muse_dataset.CorpusKind, with_images: bool = True
) -> list[tuple[dict, dict | None]]:
    """The rows of CLEAN_RECORDS of all splits, each with its image row or None."""
    items = []
    for split, count in SPLITS.items():
        for number in range(count):
            color, name = COLORS[number % 2], tiny_bert.LETTERS[len(items)]
            has_image = with_images and number != WITHOUT_IMAGE
            image = make_image(color, seed=len(items)) if has_image else None
            row = {"id": f"{split}-{number}", "source": "by hand", "language": "en", "split": split}
            row["image"] = image["sha256"] if image else None
            first_word = "the" if number != WITHOUT_IMAGE else "under"
            words = [first_word, "fox", "lamp", name, *["sat"] * (number % 3)]
            if (split, number) == ("test", TOO_LONG):
                words += ["sat"] * MAX_SUBWORDS
            is_unseen = (split, number) == ("test", UNSEEN_LABEL)
            row |= (make_tweet if kind == "tweets" else make_post)(words, color, is_unseen)
            items.append((row, image))
    return items


def make_tweet(words: list[str], color: str, is_unseen: bool) -> dict:
    kind = "NEW" if is_unseen else ENTITY_TYPES[color]
    tags = ["O", f"B-{kind}", f"I-{kind}", *["O"] * (len(words) - 3)]
    return {"words": words, "originals": words, "tags": tags}


def make_post(words: list[str], color: str, is_unseen: bool) -> dict:
    text = " ".join(words)
    return {"text": text, "original": text, "label": "neutral" if is_unseen else SENTIMENTS[color]}


def write_corpus(
    folder: Path,
    kind: muse_dataset.CorpusKind,
    with_images: bool = True,
    splits: Collection[str] = tuple(SPLITS),
) -> list[Path]:
    """Write the corpus.  -> its folders of ingest, clean and embed"""
    ingest, clean, embed = (folder / name / kind for name in ("ingest", "clean", "embed"))
    embed.mkdir(parents=True)
    items = [item for item in make_items(kind, with_images) if item[0]["split"] in splits]
    schemas.write_parquet(
        clean / "records.parquet", [row for row, _ in items], schemas.CLEAN_RECORDS[kind]
    )
    images = [image for _, image in items if image]
    image_store.write_images(ingest / "images", images, shards=2)
    feature_store.write_features(
        embed, ([image["sha256"] for image in images], map(encode_image, images)), None
    )
    return [ingest, clean, embed]


def encode_image(image: dict) -> dict[str, np.ndarray]:
    """The features of a fake encoder: the mean color of the image in each cell."""
    mean = np.asarray(image_store.decode_image(image["bytes"])).mean((0, 1)) / 127.5 - 1
    cell = np.concatenate([mean, [1.0, 0.0, -1.0]]).astype("f2")
    return {"pooled": cell, "patches": np.tile(cell, (NUM_CELLS, 1))}


def create_project(folder: Path, changes: dict | None = None) -> None:
    """Write params.yaml with small classifiers that train in a second, and their text encoder.

    changes: values by dotted key
    """
    write_bert(folder / "bert")
    params = read_params()
    params["training"]["checkpoint_interval_seconds"] = 0.0
    network = params["models"]["muse"]["network"]
    network |= {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "dropout": 0.0, "mu": 1}
    network |= {"eta": 2, "theta": 0.3, "image_drop_prob": 0.0, "text_drop_prob": 0.0}
    network |= {"head": "mlp", "head_dropout": 0.0, "norm": "pre", "exchange": "replace"}
    network |= {
        "min_exchanged_tokens": 1,
        "token_selection": "cls_attention",
        "exchange_count": "floor",
        "fusion": "exchange",
    }
    network |= {"image_pooling": "mean", "share_projection": False, "padding_mask": "respected"}
    network["captioning"] |= {"min_count": 1, "max_length": 8, "alpha": 0.1}
    network["captioning"]["decoder"] |= {
        "embedding_dim": 8,
        "hidden_size": 8,
        "attention_dim": 8,
        "dropout": 0.0,
    }
    network["image_generation"] |= {"max_images_per_batch": 2, "lr_multiplier": 1.0, "beta": 0.1}
    network["image_generation"]["decoder"] |= {"image_size": 4, "num_filters": 4}
    network["image_generation"]["decoder"] |= {"num_mixtures": 2, "dropout": 0.0}
    for name in CORPUS_KINDS:
        run = params["classifiers"][name]
        run["text"] |= {
            "encoder": str(folder / "bert"),
            "num_tuned_layers": 1,
            "max_subwords": MAX_SUBWORDS,
            "lr_multiplier": 1.0,
        }
        run["image"]["grid_size"] = 2
        run["training"] |= {
            "max_steps": 12,
            "batch_size": 4,
            "learning_rate": 0.05,
            "eval_steps": 4,
        }
        run["eval_batch_size"] = 3
    params["classify"] |= {
        "num_examples": 3,
        "num_generation_examples": 2,
        "num_images_per_prompt": 2,
        "num_projection_samples": 4,
    }
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        section = params
        for parent in parents:
            section = section[parent]
        assert last in section
        section[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def write_bert(folder: Path) -> None:
    """The tiny BERT with LayerNorm gains of 1: with random gains all words become similar."""
    bert = tiny_bert.save_bert(folder)
    for module in bert.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
    bert.save_pretrained(folder)


def load_run_config(name: str) -> muse_checkpoint.MuseRun:
    """A run of the project in the working directory."""
    return load_config(muse_checkpoint.MuseRun, "classifiers", name)


def train_classifier(name: str, folders: list[Path]) -> MuseClassifier:
    """Train a run on a corpus of `write_corpus`, with the params of the working directory."""
    classifier, _, _ = fit_run(name, folders)
    return classifier


def fit_run(
    name: str, folders: list[Path]
) -> tuple[MuseClassifier, list[dict[str, float]], muse_dataset.TextImageDataset]:
    """Classifier, history and dataset of a run, with the params of the working directory."""
    return train_classifier_common.train(
        name,
        train,
        load_run_config(name),
        load_model_config("muse"),
        CorpusFolders(*folders),
        CORPUS_KINDS[name],
        checkpoint_interval_seconds=0.0,
        log=lambda row, step: None,
    )


def save_trained_classifier(name: str, folder: Path, folders: list[Path]) -> Path:
    """Train a run and save it.  -> its folder"""
    output = folder / "models" / name
    muse_checkpoint.save(train_classifier(name, folders), output, write_encoder_dir(folder))
    return output
