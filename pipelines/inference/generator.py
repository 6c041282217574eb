"""A trained folder as an author: raw pictures and topics in, texts out, and nothing else needed."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from pipelines.inference.model_bundle import ModelBundle
from stages.predict.attention_traces import has_gate
from stages.shared.features.store import Features
from stages.shared.generation import generator as generators
from stages.shared.generation.chunk_dataset import compute_similarity
from stages.shared.generation.generator import GenerationConfig
from stages.shared.training.loop import seed_everything


@dataclass(frozen=True)
class GenerationInput:
    """What a text is written about: a clean topic, the bytes of a picture file, or both."""

    topic: str | None
    image: bytes | None


@dataclass(frozen=True)
class GeneratedText:
    """What was written. similarity: sigma, of picture and topic; passed: g, how much of the topic
    the gate let through (0 to 1). None where there is nothing to compare or to let through, and of
    a model without a gate."""

    text: str
    similarity: float | None
    topic_gate: float | None


class ArticleGenerator:
    """The writer of a trained folder and its encoder."""

    def __init__(self, folder: Path, name: str):
        """`name`: the folder as the user knows it. Raises WrongInput if it holds no writer."""
        self.bundle = ModelBundle(folder, name, "generators")
        self.bundle.require_encoder()
        with self.bundle.as_input_error():
            self.generator = generators.load_generator(folder)

    @property
    def uses_topics(self) -> bool:
        """Whether it was trained on any; a writer of captions never saw one."""
        return self.generator.config["topics"]

    def generate(
        self, articles: list[list[GenerationInput]], generation: GenerationConfig
    ) -> list[list[GeneratedText]]:
        """A text for each item, the same again for the same articles, numbers and seed.

        The items of an article are its pictures in order, with one topic. A model that writes whole
        articles sees them together. A topic is left out where the model was trained on none.
        """
        rows, pictures = self._build_chunk_rows(articles)
        topics = sorted({row["title"] for row in rows if row["title"]})
        cached = self._encode_features(pictures, topics)
        items = self.generator.build_dataset(rows, cached)
        seed_everything(generation.seed)
        written: list[list[GeneratedText]] = [[] for _ in articles]
        for start in range(0, len(items), generation.batch_size):
            indices = list(range(start, min(start + generation.batch_size, len(items))))
            found = self.generator.generate(items.batch(indices), generation)
            gates = (
                found.encoder_output.gate.tolist()
                if has_gate(self.generator)
                else [None] * len(indices)
            )
            for index, texts, passed in zip(indices, found.texts, gates, strict=True):
                for row, text in zip(items.chunks_of(index), texts, strict=True):
                    sigma = compute_similarity(cached, row["image"], row["title"])
                    told = GeneratedText(text, sigma, passed if row["title"] else None)
                    written[int(row["record"])].append(told)
        return written

    def _build_chunk_rows(
        self, articles: list[list[GenerationInput]]
    ) -> tuple[list[dict], dict[str, bytes]]:
        """The items as rows of CHUNKS whose record is the article's number; pictures by sha256."""
        rows, pictures = [], {}
        for number, article in enumerate(articles):
            for position, item in enumerate(article):
                name = item.image and sha256(item.image).hexdigest()
                title = item.topic if item.topic and self.uses_topics else ""
                row = {"record": str(number), "position": position, "title": title, "image": name}
                rows.append(row | {"text": ""})
                if name:
                    pictures[name] = item.image
        return rows, pictures

    def _encode_features(self, pictures: dict[str, bytes], topics: list[str]) -> Features:
        """One row a picture and a topic; a row of zeros that nothing names where there is none."""
        shapes = self.generator.model.shapes
        read = self.bundle.encode_images(list(pictures.values()))
        empty = np.zeros((1, shapes.patches, shapes.patch_width), np.float16)
        found = {
            "image_index": {name: row for row, name in enumerate(pictures)},
            "pooled": np.stack([pooled for pooled, _ in read]) if read else self._empty_pooled(),
            "patches": np.stack([patches for _, patches in read]) if read else empty,
        }
        if not shapes.topic_width:
            names = ("text_index", "text_pooled", "tokens", "token_mask", "pieces")
            return Features(text_kind="learned", **dict.fromkeys(names), **found)
        width = self.generator.config["shapes"].get("pooled_width", 1)
        return Features(
            text_kind="encoder",
            **self.bundle.encode_texts(topics, shapes.topic_width, width),
            **found,
        )

    def _empty_pooled(self) -> np.ndarray:
        """As wide as the model reads it; not every model does."""
        return np.zeros((1, self.generator.config["shapes"].get("pooled_width", 1)), np.float16)
