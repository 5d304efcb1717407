"""What the command lines share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def positive(text: str) -> int:
    """An argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


@contextmanager
def limited_to(threads: int, pinned: bool = True) -> Iterator[None]:
    """Torch takes a thread count; JAX takes every processor it sees, so it is shown as many."""
    before, pinned = torch.get_num_threads(), pinned and hasattr(os, "sched_setaffinity")
    processors = os.sched_getaffinity(0) if pinned else set()
    torch.set_num_threads(threads)
    if pinned:
        os.sched_setaffinity(0, sorted(processors)[:threads])
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if pinned:
            os.sched_setaffinity(0, processors)
