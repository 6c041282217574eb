"""What the runs make of an article, a meme and a text, with the commands that make it again.

reads   11_predict/<run>, as loaded by loaders.py
        11_classify/<run>/labels.parquet, and records.parquet of the stage that the run reads
writes  example/  the images of these items, which the commands read

Each item is the first of its split whose input a command can prepare as the stages did, so that the
command prints what the page shows. None is chosen by its score.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.report import loaders, meme_section, tagging_examples
from stages.report.classifier_section import ClassifierSection
from stages.report.generator_section import GeneratorSection, get_nested
from stages.report.meme_section import MemeSection, TaskResult
from stages.report.tagging_examples import ExamplePrediction
from stages.shared.core import schemas
from stages.shared.data import image_store

EXAMPLE_DIR = "data/14_report/example"  # relative to the project, as a user types it
NUM_IMAGES = range(2, 5)  # images of an article that fits on the page
# Words that the tokenizer of `polymuse label` finds again in a text whose words are joined by
# spaces: Latin letters and digits, or punctuation.
PLAIN_WORD = re.compile(r"[A-Za-z0-9\u00c0-\u024f]+|[^\w\s@#]+")


@dataclass(frozen=True)
class WrittenArticle:
    """An article, or the caption of one image."""

    run: str
    description: str  # of its inputs
    title: str  # the topic; "" of a caption
    language: str
    chunks: list[dict]  # PREDICTIONS of the final phase, with `images` of each
    command: str
    is_sampled: bool  # the command then writes another text
    files: dict[str, bytes]  # image files by SHA-256


@dataclass(frozen=True)
class LabeledMeme:
    run: str
    description: str
    row: dict  # MEMES
    results: list[TaskResult]
    command: str
    files: dict[str, bytes]


@dataclass(frozen=True)
class LabeledText:
    """A tweet or a post."""

    run: str
    description: str
    row: dict  # CLEAN_RECORDS
    gold: ExamplePrediction
    prediction: ExamplePrediction  # from all inputs that the item has
    command: str
    files: dict[str, bytes]


# ---------------------------------------------------------------------------- articles
def build_written_article(
    generators: list[GeneratorSection], data: Path, folder: Path
) -> WrittenArticle | None:
    """The example of the first generator of articles, else of the first one. Saves its images."""
    if not generators:
        return None
    generator = next((run for run in generators if run.kind == "articles"), generators[0])
    chunks = select_chunks(generator)
    images = list_images(generator, chunks)
    files = loaders.load_images(data, generator.params["corpus"], set(images))
    paths = [
        save_pixels(files[image], folder, str(number))
        for number, image in enumerate(images, start=1)
    ]
    title = chunks[0]["title"]
    return WrittenArticle(
        generator.name,
        describe_chunks(generator.kind, title, len(images)),
        title,
        chunks[0]["language"],
        [{**chunk, "images": list_images(generator, [chunk])} for chunk in chunks],
        format_write_command(generator.name, title, paths),
        uses_sampling(generator),
        files,
    )


def select_chunks(generator: GeneratorSection) -> list[dict]:
    """The PREDICTIONS of the first test article with NUM_IMAGES images, else of the shortest."""
    articles: dict[str, list[dict]] = {}
    for row in generator.predictions:
        if row["phase"] == generator.metrics["phase"]:
            articles.setdefault(row["record"], []).append(row)
    fitting = (
        rows for rows in articles.values() if len(list_images(generator, rows)) in NUM_IMAGES
    )
    rows = next(fitting, None) or min(articles.values(), key=len)
    return sorted(rows, key=lambda row: row["position"])


def list_images(generator: GeneratorSection, chunks: list[dict]) -> list[str]:
    """The images of an article in order."""
    return [
        image
        for chunk in chunks
        for image in [chunk["image"], *generator.get_further_images(chunk)]
        if image
    ]


def describe_chunks(kind: str, title: str, num_images: int) -> str:
    """What the texts were generated from."""
    if kind == "captions":
        return "the first image of the test split"
    inputs = ["the topic"] if title else []
    inputs += ["the images" if num_images > 1 else "the image"] if num_images else []
    article = "the first of the shortest articles of the test split"
    if num_images in NUM_IMAGES:
        article = (
            f"the first article of the test split with {NUM_IMAGES[0]} to {NUM_IMAGES[-1]} images"
        )
    return f"{' and '.join(inputs)} of {article}"


def uses_sampling(generator: GeneratorSection) -> bool:
    """Whether random numbers decide on the text."""
    is_sampled = bool(get_nested(generator.params, "generation.temperature"))
    return is_sampled or get_nested(generator.metrics, "gate.predict.mode") == "sample"


def format_write_command(run: str, title: str, paths: list[str]) -> str:
    """paths: of the images, in order."""
    topic = format_option("--topic", title) if title else []
    images = ["--image", *paths] if paths else ["--images", "0"]
    return shlex.join(["polymuse", "write", "--run", run, *topic, *images, "-o", "article"])


# ---------------------------------------------------------------------------- labels
def build_labeled_meme(
    classifiers: Sequence[ClassifierSection], data: Path, folder: Path
) -> LabeledMeme | None:
    """The example of the first classifier of memes. Saves its image.

    The image is the ingested one: the command removes its text as the stage inpaint did. A text of
    the corpus is part of the command, a recognized one is recognized again.
    """
    classifier = next((run for run in classifiers if isinstance(run, MemeSection)), None)
    if classifier is None:
        return None
    name, corpus, split = classifier.name, classifier.params["corpus"], classifier.metrics["split"]
    rows = schemas.read_parquet(
        data / classifier.params["records"] / corpus / "records.parquet", schemas.MEMES
    )
    labels = load_labels(data / "11_classify" / name, split)
    row = select_record(rows, labels, lambda row: row["text"] and row["pictured"])
    if row is None:
        return None
    files = loaders.load_images(data, corpus, {row["pictured"]})
    path = save_pixels(files[row["pictured"]], folder, "meme")
    text = row["text"] if row["text_source"] == "corpus" else ""
    return LabeledMeme(
        name,
        f"the first meme of the {split} split with image and text",
        row,
        meme_section.build_task_results(row, labels[row["id"]]),
        format_meme_command(name, path, text),
        files,
    )


def build_labeled_text(
    classifiers: Sequence[ClassifierSection], kinds: dict[str, str], data: Path, folder: Path
) -> LabeledText | None:
    """The example of the first classifier of tweets or posts that has one. Saves its image.

    kinds: corpus -> kind
    """
    for classifier in classifiers:
        corpus, split = classifier.params["corpus"], classifier.metrics["split"]
        kind = kinds[corpus]
        if isinstance(classifier, MemeSection):
            continue
        rows = schemas.read_parquet(
            data / "02_clean" / corpus / "records.parquet", schemas.CLEAN_RECORDS[kind]
        )
        labels = load_labels(data / "11_classify" / classifier.name, split)
        row = select_record(rows, labels, has_plain_words)
        if row is None:
            continue
        item, text = kind.removesuffix("s"), join_words(row)
        files, path = {}, None
        if row["image"]:
            files = loaders.load_images(data, corpus, {row["image"]})
            path = save_pixels(files[row["image"]], folder, item)
        gold, prediction, *_ = tagging_examples.build_predictions(row, labels[row["id"]])
        return LabeledText(
            classifier.name,
            describe_text(item, split, row),
            row,
            gold,
            prediction,
            format_text_command(classifier.name, text, path),
            files,
        )
    return None


def load_labels(folder: Path, split: str) -> dict[str, list[dict]]:
    """LABEL_PREDICTIONS of a split by record."""
    labels: dict[str, list[dict]] = {}
    for row in schemas.read_parquet(folder / "labels.parquet", schemas.LABEL_PREDICTIONS):
        if row["split"] == split:
            labels.setdefault(row["record"], []).append(row)
    return labels


def select_record(
    rows: list[dict], labels: dict[str, list[dict]], is_suitable: Callable[[dict], object]
) -> dict | None:
    """The first suitable row with labels and an image, else the first without an image."""
    suitable = [row for row in rows if row["id"] in labels and is_suitable(row)]
    return min(suitable, key=lambda row: row["image"] is None, default=None)


def has_plain_words(row: dict) -> bool:
    """Whether `polymuse label` splits the joined words of a tweet (CLEAN_RECORDS) as they were.

    True for a post, whose text is not split by the command.
    """
    return all(PLAIN_WORD.fullmatch(word) for word in row.get("words", []))


def join_words(row: dict) -> str:
    """The text of a tweet or post (CLEAN_RECORDS)."""
    return " ".join(row["words"]) if "words" in row else row["text"]


def describe_text(item: str, split: str, row: dict) -> str:
    properties = ["an image"] if row["image"] else []
    properties += ["only plain words"] if "words" in row else []
    suffix = f" with {' and '.join(properties)}" if properties else ""
    return f"the first {item} of the {split} split{suffix}"


def format_meme_command(run: str, path: str, text: str) -> str:
    """text: the overlay text; "" to recognize it in the image."""
    overlay = format_option("--text", text) if text else []
    return shlex.join(["polymuse", "label", path, *overlay, "--run", run])


def format_text_command(run: str, text: str, path: str | None) -> str:
    options = [*(["--image", path] if path else []), "--run", run]
    # After `--`, a text that starts with a hyphen is not taken for an option.
    words = [*options, "--", text] if text.startswith("-") else [text, *options]
    return shlex.join(["polymuse", "label", *words])


def format_option(name: str, value: str) -> list[str]:
    """The words of an option. A value that starts with a hyphen must be part of the same word."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


# ---------------------------------------------------------------------------- files
def save_pixels(content: bytes, folder: Path, stem: str) -> str:
    """Write an image without its metadata, as PNG, into `folder`/example -> its path in a command.

    The pixels are kept, so that a model sees what it saw in the corpus.
    """
    target = folder / "example" / f"{stem}.png"
    target.parent.mkdir(exist_ok=True)
    image = image_store.decode_image(content)
    image_store.resize_and_strip_metadata(image, max(image.size)).save(target)
    return f"{EXAMPLE_DIR}/{target.name}"
