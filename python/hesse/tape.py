"""A recording of what a call computes, or the reason why it cannot be played.

Ops of PyTorch and kernels of hesse go on a ``_C.Tape``; values that leave for Python (``item``,
``tolist``, ...) are a reason.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import _C

_one_at_a_time = threading.Lock()
# What hands values to Python and is no op.
_READS = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr}


class Recording:
    """What was taken down.

    Attributes:
        tape: every op below autograd, in order.
        reason: why it cannot be played for other values: the first read on the host, and the line
            that asked for it.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        self.tape = _C.Tape()
        self.reason: str | None = None

    def note_read(self, what: str) -> None:
        """Something of this name gave values to the host."""
        if self.reason is None:
            self.reason = f"it reads a value on the host ({what}){_caller()}"


class _Reads(TorchFunctionMode):
    """Notices values that leave past the ops."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _READS:
            self._recording.note_read(f"Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


@contextmanager
def recording() -> Iterator[Recording]:
    """Take down all that runs in the block on this thread; others that record wait for it."""
    taken = Recording()
    torch.clear_autocast_cache()  # of casts that would be taken for constants
    with _one_at_a_time, _Reads(taken):
        taken.tape.start(taken.note_read)
        try:
            yield taken
        finally:
            taken.tape.stop()


def _caller() -> str:
    """The line that asked, outside of torch and hesse."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").split(".")[0] not in ("hesse", "torch"):
            return f", at {frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
