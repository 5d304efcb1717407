"""``hesse.func.hessian``: as ``torch.func`` has it, for trees and vector-valued functions.

One run of ``func`` records all outputs; each element of an output is one seed of the same
linearization, ``H_e = d^2 (gy_e . y) / dx_i dx_j`` with ``gy_e`` one-hot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.utils import _pytree as pytree

from . import _C, late, stock
from .policy import note
from .record import elsewhere, functorch_active, plain, uncompiled
from .stock import Blocks
from .trees import Structure, take

# Untyped in torch; they hold the words of its errors.
_slice_argnums: Callable[..., Any] = eager_transforms._slice_argnums
_check_outputs: Callable[..., None] = eager_transforms.assert_non_empty_tensor_output
_AccumulateGrad: Any = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]

NAME = "func.hessian"
FEW = 128  # inputs: the whole Hessian is formed at every step that bends


def hessian(
    func: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Make the function that computes the Hessian of ``func``; takes the place of torch.func's.

    ``func`` runs once per call. An entry that is zero by the structure of ``func`` is 0 even where
    another derivative is infinite or NaN. Random ops, ops without a batching rule and negative
    argnums (for which torch returns zeros) are fine.

    In grad mode, a result whose ``func`` depends on what requires grad (its arguments, or weights
    it closes over) can be differentiated by them; that costs nothing until somebody does.

    Inside ``torch.func`` transforms and ``vmap`` only transforms compose: the call goes to
    ``torch.func.hessian``, and a warning says so (:func:`hesse.fallback`). For per-sample
    Hessians call ``hesse.batch_hessian`` on the batch instead of ``vmap``.

    Args:
        func: takes trees of tensors, returns a tree of real floating-point tensors of any shapes
            ``Y``; with ``has_aux`` a pair of that and anything else.
        argnums: which positional arguments to differentiate by, negative from the end. They are
            trees of tensors of shapes ``S_i`` and real floating-point dtypes.
        has_aux: whether ``func`` returns a pair.

    Returns:
        A function of the arguments of ``func``, keywords too. It returns, in the structure of the
        output, a tree of trees in that of the argument (a tuple of tuples for a tuple of argnums):
        each block has shape ``Y + S_i + S_j`` and the dtype of leaf i. With ``has_aux``, a pair of
        that and what ``func`` returned, without a graph unless it depends on what requires grad.

    Raises:
        RuntimeError: ``argnums must be int or Tuple[int, ...], got: ...``, ``hesse.func.hessian:
            expected f(*primals) to return only tensors, got unsupported type ...``,
            ``hesse.func.hessian: output 0 of func has dtype torch.int64, ...``
        TypeError: ``hesse.func.hessian: args[0]['w'] has dtype torch.int64, which has no
            derivatives: ...`` and the like.
        FallbackError: the engine cannot take the call and :func:`hesse.fallback` is ``"error"``.

    Example:
        >>> import hesse, torch
        >>> def func(params, scale):
        ...     return {"y": scale * params["w"] ** 3}
        >>> H = hesse.func.hessian(func)({"w": torch.ones(2)}, 2.0)
        >>> assert H["y"]["w"]["w"].shape == (2, 2, 2)
        >>> assert H["y"]["w"]["w"][1].tolist() == [[0, 0], [0, 12]]

    Source:
        torch.func.hessian, whose structure, shapes and dtypes these are.
    """

    @functools.wraps(func, updated=())
    def of_arguments(*args: Any, **kwargs: Any) -> Any:
        wrt = _slice_argnums(args, argnums, as_tuple=False)
        several = isinstance(argnums, tuple)
        asked = argnums if isinstance(argnums, tuple) else (argnums,)
        places = [argnum % len(args) for argnum in asked]
        leaves, spec = pytree.tree_flatten(wrt)
        given = tuple(leaves)
        if not plain(given) or _inference(given):
            if not given or not all(_real(x) for x in given):
                take({place: args[place] for place in places}, NAME, "args")
            refused, reason = _second_look(given)
            if reason is not None:
                note(reason, NAME)
            if refused or reason is not None:
                # Of a negative argnum jacfwd checks the range and returns zeros.
                of_args = functools.partial(func, **kwargs)
                return _stock(of_args, tuple(places) if several else places[0], has_aux)(*args)

        structure = Structure(spec, several)
        inner = _stand_ins(given)
        stand_in = structure.build(inner)
        whole = list(args)
        for place, part in zip(places, stand_in if several else (stand_in,), strict=True):
            whole[place] = part
        with torch.enable_grad():
            result = uncompiled(func)(*whole, **kwargs)
        result, aux = _split(result) if has_aux else (result, None)
        ys, output_spec = pytree.tree_flatten(result)
        _check_outputs(ys, f"hesse.{NAME}")
        for o, y in enumerate(ys):
            if not y.is_floating_point():
                raise RuntimeError(
                    f"hesse.{NAME}: output {o} of func has dtype {y.dtype}, and only real "
                    "floating-point tensors have Hessians: has_aux=True passes others on"
                )

        blocks = _attached(ys, given, inner)
        n = len(inner)
        H = pytree.tree_unflatten(
            [structure.blocks([row[i * n : i * n + n] for i in range(n)]) for row in blocks],
            output_spec,
        )
        if not has_aux:
            return H
        return H, pytree.tree_map(lambda leaf: _cut(leaf, given, inner), aux)

    return of_arguments


