"""What the engine cannot take goes through plain autograd: the same result, and reported."""

import threading
import warnings

import pytest
import torch
from outcome import FLAGS, assert_close, assert_same, flags_id, outcome
from torch.autograd import forward_ad
from torch.autograd.functional import hessian as stock
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.ours
f64 = torch.float64


def rand(*shape):
    return torch.rand(*shape, dtype=f64) + 0.2


def cubes(x):
    return (x**3).sum()


def hooked(x):
    y = x.sin()
    y.register_hook(lambda g: 2 * g)
    return (y * x).pow(2).sum()


class Named(torch.Tensor):
    pass


# --- where it happens, and what it gives ----------------------------------------------------------

AFTER_FUNC = {
    "a hook that changes a gradient": (hooked, lambda: rand(3)),
    "a hook, two inputs": (lambda x, y: hooked(x) * y.exp().sum(), lambda: (rand(3), rand(2))),
    "a hook, an unused input": (lambda x, y: hooked(x), lambda: (rand(3), rand(2))),
    "a hook, two dtypes": (
        lambda x, y: hooked(x.double()) * y.exp().sum(),
        lambda: (rand(3).float(), rand(2)),
    ),
    "a hook, inputs that require grad": (hooked, lambda: rand(3).requires_grad_()),
}


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize("name", AFTER_FUNC)
def test_rows_of_the_recorded_graph_are_those_of_stock(hessian, name, flags):
    func, make_inputs = AFTER_FUNC[name]
    if flags["outer_jacobian_strategy"] == "forward-mode" and flags["vectorize"]:
        pytest.skip("stock's forward mode does not see hooks")
    assert_same(
        outcome(hessian, func, make_inputs, flags), outcome(stock, func, make_inputs, flags)
    )


@pytest.mark.usefixtures("fallback_is_fine")
def test_forward_mode_falls_back_to_rows_of_the_dtype_of_the_row(hessian):
    inputs = rand(3).float(), rand(2)
    flags = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
    blocks = hessian(AFTER_FUNC["a hook, two dtypes"][0], inputs, **flags)
    assert [[b.dtype for b in row] for row in blocks] == [[torch.float32] * 2, [f64] * 2]


@pytest.mark.usefixtures("fallback_is_fine")
def test_a_fallback_after_func_has_run_does_not_run_it_again(hessian):
    calls = []

    def func(x):
        calls.append(1)
        return hooked(x)

    hessian(func, rand(3))
    assert len(calls) == 1


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_hessian_is_one_at_every_input(hessian):
    traced = torch.jit.trace(lambda x: hessian(cubes, x), rand(3), check_trace=False)
    x = rand(3)
    assert_close(traced(x), stock(cubes, x))


def coupled(x, y):
    return (x.sin().sum() * y.exp().sum()).tanh()


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
def test_vmap_over_a_hessian_is_the_stack_of_hessians(hessian, flags):
    xs, ys = rand(4, 3), rand(4, 2)

    def one(x, y):
        return hessian(coupled, (x, y), **flags)

    want = outcome(stock, coupled, lambda: (xs[0], ys[0]), flags)
    if want.error is not None or flags["strict"]:
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.func.vmap(one)(xs, ys)
        return
    got = torch.func.vmap(one)(xs, ys)
    for i, row in enumerate(got):
        for j, block in enumerate(row):
            assert_close(block, torch.stack([one(x, y)[i][j] for x, y in zip(xs, ys, strict=True)]))


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.jacfwd])
def test_a_transform_differentiates_a_hessian(hessian, transform, create_graph):
    def loss(route):
        return lambda x: route(cubes, x, create_graph=create_graph).pow(2).sum()

    x = rand(3).requires_grad_()
    (want,) = torch.autograd.grad(stock(cubes, x, create_graph=True).pow(2).sum(), x)
    assert_close(transform(loss(hessian))(x), want)


@pytest.mark.usefixtures("fallback_is_fine")
def test_inside_a_transform_a_wrong_output_is_the_same_error(hessian):
    for func in (lambda x: x, lambda x: (x.sum(), x.sum()), lambda x: 1.0):
        want = outcome(stock, func, lambda: rand(3), {}).error
        got = outcome(
            lambda func, x: torch.func.vmap(lambda x, func=func: hessian(func, x))(x),
            func,
            lambda: rand(2, 3),
            {},
        )
        assert got.error == want


