"""Decompositions of matrices, and products of reflectors."""

import torch

from . import Scenario

Tensor = torch.Tensor


def spread(a: Tensor) -> Tensor:
    """With singular values that are well apart."""
    m, n = a.shape[-2:]
    return a / 4 + torch.diag(torch.arange(1.0, 1 + 2 * max(m, n), 2, dtype=a.dtype))[:m, :n]


def symmetric(a: Tensor) -> Tensor:
    return spread(a) + spread(a).mT


def table(name: str, node: str, fn, *shapes: tuple[int, ...], **kwargs) -> list[Scenario]:
    return [Scenario(f"{name} of {shape}", (node,), fn, (shape,), **kwargs) for shape in shapes]


SQUARE = ((3, 3), (2, 2, 2), (1, 1))
TALL, WIDE = ((4, 2), (2, 3, 1)), ((2, 4), (2, 1, 3))

EIGEN = (
    *table("eigh", "LinalgEighBackward0", lambda a: torch.linalg.eigh(symmetric(a)), *SQUARE),
    *table(
        "eigvalsh", "LinalgEighBackward0", lambda a: torch.linalg.eigvalsh(symmetric(a)), *SQUARE
    ),
    *table(
        "vectors of eigh",
        "LinalgEighBackward0",
        lambda a: torch.linalg.eigh(symmetric(a), UPLO="U")[1],
        *SQUARE,
    ),
)

SINGULAR = tuple(
    case
    for name, fn in (
        ("svd", lambda a: torch.linalg.svd(spread(a), full_matrices=False)),
        ("svdvals", lambda a: torch.linalg.svdvals(spread(a))),
        ("U of svd", lambda a: torch.linalg.svd(spread(a), full_matrices=False)[0]),
        ("V of svd", lambda a: torch.linalg.svd(spread(a), full_matrices=False)[2]),
        ("S of full svd", lambda a: torch.linalg.svd(spread(a), full_matrices=True)[1]),
        ("nuclear norm", lambda a: torch.linalg.matrix_norm(spread(a), "nuc")),
    )
    for case in table(name, "LinalgSvdBackward0", fn, *SQUARE, *TALL, *WIDE)
)

QR = tuple(
    case
    for name, fn, shapes in (
        ("qr", lambda a: torch.linalg.qr(spread(a)), (*SQUARE, *TALL, *WIDE)),
        ("Q of qr", lambda a: torch.linalg.qr(spread(a))[0], (*SQUARE, *TALL, *WIDE)),
        ("R of qr", lambda a: torch.linalg.qr(spread(a))[1], (*SQUARE, *TALL, *WIDE)),
        ("complete qr", lambda a: torch.linalg.qr(spread(a), "complete"), (*SQUARE, *WIDE)),
    )
    for case in table(name, "LinalgQrBackward0", fn, *shapes)
)


def reflected(left: bool, transpose: bool):
    return lambda a, t, c: torch.ormqr(a, t, c if left else c.mT, left, transpose)


REFLECTORS = (
    *(
        Scenario(
            f"householder_product of {a} by {t}",
            ("LinalgHouseholderProductBackward0",),
            torch.linalg.householder_product,
            (a, t),
        )
        for a, t in (((3, 3), (3,)), ((4, 3), (2,)), ((2, 3, 2), (2, 2)), ((3, 2), (0,)))
        if t != (0,)
    ),
    *(
        Scenario(
            f"ormqr{', left' * left}{', transposed' * transpose} by {t}",
            ("OrmqrBackward0",),
            reflected(left, transpose),
            (a, t, c),
        )
        for left in (False, True)
        for transpose in (False, True)
        for a, t, c in (((3, 2), (2,), (3, 2)), ((2, 3, 2), (2, 2), (2, 3, 1)))
    ),
)

SCENARIOS = (*EIGEN, *SINGULAR, *QR, *REFLECTORS)
