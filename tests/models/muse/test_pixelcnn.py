import math
from dataclasses import asdict, replace
from decimal import Decimal, localcontext
from functools import reduce
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from stages.models.muse import pixelcnn
from stages.models.muse.pixelcnn import (
    PixelCNN,
    PixelCNNConfig,
    coupled_means,
    log_likelihood,
    sample_pixel,
    uint8_to_float,
)
from stages.shared.core.config import build_config
from stages.shared.runtime.stage import InputError

WIDTH = 3
TINY = PixelCNNConfig(
    image_size=8, num_blocks=1, num_filters=4, num_mixtures=2, dropout=0.0, initial_gain="one"
)


def build_network(config: PixelCNNConfig = TINY) -> PixelCNN:
    """A model in float64 with perturbed weights: initially, h and the last layers hardly matter."""
    torch.manual_seed(0)
    model = PixelCNN(config, WIDTH).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model


def make_images(count: int, size: int = 8) -> Tensor:
    torch.manual_seed(1)
    return to_levels(torch.randint(0, 256, (count, 3, size, size)))


def to_levels(pixels: Tensor) -> Tensor:
    return pixels.double() / 127.5 - 1


def sigmoid(z: float) -> Decimal:
    """In high precision: a level is the difference of two nearly equal values."""
    return 1 / (1 + (-Decimal(z)).exp())


# ------------------------------------------------------------------------------- likelihood
def test_the_probabilities_of_all_colors_of_a_pixel_sum_to_one():
    torch.manual_seed(0)
    theta = torch.randn(1, 20, 1).expand(-1, -1, 256 * 256)
    green, blue = torch.cartesian_prod(torch.arange(256), torch.arange(256)).T
    total = 0.0
    for red in range(256):
        x = to_levels(torch.stack([torch.full_like(green, red), green, blue]))[None]
        total += log_likelihood(theta, x.float()).exp().sum(dtype=torch.float64).item()
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mu, log_s", [(-1.0, -6.0), (1.0, -3.0), (0.003, 0.0), (4.0, -7.0)])
def test_the_probabilities_of_all_levels_of_a_channel_sum_to_one(mu, log_s):
    """With coefficients of 0 channels are independent: fix two, sum over the third and divide."""
    theta = torch.zeros(1, 10, 256, dtype=torch.float64)
    theta[:, 1:4], theta[:, 4:7] = mu, log_s
    blue = to_levels(torch.arange(256))
    x = torch.stack([torch.zeros(256), torch.zeros(256), blue])[None]
    zero = log_likelihood(theta, torch.zeros_like(x))
    separate = zero / 3  # three channels of equal value
    rest = (2 * separate)[0, 0]
    torch.testing.assert_close((log_likelihood(theta, x) - rest).exp().sum().item(), 1.0)


def test_the_probability_of_a_level_equals_the_value_by_hand():
    """mu 0, s 1: P(1) = P(-1) = 1 - sigmoid(254/255), P(0) is 2/255 times 1/4."""
    theta = torch.zeros(1, 10, 1, dtype=torch.float64)
    ends = log_likelihood(theta, torch.tensor([[[1.0], [-1.0], [1.0]]]).double())
    assert ends.item() == pytest.approx(3 * math.log(1 / (1 + math.exp(254 / 255))), rel=1e-9)
    middle = log_likelihood(theta, torch.zeros(1, 3, 1).double())
    assert middle.item() == pytest.approx(3 * math.log(2 / 255 / 4), rel=1e-5)


