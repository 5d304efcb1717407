"""Hessian-vector products over the parameters of networks, in gradients per direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import functional, grad
from torch.func import grad as func_grad
from torch.func import jvp, vmap

import hesse
from bench import networks
from bench.case import Draw
from bench.networks import Network
from bench.peers import Peer, Ready, Refusal
from bench.questions.question import Question, Results, at_most, ratio
from bench.targets import Verdict

DIRECTIONS, QUICK = 128, 16
TARGET = 2.2  # gradients; the arithmetic of a product is 2
SEED = 21  # other than that of the networks


@dataclass(frozen=True)
class Directed(Network):
    """A network with directions, `[K, *S]` for each of its inputs."""

    directions: tuple[Tensor, ...] = ()

    def first(self, count: int) -> tuple[Tensor, ...]:
        """So many of the directions."""
        if count > len(self.directions[0]):
            raise Refusal(f"not with {len(self.directions[0])} directions")
        return tuple(v[:count] for v in self.directions)

    @property
    def one(self) -> tuple[Tensor, ...]:
        """The first direction, of the shapes of the inputs."""
        return tuple(v[0] for v in self.directions)

    def point(self) -> tuple[Tensor, ...]:
        """The inputs as leaves that require grad."""
        return tuple(x.clone().requires_grad_() for x in self.inputs)


def directed(network: Network, count: int) -> Directed:
    """The network with `count` directions, the first of which do not depend on how many."""
    draw = Draw(network.inputs[0].dtype, "cpu", SEED)
    rows = [[draw.normal(*x.shape) for x in network.inputs] for _ in range(count)]
    directions = tuple(torch.stack(column) for column in zip(*rows, strict=True))
    shared = {f.name: getattr(network, f.name) for f in fields(network)}
    return Directed(**shared, directions=directions)


def _case(
    make: Callable[[torch.dtype], Network],
) -> Callable[[torch.dtype, bool], Directed]:
    return lambda dtype, quick: directed(make(dtype), QUICK if quick else DIRECTIONS)


def read(value: Any) -> list[Tensor]:
    """`[K, n]` per input."""
    return [p.flatten(1) for p in value]


def expected(case: Directed) -> list[Tensor]:
    """The gradient, differentiated once more along each direction."""
    xs = case.point()
    gradient = grad(case.for_stock(*xs), xs, create_graph=True)
    products = [
        grad(gradient, xs, v, retain_graph=True) for v in zip(*case.directions, strict=True)
    ]
    return read([torch.stack(column) for column in zip(*products, strict=True)])


def _as_rows(product: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(p.unsqueeze(0) for p in product)


def _of_stock(case: Directed, call: Callable[[], Any], answers: int = 1) -> Ready:
    remark = "by sdpa_kernel(MATH): flash attention has no double backward" if case.twice else ""
    return Ready(call, lambda: remark, answers=answers)


def _gradient(case: Directed) -> Ready:
    xs = case.point()
    return Ready(lambda: grad(case.func(*xs), xs))


def _linearize(case: Directed) -> Ready:
    return Ready(lambda: hesse.linearize(case.func, case.inputs))


def _fixed(case: Directed, count: int) -> Ready:
    op = hesse.linearize(case.func, case.inputs)
    v = case.first(count)
    op @ v
    chunks = f"chunks: {op.report().chunks}"
    return Ready(lambda: op @ v, lambda: chunks if count > 1 else "", answers=count)


def _hvp(case: Directed) -> Ready:
    return Ready(lambda: _as_rows(hesse.hvp(case.func, case.inputs, case.one)[1]))


def _functional(case: Directed, product: Callable[..., Any]) -> Ready:
    return _of_stock(case, lambda: _as_rows(product(case.for_stock, case.inputs, case.one)[1]))


def _double_backward(case: Directed) -> Ready:
    xs = case.point()
    gradient = grad(case.for_stock(*xs), xs, create_graph=True)
    return _of_stock(case, lambda: _as_rows(grad(gradient, xs, case.one, retain_graph=True)))


def _batched(case: Directed, count: int) -> Ready:
    xs, v = case.point(), case.first(count)
    gradient = grad(case.for_stock(*xs), xs, create_graph=True)
    call = partial(grad, gradient, xs, v, retain_graph=True, is_grads_batched=True)
    return _of_stock(case, call, count)


def _forward(case: Directed, count: int) -> Ready:
    gradient = func_grad(case.for_stock, tuple(range(len(case.inputs))))
    v = case.first(count)

    def product(*v: Tensor) -> tuple[Tensor, ...]:
        return jvp(gradient, case.inputs, v)[1]

    if count == 1:
        return _of_stock(case, lambda: _as_rows(product(*case.one)))
    return _of_stock(case, lambda: vmap(product)(*v), count)


def verdicts(case: str, results: Results) -> list[Verdict]:
    """K = 1 within 2.2 gradients, and each larger K below the one before."""
    lines = []
    limit, bound = TARGET, f"{TARGET:g}"
    for k in (1, QUICK, DIRECTIONS):
        cost = ratio(results, f"op @ V, K = {k}", "gradient")
        if cost is None and k > 1 and f"op @ V, K = {k}" not in results:
            continue
        claim = f"K = {k}: at most {bound} gradients per direction"
        lines.append(at_most(case, claim, cost, limit, "gradients"))
        if cost is not None:
            limit, bound = cost, f"{cost:.3g} (as K = {k})"
    return lines


QUESTION = Question(
    "hvp",
    "Hessian-vector products, per direction",
    ("gradient", "gradients"),
    {
        "MLP": _case(networks.mlp),
        "ResNet": _case(networks.resnet),
        "GPT, flash": _case(networks.gpt),
        "GPT, math": _case(partial(networks.gpt, math=True)),
    },
    (
        Peer("gradient", "floor", _gradient, "func and its backward"),
        *(
            Peer(f"op @ V, K = {k}", "ours", partial(_fixed, count=k), "at a fixed point")
            for k in (1, QUICK, DIRECTIONS)
        ),
        Peer("linearize", "floor", _linearize, "hesse.linearize alone"),
        Peer("hesse.hvp", "ours", _hvp, "from scratch"),
        Peer("functional.vhp", "stock", partial(_functional, product=functional.vhp), "runs func"),
        Peer("functional.hvp", "stock", partial(_functional, product=functional.hvp), "runs func"),
        Peer("double backward", "stock", _double_backward, "at a fixed point, its graph kept"),
        *(
            Peer(
                f"batched backward, K = {k}",
                "stock",
                partial(_batched, count=k),
                "at a fixed point, is_grads_batched",
            )
            for k in (QUICK, DIRECTIONS)
        ),
        *(
            Peer(
                f"jvp(grad), K = {k}", "stock", partial(_forward, count=k), "torch.func, runs func"
            )
            for k in (1, QUICK)
        ),
    ),
    expected,
    read,
    verdicts,
)
