"""A Lennard-Jones cluster over positions `[n, 3]`, all pairs.

With `s = |x_i - x_j|^2` and `phi(s) = 4 (s^-6 - s^-3)`, a pair adds `4 phi'' d d' + 2 phi' I` to
the blocks (i, i) and (j, j) and takes it from (i, j) and (j, i).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, Draw, Problem, array


def make(size: int, dtype: torch.dtype, device: str) -> Case:
    """`size / 3` atoms on a jittered cubic lattice close to the bond length."""
    n = size // 3
    side = next(s for s in range(1, n + 1) if s**3 >= n)
    steps = torch.arange(side, dtype=torch.float64, device="cpu")
    lattice = torch.cartesian_prod(*[steps] * 3)[:n].reshape(n, 3)
    jitter = Draw(torch.float64, "cpu").uniform(n, 3, low=-0.05, high=0.05)
    x = (1.12 * lattice + jitter).to(device, dtype)
    eye = torch.eye(n, dtype=dtype, device=device)

    def func(x: Tensor) -> Tensor:
        d = x[:, None] - x[None, :]
        s = (d * d).sum(-1) + eye  # an atom sees itself at distance 1, where the energy is 0
        inv6 = s**-3
        return 2 * (inv6 * inv6 - inv6).sum()

    def hand(x: Tensor) -> Tensor:
        rows = x.T.contiguous()
        d = rows[:, :, None] - rows[:, None, :]  # [3, n, n]
        inv2 = ((d * d).sum(0) + eye).reciprocal_()
        inv6 = inv2 * inv2 * inv2
        slope = (inv6 * (inv6 * 48 - 24)).mul_(inv2)  # -2 phi'
        bend = (inv6 * (192 - inv6 * 672)).mul_(inv2).mul_(inv2)  # -4 phi''
        slope.fill_diagonal_(0)
        blocks = d[:, None] * (d * bend)[None]  # [3, 3, n, n]
        blocks.diagonal().add_(slope[:, :, None])
        blocks.diagonal(0, 2, 3).copy_(blocks.sum(3).neg_())
        return blocks.permute(2, 0, 3, 1).contiguous()

    def twin(jax: ModuleType) -> Any:
        unit = array(jax, eye)

        def energy(x: Any) -> Any:
            d = x[:, None] - x[None, :]
            inv6 = (jax.numpy.sum(d * d, axis=-1) + unit) ** -3
            return 2 * jax.numpy.sum(inv6 * inv6 - inv6)

        return energy

    return Case(func, (x,), hand, twin)


PROBLEM = Problem(
    "lennard_jones",
    "Lennard-Jones cluster",
    sizes=(6, 12, 63, 255, 510),
    quick=(6, 255),
    gpu_sizes=(63, 510, 16383),
    make=make,
    structured=True,
)
