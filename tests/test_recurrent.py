"""Recurrent modules as they are called, with the kernels that this machine has."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian as stock
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import hesse

pytestmark = pytest.mark.ours
f32, f64 = torch.float32, torch.float64

MODULES = {
    "RNN": lambda **options: nn.RNN(2, 2, **options),
    "RNN, relu": lambda **options: nn.RNN(2, 2, nonlinearity="relu", **options),
    "GRU": lambda **options: nn.GRU(2, 2, **options),
    "GRU, two layers and directions": lambda **options: nn.GRU(
        2, 2, num_layers=2, bidirectional=True, **options
    ),
    "LSTM": lambda **options: nn.LSTM(2, 2, **options),
    "LSTM without biases": lambda **options: nn.LSTM(2, 2, bias=False, **options),
    "LSTM, two layers and directions": lambda **options: nn.LSTM(
        2, 2, num_layers=2, bidirectional=True, **options
    ),
    "LSTM with projections": lambda **options: nn.LSTM(2, 2, proj_size=1, **options),
}
modules = pytest.mark.parametrize("name", MODULES)
dtypes = pytest.mark.parametrize("dtype", [f64, f32], ids=["float64", "float32"])
# oneDNN, which runs an LSTM in float32, says that it has no projections.
quiet = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def tolerance(dtype):
    return {"rtol": 1e-9, "atol": 1e-11} if dtype == f64 else {"rtol": 1e-3, "atol": 1e-5}


def summed(y, states):
    states = states if isinstance(states, tuple) else (states,)
    return y.sin().sum() + sum(s.cos().sum() for s in states)


def assert_agrees(f, inputs, dtype):
    report = hesse.explain(f, inputs)
    assert report.fallback is None and not report.autograd_ops
    torch.testing.assert_close(hesse.hessian(f, inputs), stock(f, inputs), **tolerance(dtype))
    return report


@quiet
@dtypes
@modules
def test_a_layer(name, dtype):
    for batch_first in (False, True):
        module = MODULES[name](batch_first=batch_first).to(dtype)
        report = assert_agrees(
            lambda x, module=module: summed(*module(x)), torch.randn(3, 2, 2, dtype=dtype), dtype
        )
        assert not report.densified


@quiet
@dtypes
@modules
def test_a_layer_by_its_parameters(name, dtype):
    module = MODULES[name]().to(dtype)
    x = torch.randn(3, 2, 2, dtype=dtype)
    names = [name for name, _ in module.named_parameters()]

    def f(*parameters):
        return summed(*functional_call(module, dict(zip(names, parameters, strict=True)), (x,)))

    assert_agrees(f, tuple(p.detach() for p in module.parameters()), dtype)


def packed(module, lengths):
    def f(x):
        y, states = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return summed(pad_packed_sequence(y)[0], states)

    return f


def packed_in_order(module, lengths):
    def f(x):
        y, states = module(pack_padded_sequence(x, lengths))
        return summed(pad_packed_sequence(y)[0], states)

    return f


@quiet
@dtypes
@modules
def test_a_packed_sequence(name, dtype):
    module = MODULES[name]().to(dtype)
    x = torch.randn(3, 3, 2, dtype=dtype)
    assert_agrees(packed_in_order(module, [3, 2, 1]), x, dtype)
    f = packed(module, [3, 1, 2])
    torch.testing.assert_close(hesse.hessian(f, x), stock(f, x), **tolerance(dtype))


@dtypes
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell(kind, dtype):
    cell = kind(2, 2, dtype=dtype)

    def f(x, h):
        state = (h, h.cos()) if kind is nn.LSTMCell else h
        y = cell(x, state)
        return sum(s.sin().sum() for s in (y if isinstance(y, tuple) else (y,)))

    xs = tuple(torch.randn(3, 2, dtype=dtype) for _ in range(2))
    report = assert_agrees(f, xs, dtype)
    assert not report.densified


def test_the_hessian_of_an_lstm_of_onednn_can_be_differentiated():
    module = nn.LSTM(2, 2)
    x = torch.randn(2, 2, 2)
    thirds = []
    for dtype, hessian in ((f32, hesse.hessian), (f64, stock)):
        module.to(dtype)
        leaf = x.to(dtype).requires_grad_()
        blocks = hessian(lambda x: summed(*module(x)), leaf, create_graph=True)
        weights = torch.linspace(-1, 1, blocks.numel(), dtype=dtype).view(blocks.shape)
        thirds.append(torch.autograd.grad((blocks * weights).sum(), leaf)[0].to(f64))
    assert (
        "MkldnnRnnLayerBackward0"
        in hesse.explain(lambda x: summed(*module.to(f32)(x)), x).native_ops
    )
    torch.testing.assert_close(*thirds, **tolerance(f32))


@dtypes
@modules
@quiet
def test_sequences_stay_apart(name, dtype):
    module = MODULES[name]().to(dtype)
    small, large = (
        hesse.explain(lambda x: summed(*module(x)), torch.randn(3, n, 2, dtype=dtype))
        for n in (16, 64)
    )
    assert large.core_elements <= 4 * small.core_elements  # not 16: linear in the batch
    assert large.flops <= 4 * small.flops
