"""Scaled dot product attention, by the kernels of every device.

Those of GPUs get a stand-in on the CPU, as what matters here is the node that autograd records and
what it saves: the rule computes all of it anew.
"""

import torch
import torch.nn.functional as F

from . import Scenario

inf = float("inf")
aten = torch.ops.aten


def attention(q, k, v, bias=None, causal=False, scale=None):
    """By definition; q may have a multiple of the heads of k and v."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        s = torch.where(bias, s, -inf) if bias.dtype == torch.bool else s + bias
    if causal:
        s = s + torch.full(s.shape[-2:], -inf, dtype=s.dtype).triu(1)
    empty = (s == -inf).all(-1, keepdim=True)
    return torch.where(empty, 0, torch.where(empty, 0, s).softmax(-1)) @ v


# ---- stand-ins -----------------------------------------------------------------------------------

STAND_INS = torch.library.Library("aten", "IMPL")


def stand_in(name: str, outputs: str):
    """Registers a kernel of the CPU; ``outputs``: y, or what else it returns, a letter each."""

    def kernel(q, k, v, *args, scale=None):
        flash = name == "_scaled_dot_product_flash_attention"
        bias, args = (None, args) if flash else (args[0], args[1:])
        if name.endswith(("efficient_attention", "cudnn_attention")):
            args = args[1:]  # compute_log_sumexp
        causal = len(args) > 1 and args[1]
        some = {
            "y": attention(q, k, v, bias, causal, scale),
            "l": q.new_zeros(q.shape[:3]),
            "e": torch.empty(0),
            "q": q.shape[2],
            "k": k.shape[2],
        }
        return tuple(some[letter] for letter in outputs)

    STAND_INS.impl(name, kernel, "CPU")


stand_in("_scaled_dot_product_flash_attention", "yleeqkeee")
stand_in("_scaled_dot_product_efficient_attention", "ylee")
stand_in("_scaled_dot_product_cudnn_attention", "yleeqkeee")
stand_in("_scaled_dot_product_fused_attention_overrideable", "yleeqkeee")

NO_BACKWARD = {
    "create_graph": "the stand-in has no backward, through which y is differentiated too"
}

# ---- the ops -------------------------------------------------------------------------------------


def sdpa(mask=None, **options):
    def fn(q, k, v):
        there = None if mask is None else mask.to(q.device)
        return F.scaled_dot_product_attention(q, k, v, there, **options)

    return fn


def by_definition(mask=None, is_causal=False, scale=None, enable_gqa=False):
    def reference(q, k, v):
        return attention(q, k, v, None if mask is None else mask.to(q.device), is_causal, scale)

    return reference


def flash(q, k, v):
    return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]


def efficient(q, k, v, bias=None):
    return aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, 0.0, True)[0]


def cudnn(q, k, v):
    bias = torch.linspace(-1, 1, 3, dtype=q.dtype)
    return aten._scaled_dot_product_cudnn_attention(q, k, v, bias, True)[0]


def overrideable(q, k, v, bias):
    return aten._scaled_dot_product_fused_attention_overrideable(q, k, v, bias, scale=0.7)[0]


SMALL = ((2, 2, 3, 2),) * 3
SOME = torch.tensor([[True, False, True], [False, True, True], [False, False, True]])
NONE = SOME & torch.tensor([[True], [False], [True]])
PER_BATCH = torch.stack([SOME, SOME.T])[:, None]
FLOAT = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3)


def bias_like(q):
    return FLOAT.to(q.device, q.dtype)


CPU = tuple(
    Scenario(
        f"attention{case}",
        ("ScaledDotProductFlashAttentionForCpuBackward0",),
        sdpa(**options),
        shapes,
        reference=by_definition(**options),
        on="cpu",
    )
    for case, options, shapes in (
        ("", {}, SMALL),
        (", causal", {"is_causal": True}, SMALL),
        (" of fewer queries, causal", {"is_causal": True}, ((1, 2, 2, 2), *((1, 2, 3, 2),) * 2)),
        (" of more queries, causal", {"is_causal": True}, ((1, 2, 3, 2), *((1, 2, 2, 2),) * 2)),
        (" of another scale", {"scale": 0.3}, SMALL),
        (" with a mask", {"mask": SOME}, SMALL),
        (" with a mask for each sample", {"mask": PER_BATCH}, SMALL),
        (" with a query that sees nothing", {"mask": NONE}, SMALL),
        (" of one query", {}, ((2, 1, 1, 3), (2, 1, 4, 3), (2, 1, 4, 3))),
        (" of one key", {}, ((2, 1, 3, 2), (2, 1, 1, 2), (2, 1, 1, 2))),
        (" in groups", {"enable_gqa": True}, ((1, 4, 2, 2), (1, 2, 3, 2), (1, 2, 3, 2))),
    )
)

SCENARIOS = (
    *CPU,
    Scenario(
        "attention with a float mask",
        ("ScaledDotProductFlashAttentionForCpuBackward0",),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, bias_like(q)),
        SMALL,
        reference=lambda q, k, v: attention(q, k, v, bias_like(q)),
        on="cpu",
    ),
    Scenario(
        "attention of itself",
        ("ScaledDotProductFlashAttentionForCpuBackward0",),
        lambda x: F.scaled_dot_product_attention(x, x, x),
        SMALL[:1],
        reference=lambda x: attention(x, x, x),
        on="cpu",
    ),
    Scenario(
        "flash attention of a GPU",
        ("ScaledDotProductFlashAttentionBackward0",),
        flash,
        SMALL,
        skips=NO_BACKWARD,
        on="cpu",
        reference=lambda q, k, v: attention(q, k, v, causal=True),
    ),
    Scenario(
        "memory-efficient attention of a GPU",
        ("ScaledDotProductEfficientAttentionBackward0",),
        efficient,
        SMALL,
        skips=NO_BACKWARD,
        on="cpu",
        reference=lambda q, k, v: attention(q, k, v, causal=True),
    ),
    Scenario(
        "memory-efficient attention of a GPU, with a bias",
        ("ScaledDotProductEfficientAttentionBackward0",),
        efficient,
        (*SMALL, (2, 2, 3, 3)),
        skips=NO_BACKWARD,
        on="cpu",
        reference=lambda q, k, v, bias: attention(q, k, v, bias, causal=True),
    ),
    Scenario(
        "cuDNN's attention",
        ("ScaledDotProductCudnnAttentionBackward0",),
        cudnn,
        SMALL,
        skips=NO_BACKWARD,
        on="cpu",
        reference=lambda q, k, v: attention(q, k, v, torch.linspace(-1, 1, 3, dtype=q.dtype)),
    ),
    Scenario(
        "attention of another device, with a bias of all heads",
        ("ScaledDotProductFusedAttentionOverrideableBackward0",),
        overrideable,
        (*SMALL, (3, 3)),
        skips=NO_BACKWARD,
        on="cpu",
        reference=lambda q, k, v, bias: attention(q, k, v, bias, scale=0.7),
    ),
    Scenario(
        "attention of another device, with a mask",
        ("ScaledDotProductFusedAttentionOverrideableBackward0",),
        lambda q, k, v: overrideable(q, k, v, NONE.to(q.device)),
        SMALL,
        skips=NO_BACKWARD,
        on="cpu",
        reference=lambda q, k, v: attention(q, k, v, NONE.to(q.device), scale=0.7),
    ),
)
