"""`python -m bench.minimize`: pytorch-minimize, unmodified, with and without `hesse.patched()`.

Each method minimizes its own Rosenbrock function. First both runs must make the same iterates, then
they are timed in interleaved rounds. A time is a whole minimization.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import hesse

METHODS = ("newton-cg", "newton-exact", "trust-ncg", "trust-exact", "trust-krylov", "dogleg")
SIZES = (10, 100, 1000)
TOLERANCE = 1e-8  # of float64 iterates, relative
SECONDS = 4.0  # for all rounds of one case, three at least


@dataclass
class Case:
    """One method at one size; times in seconds."""

    method: str
    size: int
    iterations: int = 0
    refusal: str = ""
    wrong: bool = False
    stock: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        head = (self.method, f"{self.size:,}")
        if self.refusal:
            return (*head, self.refusal, "-", "-", "-")
        stock, ours = statistics.median(self.stock), statistics.median(self.ours)
        times = (f"{1e3 * stock:.3g}", f"{1e3 * ours:.3g}", f"{stock / ours:.2f}x")
        return (*head, str(self.iterations), *times)


def start(size: int) -> Tensor:
    """Near the minimum and convex, so that every method can take it."""
    return 1.3 + 0.05 * torch.cos(torch.arange(size, dtype=torch.float64))


def run(method: str, size: int) -> tuple[Any, list[Tensor]]:
    """One minimization: the result and the iterates."""
    import torchmin
    from torchmin.benchmarks import rosen

    path: list[Tensor] = []
    result = torchmin.minimize(rosen, start(size), method=method, callback=path.append)
    return result, [*path, result.x]


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two iterates are the same but for rounding."""
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)


def measure(method: str, size: int, rounds: int) -> Case:
    """Agreement, then interleaved rounds."""
    case = Case(method, size)
    patched = hesse.patched()(run)
    try:
        (want, path), (got, ours) = run(method, size), patched(method, size)
    except RuntimeError as error:  # a method that fails on its own function is not timed
        case.refusal = str(error).splitlines()[0][:60]
        return case
    counts = [(int(r.nit), int(r.nfev)) for r in (want, got)]
    case.iterations = counts[0][0]
    same = counts[0] == counts[1] and all(
        torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)
        for a, b in zip(path, ours, strict=True)
    )
    if not same:
        case.refusal, case.wrong = f"disagrees: (nit, nfev) {counts[1]}, not {counts[0]}", True
        return case
    calls: list[tuple[Callable[..., Any], list[float]]] = [(run, case.stock), (patched, case.ours)]
    began = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - began > SECONDS:
            break
        random.shuffle(calls)
        for call, samples in calls:
            from_ = time.perf_counter()
            call(method, size)
            samples.append(time.perf_counter() - from_)
    return case


def main(argv: list[str] | None = None) -> int:
    """Prints the table; 1 if the iterates of a method differ."""
    p = argparse.ArgumentParser(prog="python -m bench.minimize", description=__doc__)
    p.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    p.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="N")
    p.add_argument("--rounds", type=int, default=31)
    p.add_argument("--threads", type=int, default=2)
    options = p.parse_args(argv)
    torch.set_num_threads(options.threads)
    table = Table(
        title="pytorch-minimize on its Rosenbrock function, float64", title_justify="left"
    )
    for name in ("method", "N", "iterations", "stock, ms", "patched, ms", "stock / patched"):
        table.add_column(name, justify="left" if name == "method" else "right")
    wrong = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method in options.methods:
            for size in options.sizes:
                case = measure(method, size, options.rounds)
                wrong = wrong or case.wrong
                table.add_row(*case.cells)
    Console().print(table)
    return int(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
