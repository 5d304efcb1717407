"""What a call does when it cannot use the engine: raise, warn once per reason, or say nothing.

The policy lives in a context variable, so threads and asyncio tasks do not see each other's.
"""

from __future__ import annotations

import sys
import warnings
from contextvars import ContextVar
from types import TracebackType

POLICIES = ("error", "warn", "silent")

_policy: ContextVar[str] = ContextVar("hesse.fallback", default="warn")
_warned: set[str] = set()


class FallbackWarning(UserWarning):
    """A whole call went through plain autograd, or a compiled one runs eagerly."""


class FallbackError(RuntimeError):
    """What :class:`FallbackWarning` warns of was about to happen and the policy is ``"error"``."""


class _Restore:
    """Puts the previous policy back when its ``with`` block ends."""

    def __init__(self, previous: str) -> None:
        self._previous = previous

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _policy.set(self._previous)


def fallback(policy: str) -> _Restore:
    """Choose what happens when a whole call has to leave the engine.

    The choice holds from here on for the calling thread (or asyncio task), as
    :func:`torch.set_grad_enabled` does; in a ``with`` statement, until the block ends. Every thread
    starts with ``"warn"``.

    Args:
        policy: ``"error"`` raises :class:`FallbackError`; ``"warn"`` (the default) issues one
            :class:`FallbackWarning` per reason, and choosing it again makes every reason new;
            ``"silent"`` says nothing.

    Returns:
        A context manager that restores the previous policy.

    Raises:
        ValueError: ``hesse.fallback: the policy must be 'error', 'warn' or 'silent', got ...``

    Example:
        >>> import hesse, torch
        >>> with hesse.fallback("error"):
        ...     H = hesse.hessian(lambda x: (x**3).sum(), torch.ones(2))
        >>> assert torch.equal(H, 6 * torch.eye(2))
    """
    if policy not in POLICIES:
        raise ValueError(
            f"hesse.fallback: the policy must be 'error', 'warn' or 'silent', got {policy!r}"
        )
    previous = _policy.get()
    _policy.set(policy)
    if policy == "warn":
        _warned.clear()
    return _Restore(previous)


def note(reason: str, name: str = "hessian") -> None:
    """Act on a fallback that is about to happen, as the policy says.

    Args:
        reason: why the engine cannot take the call; one clause, no full stop.
        name: of the public call.

    Raises:
        FallbackError: when the policy is ``"error"``.
    """
    act(
        reason,
        f"hesse.{name} cannot use its engine: {reason}. "
        "hesse.fallback('warn') or hesse.fallback('silent') lets plain autograd do it.",
        f"hesse.{name} used plain autograd instead of its engine: {reason}. The result is "
        "the same, at autograd's speed.",
    )


def act(reason: str, refusal: str, warning: str) -> None:
    """Raise, warn once per reason, or say nothing, as the policy says.

    Args:
        reason: of which one warning is enough.
        refusal: what to raise.
        warning: what to warn of.

    Raises:
        FallbackError: when the policy is ``"error"``.
    """
    policy = _policy.get()
    if policy == "error":
        raise FallbackError(refusal)
    if policy == "warn" and reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"{warning} hesse.fallback('error') refuses such calls, "
            "hesse.fallback('silent') hides this message.",
            FallbackWarning,
            stacklevel=_user_level(),
        )


def _user_level() -> int:
    """The ``stacklevel``, for a warning in the caller, of the line that called hesse.

    It may be torch that stands between: it wraps transforms and the ``step`` of an optimiser.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in ("hesse", "torch"):
        level, frame = level + 1, frame.f_back
    return level
