"""Pooling: linear once the places of the maxima are known."""

import torch
import torch.nn.functional as F

from . import POSITIVE, Scenario

aten = torch.ops.aten


def pool(name, node, fn, shape=(2, 2, 4, 5)):
    return Scenario(name, (f"{node}Backward0",), fn, (shape,))


def of_backward(node, fn, shape):
    """The backward of a pooling, where a gradient was differentiated: a node of its own."""
    return Scenario(f"{node} backward", (f"{node}BackwardBackward0",), fn, (shape,))


AVERAGE, AVERAGE3, SOLID = "AvgPool2D", "AvgPool3D", (2, 2, 3, 4, 5)

AVERAGES = (
    pool("avg_pool2d", AVERAGE, lambda x: F.avg_pool2d(x, 2)),
    pool("avg_pool2d, padded", AVERAGE, lambda x: F.avg_pool2d(x, (3, 2), 2, 1)),
    pool("avg_pool2d, ceiled", AVERAGE, lambda x: F.avg_pool2d(x, 2, ceil_mode=True)),
    pool(
        "avg_pool2d, padding not counted",
        AVERAGE,
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    ),
    pool("avg_pool2d with a divisor", AVERAGE, lambda x: F.avg_pool2d(x, 2, divisor_override=3)),
    pool("avg_pool2d of one image", AVERAGE, lambda x: F.avg_pool2d(x, 2), (2, 4, 4)),
    pool("avg_pool2d, oblong", AVERAGE, lambda x: F.avg_pool2d(x, (2, 3), (1, 3)), (2, 1, 4, 6)),
    pool("avg_pool1d", AVERAGE, lambda x: F.avg_pool1d(x, 2), (2, 3, 6)),
    Scenario(
        "lp_pool2d",
        ("AvgPool2DBackward0", "PowBackward0"),
        lambda x: F.lp_pool2d(x, 3, 2),
        ((2, 2, 4, 5),),
        (POSITIVE,),
    ),
    pool("avg_pool3d", AVERAGE3, lambda x: F.avg_pool3d(x, (1, 2, 2)), SOLID),
    pool("avg_pool3d, padded", AVERAGE3, lambda x: F.avg_pool3d(x, 2, 2, 1), SOLID),
    pool(
        "avg_pool3d, ceiled, padding not counted",
        AVERAGE3,
        lambda x: F.avg_pool3d(x, 2, 2, 1, ceil_mode=True, count_include_pad=False),
        SOLID,
    ),
    pool(
        "avg_pool3d of one image with a divisor",
        AVERAGE3,
        lambda x: F.avg_pool3d(x, (2, 3, 2), 1, divisor_override=5),
        (2, 3, 4, 3),
    ),
    *(
        pool(f"adaptive_avg_pool2d to {size}", "AdaptiveAvgPool2D", fn, (2, 2, 4, 6))
        for size in ((2, 3), (3, 4), (5, 7), (1, 3))
        for fn in [lambda x, size=size: F.adaptive_avg_pool2d(x, size)]
    ),
    *(
        pool(f"adaptive_avg_pool3d to {size}", "AdaptiveAvgPool3D", fn, (2, 2, 2, 4, 3))
        for size in ((2, 2, 1), (1, 3, 2))
        for fn in [lambda x, size=size: F.adaptive_avg_pool3d(x, size)]
    ),
    pool(
        "adaptive_avg_pool2d of one image",
        "AdaptiveAvgPool2D",
        lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
        (2, 4, 4),
    ),
    pool(
        "adaptive_avg_pool1d", "AdaptiveAvgPool2D", lambda x: F.adaptive_avg_pool1d(x, 4), (2, 3, 6)
    ),
)

MAXIMUM, MAXIMUM3 = "MaxPool2DWithIndices", "MaxPool3DWithIndices"


