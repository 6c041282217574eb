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
from pipelines.inference.input_rules import Rules, count, rules
from stages.shared.core import config
from stages.shared.data import text_cleaning
from stages.shared.data.language import detect
from stages.shared.data.records import UNKNOWN
from stages.shared.runtime.stage import WrongInput, output

if TYPE_CHECKING:
    from pipelines.inference.generator import Author, Text
    from stages.shared.generation.generator import Run

PHASES = {"preference": "data/10_train_preference", "sft": "data/09_train_sft"}  # the last first
SEEDS = 2**32  # what every generator takes


@dataclass(frozen=True)
class Params:
    images: int
    max_images: int
    max_characters: int
    picture: int
    crisp: int


@dataclass(frozen=True)
class Source:
    """A picture that the article will show, before it is redrawn."""

    content: bytes
    provenance: str
    name: str


@dataclass(frozen=True)
class Inputs:
    topic: str | None
    pictures: list[Source]
    missing: int  # pictures that the illustrator is to add


def main(given: Namespace) -> None:
    """Raises WrongInput, before anything is written, for input that cannot become an article."""
    settings = config.load(Params, "write")
    target = checked_target(given.output)
    name = model_bundle.run_name(given.run, "writers")
    limits = rules("write")
    inputs = read_inputs(given.topic, given.image, given.images, settings, limits)
    seed = checked_seed(given.seed)
    with ExitStack() as stack:
        folder, phase = model_bundle.model_folder(
            name, given.model, PHASES, "train_preference", stack
        )
        from stages.shared.generation import (
            generator as generators,  # torch and what else is slow: wrong input is told at once
        )

        run = config.load(generators.Run, "writers", name)
        generation = run.generation if seed is None else replace(run.generation, seed=seed)
        author = load_author(folder, given.model)
        check_topic(inputs, author)
        inputs = illustrate(inputs, given.backend, run, generation.seed)
        print(f"Writing {count(max(1, len(inputs.pictures)), 'text')} with {name}", flush=True)
        texts = write_texts(author, inputs, generation)
        said = {"run": name, "phase": phase, "uri": model_bundle.shown_address(given.model)}
        made = compose(inputs, texts, said, generation.seed, settings, limits)
    save(made, target)


