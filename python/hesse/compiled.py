"""``hesse.compile``: record a call once, then play it for new values of the inputs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import _C, api, record
from .device_graph import DevicePlayer, new_stream, on_stream
from .policy import act
from .tape import recording

RECORDINGS = 8  # kept at a time, one for each signature of the inputs
CHANGES = 2  # times that a recording may turn out to hold for other values only


def compile(
    func: Callable[..., Tensor],
    example_inputs: Any,
    *,
    answer: Callable[[Callable[..., Tensor], Any], Any] = api.hessian,
) -> Compiled:
    """Record ``answer(func, example_inputs)`` once; play it for other values of the inputs.

    A recording holds every op that ran, forward, linearization, sweeps and assembly, with its
    memory planned: playing it runs no Python, records no graph and decides nothing. On a CUDA
    device one CUDA graph plays it; where it cannot (tensors of the host take part, an op waits for
    the device), ops are played one by one, and a :class:`hesse.FallbackWarning` says so. Inputs of
    another shape, dtype or device are recorded anew, when they first come.

    What is played is the recorded program:

    - What ``func`` computes on threads of its own is not seen, so it must not.
    - ``func`` does not run again. Numbers and branches of Python are those of the recording; its
      side effects (prints, counters) do not happen.
    - Tensors that ``func`` closes over are read at every call: what is written into them in place
      is seen, another tensor under the same name (``p.data = ...``) is not. What ``func`` writes
      into such a tensor in place is written at every call.
    - Random numbers are drawn anew at every call, from the same generator.
    - Work that ``func`` puts on side streams runs in the stream of the call.
    - Results of different calls are independent tensors. Calls from several threads or streams
      wait for each other.

    Where ``func`` lets values decide (``item``, ``if t > 0``, ``numpy``, ``nonzero``, a mask as an
    index) or sets the state of a random number generator (also checkpointed dropout does), the
    recording would be wrong for others: then every call runs eagerly, and a
    :class:`hesse.FallbackWarning` says which line it was.

    Args:
        func: as ``answer`` takes it; it must not keep tensors that it computed.
        example_inputs: as ``answer`` takes them: a Tensor, a tuple of arguments, or another tree.
        answer: what to compute, called as ``answer(func, inputs)``: :func:`hesse.hessian`,
            :func:`hesse.value_grad_hessian`, :func:`hesse.batch_hessian`, or a function of yours
            that returns a tree of Tensors without a graph.

    Returns:
        A :class:`Compiled`: call it with inputs like the examples.

    Raises:
        FallbackError: the call cannot be recorded and :func:`hesse.fallback` is ``"error"``.
        Exception: whatever ``answer(func, example_inputs)`` raises.

    Example:
        >>> import hesse, torch
        >>> hessian = hesse.compile(lambda x: (x**3).sum(), torch.zeros(2))
        >>> assert hessian(torch.tensor([1.0, 2.0])).tolist() == [[6, 0], [0, 12]]
        >>> step = hesse.compile(lambda x: x.cosh().sum(), torch.zeros(3),
        ...                      answer=hesse.value_grad_hessian)
        >>> y, g, H = step(torch.zeros(3))
        >>> assert y == 3 and g.tolist() == [0, 0, 0] and torch.equal(H, torch.eye(3))
    """
    compiled = Compiled(func, answer)
    compiled._record(*_leaves(example_inputs), example_inputs)
    return compiled


class Compiled:
    """A function of inputs that plays recordings; made by :func:`compile`.

    Attributes:
        eager: why calls run eagerly, or None where they are played.
        recordings: how many have been made.
    """

    def __init__(
        self, func: Callable[..., Tensor], answer: Callable[[Callable[..., Tensor], Any], Any]
    ) -> None:
        """See :func:`compile`."""
        self.eager: str | None = None
        self.recordings = 0
        self._func, self._answer = func, answer
        self._players: list[_Player] = []  # the latest first
        self._changes = 0
        self._lock = threading.RLock()

    def __call__(self, inputs: Any) -> Any:
        """``answer(func, inputs)``, from a recording where there is one.

        Args:
            inputs: like the examples; other shapes, dtypes or devices are recorded first.

        Returns:
            What ``answer`` returns, in new tensors without a graph.

        Raises:
            Exception: whatever ``answer(func, inputs)`` raises.
        """
        if self.eager is not None or _C.is_recording():
            return self._answer(self._func, inputs)
        leaves, spec = _leaves(inputs)
        if not record.plain(tuple(leaves)):
            return self._answer(self._func, inputs)
        around = _surroundings(leaves[0])
        for player in self._players:
            if player.takes(leaves, spec, around):
                try:
                    return player.play(leaves)
                except _C.Changed:
                    return self._again(player, leaves, spec, inputs)
                except torch.OutOfMemoryError:  # an eager call cuts its chunks smaller
                    return self._answer(self._func, inputs)
        return self._record(leaves, spec, inputs)

    def __repr__(self) -> str:
        """Says what is played, or why nothing is."""
        name = getattr(self._answer, "__name__", repr(self._answer))
        state = f"eager: {self.eager}" if self.eager else f"{len(self._players)} recorded"
        return f"hesse.compile({getattr(self._func, '__name__', self._func)!s}, {name}: {state})"

    def _again(self, player: _Player, leaves: list[Tensor], spec: Any, inputs: Any) -> Any:
        """What the host read before is otherwise now."""
        with self._lock:
            if player in self._players:
                self._players = [p for p in self._players if p is not player]
                self._changes += 1
            if self._changes > CHANGES:
                return self._give_up("what is computed depends on values", inputs)
            return self._record(leaves, spec, inputs)

    def _give_up(self, reason: str, inputs: Any) -> Any:
        self._stay_eager(reason)
        return self._answer(self._func, inputs)

    def _stay_eager(self, reason: str) -> None:
        act(
            reason,
            f"hesse.compile cannot record the call: {reason}. "
            "hesse.fallback('warn') or hesse.fallback('silent') lets it run eagerly.",
            f"hesse.compile runs every call eagerly: {reason}. The results are the same, at the "
            "speed of an eager call.",
        )
        self.eager = reason
        self._players = []

    def _record(self, leaves: list[Tensor], spec: Any, inputs: Any) -> Any:
        """An eager call on copies of the inputs, which are the static inputs from then on."""
        if not leaves or not record.plain(tuple(leaves)) or _C.is_recording():
            return self._answer(self._func, inputs)
        with self._lock:
            static = [torch.empty_like(x).copy_(x.detach()) for x in leaves]
            device = static[0].device
            stream = new_stream(device) if device.type == "cuda" else None
            with on_stream(stream) if stream else contextlib.nullcontext(), recording() as taken:
                result = self._answer(self._func, _build(static, spec))
            outputs, out_spec = _leaves(result)
            for t in outputs if stream else []:  # made on one stream, used on another
                if isinstance(t, Tensor):
                    t.record_stream(torch.cuda.current_stream(device))
            reason = taken.reason
            if reason is None and not all(isinstance(t, Tensor) for t in outputs):
                reason = "the answer holds something that is no Tensor"
            if reason is None and any(t.requires_grad for t in outputs):
                reason = "the answer requires grad, and what is played records no graph"
            if reason is None:
                reason = taken.tape.finish(static, outputs) or None
            if reason is not None:
                self._stay_eager(reason)
                return result
            around = _surroundings(leaves[0])
            player = _Player(taken.tape, spec, out_spec, around, static[0], stream)
            self._players = [player, *self._players[: RECORDINGS - 1]]
            self.recordings += 1
            return result


class _Player:
    """One recording: what it takes, and how it is played."""

    def __init__(
        self,
        tape: _C.Tape,
        spec: Any,
        out_spec: Any,
        around: tuple[Any, ...],
        like: Tensor,
        stream: Any,
    ) -> None:
        self._tape, self._spec, self._out_spec, self._around = tape, spec, out_spec, around
        self._play = tape.play if stream is None else DevicePlayer(tape, stream, like).play

    def takes(self, leaves: list[Tensor], spec: Any, around: tuple[Any, ...]) -> bool:
        return self._around == around and self._spec == spec and self._tape.fits(leaves)

    def play(self, leaves: list[Tensor]) -> Any:
        return _build(self._play(leaves), self._out_spec)


def _leaves(tree: Any) -> tuple[list[Any], Any]:
    """Leaves and structure; a lone Tensor has none."""
    if isinstance(tree, Tensor):
        return [tree], None
    return pytree.tree_flatten(tree)


def _build(leaves: list[Any], spec: Any) -> Any:
    return leaves[0] if spec is None else pytree.tree_unflatten(leaves, spec)


def _surroundings(x: Tensor) -> tuple[Any, ...]:
    """The settings that ops were recorded under."""
    kind = x.device.type
    return (
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
    )
