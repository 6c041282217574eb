"""MM-ORIENT: cross-modal relations and hierarchical interactive attention (arXiv:2508.16300).

An item is a meme, a text and a picture, with a label for each of T tasks. B items, L pieces of a
text, P regions of a picture, D the width of the aligned encoder:

    q_t, q_v  pieces of the text encoder, regions of the picture  (B, L, D_t), (B, P, D_v)
    E_t, E_i  what the aligned encoder says of text and picture   (B, D), unit length
    v         what the attention of level 1 makes of q            (B, D_t), (B, D_v)
    z         bias, what that of level 2 makes of a batch of v    (D_t,), (D_v,)
    A_mn      graph of nodes E_m, its edges told by E_n           tt, ii in-modal, ti, it across
    X_mn      relation features                                   (B, width)

    h_i = GELU(w q_i + b);  a = softmax(h);  v = sum_i a_i q_i    WLA, RBA: Attention, attend
    z = sum_b softmax_b(GELU(w' v_b + b')) v_b                    Hima, level 2
    H = [v || z]                                                  Hima
    A_mn,ij = 1 where cos(E_n,i, E_n,j) > threshold_mn            Relations.edges
    X_mn = L2norm([E_m,i || mean of E_m over N(i) and i] W + b)   Relations.layers, GraphSAGE
    CMRL = [X_tt || X_ii || X_ti || X_it]                         Relations
    y_task = softmax(W_task MLP([H_t || H_v || CMRL || F]))       Model; F: task features
    L = sum over tasks of cross-entropy                           loss

The public code (devraj-raghuvanshi/MM-ORIENT) has level 1 alone; its four layers are one linear
map of node and mean, as are ours. Faults of it that are not followed: padding is attended to,
what is said of an item depends on its batch, one array of labels serves five tasks.

Where the paper is silent (in brackets the option, its default told first): the attention compares a
vector u = GELU(W q + b) with a learned context, as its figure draws it, or is one linear map, as in
the code [attention]. Level 2 has weights of its own. Its bias would make a prediction depend
on the batch: training uses the batch's and keeps a running mean, which evaluation uses; or none; or
the batch's [bias]. So would the graphs: in training they are over the batch, in evaluation an
item's neighbours are those of a bank of training items; or of its batch [graph]. (An item of the
bank is there its own neighbour, once more than in training.) Thresholds are those at which a share
of the bank's pairs is linked, or given for each graph [density]. Relation features have length 1,
numbers so small that the learner takes long to notice them: times the root of their width, or not
[scale]. Pieces and regions pass a LayerNorm first, or none [layer_norm]; task features are
standardised by the statistics of training. Labels of a task count alike, or by how rare they are
[class_weights]; tasks alike, or by learned variances (arXiv:1705.07115) [task_weights]; nothing is
learned from a task that nobody judged.

What is missing is attended to by none, has no edge that its modality would tell, is zero as a node
and takes no part in the bias; training shows some items so.

To compare: without level 1 the mean stands for v, without level 2 there is no z; [inputs] that the
learner reads instead are the mean piece, the mean region, [E_t || E_i], or all of these and F
(concatenation). Noise may be added to all features; in evaluation an item always gets the same.
"""

from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.conv import SAGEConv

from stages.models.mm_orient import relation_graph
from stages.models.mm_orient.dataset import UNLABELED
from stages.models.mm_orient.feature_noise import add_noise, create_generators
from stages.shared.core.config import config_class
from stages.shared.modeling.layers import Standardizer
from stages.shared.modeling.modality_dropout import drop_modality
from stages.shared.runtime.stage import InputError
from stages.shared.training.loop import Batch, LossTerms

KINDS = ("memes",)  # of corpora
GRAPHS = ("tt", "ii", "ti", "it")  # modality of the nodes, modality that tells the edges
MODALITIES = ("t", "i")
ModalityPair = tuple[Tensor, Tensor]  # of the text and of the picture


@config_class
class RelationConfig:
    """Numbers of CMRL."""

    output_dim: int
    scale: Literal["root", "unit"]
    eval_graph: Literal["bank", "batch"]
    memory_bank_size: int
    density: float | None
    thresholds: dict[str, float]

    def scale_factor(self, width: int) -> float:
        """What numbers of a vector of length 1 are multiplied by."""
        return width**0.5 if self.scale == "root" else 1.0


