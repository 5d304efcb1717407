"""Under ``patched()`` existing code gets what it gets from stock, by way of the engine."""

import gc
import importlib
import threading
import warnings
import weakref
from functools import partial

import pytest
import torch
from outcome import assert_close
from test_contract import FUNCTIONS, HOOKS, Crooked, hooked, rand
from torch._vmap_internals import _vmap as legacy_vmap
from torch.autograd import functional, gradcheck
from torch.nn import functional as F

import hesse
from hesse import gradient

pytestmark = pytest.mark.ours
f64 = torch.float64
grad = torch.autograd.grad  # stock's


def ours(g):
    return type(g.grad_fn).__name__ == "_GradientBackward"


def flags(gs):
    return torch.tensor([float(g is not None and g.requires_grad) for g in gs])


def both(make):
    """What ``make(grad)`` returns with stock's grad and, from the same random state, with ours."""
    results = []
    for patch in (False, True):
        torch.manual_seed(3)
        if patch:
            with hesse.patched():
                results.append(make(torch.autograd.grad))
        else:
            results.append(make(grad))
    return results


def agree(make):
    want, got = both(make)
    assert len(want) == len(got) > 0
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b)


def curved(x):
    return (x.exp() * x.roll(1)).prod() + (x**3).sum()


# --- the functions that are replaced --------------------------------------------------------------


def test_functional_is_ours_inside_and_stock_outside():
    names = [(functional, n) for n in ("hessian", "hvp", "vhp")] + [(torch.autograd, "grad")]
    before = [getattr(*name) for name in names]
    x, v = rand(4), rand(4)
    want = functional.hessian(curved, x), functional.hvp(curved, x, v), functional.vhp(curved, x, v)
    with hesse.patched():
        assert all(getattr(*n) is not f for n, f in zip(names, before, strict=True))
        assert functional.hessian.__doc__ == before[0].__doc__
        with hesse.patched():
            H, Hv, vH = (
                f(curved, x, *a)
                for f, a in (
                    (functional.hessian, ()),
                    (functional.hvp, (v,)),
                    (functional.vhp, (v,)),
                )
            )
        assert all(getattr(*n) is not f for n, f in zip(names, before, strict=True))
        assert functional.vhp(curved, x, torch.eye(4, dtype=f64))[1].shape == (4, 4)
    assert [getattr(*name) for name in names] == before
    assert_close(H, want[0])
    assert_close(Hv[1], want[1][1])
    assert_close(vH[1], want[2][1])


def test_an_error_inside_restores_torch():
    before = torch.autograd.grad
    with pytest.raises(ZeroDivisionError), hesse.patched():
        raise ZeroDivisionError
    assert torch.autograd.grad is before


def test_it_is_a_decorator_and_may_call_itself():
    @hesse.patched()
    def fact(n):
        x = rand(3).requires_grad_()
        assert ours(torch.autograd.grad(curved(x), x, create_graph=True)[0])
        return fact(n - 1) if n else torch.autograd.grad

    assert fact(2) is not grad and torch.autograd.grad is grad


def test_somebody_elses_replacement_is_left_alone(monkeypatch):
    def other(*args, **kwargs):
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", grad)  # comes back at the end
    with hesse.patched():
        torch.autograd.grad = other
    assert torch.autograd.grad is other


def test_another_thread_keeps_stock():
    x = rand(3).requires_grad_()
    seen = []

    def work():
        seen.append(ours(torch.autograd.grad(curved(x), x, create_graph=True)[0]))

    with hesse.patched():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        work()
    assert seen == [False, True]


def test_functions_that_hesse_differentiates_are_recorded_by_stock():
    def func(x):
        (g,) = torch.autograd.grad(curved(x), x, create_graph=True)
        assert inside is None or ours(g) is inside
        return (g * x).sum()

    x, inside = rand(3), False
    want = functional.hessian(func, x)
    with hesse.patched():
        assert_close(functional.hessian(func, x), want)
        inside = None
        with hesse.fallback("silent"):
            assert_close(hesse.hessian(func, x), want)


# --- the second derivative ------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_function_has_the_gradient_and_the_product_that_stock_has(name):
    def make(grad):
        x, v = rand(6).mul_(0.7).requires_grad_(), rand(6)
        y = FUNCTIONS[name](x)
        (g,) = grad(y, x, create_graph=True)
        if not g.requires_grad:
            return [g]
        return [g, *grad(g, x, v, allow_unused=True)]

    outcomes = []
    for route in (grad, None):
        torch.manual_seed(5)
        try:
            if route is None:
                with hesse.patched():
                    outcomes.append(make(torch.autograd.grad))
            else:
                outcomes.append(make(route))
        except RuntimeError as error:
            outcomes.append(str(error))
    want, got = outcomes
    if isinstance(want, str):
        assert got == want
        return
    tol = 1e-6 if name == "float32 inside" else None
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert_close(
            torch.zeros(6, dtype=f64) if a is None else a,
            torch.zeros(6, dtype=f64) if b is None else b,
            tol,
        )


