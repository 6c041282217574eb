"""FlexMUSE: multimodal creative writing with flexible interaction (arXiv:2508.16230).

    Z^T    topic token features, frozen encoder        (B, T, D_T)
    Z^V    image patch features, frozen encoder        (B, P, D_V), after projection (B, P, D)
    sigma  cosine of pooled topic and pooled image     (B,)
    g      gate: 1 lets the topic pass                 (B,)
    Z^A    topic as attended to by each patch          (B, P, D)
    Z^F    fused features, the decoder's input         (B, P, D)

    u ~ U(0, 1);  g = 0 if sigma >= u else 1;  Z^G = g Z^T      section 3.2   gate
    Q = W^Q Z^V;  K = W^K Z^G;  V = W^V Z^G                      section 3.3   CrossModalFusion
    Z^A = softmax(Q K^T / sqrt(d_K)) V                           section 3.3   CrossModalFusion
    lambda = sigmoid(W^lambda (Z^A)^T Z^V)                       section 3.3   CrossModalFusion
    Z^F = (1 - lambda) Z^A + lambda Z^V                          section 3.3   CrossModalFusion
    L_SFT = -log p(y | Z^F)                                      section 3.4   sft_loss
    L_mscDPO = mean_j -log sigmoid(beta ((lp_k - ref_k) - (lp_j - ref_j)))     preference_loss
      the chosen chunk c_k belongs to image k; the rejected c_j are the other chunks of its article

Where the paper is silent:
- A text about N images has the patches of all of them, N P instead of P, with a learned vector of
  the image's place; a patch after the last image is masked. Sigma is the cosine of the topic and
  the direction of the images' mean: the gate decides once for each text (section 3.2), and the mean
  is what the images share. With max_images 1, only the first image is read.
- Patches and tokens are standardized with the statistics of the training split.
- Patches carry a learned position.
- (Z^A)^T Z^V is divided by sqrt(P), as attention divides its scores; otherwise its scale would grow
  with the number of patches.
- Z^F passes a LayerNorm.
- W^K and W^V have no bias, so that a masked topic gives Z^A = 0 exactly.
- A missing image is one learned vector at each patch; a missing topic is a closed gate. Training
  drops one of the two from some items, so that generation can do without either.
- The gate samples in training and passes everything in generation: a sampled gate with an affine
  sigma would drop most topics. The preference phase uses the gate of generation.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.shared.core.config import Field, config_class
from stages.shared.features.store import Features
from stages.shared.generation import chunk_dataset, decoding
from stages.shared.generation.decoding import Connection
from stages.shared.generation.paper import EncoderOutput, GatedModel, SftLoss
from stages.shared.modeling.layers import (
    ElementwiseScale,
    Standardizer,
    iter_blocks,
    iter_token_blocks,
)
from stages.shared.modeling.modality_dropout import drop_modality
from stages.shared.training.losses import IGNORE_INDEX, pairwise_dpo_loss, softmax_dpo_loss

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

Dataset = chunk_dataset.ChunkDataset
MODEL_NAME = "FlexMUSE"  # in sentences
PREFERENCE_NAME = "mscDPO"
WITHOUT_GAIN = "its validation loss never fell while texts stayed as good"
KINDS = ("articles",)  # of corpora; captions have no chunks to form preference pairs
HAS_GATE = True
GateMode = Literal["sample", "threshold", "expected", "always_pass", "always_mask"]


@config_class
class ModelConfig:
    """Hyperparameters that the weights depend on."""

    d_model: int = Field(ge=1, description="width D of a tiny T5; a named T5 brings its own")
    max_topic_tokens: int = Field(ge=1, description="maximum number of topic tokens")
    max_images: int = Field(ge=1, description="images per text; further ones are left out")
    sigma_map: Literal["raw", "affine", "minmax"] = Field(description="see map_sigma")
    sigma_min: float = Field(description="minmax: similarity that is never masked")
    sigma_max: float = Field(description="minmax: similarity that is always masked")
    gate_threshold: float = Field(description="u0 of the gate mode `threshold`")
    gate_train: GateMode = Field(description="gate mode in training")
    gate_predict: GateMode = Field(description="gate mode in generation")
    fusion: Literal["attention", "concatenation"] = Field(
        description="cross-modal fusion, or its ablation"
    )
    projection: Literal["linear", "elementwise"] = Field(description="form of W^Q, W^K and W^V")
    correlation: Literal["channel", "mmcot"] = Field(description="form of lambda")
    correlation_scale: Literal["mean", "root", "sum"] = Field(
        description="channel: divisor of the sum over P patches"
    )
    t5_input: Connection = Field(description="what stands in for or enters the T5 encoder")
    append_topic: bool = Field(description="append topic token embeddings to the decoder's input")
    image_drop_prob: float = Field(ge=0, le=1, description="probability of dropping the image")
    topic_drop_prob: float = Field(ge=0, le=1, description="probability of dropping the topic")

    def __post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        if self.image_drop_prob + self.topic_drop_prob > 1:
            raise ValueError("image_drop_prob + topic_drop_prob must not exceed 1")
        if self.fusion == "concatenation" and self.append_topic:
            raise ValueError("append_topic must be false: a concatenation already holds the topic")

    @property
    def max_paragraphs(self) -> int:
        """An item is one chunk."""
        return 1

    @property
    def excerpt_ratio(self) -> float:
        """A chunk has no excerpts."""
        return 0.0


@config_class
class PreferenceConfig:
    """Hyperparameters of mscDPO."""

    beta: float = Field(ge=0, description="strength of the tie to the SFT model; 0: none")
    loss_type: Literal["pairwise", "softmax"] = Field(description="DPO per pair, or S-DPO")
    length_normalized: bool = Field(description="log-probability per token instead of per text")
    sft_weight: float = Field(ge=0, description="weight of the NLL per token of the chosen text")
    max_sequences: int | None = Field(
        ge=1, description="texts decoded at once, which bounds memory; null: all of a batch"
    )


@config_class
class InputDims:
    """Shapes of the model's input, read from the features."""

    patches: int  # P
    patch_width: int  # D_V
    topic_width: int  # D_T; 0 where topics are embedded from the decoder's tokens


