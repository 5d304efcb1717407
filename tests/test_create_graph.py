"""A Hessian made with ``create_graph=True`` is a function with right derivatives of its own."""

import pytest
import torch
from outcome import assert_close
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import hessian as stock
from torch.nn import functional as F

f64 = torch.float64


def rand(*shape):
    return (torch.rand(*shape, dtype=f64) + 0.2).requires_grad_()


def flat(blocks):
    return tuple(b for row in blocks for b in row)


data = torch.linspace(-1, 1, 8, dtype=f64).view(4, 2)

# name -> (func, makers of inputs)
SMOOTH = {
    "cubes": (lambda x: x.pow(3).sum(), [(2, 2)]),
    "cubes of a sum": (lambda x, y: (x + y).pow(3).sum(), [(2, 2), (2, 2)]),
    "a bilinear form": (lambda x, y: (x * y).sum(), [(2,), (2,)]),
    "a linear function": (lambda x: x.sum(), [(3,)]),
    "an unused input": (lambda x, y: (x**3).sum(), [(2,), (3,)]),
    "Rosenbrock": (
        lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(),
        [(4,)],
    ),
    "an MLP": (
        lambda w, b, v: (torch.tanh(data @ w.T + b) @ v).pow(2).mean(),
        [(2, 2), (2,), (2,)],
    ),
    "softmax regression": (
        lambda w: F.cross_entropy(data @ w.T, torch.tensor([0, 1, 2, 1])),
        [(3, 2)],
    ),
    "pair distances": (
        lambda x: ((x[:, None] - x[None]).pow(2).sum(-1) + 1).log().sum(),
        [(3, 2)],
    ),
    "attention": (
        lambda x: ((x @ x.T).softmax(-1) @ x).pow(2).sum(),
        [(2, 2)],
    ),
    "a norm": (lambda x: x.norm() * x.prod(), [(3,)]),
    "in-place ops": (lambda x: (x * 2).exp_().mul(x).sum(), [(3,)]),
    "a convolution": (lambda x: F.conv1d(x, x[:, :, :2]).sin().sum(), [(1, 1, 3)]),
    "a Bessel function": (lambda x: torch.special.i0(x).prod() * x.sum(), [(3,)]),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck_and_gradgradcheck_hold(hessian, name):
    func, shapes = SMOOTH[name]
    inputs = tuple(rand(*shape) for shape in shapes)

    def call(*xs):
        blocks = flat(hessian(func, xs, create_graph=True))
        return tuple(b for b in blocks if b.requires_grad) or xs[0]

    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


@pytest.mark.parametrize("flags", [{}, {"vectorize": True}], ids=["loop", "vectorize"])
def test_gradients_flow_to_what_the_inputs_were_made_from(hessian, flags):
    def outer(x, y):
        (h_xx, h_xy), (_, h_yy) = hessian(
            lambda x, y: (x.sum() * y.sum()).exp(), (x.cos(), y), create_graph=True, **flags
        )
        return h_xx.sin().sum() + h_xy.cos().sum() + h_yy.sum() + x.sum()

    inputs = rand(2), rand(3)
    assert gradcheck(outer, inputs)
    assert gradgradcheck(outer, inputs)


def test_third_derivatives_are_those_of_stock(hessian):
    x = rand(3)

    def func(x):
        return (x.sin() * x.roll(1)).sum().exp()

    thirds = [
        torch.autograd.grad(route(func, x, create_graph=True).pow(2).sum(), x)[0]
        for route in (hessian, stock)
    ]
    assert_close(*thirds)


def test_a_closure_that_requires_grad_gets_its_gradient(hessian):
    w, x = rand(2, 3), rand(3)

    def call(w):
        return hessian(lambda x: torch.tanh(w @ x).sum(), x, create_graph=True)

    assert gradcheck(call, w)
    H = hessian(lambda x: torch.tanh(w @ x).sum(), x)
    assert not H.requires_grad and w.grad is None


def test_the_hessian_of_a_hessian_is_right(hessian):
    def inner(x):
        return hessian(lambda z: (z**4).sum() * z[0], x, create_graph=True).sum()

    x = rand(2).detach()
    assert_close(hessian(inner, x), stock(lambda x: stock_sum(x), x))


def stock_sum(x):
    return stock(lambda z: (z**4).sum() * z[0], x, create_graph=True).sum()


def test_a_constant_block_is_connected_by_a_zero_that_is_never_nan(hessian):
    x = torch.tensor([float("inf"), float("nan"), 1.0], dtype=f64, requires_grad=True)
    H = hessian(lambda x: (x**2).sum(), x, create_graph=True)
    assert H.requires_grad
    if hessian is not stock:
        assert torch.equal(H, 2 * torch.eye(3, dtype=f64))
        (g,) = torch.autograd.grad(H.sum(), x, allow_unused=True)
        assert g is None or torch.equal(g, torch.zeros(3, dtype=f64))


# --- saved helpers that autograd takes for constants: stock's third derivative is wrong -----------


def finite_difference(route, func, x, v, step=1e-4):
    """The derivative of H along v, by central differences of fourth order."""

    def H(t):
        return route(func, (x + t * v).detach())

    return (8 * (H(step) - H(-step)) - (H(2 * step) - H(-2 * step))) / (12 * step)


def directional(route, func, x, v):
    """The same derivative, by differentiating a Hessian made with create_graph."""
    x = x.detach().requires_grad_()
    H = route(func, x, create_graph=True)
    u = torch.ones_like(H, requires_grad=True)
    (g,) = torch.autograd.grad(H, x, u, create_graph=True)
    return torch.autograd.grad(g, u, v)[0]


target = torch.linspace(-1, 1, 6, dtype=f64).view(2, 3)

NORMS = {
    "layer_norm": lambda x: (F.layer_norm(x, (3,)) * target).pow(3).sum(),
    "group_norm": lambda x: (F.group_norm(x.view(1, 2, 3), 1).view(2, 3) * target).pow(3).sum(),
    "batch_norm": lambda x: (F.batch_norm(x, None, None, training=True) * target).pow(3).sum(),
}


@pytest.mark.ours
@pytest.mark.parametrize("name", NORMS)
def test_the_derivative_of_the_hessian_of_a_norm_layer_is_that_of_finite_differences(hessian, name):
    x = torch.tensor([[0.3, 1.0, -0.4], [0.9, -0.2, 0.5]], dtype=f64)
    v = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.4, -1.0]], dtype=f64)
    func = NORMS[name]
    got, want = directional(hessian, func, x, v), finite_difference(stock, func, x, v)
    assert_close(got, want, 1e-6)


