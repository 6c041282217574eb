"""Generate texts from topics and image files with the model in a folder."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from pipelines.inference.model_bundle import ModelBundle
from stages.shared.features.store import Features
from stages.shared.generation import generator as generators
from stages.shared.generation.chunk_dataset import compute_similarity
from stages.shared.generation.generator import GenerationConfig
from stages.shared.generation.paper import GatedEncoderOutput
from stages.shared.training.loop import seed_everything


@dataclass(frozen=True)
class GenerationInput:
    """The input for one text: a cleaned topic, the content of an image file, or both."""

    topic: str | None
    image: bytes | None


@dataclass(frozen=True)
class GeneratedText:
    """A generated text.

    similarity: sigma, the cosine of image and topic; None if one of them is missing. topic_gate: g,
    the share of the topic that the gate passes, 0 to 1; None without a topic or a gate.
    """

    text: str
    similarity: float | None
    topic_gate: float | None


class ArticleGenerator:
    """The generator in a model folder, with the encoder it was trained with."""

    def __init__(self, folder: Path, name: str):
        """Load `folder`, called `name` in messages. Raises InputError if it has no generator."""
        self.bundle = ModelBundle(folder, name, "generators")
        self.bundle.require_encoder()
        with self.bundle.as_input_error():
            self.generator = generators.load_generator(folder)

    @property
    def uses_topics(self) -> bool:
        """Whether the model was trained on topics; a caption model was not."""
        return self.generator.config["topics"]

    @property
    def writes_one_text(self) -> bool:
        """Whether the model writes one text about all images of an article, or one for each."""
        return self.generator.config["one_text"]

    def generate(
        self, articles: list[list[GenerationInput]], generation: GenerationConfig
    ) -> list[list[GeneratedText]]:
        """One text for each input; equal arguments give equal texts.

        The inputs of an article are its images in order, with one topic. A model of whole articles
        generates their texts together; a model that was trained on articles with one text
        generates one for all inputs of an article. Topics are ignored if the model was trained
        without them.
        """
        rows, images = self._build_chunk_rows(articles)
        topics = sorted({row["title"] for row in rows if row["title"]})
        features = self._encode_features(images, topics)
        dataset = self.generator.build_dataset(rows, features)
        seed_everything(generation.seed)
        results: list[list[GeneratedText]] = [[] for _ in articles]
        for start in range(0, len(dataset), generation.batch_size):
            indices = list(range(start, min(start + generation.batch_size, len(dataset))))
            generated = self.generator.generate(dataset.batch(indices), generation)
            output = generated.encoder_output
            gates = [None] * len(indices)
            if isinstance(output, GatedEncoderOutput):
                gates = output.gate.tolist()
            for index, texts, gate in zip(indices, generated.texts, gates, strict=True):
                chunks = zip(
                    dataset.get_chunks(index), dataset.get_images(index), texts, strict=True
                )
                for row, chunk_images, text in chunks:
                    sigma = compute_similarity(features, chunk_images, row["title"])
                    result = GeneratedText(text, sigma, gate if row["title"] else None)
                    results[int(row["record"])].append(result)
        return results

    def _build_chunk_rows(
        self, articles: list[list[GenerationInput]]
    ) -> tuple[list[dict], dict[str, bytes]]:
        """The inputs as rows of CHUNKS, with the article's index as record; images by sha256."""
        rows, images = [], {}
        for number, article in enumerate(articles):
            for position, item in enumerate(article):
                name = item.image and sha256(item.image).hexdigest()
                title = item.topic if item.topic and self.uses_topics else ""
                row = {"record": str(number), "position": position, "title": title, "image": name}
                has_text = position == 0 or not self.writes_one_text
                rows.append(row | {"text": "", "references": [""] if has_text else []})
                if name:
                    images[name] = item.image
        return rows, images

    def _encode_features(self, images: dict[str, bytes], topics: list[str]) -> Features:
        """Features of the images and topics; without any, one unused row of zeros."""
        shapes = self.generator.model.shapes
        encoded = self.bundle.encode_images(list(images.values()))
        empty = np.zeros((1, shapes.patches, shapes.patch_width), np.float16)
        image_features = {
            "image_index": {name: row for row, name in enumerate(images)},
            "pooled": (
                np.stack([pooled for pooled, _ in encoded]) if encoded else self._empty_pooled()
            ),
            "patches": np.stack([patches for _, patches in encoded]) if encoded else empty,
        }
        if not shapes.topic_width:
            return Features(text_kind="learned", **image_features)
        width = self.generator.config["shapes"].get("pooled_width", 1)
        return Features(
            text_kind="encoder",
            **self.bundle.encode_texts(topics, shapes.topic_width, width),
            **image_features,
        )

    def _empty_pooled(self) -> np.ndarray:
        """A row of zeros with the pooled width of the model; models without one do not read it."""
        return np.zeros((1, self.generator.config["shapes"].get("pooled_width", 1)), np.float16)
