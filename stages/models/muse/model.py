"""MuSE: exchanging-based multimodal fusion with Transformer (arXiv:2309.02190).

An item is a text and a picture; a tweet's words get tags (entities), a post gets a label
(sentiment). B items, L pieces of a text, W words, P cells of a picture, D the width:

    H_t, H_v  what the encoders say of pieces and cells       (B, L, D), (B, P, D)
    c_t, c_v  learned cls of each modality                    (D,)
    X_t, X_v  [c_t; H_t], [c_v; H_v]                          (B, 1 + L, D), (B, 1 + P, D)
    Y_t, Y_v  what the CrossTransformer makes of them         the same
    w         attention of cls to the tokens, mean of heads   (B, L), (B, P)
    K, theta  layers, share of the tokens that is exchanged

    H_t = FC_t(text encoder);  H_v = FC_v(image encoder)      Model.encode
    L_it = nats of the text as caption of Lin(H_v)            regularise, NIC-Att
    L_ti = bits of the picture given Lin(pooled H_t)          regularise, PixelCNN++
    X' = X + SelfAttention(X)                                 Layer.attend
    in layers mu to eta, of floor(theta n) tokens of smallest w:
        x'_t <- mean H'_v;  x'_v <- mean H'_t                 choose, exchange
    X'' = X' + FFN(X'), one set of weights for text, picture  Layer.feed
    tags = CRF(W_c drop(W_2 [y_word || y_picture]))           Model.scores
    label = softmax(W_c drop(W_2 [Y_t,cls || Y_v,cls]))       Model.scores
    L = alpha L_it + beta L_ti + sigma L_task                 loss

The decoders' roles are those of the public code (RecklessRonan/MuSE): NIC-Att writes from the
picture, PixelCNN++ draws from the text; some summaries of the paper have them swapped.

Where the paper is silent (in brackets the option, its default told first): the mean is added to
exchanged tokens, as the public runs do, or takes their place, as its text says [exchange]. w is
this layer's, without attention's dropout; or the smallest norms go, or tokens at random, which are
drawn in training and told by their places otherwise [selection]. The number is exact, at least
`at_least` and never all; or all go that are strictly below the quantile [count]. Of equal w the
first go. Means are over pieces and cells, neither cls nor padding, and both are taken before either
changes; or, as in the public code, padding is attended to, counted, and averaged with cls: an item
then depends on the padding of its batch [masks]. Nothing is exchanged with what is missing.
Pre-norm has a LayerNorm on H_t and H_v and one at the end; post-norm, the paper's, has none. Words
are read at their first piece, beside the mean cell, since piece i has no relation to cell i; or
beside what they attend to, or cell i modulo P as in public [picture_of_word]. W_c W_2 is linear
there; with `mlp` a ReLU lies between [head]. The CrossTransformer reads H, or Lin(H)
[share_projection]. Pooled text is the mean piece: the pooler of a BERT is trained for something
else. A missing picture is a learned vector a cell, a missing text one learned piece, of whatever
length it is; training shows some items so; what is not shown is neither captioned nor drawn.

L_it is in nats a token, plus the doubly stochastic term; L_ti in bits a dimension; L_task in nats
an item: of its tags, or of its label. The public code divides them by 64, 1024 and 64, its L_ti is
a sum over the batch, its label's loss is times 64. So our alpha is its own for tags, 1/64 of it for
labels; our beta is 64 * 3 ln 2 * batch of its own for tags, 3 ln 2 * batch for labels.

Other fusions, to compare, in the same layers mu to eta: self-attention over both modalities
(concatenation); a second attention, to the other modality (cross_attention). `text` is the plain
tagger: text encoder, dropout, linear, CRF.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, minimum, nn
from torchcrf import CRF

from stages.models.muse import pixelcnn, show_attend_tell
from stages.models.muse.transformer import TransformerLayer
from stages.shared.core.config import Field, config_class
from stages.shared.modeling.layers import gather_rows, masked_mean, scatter_rows
from stages.shared.modeling.modality_dropout import drop_modality
from stages.shared.training.batching import Batch
from stages.shared.training.loop import LossTerms

KINDS = ("tweets", "posts")  # of corpora
ModalityPair = tuple[Tensor, Tensor]  # of the text and of the picture
EPSILON = 1e-9  # 0.29 * 100 is 28.999...96, and 29 tokens are meant


@config_class
class CaptioningConfig:
    alpha: float = Field(ge=0)
    min_count: int = Field(ge=1)
    max_length: int = Field(ge=3)
    decoder: show_attend_tell.ShowAttendTellConfig


@config_class
class DrawingConfig:
    beta: float = Field(ge=0)
    lr_multiplier: float = Field(ge=0)
    max_images_per_batch: int = Field(ge=1)
    decoder: pixelcnn.PixelCNNConfig


@config_class
class ModelConfig:
    d_model: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    d_ff: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    norm: Literal["pre", "post"]
    mu: int
    eta: int
    theta: float = Field(ge=0, lt=1)
    min_exchanged_tokens: int = Field(ge=0)
    exchange: Literal["replace", "residual"]
    token_selection: Literal["cls_attention", "random", "norm"]
    exchange_count: Literal["floor", "quantile"]
    padding_mask: Literal["respected", "ignored"]
    fusion: Literal["exchange", "concatenation", "cross_attention", "text"]
    image_pooling: Literal["mean", "attention", "cell"]
    head: Literal["linear", "mlp"]
    head_dropout: float = Field(ge=0, lt=1)
    share_projection: bool
    sigma: float = Field(ge=0)
    use_captioning: bool
    captioning: CaptioningConfig
    use_image_generation: bool
    image_generation: DrawingConfig
    image_drop_prob: float = Field(ge=0)
    text_drop_prob: float = Field(ge=0)

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
        """Whether the modalities meet in a layer, counted from 1."""
        return self.mu <= layer <= self.eta


@config_class
class InputDims:
    """What the model reads and says, measured on the corpus and its features."""

    task: Literal["entities", "sentiment"]
    labels: int  # tags of a word, or labels of a text
    text_width: int  # of the text encoder
    cells: int  # P
    cell_width: int  # of a patch, or a cell of the image encoder
    words: int  # vocabulary of captions


@dataclass
class MuseEncoderOutput:
    text_states: Tensor  # (B, L, D_t) by the text encoder
    mask: Tensor  # (B, L) there is a piece
    streams: ModalityPair | None  # H_t (B, L, D), H_v (B, P, D); none for the plain tagger


@dataclass
class LayerTrace:
    """What one layer did to the tokens of text (B, L) and picture (B, P)."""

    layer: int  # from 1
    weights: ModalityPair  # w
    exchanged: ModalityPair  # bool


@dataclass
class MusePredictions:
    """Of each item its tags, one a word by Viterbi, or its one label and that one's probability."""

    labels: list[list[int]]
    probability: list[list[float]]  # empty for tags


