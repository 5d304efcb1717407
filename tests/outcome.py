"""What one call does, as a value that two routes can be compared by."""

from dataclasses import dataclass
from itertools import product

import torch
from torch.utils import _pytree as pytree

FLAGS = [
    {
        "create_graph": create_graph,
        "strict": strict,
        "vectorize": vectorize,
        "outer_jacobian_strategy": mode,
    }
    for create_graph, strict, vectorize, mode in product(
        (False, True), (False, True), (False, True), ("reverse-mode", "forward-mode")
    )
]


def flags_id(flags):
    on = [name for name in ("create_graph", "strict", "vectorize") if flags[name]]
    return "+".join([*on, flags["outer_jacobian_strategy"]])


@dataclass
class Outcome:
    """An error, or a result: containers, per-block shapes, dtypes, graphs, and the blocks."""

    error: str | None
    layout: str | None
    blocks: list

    def describe(self):
        return [(tuple(b.shape), b.dtype, b.requires_grad, b.grad_fn is None) for b in self.blocks]


def outcome(route, func, make_inputs, flags):
    """Call ``route`` on fresh inputs with the seed that every call gets."""
    torch.manual_seed(7)
    try:
        result = route(func, make_inputs(), **flags)
    except Exception as error:
        return Outcome(f"{type(error).__name__}: {error}", None, [])
    if isinstance(result, torch.Tensor):
        return Outcome(None, "Tensor", [result])
    rows = [row if isinstance(row, (tuple, list)) else [row] for row in result]
    layout = type(result).__name__ + str([type(row).__name__ for row in result])
    return Outcome(None, layout, [block for row in rows for block in row])


def tolerance(dtype):
    return {
        torch.float64: 1e-10,
        torch.float32: 1e-4,
        torch.float16: 2e-2,
        torch.bfloat16: 1e-1,
    }.get(dtype, 1e-4)


def assert_close(got, want, tol=None):
    """Equal values, NaN included; tolerance by dtype, relative to the largest entry."""
    assert got.shape == want.shape and got.dtype == want.dtype, (
        f"{tuple(got.shape)} {got.dtype} is not {tuple(want.shape)} {want.dtype}"
    )
    got, want = got.detach(), want.detach()
    finite = want[want.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    tol = tol or tolerance(want.dtype)
    torch.testing.assert_close(got, want, rtol=tol, atol=tol * max(scale, 1.0), equal_nan=True)


def assert_trees_close(got, want, tol=None):
    """The same structure of close tensors."""
    assert pytree.tree_structure(got) == pytree.tree_structure(want)
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        assert_close(a, b, tol)


def assert_same(got, want, tol=None):
    """The same error in the same words, or the same result."""
    assert got.error == want.error
    assert got.layout == want.layout
    assert got.describe() == want.describe()
    # Among mixed dtypes, which block passes through the coarsest one depends on the route.
    tol = tol or max((tolerance(b.dtype) for b in want.blocks), default=None)
    for a, b in zip(got.blocks, want.blocks, strict=True):
        assert_close(a, b, tol)
