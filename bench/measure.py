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

from bench.case import Case, flatten
from bench.device import peak, release, synchronize
from bench.peers import Peer, Ready, Refusal
from bench.reference import Sample, Whole

SAMPLE_SECONDS = 1e-3
LONG_SECONDS = 0.05  # a sample longer than this needs no untimed calls before it
ONCE_SECONDS = 1.5  # a peer slower than this is called once
FIRST_SECONDS = 90.0  # preparing plus first call, compilation included
ENOUGH_SECONDS = 4.0  # with less left for compiling nothing is begun
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


@dataclass
class Limits:
    """How much of a run one peer may have.

    Attributes:
        rounds: samples wanted from each peer; slow ones give fewer.
        seconds: for one peer over all rounds of a case, once it has given three samples.
        first: seconds for preparing and the first call of a peer that does not compile.
        compiling: seconds left to the first calls of all compilers of the run; `measure` counts.
    """

    rounds: int
    seconds: float
    first: float = FIRST_SECONDS
    compiling: float = math.inf


def measure(
    case: Case,
    expected: Whole | Sample | None,
    peers: list[Peer],
    limits: Limits,
    *,
    peaks: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Times the peers on one case; those that disagree or refuse come back with the reason.

    Args:
        case: what they compute the Hessian of.
        expected: what they are held against; not needed by floors.
        peers: who takes part.
        limits: how long they may take.
        peaks: read the peak memory of a call off the device's allocator.
        tell: hears what is going on, for a progress bar.

    Returns:
        One result per peer, in order.
    """
    results, ready = {}, {}
    for peer in peers:
        tell(peer.name)
        result, prepared = _start(peer, case, expected, limits)
        results[peer.name] = result
        if prepared is not None:
            with _refused(result):
                if peaks:
                    _read_peak(prepared, result, peer.compiles)
                size_sample(prepared, result, peer.compiles)
                ready[peer.name] = prepared
        if result.refusal:
            release()
    interleave(ready, results, limits, tell)
    return list(results.values())


def _start(
    peer: Peer, case: Case, expected: Whole | Sample | None, limits: Limits
) -> tuple[Result, Ready | None]:
    """:func:`agree`, while there is time for compiling if that is what the peer does."""
    if peer.kind != "compiled":
        return agree(peer, case, expected, limits.first)
    if limits.compiling < ENOUGH_SECONDS:
        return Result(peer.name, refusal="the run's time for compiling is spent"), None
    start = time.perf_counter()
    try:
        return agree(peer, case, expected, min(FIRST_SECONDS, limits.compiling / 2))
    finally:
        limits.compiling -= time.perf_counter() - start


def _read_peak(prepared: Ready, result: Result, compiles: bool) -> None:
    """Of one more call, where that does not take the time of the others."""
    if prepared.held is None:
        result.note = f"{result.note} no peak memory: not in torch's allocator".strip()
    elif result.first > ONCE_SECONDS and not compiles:
        result.note = f"{result.note} no peak memory: over {ONCE_SECONDS:g} s a call".strip()
    else:
        result.peak = prepared.held + peak(prepared.call)[0]


def agree(
    peer: Peer, case: Case, expected: Whole | Sample | None, first: float = FIRST_SECONDS
) -> tuple[Result, Ready | None]:
    """:func:`admit` with the whole Hessian as what is computed."""
    return admit(peer, case, lambda value: expected.error(flatten(value, case.inputs)), first)


def admit(
    peer: Peer, case: Case, error_of: Callable[[Any], float], first: float = FIRST_SECONDS
) -> tuple[Result, Ready | None]:
    """Prepares and calls a peer once; nothing is ready to be timed unless its values agree.

    Args:
        peer: who takes part; a floor is not held against anything.
        case: what it is prepared for.
        error_of: the scaled error of what the peer's call returns.
        first: seconds for preparing and the first call.

    Returns:
        The result so far, and what can be called; `None` if the result says why it cannot.
    """
    result = Result(peer.name)
    try:
        prepared, value = _first_call(peer, case, result, first)
        if peer.kind != "floor":
            _compare(value, case, error_of, result)
        _describe(prepared, result)
    except Refusal as refusal:
        result.refusal = str(refusal)
        return result, None
    return result, prepared


def _first_call(peer: Peer, case: Case, result: Result, limit: float) -> tuple[Ready, Any]:
    start = time.perf_counter()
    try:
        with _alarm(limit):
            prepared = peer.prepare(case)
            start = start if peer.compiles else time.perf_counter()
            value = prepared.call()
            synchronize()
    except Refusal:
        raise
    except _Expired:
        raise Refusal(f"no result within {limit:.0f} s") from None
    except Exception as error:  # a peer may fail in any way; the run goes on
        raise Refusal(brief(error)) from error
    result.first = time.perf_counter() - start
    return prepared, value


def _describe(prepared: Ready, result: Result) -> None:
    result.answers = prepared.answers
    try:
        result.note, result.chunk_bytes = prepared.describe(), prepared.chunk_bytes()
    except Exception as error:  # a report may need more memory than a call; the time counts
        result.note = f"no report: {brief(error)}"


def _compare(value: Any, case: Case, error_of: Callable[[Any], float], result: Result) -> None:
    try:
        result.error = error_of(value)
    except torch.OutOfMemoryError as error:
        raise Refusal("no memory left to compare its values") from error
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
    limits: Limits,
    tell: Callable[[str], None],
) -> None:
    """Rounds in which every peer that is ready gives one sample to its result."""
    order = [name for name in ready if not results[name].samples]
    spent = dict.fromkeys(order, 0.0)
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        for turn in range(limits.rounds):
            tell(f"round {turn + 1} of {limits.rounds}")
            shuffle(order)
            for name in order:
                # Slow peers sit rounds out evenly: their share grows with the turn.
                if turn >= 3 and spent[name] > limits.seconds * (turn + 1) / limits.rounds:
                    continue
                call, result = ready[name].call, results[name]
                start = time.perf_counter()
                with _refused(result):
                    if not result.samples or result.samples[-1] < LONG_SECONDS:
                        _time(call, result.calls)
                    result.samples.append(_time(call, result.calls))
                spent[name] += time.perf_counter() - start
            order = [name for name in order if not results[name].refusal]
    finally:
        gc.enable()


@contextmanager
def _refused(result: Result) -> Iterator[None]:
    """A peer that ran once may fail later, for want of memory say: then it has no time."""
    try:
        yield
    except Exception as error:  # as in its first call
        result.refusal, result.samples = brief(error), []


def _time(call: Callable[[], Any], calls: int) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize()
    return (time.perf_counter() - start) / calls


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