def _real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _inference(given: tuple[Tensor, ...]) -> bool:
    return torch.is_inference_mode_enabled() or any(x.is_inference() for x in given)


def _second_look(given: tuple[Any, ...]) -> tuple[bool, str | None]:
    """As :func:`record.elsewhere`: are they torch.func's to judge, else why can't the engine."""
    refused, reason = elsewhere(given, True)
    if reason is not None and functorch_active():
        reason += "; hesse.batch_hessian is the way to per-sample Hessians"
    if not refused and reason is None and _inference(given):
        reason = "torch.inference_mode is on or made an argument, and it records no graph"
    return refused, reason


def _stock(
    func: Callable[..., Any], argnums: int | tuple[int, ...], has_aux: bool
) -> Callable[..., Any]:
    """torch.func.hessian, which has no ``has_aux``: its two halves have."""
    if not has_aux:
        return torch.func.hessian(func, argnums)
    gradient = torch.func.jacrev(func, argnums, has_aux=True)
    return torch.func.jacfwd(gradient, argnums, has_aux=True)


def _stand_ins(given: tuple[Tensor, ...]) -> list[Tensor]:
    """What ``func`` sees: views that it cannot write to, in the caller's graph if there is one."""
    graph = torch.is_grad_enabled()

    def one(x: Tensor) -> Tensor:
        if not (graph and x.requires_grad):
            return x.detach().requires_grad_()
        # Autograd lets nobody write to a view of a leaf, nor to one of several views.
        return x.view_as(x) if x.is_leaf else x.unsqueeze(0).unbind(0)[0]

    with torch.enable_grad():
        outer = [one(x) for x in given]
        return [x.view_as(x) for x in outer]


def _split(result: Any) -> tuple[Any, Any]:
    if not (isinstance(result, tuple) and len(result) == 2):
        raise RuntimeError(
            f"hesse.{NAME}: output of function f should be a tuple: (output, aux) "
            "if has_aux is True"
        )
    return result[0], result[1]


def _attached(ys: list[Tensor], given: tuple[Tensor, ...], inner: list[Tensor]) -> Blocks:
    """The blocks of :func:`_blocks`, a function of what the outputs depend on beside ``inner``."""
    sources, direct = _sources(ys, given, inner)
    if not sources:
        return _blocks(ys, inner, False)
    # A tensor in between is nobody's leaf, and a hook on a leaf would see two gradients.
    if not direct or any(x._backward_hooks for x in sources):
        return _blocks(ys, inner, True)
    flags = [[y.requires_grad] * len(inner) ** 2 for y in ys]
    versions = [x._version for x in inner]

    def again() -> Blocks:
        if versions != [x._version for x in inner]:
            raise RuntimeError(
                f"hesse.{NAME}: an argument was changed in place before the Hessian was "
                "differentiated: clone it first"
            )
        return _blocks(ys, inner, True)

    return late.attach(_blocks(ys, inner, False), flags, sources, again)


def _sources(
    ys: Iterable[Tensor], given: tuple[Tensor, ...], inner: list[Tensor]
) -> tuple[list[Tensor], bool]:
    """What of the caller's requires grad and is below ``ys``.

    Args:
        ys: recorded by ``func``.
        given: the caller's arguments.
        inner: what stood in for them.

    Returns:
        Those of ``given``, and the leaves that ``func`` closes over; and whether that is all: no
        argument and nothing on the way is a result of the caller's.
    """
    if not torch.is_grad_enabled():
        return [], True
    stands_for = {z.grad_fn: x for z, x in zip(inner, given, strict=True)}
    start = min(node._sequence_nr() for node in stands_for if node is not None)
    found: dict[Tensor, None] = {}
    direct = True
    seen = set()
    nodes: list[Any] = [y.grad_fn for y in ys]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        x = stands_for.get(node)
        if x is None and isinstance(node, _AccumulateGrad):
            x = node.variable
        if x is None:
            direct &= node._sequence_nr() >= start
            nodes.extend(edge[0] for edge in node.next_functions)
        elif x.requires_grad:
            direct &= x.is_leaf
            found[x] = None
    return list(found), direct


