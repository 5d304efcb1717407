"""What only a GPU can show: that nobody waits for it, and its streams, devices and memory.

The laws of every rule run there too: ``HESSE_TEST_DEVICE=cuda python -m pytest tests``.
"""

import contextlib
import os

import pytest
import torch
import torch.nn.functional as F
from scenarios import ALL, Case
from torch import Tensor
from torch.autograd.functional import hessian as stock
from torch.nn.attention import SDPBackend, sdpa_kernel

import hesse
from bench.problems import PROBLEMS
from hesse import _C

# Read once, by the first matrix product: without it there are no deterministic ones.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

pytestmark = [
    pytest.mark.ours,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
f64 = torch.float64

# Scenarios, by how their names begin, in which the host does wait.
WAITS = {
    "det": "torch checks what its library says of a decomposition",
    "index, a condition and an index": "how many places a condition has, only its data say",
    "lstsq": "torch checks what its library says of a decomposition",
    "matrix_exp": "torch chooses by the norm how many terms it takes",
    "residuals of lstsq": "torch checks what its library says of a decomposition",
}


@pytest.fixture(autouse=True)
def _cpu_is_the_default():
    """Whatever device is under test: what is made here says where it is."""
    with torch.device("cpu"):
        yield


@contextlib.contextmanager
def nobody_waits():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def randn(*shape, seed=0, device="cuda", dtype=f64) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=f64).to(device, dtype)


def leaves(*xs: Tensor) -> list[Tensor]:
    return [x.detach().requires_grad_() for x in xs]


def outputs(ys) -> list[Tensor]:
    ys = [ys] if isinstance(ys, Tensor) else list(ys)
    return [y for y in ys if y.requires_grad]


def small_network(x: Tensor) -> Tensor:
    return ((x @ x.T).tanh().softmax(-1) * x.sum(1)).square().sum()


def assert_stocks(f, *xs: Tensor, **tolerance) -> None:
    ours, theirs = hesse.hessian(f, xs), stock(f, xs)
    for mine, wanted in zip(ours, theirs, strict=True):
        for a, b in zip(mine, wanted, strict=True):
            torch.testing.assert_close(a, b, **tolerance)  # devices too


# ---- nobody waits --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, f64], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_nobody_waits_for_a_problem_of_the_bench(name, dtype):
    problem = PROBLEMS[name]
    case = problem.make(problem.quick[-1], dtype, "cuda")
    xs = leaves(*case.inputs)
    y = case.func(*xs)
    with nobody_waits():
        lin = _C.linearize([y], xs, None, False, True)
        lin.hessian(None, False)
        lin.hvp([torch.ones_like(x)[None] for x in xs])
        lin.diagonal()
        lin.lower_triangle()


@pytest.mark.parametrize("scenario", [s for s in ALL if s.on in ("", "cuda")], ids=lambda s: s.name)
def test_nobody_waits_for_a_rule(scenario):
    with torch.device("cuda"):
        xs = Case(scenario, "plain").inputs()
        try:
            ys = outputs(scenario.fn(*xs))
        except (NotImplementedError, RuntimeError) as e:
            pytest.skip(f"torch does not record it there: {e}")
        gys = [torch.ones_like(y) for y in ys]
    xs = [x for x in xs if x.requires_grad]
    waits = any(scenario.name.startswith(name) for name in WAITS)
    with contextlib.nullcontext() if waits else nobody_waits():
        _C.linearize(ys, xs, gys, False).hessian(None, False)


def test_nobody_waits_for_chunks():
    (x,) = leaves(randn(40, 20))
    y = small_network(x)
    with nobody_waits():
        lin = _C.linearize([y], [x], None, False)
        H = lin.hessian(100, False)[0][0]
    assert lin.report()["chunks"] == 8
    torch.testing.assert_close(H, stock(small_network, x))


# ---- streams -------------------------------------------------------------------------------------


def test_work_is_queued_in_the_current_stream():
    """The input is not there before long, but it is before anything else in its stream."""
    x, wanted = randn(12, 6), torch.zeros(12, 6, dtype=f64, device="cuda")
    expected = stock(small_network, x)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        wanted.copy_(x)
        H = hesse.hessian(small_network, wanted)
    side.synchronize()
    torch.testing.assert_close(H, expected)


def test_func_need_not_join_its_own_streams():
    """As autograd's engine goes back to the stream of each op."""
    side = torch.cuda.Stream()

    def f(x):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(200_000_000)
            return small_network(x * 1.5)

    x = randn(12, 6)
    expected = stock(lambda x: small_network(x * 1.5), x)
    torch.cuda.synchronize()
    torch.testing.assert_close(hesse.hessian(f, x), expected)


# ---- devices -------------------------------------------------------------------------------------


def test_a_graph_may_lead_to_the_gpu_and_back():
    assert_stocks(
        lambda x: (x.sin().cuda().exp().sum(0) ** 2).cpu().sum(), randn(3, 4, device="cpu")
    )


def test_inputs_may_be_on_several_devices():
    a, b = randn(3, 2), randn(2, seed=1, device="cpu")
    assert_stocks(lambda a, b: (a * b.cuda()).exp().sum() * b.square().sum().cuda(), a, b)
    assert_stocks(lambda b, a: (a.cpu() @ b).tanh().square().sum(), b, a)


def test_a_number_of_the_hosts_may_be_an_input():
    s = torch.tensor(0.7, dtype=f64)
    assert_stocks(lambda s, x: (x * s).exp().sum(), s, randn(5))
    half = torch.tensor(0.5, dtype=f64)
    assert_stocks(lambda x: ((x - half) / half).tanh().pow(3).sum(), randn(5))