@config_class
class NoiseConfig:
    train_std: float
    eval_std: float


@config_class
class ModelConfig:
    inputs: Literal["full", "text_only", "regions_only", "clip", "concatenation"]
    use_layer_norm: bool
    attention: Literal["linear", "context_vector"]
    attention_dim: int
    hima_levels: Literal["both", "first", "second", "none"]
    eval_bias: Literal["stored", "zero", "batch"]
    bias_momentum: float
    use_cmrl: bool
    relations: RelationConfig
    use_task_features: bool
    hidden_layer_sizes: list[int]
    dropout: float
    class_weight: Literal["none", "balanced"]
    task_weighting: Literal["equal", "uncertainty"]
    feature_noise: NoiseConfig
    image_drop_prob: float
    text_drop_prob: float

    def __post_init__(self) -> None:
        graphs, missing = self.relations, (self.image_drop_prob, self.text_drop_prob)
        sizes = (
            self.attention_dim,
            graphs.output_dim,
            graphs.memory_bank_size,
            *self.hidden_layer_sizes,
        )
        named = "attention_width, relations.width, relations.bank and sizes of hidden"
        levels = graphs.thresholds.values()
        faults = {
            f"{named} must be 1 or more": min(sizes) < 1,
            "hidden must name a layer": not self.hidden_layer_sizes,
            "bias_momentum must be above 0, at most 1": not 0 < self.bias_momentum <= 1,
            "dropout must be 0 or more and below 1": not 0 <= self.dropout < 1,
            f"relations.thresholds must be of {', '.join(GRAPHS)}": (
                set(graphs.thresholds) != set(GRAPHS)
            ),
            "relations.thresholds must be from -1 to 1": any(not -1 <= x <= 1 for x in levels),
            "relations.density must be from 0 to 1, or null": not 0 <= (graphs.density or 0) <= 1,
            "noise, missing_picture and missing_text must be 0 or more": (
                min(self.feature_noise.train_std, self.feature_noise.eval_std, *missing) < 0
            ),
            "missing_picture + missing_text pass 1": sum(missing) > 1,
        }
        if found := [fault for fault, here in faults.items() if here]:
            raise InputError(f"models.mm_orient.network: {'; '.join(found)}")

    @property
    def hima_levels(self) -> tuple[bool, bool]:
        """Whether HIMA has level 1, level 2."""
        return self.hima_levels in ("both", "first"), self.hima_levels in ("both", "second")


@config_class
class InputDims:
    """What the model reads and says, measured on the corpus and its features."""

    tasks: dict[str, int]  # labels of each, in order
    text_width: int  # D_t
    region_width: int  # D_v
    pooled_width: int  # D
    task_features: int  # width of F, may be 0


@dataclass
class MmOrientInputs:
    """A batch as it is read: what is missing is zero, noise has been added."""

    subwords: Tensor  # (B, L, D_t)
    subword_mask: Tensor  # (B, L)
    regions: Tensor  # (B, P, D_v)
    region_mask: Tensor  # (B, P)
    pooled: ModalityPair  # E_t, E_i (B, D)
    available: ModalityPair  # (B,) there is a text, a picture
    task_features: Tensor  # (B, F)


@dataclass
class HimaOutput:
    """What HIMA made of one modality, and how."""

    vector: Tensor  # (B, D) or (B, 2 D) H
    weights: Tensor  # (B, N) a; equal ones without level 1
    mask: Tensor  # (B, N) what there was to attend to
    batch_weights: Tensor | None  # (B,) of level 2


@dataclass
class RelationOutput:
    """Relation features, and each item's neighbours in each graph."""

    vector: Tensor  # (B, 4 width)
    neighbor_counts: Tensor  # (B, 4)
    candidate_counts: Tensor  # (B, 4) how many it might have
    has_edge_features: Tensor  # (B, 4) it has what tells the edges


