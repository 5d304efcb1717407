"""Newton's method by conjugate gradients: Hessian-vector products of one linearization."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ._model import Model
from ._optimizer import SecondOrder, check_number


class NewtonCG(SecondOrder):
    """Truncated Newton: each step solves ``B p = -g`` by conjugate gradients, without the matrix.

    Each step runs ``closure`` once with its graph, and every product comes from that
    linearization. The solve stops where ``|B p + g| <= min(forcing, |g|^forcing_power) |g|``, and
    where it meets negative curvature. Parameters that the loss does not depend on are left alone;
    ``.grad`` is neither read nor written. A stationary point, a saddle included, is a fixed point.

    Args:
        params: parameters, or groups (dicts) of them; float32 or float64, one dtype and device.
        lr: factor on the step; of each group.
        method: ``"line-search"`` shortens the step until the loss falls enough (Armijo);
            ``"trust-region"`` follows the conjugate gradients to the border of a ball whose radius
            follows how well the model did (Steihaug).
        cg_max_iter: products for one solve; None: as many as there are unknowns.
        forcing: the largest relative residual that is accepted, below 1.
        forcing_power: 0.5 converges superlinearly, 1 quadratically, 0 linearly.
        damping: added to the diagonal of the Hessian, in the model only; of each group.
        weight_decay: adds ``weight_decay / 2 |x|^2`` to what is minimised, so to gradient and
            Hessian; of each group.
        radius: of the trust region at the first step. The current one is part of the state.

    Raises:
        ValueError: ``hesse.optim.NewtonCG: method must be 'line-search' or 'trust-region', got
            ...`` and the like of other options; ``... all parameters must share one dtype ...``;
            ``... method belongs to the whole optimiser ...``, where groups differ in it.

    Example:
        >>> import hesse, torch
        >>> net = torch.nn.Linear(3, 1)
        >>> inputs = torch.linspace(-1, 1, 20)[:, None] ** torch.arange(1, 4)
        >>> target = inputs.sum(1, keepdim=True)
        >>> optimizer = hesse.optim.NewtonCG(net.parameters())
        >>> def closure():  # returns the loss and does not call backward
        ...     return torch.nn.functional.mse_loss(net(inputs), target)
        >>> for _ in range(10):
        ...     loss = optimizer.step(closure)
        >>> assert loss < 1e-9 and torch.allclose(net.weight, torch.ones(1, 3), atol=1e-4)

    Source:
        J. Nocedal and S. Wright, Numerical Optimization, 2nd ed., 2006, algorithms 7.1 and 7.2; T.
        Steihaug, The conjugate gradient method and trust regions in large scale optimization, SIAM
        J. Numer. Anal. 20(3), 1983.
    """

    methods = ("line-search", "trust-region")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        method: str = "line-search",
        cg_max_iter: int | None = None,
        forcing: float = 0.5,
        forcing_power: float = 0.5,
        damping: float = 0.0,
        weight_decay: float = 0.0,
        *,
        radius: float = 1.0,
    ) -> None:
        """Check and take the options."""
        options = {
            "lr": lr,
            "method": method,
            "cg_max_iter": cg_max_iter,
            "forcing": forcing,
            "forcing_power": forcing_power,
            "damping": damping,
            "weight_decay": weight_decay,
            "radius": radius,
        }
        super().__init__(params, options)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        check_number(self._name, group, "forcing", positive=True)
        check_number(self._name, group, "forcing_power")
        if group["forcing"] >= 1:
            raise ValueError(f"{self._name}: forcing must be below 1, got {group['forcing']}")
        limit = group["cg_max_iter"]
        if limit is not None and (
            isinstance(limit, bool) or not isinstance(limit, int) or limit < 1
        ):
            raise ValueError(
                f"{self._name}: cg_max_iter must be None or a positive integer, got {limit!r}"
            )

    def _direction(self, model: Model) -> Tensor:
        return self._within(model)(math.inf)

    def _within(self, model: Model) -> Callable[[float], Tensor]:
        options, gradient = self._options, model.gradient
        length = float(torch.linalg.vector_norm(gradient))
        tolerance = min(options["forcing"], length ** options["forcing_power"]) * length
        limit = options["cg_max_iter"] or len(gradient)
        return lambda radius: truncated_cg(model.product, gradient, tolerance, limit, radius)


def truncated_cg(
    product: Callable[[Tensor], Tensor],
    gradient: Tensor,
    tolerance: float,
    limit: int,
    radius: float = math.inf,
) -> Tensor:
    """``B p = -g`` by conjugate gradients from 0, as far as B is positive and p in the ball.

    Where a direction d has ``d' B d <= 0``: in a ball, p goes on along it to the border. Without
    one, p stays as it is; at the first direction, -g, it is a step along it as long as a curvature
    of the other sign would have made it, so that it carries the scale of B.

    Args:
        product: v to ``B v``, both ``[N]``.
        gradient: ``g``, ``[N]``.
        tolerance: on ``|B p + g|``.
        limit: the number of products.
        radius: of the ball.

    Returns:
        p, ``[N]``.
    """
    p = torch.zeros_like(gradient)
    residual = gradient.clone()  # B p + g
    d = gradient.neg()
    square = float(residual @ residual)
    for j in range(limit):
        if square**0.5 <= tolerance:
            break
        Bd = product(d)
        curvature = float(d @ Bd)
        if curvature <= 0 and radius == math.inf:
            return d.mul_(square / -curvature if curvature else 1.0) if j == 0 else p
        alpha = square / curvature if curvature > 0 else math.inf
        border = to_border(p, d, radius)
        if alpha >= border:
            return p.add_(d, alpha=border)
        p.add_(d, alpha=alpha)
        residual.add_(Bd, alpha=alpha)
        last, square = square, float(residual @ residual)
        d.mul_(square / last).sub_(residual)
    return p


def to_border(p: Tensor, d: Tensor, radius: float) -> float:
    """The positive tau with ``|p + tau d| = radius``, where p is inside."""
    if radius == math.inf:
        return math.inf
    a, b, c = float(d @ d), float(p @ d), float(p @ p) - radius**2
    root = math.sqrt(max(b * b - a * c, 0.0))
    return -c / (b + root) if b > 0 else (root - b) / a  # the one without cancellation
