"""TIPPo: text-image-prototype guided generation, TIP and Polish (arXiv:2511.21698).

An item is an article: a title, N pictures, one text about all of them, whose paragraphs sentinel
tokens part (stages/shared/generation/article_dataset.py, article_t5.py); a captioned picture is an article of one.
B items, T tokens of a topic, L of a picture (1, or P patches with `picture`):

    S^T   signal of the topic                          (B, T, D)
    S^I   signal of each picture                       (B, N, L, D)
    S^P   prototype, what the pictures share           (B, L, D)
    S^A   each picture as topic and prototype see it   (B, N, 1 or L, D)
    S^D   how each picture differs from the prototype  (B, N, L, D)
    S^F   fused signal, what the T5 attends to         (B, positions, D)
    m, M  present step, all steps

    S^T = pi_T(phi(T));  S_i^I = pi_V(phi(I_i)), phi frozen      section 2    Adapter
    S^P = mean_i S_i^I                                           section 2    Model.prototype
    S_i^A = [l1 softmax(Q^P K^P / sqrt(d_k)) + l2 softmax(Q^T K^T / sqrt(d_k))] V_i^I
                                                                 eq. 1, 2     DualAlignment
    l1 = m / M;  l2 = 1 - l1                                     section 2.1  schedule
    S_i^D = (S_i^I - S^P) + pi_D(S_i^I - S^P)                    eq. 3, 4     Difference
    S_i^F = [S^T; S_i^A; S_i^D];  y = LM(S^F)                    section 2    Model.fuse
    L_C = -mean_i log(exp cos(S_i^I, S^P) / sum_j exp cos(S_i^I, S_j^I))      eq. 5  contrast
    L_SFT = L_NTP + L_C                                          section 2    sft_loss
    R_literal = 1 - LD(Y, y);  R_semantic = cos(emb_Y, emb_y)    eq. 7, 8     in rewards.py
    G_m = gamma^m R_literal + gamma^(M - m) R_semantic           section 2.2  total_return
    A = (G_m - mu_m) / (delta_m + 1e-8)                          eq. 6        advantage
    mean min(r A, clip(r) A) over tokens, r = p / p_old          section 2.2  policy_loss

Where the paper is silent or contradicts itself (in brackets the option, its default told first):
(.) is a matrix product [projection]. The softmax of eq. 2 has no index: it runs over the article's
pictures, times N, or signals would shrink with N; or over each picture's patches, which are then
one vector [axis]. An article of one picture always takes its patches. It has no prototype of its
own: in SFT it takes the mean of the batch (section 2.2), elsewhere the running mean of those, so
that what is written does not depend on what is written beside it. l1 ends at 1, where the topic's
branch is idle, though the prose has the prototype come first [schedule]; the last l1 is kept with
the weights, and writing stays off both ends [lambda_predict]. S^F is one sequence with S^T once,
[S^T; A_1..A_N; D_1..D_N]; or S^T again before each picture; or one vector a picture [fusion].
Learned vectors tell kinds, pictures and patches apart; no LayerNorm comes after, which would hide
how much DAA and pi_D, zero at first, let pass. Eq. 5 has S_i itself in its denominator and not the
positive [denominator]; negatives are the article's and the batch's pictures [negatives]. A missing
picture, and a missing topic, is one learned vector; training shows some items so. Excerpts
of articles are learned from too: longer ones would not teach how to write about one picture.

Of PolishPPO: gamma^m and gamma^(M - m) vanish for most of its 20,000 steps; exponents are rescaled
to K m / M and K (1 - m / M) [discount]. delta, called a variance, is a standard deviation
[deviation]. It and mu, of the last returns there, are of the articles' own texts and of how far
these lie from them, as in REINFORCE++ (arXiv:2501.03262): articles differ more than texts about one
do [baseline]. A normalised advantage needs no critic, and all tokens of a text share it.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, minimum, nn

from stages.shared.core.config import Field, config_class
from stages.shared.features.store import Features
from stages.shared.generation import decoding
from stages.shared.generation.article_dataset import ArticleDataset
from stages.shared.modeling.layers import (
    ElementwiseScale,
    Standardizer,
    pack_sequences,
    scatter_rows,
)
from stages.shared.modeling.modality_dropout import drop_modality
from stages.shared.training.losses import IGNORE_INDEX

Dataset = ArticleDataset
# First size of kind and position, that of signals; smaller, pictures are told apart late.
EMBEDDING_INIT_STD = 1.0
EPSILON = 1e-8  # eq. 6
KINDS = ("articles", "captions")  # of corpora


@config_class
class ModelConfig:
    """Hyperparameters that the weights depend on."""

    d_model: int = Field(ge=1, description="width D of a tiny T5; a named T5 brings its own")
    max_topic_tokens: int = Field(ge=1, description="maximum number of topic tokens")
    max_images: int = Field(ge=1, description="images per text; longer articles are split")
    excerpt_ratio: float = Field(ge=0, le=1, description="additional training excerpts per article")
    image_features: Literal["pooled", "patches"] = Field(description="tokens of S^I")
    topic_features: Literal["tokens", "pooled"] = Field(description="tokens of S^T")
    projection: Literal["linear", "elementwise"] = Field(
        description="form of the attention weights"
    )
    softmax_axis: Literal["images", "patches"] = Field(description="what eq. 2 normalizes over")
    use_prototype: bool = Field(description="the prototype branch; required by use_do")
    use_daa: bool = Field(description="Dual Alignment Attention, eq. 1 and 2")
    use_do: bool = Field(description="Difference Operator, eq. 3 and 4")
    use_contrastive: bool = Field(description="L_C in SFT, eq. 5")
    lambda_schedule: Literal["formula", "reverse"] = Field(description="l1 = m / M, or 1 - m / M")
    lambda_predict: Literal["clip", "last", "half"] = Field(description="l1 in generation")
    lambda_margin: float = Field(ge=0, le=0.5, description="clip: distance of l1 from 0 and 1")
    fusion: Literal["sequence", "literal", "feature"] = Field(description="layout of S^F")
    t5_input: decoding.Connection = Field(description="what stands in for or enters the T5 encoder")
    contrastive_denominator: Literal["infonce", "literal"] = Field(description="terms of eq. 5")
    contrastive_negatives: Literal["both", "article", "batch"] = Field(
        description="source of the negative images"
    )
    contrastive_temperature: float = Field(gt=0, description="temperature of L_C")
    contrastive_weight: float = Field(ge=0, description="weight of L_C")
    prototype_momentum: float = Field(ge=0, le=1, description="of the running mean of images")
    image_drop_prob: float = Field(ge=0, le=1, description="training items without their images")
    topic_drop_prob: float = Field(ge=0, le=1, description="training items without their topic")

    def __post_init__(self) -> None:
        if self.use_do and not self.use_prototype:
            raise ValueError("use_do needs use_prototype: differences are taken from it")
        if self.use_contrastive and not self.use_prototype:
            raise ValueError("use_contrastive needs use_prototype: it is the positive")
        if self.image_drop_prob + self.topic_drop_prob > 1:
            raise ValueError("image_drop_prob + topic_drop_prob must not exceed 1")


@config_class
class PreferenceConfig:
    """Hyperparameters of PolishPPO."""

    gamma: float = Field(gt=0, le=1, description="base of the reward discounts")
    discount: Literal["progress", "literal"] = Field(description="exponents K m / M, or m")
    discount_steps: float = Field(gt=0, description="K of `progress`")
    literal_reward: Literal["normalised", "raw"] = Field(description="R_literal in [0, 1], or raw")
    semantic_reward: str = Field(description="embedder: none | minilm | openai:MODEL")
    baseline: Literal["article", "window"] = Field(
        description="returns that a text is compared with"
    )
    baseline_window: int = Field(ge=1, description="window: number of past iterations")
    advantage_scale: Literal["std", "variance"] = Field(description="delta of eq. 6")
    clip_range: float = Field(gt=0, description="clipping range of the probability ratio")
    num_ppo_epochs: int = Field(ge=1, description="updates per iteration")
    kl_coef: float = Field(ge=0, description="weight of the KL divergence from the SFT model")
    num_generations: int = Field(ge=1, description="texts sampled per item")
    temperature: float = Field(gt=0, description="sampling temperature")
    max_kl: float = Field(gt=0, description="KL in nats per token that ends the phase")
    min_entropy_ratio: float = Field(
        ge=0, description="fraction of the first entropy; less ends it"
    )
    max_length_change: float = Field(ge=0, description="relative change in length that ends it")
    min_gain_standard_errors: float = Field(ge=0, description="reward gain that counts as better")

    def __post_init__(self) -> None:
        if self.baseline == "article" and self.num_generations < 2:
            raise ValueError("baseline article needs num_generations of 2 or more")


@config_class
class InputDims:
    """What the model reads, measured on the features."""

    patches: int  # P
    patch_width: int
    pooled_width: int  # of pictures and topics
    topic_width: int  # of topic tokens; 0 where topics are learned from the decoder's tokens


def infer_input_dims(features: Features) -> InputDims:
    _, patches, width = features.patches.shape
    return InputDims(
        patches=patches,
        patch_width=width,
        pooled_width=features.pooled.shape[1],
        topic_width=features.token_width,
    )


@dataclass
class TippoEncoderOutput:
    """What the decoder attends to, and how it came about. None: without DAA."""

    hidden: Tensor  # (B, positions, D) S^F
    mask: Tensor  # (B, positions) 1 where there is something to attend to
    balance: Tensor | None  # (B,) l1
    images: Tensor | None  # (B, branches, N) weights of an article's pictures, 0 where of patches
    patches: Tensor | None  # (B, N, branches, P) weights of a picture's patches, 0 elsewhere

    def select(self, index: Tensor) -> "TippoEncoderOutput":
        values = (getattr(self, name) for name in self.__dataclass_fields__)
        return TippoEncoderOutput(*(value if value is None else value[index] for value in values))


@dataclass
class Signals:
    topic: Tensor  # (B, T, D) S^T
    topic_mask: Tensor  # (B, T)
    query: Tensor  # (B, D) its mean
    images: Tensor  # (B, N, L, D) S^I; the learned vector where a picture is missing
    image_mask: Tensor  # (B, N) there is a picture
    prototype: Tensor  # (B, L, D) S^P


class Adapter(nn.Module):
    """pi_T or pi_V: what the frozen encoder says, for the task.  (..., width) -> (..., D)"""

    def __init__(self, width: int, d: int, places: int = 0):
        """places: P of what has the form (..., P, width), each with a learned vector of its own"""
        super().__init__()
        self.standardise = Standardizer(width)
        self.layers = nn.Sequential(
            nn.Linear(width, d), nn.GELU(), nn.Linear(d, d), nn.LayerNorm(d)
        )
        self.place = nn.Parameter(0.02 * torch.randn(places, d)) if places else None

    def forward(self, z: Tensor) -> Tensor:
        signal = self.layers(self.standardise(z))
        return signal if self.place is None else signal + self.place


def training_lambda(progress: Tensor, network: ModelConfig) -> Tensor:
    """l1 at progress m / M."""
    return progress if network.lambda_schedule == "formula" else 1 - progress


def inference_lambda(last: Tensor, network: ModelConfig) -> Tensor:
    """l1 where nothing is scheduled; last: that of the last training step."""
    margin = {"last": 0.0, "clip": network.lambda_margin, "half": 0.5}[network.lambda_predict]
    return last.clamp(margin, 1 - margin)


class DualAlignment(nn.Module):
    """Eq. 1, 2: how much topic and prototype make of each picture, or of a picture's patches."""

    def __init__(self, width: int, network: ModelConfig):
        super().__init__()

        def weight() -> nn.Module:
            if network.projection == "elementwise":
                return ElementwiseScale(width)
            return nn.Linear(width, width, bias=False)

        branches = 2 if network.use_prototype else 1  # topic, prototype
        self.queries = nn.ModuleList(weight() for _ in range(branches))  # W^TQ, W^PQ
        self.keys = nn.ModuleList(weight() for _ in range(branches))  # W^TIK, W^PIK
        self.value = weight()  # W^V

    def forward(self, asked: list[Tensor], signals: Tensor, mask: Tensor, balance: Tensor):
        """The weights of K signals, of each branch and mixed; 0 where masked.

        asked: topic and prototype (M, D); (M, K, D), (M, K), () -> (M, branches, K), (M, K)
        """
        q = torch.stack([w(z) for w, z in zip(self.queries, asked, strict=False)], 1)
        k = torch.stack([w(signals) for w in self.keys], 1)  # (M, branches, K, D)
        scores = (k @ q[..., None]).squeeze(-1) / math.sqrt(q.shape[-1])
        lowest = torch.finfo(scores.dtype).min  # not -inf: all may be masked
        weights = scores.masked_fill(~mask[:, None], lowest).softmax(-1) * mask[:, None]
        if len(self.queries) == 1:
            return weights, weights[:, 0]
        return weights, (1 - balance) * weights[:, 0] + balance * weights[:, 1]  # eq. 2, in []


