"""The two values everything here passes around: a `Problem`, and the `Case` it makes at one size.

A case is `func: R^N -> R`, its inputs and, where they exist, the closed form of its Hessian and a
JAX twin of `func` over the same data. `flatten` brings what a peer returns to one `[N, N]` tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.work import Work

SEED = 20


@dataclass(frozen=True)
class Case:
    """One function at one point.

    Attributes:
        func: scalar function of `inputs`, written as a user would write it.
        inputs: the point; the Hessian is taken with respect to all of them.
        hand: the closed form an expert would write, called as `hand(*inputs)`; returns `[N, N]`
            or any reshape of it.
        jax: given the `jax` module, returns the twin of `func` on JAX arrays.
        work: what no algorithm known here does without.
    """

    func: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    hand: Callable[..., Tensor] | None = None
    jax: Callable[[ModuleType], Callable[..., Any]] | None = None
    work: Work = Work()

    @property
    def args(self) -> Tensor | tuple[Tensor, ...]:
        """The inputs as a user passes them: a lone tensor is not wrapped in a tuple."""
        return self.inputs[0] if len(self.inputs) == 1 else self.inputs

    @property
    def numel(self) -> int:
        """N, the number of elements of all inputs together."""
        return sum(x.numel() for x in self.inputs)


@dataclass(frozen=True)
class Problem:
    """A family of cases.

    Attributes:
        name: one word, as given to `--problems`.
        summary: one line for the report.
        sizes: the values of N that are measured on the CPU, ascending.
        quick: the sizes of a `--quick` run there.
        gpu_sizes: the values of N on a GPU: small, medium, and one that fills the chip.
        make: `make(size, dtype, device)` gives the case; same data in every dtype, by seed.
        structured: the Hessian or the sweep has structure that bounds memory by the output.
    """

    name: str
    summary: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    gpu_sizes: tuple[int, ...]
    make: Callable[[int, torch.dtype, str], Case]
    structured: bool = False

    def sizes_on(self, device: str, quick: bool = False) -> tuple[int, ...]:
        """The values of N for a device, ascending; quick: the smallest and one more."""
        if device == "cpu":
            return self.quick if quick else self.sizes
        return self.gpu_sizes[:2] if quick else self.gpu_sizes


class Draw:
    """Deterministic data: drawn in float64 on the CPU, then cast and moved."""

    def __init__(self, dtype: torch.dtype, device: str, seed: int = SEED) -> None:
        """Starts a stream of its own, so that one problem's data never depends on another's."""
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._dtype, self._device = dtype, device

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers of mean 0 and the given standard deviation."""
        x = torch.randn(*shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return x.mul_(scale).to(self._device, self._dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers in `[low, high)`."""
        x = torch.rand(*shape, generator=self._generator, dtype=torch.float64, device="cpu")
        return (low + (high - low) * x).to(self._device, self._dtype)

    def labels(self, count: int, classes: int) -> Tensor:
        """Integer class labels, shape `[count]`."""
        labels = torch.randint(classes, (count,), generator=self._generator, device="cpu")
        return labels.to(self._device)


def array(jax: ModuleType, x: Tensor) -> Any:
    """A JAX array with the values and dtype of `x`."""
    return jax.numpy.asarray(x.detach().cpu().numpy())


def flatten(result: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    """Any peer's Hessian as one float64 tensor `[N, N]`, where the inputs are.

    Args:
        result: a tensor or JAX array of N * N elements, or nested tuples of blocks (i, j).
        inputs: the inputs that the blocks belong to.

    Returns:
        The Hessian with inputs flattened and concatenated in order, shape `[N, N]`.
    """
    n, device = sum(x.numel() for x in inputs), inputs[0].device
    if not isinstance(result, (tuple, list)):
        return _as_tensor(result, device).reshape(n, n)
    rows = []
    for row, x in zip(result, inputs, strict=True):
        blocks = [
            _as_tensor(block, device).reshape(x.numel(), y.numel())
            for block, y in zip(row, inputs, strict=True)
        ]
        rows.append(torch.cat(blocks, 1))
    return torch.cat(rows)


def _as_tensor(block: Any, device: torch.device) -> Tensor:
    if isinstance(block, Tensor):
        return block.detach().to(device, torch.float64)
    return torch.from_numpy(np.array(block)).to(device, torch.float64)
