"""`python -m bench.optimisers`: wall-clock to a fixed gradient or loss.

First each peer runs watched, which counts the iterations it needs; then rounds, interleaved and
shuffled, time as many iterations without a look at anything else.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.optimize
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

import hesse
from bench.command import limited_to

PATIENCE = 60.0  # seconds in which a watched run has to arrive
LIMIT = 100_000  # iterations
WARM = 0.5  # a run shorter than this has an untimed one before it
ENOUGH = 10.0  # seconds of samples after which a slow peer sits the other rounds out
f64 = torch.float64
Watch = Callable[[Tensor], bool]  # told where an iteration ended; whether that will do


class Expired(Exception):
    """A watched run has lost patience."""


@dataclass
class Problem:
    """A function of several tensors, where to start, and when it is solved."""

    title: str
    func: Callable[..., Tensor]
    start: tuple[Tensor, ...]
    gradient: float | None = None  # the largest entry, at the end
    loss: float | None = None
    deadline: float = field(default=float("inf"))

    def of_flat(self, x: Tensor) -> Tensor:
        """The function of all entries in one vector."""
        if time.perf_counter() > self.deadline:
            raise Expired
        parts = x.split([s.numel() for s in self.start])
        return self.func(*[p.view(s.shape) for p, s in zip(parts, self.start, strict=True)])

    @property
    def x0(self) -> Tensor:
        return torch.cat([s.reshape(-1) for s in self.start])

    @property
    def goal(self) -> str:
        if self.loss is not None:
            return f"loss <= {self.loss:g}"
        return f"max |g| <= {self.gradient:g}"

    def at(self, x: Tensor) -> tuple[float, float]:
        """Loss and largest entry of the gradient."""
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            y = self.of_flat(x)
        return y.item(), torch.autograd.grad(y, x)[0].abs().max().item()

    def solved(self, x: Tensor) -> bool:
        loss, gradient = self.at(x)
        return loss <= self.loss if self.loss is not None else gradient <= self.gradient


def rosenbrock(n: int, start: list[float]) -> Problem:
    """The chain; every start here leads to the minimum at ones."""

    def func(x: Tensor) -> Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    x0 = torch.tensor(start * (n // len(start)), dtype=f64)
    return Problem(f"Rosenbrock chain, N = {n:,}", func, (x0,), gradient=1e-8)


def logistic() -> Problem:
    """5,000 samples of 200 features and a small ridge."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(5000, 200, dtype=f64, generator=g)
    w = torch.randn(200, dtype=f64, generator=g) / 4
    y = (torch.rand(5000, dtype=f64, generator=g) < torch.sigmoid(X @ w)).to(f64)

    def func(w: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(X @ w, y) + 5e-5 * w.square().sum()

    start = (torch.zeros(200, dtype=f64),)
    return Problem("logistic regression, 5,000 x 200", func, start, gradient=1e-9)


def digits() -> Problem:
    """64-32-10 tanh network, cross entropy on all 1,797 images, weight decay 1e-3."""
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    X, y = torch.tensor(data / 16), torch.tensor(labels)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    start = tuple(p.detach() for p in net.double().parameters())

    def func(*params: Tensor) -> Tensor:
        W1, b1, W2, b2 = params
        outputs = F.linear(torch.tanh(F.linear(X, W1, b1)), W2, b2)
        return F.cross_entropy(outputs, y) + 5e-4 * sum(p.square().sum() for p in params)

    n = sum(s.numel() for s in start)
    return Problem(f"digits MLP, N = {n:,}", func, start, loss=0.13)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "rosenbrock-2": lambda: rosenbrock(2, [-1.2, 1.0]),
    "rosenbrock-1000": lambda: rosenbrock(1000, [1.3, 0.7, 0.8, 1.9, 1.2]),
    "logistic": logistic,
    "digits": digits,
}


# Each takes the problem, a limit on iterations and perhaps a watch, and returns where it ended and
# after how many iterations.
Solve = Callable[[Problem, int, Watch | None], tuple[Tensor, int]]


