"""A tanh MLP `d -> h -> 1` under the mean squared error, over its parameters as a tuple.

With residuals r, `H = 2/B (J' J + sum_n r_n D2 y_n)`; `D2 y` couples a unit only with itself.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.case import Case, Draw, Problem, array
from bench.work import Product, Work

BATCH = 128
# N = h (d + 2) + 1: (hidden h, features d)
SHAPES = {
    5: (1, 2),
    51: (5, 8),
    433: (24, 16),
    1633: (48, 32),
    4993: (64, 76),
    8191: (63, 128),
}


def make(size: int, dtype: torch.dtype, device: str) -> Case:
    """`size` parameters `W1 [h, d], b1 [h], W2 [1, h], b2 [1]` on a batch of 128."""
    h, d = SHAPES[size]
    draw = Draw(dtype, device)
    features, target = draw.normal(BATCH, d), draw.normal(BATCH, 1)
    inputs = (
        draw.normal(h, d, scale=d**-0.5),
        draw.normal(h, scale=0.1),
        draw.normal(1, h, scale=h**-0.5),
        draw.normal(1, scale=0.1),
    )

    def func(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(features, w1, b1))
        return F.mse_loss(F.linear(hidden, w2, b2), target)

    def hand(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        z = torch.tanh(torch.addmm(b1, features, w1.T))  # [B, h]
        slope = 1 - z * z
        residual = torch.addmm(b2, z, w2.T) - target  # [B, 1]
        jacobian = z.new_empty(BATCH, size)
        unit = torch.mul(slope, w2, out=jacobian[:, h * d : h * d + h])
        torch.mul(
            unit[:, :, None], features[:, None, :], out=jacobian[:, : h * d].view(BATCH, h, d)
        )
        jacobian[:, h * d + h : -1] = z
        jacobian[:, -1] = 1
        hessian = (jacobian.T * (2 / BATCH)) @ jacobian

        first = (2 / BATCH) * residual * slope  # d2 y / d w2 d a, [B, h]
        second = -2 * first * z * w2  # d2 y / d a2
        w, b, v = slice(0, h * d), slice(h * d, h * d + h), slice(h * d + h, size - 1)
        rows = torch.stack((second, first)).transpose(1, 2)  # [2, h, B]
        mixed = (rows @ features).transpose(1, 2)  # with b1 and with W2, [2, d, h]
        biases = rows.sum(2)

        squares = (features[:, :, None] * features[:, None, :]).view(BATCH, d * d)

        def diagonal(block: Tensor, *shape: int, dims: tuple[int, int]) -> Tensor:
            return block.unflatten(1, shape[1]).unflatten(0, shape[0]).diagonal(0, *dims)

        diagonal(hessian[w, w], (h, d), (h, d), dims=(0, 2)).add_(
            (rows[0] @ squares).view(h, d, d).permute(1, 2, 0)
        )
        for other, block in ((b, mixed[0]), (v, mixed[1])):
            hessian[w, other].unflatten(0, (h, d)).diagonal(0, 0, 2).add_(block)
            hessian[other, w].unflatten(1, (h, d)).diagonal(0, 0, 1).add_(block)
        hessian[b, b].diagonal().add_(biases[0])
        hessian[b, v].diagonal().add_(biases[1])
        hessian[v, b].diagonal().add_(biases[1])
        return hessian

    def twin(jax: ModuleType) -> Any:
        x, t = array(jax, features), array(jax, target)

        def loss(w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
            return jax.numpy.mean((jax.numpy.tanh(x @ w1.T + b1) @ w2.T + b2 - t) ** 2)

        return loss

    work = Work(
        features.numel() + BATCH,
        (
            Product(BATCH, d, h),
            Product(BATCH, h, 1),
            Product(size, BATCH, size, symmetric=True),
            Product(h, BATCH, d, count=2),
            Product(d, BATCH, d, count=h, symmetric=True),
        ),
    )
    return Case(func, inputs, hand, twin, work)


PROBLEM = Problem(
    "mlp_params",
    "tanh MLP, parameters",
    sizes=(5, 51, 433, 1633, 4993),
    quick=(5, 433),
    gpu_sizes=(51, 1633, 8191),
    make=make,
)
