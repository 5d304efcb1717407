"""The Hessians of the samples of a batch, `[B, *O, n, n]`, in times of `hesse.batch_hessian`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, hessian, jacfwd, jacrev, vmap

import hesse
from bench.case import Case, Draw
from bench.networks import fill, tanh_layers
from bench.peers import Peer, Ready, fastest
from bench.questions.question import Question, Results, seconds
from bench.targets import Verdict

CHECKED = 64  # samples that are held against float64
CHUNKS = (64, 512)
TARGET = 5


def network(dtype: torch.dtype, samples: int, widths: tuple[int, ...]) -> Case:
    """A tanh network over its inputs; a last width of 1 is a scalar."""
    draw = Draw(dtype, "cpu")
    model = tanh_layers(*widths)
    parameters = fill(model, draw)

    def func(x: Tensor) -> Tensor:
        y = functional_call(model, parameters, (x,))
        return y.squeeze(-1) if widths[-1] == 1 else y

    return Case(func, (draw.normal(samples, widths[0]),))


def rosenbrock(dtype: torch.dtype, samples: int, variables: int = 8) -> Case:
    """Rosenbrock's chain."""

    def func(x: Tensor) -> Tensor:
        head, tail = x[..., :-1], x[..., 1:]
        return (100 * (tail - head**2) ** 2 + (1 - head) ** 2).sum(-1)

    return Case(func, (Draw(dtype, "cpu").uniform(samples, variables, low=0.5, high=1.5),))


def particles(dtype: torch.dtype, samples: int, count: int = 8) -> Case:
    """Morse energy `sum (1 - exp(1 - r))^2` of all pairs of particles in space."""
    i, j = torch.triu_indices(count, count, 1)

    def func(x: Tensor) -> Tensor:
        d = x[..., i, :] - x[..., j, :]
        r = (d * d).sum(-1).sqrt()
        return (1 - torch.exp(1 - r)).square().sum(-1)

    return Case(func, (Draw(dtype, "cpu").normal(samples, count, 3),))


def _sized(
    make: Callable[..., Case], samples: int, quick: int | None = None, **options: object
) -> Callable[[torch.dtype, bool], Case]:
    return lambda dtype, short: make(dtype, (quick or samples) if short else samples, **options)


def _hesse(case: Case) -> Ready:
    return Ready(partial(hesse.batch_hessian, case.func, case.args))


def _vmap(case: Case) -> Ready:
    return Ready(partial(vmap(hessian(case.func)), case.args))


def _best(case: Case) -> Ready:
    """`vmap` of both orders at the chunk size that is fastest here."""
    chunks = (None, *(size for size in CHUNKS if size < len(case.args)))
    calls = {
        f"{outer.__name__}(jacrev), chunk_size={chunk}": partial(
            vmap(outer(jacrev(case.func)), chunk_size=chunk), case.args
        )
        for outer in (jacfwd, jacrev)
        for chunk in chunks
    }
    name = fastest(calls)
    return Ready(calls[name], lambda: name)


def expected(case: Case) -> list[Tensor]:
    """By `vmap(hessian)`, of the first samples."""
    return read(vmap(hessian(case.func))(case.args[:CHECKED]))


def read(value: Tensor) -> list[Tensor]:
    """`[B, everything of a sample]`."""
    return [value.flatten(1)]


def verdicts(case: str, results: Results) -> list[Verdict]:
    """Five times faster than `vmap(hessian)`."""
    ours, theirs = seconds(results, "batch_hessian"), seconds(results, "vmap(hessian)")
    claim = f"{TARGET}x vmap(hessian)"
    if ours is None or theirs is None:
        return [Verdict(case, claim, "-", None)]
    return [Verdict(case, claim, f"{theirs / ours:.3g}x", theirs / ours / TARGET)]


QUESTION = Question(
    "batch",
    "Hessians of all samples of a batch",
    ("batch_hessian", "times batch_hessian"),
    {
        "2-(512 x 6)-3, B = 10,000 (quick 2,000)": _sized(
            network, 10_000, 2_000, widths=(2, *[512] * 6, 3)
        ),
        "16-64-64-1, B = 1,024": _sized(network, 1_024, widths=(16, 64, 64, 1)),
        "4-8-1, B = 16": _sized(network, 16, widths=(4, 8, 1)),
        "Rosenbrock of 8, B = 500": _sized(rosenbrock, 500),
        "8 particles, B = 256": _sized(particles, 256),
    },
    (
        Peer("batch_hessian", "ours", _hesse, "hesse.batch_hessian"),
        Peer("vmap(hessian)", "stock", _vmap, "torch.func"),
        Peer("vmap, best", "stock", _best, "the faster order and chunk_size"),
    ),
    expected,
    read,
    verdicts,
)
