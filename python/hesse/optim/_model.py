"""The quadratic model of one step, from one run of the closure, and trials of what it suggests.

The objective f is the loss plus ``weight_decay / 2 |x|^2`` of each group. Around the parameters x,

    m(p) = f + g' p + p' B p / 2,   B = H + diag(weight_decay + damping)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import stock
from ..record import Recorded, elsewhere, plain

Closure = Callable[[], Tensor]

FREED = "backward through the graph a second time"  # in torch's words


class Model:
    """The quadratic model at x, from one run of ``closure``; N counts what the loss depends on.

    Products come from the one linearization. Nothing here moves the parameters for good except
    ``move``.

    Attributes:
        x: the parameters, ``[N]``.
        gradient: of the objective, ``[N]``.
        lr: of the groups, a number or ``[N]``.
        loss: what ``closure`` returned, without its graph.
        value: the objective at x.
        rounding: differences between objectives below this say nothing.
    """

    def __init__(self, closure: Closure, groups: Sequence[dict[str, Any]], name: str) -> None:
        """Run ``closure`` with grad enabled and linearize its graph."""
        self._closure, self._name = closure, name
        pairs = [
            (p, group) for group in groups for p in group["params"] if p.requires_grad and p.numel()
        ]
        if not pairs:
            raise RuntimeError(f"{name}: no parameter requires grad; there is nothing to optimise")
        params = [p for p, _ in pairs]
        check_placement(params, name)
        with torch.enable_grad():
            loss = closure()
            check_loss(loss, name)
            self._y = loss.reshape(())
        self._all = params
        self._recorded, gradient = self._linearize()

        used = [g is not None for g in gradient]
        if not any(used):
            raise RuntimeError(
                f"{name}: the loss depends on no parameter of this optimiser; closure must compute "
                "it from them, without detach or no_grad"
            )
        self._used = used
        self._params = [p for p, u in zip(params, used, strict=True) if u]
        self._sizes = [p.numel() for p in self._params]
        owners = [group for (_, group), u in zip(pairs, used, strict=True) if u]
        self.x = flatten(self._params)
        self.lr = self._spread([group["lr"] for group in owners])
        self._decay = self._spread([group["weight_decay"] for group in owners])
        self._shift = self._decay + self._spread([group["damping"] for group in owners])
        self.gradient = flatten([g for g in gradient if g is not None]).add_(self.x * self._decay)

        self.loss = loss.detach()
        self.value = self._objective(self.loss, self.x)
        self.rounding = 10 * torch.finfo(loss.dtype).eps * abs(self.value)
        if not math.isfinite(self.value):
            raise RuntimeError(
                f"{name}: the loss is {self.loss.item()} at the current parameters, which were "
                "left as they are; start elsewhere, or use a method that tries its steps first"
            )
        self._check_finite(self.gradient, "gradient")

    def hessian(self) -> Tensor:
        """``B``, ``[N, N]``."""
        blocks = self._recorded.ask(lambda lin: lin.hessian(None, False))
        blocks = [
            [b for b, u in zip(row, self._used, strict=True) if u]
            for row, u in zip(blocks, self._used, strict=True)
            if u
        ]
        sizes = self._sizes
        if len(sizes) == 1:
            matrix = blocks[0][0].view(sizes[0], sizes[0])
        else:
            matrix = self.x.new_empty(len(self.x), len(self.x))
            for rows, row in zip(torch.split(matrix, sizes), blocks, strict=True):
                for part, block in zip(torch.split(rows, sizes, 1), row, strict=True):
                    part.copy_(block.view(part.shape))
        self._check_finite(matrix, "Hessian")
        matrix.diagonal().add_(self._shift)
        return matrix

    def product(self, v: Tensor) -> Tensor:
        """``B v`` of a vector ``[N]``."""
        parts = iter(torch.split(v, self._sizes))
        dxs = [
            next(parts).view(1, *p.shape) if u else None
            for p, u in zip(self._all, self._used, strict=True)
        ]
        products = self._recorded.ask(lambda lin: lin.hvp(dxs))
        out = flatten([b for b, u in zip(products, self._used, strict=True) if u])
        self._check_finite(out, "Hessian")
        return out.add_(v * self._shift)

    def try_step(self, step: Tensor) -> float:
        """The objective at ``x + step``; infinite where it is not finite, so that none goes there.

        Afterwards the parameters are what they were, bit for bit, whatever ``closure`` raises.
        """
        trial = self.x + step
        try:
            self._write(trial)
            value = self._objective(self._closure(), trial)
        finally:
            self._write(self.x)
        return value if math.isfinite(value) else math.inf

    def move(self, step: Tensor) -> None:
        """Go to ``x + step``. What was recorded at x is void from here on."""
        if not step.isfinite().all():
            raise RuntimeError(
                f"{self._name}: the step is not finite, as the Hessian is singular to rounding; "
                "the parameters were left as they are. Set damping, or another method"
            )
        for p, part in zip(self._params, torch.split(self.x + step, self._sizes), strict=True):
            p.copy_(part.view(p.shape))

    def _linearize(self) -> tuple[Recorded, Sequence[Tensor | None]]:
        """Who answers for the graph, and the gradient: None where it does not reach a parameter."""
        given = tuple(self._all)
        reason = None if plain(given) else elsewhere(given, False)[1]
        try:
            recorded = Recorded(
                self._y, given, False, self._name.removeprefix("hesse."), reason=reason
            )
            if isinstance(recorded.engine, stock.DoubleBackward):  # its gradient is zero, not None
                return recorded, torch.autograd.grad(
                    self._y, given, retain_graph=True, allow_unused=True
                )
            return recorded, recorded.engine.gradient()
        except RuntimeError as error:
            if FREED not in str(error):
                raise
            raise RuntimeError(
                f"{self._name}: the graph of the loss is gone; closure must return the loss and "
                "not call backward on it"
            ) from error

    def _objective(self, loss: Tensor, x: Tensor) -> float:
        return float(loss) + 0.5 * float((self._decay * x * x).sum())

    def _write(self, x: Tensor) -> None:
        # Through .data: the graph at x is used again, so its version counters must not notice.
        for p, part in zip(self._params, torch.split(x, self._sizes), strict=True):
            p.data.copy_(part.view(p.shape))

    def _spread(self, values: list[float]) -> float | Tensor:
        """One number per parameter as one per element, ``[N]``; a number if all are the same."""
        if len(set(values)) == 1:
            return values[0]
        return torch.cat(
            [self.x.new_full((n,), v) for n, v in zip(self._sizes, values, strict=True)]
        )

    def _check_finite(self, values: Tensor, what: str) -> None:
        if not values.isfinite().all():
            raise RuntimeError(
                f"{self._name}: the {what} is not finite at the current parameters, which were "
                "left as they are; the loss is not twice differentiable there, or overflows"
            )


def flatten(parts: Sequence[Tensor]) -> Tensor:
    """All elements in one new vector."""
    return torch.cat([part.reshape(-1) for part in parts])


def check_placement(params: Sequence[Tensor], name: str) -> None:
    """Raise ValueError unless what is optimised has one device and one dtype that LAPACK takes."""
    kinds = {f"{p.dtype} on {p.device}": p.dtype for p in params if p.requires_grad}
    if len(kinds) > 1 or not set(kinds.values()) <= {torch.float32, torch.float64}:
        raise ValueError(
            f"{name}: all parameters must share one dtype, float32 or float64, and one device, "
            f"got {' and '.join(kinds)}"
        )


def check_loss(loss: Any, name: str) -> None:
    """Raise unless the loss is one real element with a graph."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        got = f"{loss.dtype} of {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise TypeError(f"{name}: closure must return one real element, a Tensor; got {got}")
    if not loss.requires_grad:
        raise RuntimeError(
            f"{name}: the loss depends on no parameter of this optimiser; closure must compute it "
            "from them, without detach or no_grad"
        )
