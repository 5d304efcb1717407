"""Hessians over the parameters of modules, against torch.func of functional_call."""

import copy
import sys
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from drawing import generator
from outcome import assert_close
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize

import hesse

pytestmark = pytest.mark.ours

f64 = torch.float64
X = torch.randn(6, 4, generator=generator(1), dtype=f64)


class Tied(nn.Module):
    """Encoder and decoder share one weight."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.encoder(x).tanh())


class Shared(nn.Module):
    """One layer under two names, inside a list and a dictionary."""

    def __init__(self):
        super().__init__()
        layer = nn.Linear(4, 4)
        self.first = nn.ModuleList([layer, nn.Tanh()])
        self.second = nn.ModuleDict({"again": layer})
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.second["again"](self.first[1](self.first[0](x))) * self.scale


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).T


class Norm(nn.Module):
    """A buffer that is replaced, not written to."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return (x - self.mean) * self.weight.exp()


def symmetric():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def frozen():
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    net[0].requires_grad_(False)
    return net


def recurrent():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(2, 3, batch_first=True)

        def forward(self, x):
            return self.lstm(x.view(6, 2, 2))[0]

    return Last()


def old_weight_norm():
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(4, 3))


MODULES = {
    "a linear layer": lambda: nn.Linear(4, 3),
    "an MLP": lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)),
    "BatchNorm that trains": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.GELU()),
    "BatchNorm that does not": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval(),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5)),
    "tied weights": Tied,
    "a shared layer": Shared,
    "a parametrized layer": symmetric,
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
    "the weight_norm of old": old_weight_norm,
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 3)),
    "frozen parameters": frozen,
    "an LSTM": recurrent,
    "a transformer layer": lambda: nn.TransformerEncoderLayer(4, 2, 3, 0.0, batch_first=True),
    "a buffer that is replaced": Norm,
}


@pytest.fixture(params=MODULES)
def net(request):
    return MODULES[request.param]().double()


def loss(net):
    return (net(X) ** 2).sum().log1p()


def weight_norm(v, g, dim=0):
    """In ops whose second derivatives torch has right, which those of its fused one are not."""
    assert dim == 0
    return v * (g / v.norm(dim=1, keepdim=True))


@contextmanager
def differentiable_twice():
    old = sys.modules["torch.nn.utils.weight_norm"]
    with (
        sdpa_kernel(SDPBackend.MATH),
        mock.patch.object(torch, "_weight_norm", weight_norm),
        mock.patch.object(old, "_weight_norm", weight_norm),
    ):
        yield


def want_of(net, keys=None):
    """The same by torch: the row loop over a copy's parameters."""
    if not hasattr(net, "weight_g"):
        net = copy.deepcopy(net)  # functional_call breaks a module that has two names
    params = {k: p.detach() for k, p in net.named_parameters() if p.requires_grad}
    keys = list(keys or params)
    buffers = {k: b.clone() for k, b in net.named_buffers()}

    def func(*leaves):
        swapped = buffers | dict(zip(keys, leaves, strict=True))
        with differentiable_twice():
            return torch.func.functional_call(
                _Apply(net), {f"net.{k}": v for k, v in swapped.items()}, ()
            )

    H = torch.autograd.functional.hessian(func, tuple(params[k] for k in keys))
    return {a: dict(zip(keys, row, strict=True)) for a, row in zip(keys, H, strict=True)}


class _Apply(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self):
        return loss(self.net)


def state_of(net):
    tensors = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers())
    grads = {k: p.grad for k, p in net.named_parameters()}
    derived = [
        value
        for owner in net.modules()
        for value in vars(owner).values()
        if isinstance(value, torch.Tensor)
    ]
    objects = [*tensors.values(), *grads.values(), *derived]
    return list(tensors), objects, [t.detach().clone() for t in tensors.values()]


def assert_untouched(net, state):
    names, objects, values = state
    names_after, objects_after, values_after = state_of(net)
    assert names_after == names
    assert all(a is b for a, b in zip(objects_after, objects, strict=True))
    assert all(a.equal(b) for a, b in zip(values_after, values, strict=True))


