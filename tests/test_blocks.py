"""Blocks large enough for one triangle, or one of two mirrored ones, to be all that is computed."""

import pytest
import torch
from drawing import generator
from torch.autograd.functional import hessian as stock
from torch.nn import functional as F

f64 = torch.float64


def constant(*shape):
    return torch.randn(*shape, dtype=f64, generator=generator(1)) / 10


WIDE = {  # of which only one triangle is computed, or one of two mirrored blocks
    "a broadcast product": (lambda w: ((w @ constant(300, 4)).sum(0) ** 2).sum(), [(2, 300)]),
    "an averaged layer": (
        lambda w: (F.linear(constant(40, 300), w).mean(1) ** 3).sum(),
        [(3, 300)],
    ),
    "queries and keys": (
        lambda q, k: (constant(40, 300) @ q) @ (constant(40, 300) @ k),
        [(300,), (300,)],
    ),
    "logistic": (lambda w: F.softplus(constant(50, 280) @ w).sum(), [(280,)]),
    "two layers": (
        lambda a, b: (torch.tanh(constant(20, 24) @ a) @ b).square().sum(),
        [(24, 12), (12, 30)],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, f64], ids=str)
@pytest.mark.parametrize("name", WIDE)
def test_large_hessians_are_those_of_stock(hessian, name, dtype):
    f, shapes = WIDE[name]
    xs = tuple(constant(*s) for s in shapes)
    expected = stock(f, xs)

    def cast(*ys):
        return f(*(y.double() for y in ys)).to(dtype)

    func = f if dtype == f64 else cast
    got = hessian(func, tuple(x.to(dtype) for x in xs))
    for row, wanted in zip(got, expected, strict=True):
        for block, w in zip(row, wanted, strict=True):
            scale = w.abs().max().item()
            bound = (1e-10 if dtype == f64 else 2e-6) * scale
            torch.testing.assert_close(block.double(), w, rtol=0, atol=bound)


@pytest.mark.parametrize("shapes", [[(4,), ()], [(), (), (1,)], [(300,), (1,)], [(2, 3), (3,)]])
def test_no_two_blocks_share_memory(hessian, shapes):
    xs = tuple(torch.rand(s, dtype=f64) for s in shapes)
    blocks = hessian(lambda *ys: sum(y.sum() for y in ys) ** 3, xs)
    memory = [b.untyped_storage().data_ptr() for row in blocks for b in row]
    assert len(set(memory)) == len(memory)
    assert all(b.is_contiguous() for row in blocks for b in row)
