"""``hessian`` and ``explain``: record ``func`` once, hand the graph to the engine, pack its blocks.

Results, flags and errors follow ``torch.autograd.functional.hessian``, called "stock" throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import _C, late, stock, transforms
from . import strict as strict_mode
from .policy import note
from .record import check_output, elsewhere, functorch_active, plain, record
from .report import Report
from .stock import Blocks


def hessian(
    func: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor, ...],
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
    *,
    chunk_size: int | None = None,
) -> Any:
    """Compute the Hessian of a scalar function; a drop-in for the one in torch.autograd.functional.

    ``func`` runs once. An entry that is zero by the structure of ``func`` is 0 even where another
    derivative is infinite or NaN.

    Args:
        func: takes the inputs as positional arguments, returns one Tensor with one element.
        inputs: a Tensor or a tuple of Tensors, of any shapes and real floating-point dtypes.
        create_graph: whether the result can be differentiated again.
        strict: raise where the output, or its gradient, does not depend on an input.
        vectorize: accepted as stock's flag; the values do not depend on it.
        outer_jacobian_strategy: ``"forward-mode"``, which needs ``vectorize``, gives block (i, j)
            the dtype of input i and returns lists where stock does.
        chunk_size: how many seeds to sweep at a time. None: all of them where structure keeps their
            tangents small, else as many as stay in the processor's cache.

    Returns:
        For a Tensor of shape ``S``, one Tensor of shape ``S + S``. For a tuple, a tuple of tuples:
        ``H[i][j]`` has shape ``S_i + S_j`` and the dtype of input j. Each is contiguous.

    Raises:
        TypeError: ``The inputs given to hessian must be either a Tensor or a tuple of Tensors ...``
            and the same of the outputs of ``func``.
        RuntimeError: ``The Tensor returned by the function given to hessian should contain a single
            element``, and the refusals of ``strict``. Also ``hesse: func calls a function that
            torch.compile has compiled ...``: call the function that was compiled; and ``hesse:
            CubeBackward is not twice differentiable: ...``, of a custom Function that is marked
            ``once_differentiable`` (stock may take its second derivative for zero).
        ValueError: ``hesse.hessian: chunk_size must be None or a positive integer, got ...``
        FallbackError: the engine cannot take the call and :func:`hesse.fallback` is ``"error"``.

    Example:
        >>> import hesse, torch
        >>> def rosenbrock(x):
        ...     return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
        >>> H = hesse.hessian(rosenbrock, torch.ones(3))
        >>> assert H.tolist() == [[802, -400, 0], [-400, 1002, -400], [0, -400, 200]]

    Source:
        B. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6(1), 1994.
    """
    if chunk_size is not None:
        _check_chunk_size(chunk_size)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    forward = outer_jacobian_strategy != "reverse-mode"
    if forward or not plain(given):
        # Combinations that stock refuses before it runs func are refused by stock, in its words.
        refused = forward and (
            outer_jacobian_strategy != "forward-mode" or create_graph or strict or not vectorize
        )
        reason = None
        if not refused and not plain(given):
            refused, reason = elsewhere(given, vectorize)
        if reason is not None:
            note(reason)
            if functorch_active() and not strict:
                blocks = transforms.hessian(func, given, check_output, chunk_size)
                return _pack(_dtype_of_row(blocks, given) if forward else blocks, inputs, forward)
        if refused or reason is not None:
            return stock.hessian(
                func, inputs, create_graph, strict, vectorize, outer_jacobian_strategy
            )

    # Stock's forward mode keeps the graph of its result whatever create_graph says.
    graph = create_graph or forward
    outer, inner, y = record(func, given, graph, strict)
    gs: list[Tensor] = []
    if graph or strict:
        gs = stock.gradient(y, inner)
        if strict:
            strict_mode.check(gs, outer, create_graph, vectorize)

    if y.is_leaf:
        blocks = _zeros(given, forward)
    else:
        try:
            engine = _C.linearize([y], inner, None, create_graph)
            blocks = engine.hessian(chunk_size, forward)
        except _C.Unsupported as refusal:
            note(str(refusal))
            try:
                blocks = stock.rows(gs or stock.gradient(y, inner), outer, graph, vectorize)
            except Exception as error:
                error.add_note(f"The engine of hesse had not taken the call: {refusal}.")
                raise
            if forward:
                blocks = _dtype_of_row(blocks, given)
        else:
            flags = None
            if graph and not engine.report()["user_ops"]:  # of a user's rule stock knows nothing
                flags = stock.requires_grad(gs, outer, vectorize, forward)
            if create_graph:
                blocks = stock.connect(blocks, flags, outer)
            elif forward:
                blocks = late.attach(
                    blocks,
                    flags,
                    outer,
                    lambda: _C.linearize([y], inner, None, True).hessian(chunk_size, True),
                )
    return _pack(blocks, inputs, forward)


def explain(
    func: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor, ...],
    *,
    create_graph: bool = False,
    chunk_size: int | None = None,
) -> Report:
    """Compute a Hessian and say how: the rules that ran, the structure that survived, the cost.

    Args:
        func: as for :func:`hesse.hessian`; runs once.
        inputs: as for :func:`hesse.hessian`.
        create_graph: explain the differentiable sweep.
        chunk_size: how many seeds to sweep at a time. None: all of them where structure keeps their
            tangents small, else as many as stay in the processor's cache.

    Returns:
        A :class:`hesse.Report`; ``print`` it. A fallback is a field of it, not a warning.

    Raises:
        TypeError: as :func:`hesse.hessian`.
        RuntimeError: as :func:`hesse.hessian`.
        ValueError: as :func:`hesse.hessian`.

    Example:
        >>> import hesse, torch
        >>> report = hesse.explain(lambda x: x.exp().sum(), torch.zeros(1000))
        >>> assert report.fallback is None and report.native_ops["ExpBackward0"] == 1
        >>> assert report.core_elements < 10_000  # not the million of a dense sweep

    Source:
        The counts are those of :class:`hesse.Report`.
    """
    if chunk_size is not None:
        _check_chunk_size(chunk_size)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    if not plain(given):
        refused, reason = elsewhere(given, False)
        if refused:
            stock.hessian(func, inputs, create_graph)
        if reason is not None:
            return Report(fallback=reason)
    _, inner, y = record(func, given, create_graph)
    if y.is_leaf:
        return Report(output_bytes=sum(b.nbytes for bs in _zeros(given, False) for b in bs))
    try:
        linearization = _C.linearize([y], inner, None, create_graph)
        blocks = linearization.hessian(chunk_size, False)
    except _C.Unsupported as refusal:
        return Report(fallback=str(refusal))
    return Report.of(linearization.report(), sum(b.nbytes for bs in blocks for b in bs))


def _check_chunk_size(chunk_size: object) -> None:
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(
            f"hesse.hessian: chunk_size must be None or a positive integer, got {chunk_size!r}"
        )


def _zeros(given: tuple[Tensor, ...], dtype_of_row: bool) -> Blocks:
    """The Hessian of a constant."""
    return [
        [(xi if dtype_of_row else xj).new_zeros(xi.shape + xj.shape) for xj in given]
        for xi in given
    ]


def _dtype_of_row(blocks: Blocks, given: tuple[Tensor, ...]) -> Blocks:
    return [[b.to(x.dtype) for b in bs] for bs, x in zip(blocks, given, strict=True)]


def _pack(blocks: Blocks, inputs: Tensor | tuple[Tensor, ...], forward: bool) -> Any:
    if not isinstance(inputs, tuple):
        return blocks[0][0]
    return blocks if forward else tuple(map(tuple, blocks))
