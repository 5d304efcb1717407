"""hesse.compile on a GPU: what a CUDA graph plays is what an eager call gives."""

import pytest
import torch

import hesse

pytestmark = [
    pytest.mark.ours,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
f64 = torch.float64


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def net(x):
    w = torch.arange(12.0, dtype=x.dtype, device=x.device).view(3, 4).sin()
    return torch.softmax(torch.tanh(x @ w), -1).square().sum()


def rand(*shape, device="cuda"):
    return torch.rand(*shape, dtype=f64, device=device)


CASES = {
    "a small output": (rosenbrock, (30,)),
    "a large output": (rosenbrock, (700,)),
    "a network": (net, (20, 3)),
    "an output of several chunks": (lambda x: torch.tanh(x @ x.t()).square().sum(), (60, 20)),
}


@pytest.mark.parametrize("name", CASES)
def test_new_values_are_played_by_a_graph(name):
    func, shape = CASES[name]
    with hesse.fallback("error"):
        compiled = hesse.compile(func, rand(*shape))
    results, xs = [], [rand(*shape) for _ in range(3)]
    for x in xs:
        results.append(compiled(x))
    for x, H in zip(xs, results, strict=True):
        torch.testing.assert_close(H, hesse.hessian(func, x))
    assert compiled.recordings == 1


def test_playing_waits_for_nothing():
    compiled = hesse.compile(net, rand(4, 3))
    x = rand(4, 3)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        H = compiled(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(H, hesse.hessian(net, x))


def test_calls_on_other_streams_wait_for_each_other():
    compiled = hesse.compile(rosenbrock, rand(700))
    xs = [rand(700) for _ in range(6)]
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    results = []
    for i, x in enumerate(xs):
        with torch.cuda.stream(streams[i % 3]):
            results.append(compiled(x))
    torch.cuda.synchronize()
    for x, H in zip(xs, results, strict=True):
        torch.testing.assert_close(H, hesse.hessian(rosenbrock, x))


def test_what_func_puts_on_a_side_stream_is_played_in_the_current_one():
    side = torch.cuda.Stream()

    def func(x):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            y = x.exp()
        torch.cuda.current_stream().wait_stream(side)
        return (y * x).sum()

    compiled = hesse.compile(func, rand(50))
    x = rand(50)
    torch.testing.assert_close(compiled(x), torch.diag((2 + x) * x.exp()))


def test_random_numbers_are_new_at_every_call():
    def func(x):
        return (torch.rand_like(x) * x**3).sum()

    compiled = hesse.compile(func, rand(50))
    x = rand(50)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    again = compiled(x)
    torch.manual_seed(5)
    assert torch.equal(compiled(x), again)


def test_closures_are_read_at_every_call():
    scale = torch.ones((), dtype=f64, device="cuda")
    compiled = hesse.compile(lambda x: scale * (x**3).sum(), rand(4))
    scale.fill_(3.0)
    x = rand(4)
    torch.testing.assert_close(compiled(x), torch.diag(18 * x))


def test_what_may_not_be_captured_is_said_and_played_op_by_op():
    def func(x):
        return (x[x > 0.5] ** 3).sum()

    x = torch.tensor([0.2, 0.7, 0.9], dtype=f64, device="cuda")
    with pytest.warns(hesse.FallbackWarning, match="without a CUDA graph"):
        compiled = hesse.compile(func, x)
    torch.testing.assert_close(compiled(x.flip(0)), hesse.hessian(func, x.flip(0)))


def test_another_device_is_recorded():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    compiled = hesse.compile(net, rand(4, 3))
    x = rand(4, 3, device="cuda:1")
    torch.testing.assert_close(compiled(x), hesse.hessian(net, x))
    assert compiled(x).device == x.device and compiled.recordings == 2
