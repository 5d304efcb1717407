"""Inverses, determinants, linear systems and triangular factors."""

import torch

from . import Scenario

Tensor = torch.Tensor


def square(a: Tensor) -> Tensor:
    """Far from singular, not symmetric, and such that LU exchanges rows."""
    return a + 3 * torch.eye(*a.shape[-2:], dtype=a.dtype).flip(0)


def positive(a: Tensor) -> Tensor:
    return a @ a.mT + torch.eye(a.shape[-2], dtype=a.dtype)


def triangle(a: Tensor) -> Tensor:
    """With a diagonal that is safe to divide by; what lies above is not read."""
    return a + 3 * torch.eye(a.shape[-1], dtype=a.dtype)


def solvers(name: str, node: str, fn, *cases, **kwargs) -> list[Scenario]:
    return [Scenario(f"{name}{case}", (node,), fn, shapes, **kwargs) for case, shapes in cases]


PLAIN = (("", ((3, 3),)), (" of a batch", ((2, 2, 2),)), (" of one number", ((1, 1),)))
SYSTEMS = (
    ("", ((3, 3), (3, 2))),
    (" of batches", ((2, 2, 2), (2, 2, 1))),
    (", a batch of matrices", ((3, 2, 2), (2, 2))),
    (", broadcast", ((2, 1, 2, 2), (3, 2, 2))),
)
VECTORS = (
    (" for a vector", ((3, 3), (3,))),
    (" for vectors", ((3, 2, 2), (3, 2))),
)

INVERSES = (
    *solvers("inv", "LinalgInvExBackward0", lambda a: torch.linalg.inv(square(a)), *PLAIN),
    *solvers(
        "solve", "LinalgSolveExBackward0", lambda a, b: torch.linalg.solve(square(a), b), *SYSTEMS
    ),
    *solvers(
        "solve", "LinalgSolveExBackward0", lambda a, b: torch.linalg.solve(square(a), b), *VECTORS
    ),
    *solvers(
        "solve from the right",
        "LinalgSolveExBackward0",
        lambda a, b: torch.linalg.solve(square(a), b.mT, left=False),
        *SYSTEMS,
    ),
    *solvers(
        "tensorsolve",
        "LinalgSolveExBackward0",
        lambda a, b: torch.linalg.tensorsolve(square(a).reshape(2, 2, 2, 2), b),
        ("", ((4, 4), (2, 2))),
    ),
    *solvers(
        "pinv",
        "LinalgPinvBackward0",
        lambda a: torch.linalg.pinv(square(a), rtol=1e-6),
        (" of a tall one", ((4, 2),)),
        (" of a wide one", ((2, 4),)),
        (" of a batch", ((2, 3, 2),)),
    ),
    *solvers(
        "pinv of rank 1",
        "LinalgPinvBackward0",
        lambda a: torch.linalg.pinv(a @ a.mT, rtol=1e-6),
        ("", ((3, 1),)),
    ),
    *solvers(
        "lstsq",
        "LinalgLstsqBackward0",
        lambda a, b: torch.linalg.lstsq(square(a), b, driver="gelsd")[:2],
        ("", ((4, 2), (4, 3))),
        (" of batches", ((2, 3, 2), (2, 3, 2))),
    ),
    *solvers(
        "lstsq without residuals",
        "LinalgLstsqBackward0",
        lambda a, b: torch.linalg.lstsq(square(a), b).solution,
        ("", ((3, 2), (3, 1))),
        (", square", ((2, 2), (2, 1))),
        (", underdetermined", ((2, 3), (2, 2))),
        (" for vectors", ((2, 3, 2), (2, 3))),
    ),
    *solvers(
        "residuals of lstsq",
        "LinalgLstsqBackward0",
        lambda a, b: torch.linalg.lstsq(square(a), b, driver="gelsd").residuals,
        ("", ((4, 2), (4, 3))),
    ),
)

DETERMINANTS = (
    *solvers("det", "LinalgDetBackward0", lambda a: torch.linalg.det(square(a)), *PLAIN),
    *(
        case
        for rank in range(3)
        for case in solvers(
            f"det of rank {rank}",
            "LinalgDetBackward0",
            lambda a, rank=rank: torch.linalg.det(of_rank(a, rank)),
            ("", ((3, 3),)),
            reference=lambda a, rank=rank: by_minors(of_rank(a, rank)),
            skips={
                "create_graph": "NaN: a third derivative where there is no inverse is not known"
            },
        )
    ),
    *solvers(
        "slogdet", "LinalgSlogdetBackward0", lambda a: torch.linalg.slogdet(square(a))[1], *PLAIN
    ),
    *solvers(
        "slogdet and sign",
        "LinalgSlogdetBackward0",
        lambda a: torch.linalg.slogdet(square(a)),
        *PLAIN,
    ),
    *solvers("logdet", "LinalgSlogdetBackward0", lambda a: torch.logdet(positive(a)), *PLAIN),
)