def checked_target(folder: Path) -> Path:
    """Where to write. Raises WrongInput where something lies that this command did not write."""
    folder = folder.resolve()
    try:
        if folder.exists() and not folder.is_dir():
            raise WrongInput(f"{folder} is a file: name another folder with --output")
        if folder.is_dir() and any(folder.iterdir()) and not article_export.is_saved(folder):
            raise WrongInput(
                f"{folder} holds files that are no article of this command, and they would be "
                "lost: name another folder with --output"
            )
        above = next(place for place in folder.parents if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise WrongInput(
                f"{above} is {'not to be written in' if above.is_dir() else 'a file'}: name "
                "another folder with --output"
            )
    except OSError as error:
        raise WrongInput(f"{folder} cannot be used ({error.strerror}): name another one") from None
    return folder


def checked_seed(seed: int | None) -> int | None:
    if seed is not None and not 0 <= seed < SEEDS:
        raise WrongInput(f"--seed is {seed}: give a number from 0 to {SEEDS - 1}")
    return seed


def read_inputs(
    topic: str | None, files: list[Path], wanted: int | None, settings: Params, limits: Rules
) -> Inputs:
    """The clean topic and the pictures' bytes. Raises WrongInput for what cannot be used."""
    title = limits.topic(topic, "--topic")
    if title is None and not files:
        raise WrongInput("there is nothing to write about: give --topic with words, or --image")
    default = len(files) or settings.images
    wanted = default if wanted is None else wanted
    if not 0 <= wanted <= settings.max_images or len(files) > settings.max_images:
        what = wanted if len(files) <= settings.max_images else len(files)
        raise WrongInput(
            f"--images: {what} pictures are not 0 to {settings.max_images} (write.max_images of "
            "params.yaml): give another number"
        )
    if wanted < len(files):
        raise WrongInput(
            f"--images is {wanted}, and {len(files)} are given: raise it or give fewer pictures"
        )
    if title is None and wanted > len(files):
        raise WrongInput(
            f"--images is {wanted}, and {len(files)} are given: the others need a --topic to be "
            "found by"
        )
    pictures = [read_picture(file, limits) for file in files]
    return Inputs(title, pictures, wanted - len(files))


def read_picture(file: Path, limits: Rules) -> Source:
    content = limits.file(file, f"--image: {file}")
    name = text_cleaning.INVISIBLE.sub("", file.name.encode(errors="replace").decode())
    return Source(content, article_export.GIVEN, " ".join(name.split()))


def load_author(folder: Path, model: str | None) -> "Author":
    from pipelines.inference.generator import Author

    return Author(folder, f"--model: {model}" if model else str(folder))


def check_topic(inputs: Inputs, author: "Author") -> None:
    """Say so where a model was trained on captions, and never saw a topic: it reads none.

    Raises WrongInput if there is nothing else to write about.
    """
    if inputs.topic is None or author.reads_topics:
        return
    if not inputs.pictures and not inputs.missing:
        raise WrongInput(
            "--images is 0, and this model was trained on captions and writes about pictures "
            "alone: raise it, or give --image"
        )
    print("This model was trained on captions: it does not read the topic.", flush=True)


def illustrate(inputs: Inputs, backend: str | None, run: "Run", seed: int) -> Inputs:
    """The inputs with the missing pictures found or drawn, as many as there are."""
    from stages.illustrate import base as illustrators

    numbers = config.load(illustrators.Params, "illustrate")
    backend = numbers.backend if backend is None else backend
    illustrators.kind_of(backend)  # a slip is told where nothing is missing too
    if not inputs.missing:
        return inputs
    folders = [f"data/{stage}/{run.corpus}" for stage in ("01_ingest", "05_chunk")]
    folders += ["data/06_align", f"data/07_embed/{run.corpus}"]
    batch = config.load(int, "embed", "text_batch")
    gallery = illustrators.Gallery(*map(Path, folders), batch)
    illustrator = illustrators.load(backend, numbers, gallery)
    if illustrator.obstacle:
        raise WrongInput(
            f"--backend: {illustrator.name} cannot illustrate here, {illustrator.obstacle}: give "
            "every --image yourself, --images 0, or another backend"
        )
    print(f"Looking for {count(inputs.missing, 'picture')} by {illustrator.name}", flush=True)
    (found,) = illustrator.illustrate([inputs.topic], inputs.missing, seed)
    if len(found) < inputs.missing:
        print(f"There are only {len(found)}.", flush=True)
    added = [Source(one.content, illustrator.name, one.source) for one in found]
    return Inputs(inputs.topic, [*inputs.pictures, *added], 0)


def write_texts(author: "Author", inputs: Inputs, generation) -> list["Text"]:
    from pipelines.inference.generator import Item

    contents = [picture.content for picture in inputs.pictures] or [None]
    (texts,) = author.write([[Item(inputs.topic, content) for content in contents]], generation)
    return texts


def compose(
    inputs: Inputs,
    texts: list["Text"],
    model: dict[str, str | None],
    seed: int,
    settings: Params,
    limits: Rules,
) -> article_export.Article:
    """The article; what was written passes the same cleaning as what it was learned from."""
    chunks = []
    for number, text in enumerate(texts, start=1):
        picture = None
        if inputs.pictures:
            one = inputs.pictures[number - 1]
            picture = article_export.redraw(
                one.content, number, one.provenance, one.name, settings.picture, settings.crisp
            )
        passed = None if text.passed is None else text.passed > 0
        chunks.append(
            article_export.Chunk(limits.text(text.text), picture, text.similarity, passed)
        )
    language = detect(" ".join([inputs.topic or "", *(chunk.text for chunk in chunks)])) or UNKNOWN
    return article_export.Article(inputs.topic, language, model, seed, chunks)


def save(made: article_export.Article, target: Path) -> None:
    """Write it, whole or not at all, and say where."""
    try:
        with output(target) as folder:
            article_export.save(made, folder)
    except OSError as error:
        raise WrongInput(
            f"{target} cannot be written ({error.strerror}): name another folder with --output"
        ) from None
    for name in article_export.FILES:
        print(target / name)