def fixed(*shape):
    """Numbers in place of those that a fractional pooling would draw."""
    return torch.linspace(0.1, 0.9, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


MAXIMA = (
    pool("max_pool2d", MAXIMUM, lambda x: F.max_pool2d(x, 2)),
    pool("max_pool2d, overlapping", MAXIMUM, lambda x: F.max_pool2d(x, 3, 1)),
    pool("max_pool2d, padded", MAXIMUM, lambda x: F.max_pool2d(x, 3, 2, 1)),
    pool("max_pool2d, dilated", MAXIMUM, lambda x: F.max_pool2d(x, 2, 1, dilation=2)),
    pool("max_pool2d of one image", MAXIMUM, lambda x: F.max_pool2d(x, 2), (2, 4, 4)),
    pool(
        "max_pool2d, tied",
        MAXIMUM,
        lambda x: F.max_pool2d(x - x.detach() + torch.round(x.detach()), 2),
    ),
    pool("max_pool2d, ceiled", MAXIMUM, lambda x: F.max_pool2d(x, 2, ceil_mode=True)),
    pool("max_pool1d", MAXIMUM, lambda x: F.max_pool1d(x, 2), (2, 3, 6)),
    pool("max_pool3d", MAXIMUM3, lambda x: F.max_pool3d(x, 2), SOLID),
    pool("max_pool3d, overlapping, padded", MAXIMUM3, lambda x: F.max_pool3d(x, 3, 1, 1), SOLID),
    pool("max_pool3d of one image", MAXIMUM3, lambda x: F.max_pool3d(x, 2, 1), (2, 3, 2, 3)),
    pool(
        "adaptive_max_pool2d",
        "AdaptiveMaxPool2D",
        lambda x: F.adaptive_max_pool2d(x, (3, 4)),
    ),
    pool(
        "adaptive_max_pool1d", "AdaptiveMaxPool2D", lambda x: F.adaptive_max_pool1d(x, 4), (2, 3, 6)
    ),
    pool(
        "adaptive_max_pool3d",
        "AdaptiveMaxPool3D",
        lambda x: F.adaptive_max_pool3d(x, (2, 3, 1)),
        SOLID,
    ),
    pool(
        "fractional_max_pool2d",
        "FractionalMaxPool2D",
        lambda x: F.fractional_max_pool2d(
            x, 2, output_size=(2, 3), _random_samples=fixed(*x.shape[:2], 2).to(x.dtype)
        ),
    ),
    pool(
        "fractional_max_pool3d",
        "FractionalMaxPool3D",
        lambda x: F.fractional_max_pool3d(
            x, 2, output_size=(1, 2, 3), _random_samples=fixed(*x.shape[:2], 3).to(x.dtype)
        ),
        SOLID,
    ),
)


def places(*shape, of, twice=False):
    """Indices into ``of`` elements for each leading index; all different, or some twice."""
    space = torch.Size(shape[2:]).numel()
    index = torch.arange(torch.Size(shape).numel()).reshape(*shape[:2], space)
    index = index * 7 % of
    if twice:
        index[..., 1] = index[..., 0]
    return index.reshape(shape)


def unpool2d(x, twice=False):
    return aten.max_unpool2d(x, places(*x.shape, of=4 * 5, twice=twice), (4, 5))


UNPOOLED = (
    pool("max_unpool2d", "MaxUnpool2D", unpool2d, (2, 2, 2, 3)),
    pool("max_unpool2d, onto one place", "MaxUnpool2D", lambda x: unpool2d(x, True), (2, 2, 2, 3)),
    pool(
        "max_unpool2d of one image",
        "MaxUnpool2D",
        lambda x: aten.max_unpool2d(x, places(1, *x.shape, of=20)[0], (4, 5)),
        (2, 2, 3),
    ),
    pool(
        "max_unpool1d",
        "MaxUnpool2D",
        lambda x: F.max_unpool1d(x, places(*x.shape, of=6), 2),
        (2, 2, 3),
    ),
    pool(
        "max_unpool3d",
        "MaxUnpool3D",
        lambda x: F.max_unpool3d(x, places(*x.shape, of=32), 2),
        (2, 2, 1, 2, 2),
    ),
    Scenario(
        "max_pool2d and back",
        ("MaxPool2DWithIndicesBackward0", "MaxUnpool2DBackward0"),
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        ((2, 2, 4, 4),),
    ),
)

# A gradient with respect to images of these sizes, at constant ones.
IMAGES, SOLIDS = (2, 2, 4, 4), (2, 2, 2, 4, 4)


def image(g, shape):
    return torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=g.dtype).sin().reshape(shape)


def averaged(op, shape, *options):
    return lambda g: op(g, image(g, shape), *options)


def greatest(op, shape, places, *options):
    return lambda g: op(g, image(g, shape), *options, places(g))


BACK = (
    of_backward(
        "AvgPool2D",
        averaged(aten.avg_pool2d_backward, IMAGES, [3, 3], [1, 1], [1, 1], False, True, None),
        IMAGES,
    ),
    of_backward(
        "AvgPool3D",
        averaged(aten.avg_pool3d_backward, SOLIDS, [2] * 3, [2] * 3, [0] * 3, False, True, None),
        (2, 2, 1, 2, 2),
    ),
    of_backward(
        "AdaptiveAvgPool2D", averaged(aten._adaptive_avg_pool2d_backward, IMAGES), (2, 2, 3, 2)
    ),
    of_backward(
        "AdaptiveAvgPool3D", averaged(aten._adaptive_avg_pool3d_backward, SOLIDS), (2, 2, 1, 3, 2)
    ),
    of_backward(
        "MaxPool2DWithIndices",
        greatest(
            aten.max_pool2d_with_indices_backward,
            IMAGES,
            lambda g: places(*g.shape, of=16, twice=True),
            *([2, 2], [2, 2], [0, 0], [1, 1], False),
        ),
        (2, 2, 2, 2),
    ),
    of_backward(
        "MaxPool3DWithIndices",
        greatest(
            aten.max_pool3d_with_indices_backward,
            SOLIDS,
            lambda g: places(*g.shape, of=32),
            *([2] * 3, [2] * 3, [0] * 3, [1] * 3, False),
        ),
        (2, 2, 1, 2, 2),
    ),
    of_backward(
        "AdaptiveMaxPool2D",
        greatest(aten.adaptive_max_pool2d_backward, IMAGES, lambda g: places(*g.shape, of=16)),
        (2, 2, 3, 2),
    ),
    of_backward(
        "AdaptiveMaxPool3D",
        greatest(aten.adaptive_max_pool3d_backward, SOLIDS, lambda g: places(*g.shape, of=32)),
        (2, 2, 1, 3, 2),
    ),
    of_backward(
        "FractionalMaxPool2D",
        greatest(
            aten.fractional_max_pool2d_backward,
            IMAGES,
            lambda g: places(*g.shape, of=16),
            *([2, 2], [2, 2]),
        ),
        (2, 2, 2, 2),
    ),
    of_backward(
        "FractionalMaxPool3D",
        greatest(
            aten.fractional_max_pool3d_backward,
            SOLIDS,
            lambda g: places(*g.shape, of=32),
            *([2] * 3, [1, 2, 2]),
        ),
        (2, 2, 1, 2, 2),
    ),
)

SCENARIOS = (*AVERAGES, *MAXIMA, *UNPOOLED, *BACK)