@dataclass
class MmOrientFeatures:
    """What the learner reads, and where it comes from; None: not among the inputs."""

    vector: Tensor
    text: HimaOutput | None
    image: HimaOutput | None
    relations: RelationOutput | None


@dataclass
class MmOrientPredictions:
    """Of each task each item's label, as an index, and what all its labels are given."""

    labels: dict[str, Tensor]  # (B,)
    probabilities: dict[str, Tensor]  # (B, labels)


@dataclass
class HimaAttentionMaps:
    """Where HIMA looks: weights of pieces (B, L), regions (B, P), items (B,); None without it."""

    subwords: Tensor | None
    regions: Tensor | None
    batch_text: Tensor | None
    batch_image: Tensor | None


# ------------------------------------------------------------------------------------------- HIMA
def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """a, the softmax over what the mask has; 0 elsewhere, also where it has nothing.  (..., N)"""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # not in bf16
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask


class AttentionScorer(nn.Module):
    """h of WLA, RBA and level 2.  (..., D) -> (...)"""

    def __init__(self, width: int, network: ModelConfig):
        super().__init__()
        context = network.attention == "context_vector"
        self.score = nn.Linear(width, network.attention_dim if context else 1)  # w, b
        self.context = nn.Linear(network.attention_dim, 1, bias=False) if context else None

    def forward(self, q: Tensor) -> Tensor:
        u = F.gelu(self.score(q))
        return (u if self.context is None else self.context(u)).squeeze(-1)


class Hima(nn.Module):
    """Both levels of attention for one modality."""

    def __init__(self, width: int, network: ModelConfig):
        super().__init__()
        self.network = network
        first, second = network.hima_levels
        self.norm = nn.LayerNorm(width) if network.use_layer_norm else nn.Identity()
        self.first = AttentionScorer(width, network) if first else None
        self.second = AttentionScorer(width, network) if second else None
        self.width = width * (2 if second else 1)
        self.register_buffer("bias", torch.zeros(width))  # running mean of z

    def forward(self, q: Tensor, mask: Tensor, has: Tensor) -> HimaOutput:
        """(B, N, D), (B, N), (B,)"""
        q = self.norm(q)
        scores = torch.zeros_like(q[..., 0]) if self.first is None else self.first(q)
        weights = masked_softmax(scores, mask)
        v = (weights[:, None].to(q.dtype) @ q).squeeze(1)  # v = sum a q
        if self.second is None:
            return HimaOutput(v, weights, mask, None)
        over = masked_softmax(self.second(v), has)
        z = self.select_bias((over[None].to(v.dtype) @ v).squeeze(0), has)
        return HimaOutput(torch.cat([v, z.to(v.dtype).expand_as(v)], -1), weights, mask, over)

    def select_bias(self, z: Tensor, has: Tensor) -> Tensor:
        """The bias that is read, of the batch's z; training keeps it in mind."""
        if self.training:
            if has.any():
                momentum = self.network.bias_momentum if self.bias.any() else 1.0
                self.bias.lerp_(z.detach().to(self.bias), momentum)
            return z
        if self.network.eval_bias == "zero":
            return torch.zeros_like(z)
        return z if self.network.eval_bias == "batch" else self.bias


