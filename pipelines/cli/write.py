"""`polymuse write`: an illustrated article from a topic, pictures, or both.

reads   a model folder (the newest phase of a run, or --model), and for pictures that are missing
        what the illustrator's backend needs: for `retrieve` the training articles' folders
writes  the output folder, whole or not at all: see pipelines/inference/article_export.py

One text is written a picture, in the order given; pictures that the illustrator adds come last.
"""

import os
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.inference import article_export, model_bundle
from pipelines.inference.input_rules import InputRules, format_count, load_input_rules
from stages.shared.core import config
from stages.shared.core.config import config_class
from stages.shared.data import text_cleaning
from stages.shared.data.language import detect_language
from stages.shared.data.records import UNDETERMINED_LANGUAGE
from stages.shared.runtime.stage import InputError, atomic_output_dir

if TYPE_CHECKING:
    from pipelines.inference.generator import ArticleGenerator, GeneratedText
    from stages.shared.generation.generator import GeneratorRun

PHASE_DIRS = {
    "preference": "data/10_train_preference",
    "sft": "data/09_train_sft",
}  # the last first
NUM_SEEDS = 2**32  # what every generator takes


@config_class
class WriteCommandConfig:
    default_num_images: int
    max_images: int
    max_characters: int
    max_image_size: int
    max_pixelated_size: int


@dataclass(frozen=True)
class SourceImage:
    """A picture that the article will show, before it is redrawn."""

    content: bytes
    provenance: str
    name: str


@dataclass(frozen=True)
class ArticleInputs:
    topic: str | None
    images: list[SourceImage]
    num_missing: int  # pictures that the illustrator is to add


def main(given: Namespace) -> None:
    """Raises WrongInput, before anything is written, for input that cannot become an article."""
    settings = config.load_config(WriteCommandConfig, "cli_write")
    target = check_target(given.output)
    name = model_bundle.resolve_run_name(given.run, "generators")
    limits = load_input_rules("cli_write")
    inputs = read_inputs(given.topic, given.image, given.images, settings, limits)
    seed = check_seed(given.seed)
    with ExitStack() as stack:
        folder, phase = model_bundle.resolve_model_dir(
            name, given.model, PHASE_DIRS, "train_preference", stack
        )
        from stages.shared.generation import (
            generator as generators,  # torch and what else is slow: wrong input is told at once
        )

        run = config.load_config(generators.GeneratorRun, "generators", name)
        generation = run.generation if seed is None else replace(run.generation, seed=seed)
        author = load_generator(folder, given.model)
        check_topic(inputs, author)
        inputs = add_illustrations(inputs, given.backend, run, generation.seed)
        print(f"Writing {format_count(max(1, len(inputs.images)), 'text')} with {name}", flush=True)
        texts = generate_texts(author, inputs, generation)
        said = {"run": name, "phase": phase, "uri": model_bundle.format_model_source(given.model)}
        made = compose_article(inputs, texts, said, generation.seed, settings, limits)
    save_to_target(made, target)


