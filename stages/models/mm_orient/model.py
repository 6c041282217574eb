"""MM-ORIENT: cross-modal relations and hierarchical interactive attention (arXiv:2508.16300).

An item is a meme: a text and an image, with one label for each of T tasks. B items, L subwords of a
text, P regions of an image, D the width of the aligned encoder:

    q_t, q_v  subwords (text encoder), regions (image encoder)    (B, L, D_t), (B, P, D_v)
    E_t, E_i  text and image features of the aligned encoder      (B, D), unit length
    v         level 1: attention over the q of an item            (B, D_t), (B, D_v)
    z         bias, level 2: attention over the v of a batch      (D_t,), (D_v,)
    A_mn      graph: nodes E_m, edges by the similarity of E_n    mn: tt, ii, ti, it
    X_mn      relation features                                   (B, output_dim)

    h_i = GELU(w q_i + b);  a = softmax(h);  v = sum_i a_i q_i    AttentionScorer, masked_softmax
    z = sum_b softmax_b(GELU(w' v_b + b')) v_b                    Hima, level 2
    H = [v || z]                                                  Hima
    A_mn,ij = 1 where cos(E_n,i, E_n,j) > threshold_mn            CrossModalRelations.build_edges
    X_mn = L2norm([E_m,i || mean of E_m over N(i) and i] W + b)   CrossModalRelations.layers
    CMRL = [X_tt || X_ii || X_ti || X_it]                         CrossModalRelations
    y_task = softmax(W_task MLP([H_t || H_v || CMRL || F]))       Model; F: task features
    L = sum over tasks of cross-entropy                           compute_loss

The public code (devraj-raghuvanshi/MM-ORIENT) implements level 1 only. Each of its four graph
layers is one linear map of the node and the neighborhood mean, like ours. Three of its faults are
not reproduced: it attends to padding, its predictions depend on batch composition, and one label
array serves all five tasks.

Where the paper is silent, each choice is a config key (in brackets, the shipped value first):

- [attention] context_vector: u = GELU(W q + b) is scored by a learned context vector, as in the
  paper's figure. linear: one linear map, as in the code. Level 2 has its own weights.
- [eval_bias] A bias z computed over the batch would make predictions depend on batch composition.
  Training uses the batch's z and keeps a running mean, which evaluation uses (stored). Evaluation
  can also use no bias (zero) or the batch's (batch).
- [eval_graph] The same holds for the graphs. Training builds them over the batch. Evaluation links
  an item to a bank of training items (bank) or to its batch (batch). An item that is itself in the
  bank is its own neighbor once more than in training.
- [density] Thresholds are set so that this fraction of the bank's pairs is linked. null: the
  thresholds are given in [thresholds].
- [scale] X_mn has length 1, so its entries are small and the MLP learns slowly from them. root
  multiplies X_mn by the square root of its width; unit does not.
- [use_layer_norm] Subwords and regions pass a LayerNorm before attention, or not.
- [class_weight] All labels count equally, or inversely to their frequency (balanced).
- [task_weighting] All tasks count equally, or by learned variances (arXiv:1705.07115). A task
  without labels in the batch contributes no loss.

Task features are standardized with the statistics of the training split.

A missing modality is masked in attention, has no edges in the graphs built on it, is a zero node
and is excluded from z. Modality dropout shows such items in training.

Ablations: without level 1, v is the mean of q; without level 2 there is no z. Baselines [inputs]
replace the input of the MLP by the mean subword, the mean region, [E_t || E_i], or all of these and
F (concatenation). [feature_noise] adds noise to all features; at evaluation an item always gets the
same noise.
"""

from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.mm_orient import relation_graph
from stages.models.mm_orient.dataset import UNLABELED
from stages.models.mm_orient.feature_noise import add_noise, create_generators
from stages.shared.backbones.efficientnet import EfficientNetLite0
from stages.shared.core.config import Field, config_class
from stages.shared.modeling.layers import Standardizer, map_pair
from stages.shared.modeling.modality_dropout import drop_modality
from stages.shared.training.batching import Batch
from stages.shared.training.loop import LossTerms