# ------------------------------------------------------------------------------------------- CMRL
class CrossModalRelations(nn.Module):
    """Four graphs, a layer of GraphSAGE each, and the bank that evaluation sees."""

    def __init__(self, width: int, network: ModelConfig):
        super().__init__()
        self.config = numbers = network.relations
        self.layers = nn.ModuleDict(
            {name: SAGEConv(width, numbers.output_dim, "mean", normalize=True) for name in GRAPHS}
        )
        self.width = len(GRAPHS) * numbers.output_dim
        given = torch.tensor([numbers.thresholds[name] for name in GRAPHS], dtype=torch.double)
        self.register_buffer("thresholds", given)
        for m in MODALITIES:
            self.register_buffer(f"bank_{m}", torch.zeros(numbers.memory_bank_size, width))
            self.register_buffer(
                f"bank_has_{m}", torch.zeros(numbers.memory_bank_size, dtype=torch.bool)
            )

    def bank(self) -> tuple[ModalityPair, ModalityPair]:
        """E_t, E_i (N, D) and what is there (N,); rows that training could not fill are missing."""
        pooled = tuple(getattr(self, f"bank_{m}") for m in MODALITIES)
        return pooled, tuple(getattr(self, f"bank_has_{m}") for m in MODALITIES)

    @torch.no_grad()
    def fit_bank(self, pooled: ModalityPair, has: ModalityPair) -> None:
        """Fill the bank with evenly spaced items of training; find thresholds of the density."""
        size = min(self.config.memory_bank_size, len(has[0]))
        places = torch.arange(size, device=has[0].device) * len(has[0]) // max(size, 1)
        for kept, there, x, known in zip(*self.bank(), pooled, has, strict=True):
            kept.zero_()[:size] = (x * known[:, None])[places].to(kept)
            there.zero_()[:size] = known[places]
        if self.config.density is not None:
            found = {
                m: relation_graph.find_threshold(l2_normalize(x), known, self.config.density)
                for m, x, known in zip(MODALITIES, *self.bank(), strict=True)
            }
            self.thresholds.copy_(torch.tensor([found[name[1]] for name in GRAPHS]))

    def build_edges(self, pooled: ModalityPair, has: ModalityPair, graph: str) -> Tensor:
        """A_mn of a batch: its items' neighbours in it, or in the bank.  -> (2, E)"""
        by, threshold = MODALITIES.index(graph[1]), self.thresholds[GRAPHS.index(graph)].item()
        x = l2_normalize(pooled[by])
        if self.within_batch:
            return relation_graph.build_edges_within(x, has[by], threshold)
        bank, there = self.bank()
        return relation_graph.build_edges_between(
            x, has[by], l2_normalize(bank[by]), there[by], threshold
        )

    @property
    def within_batch(self) -> bool:
        return self.training or self.config.eval_graph == "batch"

    def forward(self, pooled: ModalityPair, has: ModalityPair) -> RelationOutput:
        with torch.autocast(has[0].device.type, enabled=False):
            pooled = tuple(x.to(self.bank_t.dtype) for x in pooled)
            found = [self.relation_features(pooled, has, graph) for graph in GRAPHS]
        vectors, neighbours = zip(*found, strict=True)
        known = has if self.within_batch else self.bank()[1]
        told = torch.stack([has[MODALITIES.index(by)] for _, by in GRAPHS], 1)
        others = torch.stack([known[MODALITIES.index(by)].sum() for _, by in GRAPHS])
        others = others - int(self.within_batch) * told.long()  # an item is not its own neighbour
        return RelationOutput(torch.cat(vectors, -1), torch.stack(neighbours, 1), others, told)

    def relation_features(
        self, pooled: ModalityPair, has: ModalityPair, graph: str
    ) -> tuple[Tensor, Tensor]:
        """X_mn (B, width) and how many neighbours an item has (B,)."""
        nodes = MODALITIES.index(graph[0])
        edges, x = self.build_edges(pooled, has, graph), pooled[nodes]
        neighbours = relation_graph.count_neighbors(edges, len(x))
        itself = torch.arange(len(x), device=x.device)
        sources = x if self.within_batch else torch.cat([self.bank()[0][nodes], x])
        first = len(sources) - len(x)  # where the batch begins among what is averaged
        edges = torch.cat([edges, torch.stack([itself, itself + first])], 1)
        graph_of = relation_graph.build_adjacency(edges, (len(x), len(sources)), x.dtype)
        vector = self.layers[graph]((sources, x), graph_of)
        return self.config.scale_factor(self.config.output_dim) * vector, neighbours


def l2_normalize(x: Tensor) -> Tensor:
    """Rows of doubles of length 1; zeros stay."""
    return F.normalize(x.double(), dim=-1)


