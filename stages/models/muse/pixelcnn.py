"""PixelCNN++ (arXiv:1701.05517): generates an image pixel by pixel, conditioned on a vector h.

B images, S side, F filters, K mixtures, D width of h. x (B, 3, S, S) is an image whose channels
red, green, blue have 256 levels from -1 to 1.

eq. 1, 2  a channel is a mixture of K logistic distributions, discretized: `log_likelihood`
eq. 3     the mean of green depends on red, that of blue on both: `coupled_means`
sec. 2.2  two streams of feature maps (of arXiv:1606.05328): u sees the rows above, ul also the
          pixels to the left. Both are shifted, so that no pixel sees itself or a later one
sec. 2.3  three resolutions, down and up again: `Stream`
sec. 2.4  skip connections between them: `Stream`; gated blocks, to each of which h is added, with
          the dropout of sec. 2.5 and weight norm: `GatedResnet`

Where the paper is silent: log s is at least -7 and the coefficients pass through tanh, as in the
authors' code. That code initializes g of the weight norm from a first batch and s to about 1. Here
s starts at exp(-2), a fraction of the value range. [initial_gain] g starts at 1, with which a few
blocks learn rendered scenes faster; or at |v| of PyTorch's initialization, as in the public code of
MuSE, since maps grow from block to block with g = 1.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from stages.shared.core.config import Field, config_class

LEVELS = 256
HALF_LEVEL = 1 / (LEVELS - 1)  # half the distance of two levels in [-1, 1]
MIN_LOG_S, INIT_LOG_S = -7.0, -2.0
UNIFORM_EPS = 1e-7  # keeps the logit of a float32 near 0 or 1 finite
NUM_SCALES = 3  # resolutions, each half the previous one
DOWNSAMPLING = 2 ** (NUM_SCALES - 1)
ConvT = TypeVar("ConvT", nn.Conv2d, nn.ConvTranspose2d)
KernelSize = tuple[int, int]  # height, width
Padding = tuple[int, int, int, int]  # left, right, top, bottom; negative values crop
Shift = tuple[KernelSize, Padding]
DOWN_SHIFTED: Shift = ((2, 3), (1, 1, 1, 0))  # one row above, one column on each side
DOWN_RIGHT_SHIFTED: Shift = ((2, 2), (1, 0, 1, 0))  # one row above, one column to the left


@config_class
class PixelCNNConfig:
    image_size: int = Field(
        ge=DOWNSAMPLING, description="side of the image, pixels; a multiple of 4"
    )
    num_blocks: int = Field(ge=1, description="gated residual blocks at each of three resolutions")
    num_filters: int = Field(ge=1, description="channels of the feature maps")
    num_mixtures: int = Field(ge=1, description="logistic distributions of a channel")
    dropout: float = Field(ge=0, lt=1, description="dropout of the blocks, 0 to below 1")
    initial_gain: Literal["one", "norm"] = Field(
        description="g of the weight norm before training: 1, or |v|, for many blocks"
    )

    def __post_init__(self) -> None:
        if self.image_size % DOWNSAMPLING:
            raise ValueError(
                f"image_size is {self.image_size} and is halved twice: give a multiple of "
                f"{DOWNSAMPLING}"
            )


def uint8_to_float(pixels: Tensor) -> Tensor:
    """0 to 255 -> -1 to 1"""
    return pixels.float() / 127.5 - 1


def float_to_uint8(x: Tensor) -> Tensor:
    """-1 to 1 -> uint8"""
    return ((x + 1) * 127.5).round().clamp(0, LEVELS - 1).to(torch.uint8)


# ------------------------------------------------------------------------------- distribution
class LogisticMixture(NamedTuple):
    """log pi (B, K, ...), mu and log s (B, 3, K, ...); alpha, beta, gamma (B, 3, K, ...)."""

    log_pi: Tensor
    mu: Tensor
    log_s: Tensor
    coefficients: Tensor


def split_mixture_params(theta: Tensor) -> LogisticMixture:
    """Mixture of each pixel from the network's output theta (B, 10 K, ...)."""
    mixtures = theta.shape[1] // 10
    logits, rest = theta[:, :mixtures], theta[:, mixtures:]
    mu, log_s, coefficients = rest.unflatten(1, (3, 3, mixtures)).unbind(1)
    log_s = log_s.clamp(min=MIN_LOG_S)
    return LogisticMixture(logits.log_softmax(1), mu, log_s, coefficients.tanh())