KINDS = ("memes",)  # supported kinds of corpora
GRAPHS = ("tt", "ii", "ti", "it")  # modality of the nodes, modality that defines the edges
MODALITIES = ("t", "i")
ModalityPair = tuple[Tensor, Tensor]  # text, image


@config_class
class RelationConfig:
    """The section `models.mm_orient.network.relations`: the graphs of CMRL."""

    output_dim: int = Field(ge=1, description="width of X_mn, one graph's relation features")
    scale: Literal["root", "unit"] = Field(description="length of X_mn: sqrt(width) or 1")
    eval_graph: Literal["bank", "batch"] = Field(description="neighbors at evaluation")
    memory_bank_size: int = Field(ge=1, description="training items stored in the model")
    density: float | None = Field(
        ge=0, le=1, description="fraction of pairs linked; null: use thresholds"
    )
    thresholds: dict[str, Annotated[float, Field(ge=-1, le=1)]] = Field(
        description="minimum cosine of an edge, by graph"
    )

    def __post_init__(self) -> None:
        if set(self.thresholds) != set(GRAPHS):
            raise ValueError(f"thresholds must have the keys {', '.join(GRAPHS)}")

    def scale_factor(self, width: int) -> float:
        """The factor applied to a vector of length 1."""
        return width**0.5 if self.scale == "root" else 1.0


@config_class
class NoiseConfig:
    """Gaussian noise added to every feature, in multiples of its root mean square."""

    train_std: float = Field(ge=0, description="training; multiple of the feature's RMS")
    eval_std: float = Field(ge=0, description="evaluation; multiple of the feature's RMS")


@config_class
class ModelConfig:
    """The section `models.mm_orient.network`."""

    inputs: Literal["full", "text_only", "regions_only", "clip", "concatenation"] = Field(
        description="the full model, or a baseline's inputs"
    )
    use_layer_norm: bool = Field(description="normalize subwords and regions before attention")
    attention: Literal["linear", "context_vector"] = Field(description="attention scorer")
    attention_dim: int = Field(ge=1, description="width of u, context_vector attention")
    hima_levels: Literal["both", "first", "second", "none"] = Field(
        description="levels of attention in HIMA"
    )
    eval_bias: Literal["stored", "zero", "batch"] = Field(description="z at evaluation")
    bias_momentum: float = Field(gt=0, le=1, description="weight of a batch in the running mean")
    use_cmrl: bool = Field(description="use the relation features X_mn")
    relations: RelationConfig
    use_task_features: bool = Field(description="use the task features F")
    hidden_layer_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        description="widths of the MLP's hidden layers"
    )
    dropout: float = Field(ge=0, lt=1, description="after each hidden layer")
    class_weight: Literal["none", "balanced"] = Field(description="balanced: upweight rare labels")
    task_weighting: Literal["equal", "uncertainty"] = Field(description="weights of task losses")
    feature_noise: NoiseConfig
    image_drop_prob: float = Field(ge=0, description="fraction of training items without image")
    text_drop_prob: float = Field(ge=0, description="fraction of training items without text")

    def __post_init__(self) -> None:
        if not self.hidden_layer_sizes:
            raise ValueError("hidden_layer_sizes is empty: give one size or more")
        if self.image_drop_prob + self.text_drop_prob > 1:
            raise ValueError("image_drop_prob + text_drop_prob is above 1: give less")

    @property
    def reads_regions(self) -> bool:
        return self.inputs in ("full", "regions_only", "concatenation")

    @property
    def has_first_level(self) -> bool:
        return self.hima_levels in ("both", "first")

    @property
    def has_second_level(self) -> bool:
        return self.hima_levels in ("both", "second")


@config_class
class InputDims:
    """Sizes of inputs and outputs, determined by the corpus and its features."""

    tasks: dict[str, int]  # task -> number of labels, in order
    text_width: int  # D_t
    region_width: int  # D_v
    pooled_width: int  # D
    task_features: int  # width of F; 0: no task features


