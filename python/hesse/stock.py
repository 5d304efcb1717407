"""``torch.autograd.functional`` ("stock"), and its double backward from a recorded graph.

Stock differentiates every entry of the gradient ``g_i = dy/dx_i``. Here one entry per input tells
how stock's blocks are connected, and ``rows`` does them all when the engine cannot take the graph.
Nothing here runs ``func``, except ``hessian``, which is stock itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import functional

# torch leaves these untyped; all but the first hold the words of its errors.
hessian: Callable[..., Any] = functional.hessian
as_tuple: Callable[..., tuple[bool, tuple[Tensor, ...]]] = functional._as_tuple
check_requires_grad: Callable[..., None] = functional._check_requires_grad
_grad: Callable[..., tuple[Tensor | None, ...]] = functional._autograd_grad
_fill_in_zeros: Callable[..., tuple[Tensor, ...]] = functional._fill_in_zeros

Blocks = list[list[Tensor]]
Row = tuple[Tensor | None, ...]


def gradient(y: Tensor, xs: Sequence[Tensor]) -> list[Tensor]:
    """The recorded gradient of ``y``, zeros where ``y`` does not depend on an input.

    Args:
        y: one element, any shape.
        xs: the inputs that ``func`` saw.

    Returns:
        ``g_i`` of the shape of ``x_i``; it requires grad where stock's does.
    """
    if not y.requires_grad:
        return [torch.zeros_like(x) for x in xs]
    gs = torch.autograd.grad(y, xs, create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(gs, xs, strict=True)]


def row(g: Tensor, k: int, outer: Sequence[Tensor], create_graph: bool) -> Row:
    """One row of the Hessian: the derivative of entry ``k`` of one gradient, None where unused."""
    if not g.requires_grad:
        return (None,) * len(outer)
    with torch.enable_grad():
        entry = g.reshape(-1)[k]
    return torch.autograd.grad(
        entry, outer, retain_graph=True, create_graph=create_graph, allow_unused=True
    )


def first_rows(gs: Sequence[Tensor], outer: Sequence[Tensor], create_graph: bool) -> list[Row]:
    """The first row of each block row; all rows of a block have the same connectivity."""
    return [row(g, 0, outer, create_graph) if g.numel() else (None,) * len(outer) for g in gs]


def requires_grad(
    gs: Sequence[Tensor], outer: Sequence[Tensor], vectorize: bool, forward: bool
) -> list[list[bool]] | None:
    """Which of stock's blocks require grad under ``create_graph=True``.

    None where stock has no Hessian: it has no derivative of some op's backward.
    """
    try:
        return _flags(gs, outer, vectorize, forward)
    except RuntimeError as e:
        if "is not implemented" not in str(e):
            raise
        return None


def _flags(
    gs: Sequence[Tensor], outer: Sequence[Tensor], vectorize: bool, forward: bool
) -> list[list[bool]]:
    """The flags of a Hessian that stock has.

    The loop decides per block. ``vectorize`` differentiates all gradients at once, so it decides
    per column. Forward mode pushes all inputs at once and keeps a graph wherever there is a
    tangent, so it decides per row.
    """
    n = len(outer)
    if vectorize and not forward:
        live = [g for g in gs if g.requires_grad]
        if not live:
            return [[False] * n] * n
        columns = torch.autograd.grad(
            live,
            outer,
            [torch.zeros_like(g) for g in live],
            retain_graph=True,
            create_graph=True,
            allow_unused=True,
        )
        return [[c is not None and c.requires_grad for c in columns]] * n
    if forward:
        return [[any(b is not None for b in r)] * n for r in first_rows(gs, outer, False)]
    return [[b is not None and b.requires_grad for b in r] for r in first_rows(gs, outer, True)]


def connect(blocks: Blocks, flags: list[list[bool]] | None, outer: Sequence[Tensor]) -> Blocks:
    """The same blocks, requiring grad exactly where ``flags`` says; None: as they are.

    A block that is constant to the engine and not to stock gets a zero that is in the graph: the
    sum of an empty slice, which no infinity or NaN in the input can reach.
    """
    if flags is None:
        return blocks

    def one(block: Tensor, flag: bool) -> Tensor:
        if block.requires_grad == flag:
            return block
        if not flag:
            return block.detach()
        for x in outer:
            block = block + x.reshape(-1)[:0].sum().to(block)
        return block

    with torch.enable_grad():
        return [
            [one(b, flag) for b, flag in zip(bs, fs, strict=True)]
            for bs, fs in zip(blocks, flags, strict=True)
        ]


def rows(
    gs: Sequence[Tensor], outer: Sequence[Tensor], create_graph: bool, vectorize: bool
) -> Blocks:
    """The whole Hessian, row by row or (``vectorize``) in one batched backward.

    Args:
        gs: from :func:`gradient`.
        outer: the inputs to differentiate by.
        create_graph: keep the graph of the result.
        vectorize: batch the rows by vmap.

    Returns:
        Blocks of shape ``x_i.shape + x_j.shape`` and the dtype of ``x_j``.
    """
    with torch.enable_grad():
        make = _batched if vectorize else _looped
        blocks = make(gs, outer, create_graph)
    return blocks if create_graph else [[b.detach() for b in bs] for bs in blocks]


def _looped(gs: Sequence[Tensor], outer: Sequence[Tensor], create_graph: bool) -> Blocks:
    blocks: Blocks = []
    for g in gs:
        columns: list[list[Tensor]] = [[] for _ in outer]
        for k in range(g.numel()):
            for column, part, x in zip(columns, row(g, k, outer, create_graph), outer, strict=True):
                column.append(torch.zeros_like(x) if part is None else part)
        blocks.append(
            [torch.stack(c).view(g.shape + x.shape) for c, x in zip(columns, outer, strict=True)]
        )
    return blocks


def _batched(gs: Sequence[Tensor], outer: Sequence[Tensor], create_graph: bool) -> Blocks:
    sizes = [g.numel() for g in gs]
    total, start = sum(sizes), 0
    live, seeds = [], []
    for g, size in zip(gs, sizes, strict=True):
        if g.requires_grad:
            seed = g.new_zeros(total, size)
            seed.diagonal(-start).fill_(1)
            live.append(g)
            seeds.append(seed.view(total, *g.shape))
        start += size
    grads: Row = (None,) * len(outer)
    if live:
        grads = torch.autograd.grad(
            live,
            outer,
            seeds,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            is_grads_batched=True,
        )
    columns = [
        torch.split(x.new_zeros(total, *x.shape) if c is None else c, sizes)
        for c, x in zip(grads, outer, strict=True)
    ]
    return [
        [column[i].view(g.shape + x.shape) for column, x in zip(columns, outer, strict=True)]
        for i, g in enumerate(gs)
    ]


def products(
    name: str,
    y: Tensor,
    xs: Sequence[Tensor],
    rows: Sequence[Tensor],
    create_graph: bool,
    strict: bool = False,
) -> list[Tensor]:
    """Stock's products from a recorded graph: the gradient, differentiated once more per row.

    ``v' H`` is the vector-Jacobian product of the gradient; ``H v`` that of this product, which is
    linear in its vector (the double-backward trick).

    Args:
        name: ``"hvp"`` or ``"vhp"``.
        y: one element.
        xs: the inputs that ``func`` saw.
        rows: the directions, ``[K, *S]`` each.
        create_graph: whether the products can be differentiated again.
        strict: raise what stock raises under ``strict=True``.

    Returns:
        One tensor ``[K, *S]`` per input.
    """
    xs = tuple(xs)
    with torch.enable_grad():
        target, by, stage = _grad((y,), xs, create_graph=True), xs, "double_back"
        check_requires_grad(target, "jacobian", strict=strict)
        if name == "hvp":
            by, stage = tuple(torch.zeros_like(x, requires_grad=True) for x in xs), stage + "_trick"
            target = _grad(target, xs, by, create_graph=True)
    made = []
    for v in zip(*rows, strict=True):
        parts = _grad(target, by, v, create_graph=create_graph, retain_graph=True)
        made.append(_fill_in_zeros(parts, xs, strict, create_graph, stage))
    if not made:
        return [torch.zeros_like(r) for r in rows]
    with torch.set_grad_enabled(create_graph):
        return [torch.stack(column) for column in zip(*made, strict=True)]


class DoubleBackward:
    """Plain autograd in the engine's place: the same answers, by differentiating the gradient.

    It keeps the graph of ``y`` and of its gradient.
    """

    symmetric = False  # as far as one knows

    def __init__(
        self, y: Tensor, xs: Sequence[Tensor], create_graph: bool, reason: str = ""
    ) -> None:
        """Record the gradient of ``y`` (one element) by ``xs``."""
        self.reason = reason
        self._xs = tuple(xs)
        self._create_graph = create_graph
        self._gs = gradient(y, self._xs)

    def gradient(self) -> list[Tensor | None]:
        """Of the shapes of the inputs."""
        return [g if self._create_graph else g.detach() for g in self._gs]

    def hvp(self, dxs: Sequence[Tensor | None]) -> list[Tensor]:
        """``H dx`` for each row: ``[K, *S]`` in (None: zero) and out, one loop over K."""
        K = next((d.shape[0] for d in dxs if d is not None), 1)
        products = [self._product([None if d is None else d[k] for d in dxs]) for k in range(K)]
        return [torch.stack(column) for column in zip(*products, strict=True)]

    def hessian(self, chunk_size: int | None, dtype_of_row: bool) -> Blocks:
        """All blocks."""
        blocks = rows(self._gs, self._xs, self._create_graph, False)
        if not dtype_of_row:
            return blocks
        return [[b.to(x.dtype) for b in bs] for bs, x in zip(blocks, self._xs, strict=True)]

    def block(self, i: int, j: int) -> Tensor:
        """One block."""
        return rows(self._gs[i : i + 1], self._xs[j : j + 1], self._create_graph, False)[0][0]

    def rows(self, index: list[int]) -> list[Tensor]:
        """Rows of all blocks, counted over all inputs: ``[R, *S]`` per input."""
        made: list[list[Tensor]] = [[] for _ in self._xs]
        for k in index:
            for column, part in zip(made, self._row(k), strict=True):
                column.append(part)
        return [
            torch.stack(column) if column else x.new_zeros(0, *x.shape)
            for column, x in zip(made, self._xs, strict=True)
        ]

    def diagonal(self) -> list[Tensor]:
        """Entry by entry, of the shapes of the inputs."""
        k, made = 0, []
        for i, x in enumerate(self._xs):
            entries = [self._row(k + e)[i].reshape(-1)[e] for e in range(x.numel())]
            made.append(torch.stack(entries).view(x.shape) if entries else torch.zeros_like(x))
            k += x.numel()
        return made

    def lower_triangle(self) -> Tensor:
        """Row by row."""
        N = sum(x.numel() for x in self._xs)
        return torch.cat(
            [torch.cat([p.reshape(-1) for p in self._row(k)])[: k + 1] for k in range(N)]
        )

    def quadratic(self, dxs: Sequence[Tensor | None]) -> Tensor:
        """``dx' H dx`` for each pair of directions, ``[K, K]``."""
        parts = [
            p.flatten(1) @ d.flatten(1).T
            for p, d in zip(self.hvp(dxs), dxs, strict=True)
            if d is not None
        ]
        return torch.stack(parts).sum(0)

    def _row(self, k: int) -> list[Tensor]:
        for g in self._gs:
            if k < g.numel():
                parts = row(g, k, self._xs, self._create_graph)
                return [
                    torch.zeros_like(x) if p is None else p
                    for p, x in zip(parts, self._xs, strict=True)
                ]
            k -= g.numel()
        raise IndexError(k)

    def report(self) -> dict[str, Any]:
        """As the engine's."""
        return {"fallback": self.reason, "user_ops": {}}

    def _product(self, v: list[Tensor | None]) -> list[Tensor]:
        # H v as the vector-Jacobian product of the gradient, like torch.autograd.functional.vhp.
        live = [
            (g, d) for g, d in zip(self._gs, v, strict=True) if g.requires_grad and d is not None
        ]
        parts: Row = (None,) * len(self._xs)
        if live:
            parts = torch.autograd.grad(
                [g for g, _ in live],
                self._xs,
                [d for _, d in live],
                retain_graph=True,
                create_graph=self._create_graph,
                allow_unused=True,
            )
        return [
            torch.zeros_like(x) if p is None else p for p, x in zip(parts, self._xs, strict=True)
        ]
