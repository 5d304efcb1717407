"""Rosenbrock's chain, `sum 100 (x[i+1] - x[i]^2)^2 + (1 - x[i])^2`: a tridiagonal Hessian."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, Draw, Problem


def func(x: Tensor) -> Tensor:
    """The value at `x`, shape `[N]`."""
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def hand(x: Tensor) -> Tensor:
    """Zeros and three diagonals."""
    head = x[:-1]
    diagonal = torch.full_like(x, 200.0)
    diagonal[0] = 0.0
    diagonal[:-1].add_(1200 * head * head - 400 * x[1:] + 2)
    hessian = x.new_zeros(x.numel(), x.numel())
    hessian.diagonal().copy_(diagonal)
    off = -400 * head
    hessian.diagonal(1).copy_(off)
    hessian.diagonal(-1).copy_(off)
    return hessian


def twin(jax: ModuleType) -> Any:
    """`func` in JAX; the same expression serves."""
    return func


def make(size: int, dtype: torch.dtype, device: str) -> Case:
    """The chain of `size` variables near its valley."""
    x = Draw(dtype, device).uniform(size, low=0.5, high=1.5)
    return Case(func, (x,), hand, twin)


PROBLEM = Problem(
    "rosenbrock",
    "Rosenbrock chain",
    sizes=(4, 16, 64, 1024, 2048),
    quick=(4, 1024),
    gpu_sizes=(64, 1024, 16384),
    make=make,
    structured=True,
)
