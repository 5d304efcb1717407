"""What Newton and NewtonCG share: options and groups, and how far to follow the model.

    x <- x + t lr p

where a subclass finds p, and a line search finds t or a trust region the bound on p.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._model import Closure, Model, check_placement

ARMIJO = 1e-4  # the share of the decrease promised by the slope (or the model) that is enough
TRIALS = 30  # of one step, each between a tenth and a half as long as the one before


class SecondOrder(Optimizer):
    """An optimiser whose step comes from a :class:`Model`; subclasses solve for the step.

    Attributes:
        methods: what ``method`` may be; ``"exact"`` takes the step as it is.
        per_group: options of a group; the others belong to the whole optimiser.
    """

    methods: tuple[str, ...]
    per_group = ("lr", "damping", "weight_decay")

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
    def _name(self) -> str:
        return f"hesse.optim.{type(self).__name__}"

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
            length = float(torch.linalg.vector_norm(p))
            promised = -float(model.gradient @ step + 0.5 * (step @ model.product(step)))
            if promised > 0:
                made = model.value - model.try_step(step)
                # Where both are rounding, the model is right (Conn, Gould & Toint, 17.4.2).
                ratio = (made + model.rounding) / (promised + model.rounding)
            elif isinstance(model.lr, Tensor) and length:
                ratio = -math.inf  # uneven rates turned it uphill; in a small ball p is along -g
            else:
                break  # nothing to gain, to rounding
            if ratio < 0.25:
                radius = length / 4
            elif ratio > 0.75 and length > 0.99 * radius:
                radius *= 2
            if ratio > ARMIJO:
                model.move(step)
                break
        else:  # no ball is small enough: what is left is rounding, which says nothing of the radius
            return
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
