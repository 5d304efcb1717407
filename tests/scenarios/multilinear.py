"""Cross products, sums of products of three tensors, and the exponential of a matrix."""

import torch
import torch.nn.functional as F

from . import Scenario


def cross(case: str, fn, *shapes: tuple[int, ...]) -> Scenario:
    return Scenario(f"cross{case}", ("LinalgCrossBackward0",), fn, shapes)


def trilinear(case: str, fn, *shapes: tuple[int, ...]) -> Scenario:
    return Scenario(f"bilinear{case}", ("TrilinearBackward0",), fn, shapes)


def powers(a: torch.Tensor, count: int = 24) -> torch.Tensor:
    """The exponential as a sum: torch's own has second derivatives, but no tests of them."""
    total = term = torch.eye(a.shape[-1], dtype=a.dtype).expand(a.shape)
    for k in range(1, count):
        term = term @ a / k
        total = total + term
    return total


SCENARIOS = (
    cross(" of vectors", torch.linalg.cross, (3,), (3,)),
    cross(" along the first axis", lambda a, b: torch.linalg.cross(a, b, dim=0), (3, 2), (3, 2)),
    cross(" along a middle axis", lambda a, b: torch.cross(a, b, dim=1), (2, 3, 2), (2, 3, 2)),
    cross(", broadcast", torch.linalg.cross, (2, 1, 3), (1, 4, 3)),
    cross(" with a function of itself", lambda a: torch.linalg.cross(a, a * a), (2, 3)),
    trilinear("", F.bilinear, (2, 3), (2, 4), (2, 3, 4)),
    trilinear(" with bias", F.bilinear, (2, 3), (2, 2), (2, 3, 2), (2,)),
    trilinear(" of batches", F.bilinear, (2, 2, 2), (2, 2, 3), (2, 2, 3)),
    trilinear(
        " form of three",
        lambda a, b, c: torch._trilinear(a, b, c, [1], [0], [], [1]),
        (2, 3),
        (4, 3),
        (2, 4, 3),
    ),
    *(
        Scenario(
            f"matrix_exp of {shape}",
            ("LinalgMatrixExpBackward0",),
            torch.linalg.matrix_exp,
            (shape,),
            reference=powers,
        )
        for shape in ((3, 3), (2, 2, 2), (1, 1))
    ),
    Scenario(
        "matrix_power", ("MmBackward0",), lambda a: torch.linalg.matrix_power(a, 5), ((3, 3),)
    ),
)
