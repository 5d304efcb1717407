"""Newton's method with the whole Hessian: factorized, or diagonalized where it is indefinite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ._model import Model
from ._optimizer import SecondOrder, check_choice

INDEFINITE = ("shift", "abs", "cholesky")


class Newton(SecondOrder):
    """Newton's method with exact Hessians.

    Each step runs ``closure`` once with its graph and solves with the N x N Hessian over all
    parameters of all groups that the loss depends on; the others are left alone. ``.grad`` is
    neither read nor written. At a stationary point only ``"trust-region"`` moves: it leaves a
    saddle or a maximum along the most negative curvature.

    Args:
        params: parameters, or groups (dicts) of them; float32 or float64, one dtype and device.
        lr: factor on the step; of each group.
        method: ``"exact"`` takes the step ``-B^-1 g``; ``"damped"`` shortens it until the loss
            falls enough (Armijo); ``"trust-region"`` minimises the model exactly in a ball whose
            radius follows how well the model did.
        indefinite: what ``"exact"`` and ``"damped"`` do where B is not positive definite.
            ``"shift"`` adds a multiple of the identity until Cholesky's factorization exists;
            ``"abs"`` replaces eigenvalues by their absolute values, always; ``"cholesky"`` does
            so only where the factorization fails, much cheaper where it does not.
        damping: added to the diagonal of the Hessian, in the model only; of each group.
        weight_decay: adds ``weight_decay / 2 |x|^2`` to what is minimised, so to gradient and
            Hessian; of each group.
        radius: of the trust region at the first step. The current one is part of the state.

    Raises:
        ValueError: ``hesse.optim.Newton: method must be 'exact', 'damped' or 'trust-region', got
            ...`` and the like of other options; ``... all parameters must share one dtype ...``;
            ``... method belongs to the whole optimiser ...``, where groups differ in it.

    Example:
        >>> import hesse, torch
        >>> x = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
        >>> optimizer = hesse.optim.Newton([x], method="damped")
        >>> def closure():  # returns the loss and does not call backward
        ...     return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        >>> for _ in range(25):
        ...     loss = optimizer.step(closure)
        >>> assert torch.allclose(x.detach(), torch.ones(2, dtype=torch.float64), rtol=1e-12)

    Source:
        J. Nocedal and S. Wright, Numerical Optimization, 2nd ed., 2006, algorithms 3.2, 3.3, 4.1
        and 4.3; Y. Dauphin et al., Identifying and attacking the saddle point problem, NeurIPS
        2014 (``"abs"``).
    """

    methods = ("exact", "damped", "trust-region")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        method: str = "exact",
        indefinite: str = "shift",
        damping: float = 0.0,
        weight_decay: float = 0.0,
        *,
        radius: float = 1.0,
    ) -> None:
        """Check and take the options."""
        options = {
            "lr": lr,
            "method": method,
            "indefinite": indefinite,
            "damping": damping,
            "weight_decay": weight_decay,
            "radius": radius,
        }
        super().__init__(params, options)

    def _check_options(self, group: dict[str, Any]) -> None:
        super()._check_options(group)
        check_choice(self._name, group, "indefinite", INDEFINITE)

    def _direction(self, model: Model) -> Tensor:
        matrix = model.hessian()
        indefinite = self._options["indefinite"]
        if indefinite == "shift":
            return solve(shifted_cholesky(matrix), model.gradient)
        if indefinite == "cholesky":
            factor = cholesky(matrix)
            if factor is not None:
                return solve(factor, model.gradient)
        return absolute_solve(matrix, model.gradient)

    def _within(self, model: Model) -> Callable[[float], Tensor]:
        matrix = model.hessian()
        factor = cholesky(matrix)
        lowest = None if factor is None else solve(factor, model.gradient)  # of the whole model

        @cache
        def spectrum() -> tuple[Tensor, Tensor, Tensor]:
            values, vectors = torch.linalg.eigh(matrix)
            flat = values.abs() < _floor(values)  # a sign there is rounding, not a way down
            values[flat] = _floor(values)
            return values, vectors, vectors.T @ model.gradient

        def minimise(radius: float) -> Tensor:
            if lowest is not None and torch.linalg.vector_norm(lowest) <= radius:
                return lowest
            values, vectors, gradient = spectrum()
            return torch.mv(vectors, minimise_in_ball(values, gradient, radius))

        return minimise


def cholesky(matrix: Tensor) -> Tensor | None:
    """The lower triangle L with ``L L' = B``; None where B is not positive definite."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if failed else factor