def mapped(vmap):
    def rows(grad, g, x, V):
        return vmap(lambda v: grad(g, x, v, retain_graph=True)[0])(V)

    return rows


def two_levels(grad, g, x, V):
    return torch.vmap(lambda s: mapped(torch.vmap)(grad, g, x, s * V))(V[:2, 0]).sum(0)


BATCHES = {
    "is_grads_batched": lambda grad, g, x, V: grad(
        g, x, V, retain_graph=True, is_grads_batched=True
    )[0],
    "legacy vmap": mapped(legacy_vmap),
    "vmap": mapped(torch.vmap),
    "vmap over columns": lambda grad, g, x, V: mapped(partial(torch.vmap, in_dims=1))(
        grad, g, x, V.T
    ),
    "two levels": two_levels,
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("name", BATCHES)
def test_all_directions_go_at_once_by_any_vmap(name, identity):
    def make(grad):
        x = rand(5).requires_grad_()
        V = torch.eye(5, dtype=f64) if identity else rand(7, 5)
        (g,) = grad((x.exp() * x.sin().sum()).sum(), x, create_graph=True)
        return [g.detach(), BATCHES[name](grad, g, x, V), *grad(g, x, V[0])]

    agree(make)


def test_a_matrix_that_was_the_identity_is_looked_at_again():
    V = torch.eye(4, dtype=f64)
    x = rand(4).requires_grad_()
    want = functional.hessian(curved, x.detach())
    with hesse.patched():
        (g,) = torch.autograd.grad(curved(x), x, create_graph=True)
    for _ in range(2):
        assert_close(grad(g, x, V, is_grads_batched=True, retain_graph=True)[0], want)
    V[1, 1] = 3
    assert_close(grad(g, x, V, is_grads_batched=True)[0], V @ want)


def test_one_linearization_answers_all_products(monkeypatch):
    calls = []
    linearize = gradient._C.linearize
    monkeypatch.setattr(gradient._C, "linearize", lambda *a: calls.append(1) or linearize(*a))
    x = rand(4).requires_grad_()
    with hesse.patched():
        (g,) = torch.autograd.grad(curved(x), x, create_graph=True)
    for _ in range(3):
        grad(g, x, rand(4), retain_graph=True)
    assert len(calls) == 1


def test_torchscript_and_backward_reach_the_node():
    script = torch.jit.script(_scripted)
    x, v = rand(4).requires_grad_(), rand(4)
    with hesse.patched():
        (g,) = torch.autograd.grad(curved(x), x, create_graph=True)
    assert ours(g)
    assert_close(script(g, x, v), functional.vhp(curved, x.detach(), v)[1])
    (g * v).sum().backward()
    assert_close(x.grad, functional.vhp(curved, x.detach(), v)[1])


def _scripted(g: torch.Tensor, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    outputs: list[torch.Tensor] = [g]
    inputs: list[torch.Tensor] = [x]
    vs: list[torch.Tensor | None] = [v]
    product = torch.autograd.grad(outputs, inputs, vs, retain_graph=True)[0]
    assert product is not None
    return product


# --- other leaves, third derivatives --------------------------------------------------------------


def network():
    torch.manual_seed(2)
    layers = torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4), torch.nn.Softplus()
    return torch.nn.Sequential(*layers, torch.nn.Linear(4, 1)).double()


def test_a_gradient_penalty_trains_the_weights_that_stock_trains():
    def make(grad):
        net, x = network(), rand(6, 3).requires_grad_()
        out = net(x).sum()
        (g,) = grad(out, x, create_graph=True)
        assert ours(g) == (grad is not stock_grad)
        (out + (g.norm(dim=1) - 1).pow(2).mean()).backward()
        return [x.grad, *(p.grad for p in net.parameters())]

    stock_grad = grad
    agree(make)


def test_a_weight_that_the_gradient_does_not_depend_on_gets_none():
    def make(grad):
        net, x = network(), rand(6, 3).requires_grad_()
        (g,) = grad(net(x).sum(), x, create_graph=True)
        g.pow(2).sum().backward()
        return [p.grad for p in net.parameters()]

    want, _ = both(make)
    assert want[-1] is None  # the last bias
    agree(make)


def test_the_gradient_of_parameters_can_be_differentiated_by_parameters_and_data():
    def make(grad):
        net, x = network(), rand(6, 3).requires_grad_()
        params = dict(net.named_parameters())
        gs = grad(net(x).tanh().sum(), params, create_graph=True)
        assert list(gs) == list(params)
        s = sum((g * g).sum() for g in gs.values())
        return [*gs.values(), *grad(s, [*params.values(), x], allow_unused=True)]

    agree(make)


def test_a_gradient_step_can_be_differentiated():
    def make(grad):
        w, x = rand(3).requires_grad_(), rand(3)
        fast = w
        for _ in range(3):
            (g,) = grad((fast * x).tanh().prod(), fast, create_graph=True)
            fast = fast - 0.5 * g
        return [fast, *grad((fast**2).sum(), w)]

    agree(make)


def test_second_derivatives_by_two_gradients_are_trained_as_in_stock():
    def make(grad):
        net, x = network(), rand(6, 3).requires_grad_()
        (u_x,) = grad(net(x).sum(), x, create_graph=True)
        (u_xx,) = grad(u_x[:, 0].sum(), x, create_graph=True)
        (u_xx[:, 0] + u_x[:, 1]).pow(2).mean().backward()
        return [u_xx, x.grad, *(p.grad for p in net.parameters())]

    agree(make)


def test_third_derivatives_are_right():
    w = rand(3).requires_grad_()

    def products(x, v, w):
        with hesse.patched():
            (g,) = torch.autograd.grad((w * x).exp().prod() * x.sum(), x, create_graph=True)
        assert ours(g)
        return grad(g, (x, w), v, create_graph=True)

    assert gradcheck(products, (rand(3).requires_grad_(), rand(3).requires_grad_(), w))


def test_an_input_may_be_a_result():
    def make(grad):
        w = rand(4).requires_grad_()
        x = w.sin()
        (g,) = grad(curved(x) * w.sum(), x, create_graph=True)
        return [g, *grad(g.prod(), w)]

    agree(make)


def test_an_input_that_depends_on_another_is_left_to_stock():
    def make(grad):
        x = rand(4).requires_grad_()
        h = x.exp()
        gs = grad(curved(h) * x.sum(), (x, h), create_graph=True)
        return [*gs, *grad(gs[0].sum() * gs[1].prod(), x)]

    agree(make)


# --- as stock -------------------------------------------------------------------------------------


def test_unused_inputs_are_none_or_zero_or_an_error():
    def make(allow_unused, materialize_grads):
        def inner(grad):
            x, z = rand(3).requires_grad_(), rand(2).requires_grad_()
            gs = grad(
                curved(x),
                [x, z],
                create_graph=True,
                allow_unused=allow_unused,
                materialize_grads=materialize_grads,
            )
            return [*gs, flags(gs)]

        return inner

    agree(make(True, False))
    agree(make(None, True))
    for patch in (hesse.patched, torch.enable_grad):
        with patch(), pytest.raises(RuntimeError, match="appears to not have been used"):
            make(None, False)(torch.autograd.grad)
        with patch(), pytest.raises(ValueError, match="allow_unused to be True or not passed"):
            make(False, True)(torch.autograd.grad)


W = rand(3, 3)
CONSTANT = {
    "a sum": lambda x: x.sum(),
    "a matrix product": lambda x: (W @ x).sum(),
    "a layer": lambda x: F.linear(x[None], W, W[0]).mean(),
    "views": lambda x: 3 * torch.cat([x.view(3, 1).T.squeeze(0)[1:], -x.flip(0)]).sum() - 1,
    "a quotient": lambda x: (x / 3 + x.clone()).unbind()[0],
    "one of two": lambda x: x.sum() + x.detach().exp().sum(),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_gradient_has_no_graph(name):
    x = rand(3).requires_grad_()
    with hesse.patched():
        (g,) = torch.autograd.grad(CONSTANT[name](x), x, create_graph=True)
    assert g.grad_fn is None and not g.requires_grad
    assert grad(CONSTANT[name](x), x, create_graph=True)[0].grad_fn is None


def test_of_two_gradients_only_the_curved_one_has_a_graph():
    def make(grad):
        x, z = rand(3).requires_grad_(), rand(3).requires_grad_()
        gs = grad(curved(x) + z.sum(), (x, z), create_graph=True)
        return [*gs, flags(gs)]

    agree(make)


def test_a_graph_is_freed_unless_it_is_retained():
    x = rand(3).requires_grad_()
    with hesse.patched():
        (g,) = torch.autograd.grad(curved(x), x, create_graph=True)
    first = grad(g.sum(), x, retain_graph=True)[0]
    assert_close(grad(g.sum(), x)[0], first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        grad(g.sum(), x)


def test_a_write_to_what_the_gradient_depends_on_is_an_error():
    x, w = rand(3).requires_grad_(), rand(3).requires_grad_()
    with hesse.patched():
        (g,) = torch.autograd.grad((w * x).exp().sum(), x, create_graph=True)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(g.sum(), x)


def test_writing_to_the_value_or_the_gradient_changes_nothing_else():
    x, w = rand(3).requires_grad_(), rand(3).requires_grad_()
    kept = w.detach().clone()
    with hesse.patched():
        y = (w * x).sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        y.add_(g.prod())
    with torch.no_grad():
        g.mul_(2)
    assert torch.equal(w, kept)
    assert_close(grad(g, w, torch.ones(3, dtype=f64))[0], torch.full((3,), 1.0, dtype=f64))


def left_alone():
    x, z = rand(3).requires_grad_(), rand(3).requires_grad_()
    c = torch.ones(3, dtype=torch.complex128).requires_grad_()
    y = curved(x)
    return {
        "several elements": ((x**3, x, torch.ones(3)), {}),
        "two outputs": (([y, curved(z)], [x, z]), {}),
        "given grad_outputs": ((y, x, torch.ones((), dtype=f64)), {}),
        "a freed graph": ((y, x), {"retain_graph": False}),
        "an input twice": ((y, [x, x]), {}),
        "a complex input": ((c.abs().pow(3).sum(), c), {}),
        "a custom Function": ((Crooked.apply(x, z), (x, z)), {}),
        "the value itself": ((y, y), {}),
        "a gradient edge": ((y, torch.autograd.graph.get_gradient_edge(x)), {}),
        "an iterator": ((y, iter([x])), {}),
    }


@pytest.mark.parametrize("name", left_alone())
def test_other_calls_are_left_to_stock(name):
    args, kwargs = left_alone()[name]
    with hesse.patched():
        gs = torch.autograd.grad(*args, create_graph=True, **kwargs)
    assert not any(ours(g) for g in gs)


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_act_as_in_stock(name):
    def make(grad):
        x = rand(3).requires_grad_()
        (g,) = grad(hooked(HOOKS[name])(x), x, create_graph=True)
        return [g, *grad(g.sum(), x)]

    agree(make)


def test_calls_without_create_graph_are_stock(monkeypatch):
    monkeypatch.setattr(gradient, "_dependence", None)  # would be an error
    x = rand(3).requires_grad_()
    with hesse.patched():
        torch.autograd.grad(curved(x), x)
        torch.autograd.grad(curved(x), x, create_graph=False)


def test_nothing_is_kept_alive():
    x = rand(3).requires_grad_()
    with hesse.patched():
        y = curved(x)
        (g,) = torch.autograd.grad(y, x, create_graph=True)
    grad(g.sum(), x, retain_graph=True)
    (third,) = grad(g.sum(), x, create_graph=True)
    linear = weakref.ref(g.grad_fn.linear)
    gc.collect()
    gc.disable()
    try:
        del y, g, third
        assert linear() is None
    finally:
        gc.enable()


def test_a_pass_that_does_not_retain_drops_the_linearization():
    x = rand(3).requires_grad_()
    with hesse.patched():
        (g,) = torch.autograd.grad(curved(x), x, create_graph=True)
    linear = g.grad_fn.linear
    grad(g.sum(), x)
    assert not linear._engines and not hasattr(linear, "y")


def test_no_warning_and_no_grad_field():
    x = rand(3).requires_grad_()
    y = curved(x)
    with warnings.catch_warnings(), hesse.patched(), torch.no_grad():
        warnings.simplefilter("error")
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        grad(g, x, torch.eye(3, dtype=f64), is_grads_batched=True)
    assert x.grad is None and ours(g)


# --- pytorch-minimize, unmodified -----------------------------------------------------------------

METHODS = ["newton-cg", "newton-exact", "trust-ncg", "trust-exact", "trust-krylov", "dogleg"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.triangular_solve")
@pytest.mark.parametrize("n", [2, 10])
@pytest.mark.parametrize("method", METHODS)
def test_pytorch_minimize_makes_the_same_iterates(method, n):
    torchmin = pytest.importorskip("torchmin")
    rosen = importlib.import_module("torchmin.benchmarks").rosen
    x0 = 1.3 + 0.05 * torch.cos(torch.arange(n, dtype=f64))

    def run():
        path = []
        try:
            result = torchmin.minimize(
                rosen, x0, method=method, callback=lambda x: path.append(x.clone())
            )
        except RuntimeError as error:  # its trust-krylov stops so, at any start that was tried
            return str(error), path
        return (result.nit, result.nfev, result.status), [*path, result.x, result.grad]

    want, got = run(), hesse.patched()(run)()
    assert got[0] == want[0] and len(got[1]) == len(want[1])
    assert method == "trust-krylov" or len(want[1]) > 2
    for a, b in zip(got[1], want[1], strict=True):
        assert_close(a, b)
