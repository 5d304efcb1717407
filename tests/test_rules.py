"""The laws of a rule, in the order in which they name what is wrong.

For y = f(x) with Jacobian J, linearized with the cotangent gy:

    push(dx) = J dx        pull(dgy) = J' dgy        hvp(dx) = d(J' gy) . dx

A wrong sign in f'' passes the symmetry law and breaks every composition: only the local law of
``hvp`` names the row.
"""

import functools

import pytest
import torch
from scenarios import ALL, CASES, TABLE, Case, Scenario

pytestmark = pytest.mark.ours

DIRECTIONS = 2
ZERO = torch.zeros((), dtype=torch.float64)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Nothing here is worth a second one, and waiting for it takes longer than the tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


ON_CPU = torch.get_default_device().type == "cpu"


def seed():
    """torch.manual_seed also notes its caller, for devices that are not there: that takes long."""
    if ON_CPU:
        torch.default_generator.manual_seed(0)
    else:
        torch.manual_seed(0)


# ---- what torch says -----------------------------------------------------------------------------


def stock_pull(ys, xs, gys, create_graph=False):
    return torch.autograd.grad(
        ys,
        xs,
        gys,
        create_graph=create_graph,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def stock_vjp(outputs, inputs, cotangents):
    """A vector-Jacobian product in which an output may depend on nothing."""
    live = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not live:
        return [torch.zeros_like(x) for x in inputs]
    return stock_pull([o for o, _ in live], inputs, [c for _, c in live])


def stock_push(ys, xs, dxs):
    gs = [torch.zeros_like(y).requires_grad_() for y in ys]
    return stock_vjp(stock_pull(ys, xs, gs, create_graph=True), gs, dxs)


def stock_curve(ys, xs, gys, dxs):
    return stock_vjp(stock_pull(ys, xs, gys, create_graph=True), xs, dxs)


# ---- the points at which the laws are tested -----------------------------------------------------


class Point:
    """A case evaluated: by the op, and in float64 by the reference that torch differentiates."""

    def __init__(self, case: Case):
        from hesse import _C

        s = case.scenario
        inputs = case.inputs()
        exact = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
        self.xs = [x for x in inputs if x.requires_grad]
        self.exact_xs = [x for x in exact if x.requires_grad]
        seed()
        self.ys = outputs(s.fn(*inputs))
        seed()
        self.exact_ys = outputs((s.reference or s.fn)(*exact))
        self.gys = [random_like(y) for y in self.ys]
        self.lin = _C.linearize(self.ys, self.xs, self.gys, False)
        self.dxs = [random_like(x, DIRECTIONS) for x in self.xs]
        self.dgys = [random_like(y, DIRECTIONS) for y in self.ys]

    @property
    def exact_gys(self):
        return [g.double() for g in self.gys]


def outputs(ys):
    ys = [ys] if isinstance(ys, torch.Tensor) else list(ys)
    return [y for y in ys if y.requires_grad]


def random_like(t, *leading):
    return torch.randn((*leading, *t.shape), dtype=torch.float64).to(t.dtype)


@functools.cache
def point(case: Case) -> Point:
    seed()
    return Point(case)


def each_layout(law):
    """Tests a law of a point in every layout of a scenario; a failure names the layout."""

    @pytest.mark.parametrize("scenario", TABLE, ids=lambda s: s.name)
    def test(scenario):
        for case in CASES[scenario]:
            try:
                law(point(case), case.tolerance)
            except Exception as e:
                e.add_note(f"in layout: {case.layout}")
                raise

    test.__name__ = law.__name__
    return test


def assert_agree(ours, expected, tolerance):
    """``ours`` are rows of every direction, ``expected`` a list per direction."""
    for i, rows in enumerate(ours):
        wanted = torch.stack([e[i] for e in expected])
        torch.testing.assert_close(rows.double(), wanted.double(), **tolerance)


def inner(a, b):
    return sum(((s.double() * t.double()).sum() for s, t in zip(a, b, strict=True)), ZERO)


def each(rows):
    """Row by row, in float64.

    Copies: torch's backward of a strided scatter counts from the start of the memory it is given.
    """
    return [[r[k].to(torch.float64, copy=True) for r in rows] for k in range(DIRECTIONS)]


every_scenario = pytest.mark.parametrize("scenario", TABLE, ids=lambda s: s.name)


# ---- the table -----------------------------------------------------------------------------------


def test_every_native_rule_has_a_scenario():
    from hesse import _C

    named = {node for s in ALL for node in s.nodes if not s.driven}
    assert set(_C.rule_names()) - named == set()


def test_every_scenario_names_rules_that_exist():
    from hesse import _C

    named = {node for s in ALL for node in s.nodes if not s.driven}
    assert named - set(_C.rule_names()) == set()


def test_scenarios_have_different_names():
    names = [s.name for s in ALL]
    assert sorted(names) == sorted(set(names))


@every_scenario
def test_a_rule_runs_natively_where_it_covers_the_node(scenario):
    report = point(Case(scenario, "plain")).lin.report()
    if not ON_CPU:  # where some ops record other nodes
        assert scenario.driven or report["autograd_ops"] == {}
    elif scenario.driven:
        assert set(scenario.nodes) == set(report["autograd_ops"])
    else:
        assert set(scenario.nodes) <= set(report["native_ops"])
        assert report["autograd_ops"] == {}


# ---- the laws ------------------------------------------------------------------------------------


@each_layout
def test_push_is_the_jacobian_vector_product(p, tolerance):
    exact = [stock_push(p.exact_ys, p.exact_xs, dx) for dx in each(p.dxs)]
    assert_agree(p.lin.push(p.dxs), exact, tolerance)


@each_layout
def test_pull_is_the_transpose_of_push(p, tolerance):
    forward, back = p.lin.push(p.dxs), p.lin.pull(p.dgys)
    for dgy, dy, dgx, dx in zip(each(p.dgys), each(forward), each(back), each(p.dxs), strict=True):
        torch.testing.assert_close(inner(dgy, dy), inner(dgx, dx), **tolerance)


@each_layout
def test_pull_is_the_gradient(p, tolerance):
    exact = [stock_pull(p.exact_ys, p.exact_xs, dgy) for dgy in each(p.dgys)]
    assert_agree(p.lin.pull(p.dgys), exact, tolerance)


@each_layout
def test_curve_is_the_derivative_of_pull(p, tolerance):
    exact = [stock_curve(p.exact_ys, p.exact_xs, p.exact_gys, dx) for dx in each(p.dxs)]
    assert_agree(p.lin.hvp(p.dxs), exact, tolerance)


@each_layout
def test_curve_is_symmetric(p, tolerance):
    (u, v), (hu, hv) = each(p.dxs), each(p.lin.hvp(p.dxs))
    torch.testing.assert_close(inner(u, hv), inner(v, hu), **tolerance)


@every_scenario
def test_a_linearization_forgets_the_seeds_it_had_before(scenario):
    from hesse import _C

    p = point(Case(scenario, "plain"))
    others = [torch.full_like(g, 0.5) for g in p.gys]
    lin = _C.linearize(p.ys, p.xs, others, False)
    lin.hvp(p.dxs)
    lin.seed(p.gys)
    for mine, wanted in zip(lin.hvp(p.dxs), p.lin.hvp(p.dxs), strict=True):
        torch.testing.assert_close(mine, wanted)


# ---- compositions --------------------------------------------------------------------------------


def composition(scenario: Scenario, fn):
    """f(x) = sum(sin(op(u(x))) * w), where u(x) = x in value, with u' = u'' = 1."""

    def f(*xs):
        ys = fn(*(x.detach() + torch.expm1(x - x.detach()) for x in xs))
        ys = [ys] if isinstance(ys, torch.Tensor) else [y for y in ys if y.is_floating_point()]
        total = 0
        for y in ys:
            w = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)
            total = total + (torch.sin(y) * w).sum()
        return total

    return f


