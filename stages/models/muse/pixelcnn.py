"""PixelCNN++ (arXiv:1701.05517): draws a picture pixel by pixel, from what a vector h says.

B pictures, S side, F filters, K mixtures, D width of h. x (B, 3, S, S) is a picture whose colours
are 256 levels from -1 to 1, in the order red, green, blue.

eq. 1, 2  a colour is a mixture of K logistic distributions, cut into levels: `log_likelihood`
eq. 3     green moves with red, and blue with both: `coupled`
sec. 2.2  two streams of maps (of arXiv:1606.05328): u has seen the rows above, ul also what stands
          before in its own row. Both are shifted, so that no pixel sees itself or a later one
sec. 2.3  three resolutions, down and up again: `Stream`
sec. 2.4  short-cuts between them: `Stream`; gated blocks, to each of which h is added, with the
          dropout of sec. 2.5 and weight norm: `GatedResnet`

Where the paper is silent: log s is at least -7 and the coefficients pass through tanh, as in its
authors' code. That code measures g of the weight norm on a first batch and starts with s about 1.
Here g starts with 1 and s with exp(-2), a part of the range of colours: scenes are learned faster.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from stages.shared.core.config import Field, config_class

LEVELS = 256
HALF_LEVEL = 1 / (LEVELS - 1)  # of the range from -1 to 1
MIN_LOG_S, INIT_LOG_S = -7.0, -2.0
UNIFORM_EPS = 1e-7  # a float32 next to 0 or 1 still has a logit
NUM_SCALES = 3  # resolutions, each half of the one before
DOWNSAMPLING = 2 ** (NUM_SCALES - 1)
KernelSize = tuple[int, int]  # height, width
Padding = tuple[int, int, int, int]  # left, right, top, bottom; a negative one crops
DOWN_SHIFTED: tuple[KernelSize, Padding] = (
    (2, 3),
    (1, 1, 1, 0),
)  # a row above, a column on both sides
DOWN_RIGHT_SHIFTED: tuple[KernelSize, Padding] = (
    (2, 2),
    (1, 0, 1, 0),
)  # a row above, a column before


@config_class
class PixelCNNConfig:
    image_size: int = Field(ge=DOWNSAMPLING)
    num_blocks: int = Field(ge=1)
    num_filters: int = Field(ge=1)
    num_mixtures: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)

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
    """theta (B, 10 K, ...), what the network says of each pixel"""
    mixtures = theta.shape[1] // 10
    logits, rest = theta[:, :mixtures], theta[:, mixtures:]
    mu, log_s, coefficients = rest.unflatten(1, (3, 3, mixtures)).unbind(1)
    log_s = log_s.clamp(min=MIN_LOG_S)
    return LogisticMixture(logits.log_softmax(1), mu, log_s, coefficients.tanh())


def coupled_means(mu: Tensor, coefficients: Tensor, x: Tensor) -> Tensor:
    """eq. 3: means (B, 3, K, ...) of the colours, given those of x (B, 3, ...) before each."""
    red, green = x[:, 0, None], x[:, 1, None]
    alpha, beta, gamma = coefficients.unbind(1)
    means = mu[:, 0], mu[:, 1] + alpha * red, mu[:, 2] + beta * red + gamma * green
    return torch.stack(means, 1)


def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    """eq. 1 and 2: log P (B, ...), nats of the three colours of a pixel together.

    theta (B, 10 K, ...), x (B, 3, ...) on the levels. A level holds sigmoid(above) -
    sigmoid(below) of a logistic distribution, which is the product sigmoid(above) sigmoid(-below)
    (1 - exp(below - above)): its logarithm never cancels.
    """
    log_pi, mu, log_s, coefficients = split_mixture_params(theta)
    centred, scale = x[:, :, None] - coupled_means(mu, coefficients, x), torch.exp(-log_s)
    above, below = (centred + HALF_LEVEL) * scale, (centred - HALF_LEVEL) * scale
    first, last = (x < HALF_LEVEL - 1)[:, :, None], (x > 1 - HALF_LEVEL)[:, :, None]
    log_p = (
        torch.log(-torch.expm1(-2 * HALF_LEVEL * scale)).masked_fill(first | last, 0.0)
        - F.softplus(-above).masked_fill(last, 0.0)  # the last level has no upper end
        - F.softplus(below).masked_fill(first, 0.0)  # nor the first a lower one
    )
    return (log_pi + log_p.sum(1)).logsumexp(1)


def sample_pixel(theta: Tensor, uniform: Tensor) -> Tensor:
    """The colours (B, 3) that uniform numbers (B, 4) choose: a mixture, then colour by colour.

    theta (B, 10 K)
    """
    log_pi, mu, log_s, coefficients = split_mixture_params(theta)
    passed = log_pi.exp().cumsum(1)[:, :-1] < uniform[:, :1]
    chosen = passed.sum(1)[:, None, None].expand(-1, 3, 1)
    mu, log_s, coefficients = (part.gather(2, chosen) for part in (mu, log_s, coefficients))
    logistic = log_s[..., 0].exp() * uniform[:, 1:].logit(eps=UNIFORM_EPS)
    x = torch.zeros_like(logistic)
    for colour in range(3):
        drawn = coupled_means(mu, coefficients, x)[:, colour, 0] + logistic[:, colour]
        x[:, colour] = uint8_to_float(float_to_uint8(drawn))
    return x


# ------------------------------------------------------------------------------- network
def apply_weight_norm(conv: nn.Module) -> nn.Module:
    """w = g v / |v| for each filter (arXiv:1602.07868), at first with g = 1 and without bias."""
    filters = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
    conv = weight_norm(conv, dim=filters)
    g, v = conv.parametrizations.weight.parameters()
    nn.init.ones_(g)
    nn.init.normal_(v, std=0.05)  # shorter than w would be: Adam's steps turn it faster
    nn.init.zeros_(conv.bias)
    return conv


def conv1x1(inputs: int, outputs: int) -> nn.Module:
    """A "network in network": each pixel by itself."""
    return apply_weight_norm(nn.Conv2d(inputs, outputs, 1))


class ShiftedConv(nn.Module):
    """A convolution that sees what its padding (left, right, top, bottom) moves into its view."""

    def __init__(self, inputs: int, outputs: int, kernel: KernelSize, padding: Padding, stride=1):
        super().__init__()
        self.conv = apply_weight_norm(nn.Conv2d(inputs, outputs, kernel, stride))
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


def upsampling_conv(filters: int, kernel: KernelSize) -> nn.Module:
    """A deconvolution to twice the size: what a pixel sees is shifted as it is on the way up."""
    cut = (0, kernel[1] - 2)  # a third column stands over at both sides
    conv = nn.ConvTranspose2d(filters, filters, kernel, 2, padding=cut, output_padding=cut)
    return apply_weight_norm(conv)


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))


class GatedResnet(nn.Module):
    """x + a sigmoid(b), where [a, b] come of x, of other maps beside it, and of h."""

    def __init__(
        self, filters: int, shift: tuple[KernelSize, Padding], beside: int, dropout: float
    ):
        super().__init__()
        self.first = ShiftedConv(2 * filters, filters, *shift)
        self.beside = conv1x1(2 * filters * beside, filters) if beside else None
        self.dropout = nn.Dropout(dropout)
        self.second = ShiftedConv(2 * filters, 2 * filters, *shift)

    def forward(self, x: Tensor, active: Tensor, beside: list[Tensor], h: Tensor) -> Tensor:
        """x (B, F, s, s), its `concat_elu` and those beside it; h (B, 2 F, 1, 1) for this block"""
        c = self.first(active)
        if self.beside:
            c = c + self.beside(torch.cat(beside, 1))
        c = self.second(self.dropout(concat_elu(c)))
        a, b = (c + h).chunk(2, 1)
        return x + a * b.sigmoid()  # the gradient of F.glu would undo channels_last


class Stream(nn.Module):
    """To the smallest resolution (`up`) and back (`down`), which is given the maps on the way.

    beside: 1 if each block also reads the map of another stream at the same step, else 0.
    """

    def __init__(self, params: PixelCNNConfig, shift: tuple[KernelSize, Padding], beside: int):
        super().__init__()
        self.up, self.down = nn.ModuleList(), nn.ModuleList()
        filters, dropout = params.num_filters, params.dropout
        for scale in range(NUM_SCALES):
            for _ in range(params.num_blocks):
                self.up.append(GatedResnet(filters, shift, beside, dropout))
            for _ in range(params.num_blocks + (scale > 0)):
                self.down.append(GatedResnet(filters, shift, beside + 1, dropout))
            if scale < NUM_SCALES - 1:
                self.up.append(ShiftedConv(filters, filters, *shift, stride=2))
                self.down.append(upsampling_conv(filters, shift[0]))

    def forward(self, x: Tensor, h: Iterator[Tensor], other: list[Tensor]) -> list[Tensor]:
        """`concat_elu` of the map after each step: each is read up to three times.

        x (B, F, S, S), h of one block after another; other: what the other stream returned, or
        nothing if this one reads no other.
        """
        shortcuts, maps, active = [], [], concat_elu(x)
        for place, step in enumerate([*self.up, *self.down]):
            beside = other[place : place + 1]
            if place < len(self.up):
                shortcuts.append(active)
            elif isinstance(step, GatedResnet):
                beside.append(shortcuts.pop())
            gated = isinstance(step, GatedResnet)
            x = step(x, active, beside, next(h)) if gated else step(x)
            active = concat_elu(x)
            maps.append(active)
        return maps


class PixelCNN(nn.Module):
    """P(x | h), h (B, condition_width)."""

    def __init__(self, params: PixelCNNConfig, condition_width: int):
        super().__init__()
        self.size, filters = params.image_size, params.num_filters
        # The fourth channel is one inside the picture, so that padding is not taken for grey.
        self.u_above = ShiftedConv(4, filters, (2, 3), (1, 1, 2, -1))
        self.ul_above = ShiftedConv(4, filters, (1, 3), (1, 1, 1, -1))
        self.ul_left = ShiftedConv(4, filters, (2, 1), (1, -1, 1, 0))
        self.u = Stream(params, DOWN_SHIFTED, beside=0)
        self.ul = Stream(params, DOWN_RIGHT_SHIFTED, beside=1)
        self.blocks = sum(isinstance(part, GatedResnet) for part in self.u.modules())
        self.condition = nn.Linear(condition_width, 2 * self.blocks * 2 * filters, bias=False)
        nn.init.normal_(self.condition.weight, std=0.05)
        self.theta = conv1x1(filters, 10 * params.num_mixtures)
        nn.init.constant_(
            self.theta.bias[4 * params.num_mixtures : 7 * params.num_mixtures], INIT_LOG_S
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """theta (B, 10 K, S, S). x (B, 3, S, S), h (B, D)"""
        x, of_u, of_ul = _append_ones_channel(x), *self._project_condition(h)
        return self._run_ul_stream(x, self._run_u_stream(x, of_u), of_ul)

    def bits_per_dim(self, x: Tensor, h: Tensor) -> Tensor:
        """-log2 P(x | h) for each of the 3 S S dimensions.  (B)"""
        nats = -log_likelihood(self(x, h).contiguous(), x).sum((1, 2))
        return nats / (x[0].numel() * math.log(2))

    @torch.no_grad()
    def sample(self, h: Tensor, generator: Generator) -> Tensor:
        """A picture for each h (B, D).  (B, 3, S, S)

        What stands above is read once a row, and rows that come later are left out.
        """
        assert not self.training  # dropout would draw something else
        x = self.theta.bias.new_zeros(len(h), 3, self.size, self.size)
        shape = (self.size, self.size, len(h), 4)
        uniform = torch.rand(shape, generator=generator, device=generator.device).to(x)
        with parametrize.cached():
            of_u, of_ul = self._project_condition(h)
            for row in range(self.size):
                reached = x[:, :, : (row // DOWNSAMPLING + 1) * DOWNSAMPLING]
                u = self._run_u_stream(_append_ones_channel(reached), of_u)
                for column in range(self.size):
                    theta = self._run_ul_stream(_append_ones_channel(reached), u, of_ul)[
                        :, :, row, column
                    ]
                    x[:, :, row, column] = sample_pixel(theta, uniform[row, column])
        return x

    def _project_condition(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """What h adds in each block of both streams: (blocks, B, 2 F, 1, 1) twice"""
        each = self.condition(h).view(len(h), 2, self.blocks, -1, 1, 1)
        return each.permute(1, 2, 0, 3, 4, 5).unbind(0)

    def _run_u_stream(self, x: Tensor, h: Tensor) -> list[Tensor]:
        """Maps of stream u. x (B, 4, S, S)"""
        return self.u(self.u_above(x), iter(h), [])

    def _run_ul_stream(self, x: Tensor, u: list[Tensor], h: Tensor) -> Tensor:
        """theta from stream ul, which reads stream u."""
        active = self.ul(self.ul_above(x) + self.ul_left(x), iter(h), u)[-1]
        last = active[:, : active.shape[1] // 2].to(self.theta.bias.dtype)
        with torch.autocast(last.device.type, enabled=False):  # bfloat16 tells fewer levels apart
            return self.theta(last)


def _append_ones_channel(x: Tensor) -> Tensor:
    """x (B, 3, S, S) -> (B, 4, S, S)"""
    marked = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    return marked.contiguous(memory_format=torch.channels_last)
