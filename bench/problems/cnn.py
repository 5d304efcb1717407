"""A small CNN, conv-tanh-conv-tanh-pool-linear under cross entropy, over its parameters."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.case import Case, Draw, Problem, array
from bench.work import Product, Work

BATCH, SIDE = 32, 8


class Shape(NamedTuple):
    """Channels of the two convolutions, kernel side, pooled side, classes."""

    first: int
    second: int
    kernel: int
    pooled: int
    classes: int


SHAPES = {
    8: Shape(1, 1, 1, 1, 2),
    105: Shape(2, 3, 3, 1, 7),
    562: Shape(4, 6, 3, 2, 12),
    6090: Shape(16, 32, 3, 2, 10),
}


def work(size: int, classes: int) -> Work:
    """The Gauss-Newton part, `J' C J` with `C` of rank `classes - 1` in each image."""
    images = BATCH * SIDE * SIDE
    return Work(images, (Product(size, BATCH * (classes - 1), size, symmetric=True),))


def make(size: int, dtype: torch.dtype, device: str) -> Case:
    """`size` parameters (weights and biases of three layers) on 32 images of 8 x 8."""
    first, second, k, pooled, classes = SHAPES[size]
    draw = Draw(dtype, device)
    images, labels = draw.normal(BATCH, 1, SIDE, SIDE), draw.labels(BATCH, classes)
    flat = second * pooled * pooled
    inputs = (
        draw.normal(first, 1, k, k, scale=1 / k),
        draw.normal(first, scale=0.1),
        draw.normal(second, first, k, k, scale=first**-0.5 / k),
        draw.normal(second, scale=0.1),
        draw.normal(classes, flat, scale=flat**-0.5),
        draw.normal(classes, scale=0.1),
    )
    window = SIDE // pooled

    def func(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor) -> Tensor:
        x = torch.tanh(F.conv2d(images, w1, b1, padding="same"))
        x = torch.tanh(F.conv2d(x, w2, b2, padding="same"))
        x = F.avg_pool2d(x, window).flatten(1)
        return F.cross_entropy(F.linear(x, w3, b3), labels)

    def twin(jax: ModuleType) -> Any:
        jnp, pixels, classes_of = jax.numpy, array(jax, images), array(jax, labels)

        def layer(x: Any, w: Any, b: Any) -> Any:
            y = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME")
            return jnp.tanh(y + b[:, None, None])

        def loss(w1: Any, b1: Any, w2: Any, b2: Any, w3: Any, b3: Any) -> Any:
            x = layer(layer(pixels, w1, b1), w2, b2)
            x = x.reshape(BATCH, second, pooled, window, pooled, window).mean((3, 5))
            logp = jax.nn.log_softmax(x.reshape(BATCH, flat) @ w3.T + b3, axis=1)
            return -jnp.mean(jnp.take_along_axis(logp, classes_of[:, None], axis=1))

        return loss

    return Case(func, inputs, None, twin, work(size, classes))


PROBLEM = Problem(
    "cnn",
    "small CNN, parameters",
    sizes=(8, 105, 562),
    quick=(8, 105),
    gpu_sizes=(105, 562, 6090),
    make=make,
)
