"""One run of the benchmark as a value: its settings, and per case what each peer did."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.measure import Result
from bench.peers import PEERS
from bench.problems import PROBLEMS


@dataclass
class Row:
    """All peers on one case."""

    problem: str
    size: int
    results: dict[str, Result]
    element_bytes: int = 4
    busy: float = 0.0  # share of the machine that other processes took meanwhile

    def of_kind(self, kind: str) -> list[Result]:
        """The timed results of peers of one kind, fastest first."""
        timed = [r for r in self.results.values() if PEERS[r.peer].kind == kind and r.samples]
        return sorted(timed, key=lambda r: r.median)

    def best_stock(self) -> Result | None:
        """The fastest eager stock route that agrees."""
        return next(iter(self.of_kind("stock")), None)

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
        return self.size * self.size * self.element_bytes


@dataclass
class Run:
    """Settings and rows."""

    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def by_problem(self) -> dict[str, list[Row]]:
        """Rows grouped by problem, in order of measurement."""
        names = dict.fromkeys(row.problem for row in self.rows)
        return {name: [row for row in self.rows if row.problem == name] for name in names}

    def find(self, problem: str, size: int) -> Row | None:
        """The row of one case, if it was measured."""
        return next((r for r in self.rows if (r.problem, r.size) == (problem, size)), None)


def settings(dtype: torch.dtype, device: str, threads: int, rounds: int) -> dict[str, Any]:
    """What a reader needs to place the numbers: versions, processor, threads, dtype."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "jax": _version("jax"),
        "hesse": _hesse_version(),
        "processor": _processor(device),
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


def _processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")
