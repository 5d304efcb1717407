"""``hvp`` and ``vhp`` do what torch.autograd.functional's do, for one direction and for many."""

import os
import warnings

import pytest
import torch
from outcome import Outcome, assert_close, assert_same
from test_conformance import CASES, LOGGED, logging
from test_contract import FUNCTIONS, HOOKS, INPUTS, Crooked, hooked, mixed, rand
from torch.autograd import functional as stock
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

f32, f64 = torch.float32, torch.float64
NAMES = ["hvp", "vhp"]


@pytest.fixture(params=NAMES)
def product(request):
    """The function under test, and stock's of the same name."""
    theirs = getattr(stock, request.param)
    if os.environ.get("HESSE_UNDER_TEST") == "stock":
        return theirs, theirs
    import hesse

    return getattr(hesse, request.param), theirs


def direction(inputs):
    """A direction of the structure and dtypes of the inputs."""
    if not isinstance(inputs, tuple):
        return torch.randn(inputs.shape, dtype=f64).to(inputs.dtype)
    return tuple(direction(x) for x in inputs)


def outcome(route, func, make_inputs, v=direction, **flags):
    """An error, or value and products, of a call on fresh inputs with the seed of every call."""
    torch.manual_seed(7)
    try:
        inputs = make_inputs()
        y, products = route(func, inputs, v(inputs), **flags)
    except Exception as error:
        return Outcome(f"{type(error).__name__}: {error}", None, [])
    layout = type(products).__name__
    products = products if isinstance(products, tuple) else (products,)
    return Outcome(None, f"{type(y).__name__}, {layout}", [y, *products])


def same(product, func, make_inputs, v=direction, tol=None, **flags):
    got, want = (outcome(route, func, make_inputs, v, **flags) for route in product)
    assert_same(got, want, tol)
    return want


# --- as stock -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_flag_gives_what_stock_gives(product, name, create_graph, strict):
    func, make_inputs = CASES[name]
    same(product, func, make_inputs, create_graph=create_graph, strict=strict)


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_function_gives_what_stock_gives(product, name, create_graph):
    tol = 1e-6 if name == "float32 inside" else None
    same(product, FUNCTIONS[name], lambda: rand(6).mul_(0.7), tol=tol, create_graph=create_graph)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", INPUTS)
def test_any_strided_tensor_is_an_input(product, name, create_graph):
    same(product, mixed, INPUTS[name], create_graph=create_graph)


VECTORS = {
    "float32": lambda x: torch.randn(3, dtype=f32),
    "integers": lambda x: torch.tensor([1, 0, -2]),
    "expanded": lambda x: torch.ones((), dtype=f64).expand(3),
    "every second entry": lambda x: torch.randn(6, dtype=f64)[::2],
    "a parameter": lambda x: torch.nn.Parameter(torch.randn(3, dtype=f64)),
    "a result": lambda x: torch.randn(3, dtype=f64).requires_grad_().sin(),
    "the input": lambda x: x,
    "a tuple of one": lambda x: (torch.ones(3, dtype=f64),),
    "of another size": lambda x: torch.ones(2, dtype=f64),
    "a 0-d tensor": lambda x: torch.ones((), dtype=f64),
    "a scalar": lambda x: 1.0,
    "missing": lambda x: None,
    "too long": lambda x: (x, x),
    "a tuple with a number": lambda x: (x, 2),
    "two dimensions too many": lambda x: torch.ones(2, 2, 3, dtype=f64),
    "a batch of another size": lambda x: torch.ones(2, 4, dtype=f64),
    "complex": lambda x: torch.ones(3, dtype=torch.complex128),
}


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", VECTORS)
def test_any_direction_gives_what_stock_gives(product, name, create_graph):
    same(
        product, lambda x: x.exp().prod(), lambda: rand(3), VECTORS[name], create_graph=create_graph
    )


PAIRS = {
    "one entry too large": lambda x: (torch.ones(3), torch.ones(3)),
    "too short": lambda x: (torch.ones(3),),
    "a tensor": lambda x: torch.ones(3),
    "a batch for one only": lambda x: (torch.ones(5, 3), torch.ones(2)),
    "batches of two sizes": lambda x: (torch.ones(5, 3), torch.ones(4, 2)),
    "missing": lambda x: None,
}


@pytest.mark.parametrize("name", PAIRS)
def test_directions_that_do_not_fit_a_tuple_are_refused_in_the_words_of_stock(product, name):
    want = same(product, mixed, lambda: (rand(3), rand(2)), PAIRS[name])
    assert want.error is not None


