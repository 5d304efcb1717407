"""Attention as modules call it: PyTorch has no second derivative of its fused kernels.

The oracle is stock on the same module with the fused kernels switched off.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import hessian as stock
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import hesse

pytestmark = pytest.mark.ours
f64 = torch.float64
FUSED = "ScaledDotProductFlashAttentionForCpuBackward0"


def randn(*shape):
    return torch.randn(*shape, dtype=f64)


def by_stock(f, inputs):
    """With the fast path off, that stock cannot differentiate at all."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return stock(f, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def assert_agrees(f, *xs, fused=True):
    """Natively; returns the report."""
    inputs = xs[0] if len(xs) == 1 else xs
    report = hesse.explain(f, inputs)
    assert report.fallback is None and not report.autograd_ops
    assert (FUSED in report.native_ops) == fused
    expected = by_stock(f, inputs)
    torch.testing.assert_close(hesse.hessian(f, inputs), expected, rtol=1e-8, atol=1e-10)
    return report


def some_mask(n):
    return torch.eye(n, dtype=torch.bool).roll(1, 0)


# ---- nn.MultiheadAttention -----------------------------------------------------------------------

MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.tensor([[False, True, False], [False, False, True]])},
    "mask": {"attn_mask": some_mask(3)},
    "float mask": {"attn_mask": torch.linspace(-1, 1, 9, dtype=f64).reshape(3, 3)},
    "both": {
        "key_padding_mask": torch.tensor([[False, True, False], [False, False, False]]),
        "attn_mask": some_mask(3),
    },
    "causal": {
        "attn_mask": nn.Transformer.generate_square_subsequent_mask(3, dtype=f64),
        "is_causal": True,
    },
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch first"])
@pytest.mark.parametrize("need_weights", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_multihead_attention(mask, batch_first, need_weights, train):
    module = nn.MultiheadAttention(4, 2, batch_first=batch_first, dtype=f64).train(train)
    options = {"need_weights": need_weights, **MASKS[mask]}

    def f(x):
        y, weights = module(x, x, x, **options)
        return y.sin().sum() + (weights.cos().sum() if need_weights else 0)

    assert_agrees(f, randn(2, 3, 4) if batch_first else randn(3, 2, 4), fused=not need_weights)


@pytest.mark.parametrize("options", [{"add_zero_attn": True}, {"add_bias_kv": True}, {"kdim": 3}])
def test_multihead_attention_of_different_inputs(options):
    module = nn.MultiheadAttention(4, 2, dtype=f64, **options)

    def f(q, k, v):
        return module(q, k, v, need_weights=False)[0].sin().sum()

    assert_agrees(f, randn(2, 2, 4), randn(3, 2, options.get("kdim", 4)), randn(3, 2, 4))


def test_multihead_attention_by_its_parameters():
    module = nn.MultiheadAttention(2, 1, dtype=f64)
    x = randn(3, 2, 2)
    names = [name for name, _ in module.named_parameters()]

    def f(*parameters):
        given = dict(zip(names, parameters, strict=True))
        options = {"need_weights": False}
        return functional_call(module, given, (x, x, x), options)[0].sin().sum()

    assert_agrees(f, *(p.detach() for p in module.parameters()))


# ---- layers and stacks of them -------------------------------------------------------------------


def encoder_layer(**options):
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, dtype=f64, **options)


def decoder_layer(**options):
    return nn.TransformerDecoderLayer(4, 2, 6, dropout=0.0, dtype=f64, **options)


def transformer(**options):
    return nn.Transformer(4, 2, 1, 1, 6, dropout=0.0, dtype=f64, **options)


def frozen(module):
    return module.requires_grad_(False)


ENCODERS = {
    "layer": encoder_layer,
    "layer, norm first, gelu": lambda **options: encoder_layer(
        norm_first=True, activation="gelu", **options
    ),
    "two layers": lambda **options: nn.TransformerEncoder(
        encoder_layer(**options), 2, enable_nested_tensor=False
    ),
    "frozen": lambda **options: frozen(encoder_layer(**options)),
}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch first"])
@pytest.mark.parametrize("name", ENCODERS)
def test_transformer_encoder(name, batch_first, train):
    module = ENCODERS[name](batch_first=batch_first).train(train)
    assert_agrees(lambda x: module(x).sin().sum(), randn(2, 3, 4))


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_transformer_encoder_with_masks(train):
    module = ENCODERS["two layers"](batch_first=True).train(train)
    padding = torch.tensor([[False, False, True], [False, False, False]])
    causal = nn.Transformer.generate_square_subsequent_mask(3, dtype=f64)
    x = randn(2, 3, 4)
    assert_agrees(lambda x: module(x, src_key_padding_mask=padding).sin().sum(), x)
    assert_agrees(lambda x: module(x, mask=causal, is_causal=True).sin().sum(), x)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch first"])
def test_transformer_decoder_layer(batch_first, train):
    module = decoder_layer(batch_first=batch_first).train(train)
    mask = nn.Transformer.generate_square_subsequent_mask(2 if batch_first else 3, dtype=f64)

    def f(x, memory):
        return module(x, memory, tgt_mask=mask if not batch_first else None).sin().sum()

    assert_agrees(f, randn(3, 2, 4), randn(3, 2, 4))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_transformer(train):
    module = transformer().train(train)
    assert_agrees(lambda x, y: module(x, y).sin().sum(), randn(3, 1, 4), randn(2, 1, 4))


