"""Every combination of the four flags does what torch.autograd.functional.hessian does.

The laws cover what PyTorch's tests of that function cover; stock is the oracle throughout.
"""

import warnings

import pytest
import torch
from outcome import FLAGS, assert_close, assert_same, flags_id, outcome
from torch.autograd.functional import hessian as stock
from torch.autograd.functional import hvp, vhp
from torch.testing._internal.logging_tensor import LoggingTensor

f32, f64 = torch.float32, torch.float64


def rand(*shape, dtype=f64):
    return torch.rand(*shape, dtype=dtype) + 0.2


def first(x, *rest):
    """The double of the first input: neither linear nor connected to the others."""
    return (x * x * x).sum()


weight = torch.linspace(-1, 1, 6, dtype=f64).view(2, 3).requires_grad_()

# name -> (func, maker of inputs)
CASES = {
    "cubes": (lambda x: x.pow(3).sum(), lambda: rand(2, 2)),
    "cubes of a sum of two inputs": (lambda x, y: (x + y).pow(3).sum(), lambda: (rand(3), rand(3))),
    "a tuple of one": (lambda x: x.exp().sum(), lambda: (rand(3),)),
    "three matrices and a relu": (
        lambda x, y, z: ((x.relu() * x) @ y.sin() @ z).sum(),
        lambda: (rand(2, 3), rand(3, 4), rand(4, 4)),
    ),
    "an output of shape (1, 1, 1)": (lambda x: x.exp().sum().view(1, 1, 1), lambda: rand(3)),
    "a 0-d input": (lambda x: x.exp(), lambda: rand([])),
    "0-d and 1-element inputs": (lambda x, y: (x * x * y * y).sum(), lambda: (rand([]), rand(1))),
    "an unused input": (first, lambda: (rand(2), rand(3))),
    "an unused first input": (lambda x, y: first(y), lambda: (rand(2), rand(3))),
    "a constant": (lambda x, y: torch.ones([]), lambda: (rand(2), rand(3))),
    "an integer": (lambda x: (x > 0.5).sum(), lambda: rand(3)),
    "a linear function": (lambda x: (3 * x).sum(), lambda: rand(3)),
    "one linear input": (lambda x, y: first(x) + 2 * y.sum(), lambda: (rand(2), rand(3))),
    "a bilinear function": (lambda x, y: (x * y).sum(), lambda: (rand(3), rand(3))),
    "squares": (lambda x: (x**2).sum(), lambda: rand(3)),
    "a product with itself": (lambda x: (x * x).sum(), lambda: rand(3)),
    "a scatter that names places twice": (
        lambda x, y: torch.as_strided_scatter(x * 1.5, y.sin(), (2, 3), (1, 1)).sin().sum(),
        lambda: (rand(6), rand(2, 3)),
    ),
    "a view that names places twice, changed": (
        lambda x: (y := x * 1.5, y.unfold(0, 3, 1).mul_(3))[0].sin().sum(),
        lambda: rand(6),
    ),
    "a part of the input": (lambda x: 3 * x.narrow(0, 0, 3).exp().sum(), lambda: rand(4)),
    "separable in its inputs": (lambda x, y: first(x) + first(y), lambda: (rand(2), rand(3))),
    "detached": (lambda x: x.detach().sum(), lambda: rand(3)),
    "a new leaf": (lambda x: x.detach().clone().requires_grad_().clone().sum(), lambda: rand(3)),
    "a leaf": (lambda x: torch.ones([], dtype=f64, requires_grad=True), lambda: rand(3)),
    "a closure over a tensor that requires grad": (
        lambda x: torch.tanh(weight @ x).sum(),
        lambda: rand(3),
    ),
    "linear with a closure": (lambda x: (weight @ x).sum(), lambda: rand(3)),
    "inputs that require grad": (
        lambda x, y: (x * y.sin()).sum().exp(),
        lambda: (rand(3).requires_grad_(), rand(3).requires_grad_()),
    ),
    "one input that requires grad": (
        lambda x, y: (x * y.sin()).sum().exp(),
        lambda: (rand(3), rand(3).requires_grad_()),
    ),
    "two dtypes": (
        lambda x, y: (x.double() * y).pow(3).sum(),
        lambda: (rand(3, dtype=f32), rand(3)),
    ),
    "three dtypes, one unused": (
        lambda x, y, z: (x.double() * y).pow(3).sum(),
        lambda: (rand(2, dtype=f32), rand(2), rand(2, dtype=torch.float16)),
    ),
    "relu": (lambda x: torch.relu(x - 0.5).sum(), lambda: rand(4)),
    "relu of a square": (lambda x: torch.relu(x * x - 0.5).sum(), lambda: rand(4)),
    "abs": (lambda x: (x - 0.5).abs().sum(), lambda: rand(4)),
    "max": (lambda x: x.max(), lambda: rand(4)),
    "clamp": (lambda x: x.clamp(max=0.7).sum(), lambda: rand(4)),
    "where": (lambda x: torch.where(x > 0.5, x, 2 * x).sum(), lambda: rand(4)),
    "prod": (lambda x: x.prod(), lambda: rand(4)),
    "norm": (lambda x: x.norm(), lambda: rand(4)),
    "softmax": (lambda x: (x.softmax(-1) * weight).sum(), lambda: rand(2, 3)),
    "an MLP": (
        lambda w, b, v: (torch.tanh(weight @ w.T + b) @ v).pow(2).mean(),
        lambda: (rand(4, 3), rand(4), rand(4)),
    ),
    "Rosenbrock": (
        lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(),
        lambda: rand(5),
    ),
    "dropout under a fixed seed": (
        lambda x: (torch.nn.functional.dropout(x, 0.5) ** 3).sum(),
        lambda: rand(8),
    ),
}

