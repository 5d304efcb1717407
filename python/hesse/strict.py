"""``strict=True``: stock's refusals, read off the flags of its double-backward graph.

They do not say that a derivative is zero. ``relu`` and ``abs`` pass, because stock's second
backward still reaches the input; a linear function and ``max`` do not.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import stock


def check(
    gs: Sequence[Tensor], outer: Sequence[Tensor], create_graph: bool, vectorize: bool
) -> None:
    """Raise what stock raises for this graph under ``strict=True``, in stock's order.

    Args:
        gs: the recorded gradient, one tensor per input.
        outer: the inputs, shapes as in ``gs``.
        create_graph: stock then also asks that each block requires grad.
        vectorize: stock refuses it together with ``strict``, but only after the gradient's checks.

    Raises:
        RuntimeError: in the words of ``torch.autograd.functional``.
    """
    stock.check_requires_grad(gs, "jacobian", strict=True)
    if vectorize:
        raise RuntimeError(
            "torch.autograd.functional.jacobian: `strict=True` and `vectorized=True` are not "
            "supported together. Please either set `strict=False` or `vectorize=False`."
        )
    for i, first in enumerate(stock.first_rows(gs, outer, create_graph)):
        for j, part in enumerate(first):
            if part is None:
                raise RuntimeError(
                    f"Output {i} of the user-provided function is independent of input {j}."
                    " This is not allowed in strict mode."
                )
            if create_graph and not part.requires_grad:
                raise RuntimeError(
                    f"The jacobian of the user-provided function is independent of input {i}."
                    " This is not allowed in strict mode when create_graph=True."
                )
