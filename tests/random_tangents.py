"""Random tangents for the laws of the algebra, and the slow reading of what they mean.

A tangent of K seeds and value shape S is a sum of terms, each of them

    T[k0 + sum_d i_d ks_d,  v0 + sum_d i_d vs_d] += alpha * coef[i] * core[i],

with i -> (k, v) one to one, and a coef that varies only where vs is not zero. `dense` reads that
formula index by index and shares no code with the engine.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from drawing import generator
from hypothesis import strategies as st

from hesse import _C

f64 = torch.float64
LIKE = torch.zeros((), dtype=f64)


@dataclass(frozen=True)
class Term:
    dims: tuple[tuple[int, int, int], ...]  # (n, ks, vs)
    k0: int
    v0: int
    alpha: float
    coef: torch.Tensor | None
    core: torch.Tensor | None

    def places(self):
        """Every index with the (k, v) it is placed at."""
        for i in itertools.product(*(range(n) for n, _, _ in self.dims)):
            k = self.k0 + sum(j * ks for j, (_, ks, _) in zip(i, self.dims, strict=True))
            v = self.v0 + sum(j * vs for j, (_, _, vs) in zip(i, self.dims, strict=True))
            yield i, k, v


@dataclass(frozen=True)
class Tangent:
    K: int
    shape: tuple[int, ...]
    terms: tuple[Term, ...]

    def lazy(self):
        """The engine's tangent."""
        terms = [_C.Term(list(t.dims), t.k0, t.v0, t.alpha, t.coef, t.core) for t in self.terms]
        return _C.Tangent(self.K, list(self.shape), LIKE, terms)

    def dense(self):
        """[K, *S], by the formula."""
        rows = [[0.0] * math.prod(self.shape) for _ in range(self.K)]
        for term in self.terms:
            coef, core = (f if f is None else f.numpy() for f in (term.coef, term.core))
            for i, k, v in term.places():
                rows[k][v] += term.alpha * entry(coef, i) * entry(core, i)
        return torch.tensor(rows, dtype=f64).reshape(self.K, *self.shape)


def entry(factor, i):
    if factor is None:
        return 1.0
    return float(factor[tuple(j if n > 1 else 0 for j, n in zip(i, factor.shape, strict=True))])


def row_major(shape):
    return [math.prod(shape[a + 1 :]) for a in range(len(shape))]


# ---- shapes --------------------------------------------------------------------------------------

sizes = st.sampled_from([3, 2, 4, 1])
shapes = st.one_of(*(st.tuples(*[sizes] * rank) for rank in (1, 2, 3, 2, 3, 0)))


@st.composite
def refactored(draw, shape):
    """Another shape for the same flat values."""
    n = math.prod(shape)
    out = []
    while n > 1 and len(out) < 3:
        out.append(draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])))
        n //= out[-1]
    return (*out, n) if n > 1 else tuple(out)


# ---- terms ---------------------------------------------------------------------------------------


@st.composite
def factors(draw, sizes, seed):
    """Undefined, or a tensor of these sizes: contiguous, transposed, strided or expanded."""
    if draw(st.booleans()):
        return None
    source = generator(seed)

    def normal(size):
        return torch.randn(list(size), generator=source, dtype=f64)

    layout = draw(st.sampled_from(["plain", "transposed", "strided", "expanded"]))
    if layout == "transposed":
        return normal(reversed(sizes)).permute(list(reversed(range(len(sizes)))))
    if layout == "strided":
        return normal(2 * n for n in sizes)[tuple(slice(1, None, 2) for _ in sizes)]
    if layout == "expanded" and sizes:
        return normal([*sizes[:-1], 1]).expand(sizes)
    return normal(sizes)


