"""MuSE: exchanging-based multimodal fusion with Transformer (arXiv:2309.02190).

An item is a text and an image. The words of a tweet get tags (entities), a post gets one label
(sentiment). B items, L subwords of a text, W words, P cells of an image, D the width:

    H_t, H_v  encoded subwords and cells                      (B, L, D), (B, P, D)
    c_t, c_v  learned cls of each modality                    (D,)
    X_t, X_v  [c_t; H_t], [c_v; H_v]                          (B, 1 + L, D), (B, 1 + P, D)
    Y_t, Y_v  output of the CrossTransformer                  as X_t, X_v
    w         attention of cls to the tokens, mean of heads   (B, L), (B, P)
    K, theta  number of layers, share of exchanged tokens

    H_t = FC_t(text encoder);  H_v = FC_v(image encoder)      Model.encode
    L_it = nats of the text as caption of Lin(H_v)            compute_regularizers, NIC-Att
    L_ti = bits of the image given Lin(pooled H_t)            compute_regularizers, PixelCNN++
    X' = X + SelfAttention(X)                                 TransformerLayer.self_attention
    in layers mu to eta, for the floor(theta n) tokens of smallest w:
        x'_t <- mean H'_v;  x'_v <- mean H'_t                 select_exchange_tokens,
                                                              exchange_tokens
    X'' = X' + FFN(X'), weights shared by text and image      TransformerLayer.feed_forward
    tags = CRF(W_c drop(W_2 [y_word || y_image]))             Model.compute_logits
    label = softmax(W_c drop(W_2 [Y_t,cls || Y_v,cls]))       Model.compute_logits
    L = alpha L_it + beta L_ti + sigma L_task                 compute_loss

The decoders have the roles of the public code (RecklessRonan/MuSE): NIC-Att captions the image and
PixelCNN++ generates an image from the text. Some summaries of the paper swap them.

Where the paper is silent. In brackets the config field; the default comes first.
[exchange] The mean is added to exchanged tokens, as in the public runs, or replaces them, as in the
paper's text. [token_selection] Tokens have the smallest w of this layer, computed without attention
dropout, or the smallest norm, or are random: sampled in training, a fixed pattern otherwise.
[exchange_count] Exactly floor(theta n) tokens are exchanged, at least `min_exchanged_tokens` and
never all; or all strictly below the quantile. Ties go to the first token. [padding_mask] Means are
over subwords or cells, without cls and padding, and both are computed before either modality
changes. In the public code padding is attended to, counted, and averaged together with cls; an item
then depends on the padding of its batch. Nothing is exchanged with a missing modality. [norm]
Pre-norm adds a LayerNorm on H_t and H_v and one at the end; post-norm, the paper's, has neither.
[image_pooling] A word is read at its first subword, together with the mean cell, since subword i is
unrelated to cell i; or with the cells that it attends to, or with cell i modulo P as in the public
code. [head] `mlp` has a ReLU between W_2 and W_c; `linear`, as in the public code, has none.
[share_projection] The CrossTransformer reads H or Lin(H). The pooled text is the mean subword,
because the pooler of a BERT is trained for another task. A missing image is a learned vector for
each cell, a missing text one learned subword, independent of its length. Training drops modalities
at random; items with a missing modality are neither captioned nor used for image generation.

L_it is in nats per token, plus the doubly stochastic term; L_ti in bits per dimension; L_task in
nats per item: of all its tags, or of its label. The public code divides them by 64, 1024 and 64,
sums L_ti over the batch, and multiplies the loss of labels by 64. So our alpha equals its alpha for
tags and 1/64 of it for labels; our beta is 64 * 3 ln 2 * batch size times its beta for tags and
3 ln 2 * batch size times for labels.

Other fusions for comparison, in the same layers mu to eta: self-attention over both modalities
(concatenation), or a second attention to the other modality (cross_attention). `text` is a tagger
without images: text encoder, dropout, linear layer, CRF.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, minimum, nn
from torchcrf import CRF

from stages.models.muse import pixelcnn, show_attend_tell
from stages.models.muse.transformer import TransformerLayer
from stages.shared.core.config import Field, config_class
from stages.shared.modeling.layers import gather_rows, map_pair, masked_mean, scatter_rows
from stages.shared.modeling.modality_dropout import drop_modality
from stages.shared.training.batching import Batch
from stages.shared.training.loop import LossTerms

if TYPE_CHECKING:
    from stages.models.muse.patch_pooling import PatchPooling
    from stages.shared.backbones.bert import TextEncoder
    from stages.shared.backbones.efficientnet import EfficientNetLite0
    from stages.shared.backbones.resnet import ResNet

KINDS = ("tweets", "posts")  # supported kinds of corpora
ModalityPair = tuple[Tensor, Tensor]  # of the text and of the image
EPSILON = 1e-9  # floor(0.29 * 100) must be 29, but the product is 28.999...96


@config_class
class CaptioningConfig:
    alpha: float = Field(ge=0, description="weight of L_it, nats per token")
    min_count: int = Field(ge=1, description="train occurrences of a word in the vocabulary")
    max_length: int = Field(ge=3, description="maximum length of a caption with both ends, ids")
    decoder: show_attend_tell.ShowAttendTellConfig


@config_class
class DrawingConfig:
    beta: float = Field(ge=0, description="weight of L_ti, bits per dimension")
    lr_multiplier: float = Field(ge=0, description="its learning rate relative to other weights")
    max_images_per_batch: int = Field(ge=1, description="images of a batch in the loss, at most")
    decoder: pixelcnn.PixelCNNConfig


@config_class
class ModelConfig:
    d_model: int = Field(ge=1, description="width of the CrossTransformer")
    num_layers: int = Field(ge=1, description="layers K of the CrossTransformer")
    num_heads: int = Field(ge=1, description="attention heads; divides d_model")
    d_ff: int = Field(ge=1, description="width inside the FFNs")
    dropout: float = Field(ge=0, lt=1, description="dropout of attention and FFNs, 0 to below 1")
    norm: Literal["pre", "post"] = Field(description="position of LayerNorm; post is the paper's")
    mu: int = Field(description="first fusion layer, from 1")
    eta: int = Field(description="last fusion layer, up to num_layers")
    theta: float = Field(ge=0, lt=1, description="share of tokens exchanged per layer")
    min_exchanged_tokens: int = Field(ge=0, description="exchanged tokens of an item, at least")
    exchange: Literal["replace", "residual"] = Field(
        description="whether the other modality's mean replaces a token or is added"
    )
    token_selection: Literal["cls_attention", "random", "norm"] = Field(
        description="score by which the smallest tokens are exchanged"
    )
    exchange_count: Literal["floor", "quantile"] = Field(
        description="floor of theta n; quantile is the public code's"
    )
    padding_mask: Literal["respected", "ignored"] = Field(
        description="padding; ignored is the public code's"
    )
    fusion: Literal["exchange", "concatenation", "cross_attention", "text"] = Field(
        description="how modalities interact; text reads no images"
    )
    image_pooling: Literal["mean", "attention", "cell"] = Field(
        description="image features next to a word"
    )
    head: Literal["linear", "mlp"] = Field(description="mlp has a ReLU between W_2 and W_c")
    head_dropout: float = Field(ge=0, lt=1, description="dropout of the head, 0 to below 1")
    share_projection: bool = Field(description="whether the CrossTransformer reads Lin(H)")
    sigma: float = Field(ge=0, description="weight of L_task, nats per text")
    use_captioning: bool = Field(description="whether NIC-Att captions the image")
    captioning: CaptioningConfig
    use_image_generation: bool = Field(description="whether PixelCNN++ generates the image")
    image_generation: DrawingConfig
    image_drop_prob: float = Field(ge=0, description="share of training items without image")
    text_drop_prob: float = Field(ge=0, description="share of training items without text")

    def __post_init__(self) -> None:
        if not 1 <= self.mu <= self.eta <= self.num_layers:
            raise ValueError(
                f"mu is {self.mu} and eta is {self.eta}: give 1 <= mu <= eta <= num_layers "
                f"({self.num_layers})"
            )
        if self.image_drop_prob + self.text_drop_prob > 1:
            raise ValueError("image_drop_prob + text_drop_prob exceeds 1: lower one of them")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model is {self.d_model}: give a multiple of num_heads ({self.num_heads})"
            )
        if self.fusion == "text" and (self.use_captioning or self.use_image_generation):
            raise ValueError(
                "fusion text has no regularizers: set use_captioning and use_image_generation to "
                "false"
            )

    def is_fusion_layer(self, layer: int) -> bool:
        """Whether the modalities interact in a layer, counted from 1."""
        return self.mu <= layer <= self.eta

    @property
    def has_projection(self) -> bool:
        """Whether the model has Lin."""
        return self.use_captioning or self.use_image_generation or self.share_projection


@config_class
class InputDims:
    """Sizes of inputs and outputs, which follow from the corpus and its features."""

    task: Literal["entities", "sentiment"]
    labels: int  # number of tags or labels
    text_width: int  # D_t of the text encoder
    cells: int  # P
    cell_width: int  # D_v of the image encoder
    words: int  # size of the caption vocabulary


@dataclass
class MuseEncoderOutput:
    text_states: Tensor  # (B, L, D_t) of the text encoder
    mask: Tensor  # (B, L) true at subwords
    projected: ModalityPair | None  # None for fusion text

    @property
    def streams(self) -> ModalityPair:
        """H_t (B, L, D), H_v (B, P, D); there are none for fusion text."""
        assert self.projected is not None
        return self.projected


@dataclass
class LayerTrace:
    """Attention and exchange of one layer, for the tokens of text (B, L) and image (B, P)."""

    layer: int  # from 1
    weights: ModalityPair  # w
    exchanged: ModalityPair  # bool


@dataclass
class MusePredictions:
    """For each item the Viterbi tags of its words, or its one label and the label's probability."""

    labels: list[list[int]]
    probability: list[list[float]]  # empty for tags


