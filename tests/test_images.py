"""What acts on images: batch and channels stay tied, by counts; and gradients differentiated."""

import pytest
import torch
import torch.nn.functional as F
from test_structure import all_native, explained, randn

import hesse

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


# ---- gradients differentiated --------------------------------------------------------------------

OPS = {
    **MIXED,
    "nearest, twice": APART["nearest"],
    "max_pool3d": lambda x: F.max_pool3d(x, (1, 3, 2), 1),
    "avg_pool3d": lambda x: F.avg_pool3d(x, (1, 3, 2), 1),
    "antialiased": lambda x: F.interpolate(x, size=(3, 3), mode="bicubic", antialias=True),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "glu": APART["glu"],
    "prelu": lambda x: F.prelu(x, torch.linspace(0.1, 0.4, x.shape[1], dtype=x.dtype)),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "celu": F.celu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
}
del OPS["grid_sample"]  # the second derivative of its own is left to autograd


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_the_square_of_a_gradient_runs_natively(op):
    def f(x):
        y = x.clone() if x.requires_grad else x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(op(y).sin().sum(), y, create_graph=True)
        return gradient.square().sum()

    report = explained(f, randn(1, 2, 4, 4))
    assert not report.autograd_ops


# ---- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [4, -1])
def test_an_index_outside_of_the_image_is_refused(place):
    index = torch.full((1, 1, 1, 1), place)
    with pytest.raises(RuntimeError, match="invalid max index"):
        hesse.hessian(lambda x: F.max_unpool2d(x, index, 2).sin().sum(), randn(1, 1, 1, 1))


def test_an_index_that_was_changed_since_is_refused():
    def f(x):
        index = torch.zeros(1, 1, 1, 1, dtype=torch.long)
        y = F.max_unpool2d(x, index, 2)
        index.fill_(99)
        return y.sin().sum()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hesse.hessian(f, randn(1, 1, 1, 1))