@dataclass
class MmOrientInputs:
    """Model inputs of a batch: missing modalities are zero, noise is added."""

    subwords: Tensor  # (B, L, D_t)
    subword_mask: Tensor  # (B, L)
    regions: Tensor  # (B, P, D_v)
    region_mask: Tensor  # (B, P)
    pooled: ModalityPair  # E_t, E_i (B, D)
    available: ModalityPair  # (B,) bool: has a text, has an image
    task_features: Tensor  # (B, F)


@dataclass
class HimaOutput:
    """Output and attention weights of HIMA for one modality."""

    vector: Tensor  # H: (B, D), or (B, 2 D) with level 2
    weights: Tensor  # (B, N) a; uniform without level 1
    mask: Tensor  # (B, N) valid positions
    batch_weights: Tensor | None  # (B,) weights of level 2


@dataclass
class RelationOutput:
    """Relation features and neighbor counts by graph."""

    vector: Tensor  # (B, 4 * output_dim)
    neighbor_counts: Tensor  # (B, 4)
    candidate_counts: Tensor  # (B, 4) possible neighbors
    has_edge_features: Tensor  # (B, 4) bool: the modality that defines the edges is present


@dataclass
class MmOrientFeatures:
    """Input of the MLP and its parts; a part that `inputs` excludes is None."""

    vector: Tensor  # (B, width)
    text: HimaOutput | None
    image: HimaOutput | None
    relations: RelationOutput | None


@dataclass
class MmOrientPredictions:
    """Predicted label indices and label probabilities by task."""

    labels: dict[str, Tensor]  # (B,)
    probabilities: dict[str, Tensor]  # (B, num_labels)


@dataclass
class HimaAttentionMaps:
    """Attention weights of HIMA; None where the model has no such attention."""

    subwords: Tensor | None  # (B, L)
    regions: Tensor | None  # (B, P)
    batch_text: Tensor | None  # (B,)
    batch_image: Tensor | None  # (B,)


# ------------------------------------------------------------------------------------------- HIMA
def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """a = softmax of scores (..., N) over valid positions; 0 elsewhere, and if none is valid."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # bf16 is too coarse
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask


class AttentionScorer(nn.Module):
    """Scores h of both levels of attention.  (..., D) -> (...)"""

    def __init__(self, width: int, network: ModelConfig):
        super().__init__()
        context = network.attention == "context_vector"
        self.score = nn.Linear(width, network.attention_dim if context else 1)  # w, b
        self.context = nn.Linear(network.attention_dim, 1, bias=False) if context else None

    def forward(self, q: Tensor) -> Tensor:
        u = F.gelu(self.score(q))
        return (u if self.context is None else self.context(u)).squeeze(-1)


class Hima(nn.Module):
    """Hierarchical attention over one modality."""

    bias: Tensor  # running mean of z

    def __init__(self, width: int, network: ModelConfig):
        super().__init__()
        self.network = network
        first, second = network.has_first_level, network.has_second_level
        self.norm = nn.LayerNorm(width) if network.use_layer_norm else nn.Identity()
        self.first = AttentionScorer(width, network) if first else None
        self.second = AttentionScorer(width, network) if second else None
        self.width = width * (2 if second else 1)
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, q: Tensor, mask: Tensor, available: Tensor) -> HimaOutput:
        """q (B, N, D), mask (B, N) of valid positions, available (B,) items with this modality."""
        q = self.norm(q)
        scores = torch.zeros_like(q[..., 0]) if self.first is None else self.first(q)
        weights = masked_softmax(scores, mask)
        v = (weights[:, None].to(q.dtype) @ q).squeeze(1)  # v = sum a q
        if self.second is None:
            return HimaOutput(v, weights, mask, None)
        batch_weights = masked_softmax(self.second(v), available)
        batch_z = (batch_weights[None].to(v.dtype) @ v).squeeze(0)
        z = self.select_bias(batch_z, available)
        h = torch.cat([v, z.to(v.dtype).expand_as(v)], -1)  # H = [v || z]
        return HimaOutput(h, weights, mask, batch_weights)

    def select_bias(self, z: Tensor, available: Tensor) -> Tensor:
        """The bias to use, given the batch's z. In training, updates the running mean."""
        if self.training:
            if available.any():
                momentum = self.network.bias_momentum if self.bias.any() else 1.0  # first batch
                self.bias.lerp_(z.detach().to(self.bias), momentum)
            return z
        if self.network.eval_bias == "zero":
            return torch.zeros_like(z)
        return z if self.network.eval_bias == "batch" else self.bias