def select_exchange_tokens(scores: Tensor, mask: Tensor, network: ModelConfig) -> Tensor:
    """The tokens with the smallest scores: a share `theta` of those in the mask.

    scores, mask (B, N) -> (B, N) bool
    """
    if network.exchange_count == "quantile":  # linear interpolation, like numpy's
        valid = scores.masked_fill(~mask, torch.nan)
        return (scores < valid.nanquantile(network.theta, dim=1, keepdim=True)) & mask
    length = mask.sum(1, keepdim=True)
    count = (network.theta * length.double() + EPSILON).floor()
    count = count.clamp(min=network.min_exchanged_tokens if network.theta else 0)
    count = minimum(count, (length - 1).clamp(min=0))  # at least one token is kept
    rank = scores.masked_fill(~mask, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return mask & (rank < count)


def exchange_tokens(
    streams: ModalityPair, masks: ModalityPair, selected: ModalityPair, network: ModelConfig
) -> ModalityPair:
    """Exchange in both directions at once, from the values before either modality changes.

    streams (B, 1 + L, D) and (B, 1 + P, D) with cls first, and their masks; selected (B, L), (B, P)
    """
    first = 0 if network.padding_mask == "ignored" else 1  # whether cls is part of the mean
    text_mean, image_mean = (
        masked_mean(x[:, first:], mask[:, first:]) for x, mask in zip(streams, masks, strict=True)
    )

    def exchange(x: Tensor, tokens: Tensor, other: Tensor) -> Tensor:
        where = F.pad(tokens, (1, 0))[..., None]  # cls is never exchanged
        other = other[:, None].to(x.dtype)
        if network.exchange == "residual":
            return torch.addcmul(x, where.to(x.dtype), other)
        return torch.where(where, other, x)

    return map_pair(exchange, streams, selected, (image_mean, text_mean))


class CrossTransformer(nn.Module):
    """K layers over text and image, with fusion in layers mu to eta."""

    def __init__(self, network: ModelConfig):
        super().__init__()
        self.network = network
        d, pre_norm = network.d_model, network.norm == "pre"
        uses_cross_attention = network.fusion == "cross_attention"
        self.layers = nn.ModuleList(
            TransformerLayer(
                d,
                network.num_heads,
                network.d_ff,
                network.dropout,
                pre_norm,
                uses_cross_attention and network.is_fusion_layer(k),
            )
            for k in range(1, network.num_layers + 1)
        )
        self.norm = nn.LayerNorm(d) if pre_norm else nn.Identity()

    def exchange_scores(self, weights: Tensor, x: Tensor, layer: int) -> Tensor:
        """Scores of the tokens, the smallest of which are exchanged.

        weights (B, 1 + N): attention of cls, to itself first; x (B, 1 + N, D) -> (B, N)
        """
        if self.network.token_selection == "cls_attention":
            return weights[:, 1:]
        if self.network.token_selection == "norm":
            return x[:, 1:].detach().norm(dim=-1)
        if self.training:
            return torch.rand_like(weights[:, 1:])
        position = torch.arange(1, weights.shape[1], device=x.device)
        return (0.618034 * position + 0.414214 * layer).remainder(1).expand(len(x), -1)

    def apply_exchange(
        self,
        streams: ModalityPair,
        masks: ModalityPair,
        weights: ModalityPair,
        has_both: Tensor,
        layer: int,
    ) -> tuple[ModalityPair, ModalityPair]:
        """The exchange of one layer.  -> (X_t, X_v), exchanged tokens (B, L) and (B, P)

        has_both (B,): whether an item has text and image
        """

        def select(x: Tensor, mask: Tensor, w: Tensor) -> Tensor:
            scores = self.exchange_scores(w, x, layer)
            return select_exchange_tokens(scores, mask[:, 1:], self.network) & has_both[:, None]

        selected = map_pair(select, streams, masks, weights)
        return exchange_tokens(streams, masks, selected, self.network), selected

    def apply_self_attention(
        self, layer: TransformerLayer, streams: ModalityPair, masks: ModalityPair, joint: bool
    ) -> tuple[ModalityPair, ModalityPair]:
        """Self-attention of each modality, or of both as one sequence.  -> X', weights of cls"""
        if joint:
            lengths = [x.shape[1] for x in streams]
            x, weights = layer.self_attention(torch.cat(streams, 1), torch.cat(masks, 1))
            (text, image), (w_text, w_image) = x.split(lengths, 1), weights.split(lengths, 1)
        else:
            (text, w_text), (image, w_image) = map(layer.self_attention, streams, masks)
        return (text, image), (w_text, w_image)

    def forward(
        self, streams: ModalityPair, masks: ModalityPair, has_both: Tensor
    ) -> tuple[ModalityPair, list[LayerTrace]]:
        """(X_t, X_v), their masks, has_both (B,) -> (Y_t, Y_v), one trace per layer"""
        if self.network.padding_mask == "ignored":
            masks = map_pair(torch.ones_like, masks)
        fusion, traces = self.network.fusion, []
        for number, layer in enumerate(self.layers, 1):
            assert isinstance(layer, TransformerLayer)
            fuses = self.network.is_fusion_layer(number)
            exchanged = map_pair(lambda mask: torch.zeros_like(mask[:, 1:]), masks)
            joint = fuses and fusion == "concatenation"
            streams, weights = self.apply_self_attention(layer, streams, masks, joint)
            if fuses and fusion == "cross_attention":
                (text, image), (text_mask, image_mask) = streams, masks
                streams = (
                    layer.cross_attention(text, image, image_mask),
                    layer.cross_attention(image, text, text_mask),
                )
            elif fuses and fusion == "exchange":
                streams, exchanged = self.apply_exchange(streams, masks, weights, has_both, number)
            streams = map_pair(layer.feed_forward, streams)
            weights = map_pair(lambda w: w[:, 1:], weights)
            traces.append(LayerTrace(number, weights, exchanged))
        return map_pair(self.norm, streams), traces


class ClassificationHead(nn.Module):
    """W_c drop(W_2 z).  (..., width) -> (..., labels)"""

    def __init__(self, width: int, labels: int, network: ModelConfig):
        super().__init__()
        self.mix = nn.Linear(width, network.d_model)  # W_2
        self.activation = nn.ReLU() if network.head == "mlp" else nn.Identity()
        self.dropout = nn.Dropout(network.head_dropout)
        self.classify = nn.Linear(network.d_model, labels)  # W_c

    def forward(self, z: Tensor) -> Tensor:
        return self.classify(self.dropout(self.activation(self.mix(z))))


class Model(nn.Module):
    """MuSE around a text encoder and an image encoder.

    image_encoder: `picture` of a batch -> cells (B, P, D_v). Batches are described in
    stages/models/muse/dataset.py.
    """

    def __init__(
        self,
        network: ModelConfig,
        shapes: InputDims,
        text_encoder: "TextEncoder",
        image_encoder: "PatchPooling | EfficientNetLite0 | ResNet",
    ):
        super().__init__()
        self.network, self.shapes, self.text_encoder = network, shapes, text_encoder
        self.no_text = nn.Parameter(0.02 * torch.randn(shapes.text_width))
        if shapes.task == "entities":
            self.crf = CRF(shapes.labels, batch_first=True)
        if network.fusion == "text":
            classify = nn.Linear(shapes.text_width, shapes.labels)
            self.head = nn.Sequential(nn.Dropout(network.head_dropout), classify)
        else:
            self.image_encoder = image_encoder
            self._build_fusion(network, shapes)

    def _build_fusion(self, network: ModelConfig, shapes: InputDims) -> None:
        d, pre_norm = network.d_model, network.norm == "pre"
        fc = nn.Identity() if shapes.text_width == d else nn.Linear(shapes.text_width, d)
        self.project_text = nn.Sequential(fc, nn.LayerNorm(d) if pre_norm else nn.Identity())
        fc = nn.Linear(shapes.cell_width, d)
        self.project_picture = nn.Sequential(fc, nn.LayerNorm(d) if pre_norm else nn.Identity())
        self.no_picture = nn.Parameter(0.02 * torch.randn(shapes.cells, d))
        self.cls = nn.ParameterList(
            nn.init.kaiming_normal_(torch.empty(1, d), mode="fan_out") for _ in range(2)
        )
        self.transformer = CrossTransformer(network)
        if network.has_projection:
            self.share = nn.Linear(d, d)  # Lin
        if network.use_captioning:
            self.captioner = show_attend_tell.ShowAttendTell(
                network.captioning.decoder, shapes.words, d
            )
        if network.use_image_generation:
            self.drawer = pixelcnn.PixelCNN(network.image_generation.decoder, d)
        if network.image_pooling == "attention" and shapes.task == "entities":
            self.query_cells = nn.Linear(d, d)
        self.head = ClassificationHead(2 * d, shapes.labels, network)

    def encode(self, batch: Batch) -> MuseEncoderOutput:
        """H_t and H_v, with learned vectors for a missing text (a single subword) or image."""
        has_text, mask = batch["has_text"][:, None], batch["pieces_mask"]
        states = torch.where(has_text[..., None], self.text_encoder(batch), self.no_text)
        mask = torch.where(has_text, mask, torch.arange(mask.shape[1], device=mask.device) == 0)
        if self.network.fusion == "text":
            return MuseEncoderOutput(states, mask, None)
        streams = (self.project_text(states), self.encode_image(batch))
        return MuseEncoderOutput(states, mask, streams)

    def encode_image(self, batch: Batch) -> Tensor:
        """H_v (B, P, D). Missing images are not encoded: they would affect BatchNorm."""
        has_image = batch["has_picture"]
        if not has_image.any():
            return self.no_picture.expand(len(has_image), -1, -1)
        states = self.image_encoder(batch["picture"][has_image])
        cells = scatter_rows(self.project_picture(states), has_image)
        return torch.where(has_image[:, None, None], cells, self.no_picture)

    def apply_cross_transformer(
        self, batch: Batch, encoded: MuseEncoderOutput
    ) -> tuple[ModalityPair, list[LayerTrace]]:
        """(Y_t (B, 1 + L, D), Y_v (B, 1 + P, D)), one trace per layer."""
        image_mask = torch.ones_like(encoded.streams[1][..., 0], dtype=torch.bool)
        masks = map_pair(lambda mask: F.pad(mask, (1, 0), value=True), (encoded.mask, image_mask))
        streams = encoded.streams
        if self.network.share_projection:
            streams = map_pair(self.share, streams)
        text_cls, image_cls = self.cls
        with_cls = map_pair(
            lambda cls, h: torch.cat([cls.to(h.dtype).expand(len(h), 1, -1), h], 1),
            (text_cls, image_cls),
            streams,
        )
        has_both = batch["has_text"] & batch["has_picture"] & encoded.mask.any(1)
        return self.transformer(with_cls, masks, has_both)

    def image_context(self, words: Tensor, cells: Tensor, first: Tensor) -> Tensor:
        """Image features for each word.  (B, W, D), (B, P, D), (B, W) -> (B, W, D)"""
        if self.network.image_pooling == "cell":
            return gather_rows(cells, first % cells.shape[1])
        if self.network.image_pooling == "mean":
            return cells.mean(1, keepdim=True).expand_as(words)
        scores = self.query_cells(words) @ cells.transpose(1, 2) / cells.shape[-1] ** 0.5
        return scores.softmax(-1) @ cells

    def compute_logits(self, batch: Batch, encoded: MuseEncoderOutput) -> Tensor:
        """Emissions of the CRF (B, W, labels), or logits (B, labels)."""
        is_tagging = self.shapes.task == "entities"
        if self.network.fusion == "text":
            states = encoded.text_states
            if is_tagging:
                return self.head(gather_rows(states, batch["first"]))
            return self.head(masked_mean(states, encoded.mask))
        (text, image), _ = self.apply_cross_transformer(batch, encoded)
        if not is_tagging:
            return self.head(torch.cat([text[:, 0], image[:, 0]], -1))
        first = batch["first"]
        words = gather_rows(text[:, 1:], first)
        return self.head(torch.cat([words, self.image_context(words, image[:, 1:], first)], -1))

    def task_loss(self, batch: Batch, logits: Tensor) -> Tensor:
        """L_task, nats per item: of all its tags, or of its label."""
        if self.shapes.task == "sentiment":
            return F.cross_entropy(logits, batch["label"])
        with torch.autocast(logits.device.type, enabled=False):  # log-sum-exp over words
            logits = logits.to(self.crf.transitions.dtype)
            return -self.crf(logits, batch["tags"], batch["word_mask"], reduction="mean")


def text_image_indices(batch: Batch) -> Tensor:
    """Indices of the items with text and image, which the decoders can use.  -> (M,)"""
    return (batch["has_text"] & batch["has_picture"]).nonzero()[:, 0]


def pool_modalities(model: Model, encoded: MuseEncoderOutput) -> dict[str, ModalityPair]:
    """Mean subword and mean cell (B, D) `before` Lin and, if the model has it, `after` Lin."""
    text, image = encoded.streams
    before = masked_mean(text, encoded.mask), image.mean(1)
    if not model.network.has_projection:
        return {"before": before}
    return {"before": before, "after": map_pair(model.share, before)}


def scatter_to_batch(values: Tensor, items: Tensor, batch: Batch) -> Tensor:
    """Values (M,) of some items at their indices in the batch, NaN elsewhere.  -> (B,)"""
    empty = values.new_full((len(batch["has_text"]),), torch.nan)
    return empty.index_put((items,), values)


def mean_or_zero(values: Tensor, items: Tensor) -> Tensor:
    """The mean over these items; 0, without gradient, if there are none."""
    return values[items].mean() if len(items) else values.new_zeros(())


def compute_regularizers(
    model: Model, batch: Batch, encoded: MuseEncoderOutput, items: Tensor, image_items: Tensor
) -> dict[str, Tensor]:
    """L_it of `items` and L_ti of `image_items`: name -> (B,), NaN for other items.

    caption_nats per token, doubly_stochastic (its second term), drawing_bits per dimension
    """
    terms, none = {}, encoded.text_states.new_zeros(0)
    if model.network.use_captioning:
        nats = stochastic = none
        if len(items):
            cells = model.share(encoded.streams[1][items])
            caption = model.captioner(cells, batch["caption"][items])
            nats, stochastic = caption.nats / caption.tokens, caption.stochastic
        terms["caption_nats"] = scatter_to_batch(nats, items, batch)
        terms["doubly_stochastic"] = scatter_to_batch(stochastic, items, batch)
    if model.network.use_image_generation:
        text, _ = pool_modalities(model, encoded)["after"]
        bits = none
        if len(image_items):
            bits = model.drawer.bits_per_dim(batch["drawing"][image_items], text[image_items])
        terms["drawing_bits"] = scatter_to_batch(bits, image_items, batch)
    return terms


def compute_loss(model: Model, batch: Batch) -> LossTerms:
    """Weighted L_task, L_it and L_ti.

    L_ti uses the first `max_images_per_batch` items with text and image.
    """
    network = model.network
    if model.training and network.fusion != "text":  # which has no other input
        batch = drop_modality(batch, network.image_drop_prob, network.text_drop_prob, "has_text")
    encoded, items = model.encode(batch), text_image_indices(batch)
    image_items = items[: network.image_generation.max_images_per_batch]
    logits = model.compute_logits(batch, encoded)
    terms = {"task": network.sigma * model.task_loss(batch, logits)}
    regularizers = compute_regularizers(model, batch, encoded, items, image_items)
    if network.use_captioning:
        nats = regularizers["caption_nats"] + regularizers["doubly_stochastic"]
        terms["captioning"] = network.captioning.alpha * mean_or_zero(nats, items)
    if network.use_image_generation:
        bits = mean_or_zero(regularizers["drawing_bits"], image_items)
        terms["drawing"] = network.image_generation.beta * bits
    return terms


@torch.no_grad()
def predict(model: Model, batch: Batch) -> MusePredictions:
    """The most probable tag sequence of each text, or its most probable label."""
    logits = model.compute_logits(batch, model.encode(batch))
    if model.shapes.task == "sentiment":
        probability, label = logits.float().softmax(-1).max(-1)
        return MusePredictions(label[:, None].tolist(), probability[:, None].tolist())
    tags = model.crf.decode(logits.to(model.crf.transitions.dtype), batch["word_mask"])
    return MusePredictions(tags, [[] for _ in tags])


@torch.no_grad()
def evaluate_regularizers(model: Model, batch: Batch) -> dict[str, Tensor]:
    """`compute_regularizers` of all items with text and image; empty if there are none."""
    items = text_image_indices(batch)
    if not len(items):
        return {}
    return compute_regularizers(model, batch, model.encode(batch), items, items)


@torch.no_grad()
def diagnostics(model: Model, batch: Batch) -> dict[str, Tensor]:
    """Quantities to monitor in training: name -> (B,), NaN for items without text or image.

    exchanged_text, exchanged_picture: mean share of tokens exchanged in layers mu to eta;
    likeness: cosine of Lin(pooled H_t) and Lin(pooled H_v); and the regularizers of the items that
    the loss uses. Empty if no item has text and image.
    """
    network, items, values = model.network, text_image_indices(batch), {}
    if network.fusion == "text" or not len(items):
        return {}
    encoded = model.encode(batch)
    if network.fusion == "exchange":
        _, traces = model.apply_cross_transformer(batch, encoded)
        exchanged = [trace.exchanged for trace in traces if network.is_fusion_layer(trace.layer)]
        sizes = {"text": encoded.mask.sum(1).clamp(min=1), "picture": encoded.streams[1].shape[1]}
        for modality, (name, size) in enumerate(sizes.items()):
            shares = torch.stack([tokens[modality].sum(1) for tokens in exchanged]) / size
            values[f"exchanged_{name}"] = scatter_to_batch(shares.mean(0)[items], items, batch)
    if network.has_projection:
        likeness = F.cosine_similarity(*pool_modalities(model, encoded)["after"])
        values["likeness"] = scatter_to_batch(likeness[items], items, batch)
    image_items = items[: network.image_generation.max_images_per_batch]
    return values | compute_regularizers(model, batch, encoded, items, image_items)


@torch.no_grad()
def attention_maps(model: Model, batch: Batch) -> list[LayerTrace]:
    """Attention and exchange of each layer of the CrossTransformer; empty for fusion text."""
    if model.network.fusion == "text":
        return []
    return model.apply_cross_transformer(batch, model.encode(batch))[1]


@torch.no_grad()
def pooled_embeddings(model: Model, batch: Batch) -> dict[str, ModalityPair]:
    """Pooled text and image (B, D) `before` and `after` Lin; empty for fusion text."""
    return {} if model.network.fusion == "text" else pool_modalities(model, model.encode(batch))


@torch.no_grad()
def generate_captions(model: Model, batch: Batch) -> list[list[int]]:
    """Greedy captions of NIC-Att as word ids; empty for items without image."""
    with_image = batch["has_picture"].nonzero()[:, 0]
    captions: list[list[int]] = [[] for _ in batch["has_picture"]]
    if len(with_image):
        cells = model.share(model.encode_image(batch)[with_image])
        ids = model.captioner.greedy_decode(cells, model.network.captioning.max_length)
        for item, caption in zip(with_image.tolist(), ids, strict=True):
            captions[item] = caption
    return captions


@torch.no_grad()
def generate_images(model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
    """Images that PixelCNN++ samples for each text, in [-1, 1].  -> (B, 3, S, S)"""
    text, _ = pool_modalities(model, model.encode(batch))["after"]
    return model.drawer.sample(text, generator)