@every_scenario
@pytest.mark.parametrize("create_graph", [False, True], ids=["", "create_graph"])
def test_the_hessian_of_a_composition_is_that_of_torch(scenario, create_graph):
    from hesse import _C

    xs = Case(scenario, "plain").inputs()
    f = composition(scenario, scenario.fn)
    reference = composition(scenario, scenario.reference or scenario.fn)
    seed()
    stock = torch.autograd.functional.hessian(reference, tuple(x.detach() for x in xs))
    seed()
    lin = _C.linearize([f(*xs)], xs, None, create_graph)
    ours = lin.hessian(None, False)
    for i, row in enumerate(ours):
        for j, block in enumerate(row):
            torch.testing.assert_close(block.detach(), stock[i][j], rtol=1e-8, atol=1e-10)


@every_scenario
def test_the_hessian_of_a_composition_can_be_differentiated(scenario):
    from hesse import _C

    if "create_graph" in scenario.skips:
        pytest.skip(scenario.skips["create_graph"])
    xs = Case(scenario, "plain").inputs()
    weights = None
    thirds = []
    for ours in (True, False):
        f = composition(scenario, scenario.fn if ours else scenario.reference or scenario.fn)
        seed()
        if ours:
            blocks = _C.linearize([f(*xs)], xs, None, True).hessian(None, False)
        else:
            blocks = torch.autograd.functional.hessian(f, tuple(xs), create_graph=True)
        if weights is None:
            weights = [[torch.randn_like(b) for b in row] for row in blocks]
        loss = sum((inner(row, w) for row, w in zip(blocks, weights, strict=True)), ZERO)
        thirds.append(stock_vjp([loss], xs, [torch.ones_like(loss)]))
    for mine, theirs in zip(*thirds, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


# ---- edges of the domain -------------------------------------------------------------------------


def edges(points_of):
    points = [
        pytest.param(s, point, id=f"{s.name} at {', '.join(map(str, point))}")
        for s in TABLE
        for point in points_of(s)
    ]
    return pytest.mark.parametrize("scenario, point", points)


def at(point):
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in point]


