"""Peak memory of one call on the CPU, in a process of its own.

The child is forked from a server that has torch imported and has computed nothing. It warms the
peer on the problem's smallest size, gives freed memory back, resets the kernel's high-water mark of
its resident set, makes one call at the size in question and reads the mark. What a peer keeps for
later calls counts, so the call is its first at that size; compilers make one before, or else their
own memory would be what is measured.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from bench.measure import brief
from bench.peers import PEERS, Refusal
from bench.problems import PROBLEMS

LIMIT_SECONDS = 120


def peak(problem: str, size: int, peer: str, *, dtype: torch.dtype, threads: int) -> int:
    """Peak bytes of one call of `peer` beyond its inputs, its output included.

    Raises:
        Refusal: with the reason why there is no number.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.memory"])
    here, there = context.Pipe(duplex=False)
    job = (there, problem, size, peer, dtype, threads)
    child = context.Process(target=_child, args=job, daemon=True)
    child.start()
    there.close()
    try:
        if not here.poll(LIMIT_SECONDS):
            raise Refusal(f"no result within {LIMIT_SECONDS} s")
        answer = here.recv()
    except EOFError:
        child.join()
        raise Refusal(f"process ended with {child.exitcode}") from None
    finally:
        child.kill()
        child.join()
    if isinstance(answer, str):
        raise Refusal(answer)
    return answer


def _child(
    answer: Connection,
    problem: str,
    size: int,
    peer: str,
    dtype: torch.dtype,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    try:
        answer.send(_measure(problem, size, peer, dtype))
    except Exception as error:  # whatever it is, the parent prints it
        answer.send(str(error) if isinstance(error, Refusal) else brief(error))


def _measure(problem: str, size: int, peer: str, dtype: torch.dtype) -> int:
    family, way = PROBLEMS[problem], PEERS[peer]
    if not way.compiles:
        way.prepare(family.make(family.sizes[0], dtype, "cpu")).call()
    call = way.prepare(family.make(size, dtype, "cpu")).call
    if way.compiles:
        call()
    gc.collect()
    _give_back()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = call()
    after = _status("VmHWM")
    del result
    return after - before


def _give_back() -> None:
    """Returns freed heap pages to the system, where the C library can."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)[1])
