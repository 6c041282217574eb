"""A model of the page: it is loaded at its first request, stays in memory and answers in HTML.

    model = create_model(source, settings)
    answer = model.answer(DemoRequest(text="a picnic"), log=print)

The limits and cleaning rules are those of `polymuse write` and `polymuse label`. The templates
escape everything; images are re-encoded without metadata.
"""

from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import jinja2
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from pipelines.cli import write
from pipelines.demo.config import DemoConfig
from pipelines.demo.sources import ModelSource
from pipelines.inference import article_export, model_bundle
from pipelines.inference.input_rules import (
    InputRules,
    decode_base64,
    format_count,
    has_visible_text,
    load_input_rules,
)
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.data.language import detect_language
from stages.shared.data.records import UNDETERMINED_LANGUAGE
from stages.shared.runtime.stage import InputError

if TYPE_CHECKING:
    from pipelines.inference.generator import ArticleGenerator
    from pipelines.inference.meme_labeler import MemeLabeler, PreparedMeme
    from pipelines.inference.text_labeler import EntityPrediction, LabelInput, TextLabeler
    from stages.shared.generation.generator import GeneratorRun

TEMPLATES = Path(__file__).parent / "templates"
REPORT_TEMPLATES = Path(__file__).parents[2] / "stages" / "report" / "templates"
NUM_COLORS = 4  # --series-* of the style sheet
Log = Callable[[str], None]  # receives a sentence on what happens
# The libraries have one random generator for all models, so one request is processed at a time.
PROCESSING = Lock()


class UploadedImage(BaseModel):
    """An image file. content: base64."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(max_length=255)
    content: str


class DemoRequest(BaseModel):
    """A request of the page.

    text: a topic, a text, or the overlay text of a meme. num_images: of an article, in total; None:
    as many as `polymuse write` takes.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    text: str = ""
    images: list[UploadedImage] = []
    num_images: int | None = None


@dataclass(frozen=True)
class DemoAnswer:
    """html: of the result. article: an article.html to save, if the model writes articles."""

    html: str
    article: str | None


@dataclass(frozen=True)
class PageImage:
    data_uri: str
    width: int
    height: int
    pixelated: bool
    alt_text: str


@dataclass(frozen=True)
class ExchangeView:
    """What a layer exchanged.

    subwords: text, attention relative to the maximum, exchanged? cells: exchanged, all.
    """

    number: int
    subwords: list[tuple[str, float, bool]]
    cells: tuple[int, int]
    heatmap: PageImage | None


@dataclass(frozen=True)
class DemoSettings:
    """Sections of params.yaml."""

    demo: DemoConfig
    write: write.WriteCommandConfig
    write_rules: InputRules
    label_rules: InputRules


def load_settings() -> DemoSettings:
    return DemoSettings(
        load_config(DemoConfig, "cli_demo"),
        load_config(write.WriteCommandConfig, "cli_write"),
        load_input_rules("cli_write"),
        load_input_rules("cli_label"),
    )


class DemoModel(ABC):
    """A model of the page."""

    max_images = 1

    def __init__(self, source: ModelSource, settings: DemoSettings):
        self.source, self.settings = source, settings

    def answer(self, request: DemoRequest, log: Log) -> DemoAnswer:
        """Load the model unless it is loaded, and process the request. Raises InputError.

        The caller holds PROCESSING.
        """
        self.check(request)
        if "predictor" not in vars(self):  # a cached property
            log(f"Loading {self.source.name}")
        return self.process(request, log)

    def check(self, request: DemoRequest) -> None:
        """Raises InputError for input that no model of this class accepts, before it is loaded."""
        self.rules.check_length(request.text, "the text")
        if len(request.images) > self.max_images:
            raise InputError(
                f"there are {len(request.images)} images, more than {self.max_images}: give fewer"
            )

    @property
    def rules(self) -> InputRules:
        return self.settings.label_rules

    @property
    def display_name(self) -> str:
        """What messages call the model."""
        return self.source.uri or str(self.source.folder)

    @abstractmethod
    def process(self, request: DemoRequest, log: Log) -> DemoAnswer: ...

    def read_images(self, request: DemoRequest) -> list[write.SourceImage]:
        """The uploaded images. Raises InputError if one is not an image or too large."""
        images = []
        for image in request.images:
            source = write.build_source_image(b"", image.name)
            content = decode_base64(image.content, source.name)
            images.append(
                write.build_source_image(self.rules.check_image(content, source.name), image.name)
            )
        return images

    def encode_image(self, content: bytes, alt_text: str) -> PageImage:
        """The image as the exported article has it: without metadata, at most max_image_size."""
        image = article_export.encode_image(
            content,
            1,
            article_export.PROVENANCE_PROVIDED,
            alt_text,
            self.settings.write.max_image_size,
            self.settings.write.max_pixelated_size,
        )
        return PageImage(image.data_uri, image.width, image.height, image.pixelated, alt_text)


