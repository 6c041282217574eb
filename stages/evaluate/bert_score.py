"""BERTScore F1 (Zhang et al., ICLR 2020, arXiv:1904.09675) without idf weights and rescaling.

Any model by Hugging Face name or folder is run by the package bert-score. MiniLM has an
implementation of its own with the package's values, which a test compares: the package's import and
that of transformers take longer than the scores of a small corpus.
"""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from stages.shared.core.config import Field, config_class
from stages.shared.pretrained import minilm
from stages.shared.runtime.stage import (
    InputError,
    allow_downloads,
    model_load_error,
    public_model_name,
)
from stages.shared.torch_setup.devices import get_device, inference_context

if TYPE_CHECKING:  # the import takes seconds
    from bert_score import BERTScorer

MINILM_LAYERS = 6
MAX_TOKENS = 512  # MiniLM has no more positions; the rest of a text is cut
PARAM = "evaluate.bert_score"


@config_class
class BertScoreConfig:
    """The section `evaluate.bert_score`."""

    model: str = Field(description="minilm | hf:NAME, also hf:/FOLDER")
    num_layers: int | None = Field(
        ge=1, description="layer whose states are compared; null: as the package bert-score"
    )


class BertScorer(Protocol):
    """name: of model and layer; languages: ISO 639-1 codes that it supports, None: any."""

    name: str

    @property
    def languages(self) -> list[str] | None: ...

    def compute_f1(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """The F1 of each text and its closest reference, at most 1; 0 if either has no token."""
        ...


def load_scorer(config: BertScoreConfig) -> BertScorer:
    """Raises InputError if the model cannot be loaded or has no such layer."""
    if config.model == "minilm":
        if config.num_layers not in (None, MINILM_LAYERS):
            raise InputError(
                f"params.yaml: {PARAM}.num_layers is {MINILM_LAYERS} or null for minilm"
            )
        return MiniLMScorer()
    kind, _, name = config.model.partition(":")
    if kind == "hf" and name:
        return PackageScorer(name, config.num_layers)
    raise InputError(f"params.yaml: {PARAM}.model is {config.model!r}: give minilm or hf:NAME")


class PackageScorer:
    """A model by Hugging Face name or folder, run by the package bert-score."""

    languages = None

    def __init__(self, model: str, num_layers: int | None):
        import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

        # isort: split
        from bert_score import BERTScorer
        from bert_score.utils import model2layers

        layer = num_layers or model2layers.get(model)
        if layer is None:
            raise InputError(
                f"params.yaml: {PARAM}.num_layers is null, and bert-score knows no best layer of "
                f"{model}: give a number"
            )
        allow_downloads()
        try:
            # Batches of one: no score depends on the texts beside it.
            self.scorer = BERTScorer(
                model, num_layers=layer, batch_size=1, device=str(get_device())
            )
        except Exception as error:  # parsers of external files raise arbitrary exceptions
            raise model_load_error(
                f"{PARAM}.model hf:{model}, layer {layer},", "minilm or a folder", error
            ) from None
        _limit_tokens(self.scorer)
        self.name = f"{public_model_name(model)} layer {layer}, bert-score {version('bert-score')}"

    def compute_f1(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        with inference_context():
            scores = self.scorer.score(list(texts), [list(choices) for choices in references])
        assert isinstance(scores[2], Tensor)  # with the argument return_hash it is none
        return scores[2].clamp(max=1).tolist()


def _limit_tokens(scorer: "BERTScorer") -> None:
    """Cut texts at what the model has positions for: some tokenizers have no limit of their own."""
    config = scorer._model.config
    positions = getattr(config, "max_position_embeddings", MAX_TOKENS)
    if "roberta" in config.model_type or config.model_type == "camembert":
        positions -= (config.pad_token_id or 0) + 1  # its positions start after the padding's
    tokenizer = scorer._tokenizer
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)


class MiniLMScorer:
    """MiniLM, its last layer."""

    name = f"MiniLM-L6 layer {MINILM_LAYERS}"
    languages = minilm.LANGUAGES

    def compute_f1(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
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