def infer_input_dims(features: Features) -> InputDims:
    """The input shapes that a model for these features needs."""
    _, patches, patch_width = features.patches.shape
    return InputDims(patches=patches, patch_width=patch_width, topic_width=features.token_width)


@dataclass
class FlexMuseEncoderOutput:
    """The decoder's input, with the values of gate and fusion that led to it.

    correlation and attention are None for a concatenation, which has neither.
    """

    hidden: Tensor  # (B, N P, D); T longer with `append_topic` or a concatenation
    mask: Tensor  # (B, N P) 1 at positions to attend to
    gate: Tensor  # (B,)
    topic_mask: Tensor  # (B, T)
    correlation: Tensor | None  # (B, 1, D) lambda, or (B, N P, D) with `mmcot`
    attention: Tensor | None  # (B, N P, T) from patches to topic tokens

    def select(self, index: Tensor) -> "FlexMuseEncoderOutput":
        """The items at `index`, in that order; an item may occur several times."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: value[index] for name, value in values.items()})


def map_sigma(sigma: Tensor, network: ModelConfig) -> Tensor:
    """Sigma as the gate compares it with u: raw, (sigma + 1) / 2, or rescaled by min and max."""
    if network.sigma_map == "affine":
        sigma = (sigma + 1) / 2
    elif network.sigma_map == "minmax":
        sigma = (sigma - network.sigma_min) / (network.sigma_max - network.sigma_min)
    return sigma


def mask_probability(sigma: Tensor, mode: GateMode, network: ModelConfig) -> Tensor:
    """P(g = 0) over u; in the mode `expected`, the share of the topic removed.  (B,) -> (B,)"""
    if mode == "always_pass":
        return torch.zeros_like(sigma)
    if mode == "always_mask":
        return torch.ones_like(sigma)
    sigma = map_sigma(sigma, network)
    if mode == "threshold":  # u = u0
        return (sigma >= network.gate_threshold).to(sigma.dtype)
    return sigma.clamp(0, 1)  # P(sigma >= u)


def gate(sigma: Tensor, mode: GateMode, network: ModelConfig, u: Tensor | None = None) -> Tensor:
    """msaGate (section 3.2): how much of each topic passes, g in [0, 1].  (B,) -> (B,)

    u (B,): random numbers for the mode `sample`; drawn here if None.
    """
    if mode == "sample":  # masked where sigma >= u
        u = torch.rand_like(sigma) if u is None else u
        return (map_sigma(sigma, network) < u).to(sigma.dtype)
    return 1 - mask_probability(sigma, mode, network)


def scale_correlation(products: Tensor, scale: str, patches: int | Tensor) -> Tensor:
    """(Z^A)^T Z^V is a sum over P patches: divided by sqrt(P) like attention scores, by P, or 1."""
    return products / {"sum": 1, "root": patches**0.5, "mean": patches}[scale]


class CrossModalFusion(nn.Module):
    """Cross-modality fusion (section 3.3): patches attend to the topic; lambda mixes both."""

    def __init__(self, width: int, network: ModelConfig):
        super().__init__()
        self.query, self.key, self.value = (
            ElementwiseScale(width)
            if network.projection == "elementwise"
            else nn.Linear(width, width, bias=False)
            for _ in range(3)
        )
        if network.correlation == "channel":
            self.weigh = nn.Linear(width, 1, bias=False)  # W^lambda
        else:
            self.weigh_text = nn.Linear(width, width)
            self.weigh_picture = nn.Linear(width, width, bias=False)
        self.mmcot = network.correlation == "mmcot"
        self.scale = network.correlation_scale
        self.norm = nn.LayerNorm(width)

    def forward(
        self, image: Tensor, patch_mask: Tensor, topic: Tensor, topic_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Z^F (B, P, D), lambda, attention (B, P, T).

        image (B, P, D), its patch_mask (B, P), topic (B, T, D), its topic_mask (B, T)
        """
        q, k, v = self.query(image), self.key(topic), self.value(topic)
        scores = q @ k.transpose(1, 2) / math.sqrt(k.shape[-1])
        attention = scores.masked_fill(~topic_mask[:, None], -torch.inf).softmax(-1)  # (B, P, T)
        z_a = attention @ v  # (B, P, D)
        if self.mmcot:
            lambda_ = torch.sigmoid(self.weigh_text(z_a) + self.weigh_picture(image))
        else:
            # W^lambda (Z^A)^T Z^V, scaled, without forming the (D, D) product
            weights = self.weigh(z_a).transpose(1, 2) * patch_mask[:, None]  # (B, 1, P)
            count = patch_mask.sum(1)[:, None, None].to(weights.dtype)
            lambda_ = torch.sigmoid(scale_correlation(weights @ image, self.scale, count))
        return self.norm((1 - lambda_) * z_a + lambda_ * image), lambda_, attention


