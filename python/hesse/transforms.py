"""Inside ``torch.func`` transforms, where only transforms compose: the Hessian as ``jacrev`` twice.

Stock's function refuses most of these calls. The engine cannot take them either: the graph of an
outer level is hidden from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import jacrev

from .stock import Blocks


def hessian(
    func: Callable[..., Tensor],
    given: tuple[Tensor, ...],
    check_output: Callable[[Any], None],
    chunk_size: int | None,
) -> Blocks:
    """The Hessian at the innermost level, differentiable by all the levels around it.

    Args:
        func: returns one element, of any shape.
        given: the inputs, a tensor ``x_i`` each.
        check_output: raises when ``func`` returns something else.
        chunk_size: rows to batch at a time; None for all.

    Returns:
        Blocks of shape ``x_i.shape + x_j.shape`` and the dtype of ``x_j``.
    """

    def scalar(*xs: Tensor) -> Tensor:
        y = func(*xs)
        check_output(y)
        return y.squeeze()

    every = tuple(range(len(given)))
    gradient = jacrev(scalar, argnums=every)
    rows = jacrev(gradient, argnums=every, chunk_size=chunk_size)(*given)
    return [list(row) for row in rows]
