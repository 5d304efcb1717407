"""Self-attention written out, `|softmax(Q K' / sqrt d) V Wo|^2`, over its inputs `[T, d]`."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, Draw, Problem, array
from bench.work import Product, Work

# N: (tokens T, width d)
SHAPES = {4: (2, 2), 16: (4, 4), 256: (16, 16), 1024: (32, 32), 8192: (128, 64)}


def work(tokens: int, width: int) -> Work:
    """The widest product of `2 J' J`, `sum_t A_tr A_ts p_t p_t'` for pairs r <= s, `p = P' x_t`.

    It couples every pair of tokens through the scores, and both its factors are symmetric.
    """
    pairs, squares = tokens * (tokens + 1) // 2, width * (width + 1) // 2
    return Work(4 * width * width, (Product(pairs, tokens, squares),))


def make(size: int, dtype: torch.dtype, device: str) -> Case:
    """`T` tokens of width `d`, one head."""
    tokens, width = SHAPES[size]
    draw = Draw(dtype, device)
    wq, wk, wv, wo = (draw.normal(width, width, scale=width**-0.5) for _ in range(4))
    x = draw.normal(tokens, width)

    def func(x: Tensor) -> Tensor:
        q, k, v = x @ wq, x @ wk, x @ wv
        weights = torch.softmax(q @ k.T / math.sqrt(width), dim=-1)
        return ((weights @ v) @ wo).pow(2).sum()

    def twin(jax: ModuleType) -> Any:
        vq, vk, vv, vo = (array(jax, w) for w in (wq, wk, wv, wo))

        def loss(x: Any) -> Any:
            weights = jax.nn.softmax((x @ vq) @ (x @ vk).T / math.sqrt(width), axis=-1)
            return jax.numpy.sum(((weights @ (x @ vv)) @ vo) ** 2)

        return loss

    return Case(func, (x,), None, twin, work(tokens, width))


PROBLEM = Problem(
    "attention",
    "attention block",
    sizes=(4, 16, 256, 1024),
    quick=(4, 256),
    gpu_sizes=(16, 1024, 8192),
    make=make,
)