def coupled_means(mu: Tensor, coefficients: Tensor, x: Tensor) -> Tensor:
    """eq. 3: means (B, 3, K, ...) of each channel given the previous channels of x (B, 3, ...)."""
    red, green = x[:, 0, None], x[:, 1, None]
    alpha, beta, gamma = coefficients.unbind(1)
    means = mu[:, 0], mu[:, 1] + alpha * red, mu[:, 2] + beta * red + gamma * green
    return torch.stack(means, 1)


def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    """eq. 1 and 2: log P (B, ...) of a pixel, its three channels together, in nats.

    theta (B, 10 K, ...), x (B, 3, ...) on the levels. The probability of a level, sigmoid(above) -
    sigmoid(below), is computed as sigmoid(above) sigmoid(-below) (1 - exp(below - above)), whose
    logarithm has no cancellation.
    """
    log_pi, mu, log_s, coefficients = split_mixture_params(theta)
    centered, scale = x[:, :, None] - coupled_means(mu, coefficients, x), torch.exp(-log_s)
    above, below = (centered + HALF_LEVEL) * scale, (centered - HALF_LEVEL) * scale
    first, last = (x < HALF_LEVEL - 1)[:, :, None], (x > 1 - HALF_LEVEL)[:, :, None]
    log_p = (
        torch.log(-torch.expm1(-2 * HALF_LEVEL * scale)).masked_fill(first | last, 0.0)
        - F.softplus(-above).masked_fill(last, 0.0)  # the last level extends to infinity
        - F.softplus(below).masked_fill(first, 0.0)  # the first to minus infinity
    )
    return (log_pi + log_p.sum(1)).logsumexp(1)


def sample_pixel(theta: Tensor, uniform: Tensor) -> Tensor:
    """Sample a pixel (B, 3) by inverse transform: the mixture component, then each channel.

    theta (B, 10 K), uniform (B, 4) in [0, 1]
    """
    log_pi, mu, log_s, coefficients = split_mixture_params(theta)
    below = log_pi.exp().cumsum(1)[:, :-1] < uniform[:, :1]
    component = below.sum(1)[:, None, None].expand(-1, 3, 1)
    mu, log_s, coefficients = (part.gather(2, component) for part in (mu, log_s, coefficients))
    logistic = log_s[..., 0].exp() * uniform[:, 1:].logit(eps=UNIFORM_EPS)
    x = torch.zeros_like(logistic)
    for channel in range(3):
        value = coupled_means(mu, coefficients, x)[:, channel, 0] + logistic[:, channel]
        x[:, channel] = uint8_to_float(float_to_uint8(value))
    return x


# ------------------------------------------------------------------------------- network
def apply_weight_norm(conv: ConvT) -> ConvT:
    """w = g v / |v| for each filter (arXiv:1602.07868), initialized with g = 1 and bias 0."""
    filters = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
    weight_norm(conv, dim=filters)
    g, v = conv.get_submodule("parametrizations.weight").parameters()
    nn.init.ones_(g)
    nn.init.normal_(v, std=0.05)  # shorter than w, so that Adam's steps rotate it faster
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def initialize_gains(network: nn.Module) -> None:
    """Draw w of every convolution as PyTorch does, with g = |v| = |w|."""
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
            w = torch.empty_like(conv.weight)
            conv.weight = nn.init.kaiming_uniform_(w, a=math.sqrt(5))


