"""Ops without a native rule: their seeds run as a batch where PyTorch can, else one by one."""

import threading

import pytest
import torch
import torch.nn.functional as F
from outcome import assert_close
from torch.autograd.functional import hessian as stock
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.ours
f64 = torch.float64


def rand(n):
    return torch.rand(n, dtype=f64) * 0.8 + 0.1


def spd(x):
    m = x.view(3, 3)
    return m @ m.T + 3 * torch.eye(3, dtype=f64)


def image(x):
    return x.view(1, 1, 3, 3)


GRID = torch.linspace(-0.8, 0.9, 18, dtype=f64).view(1, 3, 3, 2)
INDEX = torch.tensor([0, 2, 1, 0])
MASK = torch.arange(9) % 2 == 0


def svd(x):
    u, s, v = torch.linalg.svd(x.view(3, 3))
    return (u.abs() * s).pow(3).sum() + v.abs().pow(3).sum()


def eigh(x):
    w, v = torch.linalg.eigh(spd(x))
    return w.exp().sum() + (v.abs() * w).pow(2).sum()


def qr(x):
    q, r = torch.linalg.qr(x.view(3, 3))
    return q.pow(3).sum() + r.pow(3).sum()


def inverse_into_a_view(x):
    m = x.sin().view(3, 3).clone()
    m[:2, :2].copy_(torch.linalg.inv(spd(x))[:2, :2])
    m[2].mul_(torch.linalg.det(m[:2, :2].clone()))
    return m.pow(2).prod()


BATCHED = {
    "one of several outputs": lambda x: torch.linalg.svdvals(x.view(3, 3)).pow(3).sum(),
    "all outputs, which are saved": svd,
    "eigenvectors": eigh,
    "a factorization": qr,
    "a triangular factor": lambda x: torch.linalg.cholesky(spd(x)).pow(3).sum(),
    "two inputs that depend on one another": lambda x: torch.linalg.solve(
        spd(x), spd(x).sin()[:, :2]
    ).prod(),
    "the same input twice": lambda x: (lambda m: torch.linalg.solve(m, m @ m).sum())(spd(x)),
    "an output saved in an exponential": lambda x: torch.matrix_exp(x.view(3, 3)).pow(2).sum(),
    "a determinant among native ops": lambda x: (torch.logdet(spd(x)) * x.prod()).exp(),
    "a sampled image": lambda x: (
        F.grid_sample(image(x.sin()), GRID, align_corners=False).pow(3).sum()
    ),
    "a scaled image": lambda x: F.interpolate(image(x), size=(5, 5), mode="bicubic").pow(3).sum(),
    "a reduction by index": lambda x: (
        x.sin().scatter_reduce(0, INDEX, x[:4].exp(), "prod").pow(3).sum()
    ),
    "in place on views": inverse_into_a_view,
    "float32 inside": lambda x: (
        torch.linalg.inv(spd(x)).sum() + F.glu(x[:8].float()).double().prod()
    ),
}
# PyTorch has no batching rule for an op in their backward.
UNBATCHED = {
    "a mask": lambda x: x.sin().masked_select(MASK).pow(3).sum(),
    "flat indices": lambda x: x.sin().take(INDEX).pow(3).sum(),
    "flat indices, accumulated": lambda x: x.sin().put(INDEX, x[:4].exp(), True).pow(3).sum(),
    "a sampling grid": lambda x: (
        F.grid_sample(image(x.sin()), x[:8].view(1, 2, 2, 2) * 0.8, align_corners=False)
        .pow(3)
        .sum()
    ),
    "reflections": lambda x: torch.linalg.householder_product(x.view(3, 3), x[:3]).pow(3).sum(),
}
OPS = BATCHED | UNBATCHED
HIDDEN = """
    GluBackward0 GridSampler2DBackward0 LinalgCholeskyExBackward0 LinalgDetBackward0
    LinalgEighBackward0 LinalgHouseholderProductBackward0 LinalgInvExBackward0
    LinalgMatrixExpBackward0 LinalgQrBackward0 LinalgSlogdetBackward0 LinalgSolveExBackward0
    LinalgSvdBackward0 MaskedSelectBackward0 PutBackward0 ScatterReduceBackward0 TakeBackward0
    UpsampleBicubic2DBackward0
""".split()


@pytest.fixture(autouse=True)
def _without_their_rules():
    """These ops have rules of their own, for which the autograd rule stands in here."""
    from hesse import _C

    _C.hide_rules(HIDDEN)
    yield
    _C.hide_rules([])


@pytest.mark.parametrize("name", OPS)
def test_the_hessian_is_that_of_the_loop(hessian, name):
    x = rand(9)
    want = stock(OPS[name], x)
    tol = 1e-6 if "float32" in name else 1e-9
    for chunk_size in (None, 1, 4):
        assert_close(hessian(OPS[name], x, chunk_size=chunk_size), want, tol)


@pytest.mark.parametrize("name", OPS)
def test_a_batched_step_is_differentiable_once_more(hessian, name):
    x = rand(9).requires_grad_()
    weights = torch.randn(9, 9, dtype=f64)

    def third(route):
        H = route(OPS[name], x, create_graph=True)
        return torch.autograd.grad((H * weights).sum(), x)[0]

    assert_close(third(hessian), third(stock), 1e-6 if "float32" in name else 1e-9)


@pytest.mark.parametrize("name", BATCHED)
def test_what_can_be_batched_is(name):
    import hesse

    assert not hesse.explain(BATCHED[name], rand(9)).looped_ops


@pytest.mark.parametrize("name", UNBATCHED)
def test_what_cannot_be_batched_is_reported_and_does_not_warn(name, capfd):
    import hesse

    report = hesse.explain(UNBATCHED[name], rand(9))
    assert report.looped_ops == report.autograd_ops
    assert "batching rule" not in "".join(capfd.readouterr())
    for name in report.looped_ops:
        assert name in str(report)


