"""Before the engine: are these inputs plain tensors, and one run of ``func`` on copies of them.

    given -> outer (stock's copies) -> inner (what func sees) -> y -> an engine

An engine answers for the graph below ``y``: the compiled one, or plain autograd where that cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import _C, stock
from .policy import note

_functorch_level = torch._C._functorch.peek_interpreter_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_strided = torch.strided

Engine = _C.Linearization | stock.DoubleBackward
T = TypeVar("T")


def plain(given: tuple[Tensor, ...]) -> bool:
    """Whether nothing about the call needs a second look; most calls pass here and go on."""
    if _functorch_level() is not None or _dispatch_modes() or forward_ad._current_level >= 0:
        return False
    if _tracing_state() is not None:
        return False
    for x in given:
        kind = type(x)
        if (
            (kind is not Tensor and kind is not Parameter)
            or x.layout is not _strided
            or not x.is_floating_point()
            or not (x.is_cpu or x.is_cuda)
            or not x.numel()
        ):
            return False
    return len(given) > 0


def elsewhere(given: tuple[Tensor, ...], vectorize: bool) -> tuple[bool, str | None]:
    """The second look: does stock refuse these inputs, and if not, why does the engine.

    Returns:
        ``(True, None)`` for stock to refuse, ``(False, reason)`` for stock to compute,
        ``(False, None)`` for the engine after all.
    """
    if not given or not all(isinstance(x, Tensor) for x in given):
        return True, None
    if not all(x.is_floating_point() or x.is_complex() for x in given):
        return True, None
    if not any(x.numel() for x in given) or not (vectorize or all(x.numel() for x in given)):
        return True, None
    if (around := surroundings()) is not None:
        return False, around
    for i, x in enumerate(given):
        if type(x) is not Tensor and type(x) is not Parameter:
            return False, f"input {i} is a {type(x).__name__}, a tensor subclass"
        if x.is_complex():
            return False, f"input {i} is complex ({x.dtype})"
        if x.layout is not _strided:
            return False, f"input {i} has layout {x.layout}"
        if not (x.is_cpu or x.is_cuda):
            return False, f"input {i} is on a {x.device.type} device"
    return False, None


def surroundings() -> str | None:
    """What around the call keeps the engine from it, whatever the inputs."""
    if torch.compiler.is_compiling():
        return "torch.compile is tracing it"
    if _tracing_state() is not None:
        return "torch.jit.trace is recording it"
    if _functorch_level() is not None:
        return "it is called inside a torch.func transform or vmap"
    if forward_ad._current_level >= 0:
        return "it is called inside torch.autograd.forward_ad.dual_level"
    if _dispatch_modes():
        mode = type(_get_current_dispatch_mode()).__name__
        return f"a dispatch mode is active ({mode}), which the engine's kernels bypass"
    return None


def no_graph() -> str | None:
    """What around the call keeps any graph from being recorded and kept."""
    if torch.is_inference_mode_enabled():
        return "torch.inference_mode is on"
    return surroundings()


def record(
    func: Callable[..., Tensor],
    given: tuple[Tensor, ...],
    graph: bool,
    strict: bool = False,
    name: str = "hessian",
    views: bool = True,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Run ``func`` once on copies of the inputs, as stock does, and check what it returns.

    Stock's ``hessian`` shows it views of them (``views``), so that it does not meet a leaf, its
    ``hvp`` and ``vhp`` the copies: it sees the same errors for in-place writes.
    """
    func = uncompiled(func)
    with torch.enable_grad():
        outer = [
            x.view_as(x) if graph and x.requires_grad else x.detach().requires_grad_()
            for x in given
        ]
        inner = [x.view_as(x) for x in outer] if views else outer
        y = func(*inner)
    if strict or type(y) is not Tensor or y.nelement() != 1 or y.is_complex():
        check_output(y, strict, name)
    return outer, inner, y


def uncompiled(func: Callable[..., Any]) -> Callable[..., Any]:
    """What ``torch.compile`` made ``func`` from, if it did.

    A region compiled with AOTAutograd records a first derivative and no second one.
    """
    compiled = getattr(func, "_torchdynamo_orig_callable", None)
    return func if compiled is None else getattr(func, "_orig_mod", compiled)


def check_output(y: Any, strict: bool = False, name: str = "hessian") -> None:
    """Raise what stock's ``name`` raises unless ``y`` is one real element."""
    is_tuple, ys = stock.as_tuple(y, "outputs of the user-provided function", name)
    stock.check_requires_grad(ys, "outputs", strict=strict)
    if is_tuple:
        raise RuntimeError(f"The function given to {name} should return a single Tensor")
    if y.nelement() != 1:
        raise RuntimeError(
            f"The Tensor returned by the function given to {name} should contain a single element"
        )
    if y.is_complex() and y.requires_grad:
        torch.autograd.grad(y, y)  # refuses, in torch's words


def functorch_active() -> bool:
    """Whether a ``torch.func`` transform or vmap is around the call."""
    return _functorch_level() is not None


def engine(
    y: Tensor,
    inner: Sequence[Tensor],
    create_graph: bool,
    name: str,
    *,
    keep: bool = False,
) -> Engine:
    """What answers for the graph that ``func`` recorded.

    Args:
        y: one element.
        inner: the inputs that ``func`` saw.
        create_graph: whether answers can be differentiated again.
        name: of the public call, for the words of a fallback.
        keep: it is for many questions: the gradient comes with it, and tensors that it reads and
            that are changed in place later are an error.
    """
    try:
        return _C.linearize([y], list(inner), None, create_graph, keep)
    except _C.Unsupported as refusal:
        note(str(refusal), name)
        return stock.DoubleBackward(y, inner, create_graph, str(refusal))


class Recorded:
    """What one run of ``func`` recorded, and who answers questions about it.

    That is the compiled engine, until a question turns out to be beyond it; plain autograd from
    then on.

    Attributes:
        y: one element.
        inner: the inputs that ``func`` saw.
        create_graph: whether answers can be differentiated again.
        engine: who answers now.
    """

    def __init__(
        self,
        y: Tensor,
        inner: Sequence[Tensor],
        create_graph: bool,
        name: str,
        *,
        keep: bool = False,
        reason: str | None = None,
    ) -> None:
        """As for :func:`engine`; ``reason`` is why plain autograd answers from the start."""
        self.y, self.inner, self.create_graph = y, inner, create_graph
        self._name = name
        self.engine: Engine
        if reason is None:
            self.engine = engine(y, inner, create_graph, name, keep=keep)
        else:
            self._leave(reason)

    def ask(self, question: Callable[[Engine], T]) -> T:
        """The answer of who can give it."""
        try:
            return question(self.engine)
        except _C.Unsupported as refusal:
            self._leave(str(refusal))
            return question(self.engine)

    def _leave(self, reason: str) -> None:
        note(reason, self._name)
        self.engine = stock.DoubleBackward(self.y, self.inner, self.create_graph, reason)
