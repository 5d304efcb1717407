"""Newton and NewtonCG as optimisers: where they arrive, what they leave alone, what they refuse."""

import copy
import gc
import warnings
import weakref

import pytest
import scipy.optimize
import torch
from drawing import generator
from torch.nn import Parameter
from torch.nn import functional as F

pytestmark = pytest.mark.ours
f64 = torch.float64

NEWTONS = [
    *(
        {"method": m, "indefinite": i}
        for m in ("exact", "damped")
        for i in ("shift", "abs", "cholesky")
    ),
    {"method": "trust-region"},
]
CGS = [{"method": "line-search"}, {"method": "trust-region"}]
EVERY = [("Newton", options) for options in NEWTONS] + [("NewtonCG", options) for options in CGS]
ONE_OF_EACH = [("Newton", {"method": m}) for m in ("exact", "damped", "trust-region")] + EVERY[-2:]

every = pytest.mark.parametrize("kind, options", EVERY)
one_of_each = pytest.mark.parametrize("kind, options", ONE_OF_EACH)


def make(kind, params, **options):
    import hesse

    return getattr(hesse.optim, kind)(params, **options)


def parameter(*values):
    return Parameter(torch.tensor(values, dtype=f64))


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def powell(x):
    a, b, c, d = x
    return (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4


def beale(x):
    return sum((c - x[0] * (1 - x[1] ** n)) ** 2 for n, c in enumerate((1.5, 2.25, 2.625), 1))


def himmelblau(x):
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def gradient(func, x):
    return torch.autograd.grad(func(x), x)[0]


def minimise(optimizer, closure, func, x, tolerance, steps=100):
    """The number of steps until the gradient is small."""
    for n in range(steps):
        if gradient(func, x).norm() <= tolerance:
            return n
        optimizer.step(closure)
    raise AssertionError(f"no minimum after {steps} steps: {x.detach()}")


# --- where they arrive ----------------------------------------------------------------------------


HIMMELBLAU = [(3, 2), (-2.805118, 3.131313), (-3.779310, -3.283186), (3.584428, -1.848127)]


@every
@pytest.mark.parametrize(
    "func, start, minima, distance",
    [
        (rosenbrock, (-1.2, 1.0), [(1.0, 1.0)], 1e-8),
        (rosenbrock, (1.3, 0.7, 0.8, 1.9, 1.2), [(1.0,) * 5], 1e-8),
        (powell, (3.0, -1.0, 0.0, 1.0), [(0.0,) * 4], 1e-3),  # singular: g is a third power
        (beale, (1.0, 1.0), [(3.0, 0.5)], 1e-7),
        (himmelblau, (-0.2, -0.9), HIMMELBLAU, 1e-6),  # near its maximum
        (himmelblau, (0.1, 2.9), HIMMELBLAU, 1e-6),  # near a saddle
    ],
)
def test_standard_functions_are_minimised(kind, options, func, start, minima, distance):
    x = parameter(*start)
    minimise(make(kind, [x], **options), lambda: func(x), func, x, 1e-9)
    assert min(float((x - parameter(*m)).detach().norm()) for m in minima) < distance


@every
def test_near_a_minimum_the_error_squares(kind, options):
    x = parameter(0.5, -0.3, 0.4)
    more = {} if kind == "Newton" else {"forcing_power": 1.0}
    optimizer = make(kind, [x], **options, **more)
    errors = []
    for _ in range(8):
        errors.append(float(x.detach().norm()))
        optimizer.step(lambda: (x.exp() - x).sum() + x.sum() ** 2)  # its minimum is 0
    assert errors[-1] < 1e-14
    pairs = [(e, after) for e, after in zip(errors, errors[1:], strict=False) if 1e-7 < e < 0.3]
    assert len(pairs) >= 2 and all(after < 10 * e * e for e, after in pairs)


def classification(n=300, d=8):
    g = generator(1)
    X = torch.randn(n, d, dtype=f64, generator=g)
    y = (
        X @ torch.randn(d, dtype=f64, generator=g) + torch.randn(n, dtype=f64, generator=g) > 0
    ).double()
    return X, y


@every
def test_logistic_regression_reaches_machine_precision(kind, options):
    X, y = classification()

    def loss(w):
        return F.binary_cross_entropy_with_logits(X @ w, y) + 1e-3 * w.square().sum()

    w = Parameter(torch.zeros(X.shape[1], dtype=f64))
    start = gradient(loss, w).norm()
    minimise(make(kind, [w], **options), lambda: loss(w), loss, w, 1e-12 * start, steps=30)

    def of_numpy(v):
        v = torch.tensor(v, requires_grad=True)
        value = loss(v)
        return value.item(), torch.autograd.grad(value, v)[0].numpy()

    best = scipy.optimize.minimize(of_numpy, [0.0] * X.shape[1], jac=True, options={"gtol": 1e-9})
    assert torch.allclose(w.detach(), torch.tensor(best.x), atol=1e-6)
    assert loss(w).item() <= best.fun + 1e-15


# --- groups, state, what is left alone ------------------------------------------------------------


@one_of_each
def test_a_state_dict_resumes_bit_for_bit(kind, options):
    x = parameter(-1.2, 1.0, 0.3)
    optimizer = make(kind, [x], **options, damping=0.1, radius=0.3)
    for _ in range(3):
        optimizer.step(lambda: rosenbrock(x))
    saved, at = copy.deepcopy(optimizer.state_dict()), x.detach().clone()
    for _ in range(4):
        optimizer.step(lambda: rosenbrock(x))

    y = Parameter(at)
    other = make(kind, [y], method=options["method"])
    other.load_state_dict(saved)
    for _ in range(4):
        other.step(lambda: rosenbrock(y))
    assert y.equal(x)
    assert other.state_dict() == optimizer.state_dict()

    twin, z = copy.deepcopy((optimizer, x))  # deepcopied together, they still belong together
    twin.step(lambda: rosenbrock(z))
    optimizer.step(lambda: rosenbrock(x))
    assert z.equal(x)


@one_of_each
def test_only_what_requires_grad_and_is_used_moves(kind, options):
    x, frozen, unused = parameter(-1.2, 1.0), parameter(2.0).requires_grad_(False), parameter(5.0)
    empty = Parameter(torch.zeros(0, dtype=f64))
    x.grad = torch.full_like(x, 7)
    optimizer = make(kind, [frozen, unused, x, empty], **options, weight_decay=0.1)
    loss = optimizer.step(lambda: frozen[0] * rosenbrock(x))
    assert loss.item() == 2 * rosenbrock(torch.tensor([-1.2, 1.0], dtype=f64)).item()
    assert not x.equal(parameter(-1.2, 1.0))
    assert frozen.item() == 2 and unused.item() == 5 and unused.grad is None
    assert x.grad.equal(torch.full_like(x, 7))


@one_of_each
def test_closure_runs_once_with_grad(kind, options):
    x, calls = parameter(-1.2, 1.0), []

    def closure():
        calls.append(torch.is_grad_enabled())
        return rosenbrock(x)

    optimizer = make(kind, [x], **options)
    for _ in range(5):
        calls.clear()
        optimizer.step(closure)
        assert calls[0] and not any(calls[1:])
        assert (len(calls) == 1) == (options["method"] == "exact")


@one_of_each
def test_nothing_is_kept_after_a_step(kind, options):
    x, seen = parameter(-1.2, 1.0), []

    def closure():
        y = x.exp()
        seen.append(weakref.ref(y))
        return (y * y).sum() + rosenbrock(x)

    optimizer = make(kind, [x], **options)
    gc.disable()
    try:
        loss = optimizer.step(closure)
        assert loss.grad_fn is None and all(ref() is None for ref in seen)
    finally:
        gc.enable()


def test_a_learning_rate_scheduler_drives_lr():
    x = parameter(4.0)
    optimizer = make("Newton", [x])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for lr in (1.0, 0.5, 0.25):
        with torch.no_grad():
            x.fill_(4.0)
        optimizer.step(lambda: (x * x).sum())
        assert x.item() == pytest.approx(4 * (1 - lr), abs=1e-12)
        scheduler.step()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, options, words",
    [
        ("Newton", {"method": "fast"}, "hesse.optim.Newton: method must be 'exact', 'damped' or"),
        ("Newton", {"indefinite": "no"}, "indefinite must be 'shift', 'abs' or 'cholesky', got"),
        ("Newton", {"lr": -1.0}, "lr must be a non-negative number, got -1.0"),
        ("Newton", {"damping": float("nan")}, "damping must be a non-negative number, got nan"),
        ("NewtonCG", {"weight_decay": "1"}, "weight_decay must be a non-negative number, got '1'"),
        ("NewtonCG", {"radius": 0}, "radius must be a positive number, got 0"),
        ("NewtonCG", {"method": "exact"}, "hesse.optim.NewtonCG: method must be 'line-search' or"),
        ("NewtonCG", {"forcing": 1.0}, "forcing must be below 1, got 1.0"),
        ("NewtonCG", {"forcing_power": True}, "forcing_power must be a non-negative number"),
        ("NewtonCG", {"cg_max_iter": 0}, "cg_max_iter must be None or a positive integer, got 0"),
    ],
)
def test_bad_options_are_named(kind, options, words):
    with pytest.raises(ValueError, match=words):
        make(kind, [parameter(1.0)], **options)


