"""What a call computes, as it runs: every op below autograd goes on a tape that can be played.

    with recording() as tape:  answer(func, inputs)      ops of PyTorch   -> Ops  -> _C.Tape
                                                         kernels of hesse ---------> _C.Tape
    values that leave for Python (item, tolist, ...)  ->  Reads, Ops  ->  a reason not to play it
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from . import _C

# What hands values to Python and is no op.
_READS = {
    Tensor.numpy,
    Tensor.tolist,
    Tensor.__array__,
    Tensor.__dlpack__,
    Tensor.data_ptr,
}


class Ops(TorchDispatchMode):
    """Puts every op that runs below autograd on a tape.

    Attributes:
        tape: what it goes on.
        reason: why the tape cannot be played, if something of the call was not to be seen.
    """

    def __init__(self) -> None:
        """An empty tape."""
        super().__init__()
        self.tape = _C.Tape()
        self.reason: str | None = None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs the op, then takes it down."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema = func._schema
        if torch.Tag.data_dependent_output in func.tags:
            self.refuse(f"it reads a value on the host ({schema.name})")
        self.tape.ran(schema.name, schema.overload_name, args, kwargs, result)
        return result

    def refuse(self, reason: str) -> None:
        """Keeps the first reason, with the line of the caller that gave it."""
        if self.reason is None:
            self.reason = reason + _where()


class Reads(TorchFunctionMode):
    """Notices values that leave for Python past the dispatcher."""

    def __init__(self, ops: Ops) -> None:
        """Reads are reasons of ``ops``."""
        super().__init__()
        self._ops = ops

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs the function, and looks at which it is."""
        if func in _READS:
            self._ops.refuse(f"it reads a value on the host (Tensor.{func.__name__})")
        return func(*args, **(kwargs or {}))


@contextmanager
def recording() -> Iterator[Ops]:
    """Take down all that runs in the block on this thread."""
    ops = Ops()
    with Reads(ops), ops:
        ops.tape.start()
        try:
            yield ops
        finally:
            ops.tape.stop()


def _where() -> str:
    """The line that asked, outside of torch and hesse."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").split(".")[0] not in ("hesse", "torch"):
            return f", at {frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