@pytest.mark.usefixtures("fallback_is_fine")
def test_a_complex_input_does_what_stock_does(hessian):
    z = torch.rand(3, dtype=torch.complex128)
    for flags in ({}, {"vectorize": True}):
        got, want = (
            outcome(r, lambda z: (z * z.conj()).real.pow(2).sum(), lambda: z, flags)
            for r in (hessian, stock)
        )
        assert_same(got, want)


@pytest.mark.usefixtures("fallback_is_fine")
def test_inside_a_compiled_function_it_gives_what_it_gives_outside(hessian):
    x = rand(3)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: hessian(cubes, x).sum() * 2, backend="eager")
    assert_close(compiled(x), stock(cubes, x).sum() * 2)


class Logged(TorchDispatchMode):
    """Counts the operations it sees."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("fallback_is_fine")
def test_a_dispatch_mode_sees_the_operations_that_stock_runs(hessian):
    counts = []
    for route in (hessian, stock):
        with Logged() as mode:
            route(cubes, rand(3))
        counts.append(mode.seen)
    assert counts[0] == counts[1]


@pytest.mark.usefixtures("fallback_is_fine")
def test_a_meta_tensor_gives_the_shapes(hessian):
    H = hessian(cubes, torch.empty(2, 3, device="meta"))
    assert H.shape == (2, 3, 2, 3) and H.is_meta


# --- how it is reported ---------------------------------------------------------------------------


def dual(call):
    with forward_ad.dual_level():
        x = forward_ad.make_dual(rand(3), torch.ones(3, dtype=f64))
        return call(cubes, x)


def counted(call):
    with FlopCounterMode(display=False):
        return call(cubes, rand(3))


# reason -> a call that has it
REASONS = {
    "a hook on SinBackward0": lambda call: call(hooked, rand(3)),
    "inside a torch.func transform or vmap": lambda call: torch.func.vmap(
        lambda x: [call(cubes, x), x][1]
    )(rand(2, 3)),
    "inside torch.autograd.forward_ad.dual_level": dual,
    "a dispatch mode is active": counted,
    "input 0 is a Named, a tensor subclass": lambda call: call(cubes, rand(3).as_subclass(Named)),
    "input 1 is complex (torch.complex128)": lambda call: call(
        lambda x, z: cubes(x) + z.abs().sum(), (rand(3), rand(2).to(torch.complex128))
    ),
    "input 0 is on a meta device": lambda call: call(cubes, rand(3).to("meta")),
    "input 0 has layout torch.sparse_coo": lambda call: call(
        lambda x: cubes(x.to_dense()), rand(3).to_sparse()
    ),
}


def attempt(make_call, route):
    """Run a call whose numbers do not matter here; stock itself may refuse it."""
    import hesse

    try:
        make_call(route)
    except hesse.FallbackError:
        raise
    except (RuntimeError, NotImplementedError):
        pass


@pytest.mark.parametrize("reason", REASONS)
def test_a_fallback_warns_once_and_says_why_and_what_to_do(hessian, reason):
    import hesse

    with hesse.fallback("warn"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            attempt(REASONS[reason], hessian)
    mine = [w for w in caught if issubclass(w.category, hesse.FallbackWarning)]
    assert len(mine) == 1
    text = str(mine[0].message)
    assert reason in text
    assert "hesse.fallback('error')" in text and "hesse.fallback('silent')" in text
    assert mine[0].filename == __file__
    assert issubclass(hesse.FallbackWarning, UserWarning)


@pytest.mark.parametrize("reason", REASONS)
def test_explain_gives_the_reason_and_does_not_warn(reason):
    import hesse

    reports = []
    with hesse.fallback("error"), warnings.catch_warnings():
        warnings.simplefilter("error")
        REASONS[reason](lambda *args: reports.append(hesse.explain(*args)))
    assert reason in reports[0].fallback
    assert reason in str(reports[0])


@pytest.mark.parametrize("reason", REASONS)
def test_the_policy_error_refuses(hessian, reason):
    import hesse

    with hesse.fallback("error"), pytest.raises(hesse.FallbackError) as error:
        REASONS[reason](hessian)
    assert reason in str(error.value) and "hesse.fallback(" in str(error.value)
    assert issubclass(hesse.FallbackError, RuntimeError)


@pytest.mark.parametrize("reason", REASONS)
def test_the_policy_silent_is_silent(hessian, reason):
    import hesse

    with hesse.fallback("silent"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attempt(REASONS[reason], hessian)
    assert not [w for w in caught if issubclass(w.category, hesse.FallbackWarning)]


def test_each_reason_warns_for_itself(hessian):
    import hesse

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for make_call in REASONS.values():
            attempt(make_call, hessian)
    assert len({str(w.message) for w in caught if w.category is hesse.FallbackWarning}) == len(
        REASONS
    )


def test_an_ordinary_call_is_not_a_fallback(hessian):
    import hesse

    with hesse.fallback("error"):
        hessian(cubes, rand(3))
        hessian(cubes, rand(3), create_graph=True, strict=True)
    assert hesse.explain(cubes, rand(3)).fallback is None


# --- the policy -----------------------------------------------------------------------------------


def refuses():
    import hesse

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hesse.FallbackWarning)
        try:
            hesse.hessian(hooked, rand(2))
        except hesse.FallbackError:
            return True
    return False


@pytest.mark.parametrize("policy", ["", "raise", None, 1, "ERROR"])
def test_an_unknown_policy_lists_the_known_ones(policy):
    import hesse

    with pytest.raises(ValueError, match="must be 'error', 'warn' or 'silent', got"):
        hesse.fallback(policy)


def test_a_policy_holds_until_its_block_ends_also_by_an_exception():
    import hesse

    assert not refuses()
    with hesse.fallback("error"):
        assert refuses()
        with hesse.fallback("silent"):
            assert not refuses()
        assert refuses()
        with pytest.raises(KeyError), hesse.fallback("silent"):
            raise KeyError
        assert refuses()
    assert not refuses()


def test_a_policy_set_by_a_plain_call_stays():
    import hesse

    previous = hesse.fallback("error")
    assert refuses()
    hesse.fallback("silent")
    assert not refuses()
    previous.__exit__(None, None, None)


def test_threads_do_not_see_the_policy_of_another():
    import hesse

    seen = {}
    barrier = threading.Barrier(2)

    def work(policy):
        with hesse.fallback(policy):
            barrier.wait()
            seen[policy] = [refuses() for _ in range(20)]
            barrier.wait()

    with hesse.fallback("error"):
        threads = [threading.Thread(target=work, args=(p,)) for p in ("error", "silent")]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert refuses()
    assert all(seen["error"]) and not any(seen["silent"])


# --- the report -----------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x**2


def test_a_report_counts_the_ops_by_the_route_they_took():
    import hesse

    report = hesse.explain(lambda x: Cube.apply(x.sin()).exp().sum(), rand(5))
    assert report.fallback is None
    assert report.native_ops["SinBackward0"] == report.native_ops["ExpBackward0"] == 1
    assert "SinBackward0" not in report.autograd_ops
    assert report.autograd_ops == {"CubeBackward": 1}
    assert report.steps == sum(report.native_ops.values()) + sum(report.autograd_ops.values())
    assert report.output_bytes == 5 * 5 * 8


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_report_prints_one_aligned_line_a_count(create_graph):
    import hesse

    report = hesse.explain(lambda x: x.exp().prod(), rand(4), create_graph=create_graph)
    lines = str(report).splitlines()
    column = lines[0].index("engine")
    assert len(lines) > 8 and "ExpBackward0" in str(report)
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    with pytest.raises(AttributeError):
        report.flops = 0


def test_a_report_of_a_constant_has_no_steps():
    import hesse

    report = hesse.explain(lambda x: torch.ones([]), rand(3))
    assert report.steps == 0 and report.fallback is None and report.output_bytes == 72


def test_explain_runs_func_once():
    import hesse

    calls = []
    hesse.explain(lambda x: [calls.append(1), cubes(x)][1], rand(3))
    assert len(calls) == 1


def test_a_chunk_size_changes_the_chunks_and_not_the_result(hessian):
    import hesse

    def func(x):
        return (x.sin()[:, None] * x.exp()).logsumexp(0).prod() * 1e-3

    x = rand(10)
    want = stock(func, x)
    for chunk_size in (1, 3, 10, 1000):
        assert_close(hessian(func, x, chunk_size=chunk_size), want)
        report = hesse.explain(func, x, chunk_size=chunk_size)
        assert report.chunks == -(-10 // min(chunk_size, 10))
