"""One mscDPO training step on a group of five chunks: the matrix against pair expansion.

The matrix encodes each picture once and scores each (picture, chunk) once. Pair expansion, what a
general DPO trainer does, scores chosen and rejected of every pair in rows of their own; its
reference runs along (online) or was cached beforehand. Size of T5-small. Loss and gradient of the
three are checked to be equal before they are timed.
"""

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.timing import time_interleaved
from stages.models.flexmuse import model as flexmuse
from stages.models.flexmuse.model import InputDims, Model, ModelConfig, PreferenceConfig
from stages.shared.training.losses import IGNORE_INDEX, pairwise_dpo_loss

CHUNKS, TOKENS, TOPIC, WIDTH, VOCABULARY, ROUNDS = 5, 32, 12, 64, 4000, 5
PATCHES = 197  # of a ViT-B/16, the encoder that TIPPo names
PREFERENCE_CONFIG = PreferenceConfig(
    beta=0.1, loss_type="pairwise", length_normalized=False, sft_weight=0.0
)


def build_model(connection: str) -> Model:
    torch.manual_seed(0)
    network = ModelConfig(
        d_model=512,
        max_topic_tokens=TOPIC,
        sigma_map="raw",
        sigma_min=0.0,
        sigma_max=1.0,
        gate_threshold=0.5,
        gate_train="sample",
        gate_predict="always_pass",
        fusion="attention",
        projection="linear",
        correlation="channel",
        correlation_scale="mean",
        t5_input=connection,
        append_topic=False,
        image_drop_prob=0.0,
        topic_drop_prob=0.0,
    )
    t5 = T5Config(  # T5-small, but for its vocabulary, which weighs on all sides alike
        vocab_size=VOCABULARY,
        d_model=512,
        d_kv=64,
        d_ff=2048,
        num_heads=8,
        num_layers=6,
        num_decoder_layers=6,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return Model(network, InputDims(PATCHES, WIDTH, WIDTH), T5ForConditionalGeneration(t5)).eval()


def build_group() -> dict[str, Tensor]:
    torch.manual_seed(1)
    everything = torch.ones(CHUNKS, dtype=torch.bool)
    return {
        "patches": torch.randn(CHUNKS, PATCHES, WIDTH),
        "topic": torch.randn(CHUNKS, TOPIC, WIDTH),
        "topic_mask": torch.ones(CHUNKS, TOPIC, dtype=torch.bool),
        "sigma": torch.zeros(CHUNKS),
        "has_picture": everything,
        "has_topic": everything,
        "labels": torch.randint(2, VOCABULARY, (CHUNKS, TOKENS)),
        "group": torch.zeros(CHUNKS, dtype=torch.long),
        "place": torch.arange(CHUNKS),
        "allowed": ~torch.eye(CHUNKS, dtype=torch.bool)[None],
    }


def expand_pairs(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Rows of (picture, chosen), then of (picture, rejected), of every pair, and their labels."""
    picture, rejected = torch.nonzero(batch["allowed"][0], as_tuple=True)
    rows = torch.cat([picture, picture])
    labels = batch["labels"][torch.cat([picture, rejected])]
    keys = ("patches", "topic", "topic_mask", "sigma", "has_picture", "has_topic")
    return {key: batch[key][rows] for key in keys}, labels


def score_pairs(policy: Model, batch: dict[str, Tensor]) -> Tensor:
    rows, labels = expand_pairs(batch)
    return policy.log_probs(policy.encode(rows, "always_pass"), labels)


def compute_expanded_loss(policy: Model, batch: dict[str, Tensor], reference: Tensor) -> Tensor:
    chosen, rejected = (score_pairs(policy, batch) - reference).chunk(2)
    gaps = (chosen - rejected).view(1, CHUNKS, CHUNKS - 1)
    return pairwise_dpo_loss(gaps, torch.ones_like(gaps, dtype=torch.bool), PREFERENCE_CONFIG.beta)


def compute_gradients(policy: nn.Module, loss: Tensor) -> list[Tensor]:
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(loss, weights, allow_unused=True))


def compare_losses(connection: str) -> list[str]:
    policy, anchor, batch = build_model(connection), build_model(connection), build_group()
    with torch.no_grad():
        for weight in policy.parameters():  # away from the reference, or both losses are log 2
            weight.add_(0.01 * torch.randn_like(weight))
        matrix = flexmuse.pairwise_log_probs(anchor, batch)
        pairs = score_pairs(anchor, batch)

    def whole() -> list[Tensor]:
        loss = flexmuse.preference_loss(policy, batch, matrix, PREFERENCE_CONFIG)["mscdpo"]
        return [loss.detach(), *compute_gradients(policy, loss)]

    def cached() -> list[Tensor]:
        loss = compute_expanded_loss(policy, batch, pairs)
        return [loss.detach(), *compute_gradients(policy, loss)]

    def online() -> list[Tensor]:
        with torch.no_grad():
            reference = score_pairs(anchor, batch)
        loss = compute_expanded_loss(policy, batch, reference)
        return [loss.detach(), *compute_gradients(policy, loss)]

    difference = _compute_largest_difference(whole(), cached())
    seconds = time_interleaved({"matrix": whole, "online": online, "cached": cached}, ROUNDS)
    return [
        f"{connection}: matrix against pair expansion, {CHUNKS} chunks, median of {ROUNDS}",
        f"  online reference {seconds['online'] / seconds['matrix']:5.2f} x as long",
        f"  cached reference {seconds['cached'] / seconds['matrix']:5.2f} x as long",
        f"  largest difference in loss and gradient {difference:.1e}",
    ]


def _compute_largest_difference(mine: list[Tensor | None], theirs: list[Tensor | None]) -> float:
    """Relative to the largest entry, over the loss and every weight's gradient."""
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None]
    scale = max(b.abs().max().item() for _, b in pairs)
    largest = max((a - b).abs().max().item() for a, b in pairs) / scale
    if largest > 1e-4:
        raise AssertionError(f"the two forms differ by {largest}")
    return largest


def main() -> list[str]:
    assert IGNORE_INDEX not in build_group()["labels"]
    return compare_losses("encoder_outputs") + compare_losses("inputs_embeds")
