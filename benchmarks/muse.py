"""Cost of the parts of MuSE.

- The exchange against the token loop of the paper's public code, at its batch size and length. The
  outputs are checked to be bit-identical before timing.
- The image generation regularizer against the rest of a training step, forward and backward, for
  the model in params.yaml. The text encoder is not included.
- Image sampling row by row against full passes of the network for each pixel.
- Training and evaluation steps of each fusion.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import time_interleaved
from stages.models.muse import model as muse
from stages.models.muse import pixelcnn
from stages.models.muse.model import CrossTransformer, InputDims, Model, ModelConfig
from stages.shared.core.config import load_config

ITEMS, POSITIONS, THETA = 40, 65, 0.1  # as in the public code: 64 tokens and cls
OUR_WIDTH, PAPER_WIDTH = 128, 768
# As in the synthetic corpus.
BATCH, SUBWORDS, WORDS, CELLS, TAGS, VOCABULARY, CAPTION = 32, 20, 16, 16, 9, 1000, 18
TEXT_WIDTH, CELL_WIDTH = 384, 128
ROUNDS = 7
NUM_IMAGES = 8
FUSIONS = ("exchange", "concatenation", "cross_attention")


# ------------------------------------------------------------------------------- the exchange
def exchange_token_by_token(
    streams: muse.ModalityPair, weights: muse.ModalityPair, means: muse.ModalityPair, theta: float
) -> muse.ModalityPair:
    """The rule of the public code, token by token. weights: (B, 65) attention of cls."""
    text, image = (x.clone() for x in streams)
    for item in range(len(text)):
        thresholds = [np.quantile(w[item, 1:].numpy(), theta) for w in weights]
        for token in range(1, text.shape[1]):
            if weights[0][item][token] < thresholds[0]:
                text[item][token] = means[1][item] + text[item][token]
            if weights[1][item][token] < thresholds[1]:
                image[item][token] = means[0][item] + image[item][token]
    return text, image


def time_exchange(width: int, training: bool, rounds: int) -> float:
    """The time of the loop divided by ours. training: include the backward pass."""
    torch.manual_seed(0)
    network = replace(
        load_model_config(),
        theta=THETA,
        exchange="residual",
        exchange_count="quantile",
        padding_mask="ignored",
    )
    inputs = tuple(torch.randn(ITEMS, POSITIONS, width) for _ in range(2))
    weights = tuple(torch.rand(ITEMS, POSITIONS).softmax(-1) for _ in range(2))
    masks = tuple(torch.ones(ITEMS, POSITIONS, dtype=torch.bool) for _ in range(2))

    def vectorized(streams: muse.ModalityPair) -> muse.ModalityPair:
        pairs = zip(weights, masks, strict=True)
        selected = tuple(
            muse.select_exchange_tokens(w[:, 1:], mask[:, 1:], network) for w, mask in pairs
        )
        return muse.exchange_tokens(streams, masks, selected, network)

    def loop(streams: muse.ModalityPair) -> muse.ModalityPair:
        means = tuple(muse.masked_mean(x, mask) for x, mask in zip(streams, masks, strict=True))
        return exchange_token_by_token(streams, weights, means, THETA)

    def run(exchange) -> list[Tensor]:
        """The outputs and, in training, the gradients of the inputs."""
        if not training:
            return list(exchange(inputs))
        streams = tuple(x.clone().requires_grad_() for x in inputs)
        outputs = exchange(streams)
        sum(x.square().sum() for x in outputs).backward()
        return [*outputs, *(x.grad for x in streams)]

    for index, (ours, expected) in enumerate(zip(run(vectorized), run(loop), strict=True)):
        if index < 2 and not torch.equal(ours, expected):
            raise AssertionError("the exchange differs from the loop")
        torch.testing.assert_close(ours, expected)  # gradients are summed in another order
    functions = {"vectorized": lambda: run(vectorized), "loop": lambda: run(loop)}
    seconds = time_interleaved(functions, rounds)
    return seconds["loop"] / seconds["vectorized"]


def report_exchanges() -> list[str]:
    lines = [f"exchange in one layer, {ITEMS} items of {POSITIONS - 1} tokens: the loop takes"]
    cases = ((OUR_WIDTH, False, 15), (OUR_WIDTH, True, 5), (PAPER_WIDTH, True, 1))
    for width, training, rounds in cases:
        ratio, mode = (
            time_exchange(width, training, rounds),
            "training" if training else "inference",
        )
        if ratio < 10:
            raise AssertionError(f"the loop takes only {ratio:.1f} x the time in {mode}")
        lines.append(f"  width {width:3}, {mode:9} {ratio:5.0f} x the time, bit-identical")
    return lines


# ------------------------------------------------------------------------------- training steps
def load_model_config() -> ModelConfig:
    return load_config(ModelConfig, "models", "muse", "network")


class PrecomputedTextEncoder(nn.Module):
    """Stands in for a text encoder; returns the states in the batch."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["hidden"]


def build_model(network: ModelConfig) -> Model:
    torch.manual_seed(0)
    dims = InputDims(
        task="entities",
        labels=TAGS,
        text_width=TEXT_WIDTH,
        cells=CELLS,
        cell_width=CELL_WIDTH,
        words=VOCABULARY,
    )
    return Model(network, dims, PrecomputedTextEncoder(), nn.Identity()).train()