def conv1x1(inputs: int, outputs: int) -> nn.Conv2d:
    """A "network in network": a linear map of each pixel."""
    return apply_weight_norm(nn.Conv2d(inputs, outputs, 1))


class ShiftedConv(nn.Module):
    """A convolution whose padding (left, right, top, bottom) shifts its receptive field."""

    def __init__(self, inputs: int, outputs: int, kernel: KernelSize, padding: Padding, stride=1):
        super().__init__()
        self.conv = apply_weight_norm(nn.Conv2d(inputs, outputs, kernel, stride))
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


def upsampling_conv(filters: int, kernel: KernelSize) -> nn.ConvTranspose2d:
    """A transposed convolution to twice the size, with the shift of the downsampling pass."""
    crop = (0, kernel[1] - 2)  # a kernel of width 3 is one column too wide on both sides
    conv = nn.ConvTranspose2d(filters, filters, kernel, 2, padding=crop, output_padding=crop)
    return apply_weight_norm(conv)


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))


class GatedResnet(nn.Module):
    """x + a sigmoid(b), where [a, b] is computed from x, `num_beside` other maps, and h."""

    def __init__(self, filters: int, shift: Shift, num_beside: int, dropout: float):
        super().__init__()
        self.first = ShiftedConv(2 * filters, filters, *shift)
        self.beside = conv1x1(2 * filters * num_beside, filters) if num_beside else None
        self.dropout = nn.Dropout(dropout)
        self.second = ShiftedConv(2 * filters, 2 * filters, *shift)

    def forward(self, x: Tensor, active: Tensor, other: list[Tensor], h: Tensor) -> Tensor:
        """x (B, F, s, s); active, other: `concat_elu` of x and of other maps (B, 2 F, s, s)

        h (B, 2 F, 1, 1), the condition of this block
        """
        c = self.first(active)
        if self.beside:
            c = c + self.beside(torch.cat(other, 1))
        c = self.second(self.dropout(concat_elu(c)))
        a, b = (c + h).chunk(2, 1)
        return x + a * b.sigmoid()  # the gradient of F.glu is not channels_last


class Stream(nn.Module):
    """To the smallest resolution (`up`) and back (`down`), with skip connections.

    num_beside: 1 if each block also reads the map of another stream at the same step, else 0
    """

    def __init__(self, config: PixelCNNConfig, shift: Shift, num_beside: int):
        super().__init__()
        self.up, self.down = nn.ModuleList(), nn.ModuleList()
        filters, dropout = config.num_filters, config.dropout
        for scale in range(NUM_SCALES):
            for _ in range(config.num_blocks):
                self.up.append(GatedResnet(filters, shift, num_beside, dropout))
            for _ in range(config.num_blocks + (scale > 0)):
                self.down.append(GatedResnet(filters, shift, num_beside + 1, dropout))
            if scale < NUM_SCALES - 1:
                self.up.append(ShiftedConv(filters, filters, *shift, stride=2))
                self.down.append(upsampling_conv(filters, shift[0]))

    def forward(self, x: Tensor, h: Iterator[Tensor], other: list[Tensor]) -> list[Tensor]:
        """`concat_elu` of the map after each step, since each is read up to three times.

        x (B, F, S, S); h: the condition of each block in turn; other: the output of the other
        stream, empty if this stream reads no other
        """
        skips, maps, active = [], [], concat_elu(x)
        for index, step in enumerate([*self.up, *self.down]):
            gated = isinstance(step, GatedResnet)
            step_inputs = other[index : index + 1]
            if index < len(self.up):
                skips.append(active)
            elif gated:
                step_inputs.append(skips.pop())
            x = step(x, active, step_inputs, next(h)) if gated else step(x)
            active = concat_elu(x)
            maps.append(active)
        return maps