def hessian_at(fn, point):
    from hesse import _C

    xs = at(point)
    return matrix(_C.linearize([fn(*xs)], xs, None, False).hessian(None, False))


def stock_hessian_at(fn, point):
    return matrix(torch.autograd.functional.hessian(lambda *xs: fn(*xs), tuple(at(point))))


def matrix(blocks):
    return torch.stack([torch.stack(list(row)) for row in blocks])


@edges(lambda s: s.edges + tuple(point for point, _ in s.mended))
def test_the_gradient_at_an_edge_of_the_domain_is_that_of_torch(scenario, point):
    from hesse import _C

    xs = at(point)
    y = scenario.fn(*xs)
    ours = _C.linearize([y], xs, [torch.ones_like(y)], False).gradient()
    for mine, theirs in zip(ours, stock_pull([y], xs, [torch.ones_like(y)]), strict=True):
        mine = torch.zeros_like(theirs) if mine is None else mine
        torch.testing.assert_close(mine, theirs, equal_nan=True)


@edges(lambda s: s.edges)
def test_the_curvature_at_an_edge_of_the_domain_is_that_of_torch(scenario, point):
    stock = stock_hessian_at(scenario.reference or scenario.fn, point)
    torch.testing.assert_close(hessian_at(scenario.fn, point), stock, equal_nan=True)


@edges(lambda s: tuple(point for point, _ in s.mended))
def test_the_curvature_at_an_edge_that_torch_masks_wrongly_is_its_limit(scenario, point):
    wanted = torch.tensor(dict(scenario.mended)[point], dtype=torch.float64)
    torch.testing.assert_close(hessian_at(scenario.fn, point), wanted)
    stock = stock_hessian_at(scenario.fn, point)
    assert stock.isnan().any() or not torch.equal(stock, stock.T)