def build_batch(image_size: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    available = torch.ones(BATCH, dtype=torch.bool)
    return {
        "hidden": torch.randn(BATCH, SUBWORDS, TEXT_WIDTH),
        "pieces_mask": torch.ones(BATCH, SUBWORDS, dtype=torch.bool),
        "first": torch.arange(WORDS).expand(BATCH, -1),
        "word_mask": torch.ones(BATCH, WORDS, dtype=torch.bool),
        "tags": torch.randint(TAGS, (BATCH, WORDS)),
        "picture": torch.randn(BATCH, CELLS, CELL_WIDTH),
        "drawing": torch.rand(BATCH, 3, image_size, image_size) * 2 - 1,
        "caption": torch.randint(4, VOCABULARY, (BATCH, CAPTION)),
        "has_text": available,
        "has_picture": available,
    }


def report_image_generation() -> list[str]:
    """A training step of PixelCNN++ alone, and one of the model without it."""
    network = replace(load_model_config(), image_drop_prob=0.0, text_drop_prob=0.0)
    size, num_images = (
        network.image_generation.decoder.image_size,
        network.image_generation.max_images_per_batch,
    )
    batch = build_batch(size)
    full, rest = build_model(network), build_model(replace(network, use_image_generation=False))
    h = torch.randn(num_images, network.d_model)

    def generate_images() -> None:
        full.drawer.bits_per_dim(batch["drawing"][:num_images], h).mean().backward()

    def train_rest() -> None:
        sum(muse.compute_loss(rest, batch).values()).backward()

    seconds = time_interleaved({"generation": generate_images, "rest": train_rest}, ROUNDS)
    ratio = seconds["generation"] / seconds["rest"]
    if ratio > 1:
        raise AssertionError(f"image generation takes {ratio:.2f} x the rest of a step")
    return [
        f"training step of {BATCH} items with {num_images} images of {size} x {size}",
        f"  image generation {ratio:5.2f} x the rest, without a text encoder",
    ]


def report_sampling() -> list[str]:
    """Sampling that computes finished rows once, against a full pass for each pixel."""
    network = load_model_config()
    drawer = build_model(network).eval().drawer
    size, h = drawer.size, torch.randn(NUM_IMAGES, network.d_model)

    def rows() -> Tensor:
        return drawer.sample(h, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def full_passes() -> Tensor:
        uniform = torch.rand(
            (size, size, NUM_IMAGES, 4), generator=torch.Generator().manual_seed(0)
        )
        x = torch.zeros(NUM_IMAGES, 3, size, size)
        for row in range(size):
            for column in range(size):
                theta = drawer(x, h)[:, :, row, column]
                x[:, :, row, column] = pixelcnn.sample_pixel(theta, uniform[row, column])
        return x

    difference = (
        rows() - full_passes()
    ).abs()  # rounding may change single pixels and those after them
    if difference.median() > 0:
        raise AssertionError("the two methods sample different images")
    seconds = time_interleaved({"rows": rows, "full": full_passes}, 3)
    return [
        f"{NUM_IMAGES} images sampled at {size} x {size}",
        f"  full pass per pixel {seconds['full'] / seconds['rows']:5.2f} x the time",
    ]


def report_fusions(
    name: str, network: ModelConfig, items: int, subwords: int, cells: int
) -> list[str]:
    """Size of the CrossTransformer by fusion, and its time in training and evaluation."""
    torch.manual_seed(0)
    streams = tuple(torch.randn(items, 1 + n, network.d_model) for n in (subwords, cells))
    masks = tuple(torch.ones(items, 1 + n, dtype=torch.bool) for n in (subwords, cells))
    both = torch.ones(items, dtype=torch.bool)
    transformers = {f: CrossTransformer(replace(network, fusion=f)) for f in FUSIONS}
    transformers["no exchange"] = CrossTransformer(replace(network, theta=0.0))

    def train(transformer: CrossTransformer) -> None:
        (text, image), _ = transformer.train()(streams, masks, both)
        (text.square().mean() + image.square().mean()).backward()

    @torch.inference_mode()
    def evaluate(transformer: CrossTransformer) -> None:
        transformer.eval()(streams, masks, both)

    functions = {(f, "train"): partial(train, model) for f, model in transformers.items()}
    functions |= {(f, "eval"): partial(evaluate, model) for f, model in transformers.items()}
    seconds = time_interleaved(functions, ROUNDS)
    lines = [
        f"CrossTransformer of {name}: {items} items of {subwords} subwords and {cells} cells",
        "                   weights  training  evaluation, relative to exchange",
    ]
    for fusion, model in transformers.items():
        weights = sum(weight.numel() for weight in model.parameters())
        ratios = [seconds[fusion, mode] / seconds["exchange", mode] for mode in ("train", "eval")]
        lines.append(f"  {fusion:16} {weights / 1e6:6.2f} M  {ratios[0]:8.2f}  {ratios[1]:10.2f}")
    return lines


def main() -> list[str]:
    network = load_model_config()
    paper = replace(
        network,
        d_model=PAPER_WIDTH,
        num_layers=6,
        num_heads=12,
        d_ff=2048,
        norm="post",
        mu=2,
        eta=4,
    )
    return [
        *report_exchanges(),
        *report_image_generation(),
        *report_sampling(),
        *report_fusions("params.yaml", network, BATCH, SUBWORDS, CELLS),
        *report_fusions("the paper", paper, 4, 64, 64),
    ]
