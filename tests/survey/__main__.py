"""Writes docs/coverage.md."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from .outcomes import Outcome, attempt, outcome, stock_hessian
from .page import page
from .samples import MOST_ELEMENTS, Sample, entries, samples


def vectorized(sample: Sample) -> Any:
    return stock_hessian(sample.func, sample.inputs, vectorize=True)


def functional(sample: Sample) -> Any:
    every = tuple(range(len(sample.inputs)))
    return torch.func.hessian(sample.func, argnums=every)(*sample.inputs)


def same(blocks: Any, expected: Any) -> bool:
    if blocks is None or expected is None:
        return False
    pairs = [
        (a, b)
        for row, want in zip(blocks, expected, strict=True)
        for a, b in zip(row, want, strict=True)
    ]
    return all(torch.allclose(a.double(), b.double(), 1e-6, 1e-8, equal_nan=True) for a, b in pairs)


def other_routes(found: list[Sample]) -> tuple[int, ...]:
    """How many of an op's samples each further route of stock takes as its loop does."""
    routes: tuple[Callable[[Sample], Any], ...] = (vectorized, functional)
    counts = [0] * len(routes)
    for s in found:
        expected = attempt(lambda s=s: stock_hessian(s.func, s.inputs))[0]
        for r, route in enumerate(routes):
            blocks = attempt(lambda route=route, s=s: route(s))[0]
            counts[r] += same(blocks, expected)
    return tuple(counts)


def survey(name: str) -> tuple[str, list[Outcome], tuple[int, ...]]:
    torch.set_num_threads(1)
    found = samples(name)
    return name, [outcome(name, s) for s in found], other_routes(found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="survey", description=__doc__)
    parser.add_argument("out", type=Path, help="the page to write")
    out = parser.parse_args().out
    start = time.perf_counter()
    found, others, wrong = {}, {}, 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name, outcomes, counts in pool.map(survey, sorted(entries())):
            found[name], others[name] = outcomes, counts
            for o in outcomes:
                for problem in o.wrong:
                    wrong += 1
                    print(f"{o.name}: {problem}", file=sys.stderr)
    out.write_text(page(found, others, MOST_ELEMENTS))
    total, seconds = sum(map(len, found.values())), time.perf_counter() - start
    print(f"{out}: {total:,} samples in {seconds:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