def loop_log_likelihood(theta: list[float], x: list[float], mixtures: int) -> float:
    """Equations 1 to 3 for one pixel as loops."""
    logits, rest = theta[:mixtures], theta[mixtures:]
    at = [[rest[(3 * kind + c) * mixtures :][:mixtures] for c in range(3)] for kind in range(3)]
    total = Decimal(0)
    for k in range(mixtures):
        alpha, beta, gamma = (math.tanh(at[2][c][k]) for c in range(3))
        means = [at[0][c][k] for c in range(3)]
        means[1] += alpha * x[0]
        means[2] += beta * x[0] + gamma * x[1]
        p = Decimal(math.exp(logits[k]) / sum(map(math.exp, logits)))
        for c in range(3):
            s = math.exp(max(at[1][c][k], -7))
            upper = 1 if x[c] == 1 else sigmoid((x[c] + 1 / 255 - means[c]) / s)
            lower = 0 if x[c] == -1 else sigmoid((x[c] - 1 / 255 - means[c]) / s)
            p *= upper - lower
        total += p
    return float(total.ln())


def test_bits_match_the_equations_written_as_loops():
    model, x, h = build_network(), make_images(2), torch.randn(2, WIDTH).double()
    x[:, :, :2] = torch.where(x[:, :, :2] > 0, 1.0, -1.0)  # many pixels at both ends
    theta, bits = model(x, h), model.bits_per_dim(x, h)
    for b in range(2):
        nats = 0.0
        for i in range(8):
            for j in range(8):
                pixel = theta[b, :, i, j].tolist(), x[b, :, i, j].tolist()
                with localcontext(prec=200):
                    nats -= loop_log_likelihood(*pixel, 2)
        assert bits[b].item() == pytest.approx(nats / (3 * 8 * 8) / math.log(2), rel=1e-6)


def test_extreme_means_and_scales_have_finite_loss_and_gradient_in_float32():
    values = [-100.0, -20.0, -7.0, 0.0, 20.0, 100.0]
    mu, log_s = torch.tensor(values), torch.tensor([-50.0, -7.0, 0.0, 20.0])
    cases = torch.cartesian_prod(
        mu, log_s, torch.tensor([-1.0, uint8_to_float(torch.tensor(99)), 1.0])
    )
    theta = torch.zeros(1, 10, len(cases))
    theta[:, 1:4], theta[:, 4:7] = cases[:, 0], cases[:, 1]
    theta.requires_grad_()
    loss = log_likelihood(theta, cases[:, 2].expand(1, 3, -1)).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(theta.grad).all()


def test_bytes_convert_to_levels_and_back():
    pixels = torch.arange(256)
    x = uint8_to_float(pixels)
    assert x[0] == -1 and x[-1] == 1
    torch.testing.assert_close(x.diff(), torch.full((255,), 2 / 255), rtol=1e-4, atol=0)
    assert torch.equal(pixelcnn.float_to_uint8(x).long(), pixels)


