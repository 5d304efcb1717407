"""Shape ops, and ops in place on views."""

import torch
import torch.nn.functional as F

from . import Scenario

aten = torch.ops.aten


def view(name, nodes, fn, *shapes, **kwargs):
    """A scenario of values that only move; ``nodes`` is one name or several."""
    nodes = (nodes,) if isinstance(nodes, str) else nodes
    return Scenario(name, nodes, fn, shapes or ((3, 4),), **kwargs)


def in_place(name, fn, *shapes, nodes=("torch::autograd::CopySlices",), **kwargs):
    """``fn(y, *others)`` changes y, a fresh contiguous value, through a view of it."""

    def changed(x, *others):
        y = x * 2.0
        fn(y, *others)
        return y

    return Scenario(name, nodes, changed, shapes or ((3, 4),), **kwargs)


RESHAPES = [
    view("view", "ViewBackward0", lambda x: (x * 1.0).contiguous().view(2, -1)),
    view("view of a scalar", "ViewBackward0", lambda x: x.view(1, 1), ()),
    view("reshape of a transpose", "UnsafeViewBackward0", lambda x: x.t().reshape(2, 6)),
    view("flatten", "ViewBackward0", lambda x: x.contiguous().flatten(1), (2, 3, 4)),
    view(
        "_reshape_alias",
        "ReshapeAliasBackward0",
        lambda x: aten._reshape_alias((x * 1.0).contiguous(), (6, 2), (2, 1)),
    ),
    view("_reshape_copy", "ReshapeCopyBackward0", lambda x: aten._reshape_copy(x, (6, 2))),
    view(
        "view_copy", "ViewBackward0_copy", lambda x: aten.view_copy((x * 1.0).contiguous(), (6, 2))
    ),
    view(
        "_reshape_alias_copy",
        "ReshapeAliasBackward0_copy",
        lambda x: aten._reshape_alias_copy((x * 1.0).contiguous(), (6, 2), (2, 1)),
    ),
    view("squeeze", "SqueezeBackward0", lambda x: x.squeeze(), (1, 3, 1)),
    view("squeeze axis", "SqueezeBackward1", lambda x: x.squeeze(-1), (2, 3, 1)),
    view("squeeze an axis that stays", "SqueezeBackward1", lambda x: x.squeeze(0), (2, 3)),
    view("squeeze axes", "SqueezeBackward2", lambda x: x.squeeze((0, -1)), (1, 3, 1)),
    view("squeeze_", "SqueezeBackward3", lambda x: (x * 1.0).squeeze_(), (1, 3, 1)),
    view("squeeze_ axis", "SqueezeBackward4", lambda x: (x * 1.0).squeeze_(0), (1, 3)),
    view("squeeze_ axes", "SqueezeBackward5", lambda x: (x * 1.0).squeeze_((0, 2)), (1, 3, 1)),
    view("unsqueeze", "UnsqueezeBackward0", lambda x: x.unsqueeze(-2)),
    view("unsqueeze of a scalar", "UnsqueezeBackward0", lambda x: x.unsqueeze(0), ()),
    view("unsqueeze_", "UnsqueezeBackward1", lambda x: (x * 1.0).unsqueeze_(1)),
    view("clone", "CloneBackward0", lambda x: x.clone()),
    view("contiguous", "CloneBackward0", lambda x: x.mT.contiguous()),
    view(
        "to another dtype",
        "ToCopyBackward0",
        lambda x: (
            x.to(torch.complex64 if x.is_complex() else torch.float64)
            if x.dtype != torch.float64
            else x.to(torch.float64, copy=True)
        ),
    ),
    view("alias", "AliasBackward0", lambda x: aten.alias(x)),
    view("lift_fresh", "LiftFreshBackward0", lambda x: aten.lift_fresh(x * 1.0)),
    view("alias_copy", "AliasBackward0_copy", lambda x: aten.alias_copy(x)),
    view("lift_fresh_copy", "LiftFreshBackward0_copy", lambda x: aten.lift_fresh_copy(x)),
    view("squeeze_copy", "SqueezeBackward0_copy", lambda x: aten.squeeze_copy(x), (1, 3, 1)),
    view("squeeze_copy axis", "SqueezeBackward1_copy", lambda x: aten.squeeze_copy(x, 0), (1, 3)),
    view(
        "squeeze_copy axes",
        "SqueezeBackward2_copy",
        lambda x: aten.squeeze_copy(x, (0, 2)),
        (1, 3, 1),
    ),
    view("unsqueeze_copy", "UnsqueezeBackward0_copy", lambda x: aten.unsqueeze_copy(x, 1)),
    view("view to a scalar", "ViewBackward0", lambda x: x.view(()), (1, 1)),
    view("_to_copy", "ToCopyBackward0", lambda x: aten._to_copy(x)),
]