# ------------------------------------------------------------------------------------------ model
class Model(nn.Module):
    """MM-ORIENT. A batch of memes is a dict of

    tokens (B, L, D_t), token_mask (B, L) bool
    regions (B, P, D_v)
    text_clip, picture_clip (B, D)    unit length, zeros where missing
    task_features (B, F)
    has_text, has_picture (B,) bool
    labels (B, T)    in the order of the tasks, UNJUDGED where nobody judged
    """

    def __init__(self, network: ModelConfig, shapes: InputDims):
        super().__init__()
        self.network, self.shapes = network, shapes
        full, width = network.inputs == "full", 0
        of_means = network if full else replace(network, hima_levels="none")
        if network.inputs in ("full", "text_only", "concatenation"):
            self.read_pieces = Hima(shapes.text_width, of_means)
            width += self.read_pieces.width
        if network.inputs in ("full", "regions_only", "concatenation"):
            self.read_regions = Hima(shapes.region_width, of_means)
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
            [nn.Linear(before, after), nn.ReLU(), nn.Dropout(network.dropout)]
            for before, after in pairwise(sizes)
        ]
        self.learner = nn.Sequential(*chain(*layers))
        self.heads = nn.ModuleList(nn.Linear(sizes[-1], n) for n in shapes.tasks.values())
        most = max(shapes.tasks.values())
        self.register_buffer("label_weights", torch.ones(len(shapes.tasks), most))
        if network.task_weighting == "uncertainty":
            self.log_variance = nn.Parameter(torch.zeros(len(shapes.tasks)))

    @property
    def uses_pooled(self) -> bool:
        return self.network.inputs in ("clip", "concatenation")

    @property
    def uses_task_features(self) -> bool:
        return self.network.use_task_features and self.network.inputs in ("full", "concatenation")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of each task.  -> (B, labels)"""
        hidden, tasks = self.learner(self.compute_features(batch).vector), self.shapes.tasks
        return {task: head(hidden) for task, head in zip(tasks, self.heads, strict=True)}

    def prepare_inputs(self, batch: Batch) -> MmOrientInputs:
        has = batch["has_text"], batch["has_picture"]
        pooled = batch["text_clip"], batch["picture_clip"]
        piece_mask = batch["token_mask"] & has[0][:, None]
        region_mask = has[1][:, None].expand(batch["regions"].shape[:2])
        found = MmOrientInputs(
            subwords=batch["tokens"] * piece_mask[..., None],
            subword_mask=piece_mask,
            regions=batch["regions"] * region_mask[..., None],
            region_mask=region_mask,
            pooled=tuple(x * there[:, None] for x, there in zip(pooled, has, strict=True)),
            available=has,
            task_features=self.standardise(batch["task_features"]) * has[0][:, None],
        )
        noise = self.network.feature_noise
        sigma = noise.train_std if self.training else noise.eval_std
        return self.add_input_noise(found, sigma) if sigma else found

    def add_input_noise(self, x: MmOrientInputs, sigma: float) -> MmOrientInputs:
        draws = None if self.training else create_generators(torch.cat(x.pooled, -1))
        return replace(
            x,
            subwords=add_noise(x.subwords, x.subword_mask, sigma, draws),
            regions=add_noise(x.regions, x.region_mask, sigma, draws),
            pooled=tuple(
                add_noise(e, has, sigma, draws)
                for e, has in zip(x.pooled, x.available, strict=True)
            ),
            task_features=add_noise(x.task_features, x.available[0], sigma, draws),
        )

    def compute_features(self, batch: Batch) -> MmOrientFeatures:
        """[H_t || H_v || CMRL || F], or what `inputs` names instead."""
        x, inputs = self.prepare_inputs(batch), self.network.inputs
        words = regions = related = None
        parts = []
        if inputs in ("full", "text_only", "concatenation"):
            words = self.read_pieces(x.subwords, x.subword_mask, x.available[0])
            parts.append(words.vector)
        if inputs in ("full", "regions_only", "concatenation"):
            regions = self.read_regions(x.regions, x.region_mask, x.available[1])
            parts.append(regions.vector)
        if inputs == "full" and self.network.use_cmrl:
            related = self.relations(x.pooled, x.available)
            parts.append(related.vector)
        if self.uses_pooled:
            parts += [self.network.relations.scale_factor(e.shape[1]) * e for e in x.pooled]
        if self.uses_task_features:
            parts.append(x.task_features)
        return MmOrientFeatures(torch.cat(parts, -1), words, regions, related)


@torch.no_grad()
def fit_statistics(model: Model, items: Batch) -> None:
    """Take from all training items, before training, what the model keeps of them.

    The statistics of task features, the bank and its thresholds, the weights of labels. items: a
    batch of them, of which tokens and regions are not read.
    """
    has = items["has_text"], items["has_picture"]
    if model.shapes.task_features:
        model.standardise.fit_normalization(items["task_features"][has[0]])
    if model.network.inputs == "full" and model.network.use_cmrl:
        model.relations.fit_bank((items["text_clip"], items["picture_clip"]), has)
    if model.network.class_weight == "balanced":
        for weights, labels, count in zip(
            model.label_weights, items["labels"].T, model.shapes.tasks.values(), strict=True
        ):
            found = labels[labels != UNLABELED].bincount(minlength=count)
            balanced = found.sum() / (count * found.clamp(min=1))
            weights[:count] = torch.where(found > 0, balanced, 1.0)


def task_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the items that somebody judged; 0 where there is none."""
    if not (labels != UNLABELED).any():
        return 0 * logits.sum()
    return F.cross_entropy(logits.to(weights.dtype), labels, weights, ignore_index=UNLABELED)