@st.composite
def axis_dims(draw, n, stride):
    """Dimensions that together stay within one axis, and where they start."""
    kind = draw(st.sampled_from(["whole", "part", "steps", "digits", "window", "whole", "none"]))
    if kind == "whole":
        return [(n, stride)], 0
    if kind == "none" or n == 1:
        return [], draw(st.integers(0, n - 1))
    if kind == "digits" and n == 4:
        return draw(st.permutations([(2, 2 * stride), (2, stride)])), 0
    if kind == "window" and n > 2:
        return [(n - 1, stride), (2, stride)], 0
    step = 2 if kind == "steps" and n > 2 else 1
    count = draw(st.integers(1, (n - 1) // step + 1))
    return [(count, step * stride)], draw(st.integers(0, n - 1 - (count - 1) * step))


@st.composite
def boxes(draw, shape, K):
    """Dimensions on the axes of a value, each tied to the seeds or not, and seed-only ones."""
    dims, v0 = [], 0
    for n, stride in zip(shape, row_major(shape), strict=True):
        on_axis, start = draw(axis_dims(n, stride))
        v0 += start * stride
        # Of two that overlap in the value, one is tied: the seed tells them apart.
        tied = draw(st.booleans()) or len(on_axis) == 2 and on_axis[0][1] == on_axis[1][1]
        dims += [(m, vs, tied and j == 0) for j, (m, vs) in enumerate(on_axis)]
    dims += [(draw(st.integers(2, 3)), 0, True)] if draw(st.booleans()) else []
    return dims, v0


@st.composite
def terms(draw, shape, K):
    viewed = draw(st.one_of(st.just(shape), refactored(shape)))
    if draw(st.integers(0, 7)) == 0 and len(shape) > 1 and min(shape) > 1:
        # A diagonal of the value, which lies within no axis.
        dims, v0 = [(min(shape[:2]), sum(row_major(shape)[:2]), draw(st.booleans()))], 0
    else:
        dims, v0 = draw(boxes(viewed, K))
    # Seed strides: mixed radix in any order; what does not fit is cut down.
    order = draw(st.permutations(range(len(dims))))
    placed, reach, radix = {}, 0, 1
    for d in order:
        n, vs, seeded = dims[d]
        if not seeded:
            placed[d] = (n, 0, vs)
            continue
        ks = radix * (draw(st.integers(1, 2)) if n > 1 else 1)
        n = min(n, (K - 1 - reach) // ks + 1)
        placed[d] = (n, ks, vs)
        reach += (n - 1) * ks
        radix = ks * n
    dims = tuple(placed[d] for d in range(len(dims)))
    k0 = draw(st.integers(0, K - 1 - reach))
    thin = [draw(st.booleans()) for _ in dims]
    seed = draw(st.integers(0, 2**16))
    coef = draw(
        factors([1 if vs == 0 or t else n for (n, _, vs), t in zip(dims, thin, strict=True)], seed)
    )
    thin = [draw(st.booleans()) for _ in dims]
    core = draw(factors([1 if t else n for (n, _, _), t in zip(dims, thin, strict=True)], seed + 1))
    return Term(dims, k0, v0, draw(st.sampled_from([1.0, 1.0, -0.5])), coef, core)


@st.composite
def identities(draw, shape, K):
    """Rows of the identity, as a sweep starts with, when there are seeds enough."""
    n = math.prod(shape)
    if n > K:
        return draw(terms(shape, K))
    dims = tuple((n, s, s) for n, s in zip(shape, row_major(shape), strict=True) if n > 1)
    return Term(dims, draw(st.integers(0, K - n)), 0, 1.0, None, None)


@st.composite
def tangents(draw, shape=None, K=None):
    shape = draw(shapes) if shape is None else tuple(shape)
    K = draw(st.integers(1, 12)) if K is None else K
    if math.prod(shape) == 0:
        return Tangent(K, shape, ())
    some = st.lists(st.one_of(terms(shape, K), identities(shape, K)), max_size=3)
    return Tangent(K, shape, tuple(draw(some)))


# ---- strided views -------------------------------------------------------------------------------


@st.composite
def views(draw, shape):
    """A chain of torch's own views of [0, 1, ..., numel): its entries are the flat indices."""
    index = torch.arange(math.prod(shape)).reshape(shape)
    for _ in range(draw(st.integers(1, 3))):
        ops = ["unsqueeze"]
        if index.dim():
            ops += ["permute", "slice", "slice", "select", "unfold"]
        if index.dim() > 1:
            ops += ["diagonal"]
        if 1 in index.shape:
            ops += ["expand"]
        op, a = draw(st.sampled_from(ops)), 0
        if index.dim():
            a = draw(st.integers(0, index.dim() - 1))
        n = index.shape[a] if index.dim() else 1
        if op == "unsqueeze":
            index = index.unsqueeze(a)
        elif op == "permute":
            index = index.permute(draw(st.permutations(range(index.dim()))))
        elif op == "slice":
            start = draw(st.integers(0, n - 1))
            end = draw(st.integers(start + 1, n))
            index = index.movedim(a, 0)[start : end : draw(st.integers(1, 3))].movedim(0, a)
        elif op == "select":
            index = index.select(a, draw(st.integers(0, n - 1)))
        elif op == "unfold":
            index = index.unfold(a, draw(st.integers(1, n)), draw(st.integers(1, 2)))
        elif op == "diagonal":
            index = index.diagonal(draw(st.integers(1 - index.shape[0], index.shape[1] - 1)))
        else:
            wide = [3 if m == 1 and draw(st.booleans()) else m for m in index.shape]
            index = index.expand(wide)
        if index.dim() > 4 or index.numel() > 100:
            break
    return index
