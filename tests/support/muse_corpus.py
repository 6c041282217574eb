"""Tweets and posts on disk as ingest, clean and embed leave them, and a project that reads them.

Of a tweet the colour of the picture says the type of its name, of a post the mood. In each split
item 1 has no picture, and its first word says as much. Test item 0 is longer than what is read,
test item 2 has a label that train never shows.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import yaml
from torch import nn

from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.models.muse.checkpoint import MuseClassifier
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.features import store as feature_store
from stages.train_classifier import muse as train
from tests.support import tiny_bert
from tests.support.article_corpus import write_encoder_dir
from tests.support.color_caption_corpus import make_image

SPLITS = {"train": 8, "validation": 3, "test": 5}
CORPUS_KINDS = {
    "muse_entities": "tweets",
    "muse_sentiment": "posts",
}  # and the kinds of their corpora
MAX_SUBWORDS = 12  # that are read
NUM_CELLS, CELL_DIM = 4, 6
COLORS = ("red", "blue")
ENTITY_TYPES = {"red": "PER", "blue": "LOC"}
SENTIMENTS = {"red": "positive", "blue": "negative"}
TOO_LONG, WITHOUT_IMAGE, UNSEEN_LABEL = 0, 1, 2  # numbers of items


def make_items(
    kind: muse_dataset.CorpusKind, pictures: bool = True
) -> list[tuple[dict, dict | None]]:
    """The rows of CLEAN of all splits, each with its picture."""
    found = []
    for split, count in SPLITS.items():
        for number in range(count):
            colour, name = COLORS[number % 2], tiny_bert.LETTERS[len(found)]
            shown = pictures and number != WITHOUT_IMAGE
            drawn = make_image(colour, seed=len(found)) if shown else None
            row = {"id": f"{split}-{number}", "source": "by hand", "language": "en", "split": split}
            row["image"] = drawn["sha256"] if drawn else None
            told = "the" if number != WITHOUT_IMAGE else "under"
            words = [told, "fox", "lamp", name, *["sat"] * (number % 3)]
            if (split, number) == ("test", TOO_LONG):
                words += ["sat"] * MAX_SUBWORDS
            fresh = (split, number) == ("test", UNSEEN_LABEL)
            row |= (make_tweet if kind == "tweets" else make_post)(words, colour, fresh)
            found.append((row, drawn))
    return found


def make_tweet(words: list[str], colour: str, fresh: bool) -> dict:
    kind = "NEW" if fresh else ENTITY_TYPES[colour]
    tags = ["O", f"B-{kind}", f"I-{kind}", *["O"] * (len(words) - 3)]
    return {"words": words, "originals": words, "tags": tags}


def make_post(words: list[str], colour: str, fresh: bool) -> dict:
    text = " ".join(words)
    return {"text": text, "original": text, "label": "neutral" if fresh else SENTIMENTS[colour]}


def write_corpus(
    folder: Path,
    kind: muse_dataset.CorpusKind,
    pictures: bool = True,
    splits: Collection[str] = tuple(SPLITS),
) -> list[Path]:
    """The folders ingest, clean and embed of the corpus."""
    ingest, clean, embed = (folder / name / kind for name in ("ingest", "clean", "embed"))
    embed.mkdir(parents=True)
    given = [(row, drawn) for row, drawn in make_items(kind, pictures) if row["split"] in splits]
    schemas.write_parquet(
        clean / "records.parquet", [row for row, _ in given], schemas.CLEAN_RECORDS[kind]
    )
    shown = [drawn for _, drawn in given if drawn]
    image_store.write_images(ingest / "images", shown, shards=2)
    feature_store.write_features(
        embed, ([one["sha256"] for one in shown], map(encode_image, shown)), None
    )
    return [ingest, clean, embed]


def encode_image(of: dict) -> dict[str, np.ndarray]:
    """What stands for an encoder: the mean colour of the picture in each cell."""
    mean = np.asarray(image_store.decode_image(of["bytes"])).mean((0, 1)) / 127.5 - 1
    cell = np.concatenate([mean, [1.0, 0.0, -1.0]]).astype("f2")
    return {"pooled": cell, "patches": np.tile(cell, (NUM_CELLS, 1))}


def create_project(folder: Path, changes: dict | None = None) -> None:
    """params.yaml as shipped, with readers that are trained in a second; their encoder beside it.

    changes: values by dotted key
    """
    write_bert(folder / "bert")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["training"]["checkpoint_interval_seconds"] = 0.0
    network = params["models"]["muse"]["network"]
    network |= {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "dropout": 0.0, "mu": 1}
    network |= {"eta": 2, "theta": 0.3, "image_drop_prob": 0.0, "text_drop_prob": 0.0}
    network |= {"head": "mlp", "head_dropout": 0.0, "norm": "pre", "exchange": "replace"}
    network |= {"min_exchanged_tokens": 1, "token_selection": "cls_attention", "exchange_count": "floor", "fusion": "exchange"}
    network |= {"image_pooling": "mean", "share_projection": False, "padding_mask": "respected"}
    network["captioning"] |= {"min_count": 1, "max_length": 8, "alpha": 0.1}
    network["captioning"]["decoder"] |= {"embedding_dim": 8, "hidden_size": 8, "attention_dim": 8, "dropout": 0.0}
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
        run["training"] |= {"max_steps": 12, "batch_size": 4, "learning_rate": 0.05, "eval_steps": 4}
        run["eval_batch_size"] = 3
    params["classify"] |= {
        "num_examples": 3,
        "num_generation_examples": 2,
        "num_images_per_prompt": 2,
        "num_projection_samples": 4,
    }
    for key, value in (changes or {}).items():
        *above, last = key.split(".")
        section = params
        for part in above:
            section = section[part]
        assert last in section
        section[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def write_bert(folder: Path) -> None:
    """The tiny BERT with gains of 1: random ones leave all words alike after a few layers."""
    bert = tiny_bert.save_bert(folder)
    for part in bert.modules():
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
    bert.save_pretrained(folder)


def load_run_config(name: str) -> muse_checkpoint.MuseRun:
    """A run of the project that is current."""
    return load_config(muse_checkpoint.MuseRun, "classifiers", name)


def train_classifier(name: str, folders: list[Path]) -> MuseClassifier:
    """A run of the project that is current, trained on a corpus that `write` wrote."""
    reader, _, _ = train.train(
        name, load_run_config(name), folders, CORPUS_KINDS[name], lambda row, step: None
    )
    return reader


def save_trained_classifier(name: str, folder: Path, folders: list[Path]) -> Path:
    """The folder of such a model."""
    target = folder / "models" / name
    muse_checkpoint.save(train_classifier(name, folders), target, write_encoder_dir(folder))
    return target
