"""Negative log-likelihood of a Gaussian mixture: logits `[C]`, means `[C, D]`, log scales `[C]`.

With `a_nc` the log joint density of sample n and component c, r the responsibilities and
`u_nc = da_nc`: `H = mean_n (-sum_c r (D2 a + u u') + g g')`, `g = sum_c r u`, plus the logits' own
softmax term.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, Draw, Problem, array
from bench.work import Product, Work

SAMPLES = 512
# N = C (D + 2): (components C, dimensions D)
SHAPES = {8: (2, 2), 128: (8, 14), 544: (16, 32), 8192: (128, 62)}


def make(size: int, dtype: torch.dtype, device: str) -> Case:
    """`size` parameters, 512 samples around the true means."""
    c, dim = SHAPES[size]
    draw = Draw(torch.float64, "cpu")
    centres = draw.normal(c, dim, scale=1.5)
    data = centres[draw.labels(SAMPLES, c)] + draw.normal(SAMPLES, dim)
    start = (
        draw.normal(c, scale=0.3),
        centres + draw.normal(c, dim, scale=0.3),
        draw.normal(c, scale=0.2),
    )
    data = data.to(device, dtype)
    inputs = tuple(x.to(device, dtype) for x in start)

    def func(logits: Tensor, means: Tensor, scales: Tensor) -> Tensor:
        square = ((data[:, None] - means) ** 2).sum(-1)
        joint = torch.log_softmax(logits, 0) - 0.5 * square * torch.exp(-2 * scales) - dim * scales
        return -torch.logsumexp(joint, dim=1).mean()

    def hand(logits: Tensor, means: Tensor, scales: Tensor) -> Tensor:
        precision = torch.exp(-2 * scales)
        offset = data[:, None] - means  # [n, C, D]
        square = (offset * offset).sum(-1) * precision
        joint = logits - 0.5 * square - dim * scales
        share = torch.softmax(joint, dim=1) / SAMPLES  # r / n
        ones = torch.ones_like(square)[..., None]
        # d a / d (logit, mean, scale), [n, C, D + 2]
        u = torch.cat((ones, offset * precision[:, None], square[..., None] - dim), dim=2)
        weighted = u * share[..., None]
        flat = weighted.view(SAMPLES, size)
        full = ((SAMPLES * flat.T) @ flat).view(c, dim + 2, c, dim + 2)
        own = weighted.permute(1, 2, 0) @ u.transpose(0, 1)  # sum r u u', [C, D + 2, D + 2]
        total = share.sum(0)
        cross = -2 * (weighted[:, :, 1:-1].sum(0))  # D2 a between mean and scale, [C, D]
        own[:, 1:-1, -1] += cross
        own[:, -1, 1:-1] += cross
        own[:, 1:-1, 1:-1].diagonal(0, 1, 2).sub_((total * precision)[:, None])
        own[:, -1, -1] -= 2 * (share * square).sum(0)
        full.diagonal(0, 0, 2).sub_(own.permute(1, 2, 0))
        p = torch.softmax(logits, 0)
        full[:, 0, :, 0] += torch.diag(p) - p[:, None] * p
        return _by_input(full, c, dim)

    def twin(jax: ModuleType) -> Any:
        jnp, samples = jax.numpy, array(jax, data)

        def loss(logits: Any, means: Any, scales: Any) -> Any:
            square = jnp.sum((samples[:, None] - means) ** 2, axis=-1)
            joint = jax.nn.log_softmax(logits) - 0.5 * square * jnp.exp(-2 * scales) - dim * scales
            return -jnp.mean(jax.nn.logsumexp(joint, axis=1))

        return loss

    work = Work(
        data.numel(),
        (
            Product(size, SAMPLES, size, symmetric=True),
            Product(dim + 2, SAMPLES, dim + 2, count=c, symmetric=True),
        ),
    )
    return Case(func, inputs, hand, twin, work)


def _by_input(full: Tensor, c: int, dim: int) -> Tensor:
    """From component-major `[C, D + 2, C, D + 2]` to logits, then means, then scales."""
    parts = (slice(0, 1), slice(1, dim + 1), slice(dim + 1, dim + 2))
    starts = (0, c, c + c * dim, c * (dim + 2))
    hessian = full.new_empty(starts[-1], starts[-1])
    for i, row in enumerate(parts):
        for j, column in enumerate(parts):
            block = hessian[starts[i] : starts[i + 1], starts[j] : starts[j + 1]]
            block.unflatten(1, (c, -1)).unflatten(0, (c, -1)).copy_(full[:, row, :, column])
    return hessian


PROBLEM = Problem(
    "mixture",
    "Gaussian mixture",
    sizes=(8, 128, 544),
    quick=(8, 128),
    gpu_sizes=(8, 544, 8192),
    make=make,
)
