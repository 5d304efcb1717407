"""Pooling: linear once the places of the maxima are known."""

import torch
import torch.nn.functional as F

from . import Scenario


def pool(name, node, fn, shape=(2, 2, 4, 5)):
    return Scenario(name, (node,), fn, (shape,))


AVERAGE, MAXIMUM = "AvgPool2DBackward0", "MaxPool2DWithIndicesBackward0"

SCENARIOS = (
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
    pool("avg_pool2d, oblong", AVERAGE, lambda x: F.avg_pool2d(x, (2, 3), (1, 3)), (2, 1, 4, 6)),
    pool("avg_pool1d", AVERAGE, lambda x: F.avg_pool1d(x, 2), (2, 3, 6)),
    pool("max_pool2d, ceiled", MAXIMUM, lambda x: F.max_pool2d(x, 2, ceil_mode=True)),
    pool("max_pool1d", MAXIMUM, lambda x: F.max_pool1d(x, 2), (2, 3, 6)),
)
