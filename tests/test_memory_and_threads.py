"""A call leaves nothing behind and nothing half done, alone or beside other threads."""

import contextlib
import gc
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from outcome import assert_close
from torch.autograd.functional import hessian as stock
from torch.profiler import ProfilerActivity, profile

pytestmark = pytest.mark.cpu

f64 = torch.float64
FORWARD = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}


def rand(*shape):
    return torch.rand(*shape, dtype=f64) + 0.2


def wave(x, y):
    return (x.sin().sum() * y.exp().sum()).tanh() + (x**3).sum()


# --- nothing half done ----------------------------------------------------------------------------


def snapshot(*tensors):
    """The state that a call must not change."""
    return (
        torch.is_grad_enabled(),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        [
            (t.tolist(), t.requires_grad, t.is_leaf, t._version, t.stride(), t.grad is None)
            for t in tensors
        ],
    )


def fail(x, y):
    raise KeyError("from func")


def fail_late(x, y):
    torch.set_grad_enabled(False)
    raise KeyError("from func")


def fail_in_backward(x, y):
    z = x.sin()
    z.register_hook(_raise)
    return wave(z, y)


def _raise(g):
    raise KeyError("from a hook")


CALLS = {
    "plain": (wave, {}),
    "create_graph": (wave, {"create_graph": True}),
    "strict": (wave, {"strict": True}),
    "vectorize": (wave, {"vectorize": True}),
    "forward mode": (wave, FORWARD),
    "an exception in func": (fail, {}),
    "an exception in func with its grad mode off": (fail_late, {"create_graph": True}),
    "an exception in the backward pass": (fail_in_backward, {}),
    "func that turns grad mode off": (
        lambda x, y: [wave(x, y), torch.set_grad_enabled(False)][0],
        {},
    ),
    "a refused output": (lambda x, y: x * 2, {}),
    "a refused strictness": (lambda x, y: x.sum(), {"strict": True}),
}


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("outside", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_everything_as_it_was(hessian, name, requires_grad, outside):
    func, flags = CALLS[name]
    inputs = rand(3).requires_grad_(requires_grad), rand(2, 2).T
    with outside():
        before = snapshot(*inputs)
        with contextlib.suppress(KeyError, RuntimeError):
            hessian(func, inputs, **flags)
        assert snapshot(*inputs) == before


def test_an_exception_in_func_comes_out_as_it_is(hessian):
    with pytest.raises(KeyError, match="from func"):
        hessian(fail, (rand(2), rand(2)))


def test_gradients_of_what_func_closes_over_are_not_touched(hessian):
    w = rand(3).requires_grad_()
    w.grad = torch.ones(3, dtype=f64)
    for create_graph in (False, True):
        hessian(lambda x: (w * x**3).sum(), rand(3), create_graph=create_graph)
    assert torch.equal(w.grad, torch.ones(3, dtype=f64))


def test_the_result_does_not_share_memory_with_the_inputs(hessian):
    x, matrix = rand(3), rand(3, 3)
    H = hessian(lambda x: x @ matrix @ x, x)
    kept = matrix.clone(), x.clone()
    H.zero_()
    assert torch.equal(matrix, kept[0]) and torch.equal(x, kept[1])


def test_two_results_do_not_share_memory(hessian):
    x = rand(3)
    first = hessian(lambda x: (x**3).sum(), x)
    want = first.clone()
    hessian(lambda x: (x**3).sum(), 5 * x)
    assert torch.equal(first, want)


# --- nothing left behind --------------------------------------------------------------------------

# The first two keep a graph on purpose; torch itself keeps a graph whose hook raised until the next
# run of the cycle collector.
FREED = [
    name
    for name in CALLS
    if name not in ("create_graph", "forward mode", "an exception in the backward pass")
]


@pytest.mark.usefixtures("fallback_is_fine")
@pytest.mark.parametrize("name", FREED)
def test_the_graph_is_freed_with_the_call(hessian, name):
    """Without the cycle collector: what func made must go when the call ends."""
    func, flags = CALLS[name]
    alive = []

    def watched(x, y):
        alive.append(weakref.ref(x.sin()))
        big = x * 2
        alive.append(weakref.ref(big))
        return func(big, y)

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(KeyError, RuntimeError):
            hessian(watched, (rand(3), rand(4)), **flags)
        assert not [ref for ref in alive if ref() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "flags", [{"create_graph": True}, FORWARD], ids=["create_graph", "forward"]
)
def test_a_kept_graph_is_freed_with_the_result(hessian, flags):
    class Marker(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.payload = payload = torch.ones(1)
            marks.append(weakref.ref(payload))
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g.clone()

    marks = []
    if flags is FORWARD and hessian is stock:
        pytest.skip("stock's forward mode needs a jvp of a custom Function")
    H = hessian(lambda x: (Marker.apply(x) ** 3).sum(), rand(3), **flags)
    assert H.requires_grad
    del H
    gc.collect()
    assert marks and all(mark() is None for mark in marks)


def peak_bytes(call):
    """The most memory that was allocated through torch at one moment of a call, by its profiler.

    Without blocks of earlier calls, which may be somewhat larger than what is asked for.
    """
    from hesse import _C

    _C.drop_idle_blocks()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        call()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def per_sample(x):
    weight = torch.linspace(-1, 1, 64, dtype=f64).view(8, 8)
    return torch.tanh(torch.tanh(x @ weight) @ weight).pow(2).sum()


STRUCTURED = {
    "Rosenbrock": (rosenbrock, (600,)),
    "a separable function": (lambda x: (x.sin() * x.exp()).sum(), (600,)),
    "an MLP of each sample": (per_sample, (64, 8)),
}


@pytest.mark.ours
@pytest.mark.parametrize("name", STRUCTURED)
def test_a_structured_hessian_takes_little_more_than_its_output(hessian, name):
    func, shape = STRUCTURED[name]
    x = rand(*shape)
    output = x.numel() ** 2 * x.element_size()
    peak = peak_bytes(lambda: hessian(func, x))
    assert output <= peak <= 1.3 * output + 2**19


@pytest.mark.ours
@pytest.mark.parametrize("name", STRUCTURED)
def test_explain_reports_the_bytes_that_are_allocated(hessian, name):
    import hesse

    func, shape = STRUCTURED[name]
    x = rand(*shape)
    report = hesse.explain(func, x)
    assert report.output_bytes == x.numel() ** 2 * x.element_size()
    recorded = peak_bytes(lambda: func(x.clone().requires_grad_()).backward())
    peak = peak_bytes(lambda: hessian(func, x))
    assert report.widest_bytes <= peak
    # What the report leaves out is the output, the recorded graph and one gradient.
    assert peak <= report.output_bytes + report.widest_bytes + 2 * recorded + 2**16


@pytest.mark.ours
def test_a_smaller_chunk_takes_less_memory(hessian):
    weight = rand(200, 200)

    def dense(x):
        return torch.tanh(weight @ torch.tanh(weight @ x)).pow(2).sum()

    x = rand(200)
    small, large = (
        peak_bytes(lambda size=size: hessian(dense, x, chunk_size=size)) for size in (10, 200)
    )
    assert small < large


# --- threads --------------------------------------------------------------------------------------


def in_threads(count, work):
    """Run ``work(i)`` in threads that start together; raise what they raise."""
    errors, barrier = [], threading.Barrier(count)

    def run(i):
        barrier.wait()
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("flags", [{}, {"create_graph": True}, {"strict": True}, FORWARD], ids=str)
def test_calls_from_several_threads_give_what_one_thread_gives(hessian, flags):
    if flags is FORWARD and hessian is stock:
        pytest.skip("forward-mode AD levels are global to the process")
    inputs = [(rand(5), rand(3)) for _ in range(4)]
    wants = [stock(wave, pair) for pair in inputs]

    def work(i):
        for _ in range(10):
            got = hessian(wave, inputs[i], **flags)
            for row, want in zip(got, wants[i], strict=True):
                for block, expected in zip(row, want, strict=True):
                    assert_close(block, expected)

    in_threads(4, work)


def test_threads_may_share_an_input_and_a_function(hessian):
    x, weight = rand(6), rand(4, 6).requires_grad_()

    def func(x):
        return torch.tanh(weight @ x).pow(2).sum()

    want = stock(func, x)
    in_threads(4, lambda i: [assert_close(hessian(func, x), want) for _ in range(10)])
    assert weight.grad is None


@pytest.mark.usefixtures("fallback_is_fine")
def test_python_code_in_the_graph_runs_from_any_thread(hessian):
    """Hooks of saved tensors and custom Functions need the GIL, which sweeps have given up."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return 3 * g * x**2

    def func(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            return (Cube.apply(x).sin() * x).sum()

    x = rand(4)
    want = stock(func, x)
    in_threads(4, lambda i: [assert_close(hessian(func, x), want) for _ in range(10)])


@pytest.mark.ours
def test_other_threads_run_python_while_a_sweep_runs(hessian):
    weight = rand(400, 400)

    def dense(x):
        return torch.tanh(weight @ torch.tanh(weight @ torch.tanh(weight @ x))).pow(2).sum()

    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.0005):
            ticks.append(1)

    x = rand(400)
    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        for _ in range(50):  # until one call has met a thread that was scheduled beside it
            before = len(ticks)
            hessian(dense, x)
            if len(ticks) - before >= 3:
                return
        pytest.fail("no other thread ran during a sweep")
    finally:
        done.set()
        ticker.join()


# --- out of memory --------------------------------------------------------------------------------

STARVED = """
import resource, torch, hesse

def f(x):
    return (x.flip(0)[:, None] * scales).flip(0).sin().sum()

torch.set_num_threads(1)
scales = torch.rand(20_000, dtype=torch.float64)
x = torch.rand(64, dtype=torch.float64)
expected = hesse.hessian(f, x)
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (300 << 20),) * 2)
report = hesse.explain(f, x, chunk_size=64)  # one dense tangent is 625 MiB
assert 1 < report.chunks and report.chunk_size < 64, report
torch.testing.assert_close(hesse.hessian(f, x, chunk_size=64), expected)
"""


@pytest.mark.ours
@pytest.mark.skipif(sys.platform != "linux", reason="address space can be limited on Linux")
def test_a_sweep_that_runs_out_of_memory_goes_on_with_fewer_seeds():
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