def _cut(leaf: Any, given: tuple[Tensor, ...], inner: list[Tensor]) -> Any:
    """What ``func`` returned beside its output, off the graph of this call."""
    if not isinstance(leaf, Tensor) or not leaf.requires_grad:
        return leaf
    kept = torch.is_grad_enabled() and (leaf.is_leaf or _sources([leaf], given, inner)[0])
    return leaf if kept else leaf.detach()


def _blocks(ys: list[Tensor], inner: list[Tensor], create_graph: bool) -> Blocks:
    """The blocks of each output, ``[o][i * n + j]`` of shape ``Y + S_i + S_j``.

    Args:
        ys: recorded from ``inner``; of shapes ``Y``.
        inner: n tensors of shapes ``S``.
        create_graph: whether they can be differentiated.
    """
    linearization: _C.Linearization | None = None

    def by_seed(o: int, e: int) -> Blocks:
        nonlocal linearization
        gy = torch.zeros(ys[o].shape, dtype=ys[o].dtype, device=ys[o].device)
        gy.view(-1)[e] = 1
        gys = [gy if k == o else None for k in range(len(ys))]
        if linearization is None:
            linearization = _C.linearize(ys, inner, gys, create_graph)
        else:
            linearization.seed(gys)
        return linearization.hessian(None, True)

    with torch.set_grad_enabled(create_graph):
        try:
            if _few(ys, inner):
                return _together(ys, inner, create_graph)
            return _stacked(ys, inner, by_seed)
        except _C.Unsupported as error:
            refusal = str(error)
        note(refusal, NAME)

        def by_double_backward(o: int, e: int) -> Blocks:
            with torch.enable_grad():
                element = ys[o].reshape(-1)[e]
            plain_autograd = stock.DoubleBackward(element, inner, create_graph, refusal)
            return plain_autograd.hessian(None, True)

        return _stacked(ys, inner, by_double_backward)


def _few(ys: list[Tensor], inner: list[Tensor]) -> bool:
    """Whether all elements are best done at once: several, of few inputs of one kind."""
    kinds = {(x.dtype, x.device) for x in inner}
    elements = sum(y.numel() for y in ys)
    return elements > 1 and sum(x.numel() for x in inner) <= FEW and len(kinds) == 1


def _together(ys: list[Tensor], inner: list[Tensor], create_graph: bool) -> Blocks:
    """The blocks of each output, all elements from the same tangents."""
    gys: list[list[Tensor | None]] = []
    for o, y in enumerate(ys):
        for row in torch.eye(y.numel(), dtype=y.dtype, device=y.device):
            gys.append([row.view(y.shape) if k == o else None for k in range(len(ys))])
    nothing: list[Tensor | None] = [None] * len(ys)
    matrices = _C.linearize(ys, inner, nothing, create_graph).hessians(gys)
    sizes = [x.numel() for x in inner]
    result: Blocks = []
    for y in ys:
        own, matrices = matrices[: y.numel()], matrices[y.numel() :]
        H = torch.stack(own) if own else inner[0].new_zeros(0, sum(sizes), sum(sizes))
        result.append(
            [
                block.reshape(y.shape + xi.shape + xj.shape)
                for rows, xi in zip(torch.split(H, sizes, 1), inner, strict=True)
                for block, xj in zip(torch.split(rows, sizes, 2), inner, strict=True)
            ]
        )
    return result


def _stacked(
    ys: list[Tensor], inner: Sequence[Tensor], one: Callable[[int, int], Blocks]
) -> Blocks:
    """Elements ``one(o, e)`` side by side."""
    shapes = [xi.shape + xj.shape for xi in inner for xj in inner]
    rows = [xi for xi in inner for _ in inner]
    result: Blocks = []
    for o, y in enumerate(ys):
        if not y.requires_grad or not y.numel():
            result.append(
                [x.new_zeros(y.shape + shape) for x, shape in zip(rows, shapes, strict=True)]
            )
            continue
        elements = [[b for bs in one(o, e) for b in bs] for e in range(y.numel())]
        result.append(
            [
                torch.stack(column).reshape(y.shape + shape)
                if len(column) > 1
                else column[0].reshape(y.shape + shape)
                for column, shape in zip(zip(*elements, strict=True), shapes, strict=True)
            ]
        )
    return result
