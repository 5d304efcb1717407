"""Rules that users write in Python, for nodes of their own."""

import gc
import threading
import weakref

import pytest
import torch
from outcome import assert_close
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.functional import hessian as stock

pytestmark = pytest.mark.ours
f64 = torch.float64


def rand(*shape):
    return torch.rand(*shape, dtype=f64) + 0.2


def register(name, *parts, **options):
    import hesse

    push, pull, *curve = parts
    return hesse.register_rule(
        name, push=push, pull=pull, curve=curve[0] if curve else None, **options
    )


# --- ops and their rules --------------------------------------------------------------------------


class Cube(Function):
    """In the style of ``setup_context``; its backward can be differentiated."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.power = 3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return ctx.power * g * x**2


def cube_slope(ctx, t):
    (x,) = ctx.saved_tensors
    return ctx.power * x**2 * t


def cube_bend(ctx, gy, dx):
    (x,) = ctx.saved_tensors
    return (6 * x * gy[0] * dx[0],)


CUBE = ("CubeBackward", cube_slope, cube_slope, cube_bend)


class Once(Function):
    """Cubes; autograd must not differentiate its backward."""

    power = 3

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.power = 3
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


class Numpy(Once):
    """Cubes; autograd does not see its backward."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        grad = 3 * g.numpy(force=True) * x.numpy(force=True) ** 2
        return torch.from_numpy(grad).to(g.device)


class Blend(Function):
    """Two outputs, three inputs, one of them a number: y = s x_1 exp(x_2) and z = x_1^2."""

    @staticmethod
    def forward(ctx, a, s, b):
        ctx.save_for_backward(a, b)
        ctx.s = s
        return s * a * b.exp(), a**2

    @staticmethod
    def backward(ctx, gy, gz):
        a, b = ctx.saved_tensors
        e = ctx.s * b.exp()
        return gy * e + 2 * a * gz, None, gy * a * e


def plus(*terms):
    """Of those that are not zero."""
    terms = [t for t in terms if t is not None]
    return sum(terms[1:], terms[0]) if terms else None


def times(t, c):
    return None if t is None else t * c


def blend_push(ctx, da, db):
    a, b = ctx.saved_tensors
    e = ctx.s * b.exp()
    return plus(times(da, e), times(db, a * e)), times(da, 2 * a)


def blend_pull(ctx, dgy, dgz):
    a, b = ctx.saved_tensors
    e = ctx.s * b.exp()
    return plus(times(dgy, e), times(dgz, 2 * a)), times(dgy, a * e)


def blend_curve(ctx, gy, dx):
    a, b = ctx.saved_tensors
    (gy, gz), (da, db) = gy, dx
    w = 0 if gy is None else gy * ctx.s * b.exp()
    v = 0 if gz is None else 2 * gz
    return plus(times(db, w), times(da, v)), plus(times(da, w), times(db, w * a))


BLEND = ("BlendBackward", blend_push, blend_pull, blend_curve)


@torch.library.custom_op("hesse_tests::swirl", mutates_args=())
def swirl(x: torch.Tensor, w: torch.Tensor, s: float) -> torch.Tensor:
    return s * torch.sin(x @ w)


def swirl_backward(ctx, g):
    x, w = ctx.saved_tensors
    g = g * ctx.s * (x @ w).cos()
    return g @ w.T, x.T @ g, None


def swirl_context(ctx, inputs, output):
    x, w, ctx.s = inputs
    ctx.save_for_backward(x, w)


swirl.register_autograd(swirl_backward, setup_context=swirl_context)


def swirl_push(ctx, dx, dw):
    x, w = ctx.saved_tensors
    return times(
        plus(None if dx is None else dx @ w, None if dw is None else x @ dw), ctx.s * (x @ w).cos()
    )


def swirl_pull(ctx, dgy):
    x, w = ctx.saved_tensors
    g = dgy * ctx.s * (x @ w).cos()
    return g @ w.T, x.T @ g


