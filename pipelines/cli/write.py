"""`polymuse write`: an illustrated article from a topic, images, or both.

reads   a model folder (the last phase of a run, or --model), and for missing images what the
        illustration backend needs: for `retrieve` the folders of the training articles
writes  the output folder, completely or not at all; see pipelines/inference/article_export.py

The model writes one text for each image, in order; images of the backend come last.
"""

import os
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.inference import article_export, model_bundle
from pipelines.inference.input_rules import InputRules, format_count, load_input_rules
from stages.shared.core import config
from stages.shared.core.config import Field, config_class
from stages.shared.data import text_cleaning
from stages.shared.data.language import detect_language
from stages.shared.data.records import UNDETERMINED_LANGUAGE
from stages.shared.runtime.stage import InputError, atomic_output_dir

if TYPE_CHECKING:
    from pipelines.inference.generator import ArticleGenerator, GeneratedText
    from stages.shared.generation.generator import GenerationConfig, GeneratorRun

NUM_SEEDS = 2**32  # seeds that every random generator accepts


@config_class
class WriteCommandConfig:
    """The section `cli_write`."""

    default_num_images: int = Field(description="images of an article written from a topic alone")
    batch_size: int = Field(ge=1, description="texts per batch of a model that is served")
    max_images: int = Field(description="images of an article at most")
    max_characters: int = Field(description="characters of a topic at most")
    max_image_size: int = Field(description="longest side of an image in the article, pixels")
    max_pixelated_size: int = Field(
        description="longest side of images enlarged with hard pixel edges"
    )


@dataclass(frozen=True)
class SourceImage:
    """An image of the article before it is re-encoded."""

    content: bytes
    provenance: str
    name: str


@dataclass(frozen=True)
class ArticleInputs:
    topic: str | None
    images: list[SourceImage]
    num_missing: int  # images that the illustration backend adds


def main(options: Namespace) -> None:
    """Write an article. Raises InputError for invalid input, before anything is written."""
    settings = config.load_config(WriteCommandConfig, "cli_write")
    target = check_target(options.output)
    name = model_bundle.resolve_run_name(options.run, "generators")
    rules = load_input_rules("cli_write")
    inputs = read_inputs(options.topic, options.image, options.images, settings, rules)
    seed = check_seed(options.seed)
    with ExitStack() as stack:
        folder, phase = model_bundle.resolve_model_dir(
            name, options.model, model_bundle.MODEL_DIRS["generators"], "train_preference", stack
        )
        # Imports torch: after the checks, so that invalid input fails quickly.
        from stages.shared.generation import generator as generators

        run = config.load_config(generators.GeneratorRun, "generators", name)
        generation = run.generation if seed is None else replace(run.generation, seed=seed)
        generator = load_generator(folder, options.model)
        check_topic(inputs, generator)
        log = partial(print, flush=True)
        inputs = add_illustrations(inputs, options.backend, run, generation.seed, log)
        count = 1 if generator.writes_one_text else max(1, len(inputs.images))
        num_texts = format_count(count, "text")
        print(f"Writing {num_texts} with {name}", flush=True)
        texts = generate_texts(generator, inputs, generation)
        model = {
            "run": name,
            "phase": phase,
            "uri": model_bundle.format_model_source(options.model),
        }
        article = compose_article(inputs, texts, model, generation.seed, settings, rules)
    save_to_target(article, target)


