"""What the report says of memory, held against what was allocated.

The profiler sees every allocation; those of the returned blocks are set aside. Seed-sized memory is
what the ledger counts; value-sized memory (coefs, adjoints) is allowed for by a few values a step.
"""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from drawing import generator
from torch._C._profiler import _EventType
from torch.autograd.functional import hessian as stock
from torch.profiler import ProfilerActivity, profile

import hesse
from bench.problems import PROBLEMS
from hesse import _C

pytestmark = [pytest.mark.ours, pytest.mark.cpu]
f64 = torch.float64


def randn(*shape):
    return torch.randn(*shape, dtype=f64)


def constant(*shape):
    return torch.randn(shape, generator=generator(0), dtype=f64)


# ---- what was allocated --------------------------------------------------------------------------


@dataclass
class Measured:
    report: dict
    peak: int  # bytes alive at the widest moment, the blocks not counted
    total: int  # bytes allocated in all, the blocks not counted
    output: int  # bytes of the blocks


def allocations(run):
    """(address, bytes) in order, a negative count where memory is given back."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        result = run()
    events, stack = [], list(prof.profiler.kineto_results.experimental_event_tree())
    while stack:
        event = stack.pop()
        stack += event.children
        if event.typed[0] == _EventType.Allocation:
            memory = event.typed[1]
            events.append((event.start_time_ns, memory.ptr, memory.alloc_size))
    return result, [(ptr, size) for _, ptr, size in sorted(events, key=lambda e: e[0])]


def measured(f, *xs, chunk_size=None):
    xs = [x.detach().requires_grad_() for x in xs]
    lin = _C.linearize([f(*xs)], xs, None, False)
    blocks, events = allocations(lambda: lin.hessian(chunk_size, False))
    blocks = [b for row in blocks for b in row]
    # The last allocation at the address of a block is the block.
    last = {ptr: i for i, (ptr, size) in enumerate(events) if size > 0}
    skip = {last[b.data_ptr()] for b in blocks}
    now = peak = total = 0
    for i, (_, size) in enumerate(events):
        if i in skip:
            continue
        now += size
        peak = max(peak, now)
        total += max(size, 0)
    return Measured(lin.report(), peak, total, sum(b.nbytes for b in blocks))


# ---- dense problems: the ledger is the memory ----------------------------------------------------

ROWS = constant(150, 12)


def deep_network(a, b, c):
    h = torch.tanh(F.linear(ROWS, a))
    return ((torch.tanh(F.linear(h, b)) @ c) ** 2).mean()


def attention(x):
    return ((x @ x.T).softmax(-1) @ x.tanh()).square().sum()


def flipped(x):
    return (x.flip(0) * x).exp().sum()


def sums_of_sums(x):
    return x.exp().cumsum(0).tanh().cumsum(0).sin().sum()


def logistic(w):
    return F.softplus(ROWS @ w).mean()


DENSE = {
    "a deep network": (deep_network, [(12, 12), (12, 12), (12,)]),
    "attention": (attention, [(24, 8)]),
    "a flip": (flipped, [(200,)]),
    "running sums": (sums_of_sums, [(400,)]),
}


@pytest.mark.parametrize("chunk_size", [None, 32])
@pytest.mark.parametrize("name", DENSE)
def test_widest_bytes_are_those_alive_at_the_peak(name, chunk_size):
    f, shapes = DENSE[name]
    m = measured(f, *(randn(*s) / 3 for s in shapes), chunk_size=chunk_size)
    assert m.report["chunks"] == (1 if chunk_size is None else -(-seeds(shapes) // chunk_size))
    assert m.peak / 2.5 <= m.report["widest_bytes"] <= 2.5 * m.peak


@pytest.mark.parametrize("name", DENSE)
def test_core_elements_are_those_allocated(name):
    f, shapes = DENSE[name]
    m = measured(f, *(randn(*s) / 3 for s in shapes))
    core_bytes = 8 * m.report["core_elements"]
    # A block may be made of the last core, and a product may want its operands copied.
    assert core_bytes - m.output <= m.total <= 3 * core_bytes


def seeds(shapes):
    return sum(math.prod(s) for s in shapes)


def test_a_dense_sweep_is_counted_in_whole_tangents():
    n = 40
    report = measured(lambda x: (x.flip(0) * 2).sin().sum(), randn(n)).report
    # Flipped forward and flipped back, each with one dense reading of what it flips.
    assert report["core_elements"] % (n * n) == 0
    assert report["widest_bytes"] % (8 * n * n) == 0
    assert 2 * n * n <= report["core_elements"] <= 5 * n * n


# ---- structured problems: little is counted, and little is allocated -----------------------------


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


WIDE, TALL = constant(16, 8), constant(1, 16)


def per_sample(x):
    return F.linear(torch.tanh(F.linear(x, WIDE)), TALL).sum()


def pairs(x):
    d = x[:, None] - x[None, :]
    return (1 + (d * d).sum(-1)).log().sum()


STRUCTURED = {  # function, shape, elements of its largest value
    "a chain": (rosenbrock, (500,), 500),
    "samples": (per_sample, (64, 8), 64 * 16),
    "pairs": (pairs, (40, 3), 40 * 40 * 3),
    "a separable function": (lambda x: (x.sin() * x.exp()).tanh().sum(), (600,), 600),
}


@pytest.mark.parametrize("chunk_size", [None, 50])
@pytest.mark.parametrize("name", STRUCTURED)
def test_what_a_structured_sweep_allocates_is_in_the_ledger(name, chunk_size):
    f, shape, largest = STRUCTURED[name]
    m = measured(f, randn(*shape), chunk_size=chunk_size)
    few_values = 8 * largest * 10
    assert m.peak <= 2 * m.report["widest_bytes"] + few_values
    work = 8 * m.report["core_elements"] + few_values
    assert m.total <= 2 * work + m.report["chunks"] * m.report["steps"] * 8 * largest


@pytest.mark.parametrize("name", ["a chain", "samples", "a separable function"])
def test_a_structured_sweep_needs_a_fraction_of_its_own_output(name):
    f, shape, _ = STRUCTURED[name]
    m = measured(f, randn(*shape))
    assert m.peak <= 0.3 * m.output
    assert m.report["widest_bytes"] <= 0.3 * m.output


# ---- the problems of the bench -------------------------------------------------------------------

# Of an image, PyTorch's own convolution makes columns, which no report sees.
ESTIMATED = [(name, size) for name, p in PROBLEMS.items() for size in p.quick if name != "cnn"]


@pytest.mark.parametrize("name, size", ESTIMATED)
def test_the_peak_of_a_problem_is_within_the_estimate(name, size):
    case = PROBLEMS[name].make(size, f64, "cpu")
    _, events = allocations(lambda: case.func(*case.inputs))
    largest = max(size for _, size in events)
    m = measured(case.func, *case.inputs)
    assert m.peak + m.output <= 1.3 * (m.report["widest_bytes"] + m.output) + 10 * largest


# ---- memory that the sweep does not own ----------------------------------------------------------


def test_memory_of_the_caller_is_not_counted_as_the_sweeps():
    everything = randn(4000, 12)
    few = everything[:40]
    report = hesse.explain(lambda w: F.softplus(few @ w).mean(), randn(12))
    assert report.widest_bytes <= 8 * 4 * few.numel()


def test_a_view_of_a_large_constant_does_not_cut_the_seeds_up():
    everything = torch.zeros(64 << 20)  # 256 MiB that no page is ever touched of
    few = everything[: 50 * 8].view(50, 8)
    report = hesse.explain(lambda w: F.softplus(few @ w).mean(), torch.randn(8))
    assert (report.chunks, report.chunk_size, report.gemms) == (1, 8, 1)


# ---- chunks --------------------------------------------------------------------------------------

CHUNKED = {**DENSE, "a chain": (rosenbrock, [(23,)]), "samples": (per_sample, [(3, 8)])}
CHUNKED["two inputs"] = (
    lambda x, y: (x.sin().sum() * y).exp().sum() + x.pow(3).sum(),
    [(5,), (2, 3)],
)
CHUNKED["pairs"] = (pairs, [(5, 3)])
CHUNKED["logistic"] = (logistic, [(12,)])


def small(name):
    """The problem with inputs small enough for stock and for chunks of one seed."""
    f, shapes = CHUNKED[name]
    cut = {"attention": [(5, 3)], "a flip": [(11,)], "running sums": [(13,)]}
    cut["a deep network"] = [(3, 12), (4, 3), (4,)]
    return f, tuple(randn(*s) / 2 for s in cut.get(name, shapes))


@pytest.mark.parametrize("name", CHUNKED)
def test_every_chunk_size_gives_the_same_hessian(name):
    f, xs = small(name)
    n = seeds([x.shape for x in xs])
    expected = stock(f, xs)
    for chunk_size in (1, 2, 3, 7, n, n + 5, None):
        H = hesse.hessian(f, xs, chunk_size=chunk_size)
        torch.testing.assert_close(H, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CHUNKED)
def test_the_chunk_size_asked_for_is_the_one_used(name):
    f, xs = small(name)
    n = seeds([x.shape for x in xs])
    for chunk_size in (1, 2, 3, 7, n, n + 5):
        report = hesse.explain(f, xs, chunk_size=chunk_size)
        assert report.chunk_size == min(chunk_size, n)
        assert report.chunks == -(-n // chunk_size)
    report = hesse.explain(f, xs)
    assert (report.chunk_size, report.chunks) == (n, 1)


@pytest.mark.parametrize("name", DENSE)
def test_smaller_chunks_need_less_memory(name):
    f, shapes = DENSE[name]
    xs = tuple(randn(*s) / 3 for s in shapes)
    widest = [hesse.explain(f, xs, chunk_size=c).widest_bytes for c in (16, 64, None)]
    assert widest == sorted(widest) and widest[0] < widest[-1] / 2


def test_a_sweep_that_would_outgrow_its_budget_is_cut():
    budget = 192 << 20
    scales = torch.rand(10_000, dtype=f64)

    def f(x):
        return (x.flip(0)[:, None] * scales).flip(0).sin().sum()

    x = randn(64)  # a dense tangent of 64 * 64 * 10,000 numbers: 312 MiB
    m = measured(f, x)
    assert m.report["chunks"] > 1
    assert m.report["widest_bytes"] <= budget
    assert m.peak <= 2 * budget
    H = hesse.hessian(f, x)
    curvature = -(torch.sin(x[:, None] * scales) * scales**2).sum(1)
    torch.testing.assert_close(H, torch.diag(curvature))


# ---- what goes all at once, or else another way --------------------------------------------------


def beyond_its_budget():
    """n numbers, a value with a tangent of 312 MiB, and the curvature of its sine and cosine."""
    scales = torch.rand(10_000, dtype=f64)
    x = randn(64).requires_grad_()
    z = (x.flip(0)[:, None] * scales).flip(0)
    at = x.detach()[:, None] * scales
    return x, z, (torch.sin(at) * scales**2).sum(1), (torch.cos(at) * scales**2).sum(1)


def test_a_quadratic_form_that_would_outgrow_its_budget_is_one_of_products():
    x, z, of_sine, _ = beyond_its_budget()
    lin = _C.linearize([z.sin().sum()], [x], None, False)
    V = randn(64, 64)
    torch.testing.assert_close(lin.quadratic([V]), -(V * of_sine) @ V.T)
    assert lin.report()["chunks"] > 1
    assert lin.report()["widest_bytes"] <= 256 << 20


def test_hessians_that_would_outgrow_their_budget_are_made_of_rows():
    x, z, of_sine, of_cosine = beyond_its_budget()
    y = torch.stack([z.sin().sum(), z.cos().sum() + x.square().sum()])
    lin = _C.linearize([y], [x], [None], False)
    first, second = lin.hessians([[e] for e in torch.eye(2, dtype=f64)])
    torch.testing.assert_close(first, -torch.diag(of_sine))
    torch.testing.assert_close(second, torch.diag(2 - of_cosine))
    assert lin.report()["chunks"] > 1