def swirl_curve(ctx, gy, dx):
    x, w = ctx.saved_tensors
    dx, dw = dx
    g = ctx.s * gy[0]
    dz = plus(None if dx is None else dx @ w, None if dw is None else x @ dw)
    dg, gc = -g * (x @ w).sin() * dz, g * (x @ w).cos()
    return (
        plus(dg @ w.T, None if dw is None else gc @ dw.mT),
        plus(x.T @ dg, None if dx is None else dx.mT @ gc),
    )


SWIRL = (
    "GeneratedBackwardFor_hesse_tests_swirl_defaultBackward",
    swirl_push,
    swirl_pull,
    swirl_curve,
)


def in_place(x):
    m = x.sin().clone()
    Doubled.apply(m[:2])
    return m.prod() * x.sum()


class Doubled(Function):
    """In place."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x.mul_(2))
        return x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


DOUBLED = ("DoubledBackward", lambda ctx, dx: 2 * dx, lambda ctx, dgy: 2 * dgy)

# name -> a rule, a function of two inputs that uses the op
USES = {
    "a Function among native ops": (
        CUBE,
        lambda x, y: (Cube.apply(x.sin()).sum() * y.exp().sum()).tanh(),
    ),
    "a Function twice": (CUBE, lambda x, y: Cube.apply(Cube.apply(x) * y).sum()),
    "a Function of an input": (CUBE, lambda x, y: Cube.apply(x).prod() * Cube.apply(y).prod()),
    "several inputs and outputs": (
        BLEND,
        lambda x, y: (lambda a, b: (a * b.sin()).prod())(*Blend.apply(x.sin(), 1.5, x * y)),
    ),
    "one output of two": (BLEND, lambda x, y: Blend.apply(x * y, 1.5, y)[0].prod()),
    "the other output of two": (BLEND, lambda x, y: Blend.apply(x * y, 1.5, y)[1].prod()),
    "a constant among its inputs": (
        BLEND,
        lambda x, y: (lambda a, b: (a + b).prod())(
            *Blend.apply(torch.ones(3, dtype=f64), 2.0, x * y)
        ),
    ),
    "an op of torch.library": (
        SWIRL,
        lambda x, y: swirl(x.sin()[None], x[:, None] * y, 0.7).exp().prod(),
    ),
    "an op of torch.library, one input": (
        SWIRL,
        lambda x, y: swirl(x[None] * y, torch.eye(3, dtype=f64), 0.7).pow(2).prod(),
    ),
    "in place on a view": (DOUBLED, lambda x, y: in_place(x * y)),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", USES)
def test_a_rule_gives_the_hessian_of_stock(hessian, name, create_graph):
    rule, func = USES[name]
    xs = rand(3), rand(3)
    want = stock(func, xs)
    with register(*rule):
        for chunk_size in (None, 1, 2):
            got = hessian(func, xs, create_graph=create_graph, chunk_size=chunk_size)
            for row, other in zip(got, want, strict=True):
                for block, wanted in zip(row, other, strict=True):
                    assert_close(block, wanted)


@pytest.mark.parametrize("name", USES)
def test_a_hessian_by_a_rule_can_be_differentiated(hessian, name):
    rule, func = USES[name]
    xs = rand(3).requires_grad_(), rand(3)
    weights = torch.randn(3, 3, dtype=f64)

    def third(route):
        blocks = route(func, xs, create_graph=True)
        return torch.autograd.grad((blocks[0][1] * weights).sum(), xs[0])[0]

    want = third(stock)
    with register(*rule):
        assert_close(third(hessian), want)


@pytest.mark.parametrize("name", USES)
def test_a_rule_is_reported_and_counts_as_a_gradient(name):
    import hesse

    rule, func = USES[name]
    xs = rand(3), rand(3)
    with register(*rule):
        report = hesse.explain(func, xs)
    assert report.user_ops[rule[0]] >= 1 and rule[0] in str(report)
    assert report.symmetric and not report.autograd_ops
    assert report.steps == sum(report.native_ops.values()) + sum(report.user_ops.values())
    assert not hesse.explain(func, xs).user_ops


def test_an_op_that_stock_cannot_differentiate_twice_can_be(hessian):
    import hesse

    def func(op):
        return lambda x: op(x.sin()).prod() * x.sum()

    x = rand(4)
    want = stock(func(lambda t: t**3), x)
    for op in (Once, Numpy):
        with hesse.fallback("error"), register(f"{op.__name__}Backward", *CUBE[1:]):
            assert_close(hessian(func(op.apply), x), want)


@pytest.mark.parametrize("op", [Once, Numpy])
def test_what_stock_takes_for_constant_can_be_differentiated(hessian, op):
    def func(op):
        return lambda x: (op(x.sin()) * x).sum()

    def third(f, route, **flags):
        x = torch.linspace(0.1, 0.9, 4, dtype=f64).requires_grad_()
        return torch.autograd.grad(route(f, x, **flags).sin().sum(), x)[0]

    want = third(func(lambda t: t**3), stock, create_graph=True)
    with register(f"{op.__name__}Backward", *CUBE[1:]):
        assert_close(third(func(op.apply), hessian, create_graph=True), want)
        forward = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
        assert_close(third(func(op.apply), hessian, **forward), want)


def test_threads_share_a_rule(hessian):
    rule, func = USES["several inputs and outputs"]
    xs = rand(3), rand(3)
    want = stock(func, xs)
    wrong = []

    def work():
        for _ in range(20):
            if not torch.allclose(hessian(func, xs)[0][1], want[0][1], rtol=1e-9):
                wrong.append(1)

    with register(*rule):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


def test_rules_come_and_go_while_others_compute(hessian):
    rule, func = USES["a Function among native ops"]
    xs = rand(3), rand(3)
    want = stock(func, xs)
    wrong, stop = [], threading.Event()

    def work():
        while not stop.is_set():
            if not torch.allclose(hessian(func, xs)[0][1], want[0][1], rtol=1e-9):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for _ in range(200):
        with register(*rule):
            pass
    stop.set()
    for t in threads:
        t.join()
    assert not wrong


# --- an op of torch's own that torch cannot differentiate twice -----------------------------------

CHUNKED = "_linear_cross_entropy_batch_chunked_no_reduction"


class LinearCrossEntropy:
    """w_y (logsumexp z - z_y) of z = x W' + b, y the target: a linear layer and its loss in one."""

    name = f"GeneratedBackwardFor_torch_nn_{CHUNKED}_defaultBackward"

    def __init__(self, ctx):
        if torch.is_grad_enabled():
            raise NotImplementedError("what the op saved is detached")
        self.x, self.W, y, bias, weight = ctx.saved_tensors
        self.has_bias = bias is not None
        z = self.x @ self.W.T + (bias if self.has_bias else 0)
        self.p = z.softmax(-1)
        w = torch.ones_like(z[0]) if weight is None else weight
        self.w = torch.where(y == ctx._ignore_index, 0, w[y.clamp_min(0)])[:, None]
        self.slope = self.w * (self.p - torch.nn.functional.one_hot(y.clamp_min(0), z.shape[-1]))

    def logits(self, dx, dW, db=None):
        return plus(
            None if dx is None else dx @ self.W.T,
            None if dW is None else self.x @ dW.mT,
            None if db is None else db[:, None],
        )

    def to_inputs(self, dz):
        return (dz @ self.W, dz.mT @ self.x, dz.sum(-2))[: 2 + self.has_bias]

    def tensors(self, ctx, ts):
        """The target and the class weights are tensors among the inputs too."""
        x, W, b = [*ts, None][:3]
        inputs = [x, W, None, *([b] if self.has_bias else [])]
        return (*inputs, *[None] * (ctx.saved_tensors[4] is not None))

    @classmethod
    def push(cls, ctx, dx, dW, _, *rest):
        s = cls(ctx)
        return (s.slope * s.logits(dx, dW, *rest[: s.has_bias])).sum(-1)

    @classmethod
    def pull(cls, ctx, dgy):
        s = cls(ctx)
        return s.tensors(ctx, s.to_inputs(dgy[..., None] * s.slope))

    @classmethod
    def curve(cls, ctx, gy, dx):
        s, (x, W, _, *rest), g = cls(ctx), dx, gy[0][:, None]
        dz = s.logits(x, W, *rest[: s.has_bias])
        bent = g * s.w * s.p * (dz - (s.p * dz).sum(-1, True))
        through = [*s.to_inputs(bent)]
        if W is not None:
            through[0] = through[0] + (g * s.slope) @ W
        if x is not None:
            through[1] = through[1] + (g * s.slope).T @ x
        return s.tensors(ctx, through)