def test_groups_must_agree_on_what_is_not_theirs():
    a, b = parameter(1.0), parameter(1.0)
    groups = [{"params": [a]}, {"params": [b], "method": "damped"}]
    with pytest.raises(ValueError, match="method belongs to the whole optimiser, and one group"):
        make("Newton", groups)
    optimizer = make("Newton", [a])
    for bad in ({"params": [b], "lr": -1}, {"params": [Parameter(torch.ones(1))]}):
        with pytest.raises(ValueError, match="lr must be|share one dtype"):
            optimizer.add_param_group(bad)
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    "params",
    [
        [Parameter(torch.ones(1)), parameter(1.0)],
        [Parameter(torch.ones(1, dtype=torch.float16))],
        [Parameter(torch.ones(1, dtype=torch.complex128))],
        [parameter(1.0), Parameter(torch.ones(1, dtype=f64, device="meta"))],
    ],
)
def test_parameters_share_one_dtype_and_one_device(params):
    with pytest.raises(ValueError, match="all parameters must share one dtype, float32 or float64"):
        make("Newton", params)


def called_backward(x):
    loss = rosenbrock(x)
    loss.backward()
    return loss


def zero(x):
    return x - x.detach()


@pytest.mark.parametrize("kind", ["Newton", "NewtonCG"])
@pytest.mark.parametrize(
    "closure, error, words",
    [
        (called_backward, RuntimeError, "closure must return the loss and not call backward on it"),
        (lambda x: rosenbrock(x).detach(), RuntimeError, "the loss depends on no parameter"),
        (lambda x: parameter(1.0).sum(), RuntimeError, "the loss depends on no parameter"),
        (lambda x: rosenbrock(x).item(), TypeError, "closure must return one real element"),
        (lambda x: x * x, TypeError, r"one real element, a Tensor; got torch.float64 of \(2,\)"),
        (lambda x: rosenbrock(x) / 0, RuntimeError, "the loss is inf at the current parameters"),
        (lambda x: rosenbrock(x) * torch.nan, RuntimeError, "the loss is nan"),
        (lambda x: x.sum() + zero(x).pow(1.5).sum(), RuntimeError, "the Hessian is not finite"),
        (lambda x: zero(x).sqrt().sum(), RuntimeError, "the gradient is not finite"),
    ],
)
def test_a_closure_that_cannot_be_used_is_one_clear_error(kind, closure, error, words):
    x = parameter(-1.2, 1.0)
    with pytest.raises(error, match=f"^hesse.optim.{kind}.step: .*{words}"):
        make(kind, [x]).step(lambda: closure(x))
    assert x.equal(parameter(-1.2, 1.0))