# ------------------------------------------------------------------------------------------- CMRL
class CrossModalRelations(nn.Module):
    """Four graphs with one GraphSAGE layer each, and the bank of items used at evaluation."""

    thresholds: Tensor  # of the similarity, by graph
    bank_t: Tensor
    bank_i: Tensor
    bank_has_t: Tensor
    bank_has_i: Tensor

    def __init__(self, width: int, network: ModelConfig):
        super().__init__()
        from torch_geometric.nn.conv import SAGEConv  # the import takes two seconds

        self.config = config = network.relations
        self.layers = nn.ModuleDict(
            {name: SAGEConv(width, config.output_dim, "mean", normalize=True) for name in GRAPHS}
        )
        self.width = len(GRAPHS) * config.output_dim
        thresholds = [config.thresholds[name] for name in GRAPHS]
        self.register_buffer("thresholds", torch.tensor(thresholds, dtype=torch.double))
        size = config.memory_bank_size
        for m in MODALITIES:
            self.register_buffer(f"bank_{m}", torch.zeros(size, width))
            self.register_buffer(f"bank_has_{m}", torch.zeros(size, dtype=torch.bool))

    def bank(self) -> tuple[ModalityPair, ModalityPair]:
        """E_t, E_i (N, D) and which rows are available (N,). Unused rows are not available."""
        return (self.bank_t, self.bank_i), (self.bank_has_t, self.bank_has_i)

    @torch.no_grad()
    def fit_bank(self, pooled: ModalityPair, available: ModalityPair) -> None:
        """Fill the bank with evenly spaced training items; set the thresholds by the density."""
        num_items = len(available[0])
        size = min(self.config.memory_bank_size, num_items)
        indices = torch.arange(size, device=available[0].device) * num_items // max(size, 1)
        for bank, in_bank, x, has in zip(*self.bank(), pooled, available, strict=True):
            bank.zero_()[:size] = (x[indices] * has[indices][:, None]).to(bank)
            in_bank.zero_()[:size] = has[indices]
        if self.config.density is not None:
            thresholds = {
                m: relation_graph.find_threshold(l2_normalize(x), has, self.config.density)
                for m, x, has in zip(MODALITIES, *self.bank(), strict=True)
            }
            self.thresholds.copy_(torch.tensor([thresholds[name[1]] for name in GRAPHS]))

    def build_edges(self, pooled: ModalityPair, available: ModalityPair, graph: str) -> Tensor:
        """A_mn: edges from each item of a batch to its neighbors in the batch or bank -> (2, E)"""
        n, threshold = MODALITIES.index(graph[1]), self.thresholds[GRAPHS.index(graph)].item()
        x = l2_normalize(pooled[n])
        if self.within_batch:
            return relation_graph.build_edges_within(x, available[n], threshold)
        bank, in_bank = self.bank()
        return relation_graph.build_edges_between(
            x, available[n], l2_normalize(bank[n]), in_bank[n], threshold
        )

    @property
    def within_batch(self) -> bool:
        """Whether neighbors are searched in the batch rather than in the bank."""
        return self.training or self.config.eval_graph == "batch"

    def forward(self, pooled: ModalityPair, available: ModalityPair) -> RelationOutput:
        with torch.autocast(available[0].device.type, enabled=False):
            pooled = map_pair(lambda x: x.to(self.bank_t.dtype), pooled)
            by_graph = [self.relation_features(pooled, available, graph) for graph in GRAPHS]
        vectors, neighbor_counts = zip(*by_graph, strict=True)
        candidates = available if self.within_batch else self.bank()[1]
        modalities = [MODALITIES.index(n) for _, n in GRAPHS]
        has_edge_features = torch.stack([available[n] for n in modalities], 1)
        candidate_counts = torch.stack([candidates[n].sum() for n in modalities])
        # In a batch an item does not count as its own neighbor.
        candidate_counts = candidate_counts - int(self.within_batch) * has_edge_features.long()
        return RelationOutput(
            torch.cat(vectors, -1),
            torch.stack(neighbor_counts, 1),
            candidate_counts,
            has_edge_features,
        )

    def relation_features(
        self, pooled: ModalityPair, available: ModalityPair, graph: str
    ) -> tuple[Tensor, Tensor]:
        """X_mn (B, output_dim) and the number of neighbors of each item (B,)."""
        m = MODALITIES.index(graph[0])
        edges, x = self.build_edges(pooled, available, graph), pooled[m]
        neighbor_counts = relation_graph.count_neighbors(edges, len(x))
        items = torch.arange(len(x), device=x.device)
        sources = x if self.within_batch else torch.cat([self.bank()[0][m], x])
        offset = len(sources) - len(x)  # first row of the batch in sources
        edges = torch.cat([edges, torch.stack([items, items + offset])], 1)  # self-loops
        adjacency = relation_graph.build_adjacency(edges, (len(x), len(sources)), x.dtype)
        vector = self.layers[graph]((sources, x), adjacency)
        return self.config.scale_factor(self.config.output_dim) * vector, neighbor_counts


