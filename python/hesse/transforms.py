"""Inside ``torch.func`` transforms, where only transforms compose: ``jacrev`` twice, ``vjp`` twice.

Stock's functions refuse most of these calls. The engine cannot take them either: the graph of an
outer level is hidden from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev, vjp

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


def product(
    func: Callable[..., Tensor],
    given: tuple[Tensor, ...],
    rows: Sequence[Tensor],
    check_output: Callable[[Any], None],
    transpose: bool,
) -> tuple[Tensor, list[Tensor]]:
    """``v' H``, or ``H v`` as its transpose, at the innermost level, for each row.

    Args:
        func: returns one element, of any shape.
        given: the inputs, of shape ``S`` each.
        rows: the directions, ``[K, *S]`` each.
        check_output: raises when ``func`` returns something else.
        transpose: ``H v``.

    Returns:
        The value of ``func`` and the products, ``[K, *S]`` each.
    """

    def scalar(*xs: Tensor) -> tuple[Tensor, Tensor]:
        y = func(*xs)
        check_output(y)
        return y.squeeze(), y

    gradient = grad(scalar, argnums=tuple(range(len(given))), has_aux=True)
    rows_by: Callable[..., tuple[Tensor, ...]]
    _, rows_by, y = vjp(gradient, *given, has_aux=True)  # type: ignore[misc]  # of has_aux
    by = rows_by
    if transpose:  # of what is linear in its direction
        _, by = vjp(lambda *v: rows_by(v), *(torch.zeros_like(x) for x in given))  # type: ignore[misc]
    return y, list(torch.vmap(lambda *v: by(v))(*rows))
