"""What `bench.products` measures: questions that are not the whole Hessian, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.case import Case
from bench.measure import Result
from bench.peers import Peer
from bench.targets import Verdict

SMALL = 1e-3  # what is smaller than this share of the largest entry is held against that share

Results = Mapping[str, Result]


@dataclass(frozen=True)
class Question:
    """Cases x ways to one answer.

    Attributes:
        name: one word, as given to `--only`.
        title: of the table.
        unit: the peer whose time is 1, and what that is called.
        cases: name and maker of each; `make(dtype, quick)`, the same data in every dtype.
        ways: the peers that take part in a case.
        expected: the answer in float64, given the case in float64: parts `[M, n]`. Only the
            first M rows may be asked for.
        read: what a call returned as such parts, with as many rows as it computed.
        verdicts: the targets, given the name of a case and its results.
    """

    name: str
    title: str
    unit: tuple[str, str]
    cases: dict[str, Callable[[torch.dtype, bool], Case]]
    ways: Sequence[Peer]
    expected: Callable[[Case], list[Tensor]]
    read: Callable[[Any], list[Tensor]]
    verdicts: Callable[[str, Results], list[Verdict]]


def deviation(value: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error of an entry against the largest of its row and part.

    A part `[M, n]` is one input of M directions, or M samples. Rows that only one side has are
    left out, and a row of next to nothing is held against `SMALL` of the largest entry of all.
    """
    floor = SMALL * max(e.abs().max().item() for e in expected)
    errors = []
    for v, e in zip(value, expected, strict=True):
        rows = min(len(v), len(e))
        wanted, got = e[:rows], v[:rows].detach().to(e.dtype)
        scale = wanted.abs().amax(1, keepdim=True).clamp_min(floor)
        errors.append(((got - wanted).abs() / scale).max().item())
    return max(errors)


def seconds(results: Results, peer: str) -> float | None:
    """Of one answer; `None` if the peer was not timed."""
    result = results.get(peer)
    return result.median / result.answers if result and result.samples else None


def at_most(case: str, claim: str, value: float | None, limit: float, unit: str) -> Verdict:
    """A target that is an upper bound."""
    if value is None:
        return Verdict(case, claim, "-", None)
    return Verdict(case, claim, f"{value:.3g} {unit}", limit / value)


def ratio(results: Results, peer: str, unit: str) -> float | None:
    """Time of one answer in times of another peer's."""
    ours, its = seconds(results, peer), seconds(results, unit)
    return ours / its if ours is not None and its else None
