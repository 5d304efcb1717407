"""A graph that is made only when somebody differentiates the result.

Stock's forward mode returns blocks that require grad even under ``create_graph=False``: a side
effect of how it runs. Few use it, so the fast sweep makes the numbers and a second, differentiable
sweep over the same recorded graph runs in the backward pass, if there ever is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .stock import Blocks


class _Late(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        again: Callable[[], list[Tensor]],
        blocks: list[Tensor],
        *outer: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.again = again
        ctx.save_for_backward(*outer)
        ctx.set_materialize_grads(False)
        return tuple(blocks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            pairs = [
                (block, grad)
                for block, grad in zip(ctx.again(), grads, strict=True)
                if grad is not None and block.requires_grad
            ]
        outer = ctx.saved_tensors
        if not pairs:
            return (None,) * (2 + len(outer))
        parts = torch.autograd.grad(
            [block for block, _ in pairs],
            outer,
            [grad for _, grad in pairs],
            retain_graph=True,  # what func recorded serves every pass
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
        return (None, None, *parts)


_apply: Callable[..., tuple[Tensor, ...]] = _Late.apply


def attach(
    blocks: Blocks,
    flags: list[list[bool]] | None,
    outer: Sequence[Tensor],
    again: Callable[[], Blocks],
) -> Blocks:
    """The same blocks, requiring grad where ``flags`` says.

    Args:
        blocks: without a graph.
        flags: one per block; None: everywhere.
        outer: what the blocks are a function of.
        again: makes the same blocks with a graph.

    Returns:
        Blocks of the same shapes and dtypes.
    """
    places = [
        (i, j)
        for i, row in enumerate(blocks)
        for j in range(len(row))
        if flags is None or flags[i][j]
    ]
    if not places:
        return blocks

    def chosen() -> list[Tensor]:
        made = again()
        return [made[i][j] for i, j in places]

    with torch.enable_grad():
        late = _apply(chosen, [blocks[i][j] for i, j in places], *outer)
    result = [list(row) for row in blocks]
    for (i, j), block in zip(places, late, strict=True):
        result[i][j] = block
    return result
