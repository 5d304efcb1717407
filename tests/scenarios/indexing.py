"""Index ops: values picked, written and added at places that a tensor gives."""

import torch

from . import Scenario

aten = torch.ops.aten


def index(*values):
    return torch.tensor(values)


def some(*shape, low=0, high=3):
    """Indices in [low, high), the same at every call; repeated ones among them."""
    steps = torch.arange(torch.Size(shape).numel())
    return (low + (steps * 7 + steps // 3) % (high - low)).reshape(shape)


def mask(*shape):
    return (some(*shape, high=5) % 2).bool()


def op(name, node, fn, *shapes, **kwargs):
    return Scenario(name, (node,), fn, shapes or ((3, 4),), **kwargs)


def indexed(name, fn, *shapes):
    return op(f"index, {name}", "IndexBackward0", fn, *shapes)


PICKED = [
    indexed("one axis", lambda x: x[index(2, 0, 0, -1)]),
    indexed("an inner axis", lambda x: x[:, index(2, 0, 0)], (2, 3, 2)),
    indexed("a table of indices", lambda x: x[:, some(2, 3)], (2, 3, 2)),
    indexed("two axes side by side", lambda x: x[:, index(0, 1), index(2, 2)], (2, 3, 4)),
    indexed("two axes apart", lambda x: x[index(0, 1, 1), :, index(2, 2, 3)], (2, 3, 4)),
    indexed("apart behind an axis", lambda x: x[:, index(1), :, some(2, 2)], (2, 2, 3, 4)),
    indexed("rows and columns", lambda x: x[index(0, 2)[:, None], index(1, 3, 1)]),
    indexed("one of each row", lambda x: x[torch.arange(3), index(1, 0, 3)]),
    indexed(
        "one of each row, in a batch", lambda x: x[:, torch.arange(3), index(1, 0, 3)], (2, 3, 4)
    ),
    indexed(
        "counted rows and columns",
        lambda x: x[torch.arange(3)[:, None], torch.arange(4)],
        (3, 4, 2),
    ),
    indexed("a diagonal", lambda x: x[torch.arange(3), torch.arange(3)], (3, 3, 2)),
    indexed("a table of each row", lambda x: x[torch.arange(3)[:, None], some(3, 2)]),
    indexed("rows counted apart", lambda x: x[torch.arange(2), :, index(3, 1)], (2, 3, 4)),
    indexed("a condition", lambda x: x[mask(3, 4)]),
    indexed("a condition on an axis", lambda x: x[:, mask(4)], (2, 4, 2)),
    indexed("a condition on two axes", lambda x: x[:, mask(3, 2)], (2, 3, 2)),
    indexed("a condition that holds once", lambda x: x[torch.arange(3) == 1]),
    indexed("a condition that never holds", lambda x: x[torch.zeros(3, dtype=torch.bool)]),
    indexed("a condition and an index", lambda x: x[mask(3), index(3)], (3, 4)),
    indexed("by itself", lambda x: x[index(0, 1)] * x[index(2, 0)], (3, 2)),
    op(
        "_unsafe_index",
        "UnsafeIndexBackward0",
        lambda x: aten._unsafe_index(x, [None, index(-1, 0, 0)]),
    ),
    op(
        "_unsafe_masked_index",
        "UnsafeMaskedIndexBackward0",
        lambda x: aten._unsafe_masked_index(x, mask(5), [index(0, 9, 2, -1, 1)], 7.0),
        (5,),
    ),
    op("index_select", "IndexSelectBackward0", lambda x: x.index_select(-1, index(3, 1, 1))),
    op(
        "index_select of a scalar",
        "IndexSelectBackward0",
        lambda x: x.index_select(0, index(0)),
        (),
    ),
    op(
        "repeat_interleave",
        "IndexSelectBackward0",
        lambda x: x.repeat_interleave(index(1, 0, 2), 0),
    ),
    op("gather", "GatherBackward0", lambda x: x.gather(1, some(3, 5))),
    op("gather from a part", "GatherBackward0", lambda x: x.gather(0, some(2, 2)), (3, 4)),
    op(
        "gather alike along an axis",
        "GatherBackward0",
        lambda x: x.gather(1, some(2, 2, 1).expand(2, 2, 4)),
        (2, 3, 4),
    ),
    op("gather of a scalar", "GatherBackward0", lambda x: x.gather(0, torch.tensor(0)), ()),
    op("gather one", "GatherBackward0", lambda x: x.gather(0, torch.tensor(2)), (3,)),
    op(
        "gather, sparsely",
        "GatherBackward0",
        lambda x: x.gather(1, some(3, 2), sparse_grad=True),
        reference=lambda x: x.gather(1, some(3, 2)),
    ),
    op("take_along_dim", "GatherBackward0", lambda x: x.take_along_dim(some(1, 2), 1)),
    op("take", "TakeBackward0", lambda x: x.take(some(2, 3, low=-12, high=12))),
    op("take one", "TakeBackward0", lambda x: x.take(torch.tensor(-1))),
    op("masked_select", "MaskedSelectBackward0", lambda x: x.masked_select(mask(3, 4))),
    op(
        "masked_select, broadcast",
        "MaskedSelectBackward0",
        lambda x: x.masked_select(mask(3, 4)),
        (4,),
    ),
    op("masked_select of rows", "MaskedSelectBackward0", lambda x: x.masked_select(mask(3, 1))),
    op(
        "masked_select between",
        "MaskedSelectBackward0",
        lambda x: x.masked_select(mask(3, 1)),
        (2, 3, 2),
    ),
    op("masked_select of all", "MaskedSelectBackward0", lambda x: x.masked_select(mask(2)[1])),
]

WRITTEN = [
    op(
        "scatter",
        "ScatterBackward0",
        lambda x, v: x.scatter(1, some(3, 2, high=4), v),
        (3, 4),
        (3, 2),
    ),
    op(
        "scatter twice to one place",
        "ScatterBackward0",
        lambda x, v: x.scatter(0, index([0, 1], [2, 1]), v.expand(2, 2)),
        (3, 4),
        (1, 2),
    ),
    op(
        "scatter into a part",
        "ScatterBackward0",
        lambda x, v: x.scatter(0, some(2, 2), v),
        (3, 4),
        (2, 2),
    ),
    op("scatter a number", "ScatterBackward1", lambda x: x.scatter(1, some(3, 2), 2.0)),
    op(
        "scatter_add",
        "ScatterAddBackward0",
        lambda x, v: x.scatter_add(1, some(3, 5), v),
        (3, 4),
        (3, 5),
    ),
    op(
        "scatter_add alike along an axis",
        "ScatterAddBackward0",
        lambda x, v: x.scatter_add(0, index(1, 1)[:, None].expand(2, 4), v),
        (3, 4),
        (2, 4),
    ),
    op(
        "index_add",
        "IndexAddBackward0",
        lambda x, v: x.index_add(1, some(5), v, alpha=2),
        (3, 4),
        (3, 5),
    ),
    op(
        "index_add, integers",
        "IndexAddBackward0",
        lambda x, v: x.index_add(0, index(1).int(), v),
        (3, 4),
        (1, 4),
    ),
    op(
        "index_copy",
        "IndexCopyBackward0",
        lambda x, v: x.index_copy(0, index(2, 0), v),
        (3, 4),
        (2, 4),
    ),
    op(
        "index_copy of a scalar",
        "IndexCopyBackward0",
        lambda x, v: x.index_copy(0, index(1), v),
        (3,),
        (),
    ),
    op("index_fill", "IndexFillBackward0", lambda x: x.index_fill(-1, index(2, 0, 2), 3.0)),
    op(
        "index_fill with a tensor",
        "IndexFillBackward1",
        lambda x, v: x.index_fill(1, index(2, 0, 2), v),
        (3, 4),
        (),
    ),
    op(
        "index_put",
        "IndexPutBackward0",
        lambda x, v: x.index_put((index(2, 0), index(3, 1)), v),
        (3, 4),
        (2,),
    ),
    op(
        "index_put, added",
        "IndexPutBackward0",
        lambda x, v: x.index_put((index(2, 0, 2),), v, accumulate=True),
        (3, 4),
        (3, 4),
    ),
    op(
        "index_put, broadcast",
        "IndexPutBackward0",
        lambda x, v: aten.index_put(x, [None, index(2, 0, 1)], v),
        (2, 3, 2),
        (1, 2),
    ),
    op(
        "index_put where a condition holds",
        "IndexPutBackward0",
        lambda x, v: x.index_put((torch.arange(4) % 2 == 0,), v),
        (4, 2),
        (2, 1),
    ),
    op(
        "index_put of one value where a condition holds",
        "IndexPutBackward0",
        lambda x, v: x.index_put((mask(3, 4),), v),
        (3, 4),
        (),
    ),
    op(
        "_unsafe_index_put",
        "UnsafeIndexPutBackward0",
        lambda x, v: aten._unsafe_index_put(x, [index(2, 0, 2)], v, True),
        (3, 4),
        (3, 4),
    ),
    op(
        "_index_put_impl_",
        "IndexPutImplBackward0",
        lambda x, v: aten._index_put_impl_(x * 1.0, [index(2, 0)], v),
        (3, 4),
        (2, 4),
    ),
    op("put", "PutBackward0", lambda x, v: x.put(index([1, -1], [5, 0]), v), (3, 4), (4,)),
    op(
        "index_put to one of each row",
        "IndexPutBackward0",
        lambda x, v: x.index_put((torch.arange(3), index(1, 1, 3)), v),
        (3, 4),
        (3,),
    ),
    op(
        "put, added",
        "PutBackward0",
        lambda x, v: x.put(index(1, 1, 5), v, accumulate=True),
        (3, 4),
        (3,),
    ),
    op(
        "_unsafe_masked_index_put_accumulate",
        "UnsafeMaskedIndexPutAccumulateBackward0",
        lambda x, v: aten._unsafe_masked_index_put_accumulate(
            x, mask(5), [index(0, 9, 2, -1, 1)], v
        ),
        (5,),
        (5,),
    ),
    op(
        "masked_scatter",
        "MaskedScatterBackward0",
        lambda x, v: x.masked_scatter(mask(3, 4), v),
        (3, 4),
        (2, 6),
    ),
    op(
        "masked_scatter, broadcast",
        "MaskedScatterBackward0",
        lambda x, v: x.masked_scatter(mask(3, 1), v),
        (3, 4),
        (13,),
    ),
]

SCENARIOS = (*PICKED, *WRITTEN)