STRIDED = [
    view("permute", "PermuteBackward0", lambda x: x.permute(-1, 0, 1), (2, 3, 4)),
    view("movedim", "PermuteBackward0", lambda x: x.movedim(0, 2), (2, 3, 4)),
    view("transpose", "TransposeBackward0", lambda x: x.transpose(0, -1), (2, 3, 4)),
    view("transpose of a scalar", "TransposeBackward0", lambda x: x.transpose(0, -1), ()),
    view("transpose_", "TransposeBackward1", lambda x: (x * 1.0).transpose_(0, 1)),
    view("mT", "TransposeBackward0", lambda x: x.mT, (2, 3, 4)),
    view("t", "TBackward0", lambda x: x.t()),
    view("t of a vector", "TBackward0", lambda x: x.t(), (3,)),
    view("t_", "TBackward1", lambda x: (x * 1.0).t_()),
    view("select", "SelectBackward0", lambda x: x.select(1, -2)),
    view("select of a vector", "SelectBackward0", lambda x: x[2], (4,)),
    view("slice", "SliceBackward0", lambda x: x[:, 1:-1]),
    view("slice with a step", "SliceBackward0", lambda x: x[::2, 1::3], (5, 7)),
    view("slice beyond the end", "SliceBackward0", lambda x: x[1:100]),
    view("slice of nothing", "SliceBackward0", lambda x: x[2:1]),
    view("narrow", "SliceBackward0", lambda x: x.narrow(-1, 1, 2)),
    view("overlapping unfold", "UnfoldBackward0", lambda x: x.unfold(0, 3, 2), (7, 2)),
    view("unfold", "UnfoldBackward0", lambda x: x.unfold(-1, 2, 2)),
    view("unfold of a scalar", "UnfoldBackward0", lambda x: x.unfold(0, 1, 1), ()),
    view("diagonal", "DiagonalBackward0", lambda x: x.diagonal()),
    view("diagonal above", "DiagonalBackward0", lambda x: x.diagonal(1, 0, 2), (3, 2, 4)),
    view("diagonal below", "DiagonalBackward0", lambda x: x.diagonal(-1)),
    view("diagonal beyond", "DiagonalBackward0", lambda x: x.diagonal(7)),
    view("expand", "ExpandBackward0", lambda x: x.expand(2, 3, 4), (3, 1)),
    view("expand of a scalar", "ExpandBackward0", lambda x: x.expand(3), ()),
    view("expand to nothing", "ExpandBackward0", lambda x: x.expand(0, 3), (1, 3)),
    view("expand_copy", "ExpandBackward0_copy", lambda x: aten.expand_copy(x, (2, 3, 4)), (3, 1)),
    view(
        "as_strided",
        "AsStridedBackward0",
        lambda x: (x * 1.0).contiguous().as_strided((2, 3), (4, 1), 2),
    ),
    view(
        "as_strided, overlapping",
        "AsStridedBackward0",
        lambda x: (x * 1.0).contiguous().as_strided((4, 3), (1, 1)),
        (6,),
    ),
    view(
        "as_strided of a transpose",
        "AsStridedBackward0",
        lambda x: (x * 1.0).contiguous().t().as_strided((2, 3), (1, 4)),
        driven=True,
    ),
    view(
        "as_strided_scatter",
        "AsStridedScatterBackward0",
        lambda x, y: torch.as_strided_scatter((x * 1.0).contiguous(), y, (2, 3), (4, 1), 1),
        (3, 4),
        (2, 3),
        driven=True,
    ),
    view(
        "permute_copy",
        "PermuteBackward0_copy",
        lambda x: aten.permute_copy(x, (-1, 0, 1)),
        (2, 3, 4),
    ),
    view("transpose_copy", "TransposeBackward0_copy", lambda x: aten.transpose_copy(x, 0, 1)),
    view("t_copy", "TBackward0_copy", lambda x: aten.t_copy(x)),
    view("select_copy", "SelectBackward0_copy", lambda x: aten.select_copy(x, 1, -2)),
    view("slice_copy", "SliceBackward0_copy", lambda x: aten.slice_copy(x, 1, 1, -1)),
    view("narrow_copy", "NarrowCopyBackward0", lambda x: aten.narrow_copy(x, 1, -3, 2)),
    view("unfold_copy", "UnfoldBackward0_copy", lambda x: aten.unfold_copy(x, 1, 2, 2)),
    view("diagonal_copy", "DiagonalBackward0_copy", lambda x: aten.diagonal_copy(x, 1)),
    view(
        "as_strided_copy",
        "AsStridedBackward0_copy",
        lambda x: aten.as_strided_copy((x * 1.0).contiguous(), (2, 3), (4, 1), 2),
    ),
    view("diag_embed", "DiagEmbedBackward0", lambda x: x.diag_embed()),
    view("diag_embed above", "DiagEmbedBackward0", lambda x: x.diag_embed(1, 0, 2), (2, 3)),
    view("diag_embed below", "DiagEmbedBackward0", lambda x: x.diag_embed(-2, 2, 0), (2, 3)),
    view(
        "diag_embed of nothing",
        "DiagEmbedBackward0",
        lambda x: x.narrow(0, 0, 0).diag_embed(1),
        (3,),
    ),
    view("diagonal of a diagonal", "DiagonalBackward0_copy", lambda x: x.diag().diag(), (3,)),
    view(
        "gradient of select",
        "SelectBackwardBackward0",
        lambda x: aten.select_backward(x, (3, 4), 0, 1),
        (4,),
    ),
    view(
        "gradient of slice",
        "SliceBackwardBackward0",
        lambda x: aten.slice_backward(x, (3, 4), 1, 0, 4, 2),
        (3, 2),
    ),
    view(
        "gradient of diagonal",
        "DiagonalBackwardBackward0",
        lambda x: aten.diagonal_backward(x, (3, 4), 0, 0, 1),
        (3,),
    ),
    view(
        "gradient of unfold",
        "UnfoldBackwardBackward0",
        lambda x: aten.unfold_backward(x, (5,), 0, 3, 1),
        (3, 3),
    ),
    view("one element", "SelectBackward0", lambda x: x[2, 1] * x[-1, -1]),
    view("neighbours", "SliceBackward0", lambda x: (x[1:] - x[:-1]).reshape(-1)[::2], (4, 3)),
    view("unfold of an inner axis", "UnfoldBackward0", lambda x: x.unfold(1, 2, 1), (2, 4, 3)),
    view("all pairs", "ExpandBackward0", lambda x: x[:, None].expand(3, 3, 2) * x, (3, 2)),
]