BAD = {
    "an input that is a number": (mixed, lambda: (rand(3), 2)),
    "integer inputs": (lambda x: x.sum(), lambda: torch.arange(3)),
    "no inputs": (lambda: torch.ones(()), lambda: ()),
    "a tuple of outputs": (lambda x: (x.sum(), x.sum()), lambda: rand(3)),
    "an output that is a number": (lambda x: 3.0, lambda: rand(3)),
    "an output of two elements": (lambda x: x[:2] ** 2, lambda: rand(3)),
    "a complex output": (lambda x: x.sum() * 1j, lambda: rand(3)),
    "a write to the input": (lambda x: x.mul_(2).sum(), lambda: rand(3)),
    "an error of its own": (lambda x: x @ torch.ones(4, dtype=f64), lambda: rand(3)),
}


def no_worse(x):
    return direction(x) if all(isinstance(i, torch.Tensor) for i in x) else (rand(3), rand(3))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused_in_the_words_of_stock(product, name, strict):
    func, make_inputs = BAD[name]
    want = same(product, func, make_inputs, no_worse, strict=strict)
    assert want.error is not None


def test_one_element_needs_no_direction(product):
    for shape in ([], [1], [1, 1]):
        same(product, lambda x: x.exp().sum(), lambda s=shape: rand(*s), lambda x: None)


def test_inputs_without_elements_give_products_without_elements(product):
    same(product, lambda x, y: x.exp().sum() + (y**3).sum(), lambda: (rand(0), rand(2)))
    same(product, lambda x: x.exp().sum(), lambda: rand(0, 3))


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_grad_mode_outside_does_not_matter_to_the_values(product, grad_mode, create_graph):
    x, v = rand(3).requires_grad_(), rand(3).requires_grad_()
    with grad_mode():
        same(product, mixed, lambda: (x, x), lambda _: (v, v), create_graph=create_graph)
        assert torch.is_grad_enabled() == (grad_mode is torch.enable_grad)


def test_inputs_and_directions_are_left_as_they_are(product):
    x, v = rand(4).requires_grad_(), rand(4)
    copies = x.detach().clone(), v.clone()
    _, Hv = product[0](lambda x: 0.5 * (x * x).sum(), x, v)
    Hv.mul_(3)
    assert torch.equal(x, copies[0]) and torch.equal(v, copies[1]) and x.grad is None


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_the_effect_that_it_has_in_stock(product, name):
    same(product, hooked(HOOKS[name]), lambda: rand(3))


# --- an asymmetric graph --------------------------------------------------------------------------


def test_hvp_is_a_column_and_vhp_a_row_of_an_asymmetric_hessian(product):
    same(product, Crooked.apply, lambda: (rand(3), rand(3)))
    x = rand(3)
    H = torch.cat([torch.cat(row, 1) for row in stock.hessian(Crooked.apply, (x, x))])
    assert not torch.allclose(H, H.T)
    v = torch.randn(6, dtype=f64)
    _, parts = product[0](Crooked.apply, (x, x), tuple(v.split(3)))
    assert_close(torch.cat(parts), H @ v if product[1] is stock.hvp else v @ H)


# --- many directions ------------------------------------------------------------------------------

ours = pytest.mark.ours


def stacked(theirs, func, inputs, vs):
    """Stock's products one by one, stacked."""
    if not isinstance(inputs, tuple):
        return torch.stack([theirs(func, inputs, v)[1] for v in vs])
    rows = [theirs(func, inputs, v)[1] for v in zip(*vs, strict=True)]
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


@ours
@pytest.mark.parametrize("K", [1, 5])
@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_directions_gives_a_batch_of_products(product, name, K):
    func, make_inputs = CASES[name]
    torch.manual_seed(7)
    inputs = make_inputs()
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    vs = tuple(torch.randn(K, *x.shape, dtype=f64).to(x.dtype) for x in given)
    vs = vs if isinstance(inputs, tuple) else vs[0]
    state = torch.get_rng_state()

    def seeded(*xs):
        torch.set_rng_state(state)
        return func(*xs)

    got, want = product[0](seeded, inputs, vs)[1], stacked(product[1], seeded, inputs, vs)
    assert type(got) is type(want)
    tensors = (got, want) if isinstance(got, tuple) else ((got,), (want,))
    tol = 1e-2 if any(x.dtype is torch.float16 for x in given) else None
    for a, b in zip(*tensors, strict=True):
        assert_close(a, b, tol or (1e-4 if any(x.dtype is f32 for x in given) else None))


@ours
def test_the_identity_gives_the_hessian(product):
    x = rand(5)
    _, H = product[0](lambda x: x.exp().prod(), x, torch.eye(5, dtype=f64))
    assert_close(H, stock.hessian(lambda x: x.exp().prod(), x))


@ours
def test_no_directions_give_no_products(product):
    _, (a, b) = product[0](mixed, (rand(3), rand(2)), (torch.ones(0, 3), torch.ones(0, 2)))
    assert a.shape == (0, 3) and b.shape == (0, 2)


@ours
@pytest.mark.parametrize("flags", [{}, {"create_graph": True}, {"strict": True}])
def test_func_runs_once_for_all_directions(product, flags):
    calls = []

    def func(x):
        calls.append(1)
        return x.exp().prod()

    product[0](func, rand(3), torch.randn(7, 3), **flags)
    assert len(calls) == 1