def of_rank(a: Tensor, rank: int) -> Tensor:
    """Of this rank in value, and free to leave it."""
    a = square(a)
    scales = torch.tensor([float(i < rank) for i in range(3)], dtype=a.dtype)
    return a - a.detach() * (1 - scales[:, None])


def by_minors(a: Tensor) -> Tensor:
    """A determinant of order 3 as the polynomial it is."""
    return (a[0] * torch.linalg.cross(a[1], a[2])).sum()


TRIANGULAR = (
    *(
        case
        for upper in (False, True)
        for left in (False, True)
        for unit in (False, True)
        for case in solvers(
            f"solve_triangular{', upper' * upper}{', left' * left}{', unit' * unit}",
            "LinalgSolveTriangularBackward0",
            lambda a, b, upper=upper, left=left, unit=unit: torch.linalg.solve_triangular(
                triangle(a), b if left else b.mT, upper=upper, left=left, unitriangular=unit
            ),
            *(SYSTEMS if upper and not unit else SYSTEMS[:1]),
        )
    ),
    *(
        case
        for upper in (False, True)
        for transpose in (False, True)
        for unit in (False, True)
        for case in solvers(
            f"triangular_solve{', upper' * upper}{', transposed' * transpose}{', unit' * unit}",
            "TriangularSolveBackward0",
            lambda a, b, upper=upper, transpose=transpose, unit=unit: torch.triangular_solve(
                b, triangle(a), upper=upper, transpose=transpose, unitriangular=unit
            ),
            *(SYSTEMS if upper and not unit else SYSTEMS[:1]),
        )
    ),
)

CHOLESKY = (
    *(
        case
        for upper in (False, True)
        for case in (
            *solvers(
                f"cholesky{', upper' * upper}",
                "LinalgCholeskyExBackward0",
                lambda a, upper=upper: torch.linalg.cholesky(positive(a), upper=upper),
                *PLAIN,
            ),
            *solvers(
                f"cholesky, the old one{', upper' * upper}",
                "CholeskyBackward0",
                lambda a, upper=upper: torch.cholesky(positive(a), upper=upper),
                *PLAIN[:2],
            ),
            *solvers(
                f"cholesky_solve{', upper' * upper}",
                "CholeskySolveBackward0",
                lambda a, b, upper=upper: torch.cholesky_solve(
                    b, triangle(a.triu() if upper else a.tril()), upper=upper
                ),
                *SYSTEMS[:3],
            ),
            *solvers(
                f"cholesky_inverse{', upper' * upper}",
                "CholeskyInverseBackward0",
                lambda a, upper=upper: torch.cholesky_inverse(
                    triangle(a.triu() if upper else a.tril()), upper=upper
                ),
                *PLAIN,
            ),
        )
    ),
)

SIDES = (
    *PLAIN,
    (" of a tall one", ((4, 2),)),
    (" of wide ones", ((2, 2, 3),)),
)


def lu_solve(left: bool, adjoint: bool):
    def fn(a: Tensor, b: Tensor) -> Tensor:
        lu, pivots = torch.linalg.lu_factor(square(a))
        return torch.linalg.lu_solve(lu, pivots, b if left else b.mT, left=left, adjoint=adjoint)

    return fn


def unpacked(a: Tensor) -> tuple[Tensor, ...]:
    return torch.lu_unpack(a, torch.ones(*a.shape[:-2], min(a.shape[-2:]), dtype=torch.int32))[1:]


LU = (
    *solvers(
        "lu_factor",
        "LinalgLuFactorExBackward0",
        lambda a: torch.linalg.lu_factor(square(a))[0],
        *SIDES,
    ),
    *solvers("lu", "LinalgLuBackward0", lambda a: torch.linalg.lu(square(a))[1:], *SIDES),
    *solvers("L of lu", "LinalgLuBackward0", lambda a: torch.linalg.lu(square(a))[1], *SIDES[:2]),
    *solvers("U of lu", "LinalgLuBackward0", lambda a: torch.linalg.lu(square(a))[2], *SIDES[:2]),
    *solvers("lu_unpack", "LuUnpackBackward0", unpacked, *SIDES),
    *solvers("U of lu_unpack", "LuUnpackBackward0", lambda a: unpacked(a)[1], *SIDES[:2]),
    *(
        case
        for left in (False, True)
        for adjoint in (False, True)
        for case in solvers(
            f"lu_solve{', left' * left}{', adjoint' * adjoint}",
            "LinalgLuSolveBackward0",
            lu_solve(left, adjoint),
            *SYSTEMS[: 4 if left else 1],
        )
    ),
)

SCENARIOS = (*INVERSES, *DETERMINANTS, *TRIANGULAR, *CHOLESKY, *LU)