BLOCKS = [
    view("pad", "ConstantPadNdBackward0", lambda x: F.pad(x, (1, 2))),
    view("pad two axes", "ConstantPadNdBackward0", lambda x: F.pad(x, (0, 1, 2, 0), value=3.0)),
    view("pad that crops", "ConstantPadNdBackward0", lambda x: F.pad(x, (-1, 2, 1, -2))),
    view("pad that crops all", "ConstantPadNdBackward0", lambda x: F.pad(x, (-4, 1))),
    view("roll", "RollBackward0", lambda x: x.roll(1, 0)),
    view("roll two axes", "RollBackward0", lambda x: x.roll((-1, 2), (0, 1))),
    view("roll one axis twice", "RollBackward0", lambda x: x.roll((1, 2), (1, 1))),
    view("roll flat", "RollBackward0", lambda x: x.roll(5)),
    view("roll by nothing", "RollBackward0", lambda x: x.roll(0, 1)),
    view("repeat", "RepeatBackward0", lambda x: x.repeat(2, 1, 3), (2, 3)),
    view("repeat never", "RepeatBackward0", lambda x: x.repeat(0, 2), (3,)),
    view("tril", "TrilBackward0", lambda x: x.tril()),
    view("tril above", "TrilBackward0", lambda x: x.tril(1), (2, 3, 3)),
    view("triu", "TriuBackward0", lambda x: x.triu()),
    view("triu below", "TriuBackward0", lambda x: x.triu(-1), (2, 3, 3)),
    view("flip", "FlipBackward0", lambda x: x.flip(0, -1)),
    view("flip one axis", "FlipBackward0", lambda x: x.flip(1)),
    view("flip an inner axis", "FlipBackward0", lambda x: x.flip(-2), (2, 3, 2)),
    view("flip no axis", "FlipBackward0", lambda x: x.flip(())),
    view("flip of a scalar", "FlipBackward0", lambda x: x.flip(()), ()),
    view("roll of a scalar", "RollBackward0", lambda x: x.roll(1), ()),
    view("repeat of a scalar", "RepeatBackward0", lambda x: x.repeat(3), ()),
    view(
        "blocks of pixels",
        "PermuteBackward0",
        lambda x: x.reshape(2, 2, 3, 2).permute(0, 2, 1, 3).reshape(6, 4),
        (4, 6),
    ),
]

