"""Normalisation layers.

The references are written out: from the third derivative on torch takes the statistics that its
layers save for constants, and is wrong.
"""

import torch
import torch.nn.functional as F

from . import Scenario
from .attention import NO_BACKWARD, STAND_INS

EPS = 1e-3


def normalised(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return (x - x.mean(axes, True)) * (x.var(axes, correction=0, keepdim=True) + EPS).rsqrt()


def affine(h: torch.Tensor, w: torch.Tensor | None, b: torch.Tensor | None) -> torch.Tensor:
    h = h if w is None else h * w
    return h if b is None else h + b


def per_channel(p: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    return p if p is None else p.reshape(-1, *[1] * (x.dim() - 2))


# ---- over the last axes --------------------------------------------------------------------------


def layer(axes: int = 1, bias_only: bool = False):
    def arrange(x, w=None, b=None):
        w, b = (None, w) if bias_only else (w, b)
        return x, x.shape[x.dim() - axes :], w, b

    def fn(*inputs):
        return F.layer_norm(*arrange(*inputs), EPS)

    def reference(*inputs):
        x, shape, w, b = arrange(*inputs)
        return affine(normalised(x, tuple(range(-len(shape), 0))), w, b)

    return fn, reference


LAYER = tuple(
    Scenario(f"layer_norm{case}", ("NativeLayerNormBackward0",), fn, shapes, reference=reference)
    for case, (fn, reference), shapes in (
        ("", layer(), ((4, 4),)),
        (", weighted", layer(), ((4, 4), (4,))),
        (" with bias", layer(), ((4, 4), (4,), (4,))),
        (" with bias only", layer(bias_only=True), ((4, 4), (4,))),
        (" of two axes", layer(2), ((2, 3, 3), (3, 3), (3, 3))),
        (" of all axes", layer(2), ((4, 4), (4, 4))),
        (" of a vector", layer(), ((4,), (4,), (4,))),
        (" of one element", layer(), ((3, 1),)),
    )
)

RMS = tuple(
    Scenario(f"rms_norm{case}", ("RsqrtBackward0",), fn, shapes)
    for case, fn, shapes in (
        ("", lambda x: F.rms_norm(x, x.shape[-1:]), ((4, 4),)),
        (", weighted", lambda x, w: F.rms_norm(x, w.shape, w, EPS), ((4, 4), (4,))),
    )
)


# ---- over groups of channels ---------------------------------------------------------------------


def group(groups: int):
    def fn(x, w=None, b=None):
        return F.group_norm(x, groups, w, b, EPS)

    def reference(x, w=None, b=None):
        h = normalised(x.reshape(x.shape[0], groups, -1), (-1,)).reshape(x.shape)
        return affine(h, per_channel(w, x), per_channel(b, x))

    return fn, reference


def group_statistics(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.native_group_norm(
        x.contiguous(), None, None, x.shape[0], x.shape[1], x.shape[2], 2, EPS
    )


def group_statistics_reference(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    g = x.reshape(x.shape[0], 2, -1)
    return (
        normalised(g, (-1,)).reshape(x.shape),
        g.mean(-1),
        (g.var(-1, correction=0) + EPS).rsqrt(),
    )


GROUP = (
    *(
        Scenario(
            f"group_norm{case}", ("NativeGroupNormBackward0",), fn, shapes, reference=reference
        )
        for case, (fn, reference), shapes in (
            ("", group(2), ((2, 4, 4),)),
            (" with bias", group(2), ((2, 4, 4), (4,), (4,))),
            (" of images", group(1), ((2, 2, 3, 3), (2,))),
            (" of vectors", group(2), ((8, 8), (8,))),
        )
    ),
    Scenario(
        "group_norm and its statistics",
        ("NativeGroupNormBackward0",),
        group_statistics,
        ((2, 4, 4),),
        reference=group_statistics_reference,
    ),
    *(
        Scenario(
            f"the {what} of group_norm",
            ("NativeGroupNormBackward0",),
            lambda x, i=i: group_statistics(x)[i],
            ((2, 4, 4),),
            reference=lambda x, i=i: group_statistics_reference(x)[i],
            skips={"create_graph": "torch's own backward gives the statistics alone no gradient"},
        )
        for i, what in ((1, "mean"), (2, "reciprocal deviation"))
    ),
)


# ---- over the batch ------------------------------------------------------------------------------


def running(x: torch.Tensor) -> torch.Tensor:
    return torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype)


def batch(training: bool, op=None):
    def fn(x, w=None, b=None):
        mean, var = running(x), running(x).flip(0)
        if op:
            return op(x, w, b, mean, var)
        return F.batch_norm(x, mean, var, w, b, training=training, eps=EPS)

    def reference(x, w=None, b=None):
        if training:
            h = normalised(x, (0, *range(2, x.dim())))
        else:
            mean, var = per_channel(running(x), x), per_channel(running(x).flip(0), x)
            h = (x - mean) * (var + EPS).rsqrt()
        return affine(h, per_channel(w, x), per_channel(b, x))

    return fn, reference


def instance_reference(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return affine(normalised(x, (-1,)), per_channel(w, x), per_channel(b, x))


aten = torch.ops.aten
LEGIT = aten._native_batch_norm_legit
UPDATING = aten._batch_norm_with_update
BATCH = tuple(
    Scenario(f"batch_norm{case}", (node,), fn, shapes, reference=reference)
    for case, node, (fn, reference), shapes in (
        (", training", "NativeBatchNormBackward0", batch(True), ((4, 4),)),
        (", training, with bias", "NativeBatchNormBackward0", batch(True), ((3, 4, 4), (4,), (4,))),
        (", training, of images", "NativeBatchNormBackward0", batch(True), ((2, 2, 2, 2), (2,))),
        (", evaluation", "NativeBatchNormBackward0", batch(False), ((4, 4),)),
        (
            ", evaluation, with bias",
            "NativeBatchNormBackward0",
            batch(False),
            ((3, 4, 4), (4,), (4,)),
        ),
        (
            " as instance_norm",
            "NativeBatchNormBackward0",
            (lambda x, w, b: F.instance_norm(x, None, None, w, b, eps=EPS), instance_reference),
            ((2, 3, 3), (3,), (3,)),
        ),
        (
            ", aten's for export",
            "NativeBatchNormLegitBackward0",
            batch(True, lambda x, w, b, mean, var: LEGIT(x, w, b, mean, var, True, 0.1, EPS)[0]),
            ((4, 4), (4,)),
        ),
        (
            ", aten's for export, no running statistics",
            "NativeBatchNormLegitBackward1",
            batch(True, lambda x, w, b, mean, var: LEGIT.no_stats(x, w, b, True, 0.1, EPS)[0]),
            ((4, 4), (4,)),
        ),
        (
            ", aten's, updating",
            "BatchNormWithUpdateBackward0",
            batch(True, lambda x, w, b, mean, var: UPDATING(x, w, b, mean, var, 0.1, EPS)[0]),
            ((4, 4), (4,), (4,)),
        ),
        (
            ", aten's, updating, of images",
            "BatchNormWithUpdateBackward0",
            batch(True, lambda x, w, b, mean, var: UPDATING(x, w, b, mean, var, 0.1, EPS)[0]),
            ((2, 2, 2, 2), (2,)),
        ),
        (
            ", aten's for export, evaluation",
            "NativeBatchNormLegitNoTrainingBackward0",
            batch(
                False,
                lambda x, w, b, mean, var: aten._native_batch_norm_legit_no_training(
                    x, w, b, mean, var, 0.1, EPS
                )[0],
            ),
            ((4, 4), (4,)),
        ),
    )
)


# ---- the kernels of GPUs, of which the CPU has stand-ins -----------------------------------------


def gpu_batch_norm(x, w, b, mean, var, training, momentum, eps):
    y, *saved = torch.native_batch_norm(x, w, b, mean, var, training, momentum, eps)
    saved = saved if training else [x.new_empty(0)] * 2
    return y, *saved


def gpu_rms_norm(x, shape, w, eps):
    r = (x.square().mean(tuple(range(-len(shape), 0)), True) + eps).rsqrt()
    return x * r if w is None else x * r * w, r


def cudnn_batch_norm(x, *args):
    return *gpu_batch_norm(x, *args), x.new_empty(0)


STAND_INS.impl("cudnn_batch_norm", cudnn_batch_norm, "CPU")
STAND_INS.impl("miopen_batch_norm", gpu_batch_norm, "CPU")


def of_gpu(op, training: bool):
    def call(x, w, b, mean, var):
        w = torch.ones_like(mean) if w is None else w
        return op(x.contiguous(), w, b, mean, var, training, 0.1, EPS)[0]

    return batch(training, call)


def fused_rms(axes: int):
    def fn(x, w=None):
        with torch.library._scoped_library("aten", "IMPL") as library:  # F.rms_norm calls it too
            library.impl("_fused_rms_norm", gpu_rms_norm, "CPU")
            return aten._fused_rms_norm(x, x.shape[x.dim() - axes :], w, EPS)[0]

    def reference(x, w=None):
        return affine(x * (x.square().mean(tuple(range(-axes, 0)), True) + EPS).rsqrt(), w, None)

    return fn, reference


GPU = tuple(
    Scenario(name, (node,), fn, shapes, reference=reference, skips=NO_BACKWARD, on="cpu")
    for name, node, (fn, reference), shapes in (
        *(
            (f"{library}'s batch_norm{case}", f"{library}BatchNormBackward0", fns, shapes)
            for library, op in (
                ("Cudnn", aten.cudnn_batch_norm),
                ("Miopen", aten.miopen_batch_norm),
            )
            for case, fns, shapes in (
                (", training", of_gpu(op, True), ((4, 4),)),
                (", training, with bias", of_gpu(op, True), ((2, 4, 4), (4,), (4,))),
                (", evaluation", of_gpu(op, False), ((3, 4, 4), (4,), (4,))),
            )
        ),
        ("fused rms_norm", "FusedRmsNormBackward0", fused_rms(1), ((4, 4),)),
        ("fused rms_norm, weighted", "FusedRmsNormBackward0", fused_rms(1), ((4, 4), (4,))),
        ("fused rms_norm of two axes", "FusedRmsNormBackward0", fused_rms(2), ((2, 3, 3), (3, 3))),
    )
)


# ---- of weights ----------------------------------------------------------------------------------


def weight_norm(dim: int):
    def fn(v, g):
        return torch._weight_norm(v, g, dim)

    def reference(v, g):
        gone = tuple(a for a in range(v.dim()) if a != dim % v.dim())
        return v * g / v.square().sum(gone, True).sqrt()

    return fn, reference


WEIGHT = tuple(
    Scenario(
        f"weight_norm, {case}",
        ("WeightNormInterfaceBackward0",),
        fn,
        shapes,
        reference=reference,
    )
    for case, (fn, reference), shapes in (
        ("rows", weight_norm(0), ((4, 4), (4, 1))),
        ("columns", weight_norm(1), ((3, 4), (1, 4))),
        ("filters", weight_norm(0), ((3, 2, 2), (3, 1, 1))),
        ("the last of three axes", weight_norm(2), ((2, 2, 3), (1, 1, 3))),
    )
)

SCENARIOS = (*LAYER, *RMS, *GROUP, *BATCH, *GPU, *WEIGHT)