def check_target(folder: Path) -> Path:
    """The resolved output folder. Raises InputError if this would overwrite other files."""
    folder = folder.resolve()
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: name another folder with --output")
        if folder.is_dir() and any(folder.iterdir()) and not article_export.is_article_dir(folder):
            raise InputError(
                f"{folder} has files that this command did not write and would overwrite: name "
                "another folder with --output"
            )
        parent = next(path for path in folder.parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise InputError(
                f"{parent} is {'not writable' if parent.is_dir() else 'a file'}: name another "
                "folder with --output"
            )
    except OSError as error:
        raise InputError(f"{folder} cannot be used ({error.strerror}): name another one") from None
    return folder


def check_seed(seed: int | None) -> int | None:
    if seed is not None and not 0 <= seed < NUM_SEEDS:
        raise InputError(f"--seed is {seed}: give a number from 0 to {NUM_SEEDS - 1}")
    return seed


def read_inputs(
    topic: str | None,
    files: list[Path],
    num_images: int | None,
    settings: WriteCommandConfig,
    rules: InputRules,
) -> ArticleInputs:
    """The cleaned topic and the content of the images. Raises InputError for invalid input."""
    title = rules.clean_topic(topic, "--topic")
    if title is None and not files:
        raise InputError("there is nothing to write about: give --topic or --image")
    if num_images is None:
        num_images = len(files) or settings.default_num_images
    if not 0 <= num_images <= settings.max_images or len(files) > settings.max_images:
        wrong = num_images if len(files) <= settings.max_images else len(files)
        raise InputError(
            f"--images: {wrong} images are not 0 to {settings.max_images} (cli_write.max_images "
            "of params.yaml): give another number"
        )
    if num_images < len(files):
        raise InputError(
            f"--images is {num_images}, but --image names {len(files)}: raise it or name fewer"
        )
    if title is None and num_images > len(files):
        raise InputError(
            f"--images is {num_images}, but --image names {len(files)}: the backend needs a "
            "--topic to add the others"
        )
    images = [read_source_image(file, rules) for file in files]
    return ArticleInputs(title, images, num_images - len(files))


def read_source_image(file: Path, rules: InputRules) -> SourceImage:
    return build_source_image(rules.read_image(file, f"--image: {file}"), file.name)


def build_source_image(content: bytes, file_name: str) -> SourceImage:
    """An image that the user provided."""
    name = text_cleaning.INVISIBLE_CHARACTERS.sub("", file_name.encode(errors="replace").decode())
    return SourceImage(content, article_export.PROVENANCE_PROVIDED, " ".join(name.split()))


def load_generator(folder: Path, model: str | None) -> "ArticleGenerator":
    from pipelines.inference.generator import ArticleGenerator

    return ArticleGenerator(folder, f"--model: {model}" if model else str(folder))


def check_topic(inputs: ArticleInputs, generator: "ArticleGenerator") -> None:
    """Print a note if the model does not use topics because it was trained on captions.

    Raises InputError if there is no other input.
    """
    if inputs.topic is None or generator.uses_topics:
        return
    if not inputs.images and not inputs.num_missing:
        raise InputError(
            "--images is 0, and this model was trained on captions and writes about images "
            "alone: raise it, or give --image"
        )
    print("This model was trained on captions: it does not read the topic.", flush=True)


def add_illustrations(
    inputs: ArticleInputs,
    backend: str | None,
    run: "GeneratorRun",
    seed: int,
    log: Callable[[str], None],
) -> ArticleInputs:
    """The inputs with images of the illustration backend, which may find fewer than asked.

    log: receives a sentence before images are added, and one if there are fewer
    """
    from stages.illustrate import base as illustrators

    settings = config.load_config(illustrators.IllustrateConfig, "illustrate")
    backend = settings.backend if backend is None else backend
    illustrators.get_backend_kind(backend)  # rejects unknown names even if no image is missing
    if inputs.topic is None or not inputs.num_missing:
        return inputs
    folders = [f"data/{stage}/{run.corpus}" for stage in ("01_ingest", "05_chunk")]
    folders += ["data/06_align", f"data/07_embed/{run.corpus}"]
    batch_size = config.load_config(int, "embed", "text_batch_size")
    ingest, chunk, align, embed = map(Path, folders)
    gallery = illustrators.ImageGallery(ingest, chunk, align, embed, batch_size)
    illustrator = illustrators.load_illustrator(backend, settings, gallery)
    if illustrator.unavailable_reason:
        raise InputError(
            f"--backend: {illustrator.name} is not available, {illustrator.unavailable_reason}: "
            "give every --image yourself, --images 0, or another backend"
        )
    missing = format_count(inputs.num_missing, "image")
    log(f"Adding {missing} by {illustrator.name}")
    (illustrations,) = illustrator.illustrate([inputs.topic], inputs.num_missing, seed)
    if len(illustrations) < inputs.num_missing:
        log(f"There are only {len(illustrations)}.")
    added = [SourceImage(image.content, illustrator.name, image.source) for image in illustrations]
    return ArticleInputs(inputs.topic, [*inputs.images, *added], 0)


def generate_texts(
    generator: "ArticleGenerator", inputs: ArticleInputs, generation: "GenerationConfig"
) -> list["GeneratedText"]:
    from pipelines.inference.generator import GenerationInput

    contents = [image.content for image in inputs.images] or [None]
    items = [GenerationInput(inputs.topic, content) for content in contents]
    (texts,) = generator.generate([items], generation)
    return texts


def compose_article(
    inputs: ArticleInputs,
    texts: list["GeneratedText"],
    model: dict[str, str | None],
    seed: int,
    settings: WriteCommandConfig,
    rules: InputRules,
) -> article_export.GeneratedArticle:
    """The article, with generated texts cleaned like training texts."""
    chunks = []
    # A text about all images stands with the first one.
    for number, (text, source) in enumerate(zip_longest(texts, inputs.images), start=1):
        image = source and article_export.encode_image(
            source.content,
            number,
            source.provenance,
            source.name,
            settings.max_image_size,
            settings.max_pixelated_size,
        )
        if text is None:
            chunks.append(article_export.ArticleChunk("", image, None, None))
            continue
        topic_passed = None if text.topic_gate is None else text.topic_gate > 0
        chunks.append(
            article_export.ArticleChunk(
                rules.clean_text(text.text), image, text.similarity, topic_passed
            )
        )
    full_text = " ".join([inputs.topic or "", *(chunk.text for chunk in chunks)])
    language = detect_language(full_text) or UNDETERMINED_LANGUAGE
    return article_export.GeneratedArticle(inputs.topic, language, model, seed, chunks)


def save_to_target(article: article_export.GeneratedArticle, target: Path) -> None:
    """Write the article, completely or not at all, and print the paths of its files."""
    try:
        with atomic_output_dir(target) as folder:
            article_export.save_article(article, folder)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror}): name another folder with --output"
        ) from None
    for name in article_export.FILES:
        print(target / name)