IN_PLACE = [
    in_place("mul_ of a row", lambda y: y[1].mul_(3)),
    in_place("mul_ of a column by a tensor", lambda y, z: y[:, 1].mul_(z), (3, 4), (3,)),
    in_place("exp_ of a slice", lambda y: y[:, ::2].exp_()),
    in_place("add_ to a transpose", lambda y, z: y.t().add_(z, alpha=2), (3, 4), (4, 1)),
    in_place("sin_ of a diagonal", lambda y: y.diagonal().sin_(), (3, 3)),
    in_place("an element assigned", lambda y, z: y[0].copy_(z.sin()), (3,), ()),
    in_place("a row assigned", lambda y, z: y[1].copy_(z), (3, 4), (4,)),
    in_place("a row zeroed", lambda y: y[1].zero_()),
    in_place("a slice broadcast into", lambda y, z: y[:, 1:3].copy_(z * z), (3, 4), (3, 1)),
    in_place("a row filled", lambda y, z: y[1].fill_(z), (3, 4), ()),
    in_place("two views changed", lambda y: (y[0].mul_(3), y[:, 2].exp_())),
    in_place("a view of a view changed", lambda y: y[1:].t()[0].mul_(5)),
    in_place("mul_", lambda y, z: y.mul_(z), (3, 4), (4,), nodes=("MulBackward0",)),
    in_place("exp_", lambda y: y.exp_(), nodes=("ExpBackward0",)),
    in_place("add_ broadcast", lambda y, z: y.add_(z), (3, 4), (4,), nodes=("AddBackward0",)),
    in_place(
        "copy_", lambda y, z: y.copy_(z), (3, 4), (3, 4), nodes=("torch::autograd::CopyBackwards",)
    ),
    in_place(
        "copy_ broadcast",
        lambda y, z: y.copy_(z),
        (3, 4),
        (4,),
        nodes=("torch::autograd::CopyBackwards",),
    ),
    in_place("a view times its neighbour", lambda y: y[1:].mul_(y[:-1].clone()), (4, 2)),
    in_place("a view divided by a tensor", lambda y, z: y.t()[1].div_(2 + z.exp()), (3, 4), (3,)),
    in_place("a view clamped", lambda y: y[1:].clamp_(-1, 1)),
    in_place(
        "a product added to a view", lambda y, z: y[:, :2].addmm_(z, z[:, :2]), (3, 4), (3, 3)
    ),
    view(
        "a view of what is not contiguous changed",
        "torch::autograd::CopySlices",
        lambda x: (y := (x * 2.0).t().clone(), y[1:].exp_())[0],
        driven=True,
    ),
    in_place("a view filled at indices", lambda y: y[1:].index_fill_(1, torch.tensor([2]), 5.0)),
    in_place(
        "a view assigned at indices",
        lambda y, z: y[:, 1:].index_put_((torch.tensor([2, 0]),), z),
        (3, 4),
        (2, 3),
    ),
    in_place("a view of a transpose changed", lambda y: y.t()[1:].exp_()),
    view(
        "a view of a constant assigned",
        "torch::autograd::CopySlices",
        lambda x: (y := torch.ones(4, 4, dtype=x.dtype), y[1:].copy_(x))[0],
    ),
]

SCATTERED = [
    view(
        "select_scatter",
        "SelectScatterBackward0",
        lambda x, v: x.select_scatter(v, 1, -1),
        (3, 4),
        (3,),
    ),
    view(
        "slice_scatter",
        "SliceScatterBackward0",
        lambda x, v: x.slice_scatter(v, 1, 0, None, 2),
        (3, 4),
        (3, 2),
    ),
    view(
        "slice_scatter of all",
        "SliceScatterBackward0",
        lambda x, v: x.slice_scatter(v, 1),
        (3, 4),
        (3, 4),
    ),
    view(
        "diagonal_scatter",
        "DiagonalScatterBackward0",
        lambda x, v: x.diagonal_scatter(v, 1),
        (3, 4),
        (3,),
    ),
    view(
        "diagonal_scatter of a batch",
        "DiagonalScatterBackward0",
        lambda x, v: x.diagonal_scatter(v, 0, 1, 2),
        (2, 3, 3),
        (2, 3),
    ),
]

SCENARIOS = (*RESHAPES, *STRIDED, *BLOCKS, *SCATTERED, *IN_PLACE)
