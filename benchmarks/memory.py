"""Memory of training on cached features: it follows the batch and not the number of images.

Writes random features of 49 patches x 1,280 channels, as those of EfficientNet-Lite0, and trains
FlexMUSE, TIPPo and MM-ORIENT for 20 steps, each in a process of its own. 10,000 images take 1.25 GB
of disk.

    python -m benchmarks memory                  2,500 and 10,000 images
    python -m benchmarks.memory NUM_IMAGES ...   other numbers

"own" is the highest anonymous memory (RssAnon in /proc/self/status), which the process allocated.
"mapped" is the highest RssFile beside it: pages of libraries and of the mapped features, which
belong to the page cache and which the system drops when it needs memory.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import numpy as np

from stages.shared.core import schemas
from stages.shared.features import store as feature_store

SIZES = (2_500, 10_000)
MODELS = ("flexmuse", "tippo", "mm_orient")
PATCHES, CHANNELS, TOKEN_WIDTH = 49, 1280, 384
STEPS, IMAGES_PER_ARTICLE, TITLE_TOKENS = 20, 4, 6
WORDS = ["red", "kite", "over", "old", "harbour", "while", "two", "dogs", "sleep", "near", "water"]
TASKS = {"sentiment": ["negative", "positive"]}
SAMPLING_SECONDS = 0.01


def random_halves(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Finite fp16 numbers between -2 and 2 from random bits, fifty times as fast as a normal."""
    bits = np.frombuffer(random.bytes(2 * int(np.prod(shape))), np.uint16)
    return (bits & 0xBFFF).view(np.float16).reshape(shape)


def unit_vector(random: np.random.Generator) -> np.ndarray:
    vector = random.standard_normal(CHANNELS, dtype=np.float32)
    return (vector / np.linalg.norm(vector)).astype(np.float16)


def image_name(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


def text_of(number: int, length: int) -> str:
    words = np.random.default_rng(number).choice(WORDS, length - 1)
    return " ".join([*words, str(number)])


def write_features(folder: Path, num_images: int, texts: list[str]) -> None:
    random = np.random.default_rng(0)
    images = (
        {"pooled": unit_vector(random), "patches": random_halves(random, PATCHES, CHANNELS)}
        for _ in range(num_images)
    )
    subwords = [text.split() for text in texts]
    text_rows = (
        {"pooled": unit_vector(random), "tokens": random_halves(random, len(words), TOKEN_WIDTH)}
        for words in subwords
    )
    folder.mkdir()
    names = [image_name(number) for number in range(num_images)]
    feature_store.write_features(folder, (names, images), (texts, subwords, text_rows))


def write_articles(folder: Path, num_images: int) -> list[str]:
    """chunks.parquet of articles with one text per image.  -> their titles"""
    rows = [
        {
            "record": f"r{number // IMAGES_PER_ARTICLE}",
            "position": number % IMAGES_PER_ARTICLE,
            "split": "train",
            "language": "en",
            "title": text_of(number // IMAGES_PER_ARTICLE, TITLE_TOKENS),
            "image": image_name(number),
            "text": text_of(number, 12),
            "references": [text_of(number, 12)],
        }
        for number in range(num_images)
    ]
    folder.mkdir()
    schemas.write_parquet(folder / "chunks.parquet", rows, schemas.CHUNKS)
    return list(dict.fromkeys(row["title"] for row in rows))


def write_memes(folder: Path, num_images: int) -> list[str]:
    """records.parquet and tasks.json of labeled memes.  -> their texts"""
    rows = [
        {
            **{"id": f"m{number}", "split": "train", "language": "en", "group": f"m{number}"},
            **{"variant": 0, "image": image_name(number), "pictured": image_name(number)},
            **{"text": text_of(number, 12), "sentence": text_of(number, 12)},
            **{"source": "", "text_source": "corpus"},
            "labels": [{"task": "sentiment", "label": TASKS["sentiment"][number % 2]}],
        }
        for number in range(num_images)
    ]
    folder.mkdir()
    schemas.write_parquet(folder / "records.parquet", rows, schemas.MEMES)
    (folder / "tasks.json").write_text(json.dumps(TASKS))
    return [row["text"] for row in rows]


def train_generator(model: str, corpus: Path, features: Path) -> None:
    from stages import train_sft

    config = train_sft.load_sft_config(model)
    sft = replace(config.run.sft, max_steps=STEPS)
    config = replace(config, run=replace(config.run, sft=sft))
    train_sft.train(model, config, chunks=corpus, features=features, log=lambda row, step: None)


def train_mm_orient(corpus: Path, features: Path) -> None:
    from stages.models.mm_orient.checkpoint import MmOrientRun
    from stages.shared.backbones.classifier import CorpusFolders, load_model_config
    from stages.shared.core.config import load_config
    from stages.train_classifier import common, mm_orient

    run = load_config(MmOrientRun, "classifiers", "mm_orient")
    run = replace(run, training=replace(run.training, max_steps=STEPS))
    common.train(
        "mm_orient",
        mm_orient,
        run,
        load_model_config("mm_orient"),
        CorpusFolders(corpus, corpus, features),
        "memes",
        checkpoint_interval_seconds=3600,
        log=lambda row, step: None,
    )


def read_resident_memory() -> dict[str, int]:
    """Resident memory of this process in bytes by kind: RssAnon, RssFile."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0].startswith("Rss")}


def train(model: str, corpus: Path, features: Path) -> dict[str, float]:
    """Train a model in this process.  -> highest memory in bytes by kind, seconds"""
    peak, finished = read_resident_memory(), Event()

    def watch() -> None:
        while not finished.wait(SAMPLING_SECONDS):
            for kind, size in read_resident_memory().items():
                peak[kind] = max(peak[kind], size)

    watcher, started = Thread(target=watch), time.perf_counter()
    watcher.start()
    if model == "mm_orient":
        train_mm_orient(corpus, features)
    else:
        train_generator(model, corpus, features)
    finished.set()
    watcher.join()
    return {"own": peak["RssAnon"], "mapped": peak["RssFile"], "s": time.perf_counter() - started}


def measure(num_images: int) -> Iterator[str]:
    """Lines with the memory and time of each model."""
    with TemporaryDirectory(prefix="polymuse-") as name:
        folder = Path(name)
        for corpus, models in ((write_articles, MODELS[:2]), (write_memes, MODELS[2:])):
            texts = corpus(folder / corpus.__name__, num_images)
            write_features(folder / "features", num_images, texts)
            for model in models:
                paths = [str(folder / corpus.__name__), str(folder / "features")]
                environment = os.environ | {"POLYMUSE_HOME": str(folder / "home")}
                command = [sys.executable, "-m", "benchmarks.memory", "--train", model, *paths]
                output = subprocess.run(
                    command, env=environment, check=True, stdout=subprocess.PIPE, text=True
                ).stdout
                result = json.loads(output.splitlines()[-1])
                yield (
                    f"{num_images:7,} images {model:10} own {result['own'] / 1e9:5.2f} GB, "
                    f"mapped {result['mapped'] / 1e9:5.2f} GB, {result['s']:6.1f} s"
                )
            for path in (folder / "features").iterdir():
                path.unlink()
            (folder / "features").rmdir()


def main(sizes: Iterable[int] = SIZES) -> Iterator[str]:
    for num_images in sizes:
        yield from measure(num_images)


if __name__ == "__main__":
    if sys.argv[1] == "--train":
        print(json.dumps(train(sys.argv[2], *map(Path, sys.argv[3:]))))
    else:
        for line in main(map(int, sys.argv[1:])):
            print(line, flush=True)
