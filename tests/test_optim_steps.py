"""One step of Newton and of NewtonCG against what it solves: direct solves and KKT conditions."""

import numpy as np
import pytest
import torch
from drawing import generator
from test_optim import EVERY, beale, gradient, make, parameter, powell, rosenbrock
from torch.autograd.functional import hessian as stock
from torch.nn import Parameter
from torch.nn import functional as F

import hesse

pytestmark = pytest.mark.ours
f64 = torch.float64


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=f64, generator=generator(seed))


def symmetric(eigenvalues, seed=0):
    """A matrix with these eigenvalues, and its eigenvectors."""
    Q, _ = torch.linalg.qr(rand(len(eigenvalues), len(eigenvalues), seed=seed))
    return Q @ torch.diag(torch.tensor(eigenvalues, dtype=f64)) @ Q.T, Q


@pytest.mark.parametrize("indefinite", ["shift", "abs", "cholesky"])
def test_an_exact_step_is_the_solution_of_newtons_equations(indefinite):
    W, b = Parameter(rand(3, 2)), Parameter(rand(3, seed=1))
    X = rand(7, 2, seed=2)

    def loss(W, b):
        return (X @ W.T + b).cosh().sum()  # convex

    H = stock(loss, (W.detach(), b.detach()))
    H = np.block(
        [[h.numpy().reshape(h.numel() // n, n) for h, n in zip(r, (6, 3), strict=True)] for r in H]
    )
    g = torch.cat([v.reshape(-1) for v in torch.autograd.grad(loss(W, b), (W, b))]).numpy()
    before = np.concatenate([W.numpy(force=True).ravel(), b.numpy(force=True)])
    make("Newton", [W, b], indefinite=indefinite).step(lambda: loss(W, b))
    after = np.concatenate([W.numpy(force=True).ravel(), b.numpy(force=True)])
    np.testing.assert_allclose(after, before - np.linalg.solve(H, g), rtol=1e-10)


def test_an_indefinite_hessian_is_shifted_until_it_factorizes():
    from hesse.optim.newton import shifted_cholesky

    for eigenvalues in ([3.0, 2.0, 1.0], [3.0, -0.5, 1.0], [-4.0, -1.0, -1e-3], [0.0, 0.0, 0.0]):
        B, _ = symmetric(eigenvalues)
        L = shifted_cholesky(B)
        shift = L @ L.T - B
        tau, lowest = shift.diagonal().mean(), min(eigenvalues)
        assert torch.allclose(shift, tau * torch.eye(3, dtype=f64), atol=1e-12)
        assert tau.abs() < 1e-14 if lowest > 0 else tau > -lowest


def test_absolute_eigenvalues_turn_a_saddle_into_a_descent():
    B, Q = symmetric([2.0, -3.0, 0.5])
    c = rand(3, seed=3)
    x = Parameter(torch.zeros(3, dtype=f64))
    make("Newton", [x], indefinite="abs").step(lambda: 0.5 * x @ B @ x + c @ x)
    want = -Q @ ((Q.T @ c) / torch.tensor([2.0, 3.0, 0.5], dtype=f64))
    assert torch.allclose(x.detach(), want, rtol=1e-12)


@pytest.mark.parametrize("method", ["line-search", "trust-region"])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_conjugate_gradients_solve_a_convex_quadratic_as_the_direct_solve_does(method, n):
    B, _ = symmetric(torch.linspace(1, 50, n).tolist())
    c = rand(n, seed=1)
    x = Parameter(rand(n, seed=2))
    optimizer = make("NewtonCG", [x], method=method, forcing=1e-12, radius=1e6, cg_max_iter=2 * n)
    optimizer.step(lambda: 0.5 * x @ B @ x + c @ x)
    assert torch.allclose(x.detach(), -torch.linalg.solve(B, c), rtol=1e-10, atol=1e-12)


def test_the_inner_solve_stops_at_the_forcing_term():
    from hesse.optim.newton_cg import truncated_cg

    B, _ = symmetric(torch.logspace(0, 3, 50).tolist())
    g, products = rand(50, seed=1), []

    def product(v):
        products.append(v)
        return B @ v

    for share in (0.5, 1e-2, 1e-6):
        products.clear()
        p = truncated_cg(product, g, share * float(g.norm()), 500)
        assert (B @ p + g).norm() <= share * g.norm() * (1 + 1e-6)
        shorter = truncated_cg(lambda v: B @ v, g, 0.0, len(products) - 1)
        assert (B @ shorter + g).norm() > share * g.norm()  # one product fewer would not do


EIGENVALUES = {
    "convex": [0.5, 1.0, 2.0, 9.0],
    "indefinite": [-2.0, -0.1, 1.0, 3.0],
    "concave": [-3.0, -2.0, -1.0, -0.5],
    "singular": [0.0, 0.0, 1.0, 2.0],
    "multiple": [-2.0, -2.0, -2.0, 3.0],
}


@pytest.mark.parametrize("radius", [1e-3, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("lowest", [1.0, 1e-9, 1e-18, 0.0])  # of g along the lowest eigenvector
@pytest.mark.parametrize("eigenvalues", EIGENVALUES.values(), ids=EIGENVALUES)
def test_the_trust_region_step_meets_the_conditions_of_a_minimum(eigenvalues, lowest, radius):
    from hesse.optim.newton import minimise_in_ball

    values = torch.tensor(eigenvalues, dtype=f64)
    g = torch.tensor([lowest, 0.4, -1.0, 0.7], dtype=f64)
    if lowest == 0:
        g = torch.where(values == values[0], 0, g)  # the hard case, or all but
    p = minimise_in_ball(values, g, radius)
    length = p.norm()
    inside = values[0] > 0 and (g / values).norm() <= radius
    assert length <= radius * (1 + 1e-12)
    big = p.abs().argmax()
    multiplier = 0.0 if inside else float(-(g + values * p)[big] / p[big])
    scale = g.norm() + values.abs().max() * length
    assert multiplier >= -1e-12 * scale  # lambda >= 0
    assert torch.all(values + multiplier >= -1e-12 * scale)  # B + lambda I is positive
    assert torch.allclose((values + multiplier) * p, -g, atol=float(1e-12 * scale))
    assert abs(multiplier) * (radius - length) <= 1e-10 * scale * radius


@pytest.mark.parametrize("kind", ["Newton", "NewtonCG"])
@pytest.mark.parametrize("eigenvalues", [[0.5, 1.0, 9.0], [-2.0, 1.0, 3.0], [-3.0, -2.0, -1.0]])
def test_in_a_small_ball_the_step_ends_on_the_border_and_beats_the_gradient(kind, eigenvalues):
    B, _ = symmetric(eigenvalues)
    c, radius = rand(3, seed=4), 0.1
    x = Parameter(torch.zeros(3, dtype=f64))

    def model(p):
        return 0.5 * p @ B @ p + c @ p

    make(kind, [x], method="trust-region", radius=radius).step(lambda: model(x))
    p = x.detach()
    assert p.norm() == pytest.approx(radius, rel=1e-12)
    curvature = float(c @ B @ c) / float(c.norm()) ** 3
    length = min(radius, 1 / curvature) if curvature > 0 else radius
    assert model(p) <= model(-c * length / c.norm()) + 1e-15  # the Cauchy point
    if kind == "Newton":
        multiplier = -float(p @ (B @ p + c)) / radius**2
        assert torch.allclose(B @ p + multiplier * p, -c, rtol=1e-10)
        assert multiplier >= max(0.0, -min(eigenvalues)) - 1e-10


@pytest.mark.parametrize("kind", ["Newton", "NewtonCG"])
def test_rejected_trials_shrink_the_radius_and_need_no_new_graph(kind):
    x, runs = parameter(-1.2, 5.0), []  # where the Hessian is indefinite

    def closure():
        runs.append(torch.is_grad_enabled())
        return rosenbrock(x)

    optimizer = make(kind, [x], method="trust-region", radius=1e3)
    before = rosenbrock(x).item()
    optimizer.step(closure)
    assert runs.count(True) == 1 and runs.count(False) > 1
    assert rosenbrock(x).item() < before
    assert optimizer.state[x]["radius"] < 1e3


@pytest.mark.parametrize(
    "kind, options",
    [
        *(("Newton", {"method": "damped", "indefinite": i}) for i in ("shift", "abs", "cholesky")),
        ("Newton", {"method": "trust-region"}),
        ("NewtonCG", {"method": "line-search"}),
        ("NewtonCG", {"method": "trust-region"}),
    ],
)
@pytest.mark.parametrize("start", [(0.1, 0.0), (1e-6, 1e-3), (0.0, 0.01)])
def test_a_step_from_near_a_saddle_or_a_maximum_goes_down(kind, options, start):
    for sign in (1.0, -1.0):
        x = parameter(*start)

        def loss(x, sign=sign):
            return sign * x[0] ** 2 - x[1] ** 2 + x.pow(4).sum()

        optimizer = make(kind, [x], **options)
        before = loss(x).item()
        for _ in range(2):
            optimizer.step(lambda loss=loss, x=x: loss(x))
            assert (after := loss(x).item()) < before
            before = after


def test_the_exact_trust_region_leaves_a_stationary_saddle():
    x = parameter(0.0, 0.0)
    optimizer = make("Newton", [x], method="trust-region")
    for _ in range(12):
        optimizer.step(lambda: x[0] ** 2 - x[1] ** 2 + x.pow(4).sum())
    assert torch.allclose(x.detach().abs(), torch.tensor([0.0, 0.5**0.5], dtype=f64), atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_directions_without_curvature_do_not_keep_the_trust_region_from_the_minimum(seed):
    i, j = torch.triu_indices(5, 5, 1)

    def energy():  # of a cluster: translations and rotations cost nothing
        r6 = (x[i] - x[j]).square().sum(1) ** -3
        return (r6**2 - r6).sum()

    corners = [[0, 0, 0], [1.1, 0, 0], [0.5, 1, 0], [0.5, 0.4, 1], [0.5, 0.4, -1]]
    start = torch.tensor(corners, dtype=f64) + 0.05 * rand(5, 3, seed=seed)
    x = Parameter(start)
    optimizer = make("Newton", [x], method="trust-region", radius=0.1)
    for step in range(40):
        optimizer.step(energy)
        if step >= 20:
            (g,) = torch.autograd.grad(energy(), x)
            assert g.abs().max() < 1e-11


@pytest.mark.parametrize("func", [rosenbrock, beale, powell])
def test_a_line_search_ends_where_armijos_condition_holds(func):
    from hesse.optim._optimizer import ARMIJO

    start = {rosenbrock: (-1.2, 1.0), beale: (0.1, 1.1), powell: (3.0, -1.0, 0.0, 1.0)}[func]
    x = parameter(*start)
    optimizer = make("Newton", [x], method="damped", indefinite="abs")
    for _ in range(6):
        before, g, at = func(x).item(), gradient(func, x), x.detach().clone()
        optimizer.step(lambda: func(x))
        step = x.detach() - at
        assert func(x).item() <= before + ARMIJO * float(g @ step) + 1e-13 * before


@pytest.mark.parametrize("kind", ["Newton", "NewtonCG"])
def test_lr_damping_and_weight_decay_are_those_of_the_group(kind):
    a, b = parameter(1.0, -0.5), parameter(2.0)
    A = torch.tensor([[4.0, 1, 1], [1, 3, 0.5], [1, 0.5, 2]], dtype=f64)
    c = torch.tensor([1.0, 2, 3], dtype=f64)

    def closure():
        x = torch.cat([a, b])
        return 0.5 * x @ A @ x - c @ x

    exact = {"method": "exact"} if kind == "Newton" else {"forcing": 1e-14}
    groups = [
        {"params": [a], "lr": 0.5, "damping": 0.2},
        {"params": [b], "lr": 0.25, "weight_decay": 0.3},
    ]
    x = torch.cat([a, b]).detach()
    decay, damping = torch.tensor([0, 0, 0.3]), torch.tensor([0.2, 0.2, 0])
    g = A @ x - c + decay * x
    p = -torch.linalg.solve(A + torch.diag(decay + damping), g)
    make(kind, groups, **exact).step(closure)
    want = x + torch.tensor([0.5, 0.5, 0.25]) * p
    assert torch.allclose(torch.cat([a, b]).detach(), want, rtol=1e-12)


@pytest.mark.parametrize("method", ["damped", "trust-region"])
def test_uneven_rates_that_turn_a_step_uphill_still_end_downhill(method):
    a, b = parameter(1.0), parameter(1.0)
    B = torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=f64)
    c = torch.tensor([-2.5, -2.6], dtype=f64)

    def closure():
        x = torch.cat([a, b])
        return 0.5 * x @ B @ x + c @ x

    g = B @ torch.ones(2, dtype=f64) + c
    lr = torch.tensor([1.0, 1e-3], dtype=f64)
    assert g @ (lr * -torch.linalg.solve(B, g)) > 0  # the step of both at these rates
    before = closure().item()
    groups = [{"params": [a], "lr": 1.0}, {"params": [b], "lr": 1e-3}]
    make("Newton", groups, method=method, radius=100.0).step(closure)
    assert closure().item() < before


@pytest.mark.parametrize("kind, options", EVERY)
def test_in_float32_a_line_search_is_not_stopped_by_rounding(kind, options):
    X = rand(200, 6).float()
    w = Parameter(torch.zeros(6))

    def loss(w):
        return F.softplus(X @ w - 0.3).mean() + 0.1 * w.square().sum() + 7  # 7 hides the digits

    before = gradient(loss, w).norm()
    optimizer = make(kind, [w], **options)
    for _ in range(12):
        optimizer.step(lambda: loss(w))
    assert gradient(loss, w).norm() < 1e-6 * before


def digits_net():
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10))
    X, y = torch.tensor(X[:500] / 16, dtype=torch.float32), torch.tensor(y[:500])
    return net, lambda: F.cross_entropy(net(X), y)


@pytest.mark.parametrize("method", ["line-search", "trust-region"])
def test_a_network_on_digits_trains_the_same_way_twice(method):
    def train():
        net, closure = digits_net()
        optimizer = make("NewtonCG", net.parameters(), method=method, cg_max_iter=20)
        return [optimizer.step(closure).item() for _ in range(12)], net.state_dict()

    (losses, first), (again, second) = train(), train()
    assert losses == again and all(first[k].equal(second[k]) for k in first)
    assert losses[-1] < 0.3 * losses[0]
    assert all(b <= a for a, b in zip(losses, losses[1:], strict=False))


def test_the_bench_of_optimisers_runs_and_every_one_of_ours_arrives():
    from bench import optimisers

    ours = {name: solve for name, solve in optimisers.PEERS.items() if name.startswith("hesse")}
    outcomes = optimisers.compare(optimisers.PROBLEMS["rosenbrock-2"](), ours, rounds=2)
    assert len(outcomes) == 4
    for outcome in outcomes.values():
        assert not outcome.refusal and outcome.gradient <= 1e-8 and len(outcome.samples) == 2


@pytest.mark.parametrize("optimiser", [hesse.optim.Newton, hesse.optim.NewtonCG])
def test_a_trust_region_at_rest_follows_a_target_that_moves(optimiser):
    A = torch.randn(3, 3, generator=generator(0), dtype=torch.float64)
    target = torch.zeros(3, dtype=torch.float64)
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optim = optimiser([p], method="trust-region")

    def loss():
        return ((A @ p - target) ** 2 + 1).log().sum()

    for _ in range(60):
        optim.step(loss)
    target += 1
    for _ in range(60):
        optim.step(loss)
    assert loss() < 1e-12