@pytest.mark.parametrize("name", NORMS)
def test_the_hessian_of_a_norm_layer_is_that_of_stock(hessian, name):
    x = torch.tensor([[0.3, 1.0, -0.4], [0.9, -0.2, 0.5]], dtype=f64)
    for create_graph in (False, True):
        got = hessian(NORMS[name], x, create_graph=create_graph)
        assert_close(got, stock(NORMS[name], x))


# ---- where stock has no second derivative --------------------------------------------------------


@pytest.mark.parametrize("op", [torch.cdist, lambda x, y: F.pdist(torch.cat([x, y]))])
def test_where_stock_has_no_second_derivative_there_is_a_third(hessian, op):
    def func(x, y):
        return op(x, y).sin().sum()

    def reference(x, y):
        rows = (x[:, None] - y) if op is torch.cdist else (z := torch.cat([x, y]))[i] - z[j]
        return torch.linalg.vector_norm(rows, dim=-1).sin().sum()

    def third(route):
        H = route((x, y))
        return torch.autograd.grad(sum(b.sin().sum() for row in H for b in row), (x, y))

    i, j = torch.triu_indices(5, 5, 1)
    x, y = (torch.randn(n, 3, dtype=f64, requires_grad=True) for n in (3, 2))
    with pytest.raises(NotImplementedError):
        stock(func, (x, y))
    ours = third(lambda xs: hessian(func, xs, create_graph=True))
    wanted = third(lambda xs: stock(reference, xs, create_graph=True))
    torch.testing.assert_close(ours, wanted)
    forward = hessian(func, (x, y), vectorize=True, outer_jacobian_strategy="forward-mode")
    torch.testing.assert_close(forward, hessian(reference, (x, y)))


def test_the_third_derivative_of_a_determinant_that_vanishes_is_not_made_up(hessian):
    x = torch.randn(2, 3, 3, dtype=f64)
    x[0, 2] = x[0, 1]
    x.requires_grad_()
    H = hessian(lambda x: torch.linalg.det(x).sin().sum(), x, create_graph=True)
    assert_close(H, stock(lambda x: torch.linalg.det(x).sin().sum(), x))
    (third,) = torch.autograd.grad(H.sin().sum(), x)
    assert third[0].isnan().all() and third[1].isfinite().all()
