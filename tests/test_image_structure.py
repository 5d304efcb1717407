"""Structure of what acts on images, by counts: batch and channels stay tied."""

import pytest
import torch
import torch.nn.functional as F
from test_structure import all_native, explained, randn

pytestmark = pytest.mark.ours

MIXED = {
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 3),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 3),
    "bilinear": lambda x: F.interpolate(x, size=(5, 6), mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "nearest, thrice": lambda x: F.interpolate(x, scale_factor=3),
    "unfold": lambda x: F.unfold(x, 3, padding=1),
    "grid_sample": lambda x: F.grid_sample(x, grid(x.shape[0], 3), align_corners=False),
}

APART = {
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "avg_pool2d, the rest left out": lambda x: F.avg_pool2d(x, 3),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest-exact": lambda x: F.interpolate(x, scale_factor=4, mode="nearest-exact"),
    "unfold": lambda x: F.unfold(x, 2, stride=2),
    "fold": lambda x: F.fold(x.flatten(2), 8, 2, stride=2),
    "glu": lambda x: F.glu(x, 1),
}


def grid(batch, n):
    points = torch.linspace(-0.9, 0.8, n, dtype=torch.float64)
    plane = torch.stack(torch.meshgrid(points, points.square(), indexing="xy"), -1)
    return plane.expand(batch, n, n, 2)


@pytest.mark.parametrize("op", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("axis", [0, 1], ids=["batch", "channels"])
def test_images_that_do_not_meet_stay_apart(op, axis):
    def f(x):
        return op(x.tanh()).sin().sum()

    small, large = [2, 2, 4, 4], [2, 2, 4, 4]
    large[axis] = 6
    few, many = explained(f, randn(*small)), explained(f, randn(*large))
    assert not many.autograd_ops
    assert many.core_elements <= 3 * few.core_elements  # not 9: linear in how many there are


@pytest.mark.parametrize("op", APART.values(), ids=APART)
def test_pixels_side_by_side_stay_apart(op):
    report = explained(lambda x: op(x).sin().sum(), randn(2, 4, 4, 4))
    assert all_native(report) and report.gemms == 0


def test_the_points_of_a_grid_stay_apart():
    x = randn(2, 3, 4, 4)

    def f(g):
        return F.grid_sample(x, g.tanh(), align_corners=False).sin().sum()

    few, many = explained(f, randn(2, 2, 3, 2)), explained(f, randn(2, 6, 3, 2))
    assert all_native(many)
    assert many.core_elements <= 3 * few.core_elements
