"""One mscDPO training step on a group of five chunks: matrix form against pair expansion.

The matrix form encodes each image once and scores each (image, chunk) once. Pair expansion, as in a
general DPO trainer, scores the chosen and the rejected text of every pair in separate rows; its
reference scores are computed in the step (online) or cached. The model has the size of T5-small.
Losses and gradients are checked to be equal before timing.
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
PATCHES = 197  # ViT-B/16, the encoder of TIPPo
PREFERENCE_CONFIG = PreferenceConfig(
    beta=0.1, loss_type="pairwise", length_normalized=False, sft_weight=0.0, max_sequences=None
)


def build_model(t5_input: str) -> Model:
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
        t5_input=t5_input,
        append_topic=False,
        image_drop_prob=0.0,
        topic_drop_prob=0.0,
    )
    t5 = T5Config(  # T5-small, except for the vocabulary
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
    dims = InputDims(patches=PATCHES, patch_width=WIDTH, topic_width=WIDTH)
    return Model(network, dims, T5ForConditionalGeneration(t5)).eval()


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
    """All rows (image, chosen), then all rows (image, rejected), and their labels."""
    image, rejected = torch.nonzero(batch["allowed"][0], as_tuple=True)
    rows = torch.cat([image, image])
    labels = batch["labels"][torch.cat([image, rejected])]
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


def compare_losses(t5_input: str) -> list[str]:
    policy, reference, batch = build_model(t5_input), build_model(t5_input), build_group()
    with torch.no_grad():
        for (
            weight
        ) in policy.parameters():  # unlike the reference: equal models give a loss of log 2
            weight.add_(0.01 * torch.randn_like(weight))
        reference_matrix = flexmuse.pairwise_log_probs(reference, batch, None)
        reference_pairs = score_pairs(reference, batch)

    def matrix() -> list[Tensor]:
        loss = flexmuse.preference_loss(policy, batch, reference_matrix, PREFERENCE_CONFIG)[
            "mscdpo"
        ]
        return [loss.detach(), *compute_gradients(policy, loss)]

    def cached() -> list[Tensor]:
        loss = compute_expanded_loss(policy, batch, reference_pairs)
        return [loss.detach(), *compute_gradients(policy, loss)]

    def online() -> list[Tensor]:
        with torch.no_grad():
            pairs = score_pairs(reference, batch)
        loss = compute_expanded_loss(policy, batch, pairs)
        return [loss.detach(), *compute_gradients(policy, loss)]

    difference = _compute_largest_difference(matrix(), cached())
    seconds = time_interleaved({"matrix": matrix, "online": online, "cached": cached}, ROUNDS)
    return [
        f"{t5_input}: matrix form against pair expansion, {CHUNKS} chunks, median of {ROUNDS}",
        f"  online reference {seconds['online'] / seconds['matrix']:5.2f} x the time",
        f"  cached reference {seconds['cached'] / seconds['matrix']:5.2f} x the time",
        f"  largest difference in loss and gradient {difference:.1e}",
    ]


def _compute_largest_difference(ours: list[Tensor | None], baseline: list[Tensor | None]) -> float:
    """Largest difference of loss and gradients, relative to the largest entry.

    Raises AssertionError if it is above 1e-4.
    """
    pairs = [(a, b) for a, b in zip(ours, baseline, strict=True) if a is not None]
    scale = max(b.abs().max().item() for _, b in pairs)
    largest = max((a - b).abs().max().item() for a, b in pairs) / scale
    if largest > 1e-4:
        raise AssertionError(f"the two forms differ by {largest}")
    return largest


def main() -> list[str]:
    assert IGNORE_INDEX not in build_group()["labels"]
    return compare_losses("encoder_outputs") + compare_losses("inputs_embeds")
