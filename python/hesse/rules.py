"""Rules of the user's own, in Python, for autograd nodes that hesse has no rule for."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from . import _C


class Registration:
    """A rule that is registered; as a context manager, until its block ends."""

    def __init__(self, name: str, rule: _C.UserRule) -> None:
        """Hold on to what :func:`register_rule` has registered under a name."""
        self.name = name
        self._rule = rule

    def remove(self) -> None:
        """Take the rule back; the one that the name had before, if any, counts again.

        A call that is under way keeps the rule until it ends. A second time does nothing.
        """
        self._rule.remove()

    def __enter__(self) -> Registration:
        """Nothing to do: it is registered already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove it."""
        self.remove()

    def __repr__(self) -> str:
        """Name the node."""
        return f"<rule of {self.name}>"


def register_rule(
    name: str,
    *,
    push: Callable[..., Any],
    pull: Callable[..., Any],
    curve: Callable[..., Any] | None = None,
    override: bool = False,
) -> Registration:
    """Give the derivatives of an op of your own: a ``torch.autograd.Function``, a custom operator.

    The rule is for an autograd node, by its name; it holds for every node of that name, in all
    threads, until it is removed. For ``y = f(x)`` with Jacobian ``J``, where ``x`` are the tensors
    that the op was given (numbers, flags and None do not count) and ``y`` those it returned::

        push(ctx, *dx) -> dy          dy  = J dx
        pull(ctx, *dgy) -> dgx        dgx = J' dgy
        curve(ctx, gy, dx) -> dgx     dgx = (dJ . dx)' gy, the derivative of pull(gy) along dx

    Each works on ``K`` directions at once, the seeds, on the first axis. Results are a tuple, or
    for one value a Tensor; None stands for zero, in what is given as in what is returned, and for
    an input that does not depend on what is differentiated. The rule claims to be exact: ``f`` has
    one Hessian per output, so ``curve`` is symmetric (``<u, curve(v)> = <v, curve(u)>``).
    :func:`hesse.testing.check_rule` tests that and the rest.

    Args:
        name: of the node, ``y.grad_fn.name()``; for ``class Cube(torch.autograd.Function)`` it is
            ``"CubeBackward"``.
        push: ``dx[i]`` has shape ``[K, *x_i.shape]`` and the dtype of ``x_i``; returns one
            ``[K, *y_o.shape]`` for each output.
        pull: ``dgy[o]`` has shape ``[K, *y_o.shape]``; returns one ``[K, *x_i.shape]`` for each
            input.
        curve: ``gy`` is a tuple of ``y_o.shape`` each (None: zero), ``dx`` a tuple as for push;
            returns what pull returns. None: ``f`` is linear.
        override: replace the rule that the name has, hesse's own or a user's.

    ``ctx`` is that of the Function, with its ``saved_tensors`` and attributes, or else the node
    itself. Do not write into what is given. A node that complex values flow through is left to
    autograd. Under ``create_graph`` the functions are recorded, so
    write them in differentiable operations.

    Returns:
        A :class:`Registration`: ``remove()`` takes the rule back, as does the end of a ``with``.

    Raises:
        TypeError: ``hesse.register_rule: push must be callable, got ...``; at the call of a rule,
            when it returns something else than real tensors of the right device.
        ValueError: ``hesse.register_rule: MulBackward0 has a rule of hesse's own ...``; at the call
            of a rule, ``hesse: the rule of CubeBackward: what push returned for output 0 has shape
            ..., expected ...``. What a rule itself raises is passed on.

    Example:
        >>> import hesse, torch
        >>> class Cube(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x**3
        ...
        ...     @staticmethod
        ...     @torch.autograd.function.once_differentiable
        ...     def backward(ctx, g):
        ...         return 3 * g * ctx.saved_tensors[0] ** 2
        >>> def slope(ctx, t):
        ...     return 3 * ctx.saved_tensors[0] ** 2 * t
        >>> def bend(ctx, gy, dx):
        ...     return 6 * ctx.saved_tensors[0] * gy[0] * dx[0]
        >>> with hesse.register_rule("CubeBackward", push=slope, pull=slope, curve=bend):
        ...     H = hesse.hessian(lambda x: Cube.apply(x).prod(), torch.ones(2))
        >>> assert H.tolist() == [[6, 9], [9, 6]]

    Source:
        The three laws are those of the engine's own rules.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"hesse.register_rule: name must be that of an autograd node, got {name!r}")
    for part, f in (("push", push), ("pull", pull), ("curve", curve)):
        if not callable(f) and not (part == "curve" and f is None):
            raise TypeError(f"hesse.register_rule: {part} must be callable, got {f!r}")
    try:
        rule = _C.add_user_rule(name, push, pull, curve, override)
    except ValueError as refusal:
        raise ValueError(
            f"hesse.register_rule: {refusal}; override=True replaces it until yours is removed"
        ) from None
    return Registration(name, rule)
