"""A tape on a CUDA device: one graph plays what leads to the outputs, the tape the outputs.

    inputs --load--> static inputs --graph--> ... --tape--> large outputs, in memory of their own
                                       |----copies-------> small outputs

So a large output is never copied out of the graph's memory. That memory is one for all calls: those
on different streams wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import _C
from .policy import act

LARGE = 1 << 20  # bytes; below, a copy costs less than the launches of the ops that make the output


def new_stream(device: torch.device) -> Any:
    """A stream to record and to capture on: what a library sets up on it is then there."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def on_stream(stream: Any) -> Iterator[None]:
    """Run the block on ``stream``, between what the current stream did and what it does next."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)


class DevicePlayer:
    """Plays a tape of one CUDA device."""

    def __init__(self, tape: _C.Tape, stream: Any, like: Tensor) -> None:
        """Capture the first part of a tape.

        Args:
            tape: of one call.
            stream: on which that ran.
            like: one of its inputs.

        Raises:
            FallbackError: it cannot be captured and :func:`hesse.fallback` is ``"error"``.
        """
        self._tape, self._device = tape, stream.device
        self._end = tape.first_of_outputs(LARGE)
        self._graph: Any = None
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        try:
            self._capture(stream, like)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            self._end = 0
            act(
                reason,
                f"hesse.compile cannot capture the call in a CUDA graph: {reason}.",
                f"hesse.compile plays its ops one by one, without a CUDA graph: {reason}.",
            )
        tape.pin(self._end)

    def _capture(self, stream: Any, like: Tensor) -> None:
        if not self._tape.only_on(like):
            raise RuntimeError("some of its tensors are on another device, or compared by the host")
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile.
        capture = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        with torch.cuda.device(self._device), capture:
            self._tape.run(0, self._end)
        self._graph = graph

    def play(self, inputs: list[Tensor]) -> list[Tensor]:
        """The outputs for these inputs, on the current stream."""
        with self._lock, torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._done)
            self._tape.load(inputs)
            if self._graph is not None:
                self._graph.replay()
            self._tape.run(self._end, len(self._tape))
            outputs = self._tape.take()
            self._done.record(stream)
        return outputs