def test_the_blocks_are_those_of_torch(net):
    torch.manual_seed(5)
    got = hesse.module_hessian(net, loss)
    torch.manual_seed(5)
    with hesse.fallback("silent"):
        want = want_of(net)
    assert list(got) == list(want) and all(list(got[a]) == list(want) for a in want)
    for a in want:
        for b in want:
            assert_close(got[a][b], want[a][b], 1e-8)


def test_the_matrix_holds_the_blocks_in_the_order_of_the_names(net):
    torch.manual_seed(5)
    blocks = hesse.module_hessian(net, loss)
    torch.manual_seed(5)
    H = hesse.module_hessian(net, loss, flat=True)
    _, params = hesse.functional(net, loss)
    N = sum(p.numel() for p in params.values())
    assert H.shape == (N, N) and H.equal(hesse.flatten_blocks(blocks, params))
    assert_close(H, H.T.contiguous(), 1e-9)


def test_the_module_is_as_it_was(net):
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    state, training = state_of(net), net.training
    hesse.module_hessian(net, loss)
    assert_untouched(net, state)
    assert net.training is training


def test_the_module_is_as_it_was_when_the_loss_raises(net):
    state = state_of(net)

    def broken(net):
        net(X)
        raise ArithmeticError("of the loss")

    with pytest.raises(ArithmeticError, match="of the loss"):
        hesse.module_hessian(net, broken)
    assert_untouched(net, state)
    assert torch.isfinite(loss(net))


def test_the_module_still_trains_and_copies_afterwards(net):
    can_copy = True
    try:
        copy.deepcopy(net)
    except RuntimeError:  # the weight_norm of old keeps a result
        can_copy = False
    hesse.module_hessian(net, loss)
    if can_copy:
        copy.deepcopy(net)
    loss(net).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_loss_runs_once():
    calls = []
    hesse.module_hessian(nn.Linear(4, 1).double(), lambda net: [calls.append(1), loss(net)][1])
    assert len(calls) == 1


# --- which parameters -----------------------------------------------------------------------------


def mlp():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def test_names_choose_and_order_the_parameters():
    net = mlp()
    H = hesse.module_hessian(net, loss, ["2.weight", "0.bias"])
    want = want_of(net, ["2.weight", "0.bias"])
    assert list(H) == ["2.weight", "0.bias"] == list(H["0.bias"])
    for a in H:
        for b in H:
            assert_close(H[a][b], want[a][b])
    matrix = hesse.module_hessian(net, loss, ["2.weight", "0.bias"], flat=True)
    assert_close(matrix[6:, :6], H["0.bias"]["2.weight"].view(3, 6))


def test_a_predicate_chooses_among_those_that_require_grad():
    net = frozen().double()
    assert list(hesse.module_hessian(net, loss, lambda name: "bias" in name)) == ["2.bias"]
    assert list(hesse.module_hessian(net, loss, "2.bias")) == ["2.bias"]


def test_what_is_left_out_is_constant_and_keeps_no_graph():
    net = mlp()
    H = hesse.module_hessian(net, loss, ["2.bias"])
    assert not H["2.bias"]["2.bias"].requires_grad


def test_parameters_of_several_dtypes_give_blocks():
    net = mlp()
    net[0].float()

    def func(net):
        return net[2](net[0](X.float()).double().tanh()).square().sum()

    H = hesse.module_hessian(net, func)
    assert H["0.bias"]["2.bias"].dtype == f64 and H["2.bias"]["0.bias"].dtype == torch.float32
    with pytest.raises(TypeError, match="flat=True needs one dtype and device, and '0.weight' has"):
        hesse.module_hessian(net, func, flat=True)


def test_a_loss_that_ignores_the_module_has_a_zero_hessian():
    assert not hesse.module_hessian(mlp(), lambda net: X.sum(), flat=True).any()


# --- as a function of a dictionary ----------------------------------------------------------------


