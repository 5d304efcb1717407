"""Distances between rows, of which torch has second derivatives only in part."""

import math

import torch
import torch.nn.functional as F

from . import Scenario

Tensor = torch.Tensor
ORDERS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, math.inf)


def norm(z: Tensor, p: float) -> Tensor:
    """Over the last axis; where all of it is zero, a constant."""
    if p == 0:
        return (z != 0).sum(-1) + 0 * z.sum(-1)
    size = z.abs()
    if math.isinf(p):
        return size.amax(-1)
    same = size.detach().amax(-1, keepdim=True) == 0
    size = torch.where(same | (z.detach() == 0), torch.zeros_like(z), size)
    apart = torch.where(size.detach() == 0, torch.ones_like(z), size)
    total = (apart**p * (size.detach() != 0)).sum(-1, keepdim=True)
    return torch.where(same, torch.zeros_like(total), torch.where(same, 1.0, total) ** (1 / p))[
        ..., 0
    ]


def between(x: Tensor, y: Tensor, p: float) -> Tensor:
    return norm(x.unsqueeze(-2) - y.unsqueeze(-3), p)


def pairs(x: Tensor, p: float) -> Tensor:
    i, j = torch.triu_indices(x.shape[0], x.shape[0], 1)
    return norm(x[i] - x[j], p)


def cdist(p: float, case: str, *shapes: tuple[int, ...]) -> Scenario:
    return Scenario(
        f"cdist of order {p:g}{case}",
        ("CdistBackward0",),
        lambda x, y: torch.cdist(x, y, p, compute_mode="donot_use_mm_for_euclid_dist"),
        shapes,
        reference=lambda x, y: between(x, y, p),
    )


def twice(x: Tensor, op) -> Tensor:
    """Rows some of which coincide with each other."""
    return op(torch.cat([x, x.detach()[:1]]))


DIRECT = "donot_use_mm_for_euclid_dist"

SCENARIOS = (
    *(cdist(p, "", (3, 4), (2, 4)) for p in ORDERS),
    *(cdist(p, " of batches", (2, 1, 2, 3), (2, 3, 3)) for p in (1.5, 2.0)),
    cdist(2.0, " of one row", (1, 3), (1, 3)),
    *(
        Scenario(
            f"cdist of order {p:g} with itself",
            ("CdistBackward0",),
            lambda x, p=p: torch.cdist(x, x, p, compute_mode=DIRECT),
            ((3, 2),),
            reference=lambda x, p=p: between(x, x, p),
        )
        for p in ORDERS
    ),
    Scenario(
        "cdist with itself, by products",
        ("EuclideanDistBackward0",),
        lambda x, y: torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist"),
        ((2, 3, 4), (2, 2, 4)),
        reference=lambda x, y: between(x, y, 2.0),
    ),
    *(
        Scenario(
            f"pdist of order {p:g}",
            ("PdistBackward0",),
            lambda x, p=p: F.pdist(x, p),
            ((4, 3),),
            reference=lambda x, p=p: pairs(x, p),
        )
        for p in ORDERS
    ),
    *(
        Scenario(
            f"pdist of order {p:g} of rows that coincide",
            ("PdistBackward0",),
            lambda x, p=p: twice(x, lambda z: F.pdist(z, p)),
            ((3, 2),),
            reference=lambda x, p=p: twice(x, lambda z: pairs(z, p)),
        )
        for p in (1.0, 2.0, 3.0)
    ),
    *(
        Scenario(
            f"pdist of {n} row{'s' * (n > 1)}",
            ("PdistBackward0",),
            F.pdist,
            ((n, 3),),
            reference=lambda x: pairs(x, 2.0),
        )
        for n in (2, 3)
    ),
)
