"""What Newton and NewtonCG share: the quadratic model of one step, and how far to trust it.

The objective is the loss plus ``weight_decay / 2 |x|^2`` of each group. Around the parameters x,

    m(p) = f + g' p + p' B p / 2,   B = H + diag(weight_decay + damping),   x <- x + t lr p

where a subclass finds p, and a line search or a trust region t and the bound on p.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import _C, stock
from ..policy import note
from ..record import Engine, elsewhere, engine, plain

Closure = Callable[[], Tensor]
T = TypeVar("T")

ARMIJO = 1e-4  # the share of the decrease promised by the slope (or the model) that is enough
TRIALS = 30  # of one step, each between a tenth and a half as long as the one before
FREED = "backward through the graph a second time"  # in torch's words
USER_LINE = 6  # frames between a warning and the line that called step: torch wraps it twice


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
        self._engine, gradient = self._linearize()

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
        blocks = self._ask(lambda lin: lin.hessian(None, False))
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
        products = self._ask(lambda lin: lin.hvp(dxs))
        out = flatten([b for b, u in zip(products, self._used, strict=True) if u])
        self._check_finite(out, "Hessian")
        return out.add_(v * self._shift)

    def try_step(self, step: Tensor) -> float:
        """The objective at ``x + step``, infinite where it is not a number.

        Afterwards the parameters are what they were, bit for bit, whatever ``closure`` raises.
        """
        trial = self.x + step
        try:
            self._write(trial)
            value = self._objective(self._closure(), trial)
        finally:
            self._write(self.x)
        return math.inf if math.isnan(value) else value

    def move(self, step: Tensor) -> None:
        """Go to ``x + step``. What was recorded at x is void from here on."""
        if not step.isfinite().all():
            raise RuntimeError(
                f"{self._name}: the step is not finite, as the Hessian is singular to rounding; "
                "the parameters were left as they are. Set damping, or another method"
            )
        for p, part in zip(self._params, torch.split(self.x + step, self._sizes), strict=True):
            p.copy_(part.view(p.shape))

    def _linearize(self) -> tuple[Engine, Sequence[Tensor | None]]:
        """Who answers for the graph, and the gradient: None where it does not reach a parameter."""
        given = tuple(self._all)
        reason = None if plain(given) else elsewhere(given, False)[1]
        try:
            if reason is not None:
                note(reason, self._name.removeprefix("hesse."), USER_LINE)
                lin: Engine = stock.DoubleBackward(self._y, given, False, reason)
            else:
                lin = engine(
                    self._y, given, False, self._name.removeprefix("hesse."), USER_LINE + 1
                )
            if isinstance(lin, stock.DoubleBackward):  # its gradient is zero, not None
                return lin, torch.autograd.grad(
                    self._y, given, retain_graph=True, allow_unused=True
                )
            return lin, lin.gradient()
        except RuntimeError as error:
            if FREED not in str(error):
                raise
            raise RuntimeError(
                f"{self._name}: the graph of the loss is gone; closure must return the loss and "
                "not call backward on it"
            ) from error

    def _ask(self, question: Callable[[Engine], T]) -> T:
        """The engine's answer, or plain autograd's if it meets what it cannot take."""
        try:
            return question(self._engine)
        except _C.Unsupported as refusal:
            note(str(refusal), self._name.removeprefix("hesse."), USER_LINE)
            self._engine = stock.DoubleBackward(self._y, self._all, False, str(refusal))
            return question(self._engine)

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


class SecondOrder(Optimizer):
    """An optimiser whose step comes from a :class:`Model`; subclasses solve for the step."""

    methods: tuple[str, ...]
    per_group = ("lr", "damping", "weight_decay")

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        """Take parameters or groups, and the defaults of every option."""
        self._name = f"hesse.optim.{type(self).__name__}"
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: ``params`` and, if they differ from the defaults, its options.

        Args:
            param_group: as for every optimiser of torch; ``lr``, ``damping`` and ``weight_decay``
                are the group's own, all other options are those of the whole optimiser.

        Raises:
            ValueError: as on construction.
        """
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
            check_placement([p for g in self.param_groups for p in g["params"]], self._name)
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Take one step.

        Args:
            closure: evaluates the loss, one real element, and returns it with its graph; it does
                *not* call ``backward``. It runs once with grad enabled, and once more without for
                each trial of a line search or trust region, so it must be deterministic.

        Returns:
            The loss before the step, detached.

        Raises:
            RuntimeError: ``hesse.optim.Newton.step: the graph of the loss is gone; ...``, of a
                closure that called ``backward``; ``... the loss is nan ...``, ``... the Hessian is
                not finite ...``; ``... the loss depends on no parameter ...``. The parameters are
                what they were.
            TypeError: ``hesse.optim.Newton.step: closure must be callable ...`` and ``... must
                return one real element ...``.
        """
        name = f"{self._name}.step"
        if not callable(closure):
            raise TypeError(f"{name}: closure must be callable and return the loss, got {closure}")
        model = Model(closure, self.param_groups, name)
        self._advance(model)
        return model.loss

    @property
    def _options(self) -> dict[str, Any]:
        """Those of the whole optimiser; all groups hold the same."""
        return self.param_groups[0]

    @abstractmethod
    def _direction(self, model: Model) -> Tensor:
        """A p with ``g' p < 0`` unless g is 0, ``[N]``."""

    @abstractmethod
    def _within(self, model: Model) -> Callable[[float], Tensor]:
        """Minimises m(p) over ``|p| <= radius``: the function from the radius to p, ``[N]``."""

    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise ValueError for an option that is out of range."""
        check_choice(self._name, group, "method", self.methods)
        check_number(self._name, group, "lr")
        check_number(self._name, group, "damping")
        check_number(self._name, group, "weight_decay")
        check_number(self._name, group, "radius", positive=True)

    def _check_group(self, group: dict[str, Any]) -> None:
        self._check_options(group)
        for key in self.defaults:
            if key not in self.per_group and group[key] != self._options[key]:
                raise ValueError(
                    f"{self._name}: {key} belongs to the whole optimiser, and one group has "
                    f"{group[key]!r} where another has {self._options[key]!r}"
                )

    def _advance(self, model: Model) -> None:
        if self._options["method"] == "trust-region":
            self._trust_region(model)
            return
        step = self._direction(model).mul_(model.lr)
        if self._options["method"] != "exact":
            step = backtrack(model, step)
        model.move(step)

    def _trust_region(self, model: Model) -> None:
        """Trials in a shrinking ball until one is good enough; they share the linearization."""
        state = self.state[self._options["params"][0]]
        radius = state.get("radius", self._options["radius"])
        minimise = self._within(model)
        for _ in range(TRIALS):
            p = minimise(radius)
            step = p * model.lr
            promised = -float(model.gradient @ step + 0.5 * (step @ model.product(step)))
            if not promised > 0:  # nothing to gain, to rounding
                break
            made = model.value - model.try_step(step)
            # Where both are rounding, the model is right (Conn, Gould & Toint, 17.4.2).
            ratio = (made + model.rounding) / (promised + model.rounding)
            length = float(torch.linalg.vector_norm(p))
            if ratio < 0.25:
                radius = length / 4
            elif ratio > 0.75 and length > 0.99 * radius:
                radius *= 2
            if ratio > ARMIJO:
                model.move(step)
                break
        state["radius"] = radius


def backtrack(model: Model, step: Tensor) -> Tensor:
    """The step shortened until the objective falls by Armijo's share, by quadratic interpolation.

    Groups of different lr may turn a step uphill; the search is then along ``-lr g``.

    Args:
        model: of the current parameters.
        step: to begin with, ``[N]``.

    Returns:
        The step to take, ``[N]``; zero where none decreases the objective.
    """
    slope = float(model.gradient @ step)
    if not slope < 0:
        step = model.gradient * model.lr
        step.neg_()
        slope = float(model.gradient @ step)
    t = 1.0
    for _ in range(TRIALS if slope < 0 else 0):
        rise = model.try_step(step * t) - model.value
        if rise <= ARMIJO * t * slope + model.rounding:
            return step.mul_(t)
        lowest = -0.5 * slope * t * t / (rise - slope * t)  # 0 where rise is infinite
        t = min(max(lowest, 0.1 * t), 0.5 * t)
    return torch.zeros_like(step)


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


def check_choice(name: str, group: dict[str, Any], key: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless ``group[key]`` is one of the choices."""
    if group[key] not in choices:
        words = ", ".join(repr(c) for c in choices[:-1])
        raise ValueError(f"{name}: {key} must be {words} or {choices[-1]!r}, got {group[key]!r}")


def check_number(name: str, group: dict[str, Any], key: str, positive: bool = False) -> None:
    """Raise ValueError unless ``group[key]`` is a finite number, at least (or above) zero."""
    value = group[key]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value < 0
        or (positive and value == 0)
    ):
        kind = "positive" if positive else "non-negative"
        raise ValueError(f"{name}: {key} must be a {kind} number, got {value!r}")
