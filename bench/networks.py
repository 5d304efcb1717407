"""Networks as functions of their parameters: a ResNet, a GPT and an MLP under cross entropy.

A :class:`Network` is a case at one size; sizes other than the standard ones are for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.case import Case, Draw


@dataclass(frozen=True)
class Network(Case):
    """A network at one point, and what stock can differentiate twice where that differs.

    Attributes:
        twice: computes what `func` does by other kernels, those that have a double backward;
            `None` where `func` itself is made of such.
    """

    twice: Callable[..., Tensor] | None = None

    @property
    def for_stock(self) -> Callable[..., Tensor]:
        """The function that stock's double backward can take."""
        return self.twice or self.func


class Residual(nn.Module):
    """`relu(x + bn(conv(relu(bn(conv(x))))))`, by a 1 x 1 convolution where shapes change."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.skip = (
            nn.Identity() if stride == 1 else nn.Conv2d(before, after, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(y)))


class ResNet(nn.Sequential):
    """A stem, three residual blocks of w, 2w and 4w channels, mean, linear: ResNet-8 for w = 16."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            Residual(width, width),
            Residual(width, 2 * width),
            Residual(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, classes),
        )


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # [B, heads, T, width / heads] each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Two blocks between an embedding of tokens and places and a head tied to that of tokens."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(2)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.tokens(tokens) + self.places)
        return F.linear(self.norm(x), self.tokens.weight).flatten(0, 1)


def resnet(dtype: torch.dtype, *, width: int = 16, batch: int = 8, side: int = 32) -> Network:
    """78,000 parameters at the standard size; BatchNorm in evaluation mode."""
    draw = Draw(dtype, "cpu")
    images, labels = draw.normal(batch, 3, side, side), draw.labels(batch, 10)
    return _over_parameters(ResNet(width, 10), draw, images, labels)


def gpt(
    dtype: torch.dtype,
    *,
    vocabulary: int = 200,
    length: int = 64,
    width: int = 128,
    heads: int = 4,
    batch: int = 4,
    math: bool = False,
) -> Network:
    """429,000 parameters at the standard size; flash attention, or written in plain ops (`math`).

    PyTorch's flash attention has no double backward, so stock gets the plain one either way.
    """
    draw = Draw(dtype, "cpu")
    tokens, labels = (draw.labels(batch * length, vocabulary) for _ in range(2))
    model = GPT(vocabulary, length, width, heads)
    network = _over_parameters(model, draw, tokens.view(batch, length), labels)

    def plain(*parameters: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return network.func(*parameters)

    func, twice = (plain, None) if math else (network.func, plain)
    return Network(func, network.inputs, twice=twice)


def mlp(
    dtype: torch.dtype, *, widths: tuple[int, ...] = (784, 512, 256, 10), batch: int = 128
) -> Network:
    """535,000 parameters at the standard size; tanh between the layers."""
    draw = Draw(dtype, "cpu")
    images, labels = draw.normal(batch, widths[0]), draw.labels(batch, widths[-1])
    return _over_parameters(tanh_layers(*widths), draw, images, labels)


def tanh_layers(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with tanh between them."""
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def fill(module: nn.Module, draw: Draw) -> dict[str, Tensor]:
    """Parameters for a module: weights scaled by the square root of their fan-in, biases small.

    The statistics of BatchNorm and the gains of all norms stay 1, up to the noise on the gains.
    """
    filled = {}
    for name, p in module.named_parameters():
        weight = p.ndim > 1
        values = draw.normal(*p.shape, scale=p[0].numel() ** -0.5 if weight else 0.1)
        gain = not weight and name.endswith("weight")
        filled[name] = values + 1 if gain else values
    return filled


def _over_parameters(model: nn.Module, draw: Draw, data: Tensor, labels: Tensor) -> Network:
    model.eval().to(data.dtype if data.is_floating_point() else None)
    named = fill(model, draw)

    def func(*parameters: Tensor) -> Tensor:
        scores = functional_call(model, dict(zip(named, parameters, strict=True)), (data,))
        return F.cross_entropy(scores, labels)

    return Network(func, tuple(named.values()))
