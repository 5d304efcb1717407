"""The least time that a machine needs for a case: its bytes, or its FLOPs, at measured rates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.device import Rates
from bench.work import Work


@dataclass(frozen=True)
class Floor:
    """Of one case on one machine.

    Attributes:
        bytes: that must move.
        flops: that must be done.
        bytes_seconds: for moving, at the rate of a copy.
        flops_seconds: for computing, at the rate of a large square product.
    """

    bytes: int
    flops: int
    bytes_seconds: float
    flops_seconds: float

    @property
    def seconds(self) -> float:
        """The larger of the two: both can go on at a time."""
        return max(self.bytes_seconds, self.flops_seconds)

    @property
    def bound(self) -> str:
        """What takes that time."""
        return "bytes" if self.bytes_seconds >= self.flops_seconds else "FLOPs"


def floor(work: Work, numel: int, dtype: torch.dtype, rates: Rates) -> Floor:
    """The floor of a case with `numel` inputs of a dtype."""
    moved = work.bytes(numel, dtype.itemsize)
    return Floor(moved, work.flops, moved / rates.bytes, work.flops / rates.flops[dtype])
