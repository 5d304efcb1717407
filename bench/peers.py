"""The peers: every way to the Hessian that a user of PyTorch has today, and the floors.

A peer is prepared once per case and then only called. `Refusal` says in words why it cannot run;
the words end up in the table's cell.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch.autograd.functional import hessian as functional_hessian
from torch.func import hessian as func_hessian
from torch.func import jacrev

from bench.captured import capture
from bench.case import Case, array
from bench.device import peak, release, synchronize

CHUNKS = (64, 256)


class Refusal(Exception):
    """A peer does not run on a case; the message is the reason."""


@dataclass(frozen=True)
class Ready:
    """A prepared call, and what is worth knowing about it, asked only once it has agreed.

    Attributes:
        call: computes the Hessian.
        describe: a remark for the report.
        chunk_bytes: what the engine says it holds at its widest point beside the output.
        answers: how many answers one call gives: K products at once, or one row of N.
        held: bytes on the device that are kept between calls; `None` where torch does not know.
    """

    call: Callable[[], Any]
    describe: Callable[[], str] = str
    chunk_bytes: Callable[[], int] = int
    answers: float = 1
    held: int | None = 0


@dataclass(frozen=True)
class Peer:
    """One way to a Hessian.

    Attributes:
        name: as in the table and in `--peers`.
        kind: `ours`, `stock` (eager PyTorch), `compiled`, `captured` (a CUDA graph), `hand` or
            `floor` (not a Hessian at all: one gradient, one write).
        prepare: makes the call for a case, or raises `Refusal`.
        summary: one line for the legend.
        compiles: the first call compiles or records, so that only later calls count.
    """

    name: str
    kind: str
    prepare: Callable[[Case], Ready]
    summary: str
    compiles: bool = False


def _ours() -> ModuleType:
    try:
        import hesse
    except ImportError as error:
        raise Refusal(f"not importable: {error}") from error
    hesse.fallback("error")
    return hesse


def _hesse(case: Case) -> Ready:
    hesse = _ours()

    @cache
    def report() -> Any:
        return hesse.explain(case.func, case.args)

    def describe() -> str:
        routes = ("autograd rule", report().autograd_ops), ("densified", report().densified)
        words = [f"{route}: {', '.join(dict.fromkeys(ops))}" for route, ops in routes if ops]
        return "; ".join([f"chunks: {report().chunks}", *words])

    return Ready(
        partial(hesse.hessian, case.func, case.args), describe, lambda: report().widest_bytes
    )


def _hesse_compile(case: Case) -> Ready:
    hesse = _ours()

    def record() -> Callable[..., Any]:
        run = hesse.compile(case.func, case.args)
        if run.eager is not None:
            raise Refusal(f"runs eagerly: {run.eager}")
        run(case.args)
        return run

    held, run = peak(record)
    return Ready(partial(run, case.args), held=held)


def _functional(case: Case, **flags: Any) -> Ready:
    return Ready(partial(functional_hessian, case.func, case.args, **flags))


def _argnums(case: Case) -> int | tuple[int, ...]:
    return 0 if len(case.inputs) == 1 else tuple(range(len(case.inputs)))


def _torch_func(case: Case) -> Ready:
    return Ready(partial(_forward_over_reverse(case), *case.inputs))


def _rev_rev(case: Case) -> Ready:
    """`jacrev(jacrev)` at whichever chunk size is fastest here, unchunked included."""
    argnums = _argnums(case)
    gradient = jacrev(case.func, argnums)
    chunks = (None, *(size for size in CHUNKS if size < case.numel))
    calls = {
        f"chunk_size={chunk}": partial(jacrev(gradient, argnums, chunk_size=chunk), *case.inputs)
        for chunk in chunks
    }
    name = fastest(calls)
    return Ready(calls[name], lambda: name)


def fastest(calls: dict[str, Callable[[], Any]]) -> str:
    """The name of the call that takes the least time, each called once before.

    A call that does not fit into memory is left out; if none does, the last one's error is raised.
    """
    seconds = {}
    for name, call in calls.items():
        try:
            call()
        except torch.OutOfMemoryError:
            if name == list(calls)[-1] and not seconds:
                raise
            release()
            continue
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        seconds[name] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)


def _forward_over_reverse(case: Case) -> Callable[..., Any]:
    return func_hessian(case.func, _argnums(case))


def _reverse_over_reverse(case: Case) -> Callable[..., Any]:
    argnums = _argnums(case)
    return jacrev(jacrev(case.func, argnums), argnums)


def _compile(case: Case, route: Callable[[Case], Callable[..., Any]]) -> Ready:
    torch._dynamo.reset()
    whole = torch.compile(route(case), fullgraph=True, dynamic=False)
    return Ready(partial(whole, *case.inputs))


def _captured(case: Case, compiled: bool = False) -> Ready:
    if not case.inputs[0].is_cuda:
        raise Refusal("not applicable: CUDA graphs are of a GPU")
    whole = _forward_over_reverse(case)
    if compiled:
        torch._dynamo.reset()
        whole = torch.compile(whole, fullgraph=True, dynamic=False)
        whole(*case.inputs)
    held, replay = peak(lambda: capture(whole, case.inputs))
    return Ready(partial(replay, *case.inputs), held=held)


def _jax(case: Case) -> Ready:
    if case.jax is None:
        raise Refusal("no JAX twin")
    try:
        import jax
    except ImportError as error:
        raise Refusal(f"not importable: {error}") from error
    device = case.inputs[0].device.type
    if jax.default_backend() != {"cuda": "gpu"}.get(device, device):
        raise Refusal(f"JAX has no {device} backend here")
    jax.config.update("jax_enable_x64", case.inputs[0].dtype == torch.float64)
    jax.config.update("jax_default_matmul_precision", "highest")
    run = jax.jit(jax.hessian(case.jax(jax), _argnums(case)))
    inputs = [array(jax, x) for x in case.inputs]
    return Ready(lambda: jax.block_until_ready(run(*inputs)), held=None)


def _hand(case: Case) -> Ready:
    if case.hand is None:
        raise Refusal("no closed form")
    return Ready(partial(case.hand, *case.inputs))


def _gradient(case: Case) -> Ready:
    inputs = tuple(x.detach().clone().requires_grad_() for x in case.inputs)
    return Ready(lambda: torch.autograd.grad(case.func(*inputs), inputs))


def _write(case: Case) -> Ready:
    shape = case.numel, case.numel
    return Ready(lambda: case.inputs[0].new_empty(shape).fill_(1))


_PEERS = (
    Peer("hesse", "ours", _hesse, "hesse.hessian"),
    Peer(
        "hesse.compile", "ours", _hesse_compile, "hesse.compile, calls of the result", compiles=True
    ),
    Peer("loop", "stock", _functional, "torch.autograd.functional.hessian"),
    Peer("vectorize", "stock", partial(_functional, vectorize=True), "... vectorize=True"),
    Peer(
        "vectorize-fwd",
        "stock",
        partial(_functional, vectorize=True, outer_jacobian_strategy="forward-mode"),
        "... vectorize=True, outer_jacobian_strategy='forward-mode'",
    ),
    Peer("torch.func", "stock", _torch_func, "torch.func.hessian"),
    Peer("rev-rev", "stock", _rev_rev, "jacrev(jacrev) at its best chunk_size of None, 64, 256"),
    Peer(
        "compile",
        "compiled",
        partial(_compile, route=_forward_over_reverse),
        "torch.compile(torch.func.hessian), later calls",
        compiles=True,
    ),
    Peer(
        "compile-rev",
        "compiled",
        partial(_compile, route=_reverse_over_reverse),
        "torch.compile(jacrev(jacrev)), later calls",
        compiles=True,
    ),
    Peer(
        "captured",
        "captured",
        _captured,
        "torch.func.hessian in a CUDA graph, copy in, replay, copy out",
        compiles=True,
    ),
    Peer(
        "compile-captured",
        "compiled",
        partial(_captured, compiled=True),
        "torch.compile(torch.func.hessian) in a CUDA graph",
        compiles=True,
    ),
    Peer("jax", "compiled", _jax, "jax.jit(jax.hessian), later calls", compiles=True),
    Peer("hand", "hand", _hand, "closed form in eager PyTorch"),
    Peer("gradient", "floor", _gradient, "one gradient"),
    Peer("write", "floor", _write, "filling N x N"),
)

PEERS: dict[str, Peer] = {peer.name: peer for peer in _PEERS}
