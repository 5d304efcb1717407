"""The Hessians of the samples of a batch: one small matrix each, from one run on the whole batch.

    inputs [B, *S] -> func -> y [B, *O], or its sum -> [B, *O, *S, *S]

Each sample's seeds are tied to it. Where tangents meet, the engine knows by the ties whose each
place is; where it does not, it says at which op, and the caller may answer for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _C, record, stock, trees
from .policy import note

NAME = "batch_hessian"


class SeparabilityError(RuntimeError):
    """Samples meet in ``func``, or it is not known that they do not."""


def batch_hessian(
    func: Callable[..., Tensor],
    inputs: Any,
    batch_dim: int = 0,
    *,
    assume_separable: bool = False,
    create_graph: bool = False,
) -> Any:
    """Compute the Hessian of every sample of a batch, where samples do not meet.

    What ``torch.func.vmap(torch.func.hessian(f))`` computes, of a ``func`` that is written for the
    batch. ``func`` runs once. That no sample depends on another is proved on the way, from the
    recorded graph.

    Args:
        func: maps the batch to a Tensor with one value (or any shape O of values) per sample,
            ``[B, *O]``, or to their sum, one element. A tuple of inputs is its arguments, any other
            tree its one argument.
        inputs: a Tensor, or a tree of them, each with B samples along one axis, of shape S each.
        batch_dim: that axis, in all inputs. That of the outputs is 0.
        assume_separable: take it for granted that samples do not meet. No proof is needed then, so
            any op will do; where they do meet, the result means nothing.
        create_graph: whether the result can be differentiated again.

    Returns:
        ``[B, *O, *S, *S]`` (the sum: ``[B, *S, *S]``); of a tree, a tree of trees of blocks
        ``[B, *O, *S_i, *S_j]``.

    Raises:
        SeparabilityError: ``hesse.batch_hessian: samples meet at MeanBackward1 ...``; ``... is made
            dense at FlipBackward0, where the proof stops ...``
        ValueError: ``hesse.batch_hessian: func must return one value per sample ...``, and of
            inputs that have no such axis, or several lengths along it.
        TypeError: as :func:`hesse.linearize`; inputs of several dtypes or devices; ``func must
            return a real floating-point Tensor, got ...``
        RuntimeError: ``hesse.batch_hessian: it is called inside a torch.func transform ...``
        FallbackError: the engine cannot take the call and :func:`hesse.fallback` is ``"error"``.

    Example:
        >>> import hesse, torch
        >>> x = torch.arange(6.0).view(3, 2)  # three samples
        >>> H = hesse.batch_hessian(lambda x: x[:, 0] ** 2 * x[:, 1], x)
        >>> assert H.shape == (3, 2, 2) and H[1].tolist() == [[6, 4], [4, 0]]

    Source:
        H_b = sum over steps s of J_s' (gy_s f_s'') J_s, the sum of the curvatures that a forward
        sweep meets: A. Griewank, A. Walther, Evaluating Derivatives, 2nd ed., chapter 5.
    """
    leaves, structure = trees.take(inputs, NAME)
    given = _samples_first(leaves, batch_dim)
    B = given[0].shape[0]
    func = record.uncompiled(func)

    def call(*xs: Tensor) -> Any:
        return structure.call(func, [x.movedim(0, batch_dim) for x in xs])

    if (around := record.no_graph()) is not None:
        raise RuntimeError(f"hesse.{NAME}: {around}: call it outside")
    reason = None if record.plain(given) else record.elsewhere(given, True)[1]
    inner, y = _run(call, given, create_graph)
    rest = _values_of_a_sample(y, B)
    if reason is None:
        try:
            parts = _by_engine(y, inner, rest, assume_separable, create_graph)
        except _C.Unsupported as refusal:
            reason = str(refusal)
    if reason is not None:
        note(reason, NAME)
        if not assume_separable:
            raise SeparabilityError(
                f"hesse.{NAME}: plain autograd, which has to be used here ({reason}), cannot prove "
                "that samples do not meet. If they do not, assume_separable=True says so"
            )
        parts = _by_products(y, inner, create_graph)
    matrices = parts[0].unsqueeze(1) if len(parts) == 1 else torch.stack(parts, 1)
    lead = (B, *(rest or ()))
    sizes = [math.prod(x.shape[1:]) for x in given]
    shapes = [x.shape[1:] for x in given]
    return structure.blocks(
        [
            [
                block.reshape(lead + s + t)
                for block, t in zip(torch.split(rows, sizes, 3), shapes, strict=True)
            ]
            for rows, s in zip(torch.split(matrices, sizes, 2), shapes, strict=True)
        ]
    )


def _samples_first(leaves: Sequence[Tensor], batch_dim: int) -> tuple[Tensor, ...]:
    for i, x in enumerate(leaves):
        if not -x.ndim <= batch_dim < x.ndim:
            raise ValueError(
                f"hesse.{NAME}: input {i} has shape {tuple(x.shape)}, which has no axis {batch_dim}"
            )
        for what, its, wanted in (
            ("samples", x.shape[batch_dim], leaves[0].shape[batch_dim]),
            ("dtype", x.dtype, leaves[0].dtype),
            ("device", x.device, leaves[0].device),
        ):
            if its != wanted:
                error = ValueError if what == "samples" else TypeError
                raise error(
                    f"hesse.{NAME}: input {i} has {its} ({what}), input 0 {wanted}: they must agree"
                )
    if not all(x.numel() for x in leaves):
        raise ValueError(f"hesse.{NAME}: an input is empty: there is no sample, or nothing in it")
    return tuple(x.movedim(batch_dim, 0) for x in leaves)


def _run(
    call: Callable[..., Any], given: tuple[Tensor, ...], create_graph: bool
) -> tuple[list[Tensor], Tensor]:
    def checked(*xs: Tensor) -> Tensor:
        y = call(*xs)
        if not isinstance(y, Tensor) or not y.is_floating_point():
            got = f"a Tensor of {y.dtype}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise TypeError(
                f"hesse.{NAME}: func must return a real floating-point Tensor, got {got}"
            )
        result.append(y)
        return y.sum()  # for the checks of what is recorded

    result: list[Tensor] = []
    _, inner, _ = record.record(checked, given, create_graph, name=NAME)
    return inner, result[0].reshape(()) if result[0].numel() == 1 else result[0]


def _values_of_a_sample(y: Tensor, B: int) -> torch.Size | None:
    """The shape O of what ``func`` returns for each sample; None where it returns the sum."""
    if y.ndim == 0:
        return None
    if y.shape[0] != B:
        raise ValueError(
            f"hesse.{NAME}: func must return one value per sample, [{B}, ...], or their sum, one "
            f"element; it returned {tuple(y.shape)}"
        )
    return y.shape[1:]


def _by_engine(
    y: Tensor,
    inner: list[Tensor],
    rest: torch.Size | None,
    assume_separable: bool,
    create_graph: bool,
) -> list[Tensor]:
    """``[B, n, n]`` for each value of a sample."""
    seeds = [[torch.ones_like(y)]]
    if rest:
        columns = torch.eye(rest.numel(), dtype=y.dtype, device=y.device)
        seeds = [[column.view(1, *rest).expand_as(y)] for column in columns]
    engine = _C.linearize([y], inner, [None], create_graph)
    try:
        return engine.batch_hessian(seeds, assume_separable)
    except _C.Mixed as step:
        name = str(step)
        where = f"samples meet at {name}"
        if name in engine.report()["densified"]:
            where = f"the tangent of a sample is made dense at {name}, where the proof stops"
        raise SeparabilityError(
            f"hesse.{NAME}: {where}, so the Hessian of a sample is not known to be its own. If no "
            "sample depends on another, assume_separable=True says so"
        ) from None


def _by_products(y: Tensor, inner: list[Tensor], create_graph: bool) -> list[Tensor]:
    """The same by plain autograd: products with the features of all samples at once."""
    with torch.enable_grad():
        values = [y] if y.ndim == 0 else y.flatten(1).T if y.ndim > 1 else [y]
        sums = [value.sum() for value in values]
    parts = []
    for total in sums:
        engine = stock.DoubleBackward(total, inner, create_graph)
        columns = []
        for i, x in enumerate(inner):
            for e in torch.eye(x[0].numel(), dtype=x.dtype, device=x.device):
                directions: list[Tensor | None] = [None] * len(inner)
                directions[i] = e.view_as(x[0]).expand_as(x).unsqueeze(0)
                columns.append(torch.cat([p[0].flatten(1) for p in engine.hvp(directions)], 1))
        parts.append(torch.stack(columns, 1))
    return parts