def check_target(folder: Path) -> Path:
    """Where to write. Raises WrongInput where something lies that this command did not write."""
    folder = folder.resolve()
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: name another folder with --output")
        if folder.is_dir() and any(folder.iterdir()) and not article_export.is_article_dir(folder):
            raise InputError(
                f"{folder} holds files that are no article of this command, and they would be "
                "lost: name another folder with --output"
            )
        above = next(place for place in folder.parents if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise InputError(
                f"{above} is {'not to be written in' if above.is_dir() else 'a file'}: name "
                "another folder with --output"
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
    wanted: int | None,
    settings: WriteCommandConfig,
    limits: InputRules,
) -> ArticleInputs:
    """The clean topic and the pictures' bytes. Raises WrongInput for what cannot be used."""
    title = limits.clean_topic(topic, "--topic")
    if title is None and not files:
        raise InputError("there is nothing to write about: give --topic with words, or --image")
    default = len(files) or settings.default_num_images
    wanted = default if wanted is None else wanted
    if not 0 <= wanted <= settings.max_images or len(files) > settings.max_images:
        what = wanted if len(files) <= settings.max_images else len(files)
        raise InputError(
            f"--images: {what} pictures are not 0 to {settings.max_images} (write.max_images of "
            "params.yaml): give another number"
        )
    if wanted < len(files):
        raise InputError(
            f"--images is {wanted}, and {len(files)} are given: raise it or give fewer pictures"
        )
    if title is None and wanted > len(files):
        raise InputError(
            f"--images is {wanted}, and {len(files)} are given: the others need a --topic to be "
            "found by"
        )
    pictures = [read_source_image(file, limits) for file in files]
    return ArticleInputs(title, pictures, wanted - len(files))


def read_source_image(file: Path, limits: InputRules) -> SourceImage:
    content = limits.read_image(file, f"--image: {file}")
    name = text_cleaning.INVISIBLE_CHARACTERS.sub("", file.name.encode(errors="replace").decode())
    return SourceImage(content, article_export.PROVENANCE_PROVIDED, " ".join(name.split()))


def load_generator(folder: Path, model: str | None) -> "ArticleGenerator":
    from pipelines.inference.generator import ArticleGenerator

    return ArticleGenerator(folder, f"--model: {model}" if model else str(folder))


def check_topic(inputs: ArticleInputs, author: "ArticleGenerator") -> None:
    """Say so where a model was trained on captions, and never saw a topic: it reads none.

    Raises WrongInput if there is nothing else to write about.
    """
    if inputs.topic is None or author.uses_topics:
        return
    if not inputs.images and not inputs.num_missing:
        raise InputError(
            "--images is 0, and this model was trained on captions and writes about pictures "
            "alone: raise it, or give --image"
        )
    print("This model was trained on captions: it does not read the topic.", flush=True)


def add_illustrations(
    inputs: ArticleInputs, backend: str | None, run: "GeneratorRun", seed: int
) -> ArticleInputs:
    """The inputs with the missing pictures found or drawn, as many as there are."""
    from stages.illustrate import base as illustrators

    numbers = config.load_config(illustrators.IllustrateConfig, "illustrate")
    backend = numbers.backend if backend is None else backend
    illustrators.get_backend_kind(backend)  # a slip is told where nothing is missing too
    if not inputs.num_missing:
        return inputs
    folders = [f"data/{stage}/{run.corpus}" for stage in ("01_ingest", "05_chunk")]
    folders += ["data/06_align", f"data/07_embed/{run.corpus}"]
    batch = config.load_config(int, "embed", "text_batch")
    gallery = illustrators.ImageGallery(*map(Path, folders), batch)
    illustrator = illustrators.load_illustrator(backend, numbers, gallery)
    if illustrator.unavailable_reason:
        raise InputError(
            f"--backend: {illustrator.name} cannot illustrate here, {illustrator.unavailable_reason}: give "
            "every --image yourself, --images 0, or another backend"
        )
    print(
        f"Looking for {format_count(inputs.num_missing, 'picture')} by {illustrator.name}",
        flush=True,
    )
    (found,) = illustrator.illustrate([inputs.topic], inputs.num_missing, seed)
    if len(found) < inputs.num_missing:
        print(f"There are only {len(found)}.", flush=True)
    added = [SourceImage(one.content, illustrator.name, one.source) for one in found]
    return ArticleInputs(inputs.topic, [*inputs.images, *added], 0)


def generate_texts(
    author: "ArticleGenerator", inputs: ArticleInputs, generation
) -> list["GeneratedText"]:
    from pipelines.inference.generator import GenerationInput

    contents = [picture.content for picture in inputs.images] or [None]
    (texts,) = author.generate(
        [[GenerationInput(inputs.topic, content) for content in contents]], generation
    )
    return texts


def compose_article(
    inputs: ArticleInputs,
    texts: list["GeneratedText"],
    model: dict[str, str | None],
    seed: int,
    settings: WriteCommandConfig,
    limits: InputRules,
) -> article_export.GeneratedArticle:
    """The article; what was written passes the same cleaning as what it was learned from."""
    chunks = []
    for number, text in enumerate(texts, start=1):
        picture = None
        if inputs.images:
            one = inputs.images[number - 1]
            picture = article_export.encode_image(
                one.content,
                number,
                one.provenance,
                one.name,
                settings.max_image_size,
                settings.max_pixelated_size,
            )
        passed = None if text.topic_gate is None else text.topic_gate > 0
        chunks.append(
            article_export.ArticleChunk(
                limits.clean_text(text.text), picture, text.similarity, passed
            )
        )
    language = (
        detect_language(" ".join([inputs.topic or "", *(chunk.text for chunk in chunks)]))
        or UNDETERMINED_LANGUAGE
    )
    return article_export.GeneratedArticle(inputs.topic, language, model, seed, chunks)


def save_to_target(made: article_export.GeneratedArticle, target: Path) -> None:
    """Write it, whole or not at all, and say where."""
    try:
        with atomic_output_dir(target) as folder:
            article_export.save_article(made, folder)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror}): name another folder with --output"
        ) from None
    for name in article_export.FILES:
        print(target / name)
