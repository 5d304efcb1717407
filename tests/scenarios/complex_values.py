"""Complex values between real inputs and a real output."""

from collections.abc import Callable

import torch
from torch import Tensor

from . import POSITIVE, Scenario


def both_parts(z: Tensor) -> Tensor:
    """A real output in which real and imaginary parts do not play the same role."""
    pairs = torch.view_as_real(z.resolve_conj())
    return pairs * torch.tensor([1.0, 0.7], dtype=pairs.dtype)


def of_two(name: str, node: str, fn: Callable[[Tensor], Tensor], **kwargs) -> Scenario:
    """Of a complex number made of two real ones."""
    return Scenario(
        name,
        (node, "ComplexBackward0", "ViewAsRealBackward0"),
        lambda x, y: both_parts(fn(torch.complex(x, y))),
        ((3, 4), (3, 4)),
        **kwargs,
    )


def real_of_two(name: str, node: str, fn: Callable[[Tensor], Tensor], **kwargs) -> Scenario:
    """A real function of one."""
    return Scenario(
        name,
        (node, "ComplexBackward0"),
        lambda x, y: fn(torch.complex(x, y)),
        ((3, 4), (3, 4)),
        **kwargs,
    )


def weights(z: Tensor, *shape: int) -> Tensor:
    n = torch.Size(shape).numel()
    steps = torch.linspace(-1.0, 1.0, n, dtype=z.real.dtype).reshape(shape)
    return torch.complex(steps, steps.flip(0) + 0.3)


SCENARIOS = (
    # ---- conversions -----------------------------------------------------------------------------
    of_two("complex", "ComplexBackward0", lambda z: z),
    Scenario(
        "polar",
        ("PolarBackward0", "ViewAsRealBackward0"),
        lambda r, t: both_parts(torch.polar(r, t)),
        ((3, 4), (3, 4)),
        (POSITIVE, (-3.0, 3.0)),
    ),
    Scenario(
        "view_as_complex",
        ("ViewAsComplexBackward0", "ViewAsRealBackward0"),
        lambda x: both_parts(torch.view_as_complex(x) * 1.0),
        ((3, 2),),
        skips={
            "non-contiguous": "needs pairs side by side",
            "expanded": "needs pairs side by side",
            "negated": "needs pairs side by side",
        },
    ),
    Scenario(
        "from a real dtype",
        ("ToCopyBackward0", "ViewAsRealBackward0"),
        lambda x: both_parts(x.to(torch.complex128) * weights(x, 3, 4)),
        skips={"float32": "is complex128"},
    ),
    of_two("conj", "ConjBackward0", lambda z: z.conj() * z * weights(z, 3, 4)),
    of_two("conj_physical", "ConjPhysicalBackward0", lambda z: torch._conj_physical(z) * z),
    # ---- holomorphic -----------------------------------------------------------------------------
    of_two("complex product", "MulBackward0", lambda z: z * z * weights(z, 3, 4)),
    of_two("complex quotient", "DivBackward0", lambda z: weights(z, 3, 4) / z + z / (2 + z)),
    of_two("complex times real", "MulBackward0", lambda z: z * z.real * 2j),
    of_two("complex sum", "AddBackward0", lambda z: (z + z.imag + 1j) * z),
    of_two("complex difference", "SubBackward0", lambda z: (z - z.real * 2) * z),
    of_two("complex reciprocal", "ReciprocalBackward0", lambda z: z.reciprocal()),
    of_two("complex negative", "NegBackward0", lambda z: -z * z),
    of_two("complex power", "PowBackward0", lambda z: z**3 + z**0.5),
    of_two("complex exp", "ExpBackward0", torch.exp),
    of_two("complex log", "LogBackward0", torch.log),
    of_two("complex sin", "SinBackward0", torch.sin),
    of_two("complex cos", "CosBackward0", torch.cos),
    of_two("complex sinh", "SinhBackward0", torch.sinh),
    of_two("complex cosh", "CoshBackward0", torch.cosh),
    of_two("complex tanh", "TanhBackward0", torch.tanh),
    of_two("complex sigmoid", "SigmoidBackward0", torch.sigmoid),
    of_two("complex sqrt", "SqrtBackward0", torch.sqrt),
    of_two("complex rsqrt", "RsqrtBackward0", torch.rsqrt),
    # ---- linear ----------------------------------------------------------------------------------
    of_two("complex sums", "SumBackward1", lambda z: z.sum(0) * z.sum() * z),
    of_two("complex means", "MeanBackward1", lambda z: z.mean(0) * z.mean() * z),
    of_two("complex cat", "CatBackward0", lambda z: torch.cat([z, z * z, z.conj()])),
    of_two("complex stack", "StackBackward0", lambda z: torch.stack([z, z * z], 1)),
    of_two(
        "complex pad", "ConstantPadNdBackward0", lambda z: torch.nn.functional.pad(z, (1, 2)) ** 2
    ),
    of_two(
        "complex views",
        "TransposeBackward0",
        lambda z: z.transpose(0, 1)[1:, None].expand(3, 2, 3) ** 2,
    ),
    # ---- products --------------------------------------------------------------------------------
    of_two("complex mm", "MmBackward0", lambda z: z @ z.T @ weights(z, 3, 2)),
    of_two("complex mm, conjugate", "MmBackward0", lambda z: z @ z.mH),
    of_two("complex bmm", "BmmBackward0", lambda z: torch.bmm(z[:, None], z[:, :, None].conj())),
    of_two("complex mv", "MvBackward0", lambda z: z @ z[0]),
    of_two("complex dot", "DotBackward0", lambda z: torch.dot(z[0], z[1]) * z),
    of_two(
        "complex addmm", "AddmmBackward0", lambda z: torch.addmm(z, z @ z.T, z, beta=2, alpha=0.5)
    ),
    of_two(
        "complex baddbmm",
        "BaddbmmBackward0",
        lambda z: torch.baddbmm(z[:, None], z[:, None], (z[:, :, None] * z[:, None])),
    ),
    # ---- real functions --------------------------------------------------------------------------
    real_of_two("complex abs", "AbsBackward0", torch.abs, edges=()),
    real_of_two("complex angle", "AngleBackward0", torch.angle),
    # ---- without a rule --------------------------------------------------------------------------
    Scenario(
        "complex sgn",
        ("SgnBackward0",),
        lambda x, y: both_parts(torch.complex(x, y).sgn()),
        ((3, 4), (3, 4)),
        driven=True,
    ),
    Scenario(
        "a complex scalar",
        ("AddBackward0",),
        lambda x, y: both_parts(torch.add(torch.complex(x, y), torch.complex(y, x), alpha=2j) ** 2),
        ((3, 4), (3, 4)),
        driven=True,
    ),
)
