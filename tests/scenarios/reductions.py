"""Sums, norms, variances, extrema, order statistics, products, and their running forms."""

from collections.abc import Callable

import torch

from . import POSITIVE, Scenario

Op = Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]
inf = float("inf")


def reduction(node: str, name: str, fn: Op, **kwargs) -> Scenario:
    return Scenario(name, (node,), fn, **{"shapes": ((3, 4),), **kwargs})


def vanish(x: torch.Tensor, *at: int) -> torch.Tensor:
    """``x`` with exact zeros at these flat places, still differentiable there."""
    mask = torch.zeros(x.numel(), dtype=x.dtype)
    mask[list(at)] = 1
    return x - x.detach() * mask.reshape(x.shape)


def tie(x: torch.Tensor) -> torch.Tensor:
    """``x`` with few distinct values, still differentiable."""
    return x - x.detach() + x.detach().round()


def values(op: Op) -> Op:
    return lambda x: op(x).values


FAR = {"float32": "what is left of the curvature is below the rounding of its terms"}


def running_logsumexp(x: torch.Tensor, axis: int) -> torch.Tensor:
    """``logcumsumexp`` as torch can differentiate it twice also where the cotangent is 0."""
    if x.dim() == 0:
        return x.clone()
    parts = [x.narrow(axis, 0, n + 1).logsumexp(axis) for n in range(x.shape[axis])]
    return torch.stack(parts, axis)


SUMS = (
    reduction("SumBackward0", "sum", lambda x: x.sum()),
    reduction("SumBackward0", "sum of a scalar", lambda x: x.sum(), shapes=((),)),
    reduction("SumBackward1", "sum of axis 0", lambda x: x.sum(0)),
    reduction("SumBackward1", "sum of axis -1, kept", lambda x: x.sum(-1, keepdim=True)),
    reduction("SumBackward1", "sum of two axes", lambda x: x.sum((0, -1)), shapes=((2, 3, 4),)),
    reduction("SumBackward1", "sum of no axes", lambda x: x.sum(()), shapes=((2, 3),)),
    reduction("SumBackward1", "sum of a scalar's axis", lambda x: x.sum(-1), shapes=((),)),
    reduction("SumBackward0", "sum to float64", lambda x: x.sum(dtype=torch.float64)),
    reduction("NansumBackward0", "nansum", lambda x: torch.where(x > 0, x, torch.nan).nansum(1)),
    reduction(
        "NansumBackward0", "nansum of all", lambda x: torch.where(x > 0, x, torch.nan).nansum()
    ),
    reduction(
        "NansumBackward0",
        "nansum of a scalar",
        lambda x: x.nansum(),
        shapes=((),),
        edges=((float("nan"),), (inf,)),
    ),
    reduction("MeanBackward0", "mean", lambda x: x.mean()),
    reduction("MeanBackward1", "mean of axis 1", lambda x: x.mean(1)),
    reduction(
        "MeanBackward1",
        "mean of two axes, kept",
        lambda x: x.mean((-1, 0), keepdim=True),
        shapes=((2, 3, 4),),
    ),
    reduction("TraceBackward0", "trace", lambda x: x.trace()),
    reduction("LogsumexpBackward0", "logsumexp", lambda x: x.logsumexp(1)),
    reduction(
        "LogsumexpBackward0", "logsumexp of all, kept", lambda x: x.logsumexp((0, -1), keepdim=True)
    ),
    reduction(
        "LogsumexpBackward0",
        "logsumexp of a scalar",
        lambda x: x.logsumexp(0),
        shapes=((),),
        edges=((-inf,), (inf,)),
    ),
    reduction(
        "LogsumexpBackward0",
        "logsumexp beside -inf",
        lambda x: torch.where(x > 1.5, -inf, x).logsumexp(1),
    ),
)


vector = torch.linalg.vector_norm


