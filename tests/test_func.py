"""hesse.func.hessian against torch.func.hessian: structure, shapes, dtypes, values, graphs."""

import functools
import gc
import weakref
from collections import namedtuple

import pytest
import torch
from outcome import assert_close
from outcome import assert_trees_close as same
from torch.func import functional_call, jacfwd, jacrev
from torch.func import hessian as stock
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import hesse

pytestmark = pytest.mark.ours

f64 = torch.float64
Pair = namedtuple("Pair", ["u", "v"])


def rand(*shape, dtype=f64):
    return (torch.rand(*shape, dtype=f64) + 0.2).to(dtype)


def in_place(x):
    y = x * 2
    y[0] = x[1] ** 2
    y.mul_(x)
    return y.prod()


def coupled(x, y):
    return (x.sin().sum() * y.exp().sum()).tanh() + (x**3).sum()


NET = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
FROZEN = {name: p.detach() for name, p in NET.named_parameters()}
DATA = torch.rand(5, 3, dtype=f64)
SINGLE = torch.float32

# name -> func, arguments, argnums
CASES = {
    "a scalar": (lambda x: (x.sin() * x).sum(), lambda: (rand(3),), 0),
    "one element that keeps its axes": (lambda x: (x**3).sum().view(1, 1), lambda: (rand(3),), 0),
    "a vector": (lambda x: x.exp() * x.sum(), lambda: (rand(3),), 0),
    "a matrix of a matrix": (lambda x: (x @ x.T).tanh(), lambda: (rand(2, 3),), 0),
    "a tree of outputs": (
        lambda x: {"a": x**3, "b": [x.prod(), Pair(x.sum(), x[:, None] * x)]},
        lambda: (rand(3),),
        0,
    ),
    "the same output twice": (lambda x: 2 * [x.exp()], lambda: (rand(2),), 0),
    "a tree of inputs": (
        lambda t: (t["w"] @ t["b"][0]).sin().sum() * t["b"][1].u,
        lambda: ({"w": rand(2, 3), "b": [rand(3), Pair(rand([]), rand(1))]},),
        0,
    ),
    "trees on both sides": (
        lambda s, t: Pair(s["x"] * t[0].sum(), [t[1].exp() * s["x"].sum()]),
        lambda: ({"x": rand(2)}, (rand(3), rand([]))),
        (0, 1),
    ),
    "the second argument": (coupled, lambda: (rand(3), rand(2)), 1),
    "two arguments": (coupled, lambda: (rand(3), rand(2)), (0, 1)),
    "two arguments, turned": (coupled, lambda: (rand(3), rand(2)), (1, 0)),
    "a tuple of one": (coupled, lambda: (rand(3), rand(2)), (1,)),
    "an argument that is no tensor": (lambda x, p: (x**p).sum(), lambda: (rand(3), 3), 0),
    "mixed dtypes": (coupled, lambda: (rand(3), rand(2, dtype=SINGLE)), (0, 1)),
    "an output of another dtype": (
        lambda x, y: coupled(x, y).float(),
        lambda: (rand(3), rand(2)),
        (0, 1),
    ),
    "a constant": (lambda x: torch.ones(2, dtype=f64), lambda: (rand(3),), 0),
    "a constant beside": (lambda x: (torch.ones(2), x.exp()), lambda: (rand(3),), 0),
    "a linear function": (lambda x: x.flip(0) * 2, lambda: (rand(3),), 0),
    "the identity": (lambda x: x, lambda: (rand(3),), 0),
    "a piecewise linear function": (lambda x: F.relu(x - 0.5), lambda: (rand(3),), 0),
    "an argument that plays no part": (lambda x, y: x.exp(), lambda: (rand(2), rand(3)), (0, 1)),
    "one part of an argument": (lambda t: t[0].exp(), lambda: ([rand(2), rand(1)],), 0),
    "elements that see one input each": (lambda x: x.sin(), lambda: (rand(4),), 0),
    "writes in place": (in_place, lambda: (rand(3),), 0),
    "no output elements": (lambda x: x.exp()[:0], lambda: (rand(3),), 0),
    "no input elements": (lambda x, y: x.sum() + y.exp().sum(), lambda: (rand(0), rand(2)), (0, 1)),
    "nothing but no elements": (lambda x: x.exp().sum(), lambda: (rand(0),), 0),
    "a module's parameters": (
        lambda p: F.cross_entropy(functional_call(NET, p, DATA), torch.tensor([0, 1, 1, 0, 1])),
        lambda: (FROZEN,),
        0,
    ),
    "a module's logits": (lambda p, x: functional_call(NET, p, x), lambda: (FROZEN, DATA[0]), 1),
    "a double backward inside": (
        lambda x: jacrev(lambda z: (z**4).sum())(x) * x,
        lambda: (rand(3),),
        0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_result_is_that_of_torch(name):
    func, make, argnums = CASES[name]
    args = make()
    # Which block passes through the coarsest of mixed dtypes depends on the route.
    coarse = any(x.dtype == SINGLE for x in pytree.tree_leaves(args) if isinstance(x, torch.Tensor))
    tol = 1e-4 if coarse or "another dtype" in name else None
    same(hesse.func.hessian(func, argnums)(*args), stock(func, argnums)(*args), tol)


@pytest.mark.parametrize("name", CASES)
def test_func_runs_once_and_leaves_its_arguments_alone(name):
    func, make, argnums = CASES[name]
    args, calls = make(), []
    before = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, args)

    def counted(*args):
        calls.append(1)
        return func(*args)

    hesse.func.hessian(counted, argnums)(*args)
    assert len(calls) == 1
    for a, b in zip(pytree.tree_leaves(args), pytree.tree_leaves(before), strict=True):
        assert not isinstance(a, torch.Tensor) or (a.equal(b) and not a.requires_grad)


def test_argnums_count_from_the_end_too():
    x, y = rand(3), rand(2)
    for argnums, counted in ((1, -1), (0, -2), ((1, 0), (-1, -2))):
        want = stock(coupled, argnums)(x, y)
        same(hesse.func.hessian(coupled, counted)(x, y), want)
        with hesse.fallback("silent"):
            batch = torch.vmap(hesse.func.hessian(coupled, counted))(x[None], y[None])
        same(pytree.tree_map(lambda b: b[0], batch), want)


def test_keywords_are_passed_through():
    got = hesse.func.hessian(lambda x, *, p, c: (x**p * c).sum())(rand(2), p=3, c=rand(2))
    assert got.shape == (2, 2)
    x, c = rand(2), rand(2)
    got = hesse.func.hessian(lambda x, *, c: (x**3 * c).sum())(x, c=c)
    same(got, stock(lambda x: (x**3 * c).sum())(x))


def test_the_result_is_named_like_the_function():
    def energy(x):
        """Joules."""
        return x.sum()

    made = hesse.func.hessian(energy)
    assert made.__name__ == "energy" and made.__doc__ == "Joules." and made.__wrapped__ is energy
    linear = torch.nn.Linear(2, 1).double()
    assert "_parameters" not in vars(hesse.func.hessian(linear))
    assert hesse.func.hessian(linear)(rand(2)).shape == (1, 2, 2)


def test_a_compiled_function_is_differentiated_as_what_it_was_made_from():
    func = torch.compile(lambda x: (x**3).sum(), backend="eager")
    same(hesse.func.hessian(func)(rand(2) * 0 + 1), 6 * torch.eye(2, dtype=f64))


def test_random_ops_are_fine():
    torch.manual_seed(3)
    got = hesse.func.hessian(lambda x: F.dropout(x**3, 0.5).sum())(torch.ones(8, dtype=f64))
    assert set(got.diagonal().tolist()) == {0.0, 12.0}


class Marked(torch.autograd.Function):
    """The identity, whose node holds a large thing as long as it lives."""

    @staticmethod
    def forward(ctx, x, held):
        ctx.held = held
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.clone(), None


@pytest.mark.parametrize("has_aux", [False, True])
def test_what_func_recorded_is_gone_when_the_call_returns(has_aux):
    class Held:
        pass

    held = Held()
    alive = weakref.ref(held)

    def func(x, held):
        y = Marked.apply(x, held) ** 3
        return (y, y * 2) if has_aux else y

    gc.disable()
    try:
        result = hesse.func.hessian(func, has_aux=has_aux)(rand(3), held)
        del held
        assert alive() is None and result is not None
    finally:
        gc.enable()


# --- has_aux --------------------------------------------------------------------------------------


def stock_with_aux(func):
    return jacfwd(jacrev(func, has_aux=True), has_aux=True)


def test_what_comes_beside_is_returned_without_a_graph():
    def func(x):
        return (x**3).sum(), {"y": x**2, "z": (x, torch.arange(2))}

    x = rand(3)
    H, aux = hesse.func.hessian(func, has_aux=True)(x)
    same((H, aux), stock_with_aux(func)(x))
    assert not any(leaf.requires_grad for leaf in pytree.tree_leaves(aux))


def test_what_comes_beside_keeps_the_graph_of_the_caller():
    w, x = rand(3).requires_grad_(), rand(3)

    def func(x):
        return (x**3 * w).sum(), {"x": x**2, "w": w, "both": x * w, "made": w * 2}

    (_, got), (_, want) = hesse.func.hessian(func, has_aux=True)(x), stock_with_aux(func)(x)
    for key in want:
        assert got[key].requires_grad == want[key].requires_grad == (key != "x")
        if key != "x":
            grads = [torch.autograd.grad(aux[key].sum(), w)[0] for aux in (got, want)]
            assert_close(*grads)


def test_anything_may_come_beside():
    H, aux = hesse.func.hessian(lambda x: ((x**2).sum(), ("text", None, 3)), has_aux=True)(rand(1))
    assert H.item() == 2 and aux == ("text", None, 3)


# --- falling back ---------------------------------------------------------------------------------


def cubic(x):
    return (x**3).sum() * x.exp().sum()


TRANSFORMS = {
    "vmap": lambda h: torch.vmap(h(cubic))(torch.linspace(0, 1, 6, dtype=f64).view(2, 3)),
    "grad": lambda h: torch.func.grad(lambda x: h(cubic)(x).sin().sum())(torch.ones(2, dtype=f64)),
    "jvp": lambda h: torch.func.jvp(h(cubic), (torch.ones(2, dtype=f64),), (rand(2) * 0 + 3,)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_around_the_call_are_torchs_business(name):
    apply = TRANSFORMS[name]
    with pytest.warns(hesse.FallbackWarning, match="func.hessian.*batch_hessian"):
        same(apply(hesse.func.hessian), apply(stock))
    with hesse.fallback("error"), pytest.raises(hesse.FallbackError, match="torch.func transf"):
        apply(hesse.func.hessian)


def test_calls_nest():
    def twice(h):
        return h(lambda x: h(cubic)(x).sum())(torch.ones(2, dtype=f64))

    same(twice(hesse.func.hessian), twice(stock))


def test_the_fallback_knows_keywords_and_what_comes_beside(fallback_is_fine):
    def func(x, p):
        return (x**p).sum(), x**2

    x = rand(2, 3)
    got = torch.vmap(functools.partial(hesse.func.hessian(func, has_aux=True), p=3))(x)
    same(got, torch.vmap(stock_with_aux(functools.partial(func, p=3)))(x))


def test_inference_mode_is_torchs_business(fallback_is_fine):
    x = rand(3)
    want = stock(cubic)(x)
    with torch.inference_mode():
        same(hesse.func.hessian(cubic)(x), want)
        made = x.clone()
    same(hesse.func.hessian(cubic)(made), want)


def test_a_graph_that_the_engine_refuses_goes_to_plain_autograd():
    def func(x):
        y = x.sin()
        y.register_hook(lambda g: g)
        return {"v": y * y.sum(), "s": y.prod()}

    x, calls = rand(3), []
    with pytest.warns(hesse.FallbackWarning, match="hook") as caught:
        got = hesse.func.hessian(lambda x: [calls.append(1), func(x)][1])(x)
    assert caught[0].filename == __file__ and len(calls) == 1
    same(got, stock(func)(x))


# --- errors ---------------------------------------------------------------------------------------

ERRORS = {
    "argnums must be int or Tuple": lambda h: h(coupled, [0, 1])(rand(3), rand(2)),
    "Got argnum=2, but only 2 positional inputs": lambda h: h(coupled, 2)(rand(3), rand(2)),
    "argnums elements must be unique": lambda h: h(coupled, (0, -2))(rand(3), rand(2)),
    "argnums must be non-empty": lambda h: h(coupled, ())(rand(3), rand(2)),
    "non-empty output": lambda h: h(lambda x: None)(rand(3)),
    "return only tensors, got unsupported type <class 'float'>": lambda h: h(lambda x: 1.0)(
        rand(3)
    ),
    "with dtype torch.int64|dtype torch.int64, and only": lambda h: h(lambda x: x.long())(rand(3)),
    "outputs to be real|complex128, and only real": lambda h: h(lambda x: x * 1j)(rand(3)),
    "is being used in an in-place": lambda h: h(lambda x: x.mul_(2).sum())(rand(3)),
}


@pytest.mark.parametrize("message", ERRORS)
def test_mistakes_raise_what_they_raise_in_torch(message):
    for route in (stock, hesse.func.hessian):
        with pytest.raises(RuntimeError, match=message):
            ERRORS[message](route)


def test_a_result_of_the_callers_is_not_written_to():
    x = rand(3).requires_grad_().exp()
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match="inplace"):
        hesse.func.hessian(lambda x: x.mul_(2).sum())(x)
    assert x.equal(before)


def test_an_argument_without_derivatives_is_named_by_its_path():
    for bad, what in ((3, "type int"), (torch.arange(2), "dtype torch.int64"), (1j * rand(1), "")):
        with pytest.raises(TypeError, match=rf"hesse.func.hessian: args\[1\]\['x'\].*{what}"):
            hesse.func.hessian(lambda y, t: y.sum(), -1)(rand(1), {"x": bad})
    with pytest.raises(ValueError, match="hesse.func.hessian: args holds no tensor"):
        hesse.func.hessian(lambda t: t)([])
    with pytest.raises(RuntimeError, match="tuple: .output, aux. if has_aux is True"):
        hesse.func.hessian(lambda x: [x.sum(), x], has_aux=True)(rand(2))