# Legacy vmap cannot run these in stock's forward mode; there hesse answers and stock does not.
NOT_IN_STOCK_FORWARD = {
    "dropout under a fixed seed",
    "a scatter that names places twice",
    "a view that names places twice, changed",
}


@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize("name", CASES)
def test_every_flag_gives_what_stock_gives(hessian, name, flags):
    func, make_inputs = CASES[name]
    if name in NOT_IN_STOCK_FORWARD and flags["outer_jacobian_strategy"] == "forward-mode":
        pytest.skip("stock's forward mode cannot run it")
    assert_same(
        outcome(hessian, func, make_inputs, flags), outcome(stock, func, make_inputs, flags)
    )


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_grad_mode_outside_does_not_matter_to_the_values(hessian, grad_mode, create_graph):
    flags = {"create_graph": create_graph}
    x = rand(2, 2)
    with grad_mode():
        got = outcome(hessian, lambda x: x.pow(3).sum(), lambda: x, flags)
        want = outcome(stock, lambda x: x.pow(3).sum(), lambda: x, flags)
        assert torch.is_grad_enabled() == (grad_mode is torch.enable_grad)
    assert_same(got, want)


def test_without_create_graph_no_block_has_a_graph(hessian):
    x = rand(3).requires_grad_()
    blocks = hessian(lambda x, y: (x * y).sum().exp(), (x, x.detach()))
    assert all(b.grad_fn is None and not b.requires_grad for row in blocks for b in row)


@pytest.mark.parametrize("vectorize", [False, True])
def test_each_block_is_contiguous_and_owns_its_storage(hessian, vectorize):
    blocks = hessian(
        lambda x, y: (x.sum() * y.sum()).exp(), (rand(2, 3), rand(4)), vectorize=vectorize
    )
    flat = [b for row in blocks for b in row]
    if hessian is not stock or not vectorize:  # stock's vectorized blocks are views of one tensor
        assert all(b.is_contiguous() for b in flat)
        assert len({b.untyped_storage().data_ptr() for b in flat}) == len(flat)
        assert all(b._base is None for b in flat)


@pytest.mark.parametrize("vectorize", [False, True])
def test_no_warning_is_raised(hessian, vectorize):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hessian(lambda x: (x**2).sum(), rand(3), vectorize=vectorize)
    assert not caught


@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
def test_func_runs_once(hessian, flags):
    calls = []

    def func(x):
        calls.append(1)
        return (x**3).sum()

    got = outcome(hessian, func, lambda: rand(3), flags)
    ours, calls[:] = len(calls), []
    outcome(stock, func, lambda: rand(3), flags)
    assert ours == len(calls) and (got.error is not None or ours == 1)


def test_the_product_with_a_vector_is_hvp_and_vhp(hessian):
    def func(x):
        return 3 * x.narrow(0, 0, 3).exp().sum() * x.sum()

    x, v = rand(4), rand(4)
    H = hessian(func, x)
    assert_close(H @ v, hvp(func, x, v)[1])
    assert_close(v @ H, vhp(func, x, v)[1])


# --- tensors of another class: taken, by way of stock ---------------------------------------------


def logging(make):
    return lambda: tuple(LoggingTensor(x) for x in make())


LOGGED = {
    "cubes": (lambda x: x.pow(3).sum(), lambda: (rand(2, 2),)),
    "two inputs": (lambda x, y: (x + y).pow(3).sum(), lambda: (rand(2), rand(2))),
    "an unused input": (lambda x, y: (x**2).sum(), lambda: (rand(2), rand(3))),
    "a linear function": (lambda x: (3 * x).sum(), lambda: (rand(4),)),
    "a 0-d input": (lambda x: x.sum(), lambda: (rand([]),)),
}


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize("name", LOGGED)
def test_logging_tensors_give_what_stock_gives(hessian, name, flags):
    func, make = LOGGED[name]
    got, want = (outcome(route, func, logging(make), flags) for route in (hessian, stock))
    assert (got.error, got.layout) == (want.error, want.layout)
    for a, b in zip(got.blocks, want.blocks, strict=True):
        assert type(a) is type(b) and a.requires_grad == b.requires_grad
        assert_close(getattr(a, "elem", a), getattr(b, "elem", b))


@pytest.mark.usefixtures("fallback_is_fine")
def test_a_subclass_without_a_dispatch_of_its_own_keeps_its_class(hessian):
    class Named(torch.Tensor):
        pass

    x = rand(3).as_subclass(Named)
    got, want = (route(lambda x: (x**3).sum(), x) for route in (hessian, stock))
    assert type(got) is type(want)
    assert_close(got.as_subclass(torch.Tensor), want.as_subclass(torch.Tensor))


def test_parameters_are_taken_as_tensors(hessian):
    x = torch.nn.Parameter(rand(3))
    got, want = (route(lambda x: (x**3).sum(), x) for route in (hessian, stock))
    assert type(got) is type(want) is torch.Tensor
    assert_close(got, want)
