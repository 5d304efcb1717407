"""Embedding tables and bags, and reductions of groups of elements."""

import torch
import torch.nn.functional as F

from . import Scenario
from .indexing import index, some

INF = float("inf")
REDUCTIONS = ("sum", "mean", "amax", "amin", "prod")
ALL_TIE = {"expanded": "of tied rows the op takes the first, and the reference shares"}


def embedding(name, shape=(4, 3), **options):
    entries = some(2, 3, high=4)
    plain = {k: v for k, v in options.items() if k != "sparse"}
    return Scenario(
        f"embedding, {name}",
        ("EmbeddingBackward0",),
        lambda w: F.embedding(entries.to(w.device), w, **options),
        (shape,),
        reference=lambda w: F.embedding(entries.to(w.device), w, **plain),
    )


def bag(name, entries, offsets, mode="sum", weighted=False, padding=None, last=False, sparse=False):
    """A bag, against a table of the entries that each bag has."""
    ends = [*offsets[1:], entries.numel()] if not last else offsets[1:]
    count = len(ends)

    def members(b):
        return [e for e in range(offsets[b], ends[b]) if entries[e] != padding]

    def fn(w, *p):
        return F.embedding_bag(
            entries.to(w.device),
            w,
            index(*offsets),
            mode=mode,
            per_sample_weights=p[0] if p else None,
            padding_idx=padding,
            include_last_offset=last,
            sparse=sparse,
        )

    def reference(w, *p):
        bags = []
        for b in range(count):
            rows = [w[entries[e]] * (p[0][e] if p else 1.0) for e in members(b)]
            if not rows:
                bags.append(0.0 * w[0])
            elif mode == "max":
                bags.append(torch.stack(rows).amax(0))
            else:
                bags.append(sum(rows) / (len(rows) if mode == "mean" else 1))
        return torch.stack(bags)

    shapes = ((5, 2), (entries.numel(),)) if weighted else ((5, 2),)
    return Scenario(
        f"embedding_bag, {name}",
        ("EmbeddingBagBackward0",),
        fn,
        shapes,
        reference=reference,
        skips=ALL_TIE if mode == "max" else {},
    )


ENTRIES = index(0, 2, 2, 4, 1, 0)

TABLES = [
    embedding("dense"),
    embedding("padded", padding_idx=1),
    embedding("sparse", sparse=True),
    bag("sum", ENTRIES, (0, 2)),
    bag("mean", ENTRIES, (0, 2, 2, 5), "mean"),
    bag("max", ENTRIES, (0, 2, 2), "max"),
    bag("weighted", ENTRIES, (0, 2, 5), weighted=True),
    bag("weighted and padded", ENTRIES, (0, 2), weighted=True, padding=2),
    bag("mean, padded", ENTRIES, (0, 1, 4), "mean", padding=2),
    bag("max, padded", ENTRIES, (0, 1, 4), "max", padding=2),
    bag("with the last offset", ENTRIES, (0, 2, 6), last=True),
    bag("sparse", ENTRIES, (0, 2), sparse=True),
]


def scattered(how, include, at=None, name="", reference=None):
    """``at``: the op where its inputs are special."""
    places = some(3, 5)

    def fn(x, v):
        return x.scatter_reduce(1, places.to(x.device), v, how, include_self=include)

    return Scenario(
        f"scatter_reduce, {how}{name}{', with itself' if include else ''}",
        ("ScatterReduceBackward0",),
        at(fn) if at else fn,
        ((3, 4), (3, 5)),
        reference=reference,
    )


def indexed(how, include):
    places = index(2, 0, 2, 2)
    return Scenario(
        f"index_reduce, {how}{', with itself' if include else ''}",
        ("IndexReduceBackward0",),
        lambda x, v: x.index_reduce(1, places.to(x.device), v, how, include_self=include),
        ((2, 4), (2, 4)),
    )


