"""The law of inner products of tangents: structured or dense, they are sums over the value.

inner(a, b, n)[g, k, l] = sum_v a[g n + k, v] b[g n + l, v]
"""

import math

import pytest
import torch
from drawing import generator
from hypothesis import given
from hypothesis import strategies as st
from random_tangents import Tangent, Term, f64, row_major, tangents
from test_tangent_laws import law

pytestmark = pytest.mark.ours


def expected(a, b, n):
    A, B = (t.dense().reshape(t.K // n, n, -1) for t in (a, b))
    return A @ B.mT


def agree(a, b, n):
    torch.testing.assert_close(
        a.lazy().inner(b.lazy(), n), expected(a, b, n), rtol=1e-12, atol=1e-12
    )


@law
@given(st.data())
def test_it_is_the_sum_over_the_value_within_each_group(data):
    a = data.draw(tangents(K=12))
    b = data.draw(tangents(a.shape, 12))
    agree(a, b, data.draw(st.sampled_from([1, 2, 3, 4, 6, 12])))


@st.composite
def of_samples(draw, B, n, shape):
    """Terms whose seeds go in groups of n, each group tied to the first axis or to the last."""
    strides = row_major(shape)
    terms = []
    for _ in range(draw(st.integers(1, 2))):
        axis = draw(st.sampled_from([0, len(shape) - 1]))
        if shape[axis] != B:
            axis = 0
        dims = [(B, n, strides[axis])]
        kinds = draw(st.sampled_from(["dense", "tied", "spread"]))
        rest = [(shape[a], strides[a]) for a in range(len(shape)) if a != axis]
        start = 0
        if kinds == "tied" and rest[0][0] > n:
            start = draw(st.integers(0, rest[0][0] - n)) * rest[0][1]
        if kinds == "tied" and rest[0][0] >= n:
            dims += [(n, 1, rest[0][1])] + [(m, 0, s) for m, s in rest[1:]]
        else:
            dims += [(m, 0, s) for m, s in rest]
            dims += [(n, 1, 0)] if kinds == "dense" else []
        seed = draw(st.integers(0, 2**16))
        source = generator(seed)
        core = torch.randn([m for m, _, _ in dims], generator=source, dtype=f64)
        coef = torch.randn([1 if vs == 0 else m for m, _, vs in dims], generator=source, dtype=f64)
        chosen = draw(st.permutations(range(len(dims))))
        terms.append(
            Term(
                tuple(dims[d] for d in chosen),
                0,
                start,
                1.0,
                draw(st.sampled_from([None, coef.permute(chosen)])),
                draw(st.sampled_from([None, core.permute(chosen)])),
            )
        )
    return Tangent(B * n, shape, tuple(terms))


@law
@given(st.data())
def test_it_holds_where_samples_are_tied(data):
    B, n = data.draw(st.integers(2, 3)), data.draw(st.integers(1, 3))
    shape = data.draw(st.sampled_from([(B, 4), (B, 2, 3), (B, 4, B)]))
    a = data.draw(of_samples(B, n, shape))
    b = data.draw(of_samples(B, n, shape))
    for group in (1, n, B * n):
        agree(a, b, group)


def test_samples_that_are_tied_alike_meet_without_dense_rows():
    B, n, w = 64, 3, 10
    core = torch.randn(B, n, w, dtype=f64)
    tied = Tangent(B * n, (B, w), (Term(((B, n, w), (n, 1, 0), (w, 0, 1)), 0, 0, 1.0, None, core),))
    torch.testing.assert_close(tied.lazy().inner(tied.lazy(), n), core @ core.mT)
    assert math.prod(core.shape) * B > 100_000  # what the dense rows would hold
