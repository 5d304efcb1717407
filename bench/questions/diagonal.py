"""The diagonal of a Hessian, in gradients."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional as F

import hesse
from bench.case import Case, Draw
from bench.networks import mlp
from bench.peers import Peer, Ready, Refusal
from bench.questions.question import Question, Results, at_most, ratio
from bench.targets import Verdict

LOOPED = 3_000  # the largest N of which stock computes all rows
CHUNK = 256
TARGET = 4


def separable(dtype: torch.dtype, size: int = 10**6) -> Case:
    """`sum exp(-x^2) sin x`."""

    def func(x: Tensor) -> Tensor:
        return (torch.exp(-(x**2)) * torch.sin(x)).sum()

    def hand(x: Tensor) -> Tensor:
        return torch.exp(-(x**2)) * ((4 * x * x - 3) * torch.sin(x) - 4 * x * torch.cos(x))

    return Case(func, (Draw(dtype, "cpu").normal(size),), hand)


def per_sample(
    dtype: torch.dtype, batch: int = 1_024, features: int = 16, hidden: int = 64
) -> Case:
    """A tanh MLP summed over a batch, over its inputs."""
    draw = Draw(dtype, "cpu")
    w1, b1 = draw.normal(hidden, features, scale=features**-0.5), draw.normal(hidden, scale=0.1)
    w2 = draw.normal(1, hidden, scale=hidden**-0.5)

    def func(x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(x, w1, b1)), w2).sum()

    def hand(x: Tensor) -> Tensor:
        z = torch.tanh(torch.addmm(b1, x, w1.T))
        return ((z * z - 1) * z * (2 * w2)) @ w1.square()

    return Case(func, (draw.normal(batch, features),), hand)


def logistic(dtype: torch.dtype, samples: int = 2_048, weights: int = 1_024) -> Case:
    """Logistic regression over its weights."""
    draw = Draw(dtype, "cpu")
    features = draw.normal(samples, weights)
    labels = draw.labels(samples, 2).to(dtype)

    def func(w: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(features @ w, labels)

    def hand(w: Tensor) -> Tensor:
        p = torch.sigmoid(features @ w)
        return (p * (1 - p) / samples) @ features.square()

    return Case(func, (draw.normal(weights, scale=weights**-0.5),), hand)


def _gradient(case: Case) -> Ready:
    xs = _point(case)
    return Ready(lambda: grad(case.func(*xs), xs))


def _fixed(case: Case) -> Ready:
    op = hesse.linearize(case.func, case.inputs)
    return Ready(op.diagonal)


def _scratch(case: Case) -> Ready:
    return Ready(lambda: hesse.linearize(case.func, case.inputs).diagonal())


def _loop(case: Case) -> Ready:
    """All rows where these are few, else the first one, which stands for all."""
    row = _rows(case)
    if case.numel <= LOOPED:
        return Ready(lambda: torch.stack([row(k)[k] for k in range(case.numel)]))
    remark = f"extrapolated: one row, times N = {case.numel:,}"
    return Ready(lambda: row(0)[:1], lambda: remark, answers=1 / case.numel)


def _batched(case: Case) -> Ready:
    """Rows in batches, by `is_grads_batched`."""
    if case.numel > LOOPED:
        raise Refusal(f"not for N > {LOOPED:,}")
    xs = _point(case)
    flat = _flat(grad(case.func(*xs), xs, create_graph=True))

    def call() -> Tensor:
        parts = []
        for start in range(0, case.numel, CHUNK):
            seeds = torch.eye(case.numel, dtype=flat.dtype)[start : start + CHUNK]
            rows = grad(flat, xs, seeds, retain_graph=True, is_grads_batched=True)
            parts.append(torch.cat([r.flatten(1) for r in rows], 1).diagonal(start))
        return torch.cat(parts)

    return Ready(call)


def _hand(case: Case) -> Ready:
    if case.hand is None:
        raise Refusal("no closed form")
    return Ready(partial(case.hand, *case.inputs))


def _point(case: Case) -> tuple[Tensor, ...]:
    return tuple(x.clone().requires_grad_() for x in case.inputs)


def _flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


def _rows(case: Case):
    """The function from k to row k, from one graph of the gradient."""
    xs = _point(case)
    gradient = grad(case.func(*xs), xs, create_graph=True)
    sizes = [x.numel() for x in xs]

    def row(k: int) -> Tensor:
        i = 0
        while k >= sizes[i]:
            k, i = k - sizes[i], i + 1
        entry = gradient[i].view(-1)[k]
        parts = grad(entry, xs, retain_graph=True, allow_unused=True, materialize_grads=True)
        return _flat(parts)

    return row


def expected(case: Case) -> list[Tensor]:
    """By the loop over rows where these are few, else the closed form."""
    way = _loop if case.numel <= LOOPED else _hand
    return read(way(case).call())


def read(value: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """One entry a row."""
    return [_flat(value if isinstance(value, tuple) else (value,)).unsqueeze(1)]


def verdicts(case: str, results: Results) -> list[Verdict]:
    """Of the separable function at most four gradients, linearization included."""
    if case != SEPARABLE:
        return []
    cost = ratio(results, "linearize, diagonal", "gradient")
    claim = f"at most {TARGET} gradients, func included"
    return [at_most(case, claim, cost, TARGET, "gradients")]


SEPARABLE = "separable, N = 1,000,000"

QUESTION = Question(
    "diagonal",
    "Diagonal of the Hessian",
    ("gradient", "gradients"),
    {
        SEPARABLE: lambda dtype, quick: separable(dtype),
        "per-sample MLP, 1,024 x 16": lambda dtype, quick: per_sample(dtype),
        "logistic, 2,048 x 1,024": lambda dtype, quick: logistic(dtype),
        "MLP 32-64-10, B = 128": lambda dtype, quick: mlp(dtype, widths=(32, 64, 10)),
    },
    (
        Peer("gradient", "floor", _gradient, "func and its backward"),
        Peer("op.diagonal()", "ours", _fixed, "at a fixed point"),
        Peer("linearize, diagonal", "ours", _scratch, "from scratch"),
        Peer("loop over rows", "stock", _loop, "double backward at a fixed point"),
        Peer("batched rows", "stock", _batched, "the same by is_grads_batched"),
        Peer("hand", "hand", _hand, "closed form"),
    ),
    expected,
    read,
    verdicts,
)