class PixelCNN(nn.Module):
    """P(x | h), h (B, condition_width)."""

    def __init__(self, config: PixelCNNConfig, condition_width: int):
        super().__init__()
        self.size, filters = config.image_size, config.num_filters
        # The fourth channel is 1 inside the image, which distinguishes padding from grey.
        self.u_above = ShiftedConv(4, filters, (2, 3), (1, 1, 2, -1))
        self.ul_above = ShiftedConv(4, filters, (1, 3), (1, 1, 1, -1))
        self.ul_left = ShiftedConv(4, filters, (2, 1), (1, -1, 1, 0))
        self.u = Stream(config, DOWN_SHIFTED, num_beside=0)
        self.ul = Stream(config, DOWN_RIGHT_SHIFTED, num_beside=1)
        self.num_blocks = sum(isinstance(part, GatedResnet) for part in self.u.modules())
        self.condition = nn.Linear(condition_width, 2 * self.num_blocks * 2 * filters, bias=False)
        nn.init.normal_(self.condition.weight, std=0.05)
        mixtures = config.num_mixtures
        self.theta = conv1x1(filters, 10 * mixtures)
        bias = self.theta.get_parameter("bias")
        nn.init.constant_(bias[4 * mixtures : 7 * mixtures], INIT_LOG_S)
        if config.initial_gain == "norm":
            initialize_gains(self)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """theta (B, 10 K, S, S). x (B, 3, S, S), h (B, D)"""
        x, (h_u, h_ul) = _append_ones_channel(x), self._project_condition(h)
        return self._run_ul_stream(x, self._run_u_stream(x, h_u), h_ul)

    def bits_per_dim(self, x: Tensor, h: Tensor) -> Tensor:
        """-log2 P(x | h) for each of the 3 S S dimensions.  (B)"""
        nats = -log_likelihood(self(x, h).contiguous(), x).sum((1, 2))
        return nats / (x[0].numel() * math.log(2))

    @torch.no_grad()
    def sample(self, h: Tensor, generator: Generator) -> Tensor:
        """An image for each h (B, D).  -> (B, 3, S, S)

        Stream u runs once a row, and rows below the current one are left out.
        """
        assert not self.training  # dropout would change the samples
        x = self.condition.weight.new_zeros(len(h), 3, self.size, self.size)
        shape = (self.size, self.size, len(h), 4)
        uniform = torch.rand(shape, generator=generator, device=generator.device).to(x)
        with parametrize.cached():
            h_u, h_ul = self._project_condition(h)
            for row in range(self.size):
                rows = x[:, :, : (row // DOWNSAMPLING + 1) * DOWNSAMPLING]
                u = self._run_u_stream(_append_ones_channel(rows), h_u)
                for column in range(self.size):
                    theta = self._run_ul_stream(_append_ones_channel(rows), u, h_ul)
                    pixel = sample_pixel(theta[:, :, row, column], uniform[row, column])
                    x[:, :, row, column] = pixel
        return x

    def _project_condition(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The term of h in each block of streams u and ul, each (blocks, B, 2 F, 1, 1)"""
        terms = self.condition(h).view(len(h), 2, self.num_blocks, -1, 1, 1)
        return terms.permute(1, 2, 0, 3, 4, 5).unbind(0)

    def _run_u_stream(self, x: Tensor, h: Tensor) -> list[Tensor]:
        """Feature maps of stream u. x (B, 4, S, S)"""
        return self.u(self.u_above(x), iter(h), [])

    def _run_ul_stream(self, x: Tensor, u: list[Tensor], h: Tensor) -> Tensor:
        """theta (B, 10 K, S, S) from stream ul, which reads the maps of stream u."""
        active = self.ul(self.ul_above(x) + self.ul_left(x), iter(h), u)[-1]
        last = active[:, : active.shape[1] // 2].to(self.condition.weight.dtype)
        with torch.autocast(last.device.type, enabled=False):  # bfloat16 has fewer levels
            return self.theta(last)


def _append_ones_channel(x: Tensor) -> Tensor:
    """x (B, 3, S, S) -> (B, 4, S, S)"""
    extended = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    return extended.contiguous(memory_format=torch.channels_last)
