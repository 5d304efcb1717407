"""``hvp`` and ``vhp``: ``H v`` and ``v' H`` from one run of ``func``, for one direction or many.

Results, flags and errors follow ``torch.autograd.functional`` ("stock"), whose own route, the
gradient differentiated once more, stands in where the engine cannot answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import functional
from torch.nn import Parameter

from . import _C, stock, transforms
from .policy import note
from .record import check_output, elsewhere, engine, functorch_active, plain, record

Directions = Tensor | tuple[Tensor, ...]
Row = list[Tensor]  # one tensor per input

# They hold the words of its errors.
_stock: dict[str, Callable[..., tuple[Tensor, Any]]] = {
    "hvp": functional.hvp,
    "vhp": functional.vhp,
}


def hvp(
    func: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor, ...],
    v: Directions | None = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Tensor, Any]:
    """Compute ``H v``; a drop-in for ``torch.autograd.functional.hvp`` that takes many ``v``.

    ``func`` runs once, however many directions there are. Where the backward of a custom Function
    is not the derivative of its forward, ``H`` may not be symmetric: then this is a column
    combination, and :func:`hesse.vhp` one of rows.

    Args:
        func: takes the inputs as positional arguments, returns one Tensor with one element.
        inputs: a Tensor or a tuple of Tensors, of any shapes ``S`` and real floating-point dtypes.
        v: one direction: like ``inputs``, each entry of its input's shape ``S``. Or ``K`` of
            them: each entry of shape ``[K, *S]``. None stands for a 1 where there is one input
            with one element.
        create_graph: whether the result can be differentiated again, by the inputs and by ``v``.
        strict: raise where the output, or its gradient, does not depend on an input.

    Returns:
        ``func(*inputs)``, and the product: a Tensor or a tuple like ``inputs``, of the shapes of
        ``v`` and the dtypes of the inputs.

    Raises:
        TypeError: ``The inputs given to hvp must be either a Tensor or a tuple of Tensors ...``
            and the same of ``v`` and of the outputs of ``func``.
        RuntimeError: ``v has invalid size: should be ... but got ...``, ``The Tensor returned by
            the function given to hvp should contain a single element``, and the refusals of
            ``strict``. Also those of :func:`hesse.hessian` about functions that are compiled or not
            twice differentiable.
        FallbackError: the engine cannot take the call and :func:`hesse.fallback` is ``"error"``.

    Example:
        >>> import hesse, torch
        >>> x, v = torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.0])
        >>> y, Hv = hesse.hvp(lambda x: (x**3).sum(), x, v)
        >>> assert y == 9 and Hv.tolist() == [6, -12]
        >>> _, H = hesse.hvp(lambda x: (x**3).sum(), x, torch.eye(2))
        >>> assert H.tolist() == [[6, 0], [0, 12]]

    Source:
        B. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6(1), 1994.
    """
    return _product("hvp", func, inputs, v, create_graph, strict)


def vhp(
    func: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor, ...],
    v: Directions | None = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Tensor, Any]:
    """Compute ``v' H``; a drop-in for ``torch.autograd.functional.vhp`` that takes many ``v``.

    ``func`` runs once, however many directions there are.

    Args:
        func: takes the inputs as positional arguments, returns one Tensor with one element.
        inputs: a Tensor or a tuple of Tensors, of any shapes ``S`` and real floating-point dtypes.
        v: one direction: like ``inputs``, each entry of its input's shape ``S``. Or ``K`` of
            them: each entry of shape ``[K, *S]``. None stands for a 1 where there is one input
            with one element.
        create_graph: whether the result can be differentiated again, by the inputs and by ``v``.
        strict: raise where the output, or its gradient, does not depend on an input.

    Returns:
        ``func(*inputs)``, and the product: a Tensor or a tuple like ``inputs``, of the shapes of
        ``v`` and the dtypes of the inputs.

    Raises:
        TypeError: ``The inputs given to vhp must be either a Tensor or a tuple of Tensors ...``
            and the same of ``v`` and of the outputs of ``func``.
        RuntimeError: as :func:`hesse.hvp`, with the name of this function.
        FallbackError: the engine cannot take the call and :func:`hesse.fallback` is ``"error"``.

    Example:
        >>> import hesse, torch
        >>> x, v = (torch.ones(2), torch.ones(())), (torch.tensor([1.0, 0.0]), torch.tensor(1.0))
        >>> y, (a, b) = hesse.vhp(lambda x, s: s * (x**2).sum(), x, v)
        >>> assert y == 2 and a.tolist() == [4, 2] and b == 2

    Source:
        B. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6(1), 1994.
    """
    return _product("vhp", func, inputs, v, create_graph, strict)


def _product(
    name: str,
    func: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor, ...],
    v: Directions | None,
    create_graph: bool,
    strict: bool,
) -> tuple[Tensor, Any]:
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    refused, reason = (False, None) if plain(given) else elsewhere(given, vectorize=True)
    with torch.set_grad_enabled(create_graph or torch.is_grad_enabled()):
        found = None if refused else _rows(given, v)
        if found is None:  # what stock refuses, it refuses in its words
            return _stock[name](func, inputs, v, create_graph, strict)
        rows, one = found
        if reason is None:
            rows, reason = _plain_rows(rows, given)
        if reason is not None:
            note(reason, name)
        if reason is not None and functorch_active() and not strict:
            check = partial(check_output, name=name)
            y, products = transforms.product(func, given, rows, check, name == "hvp")
        elif reason is not None and one:
            return _stock[name](func, inputs, v, create_graph, strict)
        else:
            outer, _, y = record(func, given, create_graph, strict, name, views=False)
            products = _answer(name, y, outer, rows, create_graph, strict, reason is None)
            if not create_graph:
                y = y.detach()
        if one:
            products = [p[0] for p in products]
    return y, tuple(products) if isinstance(inputs, tuple) else products[0]


def _rows(given: tuple[Tensor, ...], v: Directions | None) -> tuple[Row, bool] | None:
    """``v`` as rows ``[K, *S]``, and whether it is one direction; None where shapes do not fit."""
    if v is None:
        if len(given) != 1 or given[0].nelement() != 1:
            return None
        return [torch.ones_like(given[0], requires_grad=False).unsqueeze(0)], True
    vs = v if isinstance(v, tuple) else (v,)
    if len(vs) != len(given) or not all(isinstance(d, Tensor) for d in vs):
        return None
    if all(d.shape == x.shape for d, x in zip(vs, given, strict=True)):
        return [d.unsqueeze(0) for d in vs], True
    K = vs[0].shape[:1]
    if all(d.shape == K + x.shape for d, x in zip(vs, given, strict=True)):
        return list(vs), False
    return None


def _plain_rows(rows: Row, given: tuple[Tensor, ...]) -> tuple[Row, str | None]:
    """The rows in the dtypes of the inputs, as stock casts them, or why the engine cannot."""
    for i, (d, x) in enumerate(zip(rows, given, strict=True)):
        if type(d) is not Tensor and type(d) is not Parameter:
            return rows, f"entry {i} of v is a {type(d).__name__}, a tensor subclass"
        if d.layout is not torch.strided or d.is_complex():
            return rows, f"entry {i} of v is not a real, strided tensor"
        if d.device != x.device:
            return rows, f"entry {i} of v is on {d.device}, its input on {x.device}"
    return [d.to(x.dtype) for d, x in zip(rows, given, strict=True)], None


def _answer(
    name: str,
    y: Tensor,
    outer: list[Tensor],
    rows: Row,
    create_graph: bool,
    strict: bool,
    by_engine: bool,
) -> Row:
    """The products ``[K, *S]`` from the recorded graph."""
    if strict:
        first = [r[:1] for r in rows]
        if not first[0].shape[0]:
            first = [torch.zeros_like(x).unsqueeze(0) for x in outer]
        stock.products(name, y, outer, first, create_graph, strict=True)
    if not by_engine:
        return stock.products(name, y, outer, rows, create_graph)
    if not y.requires_grad:
        return [torch.zeros_like(r) for r in rows]
    linear = engine(y, outer, create_graph, name)
    if name == "hvp" and not linear.report().get("symmetric"):
        return stock.products(name, y, outer, rows, create_graph)
    try:
        products = linear.hvp(rows)
    except _C.Unsupported as refusal:
        note(str(refusal), name)
        return stock.products(name, y, outer, rows, create_graph)
    if create_graph and not all(p.requires_grad for p in products):
        products = _connect(name, y, outer, rows, products)
    return products


def _connect(name: str, y: Tensor, outer: list[Tensor], rows: Row, products: Row) -> Row:
    """The same products, requiring grad where stock's do: it takes some constants for functions."""
    try:
        theirs = stock.products(name, y, outer, [r[:1] for r in rows], create_graph=True)
    except RuntimeError as error:  # there is no double backward of some op
        if "is not implemented" not in str(error):
            raise
        return products
    return stock.connect([products], [[p.requires_grad for p in theirs]], outer)[0]