def select_exchange_tokens(scores: Tensor, mask: Tensor, network: ModelConfig) -> Tensor:
    """The places with the smallest scores, `theta` of those in the mask.  (B, N) twice -> (B, N)"""
    if network.exchange_count == "quantile":  # linear between two scores, as numpy's
        valid = scores.masked_fill(~mask, torch.nan)
        return (scores < valid.nanquantile(network.theta, dim=1, keepdim=True)) & mask
    held = mask.sum(1, keepdim=True)
    number = (network.theta * held.double() + EPSILON).floor()
    number = number.clamp(min=network.min_exchanged_tokens if network.theta else 0)
    number = minimum(number, (held - 1).clamp(min=0))  # something of its own remains
    rank = scores.masked_fill(~mask, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return mask & (rank < number)


def exchange_tokens(
    streams: ModalityPair, masks: ModalityPair, chosen: ModalityPair, network: ModelConfig
) -> ModalityPair:
    """Both directions at once: chosen tokens take the other modality's mean, or have it added.

    streams (B, 1 + L, D) and (B, 1 + P, D), cls first, and their masks; chosen (B, L), (B, P)
    """
    first = 0 if network.padding_mask == "ignored" else 1  # cls
    means = [masked_mean(x[:, first:], m[:, first:]) for x, m in zip(streams, masks, strict=True)]
    changed = []
    for x, places, other in zip(streams, chosen, reversed(means), strict=True):
        where = F.pad(places, (1, 0))[..., None]  # cls stays
        other = other[:, None].to(x.dtype)
        if network.exchange == "residual":
            changed.append(torch.addcmul(x, where.to(x.dtype), other))
        else:
            changed.append(torch.where(where, other, x))
    return tuple(changed)


class CrossTransformer(nn.Module):
    """K layers over text and picture, which meet in layers mu to eta."""

    def __init__(self, network: ModelConfig):
        super().__init__()
        self.network = network
        d, pre = network.d_model, network.norm == "pre"
        across = network.fusion == "cross_attention"
        self.layers = nn.ModuleList(
            TransformerLayer(
                d,
                network.num_heads,
                network.d_ff,
                network.dropout,
                pre,
                across and network.is_fusion_layer(k),
            )
            for k in range(1, network.num_layers + 1)
        )
        self.norm = nn.LayerNorm(d) if pre else nn.Identity()

    def exchange_scores(self, weights: Tensor, x: Tensor, layer: int) -> Tensor:
        """What tokens are chosen by, least first; w as it came, of cls too.  -> (B, N)"""
        if self.network.token_selection == "cls_attention":
            return weights[:, 1:]
        if self.network.token_selection == "norm":
            return x[:, 1:].detach().norm(dim=-1)
        if self.training:
            return torch.rand_like(weights[:, 1:])
        place = torch.arange(1, weights.shape[1], device=x.device)
        return (0.618034 * place + 0.414214 * layer).remainder(1).expand(len(x), -1)

    def apply_exchange(
        self,
        streams: ModalityPair,
        masks: ModalityPair,
        weights: ModalityPair,
        both: Tensor,
        layer: int,
    ):
        """One layer's exchange; both (B,): there are two modalities.  -> (X_t, X_v), places"""
        chosen = tuple(
            select_exchange_tokens(self.exchange_scores(w, x, layer), mask[:, 1:], self.network)
            & both[:, None]
            for x, mask, w in zip(streams, masks, weights, strict=True)
        )
        return exchange_tokens(streams, masks, chosen, self.network), chosen

    def apply_self_attention(
        self, layer: TransformerLayer, streams: ModalityPair, masks: ModalityPair, joint: bool
    ) -> tuple[ModalityPair, ModalityPair]:
        """Self-attention of each modality, or of both as one sequence.  -> X', weights of cls"""
        if not joint:
            attended = [
                layer.self_attention(x, mask) for x, mask in zip(streams, masks, strict=True)
            ]
            return tuple(zip(*attended, strict=True))
        lengths = [x.shape[1] for x in streams]
        x, weights = layer.self_attention(torch.cat(streams, 1), torch.cat(masks, 1))
        return x.split(lengths, 1), weights.split(lengths, 1)

    def forward(
        self, streams: ModalityPair, masks: ModalityPair, both: Tensor
    ) -> tuple[ModalityPair, list[LayerTrace]]:
        """(X_t, X_v), their masks, cls first; both (B,) -> (Y_t, Y_v), what each layer did"""
        if self.network.padding_mask == "ignored":
            masks = tuple(torch.ones_like(mask) for mask in masks)
        fusion, traces = self.network.fusion, []
        for number, layer in enumerate(self.layers, 1):
            fuses = self.network.is_fusion_layer(number)
            chosen = tuple(torch.zeros_like(mask[:, 1:]) for mask in masks)
            joint = fuses and fusion == "concatenation"
            streams, weights = self.apply_self_attention(layer, streams, masks, joint)
            if fuses and fusion == "cross_attention":
                (text, picture), (of_text, of_picture) = streams, masks
                streams = (
                    layer.cross_attention(text, picture, of_picture),
                    layer.cross_attention(picture, text, of_text),
                )
            elif fuses and fusion == "exchange":
                streams, chosen = self.apply_exchange(streams, masks, weights, both, number)
            streams = tuple(map(layer.feed_forward, streams))
            traces.append(LayerTrace(number, tuple(w[:, 1:] for w in weights), chosen))
        return tuple(map(self.norm, streams)), traces


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

    image_encoder: pictures as batches bring them -> cells (B, P, D_v). Batches are those of
    stages/models/muse/dataset.py.
    """

    def __init__(
        self,
        network: ModelConfig,
        shapes: InputDims,
        text_encoder: nn.Module,
        image_encoder: nn.Module,
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
            self._build(network, shapes)

    def _build(self, network: ModelConfig, shapes: InputDims) -> None:
        d, pre = network.d_model, network.norm == "pre"
        fc = nn.Identity() if shapes.text_width == d else nn.Linear(shapes.text_width, d)
        self.project_text = nn.Sequential(fc, nn.LayerNorm(d) if pre else nn.Identity())
        fc = nn.Linear(shapes.cell_width, d)
        self.project_picture = nn.Sequential(fc, nn.LayerNorm(d) if pre else nn.Identity())
        self.no_picture = nn.Parameter(0.02 * torch.randn(shapes.cells, d))
        self.cls = nn.ParameterList(
            nn.init.kaiming_normal_(torch.empty(1, d), mode="fan_out") for _ in range(2)
        )
        self.transformer = CrossTransformer(network)
        projected = (
            network.use_captioning or network.use_image_generation or network.share_projection
        )
        self.share = nn.Linear(d, d) if projected else None  # Lin
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
        """H_t and H_v, with learned vectors for what is missing; of a text no length is left."""
        shown, mask = batch["has_text"][:, None], batch["pieces_mask"]
        read = torch.where(shown[..., None], self.text_encoder(batch), self.no_text)
        mask = torch.where(shown, mask, torch.arange(mask.shape[1], device=mask.device) == 0)
        if self.network.fusion == "text":
            return MuseEncoderOutput(read, mask, None)
        return MuseEncoderOutput(read, mask, (self.project_text(read), self.encode_image(batch)))

    def encode_image(self, batch: Batch) -> Tensor:
        """H_v (B, P, D). Only pictures that are there are encoded: others would reach BatchNorm."""
        shown = batch["has_picture"]
        if not shown.any():
            return self.no_picture.expand(len(shown), -1, -1)
        read = self.image_encoder(batch["picture"][shown])
        found = scatter_rows(self.project_picture(read), shown)
        return torch.where(shown[:, None, None], found, self.no_picture)

    def apply_cross_transformer(
        self, batch: Batch, encoded: MuseEncoderOutput
    ) -> tuple[ModalityPair, list[LayerTrace]]:
        """(Y_t (B, 1 + L, D), Y_v (B, 1 + P, D)), what each layer did."""
        there = torch.ones_like(encoded.streams[1][..., 0], dtype=torch.bool)
        masks = tuple(F.pad(mask, (1, 0), value=True) for mask in (encoded.mask, there))
        streams = encoded.streams
        if self.network.share_projection:
            streams = tuple(map(self.share, streams))
        with_cls = tuple(
            torch.cat([cls.to(h.dtype).expand(len(h), 1, -1), h], 1)
            for cls, h in zip(self.cls, streams, strict=True)
        )
        both = batch["has_text"] & batch["has_picture"] & encoded.mask.any(1)
        return self.transformer(with_cls, masks, both)

    def image_context(self, words: Tensor, cells: Tensor, first: Tensor) -> Tensor:
        """What of the picture goes with each word.  (B, W, D), (B, P, D), (B, W) -> (B, W, D)"""
        if self.network.image_pooling == "cell":
            return gather_rows(cells, first % cells.shape[1])
        if self.network.image_pooling == "mean":
            return cells.mean(1, keepdim=True).expand_as(words)
        scores = self.query_cells(words) @ cells.transpose(1, 2) / cells.shape[-1] ** 0.5
        return scores.softmax(-1) @ cells

    def compute_logits(self, batch: Batch, encoded: MuseEncoderOutput) -> Tensor:
        """Emissions of the CRF (B, W, labels), or logits (B, labels)."""
        tags, first = self.shapes.task == "entities", batch.get("first")
        if self.network.fusion == "text":
            read = encoded.text_states
            return self.head(gather_rows(read, first) if tags else masked_mean(read, encoded.mask))
        (text, picture), _ = self.apply_cross_transformer(batch, encoded)
        if not tags:
            return self.head(torch.cat([text[:, 0], picture[:, 0]], -1))
        words = gather_rows(text[:, 1:], first)
        return self.head(torch.cat([words, self.image_context(words, picture[:, 1:], first)], -1))

    def task_loss(self, batch: Batch, scores: Tensor) -> Tensor:
        """L_task, nats an item: of all its tags, or of its label."""
        if self.shapes.task == "sentiment":
            return F.cross_entropy(scores, batch["label"])
        with torch.autocast(scores.device.type, enabled=False):  # sums of exponents over words
            scores = scores.to(self.crf.transitions.dtype)
            return -self.crf(scores, batch["tags"], batch["word_mask"], reduction="mean")


def text_image_indices(batch: Batch) -> Tensor:
    """The items that show text and picture: they can be captioned and drawn.  -> (M,)"""
    return (batch["has_text"] & batch["has_picture"]).nonzero()[:, 0]


def pool_modalities(model: Model, encoded: MuseEncoderOutput) -> dict[str, ModalityPair]:
    """Mean piece and mean cell (B, D) `before` Lin and, where there is one, `after` it."""
    text, picture = encoded.streams
    before = masked_mean(text, encoded.mask), picture.mean(1)
    if model.share is None:
        return {"before": before}
    return {"before": before, "after": tuple(map(model.share, before))}


def scatter_to_batch(values: Tensor, items: Tensor, batch: Batch) -> Tensor:
    """Values of some items (M,) among all of a batch, NaN elsewhere.  -> (B,)"""
    empty = values.new_full((len(batch["has_text"]),), torch.nan)
    return empty.index_put((items,), values)


def mean_or_zero(values: Tensor, items: Tensor) -> Tensor:
    """Over these items, 0 where there are none: nothing is learned then."""
    return values[items].mean() if len(items) else values.new_zeros(())


def compute_regularizers(
    model: Model, batch: Batch, encoded: MuseEncoderOutput, items: Tensor, drawn: Tensor
) -> dict[str, Tensor]:
    """L_it of some items and L_ti of those that are drawn: name -> (B,), NaN elsewhere.

    caption_nats of a token, doubly_stochastic beside it, drawing_bits of a dimension
    """
    found, none = {}, encoded.text_states.new_zeros(0)
    if model.network.use_captioning:
        nats = stochastic = none
        if len(items):
            cells = model.share(encoded.streams[1][items])
            caption = model.captioner(cells, batch["caption"][items])
            nats, stochastic = caption.nats / caption.tokens, caption.stochastic
        found["caption_nats"] = scatter_to_batch(nats, items, batch)
        found["doubly_stochastic"] = scatter_to_batch(stochastic, items, batch)
    if model.network.use_image_generation:
        text, _ = pool_modalities(model, encoded)["after"]
        bits = (
            model.drawer.bits_per_dim(batch["drawing"][drawn], text[drawn]) if len(drawn) else none
        )
        found["drawing_bits"] = scatter_to_batch(bits, drawn, batch)
    return found


def compute_loss(model: Model, batch: Batch) -> LossTerms:
    """L_task, L_it and L_ti, weighted. Of a batch's pairs the first `drawing.items` are drawn."""
    network = model.network
    if model.training and network.fusion != "text":  # which has nothing else to read
        batch = drop_modality(batch, network.image_drop_prob, network.text_drop_prob, "has_text")
    encoded, items = model.encode(batch), text_image_indices(batch)
    drawn = items[: network.image_generation.max_images_per_batch]
    terms = {"task": network.sigma * model.task_loss(batch, model.compute_logits(batch, encoded))}
    found = compute_regularizers(model, batch, encoded, items, drawn)
    if network.use_captioning:
        nats = found["caption_nats"] + found["doubly_stochastic"]
        terms["captioning"] = network.captioning.alpha * mean_or_zero(nats, items)
    if network.use_image_generation:
        terms["drawing"] = network.image_generation.beta * mean_or_zero(
            found["drawing_bits"], drawn
        )
    return terms


@torch.no_grad()
def predict(model: Model, batch: Batch) -> MusePredictions:
    """The most probable tags of a text, taken together, or its most probable label."""
    scores = model.compute_logits(batch, model.encode(batch))
    if model.shapes.task == "sentiment":
        probability, label = scores.float().softmax(-1).max(-1)
        return MusePredictions(label[:, None].tolist(), probability[:, None].tolist())
    tags = model.crf.decode(scores.to(model.crf.transitions.dtype), batch["word_mask"])
    return MusePredictions(tags, [[] for _ in tags])


@torch.no_grad()
def evaluate_regularizers(model: Model, batch: Batch) -> dict[str, Tensor]:
    """What the decoders say of each item with text and picture: see `regularise`."""
    items = text_image_indices(batch)
    return compute_regularizers(model, batch, model.encode(batch), items, items)


@torch.no_grad()
def diagnostics(model: Model, batch: Batch) -> dict[str, Tensor]:
    """What to watch while training: name -> (B,), NaN where an item lacks text or picture.

    Shares of pieces and of cells that a layer of mu to eta exchanges; `likeness`, the cosine of
    Lin(pooled H_t) and Lin(pooled H_v); what the decoders say of the pairs that the loss reads.
    """
    network, items, found = model.network, text_image_indices(batch), {}
    if network.fusion == "text":
        return {}
    encoded = model.encode(batch)
    if network.fusion == "exchange":
        _, traces = model.apply_cross_transformer(batch, encoded)
        met = [trace.exchanged for trace in traces if network.is_fusion_layer(trace.layer)]
        sizes = {"text": encoded.mask.sum(1).clamp(min=1), "picture": encoded.streams[1].shape[1]}
        for place, (name, size) in enumerate(sizes.items()):
            shares = torch.stack([places[place].sum(1) for places in met]) / size
            found[f"exchanged_{name}"] = scatter_to_batch(shares.mean(0)[items], items, batch)
    if model.share is not None:
        likeness = F.cosine_similarity(*pool_modalities(model, encoded)["after"])
        found["likeness"] = scatter_to_batch(likeness[items], items, batch)
    return found | compute_regularizers(
        model, batch, encoded, items, items[: network.image_generation.max_images_per_batch]
    )


@torch.no_grad()
def attention_maps(model: Model, batch: Batch) -> list[LayerTrace]:
    """What each layer of the CrossTransformer looked at and exchanged; the tagger has none."""
    return (
        []
        if model.network.fusion == "text"
        else model.apply_cross_transformer(batch, model.encode(batch))[1]
    )


@torch.no_grad()
def pooled_embeddings(model: Model, batch: Batch) -> dict[str, ModalityPair]:
    """Pooled text (B, D) and picture (B, D) `before` and, where there is a Lin, `after` it."""
    return {} if model.network.fusion == "text" else pool_modalities(model, model.encode(batch))


@torch.no_grad()
def generate_captions(model: Model, batch: Batch) -> list[list[int]]:
    """What NIC-Att writes of each picture, the most probable word each time; of none nothing."""
    shown = batch["has_picture"].nonzero()[:, 0]
    found: list[list[int]] = [[] for _ in batch["has_picture"]]
    if len(shown):
        cells = model.share(model.encode_image(batch)[shown])
        written = model.captioner.greedy_decode(cells, model.network.captioning.max_length)
        for item, ids in zip(shown.tolist(), written, strict=True):
            found[item] = ids
    return found


@torch.no_grad()
def generate_images(model: Model, batch: Batch, generator: torch.Generator) -> Tensor:
    """What PixelCNN++ draws of each text, in [-1, 1].  -> (B, 3, S, S)"""
    text, _ = pool_modalities(model, model.encode(batch))["after"]
    return model.drawer.sample(text, generator)
