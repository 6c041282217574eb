"""FlexMUSE: multimodal creative writing with flexible interaction (arXiv:2508.16230).

    Z^T    topic token features, frozen encoder        (B, T, D_T)
    Z^V    picture patch features, frozen encoder      (B, P, D_V), after projection (B, P, D)
    sigma  cosine of pooled topic and pooled picture   (B,)
    g      gate: 1 lets the topic pass                 (B,)
    Z^A    topic seen from each patch                  (B, P, D)
    Z^F    fused features, what the T5 attends to      (B, P, D)

    u ~ U(0, 1);  g = 0 if sigma >= u else 1;  Z^G = g Z^T      section 3.2   gate
    Q = W^Q Z^V;  K = W^K Z^G;  V = W^V Z^G                      section 3.3   Fusion
    Z^A = softmax(Q K^T / sqrt(d_K)) V                           section 3.3   Fusion
    lambda = sigmoid(W^lambda (Z^A)^T Z^V)                       section 3.3   Fusion
    Z^F = (1 - lambda) Z^A + lambda Z^V                          section 3.3   Fusion
    L_SFT = -log p(y | Z^F)                                      section 3.4   sft_loss
    L_mscDPO = mean_j -log sigmoid(beta ((lp_k - ref_k) - (lp_j - ref_j)))     preference_loss
      chosen c_k belongs to picture k, rejected c_j are the other chunks of its group: its article

Where the paper is silent: patches and tokens are standardised by the training split's statistics;
patches carry a learned position; (Z^A)^T Z^V is divided by sqrt(P), as attention divides its
scores, or its scale would grow with the number of patches; Z^F passes a LayerNorm; W^K and W^V have
no bias, so that a masked topic gives Z^A = 0 exactly; a missing picture is one learned vector a
patch, a missing topic a closed gate. Training shows some items without one of the two, so that each
can be left out when writing. The gate `sample`s in training and passes everything when writing: an
affine sigma, sampled when writing, loses most topics. In the preference phase the gate is the one
of writing.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stages.shared.core.config import Field, config_class
from stages.shared.features.store import Features
from stages.shared.generation import chunk_dataset, decoding
from stages.shared.generation.decoding import Connection
from stages.shared.modeling.layers import ElementwiseScale, Standardizer
from stages.shared.modeling.modality_dropout import drop_modality
from stages.shared.training.losses import IGNORE_INDEX, pairwise_dpo_loss, softmax_dpo_loss

Dataset = chunk_dataset.ChunkDataset
KINDS = ("articles",)  # of corpora; captions have no chunks to prefer between
GateMode = Literal["sample", "threshold", "expected", "always_pass", "always_mask"]


@config_class
class ModelConfig:
    """Hyperparameters that the weights depend on."""

    d_model: int = Field(ge=1, description="width D of a tiny T5; a named T5 brings its own")
    max_topic_tokens: int = Field(ge=1, description="maximum number of topic tokens")
    sigma_map: Literal["raw", "affine", "minmax"] = Field(
        description="map of sigma before the gate"
    )
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
    image_drop_prob: float = Field(ge=0, le=1, description="training items without their image")
    topic_drop_prob: float = Field(ge=0, le=1, description="training items without their topic")

    def __post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        if self.image_drop_prob + self.topic_drop_prob > 1:
            raise ValueError("image_drop_prob + topic_drop_prob must not exceed 1")
        if self.fusion == "concatenation" and self.append_topic:
            raise ValueError("append_topic must be false: a concatenation already holds the topic")


@config_class
class PreferenceConfig:
    """Hyperparameters of mscDPO."""

    beta: float = Field(gt=0, description="strength of the tie to the SFT model")
    loss_type: Literal["pairwise", "softmax"] = Field(description="DPO per pair, or S-DPO")
    length_normalized: bool = Field(description="log-probability per token instead of per text")
    sft_weight: float = Field(ge=0, description="weight of the NLL per token of the chosen text")


@config_class
class InputDims:
    """What the model reads, measured on the features."""

    patches: int  # P
    patch_width: int  # D_V
    topic_width: int  # D_T; 0 where topics are learned from the decoder's tokens


def infer_input_dims(features: Features) -> InputDims:
    """What the features of a corpus ask of the model."""
    _, patches, patch_width = features.patches.shape
    return InputDims(patches=patches, patch_width=patch_width, topic_width=features.token_width)


@dataclass
class FlexMuseEncoderOutput:
    """What the decoder attends to, and how the gate and the fusion came to it.

    A concatenation has neither lambda nor attention: None.
    """

    hidden: Tensor  # (B, P, D), longer with `prompt` and by T in a concatenation
    mask: Tensor  # (B, P) 1 where there is something to attend to
    gate: Tensor  # (B,)
    topic_mask: Tensor  # (B, T)
    correlation: Tensor | None  # (B, 1, D) lambda, or (B, P, D) with `mmcot`
    attention: Tensor | None  # (B, P, T) from patches to topic tokens

    def select(self, index: Tensor) -> "FlexMuseEncoderOutput":
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        return FlexMuseEncoderOutput(
            *(value if value is None else value[index] for value in values)
        )


def map_sigma(sigma: Tensor, network: ModelConfig) -> Tensor:
    """What u is compared with: sigma itself, (sigma + 1) / 2, or sigma between two bounds."""
    if network.sigma_map == "affine":
        sigma = (sigma + 1) / 2
    elif network.sigma_map == "minmax":
        sigma = (sigma - network.sigma_min) / (network.sigma_max - network.sigma_min)
    return sigma


def mask_probability(sigma: Tensor, mode: GateMode, network: ModelConfig) -> Tensor:
    """P(g = 0) over u; in the mode `expected` the share that is taken off.  (B,) -> (B,)"""
    if mode == "always_pass":
        return torch.zeros_like(sigma)
    if mode == "always_mask":
        return torch.ones_like(sigma)
    sigma = map_sigma(sigma, network)
    if mode == "threshold":  # u = u0
        return (sigma >= network.gate_threshold).to(sigma.dtype)
    return sigma.clamp(0, 1)  # P(sigma >= u)


def gate(sigma: Tensor, mode: GateMode, network: ModelConfig, u: Tensor | None = None) -> Tensor:
    """msaGate: how much of each topic passes, g in [0, 1].  (B,) -> (B,)

    u (B,): what the mode `sample` compares sigma with; drawn where there is none.
    """
    if mode == "sample":  # masked where sigma >= u
        u = torch.rand_like(sigma) if u is None else u
        return (map_sigma(sigma, network) < u).to(sigma.dtype)
    return 1 - mask_probability(sigma, mode, network)


def scale_correlation(products: Tensor, scale: str, patches: int) -> Tensor:
    """(Z^A)^T Z^V is a sum over P patches: divided by sqrt(P) as scores are, by P, or by 1."""
    return products / {"sum": 1, "root": math.sqrt(patches), "mean": patches}[scale]


class CrossModalFusion(nn.Module):
    """Cross-modality fusion: the topic as each patch sees it, weighed against the patch."""

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

    def forward(self, picture: Tensor, topic: Tensor, topic_mask: Tensor):
        """(B, P, D), (B, T, D), (B, T) -> Z^F (B, P, D), lambda, attention (B, P, T)"""
        q, k, v = self.query(picture), self.key(topic), self.value(topic)
        scores = q @ k.transpose(1, 2) / math.sqrt(k.shape[-1])
        attention = scores.masked_fill(~topic_mask[:, None], -torch.inf).softmax(-1)  # (B, P, T)
        seen = attention @ v  # Z^A (B, P, D)
        if self.mmcot:
            balance = torch.sigmoid(self.weigh_text(seen) + self.weigh_picture(picture))
        else:
            # W^lambda (Z^A)^T Z^V, scaled, without forming the (D, D) product
            weights = self.weigh(seen).transpose(1, 2)  # (B, 1, P)
            balance = torch.sigmoid(
                scale_correlation(weights @ picture, self.scale, picture.shape[1])
            )
        return self.norm((1 - balance) * seen + balance * picture), balance, attention


class ConcatFusion(nn.Module):
    """What the fusion is measured against: the decoder finds its own way among patches and topic.

    Z^F = [Z^V; Z^G], the ablation "without fusion".
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, picture: Tensor, topic: Tensor, topic_mask: Tensor):
        """(B, P, D), (B, T, D), (B, T) -> (B, P + T, D), no lambda, no attention"""
        return self.norm(torch.cat([picture, topic], dim=1)), None, None


