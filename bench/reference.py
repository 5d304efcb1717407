"""What a Hessian is held against: the row loop in float64, all rows or a sample of them.

A sample comes with products `H D V`, `V` random signs: they see every element. `D` scales
columns as errors are scaled, so a wrong element shows however small it is beside the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.case import SEED, Case, flatten

WHOLE = 5000  # the largest N of which all rows are computed
ROWS, SIGNS = 24, 8  # the sample of larger ones


def disagreement(value: Tensor, expected: Tensor) -> float:
    """Largest error, each element against the scale of its row and column.

    The scale of row i is its largest expected magnitude; an element is held against the geometric
    mean of its row's and column's. So a wrong block shows however small it is beside the others.
    """
    scale = _floored(expected.abs().amax(1)).sqrt()
    return ((value - expected).abs() / (scale[:, None] * scale)).max().item()


@dataclass(frozen=True)
class Whole:
    """All rows.

    Attributes:
        matrix: the Hessian, `[N, N]`.
    """

    matrix: Tensor

    def error(self, value: Tensor) -> float:
        """The scaled error of `value`, `[N, N]`."""
        return disagreement(value, self.matrix)


@dataclass(frozen=True)
class Sample:
    """Some rows, and products with every one.

    Attributes:
        index: of the rows, `[R]`.
        rows: these rows, `[R, N]`.
        scale: an estimate of the norm of each row, `[N]`.
        directions: random signs over the root of the scale, `[N, S]`.
        products: the Hessian times these, `[N, S]`.
    """

    index: Tensor
    rows: Tensor
    scale: Tensor
    directions: Tensor
    products: Tensor

    def error(self, value: Tensor) -> float:
        """The larger of two: of an element in the rows, and of all in the mean along a row.

        An element elsewhere that is off by its scale makes the second `1 / sqrt(N)`.
        """
        root = self.scale.sqrt()
        rows = (value[self.index] - self.rows).abs() / (root[self.index, None] * root)
        mean = (value @ self.directions - self.products).abs() / root[:, None]
        errors = torch.stack((rows.max(), mean.max() / len(value) ** 0.5))
        return errors.max().item()  # NaN if one of them is


def reference(case: Case) -> Whole | Sample:
    """The reference for a case in float64: every row up to `WHOLE` variables, else a sample."""
    if case.numel <= WHOLE:
        matrix = torch.autograd.functional.hessian(case.func, case.args)
        return Whole(flatten(matrix, case.inputs))
    return sample(case, ROWS, SIGNS)


def sample(case: Case, rows: int, signs: int) -> Sample:
    """So many rows, spread evenly, the first and the last among them, and so many products."""
    n, device = case.numel, case.inputs[0].device
    times = _transposed_products(case)
    generator = torch.Generator("cpu").manual_seed(SEED)

    def random_signs() -> Tensor:
        bits = torch.randint(2, (n, signs), generator=generator, device="cpu")
        return (2.0 * bits - 1).to(device, torch.float64)

    # The mean square of random sums of a row is its squared norm.
    probes = torch.stack([times(v) for v in random_signs().unbind(1)])
    scale = _floored(probes.square().mean(0).sqrt())
    directions = random_signs() / scale.sqrt()[:, None]
    index = torch.linspace(0, n - 1, rows, device=device).round().long()
    unit = torch.zeros(n, dtype=torch.float64, device=device)
    picked = torch.stack([times(unit.index_fill(0, i, 1)) for i in index])
    products = torch.stack([times(v) for v in directions.unbind(1)], 1)
    return Sample(index, picked, scale, directions, products)


def _transposed_products(case: Case) -> Callable[[Tensor], Tensor]:
    """`v -> v' H`, both of shape `[N]`, by double backward; rows for unit vectors."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in case.inputs)
    gradient = torch.autograd.grad(case.func(*inputs), inputs, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])

    def times(v: Tensor) -> Tensor:
        parts = torch.autograd.grad(
            flat, inputs, v, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.reshape(-1) for part in parts])

    return times


def _floored(scale: Tensor) -> Tensor:
    return scale.clamp_min(1e-12 * scale.max() + 1e-300)