@ours
@pytest.mark.usefixtures("fallback_is_fine")
def test_a_batch_goes_through_what_the_engine_cannot_take(product):
    func, x, vs = hooked(HOOKS["on a tensor, changing its gradient"]), rand(3), rand(4, 3)
    assert_close(product[0](func, x, vs)[1], stacked(product[1], func, x, vs))
    vs = tuple(rand(4, 3) for _ in range(2))
    got, want = (
        product[0](Crooked.apply, (x, x), vs)[1],
        stacked(product[1], Crooked.apply, (x, x), vs),
    )
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


@ours
def test_strict_looks_at_a_batch_as_at_one(product):
    with pytest.raises(RuntimeError, match="jacobian of the user-provided function"):
        product[0](lambda x: (3 * x).sum(), rand(3), rand(4, 3), strict=True)
    got = product[0](lambda x: (x**3).sum(), rand(3), rand(0, 3), strict=True)[1]
    assert got.shape == (0, 3)


# --- create_graph ---------------------------------------------------------------------------------

GRAPHS = {
    "a part of the input": (lambda a: 3 * a.narrow(0, 0, 3).exp().sum(), [(4,)]),
    "two inputs": (lambda a, b: (a + 3 * b.narrow(0, 0, 3)).exp().sum(), [(3,), (4,)]),
    "a bilinear function": (lambda a, b: (a @ b).tanh().sum(), [(2, 3), (3, 2)]),
    "an asymmetric backward": (Crooked.apply, [(3,), (3,)]),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_products_are_differentiable_by_inputs_and_directions(product, name):
    func, shapes = GRAPHS[name]
    n = len(shapes)
    args = tuple(rand(*s).requires_grad_() for s in shapes * 2)

    def products(*args):
        return product[0](func, tuple(x.sin() for x in args[:n]), args[n:], create_graph=True)[1]

    assert gradcheck(products, args)
    assert gradgradcheck(products, args)


@ours
def test_a_batch_is_differentiable_by_inputs_and_directions(product):
    def products(x, v):
        return product[0](lambda x: x.exp().prod(), x, v, create_graph=True)[1]

    assert gradcheck(products, (rand(3).requires_grad_(), rand(4, 3).requires_grad_()))


@ours
def test_the_third_derivative_through_a_norm_is_right(product):
    # Stock takes the saved statistics for constants.
    def func(x):
        return (F.layer_norm(x, (4,)) ** 3).sum() * x.sum()

    def products(x):
        return product[0](func, x, torch.ones(4, dtype=f64), create_graph=True)[1]

    assert gradcheck(products, (rand(4).requires_grad_(),))


# --- fallback -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", LOGGED)
def test_logging_tensors_give_what_stock_gives(product, name, create_graph):
    func, make = LOGGED[name]
    flags = {"create_graph": create_graph}
    got, want = (outcome(r, func, logging(make), logging_like, **flags) for r in product)
    assert (got.error, got.layout) == (want.error, want.layout)
    for a, b in zip(got.blocks, want.blocks, strict=True):
        assert type(a) is type(b) and a.requires_grad == b.requires_grad
        assert_close(getattr(a, "elem", a), getattr(b, "elem", b))


def logging_like(inputs):
    return logging(lambda: tuple(torch.ones(x.shape, dtype=f64) for x in inputs))()


@ours
@pytest.mark.parametrize("name", NAMES)
def test_a_fallback_names_the_function_and_the_line_of_the_caller(name):
    import hesse

    call, func = getattr(hesse, name), hooked(HOOKS["on a tensor, only looking"])
    z = torch.ones(2, dtype=torch.complex128)
    for f, x, why in ((func, rand(3), "a hook on"), (lambda z: z.abs().sum(), z, "is complex")):
        with (
            hesse.fallback("error"),
            pytest.raises(hesse.FallbackError, match=f"hesse.{name} .*{why}"),
        ):
            call(f, x, x)
        with hesse.fallback("warn"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(f, x, x)
        assert [w.filename for w in caught] == [__file__] and name in str(caught[0].message)


@ours
@pytest.mark.usefixtures("fallback_is_fine")
def test_inside_transforms_products_compose(product):
    def func(x):
        return x.exp().prod()

    xs, v, vs = rand(4, 3), rand(3), rand(5, 3)
    H = torch.stack([stock.hessian(func, x) for x in xs])
    assert_close(torch.vmap(lambda x: product[0](func, x, v)[1])(xs), H @ v)
    assert_close(torch.vmap(lambda x: product[0](func, x, vs)[1])(xs), vs @ H)
    got = torch.func.grad(lambda x: product[0](func, x, v)[1].sum())(xs[0])
    x = xs[0].clone().requires_grad_()
    (want,) = torch.autograd.grad(product[1](func, x, v, create_graph=True)[1].sum(), x)
    assert_close(got, want)