def norms() -> list[Scenario]:
    table = []
    for p in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, inf, -inf, -1.0):
        table += [
            reduction("LinalgVectorNormBackward0", f"vector_norm {p}", lambda x, p=p: vector(x, p)),
            reduction(
                "LinalgVectorNormBackward0",
                f"vector_norm {p} of axis 0",
                lambda x, p=p: vector(x, p, dim=0),
            ),
            reduction(
                "LinalgVectorNormBackward0",
                f"vector_norm {p} of two axes, kept",
                lambda x, p=p: vector(x, p, dim=(0, -1), keepdim=True),
                shapes=((2, 3, 2),),
            ),
            reduction(
                "NormBackward0", f"aten norm {p}", lambda x, p=p: torch.ops.aten.norm.Scalar(x, p)
            ),
            reduction(
                "NormBackward1",
                f"aten norm {p} of axis -1",
                lambda x, p=p: torch.ops.aten.norm.ScalarOpt_dim(x, p, [-1]),
            ),
            reduction(
                "LinalgVectorNormBackward0",
                f"vector_norm {p} of equals",
                lambda x, p=p: vector(x.expand(2), p),
                shapes=((),),
                edges=((0.0,),),
            ),
            Scenario(
                f"dist {p}",
                ("DistBackward0",),
                lambda x, y, p=p: torch.dist(x, y, p),
                ((3, 4), (3, 4)),
                reference=lambda x, y, p=p: vector(x - y, p) if p else (x - y).sum() * 0,
            ),
        ]
    for p in (2.0, 3.0, 4.0):
        table.append(
            reduction(
                "LinalgVectorNormBackward0",
                f"vector_norm {p} with zeros",
                lambda x, p=p: torch.linalg.vector_norm(vanish(x, 0, 5), p, dim=1),
            )
        )
    table += [
        reduction(
            "LinalgVectorNormBackward0",
            "vector_norm of a scalar",
            lambda x: torch.linalg.vector_norm(x),
            shapes=((),),
            edges=((0.0,),),
        ),
        reduction(
            "LinalgVectorNormBackward0",
            "vector_norm to float64",
            lambda x: torch.linalg.vector_norm(x, dtype=torch.float64),
        ),
        reduction(
            "LinalgVectorNormBackward0",
            "vector_norm inf, tied",
            lambda x: torch.linalg.vector_norm(tie(x), inf, dim=1),
        ),
        reduction(
            "NormBackward2",
            "aten norm to float64",
            lambda x: torch.ops.aten.norm.ScalarOpt_dtype(x, 3, dtype=torch.float64),
        ),
        reduction(
            "NormBackward3",
            "aten norm of axis 0 to float64",
            lambda x: torch.ops.aten.norm.ScalarOpt_dim_dtype(
                x, None, [0], True, dtype=torch.float64
            ),
        ),
        Scenario(
            "dist, broadcast",
            ("DistBackward0",),
            lambda x, y: torch.dist(x[:, None], y, 3),
            ((3,), (3,)),
        ),
    ]
    return table


VARIANCES = (
    reduction("VarBackward0", "var", lambda x: x.var()),
    reduction("VarBackward0", "var of axis 0", lambda x: x.var(0)),
    reduction(
        "VarBackward0",
        "var uncorrected, kept",
        lambda x: x.var((0, 2), correction=0, keepdim=True),
        shapes=((2, 3, 4),),
    ),
    reduction("VarBackward0", "var of a constant", lambda x: (x - x.detach()).var(1)),
    reduction("StdBackward0", "std", lambda x: x.std()),
    reduction("StdBackward0", "std of axis 1", lambda x: x.std(-1)),
    reduction(
        "StdBackward0",
        "std corrected by 2",
        lambda x: x.std((0, 2), correction=2, keepdim=True),
        shapes=((2, 3, 4),),
    ),
    reduction(
        "StdBackward0",
        "std of a constant",
        lambda x: (x - x.detach()).std(1),
        reference=lambda x: (x - x.detach()).sum(1) * 0,
    ),
    reduction("VarMeanBackward0", "var_mean", lambda x: torch.var_mean(x)),
    reduction(
        "VarMeanBackward0", "var_mean of axis 1", lambda x: torch.var_mean(x, 1, keepdim=True)
    ),
    reduction("VarMeanBackward0", "mean of var_mean", lambda x: torch.var_mean(x, 0)[1]),
    reduction("StdMeanBackward0", "std_mean", lambda x: torch.std_mean(x)),
    reduction(
        "StdMeanBackward0", "std_mean of axis 1", lambda x: torch.std_mean(x, 1, correction=0)
    ),
    reduction("StdMeanBackward0", "std of std_mean", lambda x: torch.std_mean(x, -1)[0]),
)


