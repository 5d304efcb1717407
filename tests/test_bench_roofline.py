"""FLOPs and bytes of the floors against independent counts, and times at given rates."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import device
from bench.device import Rates
from bench.problems import PROBLEMS, attention, cnn
from bench.roofline import floor
from bench.work import Product, Work

f64 = torch.float64
SMALL = {
    "rosenbrock": 16,
    "logistic": 16,
    "softmax": 15,
    "mlp_params": 51,
    "mlp_inputs": 16,
    "lennard_jones": 12,
    "network": 12,
    "ackley": 16,
    "mixture": 128,
}


def counted(call):
    """Result, and FLOPs of all matrix products and convolutions as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    return result, counter.get_total_flops()


def whole(work):
    return sum(p.whole for p in work.products)


@pytest.mark.parametrize("name", SMALL)
def test_the_products_of_a_floor_are_those_of_the_closed_form(name):
    case = PROBLEMS[name].make(SMALL[name], f64, "cpu")
    _, flops = counted(lambda: case.hand(*case.inputs))
    assert whole(case.work) == flops


def test_a_symmetric_product_needs_its_triangle():
    a = torch.randn(7, 5, dtype=f64)
    elements = 0
    for i in range(7):
        for j in range(i, 7):
            torch.testing.assert_close(a[i] @ a[j], (a @ a.T)[j, i])
            elements += 1
    assert Product(7, 5, 7, count=3, symmetric=True).flops == 3 * elements * 2 * 5
    assert Product(7, 5, 4).flops == Product(7, 5, 4).whole == 2 * 7 * 5 * 4


def test_the_floor_of_the_cnn_is_its_gauss_newton_part():
    case = PROBLEMS["cnn"].make(105, f64, "cpu")
    classes = cnn.SHAPES[105].classes
    logits = {}

    def network(*inputs):
        """The logits, seen as what `cross_entropy` is given."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cnn.F, "cross_entropy", lambda z, labels: logits.setdefault("z", z))
            z = case.func(*inputs)
        logits.clear()
        return z

    z = network(*case.inputs)
    blocks = torch.autograd.functional.jacobian(network, case.inputs)
    jacobian = torch.cat([b.reshape(*z.shape, -1) for b in blocks], -1)
    p = z.softmax(1)
    outer = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) / cnn.BATCH
    values, vectors = torch.linalg.eigh(outer)
    assert values[:, 0].abs().max() < 1e-15  # of rank classes - 1 in each image
    root = vectors[:, :, 1:] * values[:, None, 1:].sqrt()
    half = torch.einsum("bcr,bcn->brn", root, jacobian).flatten(0, 1)
    gauss_newton, flops = counted(lambda: half.T @ half)
    expected = torch.einsum("bcn,bce,bem->nm", jacobian, outer, jacobian)
    torch.testing.assert_close(gauss_newton, expected)
    assert half.shape == (cnn.BATCH * (classes - 1), 105)
    assert whole(case.work) == flops


def test_the_floor_of_attention_couples_every_pair_of_tokens():
    """The part of `J' J` that is quadratic in the scores, by its definition and by one product."""
    tokens, width = 4, 3
    keys, values = (torch.randn(tokens, width, dtype=f64) for _ in range(2))
    weights = torch.randn(tokens, tokens, dtype=f64).softmax(1)
    jacobian = torch.einsum("tr,ri,td->tird", weights, values, keys)
    expected = torch.einsum("tird,tise->rdse", jacobian, jacobian)
    r, s = torch.triu_indices(tokens, tokens)
    d, e = torch.triu_indices(width, width)

    def product():
        return (weights[:, r] * weights[:, s]).T @ (keys[:, d] * keys[:, e])

    packed, flops = counted(product)
    packed *= (values @ values.T)[r, s][:, None]
    torch.testing.assert_close(packed, expected.permute(0, 2, 1, 3)[r, s][:, d, e])
    assert whole(attention.work(tokens, width)) == flops


def test_bytes_are_the_inputs_the_data_and_the_hessian():
    for name, size in SMALL.items():
        case = PROBLEMS[name].make(size, f64, "cpu")
        assert case.work.bytes(size, 8) == 8 * (size + case.work.data + size * size)
    features = PROBLEMS["logistic"].make(16, f64, "cpu").func.__closure__
    data = sum(c.cell_contents.numel() for c in features if torch.is_tensor(c.cell_contents))
    assert PROBLEMS["logistic"].make(16, f64, "cpu").work.data == data


def test_the_larger_of_bytes_and_flops_is_the_floor():
    rates = Rates(bytes=1e9, flops={torch.float32: 1e12, f64: 1e3})
    work = Work(data=100, products=(Product(10, 10, 10),))
    single, double = (floor(work, 10, dtype, rates) for dtype in (torch.float32, f64))
    assert (single.bytes, single.flops) == (4 * (10 + 100 + 100), 2000)
    assert single.bound == "bytes" and single.seconds == pytest.approx(840e-9)
    assert double.bound == "FLOPs" and double.seconds == pytest.approx(2.0)


def test_rates_are_measured_in_every_dtype(monkeypatch):
    monkeypatch.setitem(device.COPIED, "cpu", 2**16)
    monkeypatch.setitem(device.SIDE, "cpu", 32)
    rates = device.rates("cpu")
    assert rates.bytes > 0 and set(rates.flops) == {torch.float32, f64}
    assert all(rate > 0 for rate in rates.flops.values())
