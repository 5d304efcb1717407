"""Losses: an elementwise function of prediction and target, then a reduction."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from . import REAL, Interval, Scenario

UNIT: Interval = (0.05, 0.95)
Loss = Callable[..., torch.Tensor]


def ramp(x: torch.Tensor, low: float, high: float, *shape: int) -> torch.Tensor:
    """A constant of x's dtype."""
    n = torch.Size(shape).numel()
    return torch.linspace(low, high, n, dtype=x.dtype).reshape(shape)


def per_reduction(
    node: str, name: str, fn: Loss, domains: tuple[Interval, ...] = (REAL,), **kwargs
) -> list[Scenario]:
    table = [
        Scenario(
            f"{name}, {how}",
            (node,),
            lambda x, t, how=how: fn(x, t, reduction=how),
            ((3, 4), (3, 4)),
            domains,
            **kwargs,
        )
        for how in ("none", "mean", "sum")
    ]
    return [
        *table,
        Scenario(
            f"{name} of a scalar", (node,), lambda x, t: fn(x, t), ((), ()), domains, **kwargs
        ),
    ]


def soft_margin(x: torch.Tensor, t: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return F.soft_margin_loss(x, t.detach().sign(), reduction=reduction)


POINTWISE = (
    *per_reduction("MseLossBackward0", "mse_loss", F.mse_loss),
    *per_reduction(
        "SmoothL1LossBackward0",
        "smooth_l1_loss",
        lambda x, t, **k: F.smooth_l1_loss(x, t, beta=0.7, **k),
    ),
    *per_reduction(
        "HuberLossBackward0", "huber_loss", lambda x, t, **k: F.huber_loss(x, t, delta=0.7, **k)
    ),
    *per_reduction(
        "BinaryCrossEntropyBackward0", "binary_cross_entropy", F.binary_cross_entropy, (UNIT,)
    ),
    *per_reduction(
        "BinaryCrossEntropyWithLogitsBackward0",
        "binary_cross_entropy_with_logits",
        F.binary_cross_entropy_with_logits,
        (REAL, UNIT),
    ),
    *per_reduction(
        "SoftMarginLossBackward0",
        "soft_margin_loss",
        soft_margin,
        skips={"only input 1": "the target is a constant"},
    ),
    Scenario(
        "mse_loss, broadcast",
        ("MseLossBackward0",),
        lambda x, t: torch.ops.aten.mse_loss(x[:, None], t, 2),
        ((3,), (3, 3)),
        reference=lambda x, t: (x[:, None] - t).square().sum(),
    ),
    Scenario(
        "binary_cross_entropy at the bounds",
        ("BinaryCrossEntropyBackward0",),
        lambda x: F.binary_cross_entropy(x, torch.full_like(x, 0.3), reduction="none"),
        ((3, 4),),
        (UNIT,),
        edges=((0.0,), (1.0,)),
    ),
    Scenario(
        "binary_cross_entropy, weighted",
        ("BinaryCrossEntropyBackward0",),
        lambda x, t: F.binary_cross_entropy(x, t, weight=ramp(x, 0.5, 2.0, x.shape[-1])),
        ((3, 4), (3, 4)),
        (UNIT,),
    ),
    *(
        Scenario(
            f"binary_cross_entropy_with_logits, weighted, {how}",
            ("BinaryCrossEntropyWithLogitsBackward0",),
            lambda x, t, how=how: F.binary_cross_entropy_with_logits(
                x,
                t,
                weight=ramp(x, 0.5, 2.0, *x.shape),
                pos_weight=ramp(x, 0.5, 3.0, x.shape[-1]),
                reduction=how,
            ),
            ((3, 4), (3, 4)),
            (REAL, UNIT),
        )
        for how in ("none", "mean")
    ),
    Scenario(
        "binary_cross_entropy_with_logits far out",
        ("BinaryCrossEntropyWithLogitsBackward0",),
        lambda x: F.binary_cross_entropy_with_logits(x * 400, torch.full_like(x, 0.3)),
    ),
    Scenario("l1_loss", ("AbsBackward0",), F.l1_loss, ((3, 4), (3, 4))),
    Scenario(
        "kl_div",
        ("MulBackward0",),
        lambda x, t: F.kl_div(x, t, reduction="batchmean"),
        ((3, 4), (3, 4)),
        (REAL, UNIT),
    ),
    Scenario(
        "kl_div of logarithms",
        ("ExpBackward0",),
        lambda x, t: F.kl_div(x, t, reduction="sum", log_target=True),
        ((3, 4), (3, 4)),
    ),
)


def classes(x: torch.Tensor) -> torch.Tensor:
    """A target for scores [N, C, ...] or [C], some of them class 1."""
    if x.dim() < 2:
        return torch.tensor(1)
    shape = (x.shape[0], *x.shape[2:])
    return torch.arange(torch.Size(shape).numel()).reshape(shape) % x.shape[1]


def nll(node: str, case: str, shape: tuple[int, ...], **kwargs) -> Scenario:
    def fn(x: torch.Tensor) -> torch.Tensor:
        options = dict(kwargs)
        if options.pop("weighted", False):
            options["weight"] = ramp(x, 0.5, 2.0, x.shape[0 if x.dim() == 1 else 1])
        return F.nll_loss(x, classes(x), **options)

    # torch's own backward wants a contiguous x.
    return Scenario(
        f"nll_loss{case}", (node,), fn, (shape,), reference=lambda x: fn(x.contiguous())
    )


CLASSES = (
    *(
        nll(node, f" of {len(shape)} axes, {how}{more}", shape, reduction=how, **options)
        for node, shape in (
            ("NllLossBackward0", (4, 4)),
            ("NllLossBackward0", (4,)),
            ("NllLoss2DBackward0", (2, 3, 2, 3)),
        )
        for how in ("none", "mean", "sum")
        for more, options in (
            ("", {}),
            (", weighted", {"weighted": True}),
            (", ignoring 0", {"weighted": True, "ignore_index": 0}),
        )
    ),
    Scenario(
        "nll_loss of 3 axes",
        ("NllLoss2DBackward0",),
        lambda x: F.nll_loss(x, classes(x)),
        ((2, 3, 3),),
    ),
    *(
        Scenario(
            f"cross_entropy, {how}, {smoothing}",
            ("NllLossBackward0", "LogSoftmaxBackward0"),
            lambda x, how=how, smoothing=smoothing: F.cross_entropy(
                x,
                classes(x),
                weight=ramp(x, 0.5, 2.0, x.shape[1]),
                reduction=how,
                ignore_index=0,
                label_smoothing=smoothing,
            ),
            ((4, 4),),
        )
        for how in ("none", "mean", "sum")
        for smoothing in (0.0, 0.1)
    ),
    Scenario(
        "cross_entropy with probabilities",
        ("LogSoftmaxBackward0",),
        lambda x, t: F.cross_entropy(x, t, label_smoothing=0.2),
        ((3, 4), (3, 4)),
        (REAL, UNIT),
    ),
)

# ---- margins -------------------------------------------------------------------------------------


def reduced(y: torch.Tensor, how: str) -> torch.Tensor:
    return y if how == "none" else getattr(y, how)()


def multi_margin(p: int, how: str, weighted: bool, margin: float) -> tuple[Loss, Loss]:
    def weight(x):
        return ramp(x, 0.5, 2.0, x.shape[-1]) if weighted else None

    def fn(x):
        return F.multi_margin_loss(
            x, classes(x), p=p, margin=margin, weight=weight(x), reduction=how
        )

    def reference(x):
        rows, y = x.reshape(-1, x.shape[-1]), classes(x).reshape(-1)
        own = F.one_hot(y, x.shape[-1]).to(x)
        z = margin + rows - (rows * own).sum(-1, True)
        z = z.relu() if p == 1 else z.relu().square()
        w = 1 if weight(x) is None else weight(x)[y]
        loss = (z * (1 - own)).mean(-1) * w
        return reduced(loss if x.dim() > 1 else loss[0], how)

    return fn, reference


def labels(x: torch.Tensor) -> torch.Tensor:
    """Two classes a sample, one in the second, none in the third."""
    rows = [[2, 0, -1, 1], [1, -1, 2, 0], [-1, 0, 1, 2]]
    return torch.tensor(rows if x.dim() > 1 else rows[0])


def multilabel_margin(how: str) -> tuple[Loss, Loss]:
    def fn(x):
        return F.multilabel_margin_loss(x, labels(x), reduction=how)

    def reference(x):
        losses = []
        for row, y in zip(x.reshape(-1, 4), labels(x).reshape(-1, 4).tolist(), strict=True):
            own = y[: y.index(-1)]
            rest = [c for c in range(4) if c not in own]
            z = [(1 - row[j] + row[c]).relu() for j in own for c in rest]
            losses.append(sum(z, 0 * row[0]) / 4)
        return reduced(torch.stack(losses) if x.dim() > 1 else losses[0], how)

    return fn, reference


MARGINS = (
    *(
        Scenario(
            f"multi_margin_loss, p = {p}, {how}, {len(shape)} axes{', weighted' * weighted}",
            ("MultiMarginLossBackward0",),
            fn,
            (shape,),
            reference=reference,
        )
        for p in (1, 2)
        for how in ("none", "mean", "sum")
        for shape, weighted in (((4, 4), False), ((4, 4), True), ((4,), False))
        for fn, reference in (multi_margin(p, how, weighted, 0.7),)
    ),
    Scenario(
        "multi_margin_loss of a scalar",
        ("MultiMarginLossBackward0",),
        lambda x: F.multi_margin_loss(x, torch.tensor(0)),
        ((),),
        reference=lambda x: 0 * x,
    ),
    *(
        Scenario(
            f"multilabel_margin_loss, {how}, {len(shape)} axes",
            ("MultilabelMarginLossBackward0",),
            fn,
            (shape,),
            reference=reference,
        )
        for how in ("none", "mean", "sum")
        for shape in ((3, 4), (4,))
        for fn, reference in (multilabel_margin(how),)
    ),
)

SCENARIOS = (*POINTWISE, *CLASSES, *MARGINS)