@pytest.mark.parametrize("bias, weighted", [(False, False), (True, False), (True, True)])
def test_a_rule_for_an_op_of_torch_that_autograd_cannot_differentiate_twice(
    hessian, bias, weighted
):
    from hesse.testing import check_rule

    module = pytest.importorskip("torch.nn.modules.linear_cross_entropy")
    if not hasattr(module, CHUNKED):
        pytest.skip("this torch does not have the op")
    y = torch.tensor([0, 2, -100, 1])
    weight = torch.linspace(0.5, 2, 3, dtype=f64) if weighted else None
    op, rule = getattr(module, CHUNKED), LinearCrossEntropy
    xs = [torch.randn(4, 5, dtype=f64), torch.randn(3, 5, dtype=f64), torch.randn(3, dtype=f64)]
    xs = tuple(xs[: 2 + bias])

    def fused(x, W, b=None):
        return op(x, W, y, b, weight, -100, 2, "balanced", f64)

    def plain(x, W, b=None):
        z = torch.nn.functional.linear(x, W, b)
        return torch.nn.functional.cross_entropy(z, y, weight, reduction="none")

    def func(loss):
        return lambda *xs: loss(*xs).exp().sum()

    with register(rule.name, rule.push, rule.pull, rule.curve):
        check_rule(fused, xs, name=rule.name)
        got, want = hessian(func(fused), xs), stock(func(plain), xs)
    for row, other in zip(got, want, strict=True):
        for block, wanted in zip(row, other, strict=True):
            assert_close(block, wanted)


