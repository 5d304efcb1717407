"""One run of the benchmark as a value: its settings, and per case what each peer did."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.device import Rates, facts
from bench.measure import Result
from bench.peers import PEERS
from bench.problems import PROBLEMS
from bench.roofline import Floor, floor
from bench.work import Work


@dataclass
class Row:
    """All peers on one case."""

    problem: str
    size: int
    results: dict[str, Result]
    dtype: torch.dtype = torch.float32
    busy: float = 0.0  # share of the machine that other processes took meanwhile
    work: Work = Work()

    def of_kind(self, kind: str) -> list[Result]:
        """The timed results of peers of one kind, fastest first."""
        timed = [r for r in self.results.values() if PEERS[r.peer].kind == kind and r.samples]
        return sorted(timed, key=lambda r: r.median)

    def best(self, *kinds: str) -> Result | None:
        """The fastest peer of some kinds."""
        timed = [r for kind in kinds for r in self.of_kind(kind)]
        return min(timed, key=lambda r: r.median, default=None)

    def best_stock(self) -> Result | None:
        """The fastest eager stock route that agrees."""
        return self.best("stock")

    def timed(self, peer: str) -> Result | None:
        """A peer's result, if it was timed."""
        result = self.results.get(peer)
        return result if result and result.samples else None

    def ratio(self, peer: str | None) -> float | None:
        """Time of `peer` over the time of hesse; `None` (the best stock route) if not named."""
        ours, theirs = self.timed("hesse"), self.timed(peer) if peer else self.best_stock()
        return theirs.median / ours.median if ours and theirs else None

    @property
    def output_bytes(self) -> int:
        """Bytes of the Hessian itself."""
        return self.size * self.size * self.dtype.itemsize

    def floor(self, rates: Rates | None) -> Floor | None:
        """The least time for the case at these rates, if they are known."""
        return floor(self.work, self.size, self.dtype, rates) if rates else None


@dataclass
class Run:
    """Settings, the machine's rates and rows.

    Attributes:
        settings: what a reader needs to place the numbers.
        rates: what the machine was seen to do, if that was measured.
        rows: one per case.
        missed: the cases that were not measured, with the reason.
    """

    settings: dict[str, Any]
    rates: Rates | None = None
    rows: list[Row] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def by_problem(self) -> dict[str, list[Row]]:
        """Rows grouped by problem, in order of measurement."""
        names = dict.fromkeys(row.problem for row in self.rows)
        return {name: [row for row in self.rows if row.problem == name] for name in names}

    def find(self, problem: str, size: int) -> Row | None:
        """The row of one case, if it was measured."""
        return next((r for r in self.rows if (r.problem, r.size) == (problem, size)), None)

    def measured_rates(self) -> dict[str, float]:
        """The rates by name: of a copy in GB/s, of products in GFLOP/s."""
        if self.rates is None:
            return {}
        flops = {str(d).removeprefix("torch."): rate for d, rate in self.rates.flops.items()}
        named = {f"product_{name}_gflops": round(rate / 1e9, 1) for name, rate in flops.items()}
        return {"copy_gbytes": round(self.rates.bytes / 1e9, 1)} | named


def geometric_mean(ratios: list[float]) -> float | None:
    """`None` of no ratios."""
    return statistics.geometric_mean(ratios) if ratios else None


def settings(dtype: torch.dtype, device: str, threads: int, rounds: int) -> dict[str, Any]:
    """What a reader needs to place the numbers: versions, processor, threads, dtype."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "jax": _version("jax"),
        "hesse": _hesse_version(),
        **facts(device),
        "system": sys.platform,
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "rounds": rounds,
    }


def title(problem: str) -> str:
    """The problem's line in tables and plots."""
    return PROBLEMS[problem].summary


class Neighbours:
    """Share of the machine's processors that other processes use, from `/proc/stat`."""

    def __init__(self) -> None:
        """Starts counting."""
        self._start = self._read()

    def share(self) -> float:
        """Share since the start, 0 to 1; 0 where the system does not tell."""
        (all0, idle0, own0), (all1, idle1, own1) = self._start, self._read()
        total = all1 - all0
        return max(0.0, (total - (idle1 - idle0) - (own1 - own0)) / total) if total else 0.0

    @staticmethod
    def _read() -> tuple[float, float, float]:
        own = sum(os.times()[:4])
        try:
            fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        except OSError:
            return 0.0, 0.0, own
        tick = os.sysconf("SC_CLK_TCK")
        return sum(fields) / tick, (fields[3] + fields[4]) / tick, own


def _hesse_version() -> str | None:
    try:
        import hesse
    except ImportError:
        return None
    return hesse.__version__


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
