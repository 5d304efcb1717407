"""Elementwise functions of several tensors."""

import torch
import torch.nn.functional as F

from scenarios import POSITIVE, REAL, Interval, Scenario

AWAY: Interval = (3.0, 5.0)

INF = float("inf")
NAN = float("nan")
ONE_DTYPE = {"mixed dtypes": "the op wants one dtype"}
TIES = ((0, 0), (1, 0), (0, 1), (NAN, 1), (1, NAN))

aten = torch.ops.aten


def numbers(point):
    return tuple(float(e) for e in point)


def several(name, node, fn, *domains, edges=(), mended=(), skips=None, reference=None):
    """A scenario of as many inputs as there are domains."""
    return Scenario(
        name,
        (node,),
        fn,
        ((3, 4),) * len(domains),
        domains,
        elementwise=True,
        edges=tuple(numbers(point) for point in edges),
        mended=tuple((numbers(point), tuple(numbers(row) for row in h)) for point, h in mended),
        reference=reference,
        skips=skips or {},
    )


def binary(name, node, fn, first=REAL, second=REAL, **kwargs):
    return several(name, node, fn, first, second, **kwargs)


def with_number(name, node, fn, domain=REAL, edges=(), mended=(), **kwargs):
    points = [(e,) for e in edges]
    hessians = [((e,), ((h,),)) for e, h in mended]
    return several(name, node, fn, domain, edges=points, mended=hessians, **kwargs)


def checkers(x):
    """A condition on the elements of x that does not depend on their values."""
    return (torch.arange(x.numel(), device=x.device) % 2 == 0).view(x.shape)