def l2_normalize(x: Tensor) -> Tensor:
    """Rows scaled to length 1, in double precision; zero rows stay zero."""
    return F.normalize(x.double(), dim=-1)


# ------------------------------------------------------------------------------------------ model
class Model(nn.Module):
    """MM-ORIENT. A batch is a dict with the keys

    tokens (B, L, D_t), token_mask (B, L) bool
    regions (B, P, D_v), or with an image encoder its input (B, C, H, W)
    text_clip, picture_clip (B, D)    unit length, zero where missing
    task_features (B, F)
    has_text, has_picture (B,) bool
    labels (B, T)    label indices in the order of the tasks, UNLABELED where there is none

    image_encoder: trained with the model; None if the regions are features of a frozen encoder
    """

    label_weights: Tensor  # (T, largest number of labels)

    def __init__(
        self,
        network: ModelConfig,
        shapes: InputDims,
        image_encoder: EfficientNetLite0 | None = None,
    ):
        super().__init__()
        self.network, self.shapes = network, shapes
        full, width = network.inputs == "full", 0
        hima_config = network if full else replace(network, hima_levels="none")  # means
        if network.inputs in ("full", "text_only", "concatenation"):
            self.read_pieces = Hima(shapes.text_width, hima_config)
            width += self.read_pieces.width
        if network.reads_regions:
            self.read_regions = Hima(shapes.region_width, hima_config)
            width += self.read_regions.width
        if full and network.use_cmrl:
            self.relations = CrossModalRelations(shapes.pooled_width, network)
            width += self.relations.width
        if self.uses_pooled:
            width += 2 * shapes.pooled_width
        self.standardise = Standardizer(shapes.task_features)
        if self.uses_task_features:
            width += shapes.task_features
        sizes = [width, *network.hidden_layer_sizes]
        layers = [
            [nn.Linear(size_in, size_out), nn.ReLU(), nn.Dropout(network.dropout)]
            for size_in, size_out in pairwise(sizes)
        ]
        self.learner = nn.Sequential(*chain(*layers))
        self.heads = nn.ModuleList(nn.Linear(sizes[-1], n) for n in shapes.tasks.values())
        max_labels = max(shapes.tasks.values())
        self.register_buffer("label_weights", torch.ones(len(shapes.tasks), max_labels))
        if network.task_weighting == "uncertainty":
            self.log_variance = nn.Parameter(torch.zeros(len(shapes.tasks)))
        self.image_encoder = image_encoder

    @property
    def uses_pooled(self) -> bool:
        return self.network.inputs in ("clip", "concatenation")

    @property
    def uses_task_features(self) -> bool:
        return self.network.use_task_features and self.network.inputs in ("full", "concatenation")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits by task, each (B, num_labels)."""
        hidden, tasks = self.learner(self.compute_features(batch).vector), self.shapes.tasks
        return {task: head(hidden) for task, head in zip(tasks, self.heads, strict=True)}

    def prepare_inputs(self, batch: Batch) -> MmOrientInputs:
        """Zero the missing modalities of a batch, standardize task features and add noise."""
        available = batch["has_text"], batch["has_picture"]
        pooled = batch["text_clip"], batch["picture_clip"]
        subword_mask = batch["token_mask"] & available[0][:, None]
        regions = batch["regions"]
        if self.image_encoder is not None:
            regions = self.image_encoder(regions)  # (B, P, D_v)
        region_mask = available[1][:, None].expand(regions.shape[:2])
        inputs = MmOrientInputs(
            subwords=batch["tokens"] * subword_mask[..., None],
            subword_mask=subword_mask,
            regions=regions * region_mask[..., None],
            region_mask=region_mask,
            pooled=tuple(e * has[:, None] for e, has in zip(pooled, available, strict=True)),
            available=available,
            task_features=self.standardise(batch["task_features"]) * available[0][:, None],
        )
        noise = self.network.feature_noise
        sigma = noise.train_std if self.training else noise.eval_std
        return self.add_input_noise(inputs, sigma) if sigma else inputs

    def add_input_noise(self, x: MmOrientInputs, sigma: float) -> MmOrientInputs:
        """Add noise to all features; at evaluation the noise depends on the item alone."""
        generators = None if self.training else create_generators(torch.cat(x.pooled, -1))
        return replace(
            x,
            subwords=add_noise(x.subwords, x.subword_mask, sigma, generators),
            regions=add_noise(x.regions, x.region_mask, sigma, generators),
            pooled=tuple(
                add_noise(e, has, sigma, generators)
                for e, has in zip(x.pooled, x.available, strict=True)
            ),
            task_features=add_noise(x.task_features, x.available[0], sigma, generators),
        )

    def compute_features(self, batch: Batch) -> MmOrientFeatures:
        """The input of the MLP: [H_t || H_v || CMRL || F], or that of a baseline."""
        x, inputs = self.prepare_inputs(batch), self.network.inputs
        text = image = relations = None
        parts = []
        if inputs in ("full", "text_only", "concatenation"):
            text = self.read_pieces(x.subwords, x.subword_mask, x.available[0])
            parts.append(text.vector)
        if self.network.reads_regions:
            image = self.read_regions(x.regions, x.region_mask, x.available[1])
            parts.append(image.vector)
        if inputs == "full" and self.network.use_cmrl:
            relations = self.relations(x.pooled, x.available)
            parts.append(relations.vector)
        if self.uses_pooled:
            parts += [self.network.relations.scale_factor(e.shape[1]) * e for e in x.pooled]
        if self.uses_task_features:
            parts.append(x.task_features)
        return MmOrientFeatures(torch.cat(parts, -1), text, image, relations)


@torch.no_grad()
def fit_statistics(model: Model, items: Batch) -> None:
    """Set all buffers that depend on the training split; call it once before training.

    These are the statistics of the task features, the bank and its thresholds, and the label
    weights. items: all training items as one batch; tokens and regions are not needed.
    """
    available = items["has_text"], items["has_picture"]
    if model.shapes.task_features:
        model.standardise.fit_normalization([items["task_features"][available[0]]])
    if model.network.inputs == "full" and model.network.use_cmrl:
        model.relations.fit_bank((items["text_clip"], items["picture_clip"]), available)
    if model.network.class_weight == "balanced":
        for weights, labels, count in zip(
            model.label_weights, items["labels"].T, model.shapes.tasks.values(), strict=True
        ):
            frequency = labels[labels != UNLABELED].bincount(minlength=count)
            balanced = frequency.sum() / (count * frequency.clamp(min=1))
            weights[:count] = torch.where(frequency > 0, balanced, 1.0)


def task_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy in nats over labeled items; 0 if there are none."""
    if not (labels != UNLABELED).any():
        return 0 * logits.sum()
    return F.cross_entropy(logits.to(weights.dtype), labels, weights, ignore_index=UNLABELED)