def of_hesse(kind: str, method: str) -> Solve:
    def solve(problem: Problem, limit: int, watch: Watch | None) -> tuple[Tensor, int]:
        params = [Parameter(s.clone()) for s in problem.start]
        optimizer = getattr(hesse.optim, kind)(params, method=method)

        def closure() -> Tensor:
            if time.perf_counter() > problem.deadline:
                raise Expired
            return problem.func(*params)

        def flat() -> Tensor:
            return torch.cat([p.detach().reshape(-1) for p in params])

        for n in range(limit):
            optimizer.step(closure)
            if watch and watch(flat()):
                return flat(), n + 1
        return flat(), limit

    return solve


def lbfgs(problem: Problem, limit: int, watch: Watch | None) -> tuple[Tensor, int]:
    params = [Parameter(s.clone()) for s in problem.start]
    optimizer = torch.optim.LBFGS(
        params,
        max_iter=1 if watch else limit,  # a step continues where the one before ended
        max_eval=100 * LIMIT,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        if time.perf_counter() > problem.deadline:
            raise Expired
        optimizer.zero_grad()
        loss = problem.func(*params)
        loss.backward()
        return loss

    def flat() -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in params])

    for n in range(limit if watch else 1):
        optimizer.step(closure)
        if watch and watch(flat()):
            return flat(), n + 1
    return flat(), limit


def of_torchmin(method: str) -> Solve:
    tolerance = {"trust-ncg": "gtol", "trust-exact": "gtol"}.get(method, "xtol")

    def solve(problem: Problem, limit: int, watch: Watch | None) -> tuple[Tensor, int]:
        from torchmin import minimize

        seen, stopped = [], [problem.x0]

        def callback(x: Tensor) -> None:
            seen.append(1)
            stopped[0] = x.detach().clone()
            if watch and watch(x):
                raise StopIteration

        try:
            result = minimize(
                problem.of_flat,
                problem.x0,
                method,
                max_iter=limit,
                callback=callback if watch else None,
                options={tolerance: 0.0},
            )
        except StopIteration:
            return stopped[0], len(seen)
        return result.x, limit if not watch else len(seen)

    return solve