def shifted_cholesky(matrix: Tensor) -> Tensor:
    """The Cholesky factor of ``B + tau I``, tau being 0 where that will do.

    N&W, algorithm 3.3; its smallest shift is here a thousandth of the largest entry.
    """
    factor = cholesky(matrix)
    if factor is not None:
        return factor
    unit = 1e-3 * float(torch.linalg.vector_norm(matrix, torch.inf)) or 1.0
    lowest = float(matrix.diagonal().min())
    tau = unit if lowest > 0 else unit - lowest
    while factor is None:
        shifted = matrix.clone()
        shifted.diagonal().add_(tau)
        factor = cholesky(shifted)
        tau *= 2
    return factor


def solve(factor: Tensor, gradient: Tensor) -> Tensor:
    """``-(L L')^-1 g`` for a lower triangle L ``[N, N]``."""
    step: Tensor = torch.cholesky_solve(gradient[:, None], factor)
    return step.view(-1).neg_()


def absolute_solve(matrix: Tensor, gradient: Tensor) -> Tensor:
    """``-A^-1 g``, where A has the eigenvectors of B and the absolute values of its eigenvalues.

    These are at least ``eps^(2/3)`` of the largest: the rounding of g, an eps of it, then moves the
    parameters by at most ``eps^(1/3)``.
    """
    values, vectors = torch.linalg.eigh(matrix)
    values.abs_()
    values.clamp_(min=_floor(values))
    return torch.mv(vectors, vectors.T @ gradient / values).neg_()


def _floor(values: Tensor) -> float:
    """What an eigenvalue must exceed to be told from zero; see :func:`absolute_solve`."""
    largest = float(values.abs().max()) or 1.0
    return largest * math.cbrt(torch.finfo(values.dtype).eps) ** 2


def minimise_in_ball(values: Tensor, gradient: Tensor, radius: float) -> Tensor:
    """The p of ``|p| <= radius`` that minimises ``g' p + p' B p / 2``, in B's eigenbasis.

    With d the distances of the eigenvalues from the lowest and ``mu`` the multiplier plus the
    lowest, ``p = -g / (d + mu)``. In these variables the pole is at 0, where floats are dense, so
    that nearly hard cases need no care. Newton's method on ``1 / |p| - 1 / radius``, a concave
    function of mu, rises to the root from every bound below it.

    Args:
        values: eigenvalues of B, ascending, ``[N]``.
        gradient: in the basis of the eigenvectors, ``[N]``.
        radius: of the ball.

    Returns:
        p in the basis of the eigenvectors, ``[N]``.
    """
    d = values - values[0]
    lowest = float(values[0])

    def over(x: Tensor, mu: float) -> Tensor:
        return torch.where(x == 0, 0, x / (d + mu))

    # |p| >= |g_i| / (d_i + mu) for each i alone, so at the root none exceeds the radius.
    mu = max(0.0, lowest, float((gradient.abs() / radius - d).max()))
    p = -over(gradient, mu)
    length = float(torch.linalg.vector_norm(p))
    if length <= radius and mu == 0 and lowest < 0:
        # The hard case: g has nothing along the lowest eigenvector, which fills the ball.
        p[0] += (radius**2 - length**2) ** 0.5
        return p
    tolerance = 100 * torch.finfo(p.dtype).eps * radius
    while length - radius > tolerance:
        rise = length**2 / float(p @ over(p, mu)) * (length - radius) / radius
        if mu + rise == mu:
            break
        mu += rise
        p = -over(gradient, mu)
        length = float(torch.linalg.vector_norm(p))
    return p