# --- what a rule is given -------------------------------------------------------------------------


def test_a_rule_sees_all_seeds_at_once_and_what_the_node_saved():
    import hesse

    seen = []

    def spy(part, f):
        def run(ctx, *args):
            seen.append((part, [a.shape if isinstance(a, torch.Tensor) else a for a in args]))
            assert ctx.saved_tensors[0].shape == (4,)
            return f(ctx, *args)

        return run

    def bend(ctx, gy, dx):
        seen.append(("curve", [gy[0].shape, dx[0].shape]))
        return cube_bend(ctx, gy, dx)

    with register("CubeBackward", spy("push", cube_slope), spy("pull", cube_slope), bend):
        hesse.hessian(lambda x: Cube.apply(x.sin()).prod(), rand(4))
    assert seen == [
        ("pull", [(1, 4)]),
        ("push", [(4, 4)]),
        ("pull", [(4, 4)]),
        ("curve", [(4,), (4, 4)]),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_rule_returns_is_cast_to_what_the_op_works_in(hessian, dtype):
    def double(f):
        def run(ctx, *args):
            out = f(ctx, *args)
            return (out[0] if isinstance(out, tuple) else out).double()

        return run

    def func(x):
        return Cube.apply(x.sin()).sum() * x.sum()

    x = rand(4).to(dtype)
    with register("CubeBackward", *map(double, CUBE[1:])):
        H = hessian(func, x)
    assert H.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(H.double(), stock(func, x.double()), rtol=tolerance, atol=tolerance)


def test_a_rule_is_not_asked_where_complex_values_flow(hessian):
    import hesse

    def func(x):
        return Cube.apply(torch.complex(x, x.sin())).abs().square().sum()

    def never(*args):
        raise AssertionError("a rule was called")

    x = rand(3)
    want = stock(func, x)
    with register("CubeBackward", never, never, never):
        assert_close(hessian(func, x), want)
        assert not hesse.explain(func, x).user_ops


def test_a_rule_without_a_curve_is_that_of_a_linear_op(hessian):
    x = rand(3)
    with register("DoubledBackward", lambda ctx, dx: 2 * dx, lambda ctx, g: 2 * g):
        assert_close(
            hessian(lambda x: Doubled.apply(x.sin()).prod(), x),
            stock(lambda x: (2 * x.sin()).prod(), x),
        )


def test_a_rule_of_a_native_node_replaces_it_until_it_is_removed(hessian):
    x = rand(3)
    calls = []

    def slope(ctx, t):
        calls.append(ctx.name())
        return ctx._saved_self.cos() * t

    def bend(ctx, gy, dx):
        return -ctx._saved_self.sin() * gy[0] * dx[0]

    with register("SinBackward0", slope, slope, bend, override=True):
        assert_close(hessian(lambda x: x.sin().prod(), x), stock(lambda x: x.sin().prod(), x))
        assert set(calls) == {"SinBackward0"}
    calls.clear()
    hessian(lambda x: x.sin().prod(), x)
    assert not calls


def test_a_rule_that_is_removed_meanwhile_serves_the_call_to_its_end(hessian):
    x = rand(3)

    def slope(ctx, t):
        registration.remove()
        gc.collect()
        return cube_slope(ctx, t)

    registration = register(
        "CubeBackward", slope, slope, lambda ctx, gy, dx: cube_bend(ctx, gy, dx)
    )
    func = USES["a Function among native ops"][1]
    assert_close(hessian(lambda x: func(x, x), x), stock(lambda x: func(x, x), x))
    assert not_registered("CubeBackward")


def not_registered(name):
    register(name, *CUBE[1:]).remove()
    return True


def test_a_rule_that_is_removed_lets_its_functions_go():
    def slope(ctx, t):
        return t

    gone = weakref.ref(slope)
    registration = register("CubeBackward", slope, slope)
    del slope
    registration.remove()
    gc.collect()
    assert gone() is None
    registration.remove()


def test_rules_of_a_name_stack_up(hessian):
    first = register("CubeBackward", *CUBE[1:])
    second = register("CubeBackward", lambda ctx, t: 0 * t, lambda ctx, t: 0 * t, override=True)
    x = rand(3)
    assert not hessian(lambda x: Cube.apply(x).sum(), x).any()
    first.remove()
    assert not hessian(lambda x: Cube.apply(x).sum(), x).any()
    second.remove()
    assert_close(hessian(lambda x: Cube.apply(x).sum(), x), stock(lambda x: (x**3).sum(), x))


# --- errors ---------------------------------------------------------------------------------------


def test_what_cannot_be_a_rule_is_refused():
    import hesse

    with pytest.raises(ValueError, match="MulBackward0 has a rule of hesse's own; override=True"):
        register("MulBackward0", *CUBE[1:])
    with (
        register(*CUBE),
        pytest.raises(ValueError, match="CubeBackward has a rule that was registered before"),
    ):
        register(*CUBE)
    for part in ("push", "pull", "curve"):
        parts = {"push": cube_slope, "pull": cube_slope, "curve": cube_bend, part: 3}
        with pytest.raises(TypeError, match=f"{part} must be callable, got 3"):
            hesse.register_rule("CubeBackward", **parts)
    with pytest.raises(TypeError, match="name must be that of an autograd node, got"):
        register(Cube, *CUBE[1:])
    assert not_registered("CubeBackward")


def wrong(part, f):
    parts = {"push": cube_slope, "pull": cube_slope, "curve": cube_bend}
    return parts | {part: f}


TAKEN_BACK = {
    "a shape": (
        wrong("push", lambda ctx, t: t[:, :2]),
        ValueError,
        r"the rule of CubeBackward: what push returned for output 0 has shape \[3, 2\], expected "
        r"\[3, 3\]",
    ),
    "a shape without seeds": (
        wrong("pull", lambda ctx, t: t[0]),
        ValueError,
        r"what pull returned for input 0 has shape \[3\], expected \[1, 3\]",
    ),
    "a list too long": (
        wrong("curve", lambda ctx, gy, dx: [dx[0], dx[0]]),
        ValueError,
        "curve returned 2 values, expected 1, one for each input",
    ),
    "nothing": (
        wrong("pull", lambda ctx, t: None),
        TypeError,
        "pull returned a NoneType, expected a Tensor or a tuple",
    ),
    "a number": (
        wrong("push", lambda ctx, t: (1.0,)),
        TypeError,
        "what push returned for output 0 is a float, expected a Tensor or None",
    ),
    "integers": (
        wrong("curve", lambda ctx, gy, dx: dx[0].long()),
        TypeError,
        "what curve returned for input 0 is long int on cpu with layout Strided",
    ),
    "complex numbers": (
        wrong("curve", lambda ctx, gy, dx: dx[0] * 1j),
        TypeError,
        "expected a strided tensor of a real floating dtype on cpu",
    ),
    "a tensor on another device": (
        wrong("curve", lambda ctx, gy, dx: dx[0].to("meta")),
        TypeError,
        "on meta",
    ),
    "a sparse tensor": (
        wrong("curve", lambda ctx, gy, dx: dx[0].to_sparse()),
        TypeError,
        "with layout Sparse",
    ),
    "an error of its own": (wrong("curve", lambda ctx, gy, dx: {}["lost"]), KeyError, "lost"),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", TAKEN_BACK)
def test_what_a_rule_may_not_return_is_an_error_that_says_so(hessian, name, create_graph):
    import hesse

    parts, error, words = TAKEN_BACK[name]
    with hesse.register_rule("CubeBackward", **parts), pytest.raises(error, match=words):
        hessian(lambda x: Cube.apply(x.sin()).prod(), rand(3), create_graph=create_graph)


def test_an_interrupt_in_a_rule_is_passed_on(hessian):
    def stop(ctx, t):
        raise KeyboardInterrupt

    with register("CubeBackward", stop, stop), pytest.raises(KeyboardInterrupt):
        hessian(lambda x: Cube.apply(x).sum().sin(), rand(3))


def test_what_a_rule_returns_stays_its_own(hessian):
    kept = []

    def slope(ctx, t):
        kept.append((t.numpy(force=True) * 1.0, t.clone()))
        return torch.from_numpy(kept[-1][0]).to(t.device)

    x = rand(4)
    with register("DoubledBackward", slope, slope):
        hessian(lambda x: (Doubled.apply(x.sin()).cumsum(0) + x).prod(), x)
    for array, before in kept:
        assert_close(torch.from_numpy(array), before)


@pytest.mark.parametrize("op", [Once, Numpy])
def test_a_backward_that_cannot_be_differentiated_is_named(hessian, op):
    import hesse

    def func(x):
        return op.apply(x.sin()).pow(2).sum()

    with hesse.fallback("error"):
        with pytest.raises(RuntimeError, match=f"{op.__name__}Backward is not twice") as error:
            hessian(func, rand(3))
    assert "hesse.register_rule" in str(error.value)
    if op is Once:  # whatever the policy
        with hesse.fallback("silent"), pytest.raises(RuntimeError, match="OnceBackward is not"):
            hessian(func, rand(3))
        with pytest.raises(RuntimeError, match="OnceBackward is not twice differentiable"):
            hesse.explain(func, rand(3))
    else:  # a constant, as in the loop
        assert "NumpyBackward" in hesse.explain(func, rand(3)).fallback
        with pytest.warns(hesse.FallbackWarning, match="NumpyBackward"), hesse.fallback("warn"):
            hessian(func, rand(3))


def test_a_backward_that_cannot_be_differentiated_is_named_among_others(hessian):
    import hesse

    def func(x):
        scores = x.view(2, 3).log_softmax(-1)
        return torch.nn.functional.adaptive_max_pool2d(Numpy.apply(scores)[None], 1).sum().pow(
            2
        ) / (Broken.apply(x).sum())

    with hesse.fallback("silent"), pytest.raises(RuntimeError) as error:
        hessian(func, rand(6))
    assert any("NumpyBackward is not twice" in note for note in error.value.__notes__)


class Broken(Function):
    """Its backward can run once, and not on what requires grad."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if g.requires_grad:
            raise RuntimeError("not on what requires grad")
        return g


# --- check_rule -----------------------------------------------------------------------------------


def broken(slope=0.0, back=0.0, bend=0.0, skew=0.0):
    """The rule of a cube with an error in one of its parts."""
    parts = (
        lambda ctx, t: cube_slope(ctx, t) + slope * t,
        lambda ctx, t: cube_slope(ctx, t) + (slope + back) * t,
        lambda ctx, gy, dx: cube_bend(ctx, gy, dx)[0] + bend * dx[0] + skew * dx[0].roll(1, -1),
    )
    return parts


@pytest.mark.parametrize("op", [Cube, Once, Numpy])
def test_check_rule_names_the_law_that_is_broken(op):
    from hesse.testing import check_rule

    name, x = f"{op.__name__}Backward", rand(4)
    for errors, words in (
        ({}, None),
        ({"slope": 1e-3}, "push of .* is not the derivative of fn: output 0, seed"),
        ({"back": 1e-3}, "pull of .* is not the transpose of push: seed 0: <pull dgy, dx> is"),
        ({"bend": 1e-3}, "curve of .* is not the derivative of pull: input 0, seed"),
        ({"skew": 1e-3}, "curve of .* is not the derivative of pull"),
    ):
        with register(name, *broken(**errors)):
            if words is None:
                check_rule(op.apply, x, name=name)
                continue
            with pytest.raises(AssertionError, match=words) as error:
                check_rule(op.apply, x, name=name)
        by = "autograd" if op is Cube else "central differences"
        assert by in str(error.value) or "pull of" in str(error.value)
        assert name in str(error.value)


class Rolled(Function):
    """Its backward is right, and the derivative of that is no Hessian."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (2 * x + x.roll(1) - x.roll(1).detach())


def test_check_rule_finds_a_curve_that_is_not_symmetric():
    from hesse.testing import check_rule

    def slope(ctx, t):
        return 2 * ctx.saved_tensors[0] * t

    def bend(ctx, gy, dx):
        return 2 * gy[0] * dx[0] + (gy[0] * dx[0]).roll(-1, -1)

    with (
        register("RolledBackward", slope, slope, bend),
        pytest.raises(AssertionError, match="curve of RolledBackward is not symmetric: seed 1"),
    ):
        check_rule(Rolled.apply, rand(4))


@pytest.mark.parametrize("name", [n for n in USES if n not in ("in place on a view",)])
def test_check_rule_takes_a_function_of_several_ops(name):
    from hesse.testing import check_rule

    rule, func = USES[name]
    with register(*rule):
        check_rule(func, (rand(3), rand(3)), name=rule[0])
    with pytest.raises(AssertionError, match=f"no rule of {rule[0]} ran"):
        check_rule(func, (rand(3), rand(3)), name=rule[0])


def test_check_rule_takes_native_ops():
    from hesse.testing import check_rule

    check_rule(torch.matmul, (rand(3, 4), rand(4, 2)), name="MmBackward0")
    check_rule(torch.nn.functional.layer_norm, (rand(2, 4), (4,)), name="NativeLayerNormBackward0")
    check_rule(torch.var_mean, (rand(2, 4), 1))
    check_rule(torch.relu, rand(0))


def test_check_rule_says_what_it_cannot_test():
    from hesse.testing import check_rule

    with pytest.raises(TypeError, match="input 1 is torch.float32"):
        check_rule(torch.add, (rand(3), torch.rand(3)))
    with pytest.raises(ValueError, match="none of the inputs"):
        check_rule(torch.neg, torch.arange(3))
    with pytest.raises(ValueError, match="none of the outputs requires grad"):
        check_rule(torch.argmax, rand(3))
    with pytest.raises(AssertionError, match="no rule of CubeBackward ran: there is none"):
        check_rule(Cube.apply, rand(3))