def test_closure_must_be_callable():
    with pytest.raises(TypeError, match="hesse.optim.Newton.step: closure must be callable"):
        make("Newton", [parameter(1.0)]).step(None)
    frozen = parameter(1.0).requires_grad_(False)
    with pytest.raises(RuntimeError, match="no parameter requires grad"):
        make("Newton", [frozen]).step(lambda: frozen.sum())


@pytest.mark.parametrize("kind, options", ONE_OF_EACH[1:])
def test_a_trial_that_fails_leaves_the_parameters_as_they_were(kind, options):
    x = parameter(-1.2, 1.0)

    def closure():
        if not torch.is_grad_enabled():
            raise KeyError("no data left")
        return rosenbrock(x)

    with pytest.raises(KeyError, match="no data left"):
        make(kind, [x], **options).step(closure)
    assert x.equal(parameter(-1.2, 1.0))


@pytest.mark.parametrize("kind, options", ONE_OF_EACH[1:])
def test_steps_into_infinity_or_nan_are_shortened(kind, options):
    x = parameter(0.1)
    optimizer = make(kind, [x], **options, radius=50.0)
    for _ in range(60):
        optimizer.step(lambda: (x - 3 * x.log()).sum())  # nan below 0
    assert x.item() == pytest.approx(3, abs=1e-9)


@one_of_each
def test_plain_autograd_stands_in_visibly_for_the_engine(kind, options):
    import hesse

    def run(hooked):
        x, unused = parameter(-1.2, 1.0), parameter(1.0)
        if hooked:
            x.register_hook(lambda g: g)
        optimizer = make(kind, [unused, x], **options)
        for _ in range(6):
            optimizer.step(lambda: rosenbrock(x))
        return x.detach()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hooked = run(True)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert f"hesse.optim.{kind}.step used plain autograd" in str(caught[0].message)
    assert torch.allclose(hooked, run(False), rtol=1e-9)
    with hesse.fallback("error"), pytest.raises(hesse.FallbackError, match="hook on input"):
        run(True)


class Frozen(torch.autograd.Function):
    """Cubes; its backward counts as constant, as autograd does not see it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        grad = 3 * g.numpy(force=True) * x.numpy(force=True) ** 2
        return torch.from_numpy(grad).to(g.device)


@pytest.mark.parametrize("kind", ["Newton", "NewtonCG"])
def test_so_does_it_where_the_engine_gives_up_within_a_product(kind):
    x = parameter(-1.0, 2.0)
    optimizer = make(kind, [x], method="trust-region", radius=100.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step(lambda: x.square().sum() - 0.1 * Frozen.apply(x).sum())
    assert len(caught) == 1 and caught[0].filename == __file__
    assert "FrozenBackward is not twice differentiable" in str(caught[0].message)
    y = torch.tensor([-1.0, 2.0], dtype=f64)
    step = -(2 * y - 0.3 * y**2) / 2  # the Hessian that autograd takes it to have is 2
    assert torch.allclose(x.detach(), y + step, rtol=1e-12)