def of_scipy(method: str) -> Solve:
    def solve(problem: Problem, limit: int, watch: Watch | None) -> tuple[Tensor, int]:
        def value_and_gradient(v: np.ndarray) -> tuple[float, np.ndarray]:
            x = torch.from_numpy(v.copy()).requires_grad_()
            y = problem.of_flat(x)
            return y.item(), torch.autograd.grad(y, x)[0].numpy()

        def hess(v: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(v.copy())
            return torch.autograd.functional.hessian(problem.of_flat, x).numpy()

        seen = []

        def callback(intermediate_result: scipy.optimize.OptimizeResult) -> None:
            seen.append(1)
            if watch and watch(torch.from_numpy(intermediate_result.x.copy())):
                raise StopIteration

        exact = method == "trust-exact"
        options = {"maxiter": limit, "gtol": 0.0} | (
            {} if exact else {"ftol": 0.0, "maxfun": LIMIT}
        )
        result = scipy.optimize.minimize(
            value_and_gradient,
            problem.x0.numpy(),
            method=method,
            jac=True,
            hess=hess if exact else None,
            callback=callback if watch else None,
            options=options,
        )
        return torch.from_numpy(result.x.copy()), len(seen) if watch else limit

    return solve


PEERS: dict[str, Solve] = {
    "hesse Newton, damped": of_hesse("Newton", "damped"),
    "hesse Newton, trust-region": of_hesse("Newton", "trust-region"),
    "hesse NewtonCG, line-search": of_hesse("NewtonCG", "line-search"),
    "hesse NewtonCG, trust-region": of_hesse("NewtonCG", "trust-region"),
    "torch LBFGS, strong_wolfe": lbfgs,
    "torchmin newton-exact": of_torchmin("newton-exact"),
    "torchmin newton-cg": of_torchmin("newton-cg"),
    "torchmin trust-ncg": of_torchmin("trust-ncg"),
    "scipy trust-exact, stock Hessian": of_scipy("trust-exact"),
    "scipy L-BFGS-B": of_scipy("L-BFGS-B"),
}


@dataclass
class Outcome:
    """What one peer did."""

    iterations: int = 0
    loss: float = float("nan")
    gradient: float = float("nan")
    refusal: str = ""
    seconds: float = 0.0  # of the latest run
    samples: list[float] = field(default_factory=list)


def count(solve: Solve, problem: Problem) -> Outcome:
    """A watched run."""
    last = [problem.x0]

    def watch(x: Tensor) -> bool:
        last[0] = x.detach().clone()
        return problem.solved(x)

    outcome = Outcome()
    problem.deadline = time.perf_counter() + PATIENCE
    try:
        last[0], outcome.iterations = solve(problem, LIMIT, watch)
        if not problem.solved(last[0]):
            outcome.refusal = f"stopped short after {outcome.iterations} iterations"
    except Expired:
        outcome.refusal = f"not there after {PATIENCE:.0f} s"
    except Exception as error:
        outcome.refusal = f"{type(error).__name__}: {error}"[:60]
    problem.deadline = float("inf")
    outcome.loss, outcome.gradient = problem.at(last[0])
    return outcome


def compare(problem: Problem, peers: dict[str, Solve], rounds: int) -> dict[str, Outcome]:
    """Counts, then interleaved rounds of those who arrive."""
    outcomes = {name: count(solve, problem) for name, solve in peers.items()}
    ready = [name for name, outcome in outcomes.items() if not outcome.refusal]
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(ready)
        for name in ready:
            if len(outcomes[name].samples) > 1 and sum(outcomes[name].samples) > ENOUGH:
                continue
            if outcomes[name].seconds < WARM:  # nobody pays for the caches of the one before
                peers[name](problem, outcomes[name].iterations, None)
            start = time.perf_counter()
            x, _ = peers[name](problem, outcomes[name].iterations, None)
            outcomes[name].seconds = time.perf_counter() - start
            outcomes[name].samples.append(outcomes[name].seconds)
            if not problem.solved(x):
                outcomes[name].refusal = "does not arrive when it is not watched"
    return outcomes


def table(problem: Problem, outcomes: dict[str, Outcome]) -> Table:
    """A row per peer; the last column is its time over that of the fastest hesse."""
    out = Table(title=f"{problem.title}: until {problem.goal}", title_justify="left")
    out.add_column("peer", no_wrap=True)
    for column in ("iterations", "ms, median (quartiles)", "loss", "max |g|", "time / hesse"):
        out.add_column(column, justify="right")
    medians = {n: statistics.median(o.samples) for n, o in outcomes.items() if not o.refusal}
    ours = min((m for n, m in medians.items() if n.startswith("hesse")), default=None)
    for name, o in outcomes.items():
        values = f"{o.loss:.6g}", f"{o.gradient:.1e}"
        style = "bold green" if name.startswith("hesse") else None
        if o.refusal:
            out.add_row(name, "-", o.refusal, *values, "-", style="red")
            continue
        low, _, high = statistics.quantiles(o.samples, n=4, method="inclusive")
        cell = f"{1e3 * medians[name]:.3g} ({1e3 * low:.3g}-{1e3 * high:.3g})"
        ratio = f"{medians[name] / ours:.2f}x" if ours else "-"
        out.add_row(name, str(o.iterations), cell, *values, ratio, style=style)
    return out


def main(argv: list[str] | None = None) -> int:
    """Prints one table per problem; 1 if an optimiser of ours does not arrive."""
    p = argparse.ArgumentParser(prog="python -m bench.optimisers", description=__doc__)
    p.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    p.add_argument("--rounds", type=int, default=7, help="samples of each peer, two at least (7)")
    p.add_argument("--threads", type=int, default=2)
    options = p.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    peers = dict(PEERS)
    if not importlib.util.find_spec("torchmin"):
        console.print(
            "pytorch-minimize is not installed; its methods sit this out.", style="yellow"
        )
        peers = {n: solve for n, solve in peers.items() if not n.startswith("torchmin")}
    failed = False
    with limited_to(options.threads), hesse.fallback("error"):
        for name in options.problems:
            problem = PROBLEMS[name]()
            outcomes = compare(problem, peers, max(options.rounds, 2))
            console.print(table(problem, outcomes))
            failed |= any(o.refusal for n, o in outcomes.items() if n.startswith("hesse"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
