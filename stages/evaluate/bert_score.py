"""BERTScore (Zhang et al., ICLR 2020, arXiv:1904.09675) on the last layer of MiniLM.

F1 without weights by inverse document frequency and without rescaling. The values are those of the
package bert-score, which a test compares; its import and that of transformers take longer than the
scores of a small corpus.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from stages.shared.pretrained import minilm
from stages.shared.torch_setup.devices import get_device, inference_context

NUM_LAYERS = 6
MAX_TOKENS = 512  # MiniLM has no more positions; the rest of a text is cut


def compute_f1(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The F1 of each text and its closest reference, at most 1; 0 if either has no token."""
    return [
        max(_match(_embed(text.strip()), _embed(choice.strip())) for choice in choices)
        for text, choices in zip(texts, references, strict=True)
    ]


@cache
def _load() -> tuple[minilm.MiniLM, Tokenizer]:
    return minilm.load_minilm(), minilm.load_tokenizer(MAX_TOKENS)


@cache  # references recur: in several texts, and in both phases of a run
def _embed(text: str) -> tuple[Tensor, Tensor]:
    """A text as unit vectors of its tokens (L, 384), and which of them are words (L,)."""
    model, tokenizer = _load()
    encoding = tokenizer.encode(text)
    with inference_context():
        states = model(torch.tensor([encoding.ids], device=get_device()))[0]
    is_word = torch.tensor(encoding.special_tokens_mask) == 0
    return F.normalize(states.float().cpu(), dim=-1), is_word


def _match(candidate: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> float:
    """F1 of greedy matching: each word with the most similar token of the other text."""
    (states, is_word), (reference_states, reference_is_word) = candidate, reference
    if not is_word.any() or not reference_is_word.any():
        return 0.0
    cosines = states @ reference_states.T
    precision = cosines.amax(1)[is_word].mean().item()
    recall = cosines.amax(0)[reference_is_word].mean().item()
    return 2 * precision * recall / (precision + recall)
