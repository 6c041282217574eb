"""How well an encoder retrieves the texts of images, and images by their texts."""

from pathlib import Path

import numpy as np

from stages.shared.encoders import extract
from stages.shared.encoders.base import Encoder
from stages.shared.retrieval.recall import summarize_retrieval

TINY_ALTERNATIVE = "align.encoder: efficientnet-lite0 (docs/configuration.md)"


def evaluate_encoder(
    encoder: Encoder, examples: list[tuple[str, str]], folder: Path, embed: extract.EmbedConfig
) -> dict:
    """`summarize_retrieval` of (sha256 of an image, its text) pairs, at least one.

    folder: holds the image shards
    """
    names, texts = [name for name, _ in examples], [text for _, text in examples]
    images = extract.extract_image_features(encoder, folder, names, embed.image_batch_size)
    vectors = extract.extract_text_features(
        encoder, list(dict.fromkeys(texts)), embed.text_batch_size
    )
    return summarize_retrieval(stack_pooled(images), texts, stack_pooled(vectors))


def stack_pooled(rows: extract.CachedRows) -> np.ndarray:
    """The pooled features of N rows, (N, D) float32."""
    return np.stack([row["pooled"] for row in rows]).astype(np.float32)


def describe_weakness(kind: str, retrieval: dict | None) -> str | None:
    """One sentence if an encoder of this kind is unfit for a corpus of real images, else None.

    retrieval: of held-out pairs of the corpus; None if there are none in the encoder's languages
    """
    if kind == "tiny":
        figures = f" ({_format_figures(retrieval)})" if retrieval else ""
        return (
            f"the encoder tiny is made for drawn scenes and sees little in photographs{figures}: "
            f"set {TINY_ALTERNATIVE}"
        )
    if retrieval and not retrieval["beats_chance"]:
        return (
            f"the encoder {kind} finds the texts of these images no better than chance "
            f"({_format_figures(retrieval)}): image and text features cannot be compared here"
        )
    return None


def _format_figures(retrieval: dict) -> str:
    direction = retrieval["image_to_text"]
    return (
        f"R@10 {direction['recall_at_10']:.3f}, chance {direction['chance_at_10']:.3f}, "
        f"{retrieval['pairs']} held-out images"
    )
