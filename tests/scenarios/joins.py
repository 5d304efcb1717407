"""Ops that join several values into one or split one into several."""

import torch

from . import Scenario

aten = torch.ops.aten


def split(name, node, fn, shape=(5, 4)):
    return Scenario(name, (node,), fn, (shape,))


def join(name, node, fn, *shapes):
    return Scenario(name, (node,), lambda *xs: fn(xs), shapes)


SCENARIOS = (
    # ---- one into several
    split("split", "SplitBackward0", lambda x: x.split(2)),
    split("split of the last axis", "SplitBackward0", lambda x: x.split(3, -1)),
    split("one part of a split", "SplitBackward0", lambda x: x.split(2)[1]),
    split("chunk", "SplitBackward0", lambda x: x.chunk(3)),
    split("unsafe_split", "UnsafeSplitBackward0", lambda x: tuple(torch.unsafe_split(x, 2))),
    split("unsafe_chunk", "UnsafeSplitBackward0", lambda x: tuple(torch.unsafe_chunk(x, 2, 1))),
    split("split with sizes", "SplitWithSizesBackward0", lambda x: x.split((1, 0, 4))),
    split("split of axis 1 with sizes", "SplitWithSizesBackward0", lambda x: x.split((3, 1), -1)),
    split(
        "unsafe_split_with_sizes",
        "UnsafeSplitWithSizesBackward0",
        lambda x: tuple(torch.unsafe_split_with_sizes(x, (1, 4))),
    ),
    split("unbind", "UnbindBackward0", lambda x: x.unbind()),
    split("unbind axis -1", "UnbindBackward0", lambda x: x.unbind(-1)[1:]),
    split("unbind of a vector", "UnbindBackward0", lambda x: x.unbind(), (3,)),
    split(
        "iteration", "UnbindBackward0", lambda x: sum(a * b for a, b in zip(x, x[1:], strict=False))
    ),
    split("split_copy", "SplitBackward0_copy", lambda x: tuple(aten.split_copy(x, 2))),
    split(
        "split_with_sizes_copy",
        "SplitWithSizesBackward0_copy",
        lambda x: tuple(aten.split_with_sizes_copy(x, (1, 4))),
    ),
    split("unbind_copy", "UnbindBackward0_copy", lambda x: tuple(aten.unbind_copy(x, 1))),
    # ---- several into one
    join(
        "block_diag",
        "BlockDiagBackward0",
        lambda xs: torch.block_diag(*xs),
        (2, 3),
        (2,),
        (),
        (1, 2),
    ),
    join(
        "block_diag with nothing",
        "BlockDiagBackward0",
        lambda xs: torch.block_diag(xs[0].new_zeros(2, 0), xs[0]),
        (2, 1),
    ),
    join("cat", "CatBackward0", torch.cat, (2, 3), (1, 3), (2, 3)),
    join("cat of axis -1", "CatBackward0", lambda xs: torch.cat(xs, -1), (2, 3), (2, 1)),
    join("cat of one", "CatBackward0", torch.cat, (2, 3)),
    join(
        "cat with an empty one",
        "CatBackward0",
        lambda xs: torch.cat([xs[0], xs[0].new_zeros(0), xs[1]]),
        (2, 3),
        (1, 3),
    ),
    join(
        "cat with a constant",
        "CatBackward0",
        lambda xs: torch.cat([xs[0], torch.ones_like(xs[0])], 1),
        (2, 3),
    ),
    join(
        "cat of the same twice",
        "CatBackward0",
        lambda xs: torch.cat([xs[0], xs[1], xs[0]]),
        (2, 3),
        (1, 3),
    ),
    join("stack", "StackBackward0", torch.stack, (2, 3), (2, 3)),
    join(
        "stack at axis -1", "StackBackward0", lambda xs: torch.stack(xs, -1), (2, 3), (2, 3), (2, 3)
    ),
    join("stack of scalars", "StackBackward0", torch.stack, (), ()),
    join(
        "stack of the same twice",
        "StackBackward0",
        lambda xs: torch.stack([xs[0], xs[0]], 1),
        (2, 3),
    ),
    join(
        "cat of two dtypes",
        "CatBackward0",
        lambda xs: torch.cat([xs[0], xs[1].double()]),
        (2, 3),
        (1, 3),
    ),
    join("cat of scalars", "CatBackward0", lambda xs: torch.cat([x[None] for x in xs]), (), ()),
    split("split and joined", "CatBackward0", lambda x: torch.cat(x.split(2, 1)[::-1], 1), (2, 5)),
)
