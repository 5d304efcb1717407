"""What hesse.func.hessian returns can be differentiated where torch.func.hessian's can."""

import pytest
import torch
from outcome import assert_close
from outcome import assert_trees_close as same
from torch.func import hessian as stock
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import hesse

pytestmark = pytest.mark.ours

f64 = torch.float64


def rand(*shape):
    return torch.rand(*shape, dtype=f64) + 0.2


def weighted(w):
    return lambda x: torch.stack([(x**4 * w).sum(), (x * w).sin().prod()])


W = torch.tensor([0.4, 0.7, 1.1], dtype=f64, requires_grad=True)
SCALE = torch.tensor(0.3, dtype=f64, requires_grad=True)
# name -> the arguments, what of them and around them to differentiate by, func
GRAPHS = {
    "a leaf closed over": lambda: ((rand(3),), [W], weighted(W)),
    "two leaves closed over": lambda: (
        (rand(3),),
        [W, SCALE],
        lambda x: (x**4 * W).sum() * SCALE.exp(),
    ),
    "a result closed over": lambda: (
        lambda v: ((rand(3),), [W, v], weighted(v)),
        W * 2,
    ),
    "an argument that is a leaf": lambda: (
        lambda x: ((x,), [x], lambda x: (x**4).sum()),
        rand(3).requires_grad_(),
    ),
    "an argument that is a result": lambda: (
        lambda x: ((x,), [W, x], lambda x: (x**4).sum()),
        W.exp(),
    ),
    "an argument that is also closed over": lambda: ((W,), [W], lambda x: (x**4 * W).sum()),
    "an argument made from what is closed over": lambda: (
        lambda x: ((x,), [W, x], lambda x: (x**4 * W).sum()),
        W.exp(),
    ),
    "an argument of the others": lambda: ((rand(3), W), [W], lambda x, w: (x**4 * w).sum()),
    "one argument twice": lambda: (
        lambda x: (([x, x],), [x], lambda t: (t[0] ** 3 * t[1] ** 2).sum()),
        rand(3).requires_grad_(),
    ),
}


def graph_case(name):
    case = GRAPHS[name]()
    return case[0](case[1]) if callable(case[0]) else case


def scalar_of(H):
    return sum(
        (b * (1 + torch.arange(b.numel()).view(b.shape))).sum() for b in pytree.tree_leaves(H)
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_the_result_is_differentiable_where_torchs_is(name):
    args, by, func = graph_case(name)
    ours, theirs = hesse.func.hessian(func)(*args), stock(func)(*args)
    same(ours, theirs)
    first = [torch.autograd.grad(scalar_of(H).sin(), by, create_graph=True) for H in (ours, theirs)]
    for a, b in zip(*first, strict=True):
        assert_close(a, b, 1e-8)
    second = [
        torch.autograd.grad(sum(g.sin().sum() for g in grads), by, retain_graph=True)
        for grads in first
    ]
    for a, b in zip(*second, strict=True):
        assert_close(a, b, 1e-8)


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_arrive_at_the_leaves_once(name):
    arrived = []
    for route in (hesse.func.hessian, stock):
        torch.manual_seed(1)
        args, by, func = graph_case(name)
        leaves = [x for x in by if x.is_leaf]
        H = route(func)(*args)
        for _ in range(2):
            scalar_of(H).backward(retain_graph=True)
        arrived.append([x.grad for x in leaves])
        for x in leaves:
            x.grad = None
    for a, b in zip(*arrived, strict=True):
        assert_close(a, b, 1e-8)


def test_a_hook_on_a_leaf_sees_one_gradient():
    w = rand(3).requires_grad_()
    w.register_hook(lambda g: 2 * g)
    hesse.func.hessian(weighted(w))(torch.ones(3, dtype=f64)).sum().backward()
    ours, w.grad = w.grad, None
    stock(weighted(w))(torch.ones(3, dtype=f64)).sum().backward()
    assert_close(ours, w.grad)


def test_an_argument_that_changes_before_the_backward_is_an_error():
    x = rand(3)
    H = hesse.func.hessian(weighted(W))(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="an argument was changed in place before the Hessian"):
        torch.autograd.grad(H.sum(), W)


def test_a_weight_that_changes_before_the_backward_is_an_error():
    w = rand(3).requires_grad_()
    H = hesse.func.hessian(lambda x: (x**3 * w.sin()).sum())(rand(3))
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(H.sum(), w)


def test_nothing_requires_grad_where_nothing_did():
    assert not hesse.func.hessian(lambda x: (x**3).sum())(rand(2)).requires_grad
    with torch.no_grad():
        assert not hesse.func.hessian(weighted(W))(rand(3)).requires_grad
        assert not hesse.func.hessian(lambda x: (x**3).sum())(W).requires_grad


def test_grads_of_the_caller_stay_as_they_are():
    w, x = rand(3).requires_grad_(), rand(3).requires_grad_()
    hesse.func.hessian(weighted(w))(x)
    assert w.grad is None and x.grad is None


def test_an_output_that_no_argument_reaches_is_zero_and_may_require_grad():
    def func(x):
        return {"leaf": W, "made": W * 2, "both": (W * x) ** 2}

    x = rand(3)
    same(hesse.func.hessian(func)(x), stock(func)(x))


def test_a_module_is_differentiated_by_the_weights_it_holds():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    net.double()
    x = rand(3)
    grads = [
        torch.autograd.grad(h(net)(x).square().sum(), list(net.parameters())[:3])
        for h in (hesse.func.hessian, stock)
    ]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, 1e-8)


def test_the_late_sweep_may_fall_back_to_plain_autograd():
    def func(x):
        y = x * W
        y.register_hook(lambda g: g)
        return (y**3).sum()

    x = rand(3)
    with hesse.fallback("silent"):
        ours = torch.autograd.grad(scalar_of(hesse.func.hessian(func)(x)), W)
    assert_close(ours[0], torch.autograd.grad(scalar_of(stock(func)(x)), W)[0])


def test_recomputed_regions_and_saved_tensor_hooks_are_fine():
    def func(x):
        return checkpoint(lambda z: (z * W).sin().prod(), x, use_reentrant=False)

    def bare(x):
        return (x * W).sin().prod()

    x = rand(3)
    with torch.autograd.graph.save_on_cpu():
        H = hesse.func.hessian(func)(x)
    want = stock(bare)(x)
    same(H, want)
    assert_close(*(torch.autograd.grad(scalar_of(h), W)[0] for h in (H, want)))