def compute_loss(model: Model, batch: Batch) -> LossTerms:
    """A term a task. A learned variance s^2 makes exp(-log s^2) L + log s^2 / 2 of one."""
    network = model.network
    if model.training:
        batch = drop_modality(batch, network.image_drop_prob, network.text_drop_prob, "has_text")
    terms = {}
    for place, (task, logits) in enumerate(model(batch).items()):
        labels, weights = batch["labels"][:, place], model.label_weights[place]
        term = task_loss(logits, labels, weights[: logits.shape[1]])
        if network.task_weighting == "uncertainty" and (labels != UNLABELED).any():
            s = model.log_variance[place]
            term = (-s).exp() * term + s / 2
        terms[task] = term
    return terms


@torch.no_grad()
def predict(model: Model, batch: Batch) -> MmOrientPredictions:
    """Each task's most probable label, and the probabilities of all."""
    found = {task: logits.float().softmax(-1) for task, logits in model(batch).items()}
    return MmOrientPredictions({task: p.argmax(-1) for task, p in found.items()}, found)


def normalized_entropy(weights: Tensor, mask: Tensor) -> Tensor:
    """Entropy of attention over that of equal weights: 1, it is a mean; 0, it looks at one alone.

    NaN where there are no two to choose between.  (B, N), (B, N) -> (B,)
    """
    held = mask.sum(1)
    entropy = -torch.xlogy(weights, weights).sum(1)
    return torch.where(held > 1, entropy / held.clamp(min=2).log(), torch.nan)


@torch.no_grad()
def diagnostics(model: Model, batch: Batch) -> dict[str, Tensor]:
    """What to watch while training: name -> (B,), NaN where an item lacks what it is about.

    density_GRAPH: neighbours an item has, of those it might have; isolated_GRAPH: 1 where it has
    none; evenness of the attention to pieces and regions.
    """
    read, found = model.compute_features(batch), {}
    if related := read.relations:
        told = related.has_edge_features & (related.candidate_counts > 0)
        density = torch.where(
            told, related.neighbor_counts / related.candidate_counts.clamp(min=1), torch.nan
        )
        isolated = torch.where(
            related.has_edge_features, (related.neighbor_counts == 0).float(), torch.nan
        )
        for place, graph in enumerate(GRAPHS):
            found[f"density_{graph}"] = density[:, place]
            found[f"isolated_{graph}"] = isolated[:, place]
    if model.network.inputs == "full" and model.network.hima_levels[0]:
        for name, of in (("words", read.text), ("regions", read.image)):
            found[f"evenness_{name}"] = normalized_entropy(of.weights, of.mask)
    return found


@torch.no_grad()
def attention_maps(model: Model, batch: Batch) -> HimaAttentionMaps:
    """Where both levels look; means look everywhere alike."""
    read = model.compute_features(batch)
    words, regions = (
        (None, None) if of is None else (of.weights, of.batch_weights)
        for of in (read.text, read.image)
    )
    return HimaAttentionMaps(words[0], regions[0], words[1], regions[1])
