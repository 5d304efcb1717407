"""``patched``: existing code gains without an edit: functions of torch are ours for a while.

They are put in place for the process and act in the context (thread, asyncio task) that asked.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.autograd import functional
from torch.jit import _builtins

from . import api, gradient, products


class _Scope:
    """One entry of ``patched``; closed for good, also from another context than its own."""

    open = True


_scopes: ContextVar[tuple[_Scope, ...]] = ContextVar("hesse.patched", default=())
_lock = threading.Lock()
_entered = 0
_scripted: Callable[[], dict[int, str]] = _builtins._get_builtin_table
_replaced: list[tuple[Any, str, Callable[..., Any], Callable[..., Any]]] = []


@contextmanager
def patched() -> Iterator[None]:
    """Let existing code use the engine: inside, functions of ``torch.autograd`` are ours.

    - ``torch.autograd.functional.hessian``, ``hvp`` and ``vhp`` are those of hesse.
    - ``torch.autograd.grad(y, inputs, create_graph=True)`` of one real element returns a gradient
      that answers a second differentiation (one, many, or all at once by ``is_grads_batched`` or
      vmap) from one linearization. Everything else about it is as in stock: third derivatives,
      ``retain_graph``, unused inputs. A call that the engine cannot take is stock's, and so is one
      with several elements, ``grad_outputs``, hooks or a custom Function below it, or whose result
      depends on leaves beside the inputs (the weights in a gradient penalty).

    It holds for the calling thread (or asyncio task), may be nested, and works as a decorator. A
    name that was imported before (``from torch.autograd import grad``) stays stock's. One thing
    differs: such a gradient hangs on the inputs alone, so that it cannot be differentiated by a
    value in between.

    Returns:
        A context manager that gives torch its own functions back.

    Example:
        >>> import hesse, torch
        >>> x = torch.ones(3, requires_grad=True)
        >>> with hesse.patched():
        ...     (g,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        ...     (H,) = torch.autograd.grad(g, x, torch.eye(3), is_grads_batched=True)
        >>> assert torch.equal(H, 6 * torch.eye(3))

    Source:
        B. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6(1), 1994.
    """
    global _entered
    with _lock:
        if not _entered:
            _install()
        _entered += 1
    scope = _Scope()
    _scopes.set((*_scopes.get(), scope))
    try:
        yield
    finally:
        # A generator may be closed out of order, or by another thread: no token would fit.
        scope.open = False
        _scopes.set(tuple(s for s in _scopes.get() if s.open))
        with _lock:
            _entered -= 1
            if not _entered:
                _restore()


def _active() -> bool:
    return any(scope.open for scope in _scopes.get())


def _install() -> None:
    for name, ours in (("hessian", api.hessian), ("hvp", products.hvp), ("vhp", products.vhp)):
        _replace(functional, name, _instead(getattr(functional, name), ours))
    _replace(torch.autograd, "grad", _grad_instead(torch.autograd.grad))


def _replace(module: Any, name: str, ours: Callable[..., Any]) -> None:
    original = getattr(module, name)
    _replaced.append((module, name, original, ours))
    if id(original) in _scripted():  # TorchScript knows its operators by these ids
        _scripted()[id(ours)] = _scripted()[id(original)]
    setattr(module, name, ours)


def _restore() -> None:
    for module, name, original, ours in _replaced:
        _scripted().pop(id(ours), None)
        if getattr(module, name) is ours:  # else somebody else replaced it meanwhile
            setattr(module, name, original)
    _replaced.clear()


def _instead(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _active():
            return original(*args, **kwargs)
        token = _scopes.set(())  # what it calls in turn is to be recorded, or is stock's
        try:
            return ours(*args, **kwargs)
        finally:
            _scopes.reset(token)

    return call


def _grad_instead(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def grad(*args: Any, **kwargs: Any) -> Any:
        if (len(args) > 4 or "create_graph" in kwargs) and _active() and not _from_within():
            result = gradient.grad(*args, **kwargs)
            if result is not None:
                return result
        return original(*args, **kwargs)

    return grad


def _from_within() -> bool:
    """Whether the caller of ``grad`` is one of the functions that rest on it, stock's or ours."""
    name: str = sys._getframe(2).f_globals.get("__name__", "")
    return name == functional.__name__ or name.startswith("hesse.")
