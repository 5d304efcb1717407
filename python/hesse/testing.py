"""Tests for rules: the three laws that a rule claims, at the inputs of your choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _C

SEEDS = 3
STEP = 6e-6  # cube root of the rounding of float64: where the two errors of a difference meet
Tensors = Sequence[Tensor]


def check_rule(
    fn: Callable[..., Any],
    inputs: Any,
    *,
    name: str | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> None:
    """Test the rule of an op: a native one, or one given to :func:`hesse.register_rule`.

    The laws, in the order in which they name what is wrong: push is the derivative of ``fn``; pull
    is the transpose of push; curve is the derivative of pull; curve is symmetric. Derivatives are
    those of autograd where it can differentiate ``fn`` twice, else central differences.

    Args:
        fn: the op, ``fn(*inputs)``; returns a Tensor or a tuple. Of its outputs, those count that
            require grad. The laws hold for what ``fn`` does altogether, so let it be the op alone.
        inputs: a tuple, or one Tensor. Tensors of float64, of any shapes, are differentiated;
            anything else is passed on as it is.
        name: of the node whose rule must have run; None: no node may run without a rule.
        rtol: relative tolerance, of the largest value expected.
        atol: absolute tolerance.

    Raises:
        AssertionError: ``check_rule: push of CubeBackward is not the derivative of fn: output 0,
            seed 1, index (2,): got ..., expected ... by autograd`` and likewise of the other laws;
            ``check_rule: no rule of ... ran``.
        TypeError: ``check_rule: input 0 is torch.float32: the laws are tested in torch.float64``.
        ValueError: ``check_rule: none of the inputs is a Tensor to differentiate``, and of the
            outputs.

    Example:
        >>> import torch
        >>> from hesse.testing import check_rule
        >>> check_rule(torch.tanh, torch.linspace(-2, 2, 5, dtype=torch.float64))
        >>> x = torch.rand(3, 4, dtype=torch.float64)
        >>> check_rule(torch.softmax, (x, 1), name="SoftmaxBackward0")

    Source:
        B. Christianson, Automatic Hessians by reverse accumulation, IMA J. Numer. Anal. 12, 1992.
    """
    _Check(fn, inputs, name, rtol, atol).run()


class _Check:
    """One op at one point: x are the inputs to differentiate, y the outputs that require grad."""

    def __init__(
        self, fn: Callable[..., Any], inputs: Any, name: str | None, rtol: float, atol: float
    ) -> None:
        self.fn, self.name, self.rtol, self.atol = fn, name, rtol, atol
        self.inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        self.places = []
        for i, x in enumerate(self.inputs):
            if not isinstance(x, Tensor) or not x.is_floating_point():
                continue
            if x.dtype != torch.float64:
                raise TypeError(
                    f"check_rule: input {i} is {x.dtype}: the laws are tested in torch.float64"
                )
            self.places.append(i)
        if not self.places:
            raise ValueError("check_rule: none of the inputs is a Tensor to differentiate")
        self.xs = [self.inputs[i].detach() for i in self.places]
        self.leaves = [x.clone().requires_grad_() for x in self.xs]
        outputs = _as_list(self.call(self.leaves))
        self.live = [isinstance(y, Tensor) and y.requires_grad for y in outputs]
        self.ys = self.of(outputs)
        if not self.ys:
            raise ValueError("check_rule: none of the outputs requires grad")
        generator = torch.Generator().manual_seed(0)

        def like(t: Tensor, *leading: int) -> Tensor:
            size = (*leading, *t.shape)
            return torch.randn(size, generator=generator, dtype=t.dtype).to(t.device)

        self.gys = [like(y) for y in self.ys]
        self.dxs = [like(x, SEEDS) for x in self.xs]
        self.dgys = [like(y, SEEDS) for y in self.ys]

    def call(self, xs: Tensors) -> Any:
        args = list(self.inputs)
        for place, x in zip(self.places, xs, strict=True):
            args[place] = x
        with torch.enable_grad():
            return self.fn(*args)

    def of(self, outputs: list[Any]) -> list[Tensor]:
        return [y for y, live in zip(outputs, self.live, strict=True) if live]

    def linearized(self, xs: Tensors) -> _C.Linearization:
        """By the engine, at leaves of their own."""
        leaves = [x.clone().requires_grad_() for x in xs]
        ys = self.of(_as_list(self.call(leaves)))
        try:
            return _C.linearize(ys, leaves, list(self.gys), False)
        except _C.Unsupported as refusal:
            raise AssertionError(f"check_rule: the engine does not take fn: {refusal}") from None

    def run(self) -> None:
        lin = self.linearized(self.xs)
        self.check_names(lin)
        try:
            pushed, pulled, curved = lin.push(self.dxs), lin.pull(self.dgys), lin.hvp(self.dxs)
        except _C.Unsupported as refusal:
            raise AssertionError(f"check_rule: the engine does not take fn: {refusal}") from None
        by = "autograd"
        exact = self.by_autograd()
        if exact is None:
            by = "central differences"
            exact = self.by_differences(lambda xs: self.of(_as_list(self.call(xs)))), []
        self.agree("push", "the derivative of fn", "output", pushed, exact[0], by)
        for k in range(SEEDS):
            there = _inner(self.dgys, pushed, k, k)
            back = _inner(pulled, self.dxs, k, k)
            self.same("pull", "the transpose of push", k, back, there, "<pull dgy, dx>")
        curves = exact[1]
        if by != "autograd":
            curves = self.by_differences(lambda xs: [g[0] for g in self.pull_at(xs)])
        self.agree("curve", "the derivative of pull", "input", curved, curves, by)
        for k in range(1, SEEDS):
            one = _inner(self.dxs, curved, 0, k)
            other = _inner(self.dxs, curved, k, 0)
            self.same("curve", "symmetric", k, one, other, f"<dx_0, curve(dx_{k})>")

    def check_names(self, lin: _C.Linearization) -> None:
        report = lin.report()
        ran = {**report["native_ops"], **report["user_ops"]}
        if self.name is not None and self.name not in ran:
            nodes = ", ".join([*ran, *report["autograd_ops"]])
            raise AssertionError(f"check_rule: no rule of {self.name} ran, but {nodes} did")
        if self.name is None and report["autograd_ops"]:
            nodes = ", ".join(report["autograd_ops"])
            raise AssertionError(f"check_rule: no rule of {nodes} ran: there is none")
        self.what = self.name or ", ".join(ran)

    def pull_at(self, xs: Tensors) -> list[Tensor]:
        return self.linearized(xs).pull([g[None] for g in self.gys])

    def by_autograd(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """Rows of push and of curve; None where autograd does not differentiate twice."""
        gys = [g.clone().requires_grad_() for g in self.gys]
        try:
            gs = torch.autograd.grad(
                self.ys, self.leaves, gys, create_graph=True, allow_unused=True
            )
            live = [(i, g) for i, g in enumerate(gs) if g is not None]
            if not all(g.requires_grad for _, g in live):
                return None  # a backward that is not recorded
            rows = []
            for k in range(SEEDS):
                by = torch.autograd.grad(
                    [g for _, g in live],
                    [*gys, *self.leaves],
                    [self.dxs[i][k] for i, _ in live],
                    retain_graph=True,
                    allow_unused=True,
                )
                if all(d is None for d in by[: len(gys)]):
                    return None  # a backward is linear in gy: what is not led back hides something
                rows.append(
                    [
                        torch.zeros_like(t) if d is None else d
                        for d, t in zip(by, [*gys, *self.leaves], strict=True)
                    ]
                )
        except (RuntimeError, NotImplementedError):
            return None
        stacked = [torch.stack(column) for column in zip(*rows, strict=True)]
        return stacked[: len(gys)], stacked[len(gys) :]

    def by_differences(self, f: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
        """The derivative of f along each of the directions."""
        rows = []
        for k in range(SEEDS):
            h = STEP / max(1.0, *(float(d[k].abs().max()) for d in self.dxs if d.numel()))
            up, down = (
                f([x + s * h * d[k] for x, d in zip(self.xs, self.dxs, strict=True)])
                for s in (1, -1)
            )
            rows.append(
                [(u.detach() - v.detach()) / (2 * h) for u, v in zip(up, down, strict=True)]
            )
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def agree(self, part: str, law: str, of: str, got: Tensors, expected: Tensors, by: str) -> None:
        scale = max((float(e.abs().max()) for e in expected if e.numel()), default=0.0)
        for i, (g, e) in enumerate(zip(got, expected, strict=True)):
            bad = ~((g - e).abs() <= self.atol + self.rtol * scale)
            if not bad.any():
                continue
            error = torch.where(bad, (g - e).abs().nan_to_num(torch.inf), -1.0)
            at = tuple(int(k) for k in torch.unravel_index(error.argmax(), error.shape))
            raise AssertionError(
                f"check_rule: {part} of {self.what} is not {law}: {of} {i}, seed {at[0]}, "
                f"index {at[1:]}: got {float(g[at])!r}, expected {float(e[at])!r} by {by}"
            )

    def same(
        self, part: str, law: str, k: int, got: tuple[float, float], expected: tuple[float, float],
        which: str,
    ) -> None:  # fmt: skip
        if abs(got[0] - expected[0]) <= self.atol + self.rtol * max(got[1], expected[1]):
            return
        raise AssertionError(
            f"check_rule: {part} of {self.what} is not {law}: seed {k}: {which} is {got[0]!r}, "
            f"the other side {expected[0]!r}"
        )


def _as_list(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def _inner(a: Tensors, b: Tensors, i: int, j: int) -> tuple[float, float]:
    """<a_i, b_j>, and the same of the absolute values, which says how exact it can be."""
    products = [s[i] * t[j] for s, t in zip(a, b, strict=True)]
    return sum(float(p.sum()) for p in products), sum(float(p.abs().sum()) for p in products)