def test_a_single_seed_is_not_a_loop():
    import hesse

    assert not hesse.explain(UNBATCHED["a mask"], rand(9), chunk_size=1).looped_ops


def test_an_op_that_is_refused_in_a_batch_is_looped_over(hessian):
    import hesse

    func, x = UNBATCHED["reflections"], rand(9)
    try:
        torch._C._functorch._set_vmap_fallback_enabled(False)
        assert_close(hessian(func, x), stock(func, x))
        assert hesse.explain(func, x).looped_ops
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)


def test_threads_do_not_meet_the_level_of_another(hessian):
    x = rand(9)
    wants = {name: stock(OPS[name], x) for name in ("eigenvectors", "a mask", "in place on views")}
    wrong = []

    def work(name):
        for _ in range(10):
            if not torch.allclose(hessian(OPS[name], x), wants[name], rtol=1e-9):
                wrong.append(name)
            if torch._C._functorch.peek_interpreter_stack() is not None:
                wrong.append("a level left behind")

    threads = [threading.Thread(target=work, args=(name,)) for name in wants]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# --- the user's own Python ------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """Counts how often, and with what, its backward is called."""

    seen = []

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        Cube.seen.append(torch._C._functorch.is_batchedtensor(g))
        return 3 * g * x**2


class Clip(torch.autograd.Function):
    """Its backward is not linear in the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-1, 1)


class Peek(torch.autograd.Function):
    """Its backward looks at the values of the gradient."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y, x - y

    @staticmethod
    def backward(ctx, g, h):
        x, y = ctx.saved_tensors
        if not g.any():
            return h, -h
        return g * y + h, g * x - h


class Rolled(torch.autograd.Function):
    """In place, and with a backward that is not the derivative of its forward."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x.mul_(2))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * y.roll(1)


def rolled_view(x):
    m = x.sin()
    Rolled.apply(m[:3])
    return m.cumsum(0).prod()


@torch.library.custom_op("hesse_tests::rolled", mutates_args=())
def rolled_op(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


rolled_op.register_autograd(
    lambda ctx, g: g * ctx.saved_tensors[0].roll(1),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)

FOREIGN = {
    "a custom Function": lambda x: Cube.apply(x.sin()).prod(),
    "a custom Function and an op without a rule": lambda x: (
        torch.logdet(spd(Cube.apply(x))) * x.sum()
    ),
    "a backward that clips": lambda x: (Clip.apply(8 * x).pow(2) * x.exp()).sum(),
    "a backward that looks at values": lambda x: (lambda a, b: (a * b.exp()).prod())(
        *Peek.apply(x.sin(), x.exp())
    ),
    "one output of two": lambda x: Peek.apply(x.sin(), x.exp())[1].prod(),
    "a backward that rolls, on a view": rolled_view,
    "an op of torch.library": lambda x: torch.ops.hesse_tests.rolled(x.sin()).cumsum(0).prod(),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_users_backward_gives_what_the_loop_gives(hessian, name, create_graph):
    x = rand(9)
    got = hessian(FOREIGN[name], x, create_graph=create_graph)
    assert_close(got, stock(FOREIGN[name], x), 1e-9)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_users_backward_is_not_taken_for_a_gradient(name):
    import hesse

    report = hesse.explain(FOREIGN[name], rand(9))
    assert not report.symmetric and report.looped_ops


def test_a_backward_that_rolls_a_view_gives_an_asymmetric_hessian(hessian):
    for func in (rolled_view, FOREIGN["an op of torch.library"]):
        H = hessian(func, rand(9))
        assert (H - H.T).abs().max() > 1e-3


def test_a_users_backward_sees_one_seed_at_a_time(hessian):
    Cube.seen.clear()
    hessian(FOREIGN["a custom Function"], rand(9))
    assert len(Cube.seen) >= 9 and not any(Cube.seen)


@pytest.mark.parametrize(
    "func",
    [
        BATCHED["in place on views"],
        BATCHED["eigenvectors"],
        lambda x: torch.zeros(9, dtype=f64).copy_(x.sin()).prod(),
    ],
)
def test_ops_of_torch_are_gradients(func):
    import hesse

    assert hesse.explain(func, rand(9)).symmetric


def cube_with_hook(unpack):
    def func(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            return Cube.apply(x).sin().sum()

    return func


def in_a_batch():
    return torch._C._functorch.peek_interpreter_stack() is not None


def test_a_hook_that_a_batch_does_not_allow_is_run_by_the_loop(hessian):
    import hesse

    func, x = cube_with_hook(lambda t: t + 0 * torch.rand_like(t)), rand(9)
    assert_close(hessian(func, x), stock(func, x))
    assert hesse.explain(func, x).looped_ops == {"CubeBackward": 1}
    assert not in_a_batch()


class Interrupting(Cube):
    @staticmethod
    def backward(ctx, g):
        def unpack(t):
            if in_a_batch():
                raise KeyboardInterrupt
            return t

        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            return 3 * g * ctx.saved_tensors[0] ** 2


def test_an_interrupt_in_a_batch_is_passed_on(hessian):
    with pytest.raises(KeyboardInterrupt):
        hessian(lambda x: Interrupting.apply(x).sin().sum(), rand(9))
    assert not in_a_batch()


def test_a_region_recomputed_in_a_batch_may_hold_anything(hessian):
    def region(x):
        return F.dropout(torch.linalg.inv(spd(Cube.apply(x))), 0.3)

    def func(x):
        torch.manual_seed(0)
        return checkpoint(region, x, use_reentrant=False).pow(3).sum()

    x = rand(9)
    assert_close(hessian(func, x), stock(func, x))
