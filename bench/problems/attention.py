"""Self-attention written out, `|softmax(Q K' / sqrt d) V Wo|^2`, over its inputs `[T, d]`."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, Draw, Problem, array

SHAPES = {4: (2, 2), 16: (4, 4), 256: (16, 16), 1024: (32, 32)}  # N: (tokens T, width d)


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

    return Case(func, (x,), None, twin)


PROBLEM = Problem("attention", "attention block", tuple(SHAPES), (4, 256), make)