def compute_loss(model: Model, batch: Batch) -> LossTerms:
    """The loss L of each task.

    With [task_weighting] uncertainty: exp(-log s^2) L + log s^2 / 2, s^2 a learned variance.
    """
    network = model.network
    if model.training:
        batch = drop_modality(batch, network.image_drop_prob, network.text_drop_prob, "has_text")
    terms = {}
    for index, (task, logits) in enumerate(model(batch).items()):
        labels, weights = batch["labels"][:, index], model.label_weights[index]
        term = task_loss(logits, labels, weights[: logits.shape[1]])
        if network.task_weighting == "uncertainty" and (labels != UNLABELED).any():
            log_variance = model.log_variance[index]
            term = (-log_variance).exp() * term + log_variance / 2
        terms[task] = term
    return terms


@torch.no_grad()
def predict(model: Model, batch: Batch) -> MmOrientPredictions:
    """The most probable label of each task and the probabilities of all labels."""
    probabilities = {task: logits.float().softmax(-1) for task, logits in model(batch).items()}
    labels = {task: p.argmax(-1) for task, p in probabilities.items()}
    return MmOrientPredictions(labels, probabilities)


def normalized_entropy(weights: Tensor, mask: Tensor) -> Tensor:
    """Entropy of attention weights, divided by that of uniform weights.  (B, N), (B, N) -> (B,)

    1: uniform; 0: all weight on one position; NaN with fewer than two valid positions.
    """
    count = mask.sum(1)
    entropy = -torch.xlogy(weights, weights).sum(1)
    return torch.where(count > 1, entropy / count.clamp(min=2).log(), torch.nan)