SCENARIOS = [
    # ---- linear
    binary("add", "AddBackward0", torch.add),
    binary("add alpha", "AddBackward0", lambda x, y: torch.add(x, y, alpha=2)),
    with_number("add number", "AddBackward0", lambda x: x + 2),
    with_number("add Scalar", "AddBackward1", lambda x: aten.add.Scalar(x, 2, 3)),
    binary("sub", "SubBackward0", torch.sub),
    binary("sub alpha", "SubBackward0", lambda x, y: torch.sub(x, y, alpha=0.5)),
    with_number("sub Scalar", "SubBackward1", lambda x: aten.sub.Scalar(x, 2, 3)),
    binary("rsub", "RsubBackward0", lambda x, y: torch.rsub(x, y, alpha=3)),
    with_number("number minus", "RsubBackward1", lambda x: 2 - x),
    with_number("mul Scalar", "MulBackward1", lambda x: aten.mul.Scalar(x, 3)),
    with_number("div Scalar", "DivBackward1", lambda x: aten.div.Scalar(x, 3)),
    with_number(
        "div Scalar mode", "DivBackward3", lambda x: aten.div.Scalar_mode(x, 3, rounding_mode=None)
    ),
    with_number(
        "div Scalar floor",
        "DivBackward3",
        lambda x: aten.div.Scalar_mode(x, 3, rounding_mode="floor"),
    ),
    binary("lerp number", "LerpBackward0", lambda x, y: torch.lerp(x, y, 0.3), skips=ONE_DTYPE),
    with_number("fill Tensor", "FillBackward1", lambda x: torch.fill(x * 2, x.sum())),
    with_number("fill_ Tensor", "FillBackward3", lambda x: (x * 2).fill_(x.sum())),
    # ---- selection
    binary("where", "WhereBackward0", lambda x, y: torch.where(checkers(x + y), x, y)),
    with_number(
        "where number", "WhereBackward0", lambda x: torch.where(x > 0, x, 2.0), edges=(0, 1, NAN)
    ),
    with_number(
        "masked_fill", "MaskedFillBackward0", lambda x: x.masked_fill(x > 0, 1.0), edges=(0, 1)
    ),
    with_number(
        "masked_fill Tensor", "MaskedFillBackward1", lambda x: x.masked_fill(x > 0, x.sum())
    ),
    binary("maximum", "MaximumBackward0", torch.maximum, edges=TIES),
    binary("minimum", "MinimumBackward0", torch.minimum, edges=TIES),
    binary("fmax", "FmaxBackward0", torch.fmax, edges=TIES),
    binary("fmin", "FminBackward0", torch.fmin, edges=TIES),
    several(
        "clamp Tensor",
        "ClampBackward0",
        torch.clamp,
        (-3, 3),
        (-1.5, -0.5),
        (0.5, 1.5),
        edges=[(0, 0, 1), (1, 0, 1), (0.5, 0, 1), (2, 0, 1), (-1, 0, 1), (0, 1, -1), (0, 0, 0)],
        skips={"broadcast": "PyTorch's gradient by a bound smaller than the input raises"},
    ),
    binary("clamp Tensor below", "ClampBackward0", lambda x, y: x.clamp(min=y), edges=TIES[:3]),
    binary("clamp Tensor above", "ClampBackward0", lambda x, y: x.clamp(max=y), edges=TIES[:3]),
    binary("clamp_min Tensor", "ClampMinBackward1", torch.clamp_min, edges=TIES[:3]),
    binary("clamp_max Tensor", "ClampMaxBackward1", torch.clamp_max, edges=TIES[:3]),
    # ---- piecewise linear
    with_number("remainder number", "RemainderBackward0", lambda x: torch.remainder(x, 0.7)),
    binary("remainder", "RemainderBackward1", torch.remainder, REAL, POSITIVE, edges=[(1, -0.3)]),
    with_number("fmod number", "FmodBackward0", lambda x: torch.fmod(x, 0.7)),
    binary("fmod", "FmodBackward1", torch.fmod, REAL, POSITIVE, edges=[(-1, 0.3)]),
    binary(
        "copysign",
        "CopysignBackward0",
        torch.copysign,
        edges=[(1, -0.0), (-1, 2)],
        mended=[((0, -1), ((0, 0), (0, 0)))],
    ),
    with_number(
        "copysign number",
        "CopysignBackward1",
        lambda x: torch.copysign(x, -1),
        edges=(1,),
        mended=((0, 0),),
    ),
    binary(
        "nextafter", "NextafterBackward0", torch.nextafter, edges=[(0, 0), (0, 1)], skips=ONE_DTYPE
    ),
    # ---- products and quotients
    binary("mul", "MulBackward0", torch.mul, edges=[(0, 0), (0, INF), (2, 3)]),
    with_number("mul number", "MulBackward0", lambda x: x * 3, edges=(0, INF)),
    with_number("mul by itself", "MulBackward0", lambda x: x * x, edges=(0,)),
    with_number(
        "mul integers", "MulBackward0", lambda x: x * torch.arange(1, x.numel() + 1).view(x.shape)
    ),
    binary(
        "div", "DivBackward0", torch.div, REAL, POSITIVE, edges=[(1, 0), (0, 0), (0, 2), (2, INF)]
    ),
    with_number("div by number", "DivBackward0", lambda x: x / 3, edges=(0,)),
    with_number("div by itself", "DivBackward0", lambda x: x / x, POSITIVE, edges=(0,)),
    with_number(
        "div number by", "DivBackward0", lambda x: torch.full_like(x, 2) / x, POSITIVE, edges=(-1,)
    ),
    with_number(
        "div by integers",
        "DivBackward0",
        lambda x: x / torch.arange(3, x.numel() + 3).view(x.shape),
    ),
    binary(
        "div mode", "DivBackward2", lambda x, y: torch.div(x, y, rounding_mode=None), REAL, POSITIVE
    ),
    binary(
        "div floor",
        "DivBackward2",
        lambda x, y: torch.div(x, y, rounding_mode="floor"),
        AWAY,
        POSITIVE,
    ),
    binary(
        "div trunc",
        "DivBackward2",
        lambda x, y: torch.div(x, y, rounding_mode="trunc"),
        AWAY,
        POSITIVE,
    ),
    several(
        "addcmul",
        "AddcmulBackward0",
        lambda s, x, y: torch.addcmul(s, x, y, value=2),
        REAL,
        REAL,
        REAL,
    ),
    several(
        "addcdiv",
        "AddcdivBackward0",
        lambda s, x, y: torch.addcdiv(s, x, y, value=2),
        REAL,
        REAL,
        POSITIVE,
        edges=[(0, 0, 1)],
        mended=[((1, 1, 0), ((0, 0, 0), (0, 0, -INF), (0, -INF, INF)))],
    ),
    several(
        "lerp", "LerpBackward1", torch.lerp, REAL, REAL, REAL, edges=[(0, 1, 0.5)], skips=ONE_DTYPE
    ),
    binary(
        "prelu",
        "PreluKernelBackward0",
        aten._prelu_kernel,
        edges=[(0, 0.5), (-1, 0.5)],
        skips=ONE_DTYPE,
    ),
    Scenario("prelu module", ("PreluKernelBackward0",), F.prelu, ((3, 4), (4,))),
    # ---- powers
    binary(
        "pow",
        "PowBackward1",
        torch.pow,
        POSITIVE,
        REAL,
        edges=[(0, -1), (-1, 2), (1, 1)],
        mended=[
            ((0, 2), ((2, 0), (0, 0))),
            ((0, 3), ((0, 0), (0, 0))),
            ((0, 1), ((0, -INF), (-INF, 0))),
            ((1, 0), ((0, 1), (1, 0))),
        ],
    ),
    with_number("pow of number", "PowBackward2", lambda x: 3**x, edges=(0, -INF)),
    with_number("pow of one", "PowBackward2", lambda x: 1**x, edges=(0,)),
    with_number(
        "pow of zero",
        "PowBackward2",
        lambda x: 0**x,
        POSITIVE,
        mended=((0, 0), (1, 0)),
        reference=lambda x: 0 * x,  # for x > 0
    ),
    # ---- angles and lengths
    binary(
        "atan2",
        "Atan2Backward0",
        torch.atan2,
        edges=[(0, 1), (1, 0), (0, -1)],
        mended=[((0, 0), ((0, 0), (0, 0)))],
    ),
    binary("hypot", "HypotBackward0", torch.hypot, edges=[(0, 1), (0, 0), (3, 4)]),
    # ---- logarithms
    binary("xlogy", "XlogyBackward0", torch.xlogy, REAL, POSITIVE, edges=[(0, 1), (1, 0)]),
    with_number(
        "xlogy of number", "XlogyBackward1", lambda x: torch.xlogy(2, x), POSITIVE, edges=(0, 1)
    ),
    with_number("xlogy with number", "XlogyBackward2", lambda x: torch.xlogy(x, 3), edges=(0,)),
    with_number(
        "xlogy with zero", "XlogyBackward2", lambda x: torch.xlogy(x, 0), (0, 0), edges=(1,)
    ),
    binary(
        "xlog1py",
        "SpecialXlog1PyBackward0",
        torch.special.xlog1py,
        REAL,
        POSITIVE,
        edges=[(0, 0), (1, -1)],
    ),
    with_number(
        "xlog1py of number",
        "SpecialXlog1PyBackward1",
        lambda x: torch.special.xlog1py(2, x),
        POSITIVE,
        edges=(0, -1),
    ),
    with_number(
        "xlog1py with number",
        "SpecialXlog1PyBackward2",
        lambda x: torch.special.xlog1py(x, 3),
        edges=(0,),
    ),
    with_number(
        "xlog1py with minus one",
        "SpecialXlog1PyBackward2",
        lambda x: torch.special.xlog1py(x, -1),
        (0, 0),
        (1,),
    ),
    binary(
        "logaddexp",
        "LogaddexpBackward0",
        torch.logaddexp,
        edges=[(0, 0), (40, 0)],
        mended=[((0, 800), ((0, 0), (0, 0)))],
    ),
    binary("logaddexp2", "Logaddexp2Backward0", torch.logaddexp2, edges=[(0, 0), (40, 0)]),
    binary("ldexp", "LdexpBackward0", torch.ldexp, edges=[(0, 2), (1, -3)]),
]
