"""The machine that a run is measured on: waiting for it, its memory, its rates, its name."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# What the rates are measured on: bytes that are copied, and the side of a square product.
COPIED, SIDE = {"cpu": 2**28, "cuda": 2**32}, {"cpu": 1536, "cuda": 8192}
REPEATS = 5


def synchronize() -> None:
    """Waits for all work that was queued on a device, if there is one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def release() -> None:
    """Gives back device memory that nobody holds, after a peer that failed or is done."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def set_up(device: str) -> None:
    """Before a run on a GPU: TF32 off, also for convolutions; JAX takes memory as it needs it."""
    if device == "cpu":
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")


def peak(call: Callable[[], Any]) -> tuple[int, Any]:
    """Most bytes that torch's allocator held on the device during a call, and its result.

    Beyond what it held before: 0 where there is no device.
    """
    if not torch.cuda.is_initialized():
        return 0, call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


@dataclass(frozen=True)
class Rates:
    """What the machine was seen to do, in this process.

    Attributes:
        bytes: per second, read and written, of a copy within its memory.
        flops: per second, of a square matrix product, by dtype.
    """

    bytes: float
    flops: dict[torch.dtype, float]


def rates(device: str) -> Rates:
    """Measures a large copy, and a large product in float32 and in float64, on random numbers."""
    flops = {dtype: _product_rate(device, dtype) for dtype in (torch.float32, torch.float64)}
    measured = Rates(_copy_rate(device), flops)
    release()
    return measured


def _copy_rate(device: str) -> float:
    source = torch.rand(COPIED[device] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED[device] / _shortest(lambda: target.copy_(source))


def _product_rate(device: str, dtype: torch.dtype) -> float:
    side = SIDE[device]
    a, b = (torch.rand(side, side, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _shortest(lambda: torch.mm(a, b, out=out))


def _shortest(call: Callable[[], Any]) -> float:
    """Least seconds of a call, after two untimed ones: a ceiling is the best that was seen."""
    seconds = []
    for turn in range(REPEATS + 2):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        if turn >= 2:
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def facts(device: str) -> dict[str, Any]:
    """The processor or chip by name; on a device also driver, CUDA and that TF32 is off."""
    if device == "cpu":
        return {"processor": _processor()}
    tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return {
        "processor": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "driver": nvidia("driver_version"),
        "tf32": "on" if tf32 else "off",
    }


def nvidia(field: str) -> str | None:
    """What `nvidia-smi` says of the first chip; `None` where there is none."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.splitlines()[0].strip()
    return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")
