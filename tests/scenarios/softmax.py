"""Softmax and its logarithm."""

import torch
import torch.nn.functional as F

from . import Scenario

inf = float("inf")


def masked(x: torch.Tensor) -> torch.Tensor:
    """``x`` with one -inf per row."""
    return torch.where(torch.arange(x.shape[-1]) == 1, -inf, x)


PLAIN = tuple(
    Scenario(f"{name}{case}", (node,), fn, (shape,))
    for name, node, op in (
        ("softmax", "SoftmaxBackward0", F.softmax),
        ("log_softmax", "LogSoftmaxBackward0", F.log_softmax),
    )
    for case, shape, fn in (
        ("", (3, 4), lambda x, op=op: op(x, -1)),
        (" of axis 0", (3, 4), lambda x, op=op: op(x, 0)),
        (" of axis 1 of 3", (2, 3, 2), lambda x, op=op: op(x, 1)),
        (" of a scalar", (), lambda x, op=op: op(x, 0)),
        (" of one element", (3, 1), lambda x, op=op: op(x, 1)),
        (" to float64", (3, 4), lambda x, op=op: op(x, 1, dtype=torch.float64)),
        (
            " of large numbers",
            (3, 4),
            lambda x, op=op: op(x + 900 * torch.arange(x.shape[1]).to(x.dtype) - 900, 1),
        ),
        (" beside -inf", (3, 4), lambda x, op=op: op(masked(x), -1)[:, ::2]),
    )
)


def with_a_masked_row(fn):
    """All of the second row is -inf before, and selected away after."""

    def masked(x):
        keep = torch.ones_like(x, dtype=torch.bool)
        keep[0, 2] = False
        keep[1] = False
        return fn(x.masked_fill(~keep, -torch.inf), -1).masked_fill(~keep, 0)

    return masked


SCENARIOS = (
    *PLAIN,
    Scenario(
        "_safe_softmax with a row of -inf",
        ("SafeSoftmaxBackward0",),
        lambda x: torch._safe_softmax(
            torch.where(torch.arange(x.shape[0])[:, None] == 1, -inf, x), -1
        ),
        ((3, 4),),
        reference=lambda x: torch.where(torch.arange(x.shape[0])[:, None] == 1, 0, x.softmax(-1)),
    ),
    Scenario(
        "_masked_softmax",
        ("MaskedSoftmaxBackward0",),
        lambda x: torch._masked_softmax(x, (torch.arange(x.shape[1]) % 3 == 1).expand(x.shape), -1),
        ((4, 4),),
        reference=lambda x: torch.where(torch.arange(x.shape[1]) % 3 == 1, -inf, x).softmax(-1),
        skips={"non-contiguous": "torch reads the memory as if it were contiguous"},
    ),
    Scenario(
        "softmax of a masked row",
        ("SoftmaxBackward0", "MaskedFillBackward0"),
        with_a_masked_row(torch.softmax),
    ),
    Scenario(
        "log_softmax of a masked row",
        ("LogSoftmaxBackward0", "MaskedFillBackward0"),
        with_a_masked_row(torch.log_softmax),
    ),
)
