"""Ackley's function: a diagonal plus two symmetric outer products.

`f = 20 - 20 exp(-0.2 sqrt(mean x^2)) + e - exp(mean cos(2 pi x))`.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, Draw, Problem
from bench.work import Product, Work

TAU = 2 * math.pi


def func(x: Tensor) -> Tensor:
    """The value at `x`, shape `[N]`."""
    bowl = torch.exp(-0.2 * torch.sqrt((x**2).mean()))
    ripple = torch.exp(torch.cos(TAU * x).mean())
    return 20 - 20 * bowl + math.e - ripple


def hand(x: Tensor) -> Tensor:
    """With `r = sqrt(mean x^2)`: `4 bowl / (n r)` times `I - x x' (1 / r^2 + 0.2 / r) / n`, ..."""
    n = x.numel()
    square = torch.dot(x, x) / n
    r = square.sqrt()
    bowl = torch.exp(-0.2 * r) * (4 / n) / r
    angle = TAU * x
    cosine, sine = angle.cos(), angle.sin()
    ripple = torch.exp(cosine.mean()) * (TAU * TAU / n)
    left = torch.stack((x * (bowl * (1 / square + 0.2 / r) / -n), sine * (ripple / -n)), dim=1)
    hessian = left @ torch.stack((x, sine))
    hessian.diagonal().add_(ripple * cosine + bowl)
    return hessian


def twin(jax: ModuleType) -> Any:
    """`func` in JAX."""
    jnp = jax.numpy

    def value(x: Any) -> Any:
        bowl = jnp.exp(-0.2 * jnp.sqrt(jnp.mean(x**2)))
        return 20 - 20 * bowl + math.e - jnp.exp(jnp.mean(jnp.cos(TAU * x)))

    return value


def make(size: int, dtype: torch.dtype, device: str) -> Case:
    """`size` variables away from the cusp at the origin."""
    outer = Product(size, 2, size, symmetric=True)
    x = Draw(dtype, device).normal(size)
    return Case(func, (x,), hand, twin, Work(products=(outer,)))


PROBLEM = Problem(
    "ackley",
    "Ackley function",
    sizes=(4, 16, 64, 1024),
    quick=(4, 1024),
    gpu_sizes=(64, 1024, 16384),
    make=make,
    structured=True,
)