def rounded(fn):
    """The op where its inputs are whole numbers, so that extrema tie."""
    return lambda *xs: fn(*(x - x.detach() + torch.round(x.detach()) for x in xs))


def one_zero(fn):
    """The op where a factor of one element is zero."""
    return lambda x, v: fn(x, torch.cat([v[:, :1] - v[:, :1].detach(), v[:, 1:]], 1))


def product_of_groups(x, v):
    """The same as a product of all, to each its group's."""
    member = some(3, 5)[:, None] == torch.arange(4)[:, None]
    return x * torch.where(member, v[:, None], 1.0).prod(-1)


GROUPS = [
    *(scattered(how, include) for how in REDUCTIONS for include in (True, False)),
    *(scattered(how, True, rounded, " of ties") for how in ("amax", "amin")),
    scattered("prod", True, one_zero, " with a zero", one_zero(product_of_groups)),
    *(indexed(how, include) for how in REDUCTIONS[1:] for include in (True, False)),
]


def segmented(how, name="", shape=(6, 2), axis=0, initial=None, zeros=False, **where):
    """Segments, against their slices one by one; ``ends`` per row of what lies before the axis."""
    by = {k: torch.tensor(v) for k, v in where.items()}
    lengths = by["lengths"] if "lengths" in by else by["offsets"].diff(dim=-1)
    start = by["offsets"][..., :1] if "offsets" in by else torch.zeros_like(lengths[..., :1])
    ends = lengths.cumsum(-1) + start
    reduced = {
        "sum": lambda t: t.sum(0),
        "mean": lambda t: t.mean(0),
        "max": lambda t: t.amax(0),
        "min": lambda t: t.amin(0),
        "prod": lambda t: t.prod(0),
    }[how]

    def at(x):
        return torch.cat([x[:1] - x[:1].detach(), x[1:]]) if zeros else x

    def fn(x):
        there = {k: t.to(x.device) for k, t in by.items()}
        return torch.segment_reduce(at(x), how, axis=axis, initial=initial, **there)

    def line(x, ends, lengths):
        parts = []
        for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
            t = x[end - length : end]
            if initial is not None and how in ("max", "min", "prod"):
                t = torch.cat([t, torch.full_like(x[:1], initial)])
            parts.append(reduced(t) if len(t) else 0.0 * x[0] + (0.0 if how == "sum" else 1.0))
        return torch.stack(parts)

    def reference(x):
        if ends.dim() == 1:
            return line(at(x), ends, lengths)
        return torch.stack([line(*row) for row in zip(at(x), ends, lengths, strict=True)])

    return Scenario(
        f"segment_reduce, {how}{name}",
        ("SegmentReduceBackward0",),
        fn,
        (shape,),
        reference=reference,
    )


SEGMENTS = [
    *(segmented(how, lengths=[2, 3, 1]) for how in ("sum", "mean", "max", "min", "prod")),
    *(segmented(how, ", by offsets", offsets=[0, 4, 6]) for how in ("sum", "mean", "max", "prod")),
    *(
        segmented(how, ", from a start", initial=0.5, lengths=[2, 4])
        for how in ("max", "min", "prod")
    ),
    segmented("prod", " with a zero", zeros=True, lengths=[2, 4]),
    segmented("sum", ", of each row", (2, 4, 3), 1, lengths=[[1, 3], [2, 2]]),
    segmented("sum", ", empty ones too", lengths=[0, 3, 0, 3]),
]

NORMS = [
    Scenario(
        f"renorm, {p}",
        ("RenormBackward0",),
        lambda x, p=p, m=m: x.renorm(p, 1, m),
        ((2, 3, 2),),
        domains=((0.2, 2.0),),
    )
    for p, m in ((1, 4.0), (2, 2.2), (3, 1.0), (1.5, 2.0), (INF, 1.0))
]

SCENARIOS = (*TABLES, *GROUPS, *SEGMENTS, *NORMS)
