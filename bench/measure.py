"""Agreement first, then interleaved rounds.

Each round times every peer once, in an order shuffled anew, so that drift of a shared machine
falls on all of them alike. A sample is as many calls as fill `SAMPLE_SECONDS`, after as many
untimed ones: a peer never pays for the caches or spinning threads of the one before it.
"""

from __future__ import annotations

import gc
import math
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, Problem, flatten
from bench.peers import Peer, Ready, Refusal

SAMPLE_SECONDS = 1e-3
LONG_SECONDS = 0.05  # a sample longer than this needs no untimed calls before it
ONCE_SECONDS = 1.5  # a peer slower than this is called once
FIRST_SECONDS = 90.0  # preparing plus first call, compilation included
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-9}


@dataclass
class Result:
    """What one peer did on one case; times in seconds."""

    peer: str
    samples: list[float] = field(default_factory=list)
    calls: int = 0  # per sample
    answers: float = 1  # that a call gives
    first: float | None = None
    error: float | None = None
    note: str = ""
    refusal: str = ""
    wrong: bool = False  # refused because its values disagree
    peak: int | None = None  # bytes beyond the inputs
    chunk_bytes: int = 0  # of the engine's widest point, by its own count

    @property
    def median(self) -> float:
        """Median seconds of one call; NaN where nothing was timed."""
        return statistics.median(self.samples) if self.samples else math.nan

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile; the median twice where there are too few samples."""
        if len(self.samples) < 3:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high


def reference(problem: Problem, size: int, device: str) -> Tensor:
    """The Hessian by the stock row loop in float64, `[N, N]`."""
    case = problem.make(size, torch.float64, device)
    return flatten(torch.autograd.functional.hessian(case.func, case.args), case.inputs)


def disagreement(value: Tensor, expected: Tensor) -> float:
    """Largest error, each element against the scale of its row and column.

    The scale of row i is its largest expected magnitude; an element is held against the geometric
    mean of its row's and column's. So a wrong block shows however small it is beside the others.
    """
    rows = expected.abs().amax(1).clamp_min(1e-12 * expected.abs().max() + 1e-300)
    scale = rows.sqrt()
    return ((value - expected).abs() / (scale[:, None] * scale)).max().item()


def measure(
    problem: Problem,
    size: int,
    peers: list[Peer],
    *,
    rounds: int,
    budget: float,
    dtype: torch.dtype,
    device: str,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Times the peers on one case; those that disagree or refuse come back with the reason.

    Args:
        problem: the family.
        size: N, one of its sizes.
        peers: who takes part.
        rounds: samples wanted from each peer; slow ones give fewer.
        budget: seconds that one peer may take over all rounds, once it has given three samples.
        dtype: of the inputs.
        device: of the inputs.
        tell: hears what is going on, for a progress bar.

    Returns:
        One result per peer, in order.
    """
    case = problem.make(size, dtype, device)
    tell("reference")
    expected = reference(problem, size, device) if any(p.kind != "floor" for p in peers) else None
    results, ready = {}, {}
    for peer in peers:
        tell(peer.name)
        result, prepared = agree(peer, case, expected)
        results[peer.name] = result
        if prepared is not None:
            size_sample(prepared, result, peer.compiles)
            ready[peer.name] = prepared
    interleave(ready, results, rounds, budget, tell)
    return list(results.values())


def agree(peer: Peer, case: Case, expected: Tensor | None) -> tuple[Result, Ready | None]:
    """:func:`admit` with the whole Hessian as what is computed."""
    return admit(peer, case, lambda value: disagreement(flatten(value, case.inputs), expected))


def admit(peer: Peer, case: Case, error_of: Callable[[Any], float]) -> tuple[Result, Ready | None]:
    """Prepares and calls a peer once; nothing is ready to be timed unless its values agree.

    Args:
        peer: who takes part; a floor is not held against anything.
        case: what it is prepared for.
        error_of: the scaled error of what the peer's call returns.

    Returns:
        The result so far, and what can be called; `None` if the result says why it cannot.
    """
    result = Result(peer.name)
    try:
        prepared, value = _first_call(peer, case, result)
        if peer.kind != "floor":
            _compare(value, case, error_of, result)
        result.note, result.chunk_bytes = prepared.describe(), prepared.chunk_bytes()
        result.answers = prepared.answers
    except Refusal as refusal:
        result.refusal = str(refusal)
        return result, None
    return result, prepared


def _first_call(peer: Peer, case: Case, result: Result) -> tuple[Ready, Any]:
    start = time.perf_counter()
    try:
        with _alarm(FIRST_SECONDS):
            prepared = peer.prepare(case)
            start = start if peer.compiles else time.perf_counter()
            value = prepared.call()
            _wait(case)
    except Refusal:
        raise
    except _Expired:
        raise Refusal(f"no result within {FIRST_SECONDS:.0f} s") from None
    except Exception as error:  # a peer may fail in any way; the run goes on
        raise Refusal(brief(error)) from error
    result.first = time.perf_counter() - start
    return prepared, value


def _compare(value: Any, case: Case, error_of: Callable[[Any], float], result: Result) -> None:
    try:
        result.error = error_of(value)
    except Exception as error:
        result.wrong = True
        raise Refusal(f"wrong shape: {brief(error)}") from error
    limit = TOLERANCE[case.inputs[0].dtype]
    result.wrong = not result.error <= limit
    if result.wrong:
        raise Refusal(f"disagrees: scaled error {result.error:.1e} over {limit:.0e}")


def size_sample(prepared: Ready, result: Result, compiles: bool) -> None:
    """Decides how many calls make a sample; a very slow peer's only sample is taken here."""
    slow = result.first > 2 * ONCE_SECONDS and not compiles  # imports pass for slowness
    estimate = result.first if slow else _time(prepared.call, 1)
    if estimate > ONCE_SECONDS:
        result.samples, result.calls = [estimate], 1
        return
    if estimate < LONG_SECONDS:
        estimate = min(estimate, *(_time(prepared.call, 1) for _ in range(3)))
    result.calls = max(1, math.ceil(SAMPLE_SECONDS / estimate))


def interleave(
    ready: dict[str, Ready],
    results: dict[str, Result],
    rounds: int,
    budget: float,
    tell: Callable[[str], None],
) -> None:
    """Rounds in which every peer that is ready gives one sample to its result."""
    order = [name for name in ready if not results[name].samples]
    spent = dict.fromkeys(order, 0.0)
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            tell(f"round {turn + 1} of {rounds}")
            shuffle(order)
            for name in order:
                # Slow peers sit rounds out evenly: their share grows with the turn.
                if turn >= 3 and spent[name] > budget * (turn + 1) / rounds:
                    continue
                call, result = ready[name].call, results[name]
                start = time.perf_counter()
                if not result.samples or result.samples[-1] < LONG_SECONDS:
                    _time(call, result.calls)
                result.samples.append(_time(call, result.calls))
                spent[name] += time.perf_counter() - start
    finally:
        gc.enable()


def _time(call: Callable[[], Any], calls: int) -> float:
    _synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _synchronize()
    return (time.perf_counter() - start) / calls


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _wait(case: Case) -> None:
    if case.inputs[0].is_cuda:
        torch.cuda.synchronize()


def brief(error: BaseException) -> str:
    """Type and first telling line of an error, short enough for a cell."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."


class _Expired(BaseException):
    """Time is up; not an `Exception`, so that no peer's own handler swallows it."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises `_Expired` in the main thread after so many seconds; elsewhere does nothing."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def expire(*_: Any) -> None:
        raise _Expired

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
