"""MuSE: the exchange against a loop over tokens, the drawing regulariser against the rest of a
training step, drawing against whole passes, and what each fusion costs.

The loop is the rule of the paper's public code, at its batch and length; both get the same tokens
and weights, and what they give is checked to be the same bits before they are timed. Steps
are those of the model in params.yaml, forward and backward, without the text encoder: whatever that
costs comes on top of "the rest".
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import time_interleaved
from stages.models.muse import model as muse
from stages.models.muse import pixelcnn
from stages.models.muse.model import CrossTransformer, InputDims, Model, ModelConfig
from stages.shared.core.config import load_config

ITEMS, POSITIONS, THETA = 40, 65, 0.1  # of the public code: 64 tokens and cls
OUR_WIDTH, PAPER_WIDTH = 128, 768  # widths
BATCH, SUBWORDS, WORDS, CELLS, TAGS, VOCABULARY, CAPTION = (
    32,
    20,
    16,
    16,
    9,
    1000,
    18,
)  # the sample's
TEXT_WIDTH, CELL_WIDTH = 384, 128
ROUNDS = 7
NUM_DRAWN = 8
FUSIONS = ("exchange", "concatenation", "cross_attention")


# ------------------------------------------------------------------------------- the exchange
def exchange_token_by_token(
    streams: muse.ModalityPair, weights: muse.ModalityPair, means: muse.ModalityPair, theta: float
) -> muse.ModalityPair:
    """The public rule: token after token of item after item; weights (B, 65) of cls to all."""
    text, picture = (x.clone() for x in streams)
    for item in range(len(text)):
        below = [np.quantile(w[item, 1:].numpy(), theta) for w in weights]
        for token in range(1, text.shape[1]):
            if weights[0][item][token] < below[0]:
                text[item][token] = means[1][item] + text[item][token]
            if weights[1][item][token] < below[1]:
                picture[item][token] = means[0][item] + picture[item][token]
    return text, picture


def time_exchange(width: int, learning: bool, rounds: int) -> float:
    """How many times as long the loop takes; learning: with the gradient of what came in."""
    torch.manual_seed(0)
    network = replace(
        load_model_config(),
        theta=THETA,
        exchange="residual",
        exchange_count="quantile",
        padding_mask="ignored",
    )
    given = tuple(torch.randn(ITEMS, POSITIONS, width) for _ in range(2))
    weights = tuple(torch.rand(ITEMS, POSITIONS).softmax(-1) for _ in range(2))
    masks = tuple(torch.ones(ITEMS, POSITIONS, dtype=torch.bool) for _ in range(2))

    def vectorised(streams: muse.ModalityPair) -> muse.ModalityPair:
        pairs = zip(weights, masks, strict=True)
        chosen = tuple(
            muse.select_exchange_tokens(w[:, 1:], mask[:, 1:], network) for w, mask in pairs
        )
        return muse.exchange_tokens(streams, masks, chosen, network)

    def loop(streams: muse.ModalityPair) -> muse.ModalityPair:
        means = tuple(muse.masked_mean(x, mask) for x, mask in zip(streams, masks, strict=True))
        return exchange_token_by_token(streams, weights, means, THETA)

    def take(way) -> list[Tensor]:
        """What comes out, and in training what it asks of what came in."""
        if not learning:
            return list(way(given))
        streams = tuple(x.clone().requires_grad_() for x in given)
        out = way(streams)
        sum(x.square().sum() for x in out).backward()
        return [*out, *(x.grad for x in streams)]

    for place, (mine, theirs) in enumerate(zip(take(vectorised), take(loop), strict=True)):
        if place < 2 and not torch.equal(mine, theirs):
            raise AssertionError("the exchange differs from the loop")
        torch.testing.assert_close(mine, theirs)  # gradients are summed in another order
    ways = {"vectorised": lambda: take(vectorised), "loop": lambda: take(loop)}
    seconds = time_interleaved(ways, rounds)
    return seconds["loop"] / seconds["vectorised"]


def report_exchanges() -> list[str]:
    lines = [f"exchange in one layer, {ITEMS} items of {POSITIONS - 1} tokens: token by token"]
    for width, learning, rounds in (
        (OUR_WIDTH, False, 15),
        (OUR_WIDTH, True, 5),
        (PAPER_WIDTH, True, 1),
    ):
        ratio, use = time_exchange(width, learning, rounds), "training" if learning else "reading"
        if ratio < 10:
            raise AssertionError(f"the loop takes only {ratio:.1f} x as long in {use}")
        lines.append(f"  width {width:3}, {use:8} {ratio:5.0f} x as long, the same bits")
    return lines


# ------------------------------------------------------------------------------- training steps
def load_model_config() -> ModelConfig:
    return load_config(ModelConfig, "models", "muse", "network")


class PrecomputedTextEncoder(nn.Module):
    """In place of a text encoder: its states, as they came."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["hidden"]


def build_model(network: ModelConfig) -> Model:
    torch.manual_seed(0)
    shapes = InputDims("entities", TAGS, TEXT_WIDTH, CELLS, CELL_WIDTH, VOCABULARY)
    return Model(network, shapes, PrecomputedTextEncoder(), nn.Identity()).train()