class Difference(nn.Module):
    """Eq. 3, 4: pi_D starts at zero, S^D as the plain difference."""

    def __init__(self, width: int):
        super().__init__()
        self.refine = nn.Linear(width, width)  # pi_D
        nn.init.zeros_(self.refine.weight)
        nn.init.zeros_(self.refine.bias)

    def forward(self, signals: Tensor, prototype: Tensor) -> Tensor:
        """(B, N, L, D), (B, L, D) -> (B, N, L, D)"""
        difference = signals - prototype[:, None]
        return difference + self.refine(difference)  # eq. 4


class Model(nn.Module):
    """TIPPo around a T5 (transformers T5ForConditionalGeneration)."""

    def __init__(self, network: ModelConfig, shapes: InputDims, t5: nn.Module):
        super().__init__()
        self.network, self.shapes, self.t5 = network, shapes, t5
        width, pooled = t5.config.d_model, network.image_features == "pooled"
        tokens = 1 if pooled else shapes.patches  # L
        if pooled:
            self.adapt_picture = Adapter(shapes.pooled_width, width)  # pi_V
        if not pooled or network.use_daa:
            self.adapt_patches = Adapter(shapes.patch_width, width, shapes.patches)  # pi_V
        self.no_picture, self.no_topic = (nn.Parameter(torch.randn(width)) for _ in range(2))
        if not shapes.topic_width:
            self.learned_topic = nn.Embedding(t5.config.vocab_size, width)
            self.topic_position = nn.Parameter(0.02 * torch.randn(network.max_topic_tokens, width))
        elif network.topic_features == "pooled":
            self.adapt_topic = Adapter(shapes.pooled_width, width)  # pi_T
        else:
            self.adapt_topic = Adapter(shapes.topic_width, width)
        if network.use_daa:
            self.align = DualAlignment(width, network)
        if network.use_do:
            self.differ = Difference(width)
        kinds = 3 if network.use_do else 2
        if network.fusion == "feature":
            self.join = nn.Sequential(nn.Linear(kinds * width, width), nn.LayerNorm(width))
        else:
            self.kind = nn.Parameter(EMBEDDING_INIT_STD * torch.randn(kinds, width))
        self.position = nn.Parameter(EMBEDDING_INIT_STD * torch.randn(network.max_images, width))
        self.register_buffer("common", torch.zeros(tokens, width))  # running mean of pictures
        self.register_buffer("balance", torch.zeros(()))  # l1 of the last training step
        decoding.drop_bypassed_encoder(t5, network.t5_input)

    def fit_normalization(self, features: Features, images: list[int], texts: list[int]) -> None:
        """Take the statistics of the training split's rows of the caches."""

        def take(adapter: Adapter, rows) -> None:
            adapter.standardise.fit_normalization(torch.from_numpy(rows).float().flatten(0, -2))

        if self.network.image_features == "patches" or self.network.use_daa:
            take(self.adapt_patches, features.patches[images])
        if self.network.image_features == "pooled":
            take(self.adapt_picture, features.pooled[images])
        if self.shapes.topic_width:
            tokens = features.tokens[texts][features.token_mask[texts]]
            pooled = self.network.topic_features == "pooled"
            take(self.adapt_topic, features.text_pooled[texts] if pooled else tokens)

    def encode(self, batch: dict) -> TippoEncoderOutput:
        """Encode each item once, as when writing.  batch: see stages/shared/generation/article_dataset.py"""
        balance = inference_lambda(self.balance, self.network)
        return self.fuse(batch, self.compute_signals(batch), balance)

    def compute_signals(self, batch: dict, learning: bool = False) -> Signals:
        """learning: an article of one picture takes the batch's mean as its prototype (SFT)."""
        shown = batch["has_picture"]
        if self.network.image_features == "pooled":
            pictures = self.adapt_picture(batch["pooled"])[:, :, None]
        else:
            pictures = self.adapt_patches(batch["patches"])
        pictures = torch.where(shown[:, :, None, None], pictures, self.no_picture)
        topic, mask = self.encode_topic(batch)
        query = (topic * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        prototype = self.compute_prototype(pictures, shown, learning)
        return Signals(topic, mask, query, pictures, shown, prototype)

    def encode_topic(self, batch: dict) -> tuple[Tensor, Tensor]:
        """S^T and its mask; a missing topic is one learned vector.  -> (B, T, D), (B, T)"""
        given = batch["has_topic"][:, None]
        if not self.shapes.topic_width:
            ids, mask = batch["topic_ids"], batch["topic_ids_mask"]
            topic = self.learned_topic(ids) + self.topic_position[: ids.shape[1]]
        elif self.network.topic_features == "pooled":
            topic, mask = self.adapt_topic(batch["topic_pooled"])[:, None], torch.ones_like(given)
        else:
            topic, mask = self.adapt_topic(batch["topic"]), batch["topic_mask"]
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return torch.where(given[..., None], topic, self.no_topic), torch.where(given, mask, first)

    def compute_prototype(self, pictures: Tensor, shown: Tensor, learning: bool) -> Tensor:
        """S^P of the pictures that are there.  (B, N, L, D), (B, N) -> (B, L, D)"""
        total = (pictures * shown[:, :, None, None]).sum(1)
        count = shown.sum(1)[:, None, None]
        common = self.common
        if learning and shown.any():
            common = total.sum(0) / count.sum()
        return torch.where(count > 1, total / count.clamp(min=1), common)  # (1 / N) sum_i S_i

    @torch.no_grad()
    def update_running_state(self, signals: Signals, balance: Tensor) -> None:
        """What writing will need of a training step: its l1, and pictures for the running mean."""
        self.balance.copy_(balance)
        if signals.image_mask.any():
            mean = signals.images[signals.image_mask].mean(0)
            begun = self.common.any()  # zeros: no picture yet; the first mean is taken as it is
            momentum = self.network.prototype_momentum if begun else 1.0
            self.common.lerp_(mean.to(self.common), momentum)

    def augment(self, batch: dict, signals: Signals, balance: Tensor):
        """-> S^A (B, N, 1 or L, D), which of its tokens count (B, N, 1 or L), weights of Memory"""
        shown, pictures, network = signals.image_mask, signals.images, self.network
        first = torch.arange(pictures.shape[2], device=shown.device) == 0
        if not network.use_daa:
            return pictures, shown[..., None] | first, None, None
        alone = shown & (shown.sum(1, keepdim=True) == 1)
        inside = shown if network.softmax_axis == "patches" else alone  # whose patches are weighed
        among = shown & ~inside  # what is weighed against the article's other pictures
        asked, item = [signals.query, signals.prototype.mean(1)], inside.nonzero()[:, 0]
        own = network.image_features == "patches"
        patches = pictures[inside] if own else self.adapt_patches(batch["patches"][inside])
        every = torch.ones(patches.shape[:2], dtype=torch.bool, device=shown.device)
        of_patches, mixed = self.align([z[item] for z in asked], patches, every, balance)
        seen = (mixed[:, None] @ self.align.value(patches)).squeeze(1)  # eq. 2 over patches
        seen = torch.where(shown[..., None], scatter_rows(seen, inside), self.no_picture)[
            :, :, None
        ]
        of_images, mixed = self.align(asked, pictures.mean(2), among, balance)
        if network.softmax_axis == "images":
            scale = (mixed * among.sum(1, keepdim=True))[:, :, None, None]  # times N
            over = scale * self.align.value(pictures)  # eq. 2 over images
            seen = torch.where(among[:, :, None, None], over, seen)
        mask = (among[..., None] | first)[..., : seen.shape[2]]
        return seen, mask, of_images, scatter_rows(of_patches, inside)

    def fuse(self, batch: dict, signals: Signals, balance: Tensor) -> TippoEncoderOutput:
        """S^F = {[S^T; S_i^A; S_i^D]}, and what it came from."""
        present, fusion = batch["present"][..., None], self.network.fusion
        augmented, mask, of_images, of_patches = self.augment(batch, signals, balance)
        parts = [(augmented, mask & present)]
        if self.network.use_do:
            shown = signals.image_mask[..., None].expand(signals.images.shape[:3])
            differential = self.differ(signals.images, signals.prototype) * shown[..., None]
            parts.append((differential, shown))
        rank = torch.arange(present.shape[1], device=present.device)[:, None]
        position = self.position[: len(rank), None]  # (N, 1, D)
        rank = rank if fusion == "literal" else torch.zeros_like(rank)
        if fusion == "feature":
            each = [signals.query[:, None, None], *(tokens for tokens, _ in parts)]
            joined = self.join(torch.cat(torch.broadcast_tensors(*each), -1)) + position
            shown = torch.stack(torch.broadcast_tensors(*(mask for _, mask in parts))).any(0)
            blocks = [(joined, shown, rank)]
        else:
            topic, mask = signals.topic[:, None] + self.kind[0], signals.topic_mask[:, None]
            blocks = [(topic, mask, rank[:1])]
            if fusion == "literal":
                blocks = [(topic + position, mask & present, rank)]
            for kind, (tokens, mask) in zip(self.kind[1:], parts, strict=True):
                blocks.append((tokens + kind + position, mask, rank))
        hidden, mask = pack_sequences(blocks)
        hidden = decoding.encode_inputs(self.t5, hidden, mask, self.network.t5_input)
        balance = balance.expand(len(present)) if self.network.use_daa else None
        return TippoEncoderOutput(hidden, mask, balance, of_images, of_patches)


def contrastive_loss(
    signals: Tensor, prototypes: Tensor, item: Tensor, network: ModelConfig
) -> Tensor:
    """L_C, eq. 5, of all pictures of a batch: the mean over articles of that over their pictures.

    signals, prototypes (M, D): each picture's S^I, its article's S^P; item (M,): its article. An
    article of one picture has the batch's as negatives. One picture in all: 0.
    """
    if len(signals) < 2:
        return 0 * signals.sum()
    positive = (
        F.cosine_similarity(signals, prototypes, dim=-1) / network.contrastive_temperature
    )  # (M,)
    z = F.normalize(signals, dim=-1)
    with torch.autocast(z.device.type, enabled=False):  # bf16 / temperature is noise
        scores = z @ z.T / network.contrastive_temperature  # (M, M)
    same, itself = item[:, None] == item, torch.eye(len(z), dtype=torch.bool, device=z.device)
    every = torch.ones_like(same)
    negatives = {"article": same, "batch": ~same, "both": every}[network.contrastive_negatives]
    negatives = torch.where(same.sum(1, keepdim=True) == 1, every, negatives)
    if network.contrastive_denominator == "literal":  # j = i is in it, the positive is not
        below = scores.masked_fill(~(negatives | itself), -torch.inf)
    else:
        below = scores.masked_fill(~negatives | itself, -torch.inf)
        below = torch.cat([below, positive[:, None]], 1)
    losses = below.logsumexp(1) - positive  # eq. 5
    share = 1 / same.sum(1)  # 1 / N
    return (losses * share).sum() / share.sum()


def sft_loss(model: Model, batch: dict) -> dict[str, Tensor]:
    """L_SFT: L_NTP, the mean negative log-likelihood of a token in nats, and L_C.

    In training the batch has `progress`, m / M, and what writing will need is kept.
    """
    network, learning = model.network, model.training
    batch = (
        drop_modality(batch, network.image_drop_prob, network.topic_drop_prob)
        if learning
        else batch
    )
    signals = model.compute_signals(batch, learning)
    balance = inference_lambda(model.balance, network)
    if learning:
        balance = training_lambda(batch["progress"], network)
        model.update_running_state(signals, balance)
    memory = model.fuse(batch, signals, balance)
    scores = decoding.compute_log_probs(model.t5, memory.hidden, memory.mask, batch["labels"])
    terms = {"ntp": -scores.sum() / (batch["labels"] != IGNORE_INDEX).sum()}
    if network.use_contrastive:
        pictures = signals.images.mean(2)[signals.image_mask]
        item = signals.image_mask.nonzero()[:, 0]
        loss = contrastive_loss(pictures, signals.prototype.mean(1)[item], item, network)
        terms["contrast"] = network.contrastive_weight * loss
    return terms


def diagnostics(model: Model, batch: dict) -> dict[str, Tensor]:
    """How TIP treats each item, as when writing.  -> (B,) each

    likeness: cos(S_i^I, S^P), 1 where all pictures have collapsed into one. lambda: l1. Focus: the
    largest weight of a branch times how many weights there are; 1: uniform, the branch is idle.
    """
    signals, memory = model.compute_signals(batch), model.encode(batch)
    shown = signals.image_mask.to(signals.images.dtype)
    cosine = F.cosine_similarity(signals.images.mean(2), signals.prototype.mean(1)[:, None], -1)
    found = {"likeness": (cosine * shown).sum(1) / shown.sum(1).clamp(min=1)}
    if model.network.use_daa:
        images = memory.images.amax(-1) * shown.sum(1, keepdim=True)  # (B, branches)
        patches = memory.patches.amax(-1) * memory.patches.shape[-1]  # (B, N, branches)
        patches = patches.sum(1) / (patches > 0).sum(1).clamp(min=1)
        for branch, focus in zip(("text", "prototype"), (images + patches).T, strict=False):
            found[f"{branch}_focus"] = focus  # of images or of patches, the other is 0
        found["lambda"] = memory.balance
    return found


def reward_discounts(
    step: float, steps: float, preference: PreferenceConfig
) -> tuple[float, float]:
    """What R_literal and R_semantic weigh at step m of M.

    With the paper's own exponents, both 1.7e-223 at half of its 20,000 steps: 0 in fp32.
    """
    before, after = step, steps - step
    if preference.discount == "progress":
        before, after = (preference.discount_steps * part / steps for part in (before, after))
    return preference.gamma**before, preference.gamma**after


def total_return(
    literal: Tensor, semantic: Tensor, step: float, steps: float, preference: PreferenceConfig
) -> Tensor:
    """G_m of R written texts at step m of M.  (R,), (R,) -> (R,)"""
    of_literal, of_semantic = reward_discounts(step, steps, preference)
    return of_literal * literal + of_semantic * semantic


def compute_advantage(returns: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
    """How far above the mean, in deviations.  (R,) -> (R,)

    Where returns are all alike there is no scale: nothing is learned, instead of 1e8 times one.
    """
    if deviation <= EPSILON:
        return torch.zeros_like(returns)
    return (returns - mean) / (deviation + EPSILON)  # eq. 6


def kl_estimate(new: Tensor, reference: Tensor) -> Tensor:
    """Of each token: q - log q - 1, q = p_SFT / p, an estimate of KL(policy, SFT) never below 0."""
    apart = reference - new
    return apart.exp() - apart - 1


def policy_loss(
    new: Tensor,
    old: Tensor,
    reference: Tensor,
    advantage: Tensor,
    mask: Tensor,
    preference: PreferenceConfig,
) -> dict[str, Tensor]:
    """PPO's clipped objective (arXiv:1707.06347, eq. 7), and the distance from the SFT model.

    new, old, reference (R, Y): log p of each written token by the policy, by that which wrote it,
    by the SFT model; advantage (R,); mask (R, Y): tokens that were written. Means are over these.
    """
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - preference.clip_range, 1 + preference.clip_range)
    gain = minimum(ratio * advantage[:, None], clipped * advantage[:, None])
    return {
        "policy": -(gain * mask).sum() / mask.sum(),
        "kl": preference.kl_coef * (kl_estimate(new, reference) * mask).sum() / mask.sum(),
    }
