"""Inputs and functions out of the ordinary give what stock's row loop gives."""

import pytest
import torch
from outcome import assert_close, assert_same, outcome
from torch.autograd.functional import hessian as stock
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

f64 = torch.float64


def rand(*shape, dtype=f64):
    return (torch.rand(*shape, dtype=f64) + 0.2).to(dtype)


def mixed(x, y):
    """Couples every entry of x with every entry of y."""
    return (x.sin().sum() * y.exp().sum()).tanh() + (x**3).sum() * 0.1


def same(hessian, func, make_inputs, **flags):
    """Check one call against stock, without and with a graph."""
    for create_graph in (False, True):
        options = flags | {"create_graph": create_graph}
        assert_same(
            outcome(hessian, func, make_inputs, options), outcome(stock, func, make_inputs, options)
        )


# --- inputs ---------------------------------------------------------------------------------------


def twice():
    x = rand(3)
    return x, x


def overlapping():
    x = rand(5)
    return x[:3], x[1:4]


def written_through_a_view():
    x = rand(4, 4)
    x[0] = 1.0
    return x.T, x[:, 1]


INPUTS = {
    "the same tensor twice": twice,
    "overlapping views": overlapping,
    "views of one written tensor": written_through_a_view,
    "leaves that require grad": lambda: (rand(3).requires_grad_(), rand(2).requires_grad_()),
    "results that require grad": lambda: (rand(3).requires_grad_().exp(), rand(2)),
    "a transposed matrix": lambda: (rand(2, 3).T, rand(3)),
    "every second entry": lambda: (rand(6)[::2], rand(2, 4)[:, ::3]),
    "an expanded tensor": lambda: (rand(1, 3).expand(4, 3), rand([]).expand(2)),
    "channels last": lambda: (rand(1, 2, 2, 2).to(memory_format=torch.channels_last), rand(2)),
    "0-d tensors": lambda: (rand([]), rand([])),
    "a slice with an offset": lambda: (rand(10)[4:7], rand(10).as_strided((2, 2), (3, 1), 2)),
    "float32 and float64": lambda: (rand(3, dtype=torch.float32), rand(2)),
    "float64 and float32": lambda: (rand(3), rand(2, dtype=torch.float32)),
    "parameters": lambda: (torch.nn.Parameter(rand(3)), torch.nn.Parameter(rand(2))),
}


