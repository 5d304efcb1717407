"""An elastic network of springs over positions `[n, 3]`, each bonded to its neighbours in a list.

With `r = x_i - x_j`, `l = |r|` and `phi(l) = (l - l0)^2 / 2`, a bond adds
`phi'' r r' / l^2 + phi' / l (I - r r' / l^2)` to the blocks (i, i) and (j, j) and takes it from
(i, j) and (j, i).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, Draw, Problem, array
from bench.work import Work


def make(size: int, dtype: torch.dtype, device: str) -> Case:
    """`size / 3` nodes on a ring, each bonded to its next three neighbours."""
    n = size // 3
    draw = Draw(dtype, device)
    x = draw.uniform(n, 3, low=-2.0, high=2.0)
    reach = min(3, n - 1)
    i = torch.arange(n, device=device).repeat_interleave(reach)
    j = (i + torch.arange(1, reach + 1, device=device).repeat(n)) % n

    def func(x: Tensor) -> Tensor:
        r = x[i] - x[j]
        return 0.5 * (((r * r).sum(-1) + 0.01).sqrt() - 1).square().sum()

    def hand(x: Tensor) -> Tensor:
        r = x[i] - x[j]
        length = ((r * r).sum(-1) + 0.01).sqrt()
        slope = (1 - 1 / length)[:, None, None]  # phi' / l
        bend = (1 / length**3)[:, None, None] * r[:, :, None] * r[:, None, :]
        block = slope * torch.eye(3, dtype=x.dtype, device=x.device) + bend
        hessian = x.new_zeros(n, n, 3, 3)
        for a, b, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            hessian.index_put_((a, b), sign * block, accumulate=True)
        return hessian.permute(0, 2, 1, 3).contiguous()

    def twin(jax: ModuleType) -> Any:
        first, second = array(jax, i), array(jax, j)

        def energy(x: Any) -> Any:
            r = x[first] - x[second]
            length = jax.numpy.sqrt(jax.numpy.sum(r * r, axis=-1) + 0.01)
            return 0.5 * jax.numpy.sum((length - 1) ** 2)

        return energy

    return Case(func, (x,), hand, twin, Work(data=2 * i.numel()))


PROBLEM = Problem(
    "network",
    "elastic network",
    sizes=(6, 12, 63, 255, 1023),
    quick=(6, 255),
    gpu_sizes=(63, 1023, 16383),
    make=make,
    structured=True,
)
