"""Logistic regression: `H = X' diag(p (1 - p)) X / n`, one weighted Gram matrix."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.case import Case, Draw, Problem, array
from bench.work import Product, Work

SAMPLES_PER_WEIGHT = 2


def make(size: int, dtype: torch.dtype, device: str) -> Case:
    """`size` weights, two samples to each weight (64 at least)."""
    draw = Draw(dtype, device)
    count = max(64, SAMPLES_PER_WEIGHT * size)
    features = draw.normal(count, size)
    labels = draw.labels(count, 2).to(dtype)
    weights = draw.normal(size, scale=size**-0.5)

    def func(w: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(features @ w, labels)

    def hand(w: Tensor) -> Tensor:
        p = torch.sigmoid(features @ w)
        return features.T @ ((p * (1 - p) / count)[:, None] * features)

    def twin(jax: ModuleType) -> Any:
        x, y = array(jax, features), array(jax, labels)

        def loss(w: Any) -> Any:
            z = x @ w
            return jax.numpy.mean(jax.nn.softplus(z) - y * z)

        return loss

    gram = Product(size, count, size, symmetric=True)
    return Case(func, (weights,), hand, twin, Work(features.numel() + count, (gram,)))


PROBLEM = Problem(
    "logistic",
    "logistic regression",
    sizes=(4, 16, 256, 1024),
    quick=(4, 256),
    gpu_sizes=(16, 1024, 8192),
    make=make,
)
