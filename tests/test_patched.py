"""Under ``patched()`` existing code gets what it gets from stock, by way of the engine."""

import importlib
import threading

import pytest
import torch
from outcome import assert_close
from test_contract import rand
from torch.autograd import functional

import hesse

pytestmark = pytest.mark.ours
f64 = torch.float64
grad = torch.autograd.grad  # stock's


def ours(g):
    return type(g.grad_fn).__name__ == "_GradientBackward"


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


def test_generators_may_close_it_in_any_order():
    def scope():
        with hesse.patched():
            yield

    first, second = scope(), scope()
    next(first), next(second)
    first.close()
    thread = threading.Thread(target=second.close)
    thread.start()
    thread.join()
    assert torch.autograd.grad is grad
    x = torch.ones(2, dtype=f64, requires_grad=True)
    (g,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    assert "Gradient" not in type(g.grad_fn).__name__