@needs_two
def test_a_device_need_not_be_the_current_one():
    x = randn(12, 6, device="cuda:1")
    with torch.cuda.device(0):
        H = hesse.hessian(small_network, x)
        assert torch.cuda.current_device() == 0
    assert H.device == x.device
    torch.testing.assert_close(H, stock(small_network, x))


@needs_two
def test_a_graph_may_span_two_gpus():
    a, b = randn(3, 2, device="cuda:0"), randn(2, seed=1, device="cuda:1")
    assert_stocks(lambda a, b: ((a.to("cuda:1") * b).exp().sum() ** 2).to("cuda:0"), a, b)


# ---- memory --------------------------------------------------------------------------------------


def attention(x: Tensor) -> Tensor:
    return ((x @ x.T).softmax(-1) @ x.tanh()).square().sum()


@pytest.mark.parametrize("chunk_size", [None, 256])
def test_the_peak_is_within_the_estimate(chunk_size):
    (x,) = leaves(randn(96, 16))
    y = attention(x)
    lin = _C.linearize([y], [x], None, False)
    lin.hessian(chunk_size, False)  # workspaces of libraries
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    H = lin.hessian(chunk_size, False)[0][0]
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 1.3 * (lin.report()["widest_bytes"] + H.nbytes)


def dense(scales: Tensor):
    """A function of n numbers: a tangent of all seeds takes 8 n^2 bytes for each of the scales."""

    def f(x):
        return (x.flip(0)[:, None] * scales).flip(0).sin().sum()

    return f, lambda x: torch.diag(-(torch.sin(x[:, None] * scales) * scales**2).sum(1))


def test_a_chunk_is_no_larger_than_what_is_free():
    total = torch.cuda.mem_get_info()[1]
    f, expected = dense(torch.rand(2 * total // (8 * 512**2), dtype=f64).cuda())
    (x,) = leaves(randn(512))
    lin = _C.linearize([f(x)], [x], None, False)
    H = lin.hessian(None, False)[0][0]
    report = lin.report()
    assert report["chunks"] > 1 and report["widest_bytes"] <= total
    assert report["widest_bytes"] > 256 << 20  # asked for more than a device has for sure
    torch.testing.assert_close(H, expected(x.detach()))


def test_a_sweep_that_runs_out_of_memory_goes_on_with_fewer_seeds():
    f, expected = dense(torch.rand(20_000, dtype=f64).cuda())  # 625 MiB
    (x,) = leaves(randn(64))
    y = f(x)
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    limit = (torch.cuda.memory_reserved() + (300 << 20)) / total
    torch.cuda.set_per_process_memory_fraction(limit)
    try:
        lin = _C.linearize([y], [x], None, False)
        H = lin.hessian(64, False)[0][0]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 < lin.report()["chunks"] and lin.report()["chunk_size"] < 64
    torch.testing.assert_close(H, expected(x.detach()))


# ---- determinism ---------------------------------------------------------------------------------


def test_deterministic_algorithms_give_the_same_bits():
    case = PROBLEMS["network"].make(PROBLEMS["network"].sizes[-1], torch.float32, "cuda")
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = [hesse.hessian(case.func, case.args) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first, H) for H in others)


# ---- nodes that only a GPU records ---------------------------------------------------------------


@pytest.mark.parametrize(
    "backend, dtype, tolerance",
    [
        (SDPBackend.EFFICIENT_ATTENTION, torch.float32, 1e-3),
        (SDPBackend.FLASH_ATTENTION, torch.half, 3e-2),
    ],
    ids=["efficient", "flash"],
)
@pytest.mark.parametrize("features", [8, 12])  # of which the kernels pad the second
def test_attention_by_the_kernels_of_the_gpu(backend, dtype, tolerance, features):
    shape = (1, 2, 5, features)
    q, k, v = (randn(*shape, seed=s, dtype=dtype) for s in range(3))

    def loss(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).float().square().sum()

    with sdpa_kernel(backend):
        report = hesse.explain(loss, (q, k, v))
        H = hesse.hessian(loss, (q, k, v))
    assert report.autograd_ops == {}
    assert any("Attention" in op for op in report.native_ops)
    with sdpa_kernel(SDPBackend.MATH):
        exact = stock(loss, tuple(t.double() for t in (q, k, v)))
    for mine, wanted in zip(H, exact, strict=True):
        for a, b in zip(mine, wanted, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)


def test_layers_of_cudnn():
    norm = torch.nn.BatchNorm2d(3, dtype=f64, device="cuda")
    x, grid = randn(4, 3, 2, 2), randn(2, 2, 2, 2) / 4
    image = randn(2, 3, 4, 4)

    def of_norm(x, w, b):
        return F.batch_norm(x, None, None, w, b, training=True).tanh().square().sum()

    assert_stocks(of_norm, x, norm.weight.detach(), norm.bias.detach())
    assert hesse.explain(of_norm, (x, norm.weight.detach(), norm.bias.detach())).autograd_ops == {}

    def of_grid(image, grid):
        return F.grid_sample(image, grid, align_corners=True).exp().sum()

    assert_stocks(of_grid, image, grid)
    assert hesse.explain(of_grid, (image, grid)).autograd_ops == {}


def test_rms_norm_by_its_kernel():
    def f(x, w):
        return F.rms_norm(x, (6,), w).tanh().square().sum()

    x, w = randn(4, 6), randn(6, seed=1)
    assert hesse.explain(f, (x, w)).autograd_ops == {}
    with torch.device("cpu"):
        expected = stock(f, (x.cpu(), w.cpu()))
    for mine, wanted in zip(hesse.hessian(f, (x, w)), expected, strict=True):
        for a, b in zip(mine, wanted, strict=True):
            torch.testing.assert_close(a.cpu(), b)