class DemoGenerator(DemoModel):
    """A generator: topic and images -> article; image -> caption."""

    def __init__(self, source: ModelSource, settings: DemoSettings):
        super().__init__(source, settings)
        self.max_images = settings.write.max_images

    @property
    def rules(self) -> InputRules:
        return self.settings.write_rules

    @cached_property
    def predictor(self) -> "ArticleGenerator":
        from pipelines.inference.generator import ArticleGenerator  # imports torch, which is slow

        return ArticleGenerator(self.source.folder, self.display_name)

    @cached_property
    def run(self) -> "GeneratorRun":
        """The row of params.yaml with the settings of decoding."""
        from stages.shared.generation.generator import GeneratorRun

        name = model_bundle.resolve_run_name(self.source.run, "generators")
        return load_config(GeneratorRun, "generators", name)

    def check(self, request: DemoRequest) -> None:
        super().check(request)
        if not request.images and not has_visible_text(request.text):
            raise InputError("there is nothing to write about: give a topic or an image")
        number = request.num_images
        if number is not None and not 0 <= number <= self.max_images:
            raise InputError(
                f"{number} images are not 0 to {self.max_images} (cli_write.max_images of "
                "params.yaml): give another number"
            )

    def process(self, request: DemoRequest, log: Log) -> DemoAnswer:
        inputs = self.build_inputs(request)
        generator, generation = self.predictor, self.run.generation
        if not generator.uses_topics and not inputs.images and not inputs.num_missing:
            raise InputError(
                "this model was trained on captions and writes about images alone: give an image"
            )
        inputs = write.add_illustrations(inputs, None, self.run, generation.seed, log)
        count = 1 if generator.writes_one_text else max(1, len(inputs.images))
        log(f"Writing {format_count(count, 'text')}")
        texts = write.generate_texts(generator, inputs, generation)
        model = {"run": self.source.run, "phase": self.source.phase, "uri": self.source.uri}
        article = write.compose_article(
            inputs, texts, model, generation.seed, self.settings.write, self.rules
        )
        notes = []
        if inputs.topic and not generator.uses_topics:
            notes.append("This model was trained on captions: it does not read the topic.")
        html = render("article.html", article=article, notes=notes)
        return DemoAnswer(html, article_export.render_html(article))

    def build_inputs(self, request: DemoRequest) -> write.ArticleInputs:
        topic, images = self.rules.clean_topic(request.text, "the topic"), self.read_images(request)
        if topic is None:
            return write.ArticleInputs(None, images, 0)
        number = request.num_images
        if number is None:
            number = len(images) or self.settings.write.default_num_images
        return write.ArticleInputs(topic, images, max(0, number - len(images)))


class DemoTextLabeler(DemoModel):
    """A classifier of tweets or posts: text and image -> entities or sentiment."""

    @cached_property
    def predictor(self) -> "TextLabeler":
        from pipelines.inference.text_labeler import TextLabeler

        return TextLabeler(self.source.folder, self.display_name, self.rules.build_cleaner)

    def process(self, request: DemoRequest, log: Log) -> DemoAnswer:
        from pipelines.inference.text_labeler import EntityPrediction, build_input_from_text

        has_text, images = has_visible_text(request.text), self.read_images(request)
        self.predictor.check_input(has_text, bool(images), "the request")
        log("Labeling")
        image = images[0].content if images else None
        item = build_input_from_text(request.text if has_text else "", image)
        (labels,) = self.predictor.label([item])
        html = render(
            "text_labels.html",
            item=item,
            labels=labels,
            segments=split_entities(item, labels) if isinstance(labels, EntityPrediction) else [],
            colors=number_entity_types(self.predictor.classifier.codec.labels),
            image=self.encode_image(image, "The image of the text") if image else None,
            layers=self.draw_exchanges(item),
            uses_images=self.predictor.uses_images,
            language=detect_language(item.text) or UNDETERMINED_LANGUAGE,
        )
        return DemoAnswer(html, None)

    def draw_exchanges(self, item: "LabelInput") -> list[ExchangeView]:
        """What each layer exchanged between text and image, as the report shows it."""
        import numpy as np

        from stages.report import loaders, tagging_examples
        from stages.report.plots import heatmaps
        from stages.shared.features.encoder_files import ENCODER_DIR

        traces = self.predictor.compute_exchanges(item)
        rows = {(row["layer"], row["modality"]): row for row in traces}
        crop_fraction, views = None, []
        if self.predictor.uses_patches:
            crop_fraction = loaders.read_crop_fraction(self.source.folder / ENCODER_DIR)
        for number in sorted({layer for layer, _ in rows}):
            text, cells = rows[number, "text"], rows[number, "picture"]
            weights, indices = np.array(cells["weights"], dtype=float), cells["exchanged"]
            heatmap = None
            if item.image and heatmaps.to_grid(weights) is not None:
                image = self.decode_small(item.image)
                drawn = heatmaps.draw_exchanges(image, weights, indices, crop_fraction)
                heatmap = encode_drawing(
                    drawn,
                    f"The image; cells with much CLS attention in layer {number} are orange; the "
                    f"{len(indices)} framed cells were exchanged",
                )
            subwords = tagging_examples.compute_subword_shares(text)
            views.append(ExchangeView(number, subwords, (len(indices), len(weights)), heatmap))
        return views

    def decode_small(self, content: bytes) -> Image.Image:
        image = image_store.decode_image(content)
        side = self.settings.demo.max_image_size
        image.thumbnail((side, side))
        return image