def extrema() -> list[Scenario]:
    table = []
    for name, whole, along in (
        ("max", "MaxBackward1", "MaxBackward0"),
        ("min", "MinBackward1", "MinBackward0"),
    ):
        op = getattr(torch, name)
        table += [
            reduction(whole, name, lambda x, op=op: op(x)),
            reduction(whole, f"{name}, tied", lambda x, op=op: op(tie(x))),
            reduction(
                whole,
                f"{name} of a scalar",
                lambda x, op=op: op(x),
                shapes=((),),
                edges=((float("nan"),), (inf,)),
            ),
            reduction(along, f"{name} of axis 0", values(lambda x, op=op: op(x, 0))),
            reduction(
                along,
                f"{name} of axis -1, tied, kept",
                values(lambda x, op=op: op(tie(x), -1, keepdim=True)),
            ),
            reduction(
                along, f"{name} of a scalar's axis", values(lambda x, op=op: op(x, 0)), shapes=((),)
            ),
        ]
    for name, node in (("amax", "AmaxBackward0"), ("amin", "AminBackward0")):
        op = getattr(torch, name)
        table += [
            reduction(node, name, lambda x, op=op: op(x)),
            reduction(node, f"{name} of axis 1, tied", lambda x, op=op: op(tie(x), 1)),
            reduction(
                node,
                f"{name} of two axes, kept",
                lambda x, op=op: op(x, (0, -1), keepdim=True),
                shapes=((2, 3, 4),),
            ),
        ]
    table += [
        reduction("AminmaxBackward0", "aminmax", lambda x: tuple(torch.aminmax(x))),
        reduction(
            "AminmaxBackward0",
            "aminmax of axis 1, tied",
            lambda x: tuple(torch.aminmax(tie(x), dim=-1)),
        ),
        reduction(
            "AminmaxBackward0", "max of aminmax", lambda x: torch.aminmax(x, dim=0, keepdim=True)[1]
        ),
        reduction("MedianBackward0", "median", lambda x: x.median()),
        reduction("MedianBackward0", "median, tied", lambda x: tie(x).median()),
        reduction("MedianBackward1", "median of axis 1", values(lambda x: x.median(1))),
        reduction(
            "NanmedianBackward0",
            "nanmedian",
            lambda x: torch.where(x > 1, torch.nan, x).nanmedian(),
        ),
        reduction("NanmedianBackward1", "nanmedian of axis 1", values(lambda x: x.nanmedian(1))),
        reduction("ModeBackward0", "mode", values(lambda x: tie(x).mode(0, keepdim=True))),
        reduction("KthvalueBackward0", "kthvalue", values(lambda x: x.kthvalue(2, 1))),
        reduction("SortBackward0", "sort", values(lambda x: x.sort(0))),
        reduction("SortBackward0", "sort of nothing", values(lambda x: x[:, :0].sort(0))),
        reduction("SortBackward0", "sort of a scalar", values(lambda x: x.sort(0)), shapes=((),)),
        reduction(
            "SortBackward1",
            "stable sort",
            values(lambda x: tie(x).sort(dim=-1, stable=True, descending=True)),
        ),
        reduction("TopkBackward0", "topk", values(lambda x: x.topk(2, 0))),
        reduction(
            "TopkBackward0",
            "topk of the last axis",
            values(lambda x: x.topk(1)),
            shapes=((2, 3, 4),),
        ),
        reduction("CummaxBackward0", "cummax", values(lambda x: x.cummax(0))),
        reduction("CumminBackward0", "cummin, tied", values(lambda x: tie(x).cummin(-1))),
    ]
    return table


