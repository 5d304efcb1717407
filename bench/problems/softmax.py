"""Softmax regression over `W [d, C]`: `H[ac, be] = mean_n X_a X_b (P_c [c = e] - P_c P_e)`."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.case import Case, Draw, Problem, array
from bench.work import Product, Work

SAMPLES = 1797
# N: (features d, classes C)
SHAPES = {4: (2, 2), 15: (5, 3), 250: (25, 10), 650: (65, 10), 8192: (512, 16)}


def make(size: int, dtype: torch.dtype, device: str) -> Case:
    """`size` weights; as many samples as the digits data set has (64 for the small shapes)."""
    d, c = SHAPES[size]
    draw = Draw(dtype, device)
    count = SAMPLES if size > 16 else 64
    features = draw.normal(count, d)
    labels = draw.labels(count, c)
    weights = draw.normal(d, c, scale=d**-0.5)

    def func(w: Tensor) -> Tensor:
        return F.cross_entropy(features @ w, labels)

    def hand(w: Tensor) -> Tensor:
        p = torch.softmax(features @ w, dim=1)
        rows = (features[:, :, None] * p[:, None, :]).view(count, d * c)
        hessian = (rows.T / -count) @ rows
        grams = (features.T * (p.T / count)[:, None, :]).view(c * d, count) @ features
        hessian.view(d, c, d, c).diagonal(dim1=1, dim2=3).add_(grams.view(c, d, d).permute(1, 2, 0))
        return hessian

    def twin(jax: ModuleType) -> Any:
        x, y = array(jax, features), array(jax, labels)

        def loss(w: Any) -> Any:
            logp = jax.nn.log_softmax(x @ w, axis=1)
            return -jax.numpy.mean(jax.numpy.take_along_axis(logp, y[:, None], axis=1))

        return loss

    work = Work(
        features.numel() + count,
        (
            Product(count, d, c),
            Product(size, count, size, symmetric=True),
            Product(d, count, d, count=c, symmetric=True),
        ),
    )
    return Case(func, (weights,), hand, twin, work)


PROBLEM = Problem(
    "softmax",
    "softmax regression",
    sizes=(4, 15, 250, 650),
    quick=(4, 250),
    gpu_sizes=(15, 650, 8192),
    make=make,
)