class Model(nn.Module):
    """FlexMUSE around a T5 (transformers T5ForConditionalGeneration)."""

    def __init__(self, network: ModelConfig, shapes: InputDims, t5: nn.Module):
        super().__init__()
        self.network, self.shapes, self.t5 = network, shapes, t5
        width = t5.config.d_model
        self.standardise_picture = Standardizer(shapes.patch_width)
        self.project_picture = nn.Linear(shapes.patch_width, width)
        self.position = nn.Parameter(0.02 * torch.randn(shapes.patches, width))
        self.no_picture = nn.Parameter(0.02 * torch.randn(width))
        if shapes.topic_width:
            self.standardise_topic = Standardizer(shapes.topic_width)
            self.project_topic = nn.Linear(shapes.topic_width, width, bias=False)
        else:
            self.learned_topic = nn.Embedding(t5.config.vocab_size, width)
            self.topic_position = nn.Parameter(0.02 * torch.randn(network.max_topic_tokens, width))
        attends = network.fusion == "attention"
        self.fusion = CrossModalFusion(width, network) if attends else ConcatFusion(width)
        decoding.drop_bypassed_encoder(t5, network.t5_input)

    def fit_normalization(self, features: Features, pictures: list[int], topics: list[int]) -> None:
        """Take the training split's statistics: of these rows of the caches, each counted once."""
        patches = torch.from_numpy(features.patches[pictures]).float()
        self.standardise_picture.fit_normalization(patches.flatten(0, 1))
        if self.shapes.topic_width:
            tokens = features.tokens[topics][features.token_mask[topics]]
            self.standardise_topic.fit_normalization(torch.from_numpy(tokens).float())

    def encode_topic(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Z^T projected, and its mask.  -> (B, T, D), (B, T)"""
        if self.shapes.topic_width:
            return self.project_topic(self.standardise_topic(batch["topic"])), batch["topic_mask"]
        ids, mask = batch["topic_ids"], batch["topic_ids_mask"]
        return self.learned_topic(ids) + self.topic_position[: ids.shape[1]], mask

    def encode(self, batch: dict, mode: GateMode | None = None) -> FlexMuseEncoderOutput:
        """Encode each item once, as when writing unless the gate's mode says otherwise.

        batch: see stages/shared/generation/chunk_dataset.py
        """
        picture = self.project_picture(self.standardise_picture(batch["patches"]))
        has_picture = batch["has_picture"][:, None, None]
        picture = torch.where(has_picture, picture, self.no_picture) + self.position
        g = gate(batch["sigma"], mode or self.network.gate_predict, self.network, batch.get("u"))
        # Without a picture nothing makes the topic redundant; without a topic nothing passes.
        g = torch.where(batch["has_picture"], g, torch.ones_like(g)) * batch["has_topic"]
        topic, mask = self.encode_topic(batch)
        fused, balance, attention = self.fusion(picture, topic * g[:, None, None], mask)
        hidden, passes = fused, (g > 0)[:, None]
        shown = [torch.ones(picture.shape[:2], dtype=torch.bool, device=picture.device)]
        if self.network.fusion == "concatenation":
            shown.append(mask & passes)
        if self.network.append_topic:
            prompt = self.t5.shared(batch["topic_ids"]) * g[:, None, None]
            hidden = torch.cat([hidden, prompt], dim=1)
            shown.append(batch["topic_ids_mask"] & passes)
        attended = torch.cat(shown, dim=1).to(hidden.dtype)
        hidden = decoding.encode_inputs(self.t5, hidden, attended, self.network.t5_input)
        return FlexMuseEncoderOutput(hidden, attended, g, mask, balance, attention)

    def log_probs(self, memory: FlexMuseEncoderOutput, labels: Tensor) -> Tensor:
        """log p(y | Z^F) in nats, summed over tokens.  (B, T) -> (B,)"""
        return decoding.compute_log_probs(self.t5, memory.hidden, memory.mask, labels).sum(-1)

    def attention_maps(self, memory: FlexMuseEncoderOutput, ids: Tensor) -> Tensor:
        """Where the decoder looks in the picture while it emits each token of a written text.

        ids (B, Y + 1), the first one that of the start -> (B, Y, P), the mean over layers and heads
        of the cross-attention to the picture's positions. They are the first P it attends to; with
        `prompt`, or a concatenation, the rest goes to the topic's tokens, and rows sum to less
        than 1. With `inputs_embeds` the T5 encoder has mixed all positions: p is then the one that
        began as patch p, but what it holds may come from any other.
        """
        looks = decoding.compute_cross_attention(self.t5, memory.hidden, memory.mask, ids)
        return looks[..., : self.shapes.patches]


def sft_loss(model: Model, batch: dict) -> dict[str, Tensor]:
    """L_NTP, the mean negative log-likelihood of a token in nats."""
    if model.training:
        batch = drop_modality(batch, model.network.image_drop_prob, model.network.topic_drop_prob)
    mode = model.network.gate_train if model.training else model.network.gate_predict
    memory = model.encode(batch, mode)
    tokens = (batch["labels"] != IGNORE_INDEX).sum()
    return {"ntp": -model.log_probs(memory, batch["labels"]).sum() / tokens}


@torch.inference_mode()
def diagnostics(model: Model, batch: dict) -> dict[str, Tensor]:
    """What to watch while training: sigma, what the gate masks, mean lambda.  name -> (B,)"""
    memory = model.encode(batch, model.network.gate_train)
    seen = {"sigma": batch["sigma"], "mask_rate": 1 - memory.gate}
    if memory.correlation is not None:
        seen["lambda"] = memory.correlation.mean((1, 2))
    return seen


def pairwise_log_probs(model: Model, batch: dict) -> Tensor:
    """log p of chunks given pictures of their group: entry (i, k, j) is log p(c_j | V_k).

    batch: an item a picture, `group` (B,) the row it belongs to, counted from 0, `place` (B,) its
    place there, `allowed` (G, N, N) the pairs.  -> (G, N, N): the diagonal and what is allowed off
    it, 0 elsewhere. A picture is encoded once, whatever the number of its chunks.
    """
    group, place, allowed = batch["group"], batch["place"], batch["allowed"]
    same = group[:, None] == group[None]  # (B, B)
    pair = allowed[group[:, None], place[:, None], place[None]]
    own = torch.eye(len(group), dtype=torch.bool, device=group.device)
    picture, chunk = torch.nonzero(same & pair | own, as_tuple=True)
    memory = model.encode(batch, model.network.gate_predict).select(picture)
    scores = model.log_probs(memory, batch["labels"][chunk])
    rows, width = int(group.max()) + 1, int(place.max()) + 1
    return scores.new_zeros(rows, width, width).index_put(
        (group[picture], place[picture], place[chunk]), scores
    )


def count_chunk_tokens(batch: dict, like: Tensor) -> Tensor:
    """Tokens of every chunk, 1 where there is none.  -> (G, 1, N)"""
    counts = like.new_ones(like.shape[0], like.shape[-1])
    tokens = (batch["labels"] != IGNORE_INDEX).sum(-1).to(like.dtype)
    return counts.index_put((batch["group"], batch["place"]), tokens)[:, None]


def preference_loss(
    model: Model, batch: dict, reference: Tensor, preference: PreferenceConfig
) -> dict[str, Tensor]:
    """mscDPO on whole groups, plus the weighted SFT term on the chosen chunks.

    reference (G, N, N): `matrix` of the frozen SFT model; batch["allowed"] (G, N, N): entry
    (i, k, j) says that c_j may be rejected in favour of c_k. In training some items are shown
    without picture or topic as in SFT, or the writer forgets to do without; the reference was not,
    so those items carry the SFT term alone.
    """
    if model.training:
        shown, network = batch, model.network
        batch = drop_modality(shown, network.image_drop_prob, network.topic_drop_prob)
        hidden = (batch["has_picture"] != shown["has_picture"]) | (
            batch["has_topic"] != shown["has_topic"]
        )
        allowed = batch["allowed"].clone()
        allowed[batch["group"][hidden], batch["place"][hidden]] = False
        batch["allowed"] = allowed
    scores = pairwise_log_probs(model, batch)
    tokens = count_chunk_tokens(batch, scores)
    margins = scores - reference  # lp - ref
    if preference.length_normalized:
        margins = margins / tokens
    gaps = margins.diagonal(dim1=1, dim2=2)[..., None] - margins  # (G, N, N)
    dpo = pairwise_dpo_loss if preference.loss_type == "pairwise" else softmax_dpo_loss
    chosen = scores.diagonal(dim1=1, dim2=2).sum()  # absent entries are 0
    written = (batch["labels"] != IGNORE_INDEX).sum()
    return {
        "mscdpo": dpo(gaps, batch["allowed"], preference.beta),
        "ntp": -preference.sft_weight * chosen / written,
    }