class DemoMemeLabeler(DemoModel):
    """A classifier of memes: image and overlay text -> labels, mask and inpainted image."""

    @cached_property
    def predictor(self) -> "MemeLabeler":
        from pipelines.inference.meme_labeler import MemeLabeler

        return MemeLabeler(self.source.folder, self.display_name)

    def process(self, request: DemoRequest, log: Log) -> DemoAnswer:
        from pipelines.inference.meme_labeler import MemeInput, prepare_memes
        from stages.inpaint.__main__ import InpaintConfig

        images = self.read_images(request)
        if not images and not self.rules.clean_overlay(request.text):
            raise InputError("the request has neither text nor image: give it one")
        labeler = self.predictor
        log("Finding and removing the text")
        image = images[0].content if images else None
        meme = MemeInput("the image", request.text, image)
        (prepared,) = prepare_memes([meme], load_config(InpaintConfig, "inpaint"), self.rules)
        log("Labeling")
        (labels,) = labeler.label([prepared])
        html = render(
            "meme_labels.html",
            meme=prepared,
            labels=labels,
            images=self.draw_images(image, prepared) if image else [],
            language=detect_language(prepared.original_text) or UNDETERMINED_LANGUAGE,
        )
        return DemoAnswer(html, None)

    def draw_images(self, image: bytes, meme: "PreparedMeme") -> list[PageImage]:
        """The meme; if text was removed, also the mask and the inpainted image."""
        from stages.report.plots import heatmaps

        original = self.encode_image(image, "The meme")
        if meme.removed_text is None or meme.image is None:
            return [original]
        mask = Image.open(BytesIO(meme.removed_text.mask), formats=["PNG"])
        # Large images were scaled down before their text was found.
        scaled = image_store.decode_image(image, max_pixels=mask.width * mask.height)
        quads = meme.removed_text.quads
        drawn = heatmaps.draw_mask(scaled, mask, quads, self.settings.demo.max_image_size)
        boxes = f"{len(quads)} text {'box is' if len(quads) == 1 else 'boxes are'} framed"
        return [
            original,
            encode_drawing(drawn, f"The same image; the mask is orange, {boxes}"),
            self.encode_image(meme.image, "The meme after inpainting, without its text"),
        ]


MODEL_CLASSES: dict[str, type[DemoModel]] = {
    "articles": DemoGenerator,
    "captions": DemoGenerator,
    "tweets": DemoTextLabeler,
    "posts": DemoTextLabeler,
    "memes": DemoMemeLabeler,
}


def create_model(source: ModelSource, settings: DemoSettings) -> DemoModel:
    return MODEL_CLASSES[source.kind](source, settings)


def split_entities(item: "LabelInput", labels: "EntityPrediction") -> list[tuple[str, str]]:
    """The text in parts, each with its entity type, "" outside entities."""
    parts, position = [], 0
    for entity in labels.entities:
        parts.append((item.text[position : entity.start], ""))
        parts.append((item.text[entity.start : entity.end], entity.type))
        position = entity.end
    return [part for part in [*parts, (item.text[position:], "")] if part[0]]


def number_entity_types(labels: list[str]) -> dict[str, int]:
    """A color from 1 for each entity type of BIO labels; more types than colors share them."""
    types = sorted({label.partition("-")[2] for label in labels} - {""})
    return {name: number % NUM_COLORS + 1 for number, name in enumerate(types)}


def encode_drawing(image: Image.Image, alt_text: str) -> PageImage:
    from stages.report.plots import heatmaps

    content = b64encode(heatmaps.encode_png(image)).decode()
    return PageImage(f"data:image/png;base64,{content}", *image.size, True, alt_text)


def render(template: str, **values: object) -> str:
    """Render a template of the page, which can use the macros of the report."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES, REPORT_TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: f"{value:.2f}"
    return environment.get_template(template).render(**values)