ZEROS = {"no": (), "one": (5,), "two": (1, 2), "three": (0, 1, 2), "scattered": (0, 3, 5, 10)}


def products() -> list[Scenario]:
    table = []
    for name, at in ZEROS.items():
        skips = {"non-contiguous": "the zeros are placed for one layout"} if at else {}
        table += [
            reduction(
                "ProdBackward0",
                f"prod, {name} zeros",
                lambda x, at=at: vanish(x, *at).prod(),
                skips=skips,
            ),
            reduction(
                "ProdBackward1",
                f"prod of axis 1, {name} zeros",
                lambda x, at=at: vanish(x, *at).prod(-1),
                skips=skips,
            ),
            reduction(
                "CumprodBackward0",
                f"cumprod, {name} zeros",
                lambda x, at=at: vanish(x, *at).cumprod(1),
                skips=skips,
            ),
        ]
    table += [
        reduction(
            "ProdBackward0", "prod of a scalar", lambda x: x.prod(), shapes=((),), edges=((0.0,),)
        ),
        reduction("ProdBackward1", "prod of a scalar's axis", lambda x: x.prod(0), shapes=((),)),
        reduction(
            "ProdBackward1",
            "prod of axis 1 of 3, kept",
            lambda x: x.prod(1, keepdim=True),
            shapes=((2, 3, 4),),
        ),
        reduction("ProdBackward0", "prod to float64", lambda x: x.prod(dtype=torch.float64)),
        reduction(
            "CumprodBackward0",
            "cumprod of axis 1 of 3",
            lambda x: x.cumprod(1),
            shapes=((2, 3, 2),),
        ),
        reduction("CumprodBackward0", "cumprod of a scalar", lambda x: x.cumprod(0), shapes=((),)),
    ]
    return table


RUNNING = (
    reduction("CumsumBackward0", "cumsum", lambda x: x.cumsum(0)),
    reduction(
        "CumsumBackward0", "cumsum of axis 1 of 3", lambda x: x.cumsum(-2), shapes=((2, 3, 4),)
    ),
    reduction("CumsumBackward0", "cumsum of a scalar", lambda x: x.cumsum(0), shapes=((),)),
    reduction(
        "CumsumBackward0",
        "cumsum of a long axis",
        lambda x: x.repeat(100).cumsum(0)[::50],
        shapes=((4,),),
    ),
    reduction("CumsumBackward0", "cumsum to float64", lambda x: x.cumsum(1, dtype=torch.float64)),
    *(
        reduction(
            "LogcumsumexpBackward0",
            f"logcumsumexp{case}",
            lambda x, a=before, b=after, d=axis: b(a(x).logcumsumexp(d)),
            reference=lambda x, a=before, b=after, d=axis: b(running_logsumexp(a(x), d)),
            **options,
        )
        for case, axis, before, after, options in (
            ("", 1, torch.clone, torch.clone, {}),
            (" of axis 1 of 3", 1, torch.clone, torch.clone, {"shapes": ((2, 3, 2),)}),
            (" of large numbers", 0, lambda x: x * 100, torch.clone, {"skips": FAR}),
            (" of a scalar", 0, torch.clone, torch.clone, {"shapes": ((),)}),
            (" of logarithms", 0, torch.log, torch.exp, {"domains": (POSITIVE,)}),
        )
    ),
)

SCENARIOS = (*SUMS, *norms(), *VARIANCES, *extrema(), *products(), *RUNNING)
