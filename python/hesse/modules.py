"""Modules as functions of their parameters, and the Hessian of a loss over them.

module, loss -> func({name: parameter}) = loss(module with these parameters)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from . import stock, transforms
from .policy import note
from .record import check_output, elsewhere, engine, functorch_active, plain, record, uncompiled
from .stock import Blocks
from .trees import flatten_blocks, take

Names = Iterable[str] | Callable[[str], bool] | None


def module_hessian(
    module: torch.nn.Module,
    loss: Callable[[torch.nn.Module], Tensor],
    names: Names = None,
    flat: bool = False,
) -> Any:
    """Compute the Hessian of a loss over the parameters of a module.

    ``loss`` runs once. Buffers (the running statistics of BatchNorm too), parameters and their
    ``.grad`` stay as they are, whether it returns or raises. The result has no graph; that of
    :func:`hesse.func.hessian` for :func:`hesse.functional` can be differentiated.

    Args:
        module: its parameters that require grad count, in the order of ``named_parameters()``; tied
            ones once, under their first name; any real floating-point dtypes.
        loss: takes the module, returns one Tensor with one element.
        names: which parameters: their names, in the order wanted, or a function that says whether
            a name is meant. None: all that require grad.
        flat: whether to return one matrix.

    Returns:
        ``{name: {other: block}}``, blocks of shape ``S_name + S_other`` and the dtype of the other;
        with ``flat`` a matrix ``[N, N]``, rows and columns in the order of the names:
        :func:`hesse.unflatten` with the parameters of :func:`hesse.functional` cuts its vectors.

    Raises:
        TypeError: ``hesse.module_hessian: module is of type function, not a torch.nn.Module``, and
            ``hesse.module_hessian: flat=True needs one dtype and device, ...``
        ValueError: ``hesse.module_hessian: module has no parameter 'wieght': it has 'bias',
            'weight'``, ``... parameter 'bias' does not require grad``, ``... no parameter of module
            requires grad``, ``... parameter 'weight' is not initialized: ...``
        RuntimeError: ``The Tensor returned by the function given to module_hessian should contain
            a single element``
        FallbackError: the engine cannot take the call and :func:`hesse.fallback` is ``"error"``.

    Example:
        >>> import hesse, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> H = hesse.module_hessian(net, lambda net: net(x).square().sum())
        >>> assert H["weight"]["bias"].flatten().tolist() == [2, 4]
        >>> matrix = hesse.module_hessian(net, lambda net: net(x).square().sum(), flat=True)
        >>> assert matrix.tolist() == [[2, 4, 2], [4, 8, 4], [2, 4, 2]]

    Source:
        torch.func.functional_call.
    """
    func, params = _functional(module, loss, names, "module_hessian")
    _, structure = take(params, "module_hessian", "parameters")
    given = tuple(params.values())
    if flat:
        _check_one_kind(params)
    blocks = _blocks(lambda *leaves: func(structure.build(leaves)), given)
    H = structure.blocks(blocks)
    return flatten_blocks(H, params) if flat else H


def functional(
    module: torch.nn.Module, loss: Callable[..., Tensor], names: Names = None
) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """Turn a module and its loss into a function of a dictionary, which every call here takes.

    Args:
        module: as for :func:`hesse.module_hessian`.
        loss: takes the module, and what else the function is given.
        names: as for :func:`hesse.module_hessian`.

    Returns:
        ``func, params``: the parameters by name, detached (they share the module's memory); and
        ``func(params, *args, **kwargs) = loss(module, *args, **kwargs)`` with those parameters in
        the module's place, on copies of its buffers. The module is as before when it returns.

    Raises:
        TypeError: ``hesse.functional: module is of type function, not a torch.nn.Module``
        ValueError: as :func:`hesse.module_hessian`.

    Example:
        >>> import hesse, torch
        >>> net = torch.nn.Linear(2, 1)
        >>> def loss(net, x):
        ...     return net(x).square().sum()
        >>> func, params = hesse.functional(net, loss, names=["weight"])
        >>> H = hesse.func.hessian(func)(params, torch.tensor([[1.0, 2.0]]))
        >>> assert H["weight"]["weight"].flatten().tolist() == [2, 4, 4, 8]

    Source:
        torch.func.functional_call.
    """
    return _functional(module, loss, names, "functional")


class _Loss(torch.nn.Module):
    """``loss(module)`` as a module, so that functional_call swaps what is below it."""

    def __init__(self, module: torch.nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.loss(self.module, *args, **kwargs)


def _functional(
    module: torch.nn.Module, loss: Callable[..., Tensor], names: Names, name: str
) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    if not isinstance(module, torch.nn.Module):
        kind = type(module).__name__
        raise TypeError(f"hesse.{name}: module is of type {kind}, not a torch.nn.Module")
    selected = {key: p.detach() for key, p in _select(module, names, name).items()}
    whole = _Loss(module, uncompiled(loss))

    def func(params: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        there: dict[str, Tensor] = dict(module.named_parameters())
        for key in params:
            if key not in there:
                raise ValueError(f"hesse.{name}: {_missing(module, key, there)}")
        swapped = {there[key]: p for key, p in params.items()}
        swapped |= {b: b.clone() for b in whole.buffers()}
        places = {place: swapped[x] for place, x in _places(whole) if x in swapped}
        kept = _derived(module)
        try:
            y: Tensor = torch.func.functional_call(whole, places, args, kwargs, tie_weights=False)
        finally:
            for owner, attributes in kept:
                vars(owner).update(attributes)
        return y

    return func, selected


def _select(module: torch.nn.Module, names: Names, name: str) -> dict[str, Tensor]:
    """The parameters that ``names`` means, in its order."""
    there: dict[str, Tensor] = dict(module.named_parameters())
    for kind, tensors in (("parameter", there.items()), ("buffer", module.named_buffers())):
        for key, tensor in tensors:
            if is_lazy(tensor):
                raise ValueError(
                    f"hesse.{name}: {kind} {key!r} is not initialized: call the module once first"
                )
    free = {key: p for key, p in there.items() if p.requires_grad}
    if not free:
        raise ValueError(
            f"hesse.{name}: no parameter of module requires grad: it has {_listed(there)}"
        )
    if names is None:
        return free
    if callable(names):
        chosen = {key: p for key, p in free.items() if names(key)}
    else:
        chosen = {}
        for key in [names] if isinstance(names, str) else names:
            if key not in there:
                raise ValueError(f"hesse.{name}: {_missing(module, key, there)}")
            if key not in free:
                raise ValueError(
                    f"hesse.{name}: parameter {key!r} does not require grad: leave it out, or call "
                    "its requires_grad_()"
                )
            chosen[key] = free[key]
    if not chosen:
        raise ValueError(f"hesse.{name}: names means no parameter: there are {_listed(free)}")
    return chosen


def _missing(module: torch.nn.Module, key: object, there: dict[str, Tensor]) -> str:
    alias = dict(module.named_parameters(remove_duplicate=False)).get(str(key))
    for first, p in there.items():
        if p is alias:
            return f"parameter {key!r} is tied to {first!r}: give that name"
    return f"module has no parameter {key!r}: it has {_listed(there)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _places(whole: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Where parameters and buffers are, each module once: tied tensors under all their names.

    functional_call finds ties itself, but it leaves its own tensors in a module that it meets
    under two names.
    """
    for prefix, owner in whole.named_modules():
        yield from owner.named_parameters(prefix, recurse=False, remove_duplicate=False)
        yield from owner.named_buffers(prefix, recurse=False, remove_duplicate=False)


def _derived(module: torch.nn.Module) -> list[tuple[torch.nn.Module, dict[str, Any]]]:
    """Tensors that modules keep as plain attributes, made from parameters in their forward.

    Such as the weight of weight_norm and the flat weights of a recurrent layer.
    """

    def made(value: object) -> bool:
        if isinstance(value, list):
            return any(isinstance(x, Tensor) for x in value)
        return isinstance(value, Tensor)

    return [
        (owner, {key: value for key, value in vars(owner).items() if made(value)})
        for owner in module.modules()
    ]


def _check_one_kind(params: dict[str, Tensor]) -> None:
    (first, p), *rest = params.items()
    for key, q in rest:
        if (q.dtype, q.device) != (p.dtype, p.device):
            raise TypeError(
                "hesse.module_hessian: flat=True needs one dtype and device, and "
                f"{first!r} has {p.dtype} on {p.device}, {key!r} {q.dtype} on {q.device}: "
                "convert the module with .to(), or take the blocks"
            )


def _blocks(func: Callable[..., Tensor], given: tuple[Tensor, ...]) -> Blocks:
    reason = None if plain(given) else elsewhere(given, True)[1]
    if reason is not None:
        note(reason, "module_hessian")
        if functorch_active():
            return transforms.hessian(func, given, check_output, None)
        return [list(row) for row in stock.hessian(func, given)]
    _, inner, y = record(func, given, False, name="module_hessian")
    return engine(y, inner, False, "module_hessian").hessian(None, False)
