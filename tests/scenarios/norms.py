"""Normalisation layers."""

import torch
import torch.nn.functional as F

from . import Scenario


def bend(y: torch.Tensor) -> torch.Tensor:
    """Gives each element a slope of its own: the sum of a normalised row is constant."""
    return y * torch.linspace(0.5, 2.0, y.numel(), dtype=y.dtype).reshape(y.shape)


def layer(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (parameters or (x,))[0].shape[-1:], *parameters)


def batch(training: bool):
    def fn(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        running = torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype)
        return F.batch_norm(x, running.clone(), running.clone(), *parameters, training=training)

    return fn


LAYER = tuple(
    Scenario(f"layer_norm{case}", ("NativeLayerNormBackward0",), fn, shapes)
    for case, fn, shapes in (
        ("", layer, ((4, 4),)),
        (", weighted", layer, ((4, 4), (4,))),
        (" with bias", layer, ((4, 4), (4,), (4,))),
        (" with bias only", lambda x, b: F.layer_norm(x, b.shape, None, b), ((4, 4), (4,))),
        (
            " of two axes",
            lambda x, w, b: F.layer_norm(x, w.shape, w, b),
            ((2, 3, 3), (3, 3), (3, 3)),
        ),
        (" of all axes", lambda x: F.layer_norm(x, x.shape), ((3, 4),)),
        (" of a vector", layer, ((4,), (4,), (4,))),
    )
)

GROUP = tuple(
    Scenario(f"group_norm{case}", ("NativeGroupNormBackward0",), fn, shapes)
    for case, fn, shapes in (
        ("", lambda x: F.group_norm(x, 2), ((2, 4, 4),)),
        (" with bias", lambda x, w, b: F.group_norm(x, 2, w, b), ((2, 4, 4), (4,), (4,))),
        (" of images", lambda x, w: F.group_norm(x, 1, w), ((2, 2, 3, 3), (2,))),
        (" of vectors", lambda x, w: F.group_norm(x, 2, w), ((4, 4), (4,))),
    )
)

BATCH = tuple(
    Scenario(f"batch_norm{case}", ("NativeBatchNormBackward0",), fn, shapes)
    for case, fn, shapes in (
        (", training", batch(True), ((4, 4),)),
        (", training, with bias", batch(True), ((3, 4, 4), (4,), (4,))),
        (", training, of images", batch(True), ((2, 2, 2, 2), (2,))),
        (
            ", training, no running statistics",
            lambda x: F.batch_norm(x, None, None, training=True),
            ((4, 4),),
        ),
        (", evaluation", batch(False), ((4, 4),)),
        (", evaluation, with bias", batch(False), ((3, 4, 4), (4,), (4,))),
        (
            " as instance_norm",
            lambda x, w, b: F.instance_norm(x, None, None, w, b),
            ((2, 3, 3), (3,), (3,)),
        ),
    )
)

SCENARIOS = (*LAYER, *GROUP, *BATCH)