# ---- beyond stock --------------------------------------------------------------------------------


def plain(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).sin().sum()


@pytest.mark.parametrize(
    "options",
    [{"create_graph": True}, {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}],
    ids=["create_graph", "forward mode"],
)
def test_the_hessian_of_a_fused_kernel_can_be_differentiated(options):
    """Stock itself has none; the flags are then those of our blocks."""
    xs = [randn(1, 2, 3, 2).requires_grad_() for _ in range(3)]
    weights = None
    thirds = []
    for ours in (True, False):
        if ours:
            blocks = hesse.hessian(plain, tuple(xs), **options)
        else:
            with sdpa_kernel(SDPBackend.MATH):
                blocks = stock(plain, tuple(xs), create_graph=True)
        weights = weights or [[torch.randn_like(b) for b in row] for row in blocks]
        total = sum(
            (b * w).sum()
            for r, s in zip(blocks, weights, strict=True)
            for b, w in zip(r, s, strict=True)
        )
        thirds.append(torch.autograd.grad(total, xs))
    torch.testing.assert_close(*thirds, rtol=1e-8, atol=1e-10)


def test_the_hessian_is_that_of_central_differences_of_the_gradient():
    x, h = randn(1, 1, 3, 2), 1e-5

    def f(x):
        return F.scaled_dot_product_attention(x, x.cos(), x, is_causal=True).sin().sum()

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(f(x), x)[0].flatten()

    steps = torch.eye(x.numel(), dtype=f64).reshape(-1, *x.shape) * h
    rows = [(gradient(x + step) - gradient(x - step)) / (2 * h) for step in steps]
    ours = hesse.hessian(f, x).reshape(x.numel(), -1)
    torch.testing.assert_close(ours, torch.stack(rows), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes(dtype):
    q, k, v = (randn(1, 2, 3, 2) for _ in range(3))

    def f(q):
        return F.scaled_dot_product_attention(q, k.to(q), v.to(q)).sin().sum()

    with sdpa_kernel(SDPBackend.MATH):
        exact = stock(f, q)
    ours = hesse.hessian(f, q.to(dtype))
    assert ours.dtype == dtype
    rtol = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(ours.to(f64), exact, rtol=rtol, atol=rtol)


def twice(a, b):
    y = F.scaled_dot_product_attention(a, a, a.cos())
    return F.scaled_dot_product_attention(y, b, b).sin().sum()


@pytest.mark.parametrize("chunk_size", [None, 5, 12, 1])
def test_several_inputs_and_chunks(chunk_size):
    xs = randn(1, 2, 3, 2), randn(1, 2, 4, 2)
    blocks = hesse.hessian(twice, xs, chunk_size=chunk_size)
    torch.testing.assert_close(blocks, by_stock(twice, xs), rtol=1e-9, atol=1e-11)


def test_autocast_and_hooks_around_the_call():
    q = randn(1, 2, 3, 2).float()

    def f(q):
        return F.scaled_dot_product_attention(q, q, q).float().sin().sum()

    exact = hesse.hessian(f, q)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        torch.testing.assert_close(hesse.hessian(f, q), exact)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(hesse.hessian(f, q), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("shape", [(0, 2, 3, 2), (2, 0, 3, 2), (1, 1, 0, 2)])
def test_nothing_to_attend_to(shape):
    x = torch.zeros(1, dtype=f64)

    def f(x):
        q = x.expand(shape)
        return F.scaled_dot_product_attention(q, q, q).sum() + x.exp().sum()

    torch.testing.assert_close(hesse.hessian(f, x), torch.ones(1, 1, dtype=f64))


# ---- structure -----------------------------------------------------------------------------------


def blocks():
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=f64)
    norm = nn.LayerNorm(8, dtype=f64)

    def attend(x):
        return attention(x, x, x, need_weights=False)[0]

    return {
        "attention": attend,
        "normalised attention": lambda x: norm(x + attend(x)),
    }


@pytest.mark.parametrize("name", blocks())
def test_samples_that_do_not_attend_to_each_other_stay_apart(name):
    block = blocks()[name]
    small, large = (
        hesse.explain(lambda x: block(x).sin().sum(), randn(batch, 3, 8), chunk_size=10_000)
        for batch in (32, 64)
    )
    assert not large.autograd_ops and not large.densified
    assert large.core_elements == 2 * small.core_elements  # not 4: linear in the batch
    assert large.flops == 2 * small.flops
    assert large.gemms == small.gemms


def test_heads_and_queries_stay_apart():
    k, v = randn(2, 3, 5, 4), randn(2, 3, 5, 4)

    def f(q):
        return F.scaled_dot_product_attention(q, k, v).sin().sum()

    def cost(*shape):
        x = randn(*shape)
        assert_agrees(f, x)
        report = hesse.explain(f, x)
        return report.core_elements, report.flops

    few, many = cost(2, 3, 2, 4), cost(2, 3, 8, 4)
    assert many == tuple(4 * n for n in few)
