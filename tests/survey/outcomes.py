"""What hesse does with a sample, beside what stock does with it.

Where stock can take the Hessian, ours must be the same: by default, with create_graph, and in
forward mode. Where it cannot, and ours can, central differences of the gradient are the judge.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import Tensor

import hesse

from .conventions import DIFFERENT
from .samples import Sample

stock_hessian = torch.autograd.functional.hessian
Blocks = list[list[Tensor]]

MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "create_graph": {"create_graph": True},
    "forward-mode": {"vectorize": True, "outer_jacobian_strategy": "forward-mode"},
}
RTOL, ATOL = 1e-7, 1e-9  # the latter of the largest entry
STEP = 1e-6  # of the differences, whose error is about STEP**2 + 1e-16 / STEP
LOOSE = 1e-4


class Route(StrEnum):
    """By which means the engine did it."""

    NATIVE = "native"  # structure survived everywhere
    DENSE = "native, dense"  # native rules, one of which made its tangents dense
    DRIVEN = "autograd rule"  # a node without a rule was driven itself
    FALLBACK = "plain autograd"  # the whole call
    NONE = "none"  # it raised


@dataclass
class Outcome:
    """One sample.

    Args:
        name: of the sample.
        route: of hesse.
        stock: None where stock's loop can do it, else its error.
        error: of hesse, where it has one.
        fallback: why the whole call left the engine, if it did.
        driven: nodes run by the autograd rule.
        densified: nodes at which a structured tangent became dense.
        wrong: what disagrees, in words; empty if nothing does.
        mended: stock's NaN where ours is a number that differences confirm, or a structural zero.
        convention: the reason why a difference that was found is meant.
    """

    name: str
    route: Route = Route.NONE
    stock: str | None = None
    error: str | None = None
    fallback: str | None = None
    driven: list[str] = field(default_factory=list)
    densified: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    mended: bool = False
    convention: str | None = None


def outcome(entry: str, sample: Sample) -> Outcome:
    """Take the sample's Hessian by all routes and compare."""
    out = Outcome(sample.name)
    convention = DIFFERENT.get(sample.name) or DIFFERENT.get(entry)
    expected, out.stock, known = attempt(partial(stock_hessian, sample.func, sample.inputs))
    report, out.error, _ = attempt(partial(hesse.explain, sample.func, sample.inputs))
    if report is not None:
        out.driven, out.densified = sorted(report.autograd_ops), sorted(report.densified)
        out.route, out.fallback = route_of(report), report.fallback
    for mode, flags in MODES.items():
        blocks, error, said = attempt(partial(hesse.hessian, sample.func, sample.inputs, **flags))
        out.wrong += [f"{mode}: warns {w}" for w in sorted(said - known)]
        if blocks is None:
            out.error = out.error or error
            if attempt(partial(stock_hessian, sample.func, sample.inputs, **flags))[1] is None:
                out.wrong.append(f"{mode}: {error}")
            continue
        if out.stock is not None:
            wrong = beyond(mode, blocks, sample)
        else:
            wrong = compare(mode, blocks, expected, sample, out)
        if wrong and convention:
            out.convention = convention.reason
            wrong = beyond(mode, blocks, sample) if convention.judged else []
        out.wrong += wrong
    return out


def attempt(call: Callable[[], Any]) -> tuple[Any, str | None, set[str]]:
    """The result, or None and the error; and what was said on the way."""
    with warnings.catch_warnings(record=True) as said, hesse.fallback("silent"):
        warnings.simplefilter("always")
        try:
            result, error = call(), None
        except Exception as e:
            result, error = None, f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
    return result, error, {str(w.message) for w in said}


def route_of(report: hesse.Report) -> Route:
    if report.fallback is not None:
        return Route.FALLBACK
    if report.autograd_ops:
        return Route.DRIVEN
    return Route.DENSE if report.densified else Route.NATIVE


def compare(mode: str, blocks: Blocks, expected: Blocks, sample: Sample, out: Outcome) -> list[str]:
    """What is not stock's.

    NaN of stock may be a number that differences confirm. Where the function's own value is not
    finite, which entries are NaN says nothing.
    """
    wrong = []
    slopes = None
    coarse = 1 if all(x.dtype == torch.float64 for x in sample.inputs) else 1e4  # float32 inside
    scale = max(
        1.0, *(b.detach().nan_to_num(0, 0, 0).abs().max().item() for r in expected for b in r)
    )
    finite = bool(value(sample, list(sample.inputs))[1].isfinite())
    for i, (row, want) in enumerate(zip(blocks, expected, strict=True)):
        for j, (ours, theirs) in enumerate(zip(row, want, strict=True)):
            ours, theirs = ours.detach().double(), theirs.detach().double()
            bad = ~torch.isclose(ours, theirs, coarse * RTOL, coarse * ATOL * scale, equal_nan=True)
            if not finite:
                bad &= ours.isfinite() & theirs.isfinite()
            spread = bad & theirs.isnan() & ours.isfinite()
            if (bad & ~spread).any():
                worst = (ours - theirs)[bad & ~spread].abs().max().item()
                wrong.append(f"{mode}: block ({i}, {j}) is off by {worst:.3g}")
            if spread.any():
                slopes = slopes or differences(sample)
                measured = slopes[i][j]
                confirmed = torch.isclose(ours, measured, LOOSE, LOOSE)
                confirmed |= (ours == 0) & ~measured.isfinite()
                out.mended = True
                if (spread & ~confirmed).any():
                    wrong.append(f"{mode}: block ({i}, {j}) is a number where stock has NaN")
    return wrong


def beyond(mode: str, blocks: Blocks, sample: Sample) -> list[str]:
    """What central differences do not confirm."""
    wrong = []
    for i, row in enumerate(differences(sample)):
        for j, measured in enumerate(row):
            ours = blocks[i][j].detach()
            scale = max(1.0, measured.abs().max().item())
            if not torch.allclose(ours, measured, LOOSE, LOOSE * scale):
                worst = (ours - measured).abs().max().item()
                wrong.append(f"{mode}: block ({i}, {j}) is off by {worst:.3g} of differences")
    return wrong


def value(sample: Sample, inputs: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Leaves, and the function there."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    return leaves, sample.func(*(x.view_as(x) for x in leaves))


def gradient(sample: Sample, inputs: list[Tensor]) -> list[Tensor]:
    leaves, y = value(sample, inputs)
    return [g.detach().double() for g in torch.autograd.grad(y, leaves, materialize_grads=True)]


def differences(sample: Sample) -> Blocks:
    """The Hessian by central differences of the gradient."""
    rows = []
    for i, x in enumerate(sample.inputs):
        slopes: list[list[Tensor]] = [[] for _ in sample.inputs]
        for k in range(x.numel()):
            sides = []
            for step in (STEP, -STEP):
                moved = [t.clone(memory_format=torch.contiguous_format) for t in sample.inputs]
                moved[i].view(-1)[k] += step
                sides.append(gradient(sample, moved))
            for j, (above, below) in enumerate(zip(*sides, strict=True)):
                slopes[j].append((above - below) / (2 * STEP))
        rows.append(
            [
                torch.stack(s).reshape(x.shape + y.shape)
                for s, y in zip(slopes, sample.inputs, strict=True)
            ]
        )
    return rows