@pytest.mark.parametrize("name", INPUTS)
def test_any_strided_tensor_is_an_input(hessian, name):
    same(hessian, mixed, INPUTS[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_agrees_with_stock_and_with_float64(hessian, dtype):
    x = rand(4, dtype=dtype)

    def func(x):
        return (x.exp() * x).sum() * x.sum()

    H = hessian(func, x)
    assert_close(H, stock(func, x))
    assert_close(H, stock(func, x.double()).to(dtype))


def test_mixed_half_and_single_keep_the_dtype_of_the_column(hessian):
    same(hessian, mixed, lambda: (rand(3, dtype=torch.float16), rand(2, dtype=torch.float32)))


# --- infinite and undefined derivatives -----------------------------------------------------------

SINGULAR = {
    "sqrt at 0": (torch.sqrt, [0.0, 0.5, 1.0]),
    "log at 0": (torch.log, [0.0, 0.5, 1.0]),
    "reciprocal at 0": (torch.reciprocal, [0.0, 0.5, 1.0]),
    "a power of 1.5 at 0": (lambda x: x**1.5, [0.0, 0.5, 1.0]),
    "asin at 1": (torch.asin, [0.0, 0.5, 1.0]),
    "exp of infinity": (torch.exp, [0.0, float("inf"), 1.0]),
    "sin of NaN": (torch.sin, [0.0, float("nan"), 1.0]),
}


@pytest.mark.ours
@pytest.mark.parametrize("name", SINGULAR)
def test_a_structural_zero_is_zero_beside_an_infinite_derivative(hessian, name):
    op, at = SINGULAR[name]
    x = torch.tensor(at, dtype=f64)
    H = hessian(lambda x: op(x).sum(), x)
    off = ~torch.eye(3, dtype=torch.bool)
    assert (H[off] == 0).all()
    # One at a time, the loop has no other rows to spread a NaN into.
    alone = torch.stack([stock(lambda x: op(x).sum(), x[i : i + 1])[0, 0] for i in range(3)])
    assert_close(H.diagonal(), alone)


@pytest.mark.parametrize("name", SINGULAR)
def test_a_finite_entry_of_stock_is_the_same_entry_here(hessian, name):
    op, at = SINGULAR[name]
    x = torch.tensor(at, dtype=f64)

    def func(x):
        return (op(x) * x.roll(1)).sum()

    H, want = hessian(func, x), stock(func, x)
    finite = want.isfinite()
    assert_close(H[finite], want[finite])


# --- functions ------------------------------------------------------------------------------------


def in_place(x):
    y = x * 2
    y.mul_(x).add_(1)
    y[1:].exp_()
    y.view(-1)[0].mul_(x[1])
    return (y * y).sum()


def in_place_copy(x):
    buffer = torch.zeros(2, x.numel(), dtype=x.dtype)
    buffer[0] = x.sin()
    buffer[1].copy_(x * x)
    buffer[:, 0] *= x[1]
    return buffer.prod(0).sum()


def gradient_inside(x):
    (g,) = torch.autograd.grad((x**4).sum(), x, create_graph=True)
    return (g * x.sin()).sum()


def many_outputs(x):
    a, b = (x * x).view(2, -1).unbind(0)
    c, _ = x.sin().split([2, x.numel() - 2])
    top, _ = (x.exp()).topk(2)
    return (a * b).sum() + c.prod() + (top**2).sum()


def decompositions(x):
    m = x.view(2, -1)
    values = torch.linalg.eigvalsh(m @ m.T)
    return values.log().sum() + torch.linalg.svdvals(m).sum() + (m @ m.T).logdet()


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


class Crooked(torch.autograd.Function):
    """Its backward is not the derivative of its forward, and not symmetric."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return (x * y).sum()

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g * x * y.exp() * x.roll(1), g * x.sin()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


class Detached(torch.autograd.Function):
    """Its backward hides from autograd, which then takes the gradient for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return (3 * g * x**2).detach()


class NoGradient(torch.autograd.Function):
    """Returns no gradient at all for one of its inputs."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x)
        return x**3 + y

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2, None


def saved_on_cpu(x):
    with torch.autograd.graph.save_on_cpu():
        return (x.exp() * x.sin()).sum()


def embedded(x):
    return F.embedding(torch.tensor([0, 1, 1, 0]), x.view(2, -1)).pow(3).sum()


def module_call(x):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)
    ).double()
    return net(x.view(-1, 2)).pow(2).sum()


FUNCTIONS = {
    "in-place ops and in-place on views": in_place,
    "in-place copies into a buffer": in_place_copy,
    "a gradient inside": gradient_inside,
    "nodes with several outputs": many_outputs,
    "matrix decompositions": decompositions,
    "a custom Function": lambda x: Cube.apply(x).sum() * x.prod(),
    "an asymmetric backward": lambda x: Crooked.apply(x, x.cos()),
    "an asymmetric backward inside structure": lambda x: (
        (Crooked.apply(x * x, x[0].exp()) + x.sin().sum()) * x.prod()
    ),
    "a backward that is differentiable once": lambda x: Once.apply(x).sum(),
    "a backward that detaches": lambda x: Detached.apply(x).sum() * x.prod(),
    "a backward without a gradient": lambda x: NoGradient.apply(x.sin(), x.exp()).pow(2).sum(),
    "saved tensors moved by a hook": saved_on_cpu,
    "an embedding": embedded,
    "a module with parameters of its own": module_call,
    "a detached factor": lambda x: (x * x.detach() * x.sin()).sum(),
    "the input itself": lambda x: x[0],
    "a view of the input": lambda x: x.view(1, -1)[:, 2:3],
    "an empty intermediate": lambda x: x[:0].exp().sum() + (x**3).sum(),
    "an unused branch": lambda x: ((x.exp() * 5).sum(), (x**3).sum())[1],
    "no-grad inside": lambda x: (x**3).sum() * _constant(x),
    "float32 inside": lambda x: (x.float().sin().double() * x).sum(),
    "complex inside": lambda x: torch.fft.rfft(x.sin()).abs().pow(2).sum(),
    "dropout and noise": lambda x: (F.dropout(x, 0.5) * torch.rand_like(x)).pow(3).sum(),
}


def _constant(x):
    with torch.no_grad():
        return x.norm()


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_function_gives_what_stock_gives(hessian, name):
    same(hessian, FUNCTIONS[name], lambda: rand(6).mul_(0.7))


def test_an_asymmetric_backward_gives_an_asymmetric_hessian(hessian):
    x, y = rand(3), rand(3)
    (_, H_xy), (H_yx, _) = hessian(Crooked.apply, (x, y))
    assert not torch.allclose(H_xy, H_yx.T)
    want = stock(Crooked.apply, (x, y))
    assert_close(H_xy, want[0][1])
    assert_close(H_yx, want[1][0])


def test_a_tensor_overwritten_after_it_was_saved_is_an_error(hessian):
    def func(x):
        y = x.sin()
        z = y * y
        y.add_(1)
        return z.sum()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hessian(func, rand(3))


def test_rows_of_a_module_are_rows_of_its_functional_call(hessian):
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.GELU(), torch.nn.Linear(3, 1)
    ).double()
    names, values = zip(*net.named_parameters(), strict=True)
    data = rand(5, 2)

    def loss(*params):
        out = torch.func.functional_call(net, dict(zip(names, params, strict=True)), (data,))
        return out.pow(2).mean()

    same(hessian, loss, lambda: values)
    assert all(p.grad is None for p in net.parameters())


# --- hooks ----------------------------------------------------------------------------------------


def hooked(hook):
    def func(x):
        y = x.sin()
        hook(x, y)
        return (y * x).pow(2).sum()

    return func


HOOKS = {
    "on a tensor, changing its gradient": lambda x, y: y.register_hook(lambda g: 2 * g),
    "on the input, changing its gradient": lambda x, y: x.register_hook(lambda g: g * g),
    "on a tensor, only looking": lambda x, y: y.register_hook(lambda g: None),
    "on a node, changing its gradient": lambda x, y: y.grad_fn.register_hook(
        lambda gx, gy: (gx[0] * 3,)
    ),
    "before a node, changing its gradient": lambda x, y: y.grad_fn.register_prehook(
        lambda gy: (gy[0].sin(),)
    ),
    "keeping a gradient": lambda x, y: y.retain_grad(),
}


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_the_effect_that_it_has_in_stock(hessian, name):
    same(hessian, hooked(HOOKS[name]), lambda: rand(3))


# --- checkpointing, autocast, compilation ---------------------------------------------------------


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_region_gives_what_stock_gives(hessian, use_reentrant):
    def region(x, w):
        return torch.tanh(x * w).exp()

    def func(x):
        return (checkpoint(region, x, x.cos(), use_reentrant=use_reentrant) * x).sum()

    got, want = (outcome(route, func, lambda: rand(3), {}) for route in (hessian, stock))
    if use_reentrant:  # torch refuses: reentrant checkpoints work under backward() alone
        assert want.error is not None and got.error == want.error
    else:
        assert_same(got, want)


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_autocast_gives_what_stock_gives(hessian, where):
    w = rand(4, 3, dtype=torch.float32)

    def func(x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=where == "inside" or None):
            return torch.tanh(w @ x).float().pow(2).sum()

    def plain(x):
        return torch.tanh(w @ x).float().pow(2).sum()

    x = rand(3, dtype=torch.float32)
    if where == "inside":
        got, want = hessian(func, x), stock(func, x)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got, want = hessian(plain, x), stock(plain, x)
        assert not torch.is_autocast_enabled("cpu")
    assert got.dtype == want.dtype == torch.float32
    assert (got - want).abs().max() <= 0.05 * want.abs().max()


def compile_or_skip(target, backend, x):
    torch._dynamo.reset()
    compiled = torch.compile(target, backend=backend)
    try:
        compiled(x.clone().requires_grad_())
    except Exception as error:
        pytest.skip(f"torch.compile does not run here: {type(error).__name__}")
    return compiled


def wave(x):
    return (x.sin() * x.exp()).sum() * x.prod()


@pytest.mark.ours  # stock returns zeros for a function that AOTAutograd compiled
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", ["function", "module"])
def test_a_compiled_function_is_differentiated_as_the_function_it_was_made_from(
    hessian, backend, kind
):
    class Wave(torch.nn.Module):
        def forward(self, x):
            return wave(x)

    x = rand(3)
    compiled = compile_or_skip(wave if kind == "function" else Wave(), backend, x)
    assert_close(hessian(compiled, x), stock(wave, x))


PARTS = {
    "times": (lambda c, x: c(x) * x.sum()),
    "plus": (lambda c, x: c(x) + (x**3).sum()),
    "alone": (lambda c, x: c(x)),
    "twice": (lambda c, x: 2 * c(x)),
}


@pytest.mark.ours  # stock loses the part, or raises
@pytest.mark.parametrize("name", PARTS)
def test_a_compiled_part_of_a_function_is_refused(hessian, name):
    x = rand(3)
    compiled = compile_or_skip(wave, "aot_eager", x)
    with pytest.raises(
        RuntimeError, match=r"torch\.compile .* Call the function that was compiled"
    ):
        hessian(lambda x: PARTS[name](compiled, x), x)


@pytest.mark.ours
@pytest.mark.parametrize("name", PARTS)
def test_a_part_compiled_without_aot_autograd_is_like_any_other(hessian, name):
    x = rand(3)
    compiled = compile_or_skip(wave, "eager", x)
    assert_close(
        hessian(lambda x: PARTS[name](compiled, x), x), stock(lambda x: PARTS[name](wave, x), x)
    )


def test_dropout_leaves_the_random_state_where_stock_leaves_it(hessian):
    states = []
    for route in (hessian, stock):
        torch.manual_seed(3)
        route(lambda x: F.dropout(x, 0.5).pow(3).sum(), rand(8))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# --- constants out of the ordinary ----------------------------------------------------------------


def negated(*shape):
    """A real tensor whose memory has the other sign."""
    return torch.randn(*shape, dtype=torch.complex128).conj().imag


NEGATED = negated(3, 3)


def sparse(layout):
    matrix = torch.tensor([[0.0, 2, 0], [1, 0, 0], [0, 0, 3]], dtype=f64)
    return {"coo": matrix.to_sparse(), "csr": matrix.to_sparse_csr()}[layout]


CONSTANTS = {
    "a negated matrix": lambda x: (NEGATED @ x).tanh().sum(),
    "a negated factor": lambda x: (x * x * NEGATED[0]).sum() * x.sum(),
    "negated pairs": lambda x: (NEGATED * (x[:, None] * x[None])).exp().sum(),
    "a sparse matrix (COO)": lambda x: (sparse("coo") @ x).sin().sum(),
    "a sparse matrix (CSR)": lambda x: (sparse("csr") @ x).sin().sum(),
    "a sparse product": lambda x: (sparse("coo") @ x[:, None] @ x[None]).exp().sum(),
    "a factor of zero": lambda x: torch.addmm(x[None] * 2, x[None], x.diag(), alpha=0).exp().sum(),
    "a difference that is nothing": lambda x: ((x - x).exp() * x.sin() + x * 2 - x - x).sum(),
    "zeros that take no memory": lambda x: (
        (x * torch._efficientzerotensor(3, dtype=f64)).sin().sum()
    ),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_any_constant_may_stand_in_the_function(hessian, name):
    same(hessian, CONSTANTS[name], lambda: rand(3))


def test_negated_inputs_are_their_values(hessian):
    same(hessian, lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2).sum(), lambda: negated(5))


TRANSFORMS = {
    "hessian": lambda g, x: torch.func.hessian(g)(x).sum(),
    "jacfwd of grad": lambda g, x: torch.func.jacfwd(torch.func.grad(g))(x).diagonal().sum(),
    "jvp": lambda g, x: torch.func.jvp(g, (x,), (x.cos(),))[1],
    "grad": lambda g, x: torch.func.grad(g)(x).sum(),
    "vmap": lambda g, x: torch.vmap(g)(torch.stack([x, 2 * x])).sum(),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_function_may_use_transforms_itself(hessian, name):
    same(hessian, lambda x: TRANSFORMS[name](lambda z: (z**4).sum(), x) ** 2, lambda: rand(3))


# --- where a derivative is infinite ---------------------------------------------------------------

HIDDEN = torch.tensor([True, True, False])
AT = torch.tensor([-1.0, -2, 3], dtype=f64)


def assigned(x):
    y = x.clone()
    y[:2] = 0
    return y


SELECTIONS = {
    "relu": lambda x: x.relu().sqrt(),
    "relu, powers": lambda x: x.relu() ** 0.5,
    "clamp": lambda x: x.clamp(min=0).sqrt(),
    "clamp by a tensor": lambda x: torch.clamp(x, min=torch.zeros(3, dtype=f64)).sqrt(),
    "maximum": lambda x: torch.maximum(x, torch.zeros(3, dtype=f64)).sqrt(),
    "hardtanh": lambda x: (F.hardtanh(x) + 1).sqrt(),
    "relu6": lambda x: F.relu6(x).sqrt(),
    "where": lambda x: torch.where(HIDDEN, 0.0, x).sqrt(),
    "masked_fill": lambda x: x.masked_fill(HIDDEN, 0).sqrt(),
    "tril": lambda x: (x[:, None] ** 2 + x[None] ** 2).tril(-1).sqrt(),
    "index_fill": lambda x: torch.index_fill(x, 0, torch.tensor([0, 1]), 0).sqrt(),
    "assignment": lambda x: assigned(x).sqrt(),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_what_an_op_selects_away_is_finite_where_stock_is(hessian, name):
    f = SELECTIONS[name]
    ours, theirs = (route(lambda x: f(x).sum(), AT) for route in (hessian, stock))
    finite = theirs.isfinite()
    assert finite.any()
    assert_close(ours[finite], theirs[finite])