def build_batch(side: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    there = torch.ones(BATCH, dtype=torch.bool)
    return {
        "hidden": torch.randn(BATCH, SUBWORDS, TEXT_WIDTH),
        "pieces_mask": torch.ones(BATCH, SUBWORDS, dtype=torch.bool),
        "first": torch.arange(WORDS).expand(BATCH, -1),
        "word_mask": torch.ones(BATCH, WORDS, dtype=torch.bool),
        "tags": torch.randint(TAGS, (BATCH, WORDS)),
        "picture": torch.randn(BATCH, CELLS, CELL_WIDTH),
        "drawing": torch.rand(BATCH, 3, side, side) * 2 - 1,
        "caption": torch.randint(4, VOCABULARY, (BATCH, CAPTION)),
        "has_text": there,
        "has_picture": there,
    }


def report_drawing() -> list[str]:
    """A step of PixelCNN++ alone, and one of all the rest."""
    network = replace(load_model_config(), image_drop_prob=0.0, text_drop_prob=0.0)
    given = build_batch(network.image_generation.decoder.image_size)
    alone, rest = build_model(network), build_model(replace(network, use_image_generation=False))
    h, items = (
        torch.randn(network.image_generation.max_images_per_batch, network.d_model),
        network.image_generation.max_images_per_batch,
    )

    def draw() -> None:
        alone.drawer.bits_per_dim(given["drawing"][:items], h).mean().backward()

    def learn() -> None:
        sum(muse.compute_loss(rest, given).values()).backward()

    seconds = time_interleaved({"drawing": draw, "rest": learn}, ROUNDS)
    share = seconds["drawing"] / seconds["rest"]
    if share > 1:
        raise AssertionError(f"drawing takes {share:.2f} of the rest of a step")
    return [
        f"training step of {BATCH} items, of which {items} are drawn at "
        f"{network.image_generation.decoder.image_size} x {network.image_generation.decoder.image_size}",
        f"  drawing          {share:5.2f} of the rest, without a text encoder",
    ]


def report_sampling() -> list[str]:
    """Pictures drawn with rows above read once, against a pass of the whole network a pixel."""
    network = load_model_config()
    drawer = build_model(network).eval().drawer
    size, h = drawer.size, torch.randn(NUM_DRAWN, network.d_model)

    def rows() -> Tensor:
        return drawer.sample(h, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def whole() -> Tensor:
        uniform = torch.rand((size, size, NUM_DRAWN, 4), generator=torch.Generator().manual_seed(0))
        x = torch.zeros(NUM_DRAWN, 3, size, size)
        for row in range(size):
            for column in range(size):
                theta = drawer(x, h)[:, :, row, column]
                x[:, :, row, column] = pixelcnn.sample_pixel(theta, uniform[row, column])
        return x

    off = (rows() - whole()).abs()  # a float may be rounded to the next level, and what follows it
    if off.median() > 0:
        raise AssertionError("the two draw something else")
    seconds = time_interleaved({"rows": rows, "whole": whole}, 3)
    return [
        f"{NUM_DRAWN} pictures drawn at {size} x {size}",
        f"  a whole pass a pixel {seconds['whole'] / seconds['rows']:5.2f} x as long",
    ]


def report_fusions(
    name: str, network: ModelConfig, items: int, pieces: int, cells: int
) -> list[str]:
    """Weights of the CrossTransformer, its steps in training and in evaluation."""
    torch.manual_seed(0)
    streams = tuple(torch.randn(items, 1 + n, network.d_model) for n in (pieces, cells))
    masks = tuple(torch.ones(items, 1 + n, dtype=torch.bool) for n in (pieces, cells))
    both = torch.ones(items, dtype=torch.bool)
    crossing = {f: CrossTransformer(replace(network, fusion=f)) for f in FUSIONS}
    crossing["no exchange"] = CrossTransformer(replace(network, theta=0.0))

    def learn(one: CrossTransformer) -> None:
        (text, picture), _ = one.train()(streams, masks, both)
        (text.square().mean() + picture.square().mean()).backward()

    @torch.inference_mode()
    def read(one: CrossTransformer) -> None:
        one.eval()(streams, masks, both)

    ways = {(f, "train"): lambda one=one: learn(one) for f, one in crossing.items()}
    ways |= {(f, "read"): lambda one=one: read(one) for f, one in crossing.items()}
    seconds = time_interleaved(ways, ROUNDS)
    lines = [
        f"CrossTransformer of {name}: {items} items of {pieces} pieces and {cells} cells",
        "                   weights  training  evaluation, beside exchange",
    ]
    for fusion, one in crossing.items():
        weights = sum(weight.numel() for weight in one.parameters())
        train, test = (seconds[fusion, use] / seconds["exchange", use] for use in ("train", "read"))
        lines.append(f"  {fusion:16} {weights / 1e6:6.2f} M  {train:8.2f}  {test:10.2f}")
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
        *report_drawing(),
        *report_sampling(),
        *report_fusions("params.yaml", network, BATCH, SUBWORDS, CELLS),
        *report_fusions("the paper", paper, 4, 64, 64),
    ]
