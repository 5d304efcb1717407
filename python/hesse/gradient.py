"""``torch.autograd.grad`` with ``create_graph=True``, for code that differentiates it once more.

Stock records the backward pass and differentiates that record, once per product. Here the gradient
``g`` of ``y`` carries one autograd node, whose backward is the engine's product ``v' dg/dx`` with a
linearization that is made once.

Whatever this cannot do exactly as stock does is left to stock, and so is a gradient that depends on
other leaves too (the weights in a gradient penalty): it is differentiated once, by them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd.function import BackwardCFunction

from . import _C
from .record import plain

Node = Any  # of an autograd graph
Edge = tuple[Node, int]

_functorch: Any = torch._C._functorch
_functorch_level: Callable[[], Any] = _functorch.peek_interpreter_stack
_is_legacy: Callable[[Tensor], bool] = _functorch.is_legacy_batchedtensor
_autograd: Any = torch._C._autograd
_stock_grad: Callable[..., tuple[Tensor | None, ...]] = torch.autograd.grad

# Nodes of ops that are linear in all their inputs together: the gradient does not depend on them.
LINEAR = frozenset(
    f"{op}Backward{i}"
    for ops, i in (
        ("Add Alias Cat Clone Diagonal Expand Flip Gather Index IndexSelect Mean Neg Permute", 0),
        ("Repeat ReshapeAlias Roll Rsub Select Slice Split SplitWithSizes Squeeze Stack Sub", 0),
        ("Sum T ToCopy Trace Transpose Unbind UnsafeView Unsqueeze View", 0),
        ("Add Mean Rsub Squeeze Sub Sum", 1),
    )
    for op in ops.split()
)
# Linear in two of their inputs each (and in the others): it depends on each where both matter.
BILINEAR = {
    "AddmmBackward0": (1, 2),
    "AddmvBackward0": (1, 2),
    "BaddbmmBackward0": (1, 2),
    "BmmBackward0": (0, 1),
    "ConvolutionBackward0": (0, 1),
    "DotBackward0": (0, 1),
    "MmBackward0": (0, 1),
    "MulBackward0": (0, 1),
    "MvBackward0": (0, 1),
}


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> Any:
    """The gradient that ``torch.autograd.grad`` returns for these arguments.

    Returns:
        A tuple, or a dict where ``inputs`` is one; None where stock has to do it.
    """
    keeps = create_graph and retain_graph is not False
    if not keeps or grad_outputs is not None or is_grads_batched or not only_inputs:
        return None
    ys = (outputs,) if isinstance(outputs, Tensor) else outputs
    xs = (inputs,) if isinstance(inputs, Tensor) else inputs
    xs = tuple(xs.values()) if type(xs) is dict else xs
    if not (isinstance(ys, (tuple, list)) and isinstance(xs, (tuple, list)) and len(ys) == 1):
        return None  # an iterator is for stock to use up
    if not plain((*ys, *xs)):
        return None
    y: Tensor = ys[0]
    if y.nelement() != 1 or y.grad_fn is None or not xs or torch.is_anomaly_enabled():
        return None
    if materialize_grads and allow_unused is False:
        return None
    found = _dependence(y, xs)
    if found is None or not (allow_unused or materialize_grads or found.reached == len(xs)):
        return None
    gs = _gradient(y, found)
    if gs is None:
        return None
    if materialize_grads:
        gs = [
            torch.zeros_like(x, requires_grad=True) if g is None else g
            for g, x in zip(gs, xs, strict=True)
        ]
    return dict(zip(inputs, gs, strict=True)) if type(inputs) is dict else tuple(gs)


# --- what the gradient depends on -----------------------------------------------------------------


@dataclass
class _Dependence:
    """The tensors that ``y`` depends on, and which of their gradients depends on which.

    Attributes:
        xs: the inputs, then the other leaves; a mask has one bit for each.
        given: how many are inputs.
        below: mask of those that ``y`` depends on.
        pairs: ``(l, r)``: the gradient of each tensor in ``l`` depends on all in ``r``.
    """

    xs: list[Tensor]
    given: int
    below: int = 0
    pairs: set[tuple[int, int]] = field(default_factory=set)

    @property
    def reached(self) -> int:
        """How many of the inputs ``y`` depends on."""
        return self.of_inputs(self.below).bit_count()

    def of_inputs(self, mask: int) -> int:
        """The part of a mask that belongs to inputs."""
        return mask & ((1 << self.given) - 1)

    def indices(self, mask: int) -> list[int]:
        """The tensors in a mask."""
        return [j for j in range(len(self.xs)) if mask >> j & 1]

    def depending(self, gradients: int) -> int:
        """Mask of what any of these gradients depends on."""
        mask = 0
        for left, right in self.pairs:
            if left & gradients:
                mask |= right
        return mask


def _dependence(y: Tensor, given: Sequence[Tensor]) -> _Dependence | None:
    """Walk the graph down to the inputs and the other leaves; None where stock has to do it."""
    found = _Dependence(list(given), len(given))
    edges: dict[Edge, int] = {}
    leaves: dict[int, int] = {}
    for i, x in enumerate(given):
        if not x.requires_grad:
            return None
        if x.grad_fn is None:
            leaves[id(x)] = 1 << i
        else:
            edges[x.grad_fn, x.output_nr] = 1 << i
    if len(edges) + len(leaves) < len(given) or (y.grad_fn, y.output_nr) in edges:
        return None
    if edges and len(given) > 1 and _nested(edges, leaves):
        return None
    masks: dict[Node, int] = {None: 0}
    stack: list[Node] = [y.grad_fn]
    while stack:
        node = stack[-1]
        if node in masks:
            stack.pop()
            continue
        parts = []
        waiting = len(stack)
        for edge in node.next_functions:
            part = edges.get(edge) if edges else None
            if part is None:
                part = masks.get(edge[0])
            if part is None:
                stack.append(edge[0])
            else:
                parts.append(part)
        if len(stack) > waiting:
            continue
        stack.pop()
        name = type(node).__name__
        if parts:
            mask = _join(node, name, parts, found.pairs)
            if mask is None:
                return None
        elif name == "AccumulateGrad":
            leaf = node.variable
            mask = leaves.get(id(leaf))
            if mask is None:
                mask = leaves[id(leaf)] = 1 << len(found.xs)
                found.xs.append(leaf)
        else:
            mask = 0
        masks[node] = mask
    found.below = masks[y.grad_fn]
    return found


def _join(node: Node, name: str, parts: list[int], pairs: set[tuple[int, int]]) -> int | None:
    """What a node depends on, given what its inputs do; notes what it couples.

    None for a user's node: they may look on. So is ours, which answers for itself.
    """
    whole = 0
    for part in parts:
        whole |= part
    if name in LINEAR or (name == "DivBackward0" and not parts[1]):
        return whole
    two = BILINEAR.get(name)
    if two is not None:
        a, b = parts[two[0]], parts[two[1]]
        if a and b:
            pairs.add((a, b))
            pairs.add((b, a))
        return whole
    if isinstance(node, BackwardCFunction):
        return None
    if whole:
        pairs.add((whole, whole))
    return whole


def _nested(edges: dict[Edge, int], leaves: dict[int, int]) -> bool:
    """Whether an input depends on another one: its gradient then passes through that."""
    stack = [node for node, _ in edges]
    seen = set(stack)
    while stack:
        for edge in stack.pop().next_functions:
            node = edge[0]
            if edge in edges or id(getattr(node, "variable", None)) in leaves:
                return True
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
    return False


# --- the gradient and its node --------------------------------------------------------------------


def _gradient(y: Tensor, found: _Dependence) -> list[Tensor | None] | None:
    """The gradient, connected to what it depends on; None where the engine refuses."""
    around = found.depending(found.of_inputs(-1))
    if not around or around >> found.given:
        return None  # constant: stock's has no graph either; or it depends on other leaves
    curved = [i for i in range(found.given) if found.depending(1 << i)]
    ends = found.indices(around)
    with torch.enable_grad():
        linear = _Linear(y.clone(), found)  # the caller may write to theirs
        try:
            values = linear.engine(create_graph=False).gradient()
        except RuntimeError:
            return None
        # A part of the gradient may share memory with a factor in y.
        parts = [None if g is None else g.clone() for g in values]
        gs: dict[int, Tensor | None] = dict(zip(linear.inputs, parts, strict=True))
        flat = [gs[i] for i in curved]
        out = _apply(linear, curved, ends, flat, *[found.xs[j] for j in ends])
    gs.update(zip(curved, out, strict=True))
    return [gs.get(i) for i in range(found.given)]


class _Linear:
    """The graph of ``y`` and its linearizations by ``inputs``, which are indices."""

    def __init__(self, y: Tensor, found: _Dependence) -> None:
        self.y = y
        self.found = found
        self.inputs = found.indices(found.of_inputs(found.below))
        self._engines: dict[bool, _C.Linearization] = {}
        self._lock = threading.RLock()

    def engine(self, create_graph: bool) -> _C.Linearization:
        """Made at the first call. The first one gives the gradient too."""
        engine = self._engines.get(create_graph)
        if engine is None:
            xs = [self.found.xs[j] for j in self.inputs]
            engine = _C.linearize([self.y], xs, None, create_graph, not create_graph)
            self._engines[create_graph] = engine
        return engine

    def release(self) -> None:
        """Nobody will ask again."""
        self._engines.clear()
        del self.y, self.found

    def products(self, vs: dict[int, Tensor]) -> dict[int, Tensor | None]:
        """``v' dg/dx`` for the gradients in ``vs``, by the index of ``x``."""
        if _plain(vs):
            results = self._by_engine({i: v.unsqueeze(0) for i, v in vs.items()})
            if results is not None:
                return {j: r[0] for j, r in zip(self.inputs, results, strict=True)}
        elif (batch := _unwrap(vs)) is not None:
            rows, wrap, of_functorch = batch
            with temporarily_pop_interpreter_stack() if of_functorch else nullcontext():
                results = self._by_engine(rows)
            if results is not None:
                return {j: wrap(r) for j, r in zip(self.inputs, results, strict=True)}
        return dict(zip(self.inputs, self._by_stock(vs), strict=True))

    def _by_engine(self, rows: dict[int, Tensor]) -> list[Tensor] | None:
        graph = torch.is_grad_enabled()
        try:
            with self._lock:  # passes of several threads may meet here
                engine = self.engine(graph)
                if len(self.inputs) == 1 and not graph and _is_identity(rows[self.inputs[0]]):
                    return [engine.hessian(None, False)[0][0].view_as(rows[self.inputs[0]])]
                return engine.hvp([rows.get(j) for j in self.inputs])
        except _C.Unsupported:
            return None

    def _by_stock(self, vs: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
        graph = torch.is_grad_enabled()
        xs = self.found.xs
        with torch.enable_grad():
            gs = _stock_grad(self.y, [xs[i] for i in vs], create_graph=True)
        pairs = zip(gs, vs.values(), strict=True)
        live = [(g, v) for g, v in pairs if g is not None and g.requires_grad]
        return _stock_grad(
            [g for g, _ in live],
            [xs[j] for j in self.inputs],
            [v for _, v in live],
            create_graph=graph,
            retain_graph=True,
            allow_unused=True,
        )


class _Gradient(torch.autograd.Function):
    """Puts the node on a gradient that is there already."""

    @staticmethod
    def forward(
        ctx: Any,
        linear: _Linear,
        curved: list[int],
        ends: list[int],
        gs: list[Tensor],
        *xs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.linear, ctx.curved, ctx.ends = linear, curved, ends
        ctx.save_for_backward(*xs)  # a write to one of them is an error, and so is a second pass
        ctx.set_materialize_grads(False)
        return tuple(gs)

    @staticmethod
    def backward(ctx: Any, *vs: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.saved_tensors  # noqa: B018  raises where the graph was freed or written to
        linear: _Linear = ctx.linear
        found = linear.found
        by_index = {i: v for i, v in zip(ctx.curved, vs, strict=True) if v is not None}
        live = found.depending(sum(1 << i for i in by_index))
        products = linear.products(by_index) if by_index else {}
        result = [products.get(j) if live >> j & 1 else None for j in ctx.ends]
        if not _autograd._get_current_graph_task_keep_graph():
            linear.release()
        return (None, None, None, None, *result)


# Without the look for transforms around the call: there are none.
_apply: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, _Gradient).apply


# --- directions under vmap ------------------------------------------------------------------------


# Rows [K, *S], what makes a result of their vmap from rows, and whether that is functorch's.
_Batch = tuple[dict[int, Tensor], Callable[[Tensor], Tensor], bool]


def _plain(vs: dict[int, Tensor]) -> bool:
    """Whether each is a direction by itself."""
    if _functorch_level() is not None:
        return False
    return not any(type(v) is not Tensor or _is_legacy(v) for v in vs.values())


def _unwrap(vs: dict[int, Tensor]) -> _Batch | None:
    """Directions as rows, whichever vmap batches them; None under several levels or subclasses.

    ``torch.autograd.grad(..., is_grads_batched=True)`` still uses the vmap before functorch's.
    """
    if any(type(v) is not Tensor for v in vs.values()):
        return None
    of_functorch = _functorch_level() is not None
    rows: dict[int, Tensor | None] = {}
    if of_functorch:
        level = _functorch.current_level()
        for i, v in vs.items():
            inside = _functorch.is_batchedtensor(v) and _functorch.maybe_get_level(v) == level
            at = _functorch.maybe_get_bdim(v)
            rows[i] = _functorch.get_unwrapped(v).movedim(at, 0) if inside else None
        add = _functorch._add_batch_dim
    else:
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        for i, v in vs.items():
            rows[i] = torch._remove_batch_dim(v, level, 0, 0) if _is_legacy(v) else None
        add = torch._add_batch_dim
    K = next((len(r) for r in rows.values() if r is not None), None)
    if K is None:
        return None
    # A direction that is not batched is the same for all.
    full = {i: v.expand(K, *v.shape) if (r := rows[i]) is None else r for i, v in vs.items()}
    if any(_is_legacy(r) or _functorch.is_functorch_wrapped_tensor(r) for r in full.values()):
        return None
    return full, lambda t: add(t, 0, level), of_functorch


_last_identity: tuple[ref[Tensor], int] | None = None  # with its version


def _is_identity(rows: Tensor) -> bool:
    """Whether the directions are all unit vectors in order; the last such tensor is remembered."""
    global _last_identity
    K = rows.shape[0]
    if K < 2 or rows.numel() != K * K:
        return False
    known = _last_identity
    if known is not None and known[0]() is rows and known[1] == rows._version:
        return True
    flat = rows.reshape(K, K)
    if not (flat[0, 0] == 1 and flat[-1, -1] == 1 and flat[0, -1] == 0):
        return False
    if not torch.equal(flat, torch.eye(K, dtype=rows.dtype, device=rows.device)):
        return False
    _last_identity = (ref(rows), rows._version)
    return True