# ------------------------------------------------------------------------------- order
def test_a_pixel_depends_on_all_neighbors_before_it_and_on_no_later_pixel():
    model, h = build_network(), torch.randn(1, WIDTH).double()
    x = make_images(1).requires_grad_()
    theta = model(x, h)
    mix = torch.randn(theta.shape[1]).double()
    for place in range(64):
        (gradient,) = torch.autograd.grad(
            theta[0, :, place // 8, place % 8] @ mix, x, retain_graph=True
        )
        depends = (gradient[0] != 0).flatten(1)  # (3, 64)
        assert not depends[:, place:].any()
        neighbors = [place - 1] * (place % 8 > 0) + [place - 8] * (place >= 8)
        assert depends[:, neighbors].all()
    assert depends[:, :56].all()  # the last pixel depends on all rows above, without a blind spot


def test_green_depends_on_red_and_blue_on_both():
    torch.manual_seed(0)
    mu, coefficients = torch.randn(2, 1, 3, 2)
    x = torch.randn(1, 3, requires_grad=True)
    means = coupled_means(mu, coefficients, x)
    dependencies = []
    for channel in range(3):
        total = means[0, channel].sum()
        (gradient,) = torch.autograd.grad(total, x, retain_graph=True, materialize_grads=True)
        dependencies.append((gradient[0] != 0).tolist())
    assert dependencies == [[False, False, False], [True, False, False], [True, True, False]]


# ------------------------------------------------------------------------------- sampling
def test_sampled_colors_are_as_frequent_as_they_are_probable():
    """Two narrow mixtures, one of them at the end of the range, with coupled channels."""
    torch.manual_seed(0)
    theta = torch.randn(1, 20).double()
    theta[:, 2:8] = torch.tensor([-1.0, 0.2] * 3)  # mu
    theta[:, 8:14] = -6.0
    draws = 40_000
    uniform = torch.rand(draws, 4, dtype=torch.float64)
    pixels = sample_pixel(theta.expand(draws, -1), uniform)
    samples, counts = pixels.unique(dim=0, return_counts=True)
    p = log_likelihood(theta[..., None].expand(-1, -1, len(samples)), samples.T[None]).exp()[0]
    frequent = p > 20 / draws
    assert frequent.sum() > 20
    deviation = (counts - draws * p)[frequent] / (draws * p * (1 - p))[frequent].sqrt()
    assert deviation.abs().max() < 5 and 0.7 < deviation.square().mean() < 1.4


def test_sampling_row_by_row_equals_sampling_with_full_passes():
    model, h = build_network(), torch.randn(3, WIDTH).double()
    seeded = torch.Generator().manual_seed(5)
    samples = model.sample(h, seeded)
    uniform = torch.rand((8, 8, 3, 4), generator=seeded.manual_seed(5)).double()
    x = torch.zeros(3, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        for i in range(8):
            for j in range(8):
                x[:, :, i, j] = sample_pixel(model(x, h)[:, :, i, j], uniform[i, j])
    torch.testing.assert_close(samples, x)


def test_samples_are_on_the_levels():
    model = build_network().float()
    samples = model.sample(torch.randn(2, WIDTH), torch.Generator().manual_seed(0))
    assert samples.shape == (2, 3, 8, 8)
    assert torch.equal(uint8_to_float(pixelcnn.float_to_uint8(samples)), samples)
    assert len(samples.unique()) > 20


def test_two_images_are_memorized_and_sampled_again_from_their_h():
    torch.manual_seed(0)
    model = PixelCNN(
        replace(TINY, image_size=4, num_filters=8),
        WIDTH,
    )
    colors = torch.tensor([[230, 20, 60], [30, 120, 250]])
    x = uint8_to_float(colors[:, :, None, None].repeat(1, 1, 4, 4))
    x[:, :, 2:] *= -1  # the lower half has the opposite color
    h = torch.eye(2, WIDTH)
    steps = 100
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.bits_per_dim(x, h).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert loss < 3  # of 8 bits
    samples = model.eval().sample(h, torch.Generator().manual_seed(0))
    assert (samples - x).abs().mean() < 0.1 < 1 < (samples - x.flip(0)).abs().mean()


# ------------------------------------------------------------------------------- network
def test_the_result_does_not_depend_on_the_split_into_batches():
    model, x, h = build_network(), make_images(3), torch.randn(3, WIDTH).double()
    separate = torch.cat([model.bits_per_dim(x[b : b + 1], h[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(model.bits_per_dim(x, h), separate, rtol=1e-9, atol=0)


def test_theta_and_bits_are_float32_under_bfloat16_autocast():
    model, x, h = build_network().float(), make_images(2).float(), torch.randn(2, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        theta, bits = model(x, h), model.bits_per_dim(x, h)
        samples = model.sample(h.bfloat16(), torch.Generator().manual_seed(0))
    assert theta.dtype == bits.dtype == samples.dtype == torch.float32
    assert not torch.equal(theta, theta.bfloat16().float())  # not rounded to bfloat16
    nats = -log_likelihood(theta.double(), x.double()).sum((1, 2))  # in float64; bits are float32
    torch.testing.assert_close(bits, (nats / (3 * 8 * 8 * math.log(2))).float())
    assert torch.equal(uint8_to_float(pixelcnn.float_to_uint8(samples)), samples)


@pytest.mark.parametrize("blocks", [1, 2])
def test_every_weight_gets_a_gradient(blocks):
    model = build_network(replace(TINY, num_blocks=blocks, dropout=0.5)).train()
    model.bits_per_dim(make_images(2), torch.randn(2, WIDTH).double()).sum().backward()
    assert [name for name, w in model.named_parameters() if not w.grad.abs().sum() > 0] == []


def test_the_norm_of_a_filter_is_g_whatever_the_norm_of_v():
    conv = build_network().u.up[0].second.conv
    g, v = conv.parametrizations.weight.parameters()
    torch.testing.assert_close(conv.weight.flatten(1).norm(dim=1), g.flatten().abs())
    before = conv.weight.detach().clone()
    with torch.no_grad():
        v.mul_(3)
    torch.testing.assert_close(conv.weight, before)


def test_gains_start_at_one_or_at_the_norm_of_pytorchs_weights():
    for gain in ("one", "norm"):
        torch.manual_seed(0)
        model = PixelCNN(replace(TINY, initial_gain=gain), WIDTH)
        for conv in (model.u.up[0].second.conv, model.u.down[1], model.theta):
            g, v = conv.parametrizations.weight.parameters()
            filters = 1 if isinstance(conv, torch.nn.ConvTranspose2d) else 0
            norms = v.transpose(0, filters).flatten(1).norm(dim=1)
            torch.testing.assert_close(
                g.flatten(), norms if gain == "norm" else torch.ones_like(norms)
            )
            bound = conv.weight[0].numel() ** -0.5  # PyTorch: uniform up to 1 / sqrt(fan-in)
            assert (conv.weight.abs().max() <= bound) == (gain == "norm")


def read_paper_decoder() -> PixelCNNConfig:
    keys = ("models", "muse", "network", "image_generation", "decoder")
    return build_config(
        PixelCNNConfig,
        reduce(dict.__getitem__, keys, yaml.safe_load(Path("presets/paper_muse.yaml").read_text())),
        "presets/paper_muse.yaml",
    )


@pytest.mark.slow
def test_at_paper_size_the_first_bits_are_those_of_a_nearly_uniform_guess():
    """A uniform guess has 8 bits."""
    bits = {}
    for gain in ("one", "norm"):
        torch.manual_seed(0)
        model = PixelCNN(replace(read_paper_decoder(), initial_gain=gain), WIDTH)
        with torch.no_grad():
            bits[gain] = model.bits_per_dim(make_images(1, 32).float(), torch.randn(1, WIDTH))
    assert read_paper_decoder().initial_gain == "norm"
    assert bits["norm"] < 10 < 20 < bits["one"]


@pytest.mark.slow
def test_with_the_blocks_of_the_paper_the_bits_fall_within_thirty_steps():
    torch.manual_seed(0)
    config = replace(read_paper_decoder(), image_size=8, num_filters=20)
    model, h = PixelCNN(config, WIDTH), torch.randn(4, WIDTH)
    x = to_levels(torch.randint(0, 256, (4, 3, 1, 1)).expand(-1, -1, 8, 8)).float()
    optimizer, bits = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.bits_per_dim(x, h).mean()
        loss.backward()
        optimizer.step()
        bits.append(loss.item())
    assert bits[0] < 10 and sum(bits[-5:]) / 5 < 8 < bits[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 0}, "image_size is 0: give 4 or more"),
        ({"image_size": 18}, "image_size is 18 and is halved twice: give a multiple of 4"),
        ({"num_blocks": 0}, "num_blocks is 0: give 1 or more"),
        ({"num_filters": 0, "num_mixtures": 0}, "num_filters is 0: .*num_mixtures is 0: give 1"),
        ({"dropout": 1.0}, "dropout is 1.0: give less than 1"),
    ],
)
def test_values_out_of_bounds_are_rejected(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        build_config(PixelCNNConfig, asdict(TINY) | changes, "decoder")