def test_the_function_is_the_loss_of_the_module_with_these_parameters():
    net = mlp()
    func, params = hesse.functional(net, loss)
    assert func(params).equal(loss(net))
    doubled = copy.deepcopy(net)
    for p in doubled.parameters():
        p.data.mul_(2)
    assert func({k: 2 * p for k, p in params.items()}).equal(loss(doubled))
    assert all(p.data_ptr() == net.get_parameter(k).data_ptr() for k, p in params.items())
    assert not any(p.requires_grad for p in params.values())


def test_the_function_works_with_every_call_on_trees():
    func, params = hesse.functional(mlp(), lambda net, x, power: (net(x) ** power).sum())
    H = hesse.func.hessian(func)(params, X, power=2)
    vector = hesse.flatten(params)
    want = hesse.hessian(lambda v: func(hesse.unflatten(v, params), X, 2), vector)
    assert_close(hesse.flatten_blocks(H, params), want)


def test_the_loss_may_be_a_module_with_buffers_of_its_own():
    class Criterion(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2).double()

        def forward(self, net):
            return self.norm(net(X)).exp().sum()

    net, criterion = mlp(), Criterion()
    state = state_of(criterion)
    hesse.module_hessian(net, criterion)
    assert_untouched(criterion, state)


def test_inside_transforms_torch_does_it():
    net = nn.Linear(4, 1).double()

    def trace(scale):
        H = hesse.module_hessian(net, lambda net: (net(X) * scale).tanh().sum(), flat=True)
        return H.diagonal().sum()

    with pytest.warns(hesse.FallbackWarning, match="hesse.module_hessian used plain autograd"):
        got = torch.func.grad(trace)(torch.ones([], dtype=f64))
    step = 1e-5
    with hesse.fallback("silent"):
        up, down = (trace(torch.tensor(1 + s, dtype=f64)) for s in (step, -step))
    assert_close(got, (up - down) / (2 * step), 1e-6)


def test_a_graph_that_the_engine_refuses_goes_to_plain_autograd():
    net = mlp()
    net[0].register_forward_hook(lambda m, i, y: y.register_hook(lambda g: g) and None)
    with pytest.warns(hesse.FallbackWarning, match="hesse.module_hessian .*hook") as caught:
        got = hesse.module_hessian(net, loss, flat=True)
    assert caught[0].filename == __file__
    net[0]._forward_hooks.clear()
    assert_close(got, hesse.module_hessian(net, loss, flat=True))


# --- errors ---------------------------------------------------------------------------------------

MISTAKES = {
    "module has no parameter 'wieght': it has 'weight', 'bias'": lambda: (
        nn.Linear(4, 1),
        "wieght",
    ),
    "'decoder.weight' is tied to 'encoder.weight': give that": lambda: (Tied(), ["decoder.weight"]),
    "parameter '0.bias' does not require grad: leave it out": lambda: (frozen(), ["0.bias"]),
    "names means no parameter: there are '2.weight', '2.bias'": lambda: (frozen(), lambda _: False),
    "names means no parameter": lambda: (frozen(), []),
    "no parameter of module requires grad: it has 'weight', 'bias'": lambda: (
        nn.Linear(4, 1).requires_grad_(False),
        None,
    ),
    "no parameter of module requires grad: it has none": lambda: (nn.Tanh(), None),
    "parameter 'weight' is not initialized: call the module once": lambda: (
        nn.LazyLinear(1),
        None,
    ),
    "module is of type str, not a torch.nn.Module": lambda: ("net", None),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_named(message):
    net, names = MISTAKES[message]()
    for name in ("module_hessian", "functional"):
        with pytest.raises((TypeError, ValueError), match=f"hesse.{name}: .*{message}"):
            getattr(hesse, name)(net, loss, names)


def test_the_loss_must_be_one_element():
    with pytest.raises(RuntimeError, match="function given to module_hessian should contain a sin"):
        hesse.module_hessian(mlp(), lambda net: net(X))
