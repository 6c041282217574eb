"""What `stages/models/<paper>/model.py` defines for a generator.

The stages of generators use a paper through these protocols only. Its preference objective and what
else is its own is imported by its module in stages/train_preference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Protocol,
    TypeGuard,
    TypeVar,
    cast,
    runtime_checkable,
)

from torch import Tensor, nn

from stages.shared.features.store import Features
from stages.shared.generation.decoding import Float32Linear
from stages.shared.modeling.registry import load_paper
from stages.shared.training.batching import Batch

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration


class GeneratorModelConfig(Protocol):
    """Hyperparameters that the weights depend on: the section `network` of a paper."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

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
        """Images per item; further ones are left out."""
        ...

    @property
    def max_paragraphs(self) -> int:
        """Chunks per item, each with a paragraph; 1 for a paper whose items are single chunks."""
        ...

    @property
    def image_drop_prob(self) -> float:
        """Probability of dropping the image of a training item."""
        ...

    @property
    def topic_drop_prob(self) -> float:
        """Probability of dropping the topic of a training item."""
        ...

    @property
    def excerpt_ratio(self) -> float:
        """Additional training excerpts per article; 0 for a paper whose items are single chunks."""
        ...


class GatedModelConfig(GeneratorModelConfig, Protocol):
    """Hyperparameters of a paper with a gate."""

    @property
    def gate_train(self) -> str:
        """Mode of the gate in training."""
        ...

    @property
    def gate_predict(self) -> str:
        """Mode of the gate in generation."""
        ...


class GeneratorInputDims(Protocol):
    """Shapes of a model's input, read from the features."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def patches(self) -> int:
        """Patches of an image."""
        ...

    @property
    def patch_width(self) -> int:
        """Width of their features."""
        ...

    @property
    def topic_width(self) -> int:
        """Width of topic tokens; 0 where topics are embedded from the decoder's tokens."""
        ...


class EncoderOutput(Protocol):
    """What a model encodes a batch of B items to."""

    hidden: Tensor  # (B, L, D) the vectors that the decoder attends to
    mask: Tensor  # (B, L) 1 at positions to attend to

    def select(self, index: Tensor) -> "EncoderOutput":
        """The items at `index`, in that order; an item may occur several times."""
        ...


@runtime_checkable
class GatedEncoderOutput(EncoderOutput, Protocol):
    """The encoder output of a paper with a gate, with the values that led to it.

    correlation and attention are None if the fusion has neither.
    """

    gate: Tensor  # (B,)
    topic_mask: Tensor  # (B, T)
    correlation: Tensor | None  # (B, 1 or P, D)
    attention: Tensor | None  # (B, P, T) from patches to topic tokens


NetworkT_co = TypeVar("NetworkT_co", bound=GeneratorModelConfig, covariant=True)
GatedNetworkT_co = TypeVar("GatedNetworkT_co", bound=GatedModelConfig, covariant=True)
ShapesT_co = TypeVar("ShapesT_co", bound=GeneratorInputDims, covariant=True)


class GeneratorModel(nn.Module, Generic[NetworkT_co, ShapesT_co]):
    """A model that generates texts around a T5."""

    def __init__(self, network: NetworkT_co, shapes: ShapesT_co, t5: "T5ForConditionalGeneration"):
        super().__init__()
        self.network, self.shapes, self.t5 = network, shapes, t5
        t5.lm_head.__class__ = Float32Linear  # in place: its weights may be tied

    def fit_normalization(self, features: Features, images: list[int], texts: list[int]) -> None:
        """Set the statistics to those of the training split.

        images, texts: its rows in the features, each listed once.
        """
        raise NotImplementedError

    def encode(self, batch: Batch) -> EncoderOutput:
        """The decoder's input for each item, as in generation."""
        raise NotImplementedError


class GatedModel(GeneratorModel[GatedNetworkT_co, ShapesT_co]):
    """The model of a paper with a gate, whose attention to images can be traced."""

    def attention_maps(self, encoder_output: EncoderOutput, ids: Tensor) -> Tensor:
        """The decoder's cross-attention to image patches at each generated token.

        ids (B, Y + 1), starting with the start token -> (B, Y, P)
        """
        raise NotImplementedError


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

    Model is built from (ModelConfig, InputDims, T5). Dataset: ChunkDataset or ArticleDataset.
    """

    MODEL_NAME: str  # in sentences
    PREFERENCE_NAME: str  # its preference phase, in sentences
    WITHOUT_GAIN: str  # why that phase kept SFT's weights, in sentences
    KINDS: tuple[str, ...]  # supported kinds of corpora
    HAS_GATE: bool  # whether it is a GatedPaper
    Model: type[GeneratorModel[Any, Any]]
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

    Its Model is a GatedModel, whose encoder output is a GatedEncoderOutput.
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