@torch.no_grad()
def diagnostics(model: Model, batch: Batch) -> dict[str, Tensor]:
    """Metrics to monitor in training: name -> (B,), NaN where they do not apply to an item.

    density_GRAPH: neighbors as a fraction of possible neighbors; isolated_GRAPH: 1 without
    neighbors, else 0; evenness_words, evenness_regions: normalized entropy of level-1 attention.
    """
    features, metrics = model.compute_features(batch), {}
    if relations := features.relations:
        has_candidates = relations.has_edge_features & (relations.candidate_counts > 0)
        density = torch.where(
            has_candidates,
            relations.neighbor_counts / relations.candidate_counts.clamp(min=1),
            torch.nan,
        )
        isolated = torch.where(
            relations.has_edge_features, (relations.neighbor_counts == 0).float(), torch.nan
        )
        for index, graph in enumerate(GRAPHS):
            metrics[f"density_{graph}"] = density[:, index]
            metrics[f"isolated_{graph}"] = isolated[:, index]
    has_weights = model.network.inputs == "full" and model.network.has_first_level
    for name, hima in (("words", features.text), ("regions", features.image)):
        if hima and has_weights:
            metrics[f"evenness_{name}"] = normalized_entropy(hima.weights, hima.mask)
    return metrics


@torch.no_grad()
def attention_maps(model: Model, batch: Batch) -> HimaAttentionMaps:
    """Attention weights of both levels; uniform weights where a level is a mean."""
    features = model.compute_features(batch)
    text, image = (
        (None, None) if hima is None else (hima.weights, hima.batch_weights)
        for hima in (features.text, features.image)
    )
    return HimaAttentionMaps(text[0], image[0], text[1], image[1])
