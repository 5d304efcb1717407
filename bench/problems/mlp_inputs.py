"""A tanh MLP summed over a batch, over its inputs `[batch, features]`: a block-diagonal Hessian.

Block n is `W1' diag(w2 tanh''(a_n)) W1`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.case import Case, Draw, Problem, array
from bench.work import Product, Work

HIDDEN = 64
# N: (batch, features)
SHAPES = {
    4: (2, 2),
    16: (4, 4),
    256: (16, 16),
    1024: (64, 16),
    2048: (128, 16),
    16384: (1024, 16),
}


def make(size: int, dtype: torch.dtype, device: str) -> Case:
    """`size = batch * features` inputs, 64 hidden units."""
    batch, width = SHAPES[size]
    draw = Draw(dtype, device)
    w1, b1 = draw.normal(HIDDEN, width, scale=width**-0.5), draw.normal(HIDDEN, scale=0.1)
    w2, b2 = draw.normal(1, HIDDEN, scale=HIDDEN**-0.5), draw.normal(1, scale=0.1)
    x = draw.normal(batch, width)

    def func(x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(x, w1, b1)), w2, b2).sum()

    def hand(x: Tensor) -> Tensor:
        z = torch.tanh(torch.addmm(b1, x, w1.T))
        second = (z * z - 1) * z * (2 * w2)  # [B, hidden]
        squares = (w1[:, :, None] * w1[:, None, :]).view(HIDDEN, width * width)
        blocks = (second @ squares).view(batch, width, width)
        hessian = x.new_zeros(batch, width, batch, width)
        hessian.diagonal(0, 0, 2).copy_(blocks.permute(1, 2, 0))
        return hessian

    def twin(jax: ModuleType) -> Any:
        v1, c1, v2, c2 = (array(jax, p) for p in (w1, b1, w2, b2))
        return lambda x: jax.numpy.sum(jax.numpy.tanh(x @ v1.T + c1) @ v2.T + c2)

    work = Work(
        HIDDEN * (width + 2) + 1,
        (
            Product(batch, width, HIDDEN),
            Product(width, HIDDEN, width, count=batch, symmetric=True),
        ),
    )
    return Case(func, (x,), hand, twin, work)


PROBLEM = Problem(
    "mlp_inputs",
    "tanh MLP, per-sample inputs",
    sizes=(4, 16, 256, 1024, 2048),
    quick=(4, 1024),
    gpu_sizes=(16, 2048, 16384),
    make=make,
    structured=True,
)