class ConcatFusion(nn.Module):
    """The ablation "without fusion": Z^F = [Z^V; Z^G], and the decoder attends to both."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(
        self, image: Tensor, patch_mask: Tensor, topic: Tensor, topic_mask: Tensor
    ) -> tuple[Tensor, None, None]:
        """(B, P, D), (B, P), (B, T, D), (B, T) -> (B, P + T, D), no lambda, no attention"""
        return self.norm(torch.cat([image, topic], dim=1)), None, None


class Model(GatedModel[ModelConfig, InputDims]):
    """FlexMUSE around a T5 (transformers T5ForConditionalGeneration)."""

    def __init__(self, network: ModelConfig, shapes: InputDims, t5: "T5ForConditionalGeneration"):
        super().__init__(network, shapes, t5)
        width = t5.config.d_model
        self.standardise_picture = Standardizer(shapes.patch_width)
        self.project_picture = nn.Linear(shapes.patch_width, width)
        self.position = nn.Parameter(0.02 * torch.randn(shapes.patches, width))
        self.no_picture = nn.Parameter(0.02 * torch.randn(width))
        if network.max_images > 1:
            self.image_position = nn.Parameter(0.02 * torch.randn(network.max_images, width))
        if shapes.topic_width:
            self.standardise_topic = Standardizer(shapes.topic_width)
            self.project_topic = nn.Linear(shapes.topic_width, width, bias=False)
        else:
            self.learned_topic = nn.Embedding(t5.config.vocab_size, width)
            self.topic_position = nn.Parameter(0.02 * torch.randn(network.max_topic_tokens, width))
        has_attention = network.fusion == "attention"
        self.fusion = CrossModalFusion(width, network) if has_attention else ConcatFusion(width)
        decoding.drop_bypassed_encoder(t5, network.t5_input)

    def fit_normalization(self, features: Features, images: list[int], texts: list[int]) -> None:
        """Set the statistics to those of the training split.

        images, texts: its rows in the features, each listed once.
        """
        self.standardise_picture.fit_normalization(iter_blocks(features.patches, images))
        if self.shapes.topic_width:
            self.standardise_topic.fit_normalization(iter_token_blocks(features, texts))

    def encode_topic(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Z^T projected, and its mask.  -> (B, T, D), (B, T)"""
        if self.shapes.topic_width:
            return self.project_topic(self.standardise_topic(batch["topic"])), batch["topic_mask"]
        ids, mask = batch["topic_ids"], batch["topic_ids_mask"]
        return self.learned_topic(ids) + self.topic_position[: ids.shape[1]], mask

    def encode_places(self, image: Tensor) -> Tensor:
        """The learned vectors of each patch's place and, of N images, of its image's place.

        image (B, N P, D) -> (N P, D)
        """
        num_patches = self.shapes.patches
        place = self.position.repeat(image.shape[1] // num_patches, 1)
        if self.network.max_images == 1:
            return place
        return place + self.image_position.repeat_interleave(num_patches, 0)[: len(place)]

    def encode(self, batch: dict, mode: GateMode | None = None) -> FlexMuseEncoderOutput:
        """The decoder's input for each item.

        batch: see stages/shared/generation/chunk_dataset.py
        mode: of the gate; the one of generation if None
        """
        image = self.project_picture(self.standardise_picture(batch["patches"]))
        has_image = batch["has_picture"][:, None, None]
        image = torch.where(has_image, image, self.no_picture) + self.encode_places(image)
        g = gate(batch["sigma"], mode or self.network.gate_predict, self.network, batch.get("u"))
        # Without an image the topic is never redundant; without a topic nothing passes.
        g = torch.where(batch["has_picture"], g, torch.ones_like(g)) * batch["has_topic"]
        topic, topic_mask = self.encode_topic(batch)
        hidden, lambda_, attention = self.fusion(
            image, batch["patch_mask"], topic * g[:, None, None], topic_mask
        )
        passes = (g > 0)[:, None]
        masks = [batch["patch_mask"]]
        if self.network.fusion == "concatenation":
            masks.append(topic_mask & passes)
        if self.network.append_topic:
            prompt = self.t5.shared(batch["topic_ids"]) * g[:, None, None]
            hidden = torch.cat([hidden, prompt], dim=1)
            masks.append(batch["topic_ids_mask"] & passes)
        mask = torch.cat(masks, dim=1).to(hidden.dtype)
        hidden = decoding.encode_inputs(self.t5, hidden, mask, self.network.t5_input)
        return FlexMuseEncoderOutput(hidden, mask, g, topic_mask, lambda_, attention)

    def log_probs(self, encoder_output: EncoderOutput, labels: Tensor) -> Tensor:
        """log p(y | Z^F) in nats, summed over tokens.  (B, Y) -> (B,)"""
        log_probs = decoding.compute_log_probs(
            self.t5, encoder_output.hidden, encoder_output.mask, labels
        )
        return log_probs.sum(-1)

    def attention_maps(self, encoder_output: EncoderOutput, ids: Tensor) -> Tensor:
        """The decoder's cross-attention to the patches of the first image at each generated token.

        ids (B, Y + 1), starting with the start token -> (B, Y, P), the mean over layers and heads.
        These are the first P input positions. With further images, `append_topic` or a
        concatenation there are others, and rows sum to less than 1. With `inputs_embeds` the T5
        encoder mixes positions, so that position p starts as patch p but may hold any other.
        """
        attention = decoding.compute_cross_attention(
            self.t5, encoder_output.hidden, encoder_output.mask, ids
        )
        return attention[..., : self.shapes.patches]


def sft_loss(model: Model, batch: dict) -> SftLoss:
    """L_SFT (section 3.4): the mean negative log-likelihood of a token in nats."""
    if model.training:
        batch = drop_modality(batch, model.network.image_drop_prob, model.network.topic_drop_prob)
    mode = model.network.gate_train if model.training else model.network.gate_predict
    encoder_output = model.encode(batch, mode)
    num_tokens = (batch["labels"] != IGNORE_INDEX).sum()
    return SftLoss({"ntp": -model.log_probs(encoder_output, batch["labels"]).sum() / num_tokens})


def after_step(model: Model, statistics: Mapping[str, Tensor]) -> None:
    """Does nothing: the model has no running statistics."""


@torch.inference_mode()
def diagnostics(model: Model, batch: dict) -> dict[str, Tensor]:
    """Values to monitor in training: sigma, masking rate, mean lambda.  name -> (B,)"""
    encoder_output = model.encode(batch, model.network.gate_train)
    values = {"sigma": batch["sigma"], "mask_rate": 1 - encoder_output.gate}
    if encoder_output.correlation is not None:
        values["lambda"] = encoder_output.correlation.mean((1, 2))
    return values


def pairwise_log_probs(model: Model, batch: dict, max_sequences: int | None) -> Tensor:
    """log p of chunks given images of their group: entry (i, k, j) is log p(c_j | V_k).

    batch: one item per image, with `group` (B,) its group, counted from 0, `place` (B,) its index
    in the group, and `allowed` (G, N, N) the pairs to score.
    max_sequences: pairs decoded at once. Their activations and logits are computed again in the
    backward pass, so that those of one part are in memory at a time. None: all, computed once.
    -> (G, N, N): the diagonal and the allowed pairs, 0 elsewhere. Each image is encoded once.
    """
    group, place, allowed = batch["group"], batch["place"], batch["allowed"]
    same_group = group[:, None] == group[None]  # (B, B)
    is_allowed = allowed[group[:, None], place[:, None], place[None]]
    is_own = torch.eye(len(group), dtype=torch.bool, device=group.device)
    image, chunk = torch.nonzero(same_group & is_allowed | is_own, as_tuple=True)
    encoded = model.encode(batch, model.network.gate_predict)

    def score(image: Tensor, chunk: Tensor) -> Tensor:
        return model.log_probs(encoded.select(image), batch["labels"][chunk])

    if max_sequences is None:
        log_probs = score(image, chunk)
    else:
        parts = zip(image.split(max_sequences), chunk.split(max_sequences), strict=True)
        log_probs = torch.cat([checkpoint(score, *part, use_reentrant=False) for part in parts])
    num_groups, size = int(group.max()) + 1, int(place.max()) + 1
    return log_probs.new_zeros(num_groups, size, size).index_put(
        (group[image], place[image], place[chunk]), log_probs
    )


def count_chunk_tokens(batch: dict, log_probs: Tensor) -> Tensor:
    """Tokens of each chunk, 1 where there is none.  log_probs (G, N, N) -> (G, 1, N)"""
    counts = log_probs.new_ones(log_probs.shape[0], log_probs.shape[-1])
    num_tokens = (batch["labels"] != IGNORE_INDEX).sum(-1).to(log_probs.dtype)
    return counts.index_put((batch["group"], batch["place"]), num_tokens)[:, None]


def preference_loss(
    model: Model, batch: dict, reference: Tensor, preference: PreferenceConfig
) -> dict[str, Tensor]:
    """mscDPO on whole groups, plus the weighted SFT term on the chosen chunks.

    reference (G, N, N): `pairwise_log_probs` of the frozen SFT model. batch["allowed"] (G, N, N):
    entry (i, k, j) says that c_j may be rejected in favour of c_k.

    Training drops modalities as SFT does, or the model would forget how to do without them. The
    reference saw both modalities, so the affected items contribute the SFT term only.
    """
    if model.training:
        full, network = batch, model.network
        batch = drop_modality(full, network.image_drop_prob, network.topic_drop_prob)
        dropped = (batch["has_picture"] != full["has_picture"]) | (
            batch["has_topic"] != full["has_topic"]
        )
        allowed = batch["allowed"].clone()
        allowed[batch["group"][dropped], batch["place"][dropped]] = False
        batch["allowed"] = allowed
    log_probs = pairwise_log_probs(model, batch, preference.max_sequences)
    num_tokens = count_chunk_tokens(batch, log_probs)
    margins = log_probs - reference  # lp - ref
    if preference.length_normalized:
        margins = margins / num_tokens
    gaps = margins.diagonal(dim1=1, dim2=2)[..., None] - margins  # (G, N, N)
    dpo_loss = pairwise_dpo_loss if preference.loss_type == "pairwise" else softmax_dpo_loss
    chosen = log_probs.diagonal(dim1=1, dim2=2).sum()  # absent entries are 0
    num_label_tokens = (batch["labels"] != IGNORE_INDEX).sum()
    return {
        "mscdpo": dpo_loss(gaps, batch["allowed"], preference.beta),
        "ntp": -preference.sft_weight * chosen / num_label_tokens,
    }
