"""How a tape and a device's graph share the work, on the CPU with a stand-in for CUDA's graphs."""

import contextlib

import pytest
import torch

import hesse
from hesse import device_graph

pytestmark = pytest.mark.ours


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


class Stream:
    device = torch.device("cpu")

    def wait_event(self, event):
        assert event.recorded in (None, self)


class Event:
    recorded = None

    def record(self, stream):
        self.recorded = stream


class Graph:
    """Plays again what ran under capture, in the same memory."""

    captured = None
    replays = 0

    def replay(self):
        Graph.replays += 1
        self.tape.run(0, self.end)


@pytest.fixture
def stand_in(monkeypatch):
    stream = Stream()
    Graph.replays = 0
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **how: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *device: stream)
    return stream


def player(stream, x, answer=hesse.hessian):
    """The tape of one call, played by a graph as far as that goes."""
    compiled = hesse.compile(rosenbrock, x, answer=answer)
    tape = compiled._players[0]._tape
    result = device_graph.DevicePlayer(tape, stream, x)
    result._graph.tape, result._graph.end = tape, result._end
    return result, tape


def test_a_small_output_comes_out_of_the_graph_as_a_copy(stand_in):
    played, tape = player(stand_in, torch.rand(5))
    assert played._end == len(tape)
    xs = torch.rand(2, 5)
    first, second = (played.play([x])[0] for x in xs)
    torch.testing.assert_close(first, hesse.hessian(rosenbrock, xs[0]))
    torch.testing.assert_close(second, hesse.hessian(rosenbrock, xs[1]))
    assert Graph.replays == 2


def test_a_large_output_is_made_after_the_graph(stand_in):
    played, tape = player(stand_in, torch.rand(700))
    assert 0 < played._end < len(tape)
    xs = torch.rand(3, 700)
    results = [played.play([x])[0] for x in xs]
    for x, H in zip(xs, results, strict=True):
        torch.testing.assert_close(H, hesse.hessian(rosenbrock, x))


def test_small_and_large_outputs_of_one_call(stand_in):
    played, _ = player(stand_in, torch.rand(700), hesse.value_grad_hessian)
    xs = torch.rand(2, 700)
    results = [played.play([x]) for x in xs]
    for x, (y, g, H) in zip(xs, results, strict=True):
        torch.testing.assert_close((y, g, H), hesse.value_grad_hessian(rosenbrock, x))


def test_what_cannot_be_captured_is_said_and_played_op_by_op(stand_in, monkeypatch):
    @contextlib.contextmanager
    def refuses(graph, **how):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuses)
    compiled = hesse.compile(rosenbrock, torch.rand(5))
    tape = compiled._players[0]._tape
    with pytest.warns(hesse.FallbackWarning, match="without a CUDA graph: operation not permitted"):
        played = device_graph.DevicePlayer(tape, stand_in, torch.rand(5))
    x = torch.rand(5)
    torch.testing.assert_close(played.play([x])[0], hesse.hessian(rosenbrock, x))
    with hesse.fallback("error"), pytest.raises(hesse.FallbackError, match="cannot capture"):
        device_graph.DevicePlayer(tape, stand_in, x)


def test_tensors_of_another_device_or_checks_by_the_host_are_not_captured(stand_in):
    def func(x):
        return (torch.softmax(x, 0) ** 3).sum()  # the host looks whether a row is lost

    tape = hesse.compile(func, torch.rand(5))._players[0]._tape
    assert not tape.only_on(torch.empty(1))
    tape = hesse.compile(rosenbrock, torch.rand(5))._players[0]._tape
    assert tape.only_on(torch.empty(1)) and not tape.only_on(torch.empty(1, device="meta"))
    with pytest.warns(hesse.FallbackWarning, match="on another device"):
        played = device_graph.DevicePlayer(tape, stand_in, torch.empty(1, device="meta"))
    x = torch.rand(5)
    torch.testing.assert_close(played.play([x])[0], hesse.hessian(rosenbrock, x))
