"""What `stages/models/<paper>/model.py` defines for a generator.

The stages of generators use a paper through these protocols only. Its preference objective and what
else is its own is imported by its module in stages/train_preference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard, cast, runtime_checkable

from torch import Tensor, nn

from stages.shared.features.store import Features
from stages.shared.modeling.registry import load_paper
from stages.shared.training.batching import Batch


class GeneratorModelConfig(Protocol):
    """Hyperparameters that the weights depend on: the section `network` of a paper."""

    @property
    def d_model(self) -> int:
        """Width of a tiny T5; a named T5 brings its own."""
        ...

    @property
    def max_topic_tokens(self) -> int:
        """Maximum number of topic tokens."""
        ...

    @property
    def max_images(self) -> int:
        """Images per text; 1 for a paper whose items are single chunks."""
        ...

    @property
    def excerpt_ratio(self) -> float:
        """Additional training excerpts per article; 0 for a paper whose items are single chunks."""
        ...


class EncoderOutput(Protocol):
    """What a model encodes a batch of B items to."""

    hidden: Tensor  # (B, L, D) the vectors that the decoder attends to
    mask: Tensor  # (B, L) 1 at positions to attend to

    def select(self, index: Tensor) -> "EncoderOutput":
        """The items at `index`, in that order; an item may occur several times."""
        ...


@dataclass(frozen=True)
class SftLoss:
    """The SFT loss of a batch.

    terms: named, their sum is minimized. statistics: of the batch, for `after_step`; empty outside
    training, and if the model keeps none.
    """

    terms: dict[str, Tensor]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class GeneratorPaper(Protocol):
    """The module of a paper whose model generates texts.

    Model: nn.Module, built from (ModelConfig, InputDims, T5), with `encode(batch) -> EncoderOutput`
    and `fit_normalization`. Dataset: ChunkDataset or ArticleDataset.
    """

    KINDS: tuple[str, ...]  # supported kinds of corpora
    HAS_GATE: bool  # whether it is a GatedPaper
    Model: type
    ModelConfig: type
    InputDims: type
    PreferenceConfig: type
    Dataset: type

    def infer_input_dims(self, features: Features) -> Any:
        """The InputDims that a model for these features needs."""
        ...

    def sft_loss(self, model: nn.Module, batch: Batch) -> SftLoss:
        """The SFT loss; changes no state of the model."""
        ...

    def after_step(self, model: nn.Module, statistics: Mapping[str, Tensor]) -> None:
        """Update the model's running statistics after an optimizer step.

        statistics: of the loss of that step
        """
        ...

    def diagnostics(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Values to monitor in training.  name -> (B,)"""
        ...


class GatedPaper(GeneratorPaper, Protocol):
    """A paper whose gate decides how much of the topic passes, and whose fusion can be traced.

    Its encoder output also has gate (B,), topic_mask, correlation and attention, see
    FlexMuseEncoderOutput; its ModelConfig has gate_train and gate_predict.
    """

    def gate(self, sigma: Tensor, mode: str, network: Any) -> Tensor:
        """How much of each topic passes, 0 to 1.  (B,) -> (B,)"""
        ...

    def mask_probability(self, sigma: Tensor, mode: str, network: Any) -> Tensor:
        """The probability that a topic is masked.  (B,) -> (B,)"""
        ...


def has_gate(paper: GeneratorPaper) -> TypeGuard[GatedPaper]:
    """Whether the paper has a gate and a fusion that can be traced."""
    return paper.HAS_GATE


def load_generator_paper(name: str) -> GeneratorPaper:
    """The module of a generator's paper. Raises InputError if there is none of that name."""
    return cast(GeneratorPaper, load_paper(name))
