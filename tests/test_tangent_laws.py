"""The laws of the tangent algebra, over random tangents.

Each verb on a structured tangent is the same operation on its dense form, and each verb and its
transpose are adjoint, seed by seed. Rules are written in these verbs and inherit the laws.
"""

import math
import string

import pytest
import torch
from drawing import generator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_tangents import Tangent, Term, f64, row_major, shapes, tangents, views

pytestmark = pytest.mark.ours

law = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def agree(lazy, expected):
    assert list(lazy.shape) == list(expected.shape[1:]) and lazy.K == expected.shape[0]
    rows = lazy.dense()
    assert rows.dtype == f64
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)


def flat(rows):
    return rows.reshape(rows.shape[0], -1)


def inner(a, b):
    """<a, b>, seed by seed."""
    return (flat(a) * flat(b)).sum(1)


def adjoint(forward, x, back, y):
    """<A x, y> = <x, A' y>."""
    torch.testing.assert_close(
        inner(forward.dense(), y.dense()), inner(x.dense(), back.dense()), rtol=1e-12, atol=1e-12
    )


def normal(draw, size):
    seed = draw(st.integers(0, 2**16))
    return torch.randn(list(size), generator=generator(seed), dtype=f64)


# ---- the representation --------------------------------------------------------------------------


@law
@given(tangents())
def test_dense_is_the_formula_of_the_header(t):
    agree(t.lazy(), t.dense())


@law
@given(tangents(), st.data())
def test_restricting_seeds_keeps_the_rows_below(t, data):
    end = data.draw(st.integers(0, t.K))
    kept = t.lazy().restrict_seeds(end).dense()
    torch.testing.assert_close(kept[:end], t.dense()[:end], rtol=0, atol=1e-12)


# ---- sums and factors ----------------------------------------------------------------------------


@law
@given(st.data())
def test_add_is_the_sum(data):
    a = data.draw(tangents())
    b = data.draw(tangents(a.shape, a.K))
    agree(a.lazy().add(b.lazy()), a.dense() + b.dense())


@law
@given(tangents(), st.data())
def test_terms_that_share_core_and_placement_merge(t, data):
    c = normal(data.draw, t.shape)
    lazy = t.lazy()
    total = lazy.add(lazy.scale(c)).add(lazy.scale(-0.5)).add(lazy.scale(c))
    agree(total, t.dense() * (0.5 + 2 * c))
    assert total.num_terms <= max(len(t.terms), 1)


@law
@given(tangents(), st.data())
def test_scaling_is_a_product_with_any_broadcastable_factor(t, data):
    lead = data.draw(st.integers(0, len(t.shape)))
    size = [1 if data.draw(st.booleans()) else n for n in t.shape[lead:]]
    c = normal(data.draw, size)
    if data.draw(st.booleans()):
        c = c.expand(t.shape)
    elif data.draw(st.booleans()):
        c = normal(data.draw, reversed(size)).permute(list(reversed(range(len(size)))))
    agree(t.lazy().scale(c), t.dense() * c)
    agree(t.lazy().scale(c).scale(c.exp()), t.dense() * c * c.exp())


@law
@given(tangents(), st.sampled_from([0.0, 1.0, -2.5]))
def test_scaling_by_a_number_touches_no_memory(t, alpha):
    scaled = t.lazy().scale(alpha)
    agree(scaled, t.dense() * alpha)
    assert scaled.stored == (t.lazy().stored if alpha else 0)


@law
@given(tangents(), st.data())
def test_scaling_is_its_own_transpose(t, data):
    y = data.draw(tangents(t.shape, t.K))
    c = normal(data.draw, t.shape)
    adjoint(t.lazy().scale(c), t, y.lazy().scale(c), y)


# ---- complex values ------------------------------------------------------------------------------


@law
@given(tangents(), st.data())
def test_a_complex_factor_makes_complex_values(t, data):
    c = torch.complex(normal(data.draw, t.shape), normal(data.draw, t.shape))
    scaled, rows = t.lazy().scale(c), t.dense() * c
    for lazy, expected in ((scaled, rows), (scaled.conj(), rows.conj().resolve_conj())):
        assert lazy.dense().dtype == torch.complex128
        torch.testing.assert_close(lazy.dense(), expected, rtol=1e-12, atol=1e-12)
    agree(scaled.real(), rows.real)
    agree(scaled.scale(c).real(), (rows * c).real)


@law
@given(tangents(), st.data())
def test_the_transpose_of_a_complex_factor_is_its_conjugate(t, data):
    """Of a complex number as two real ones: Re(conj(c x) y) = x Re(conj(c) y)."""
    c = torch.complex(normal(data.draw, t.shape), normal(data.draw, t.shape))
    y = torch.complex(normal(data.draw, t.shape), normal(data.draw, t.shape))
    unit = data.draw(tangents(t.shape, t.K)).lazy()
    forward, back = t.lazy().scale(c).dense(), unit.scale(y).scale(c.conj().resolve_conj()).real()
    pairs = torch.view_as_real(forward), torch.view_as_real(unit.scale(y).dense())
    torch.testing.assert_close(
        inner(*pairs), inner(t.dense(), back.dense()), rtol=1e-11, atol=1e-11
    )


# ---- shapes --------------------------------------------------------------------------------------


@st.composite
def broadcasts(draw):
    """A shape, and a wider one that it broadcasts to."""
    wide = draw(shapes)
    lead = draw(st.integers(0, len(wide)))
    return tuple(1 if draw(st.booleans()) else n for n in wide[lead:]), wide


@law
@given(tangents(), st.data())
def test_a_view_keeps_the_flat_values_and_every_term(t, data):
    n = math.prod(t.shape)
    a = data.draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
    for shape in [(n,), (a, n // a), (1, n, 1)]:
        seen = t.lazy().view(list(shape))
        agree(seen, t.dense().reshape(t.K, *shape))
        assert seen.stored == t.lazy().stored
        # What follows meets dimensions that straddle the new axes.
        c = normal(data.draw, shape)
        agree(seen.scale(c).sum([0], False), (t.dense().reshape(t.K, *shape) * c).sum(1))


@law
@given(broadcasts(), st.data())
def test_expand_repeats(pair, data):
    narrow, wide = pair
    t = data.draw(tangents(narrow))
    lead = (1,) * (len(wide) - len(narrow))
    agree(t.lazy().expand(list(wide)), t.dense().reshape(t.K, *lead, *narrow).expand(t.K, *wide))


@law
@given(broadcasts(), st.data())
def test_sum_to_undoes_a_broadcast(pair, data):
    narrow, wide = pair
    t = data.draw(tangents(wide))
    rows = torch.stack([row.sum_to_size(narrow) for row in t.dense()])
    agree(t.lazy().sum_to(list(narrow)), rows)


@law
@given(broadcasts(), st.data())
def test_expand_and_sum_to_are_adjoint(pair, data):
    narrow, wide = pair
    x = data.draw(tangents(narrow))
    y = data.draw(tangents(wide, x.K))
    adjoint(x.lazy().expand(list(wide)), x, y.lazy().sum_to(list(narrow)), y)


@law
@given(tangents(), st.booleans(), st.data())
def test_sum_is_the_sum_over_axes(t, keepdim, data):
    axes = [a for a in range(len(t.shape)) if data.draw(st.booleans())]
    rows = t.dense()
    if axes:
        rows = rows.sum([a + 1 for a in axes], keepdim=keepdim)
    agree(t.lazy().sum(axes, keepdim), rows)


# ---- strided views of the value ------------------------------------------------------------------


def geometry(index):
    return list(index.shape), list(index.stride()), index.storage_offset()


@law
@given(st.data())
def test_take_reads_a_strided_view(data):
    t = data.draw(tangents())
    index = data.draw(views(t.shape))
    rows = flat(t.dense())[:, index.flatten()].reshape(t.K, *index.shape)
    agree(t.lazy().take(*geometry(index)), rows)


@law
@given(st.data())
def test_put_adds_to_a_strided_view(data):
    shape = data.draw(shapes)
    index = data.draw(views(shape))
    t = data.draw(tangents(tuple(index.shape)))
    rows = torch.zeros(t.K, math.prod(shape), dtype=f64)
    rows.index_add_(1, index.flatten(), flat(t.dense()))
    agree(t.lazy().put(*geometry(index), list(shape)), rows.reshape(t.K, *shape))


@law
@given(st.data())
def test_take_and_put_are_adjoint(data):
    x = data.draw(tangents())
    index = data.draw(views(x.shape))
    y = data.draw(tangents(tuple(index.shape), x.K))
    g = geometry(index)
    adjoint(x.lazy().take(*g), x, y.lazy().put(*g, list(x.shape)), y)


# ---- products ------------------------------------------------------------------------------------

PRODUCTS = [
    ("mp", "pq", "mq"),  # matmul, T on the left
    ("pq", "mp", "mq"),  # matmul, T on the right
    ("bmp", "bpq", "bmq"),
    ("bpq", "bmp", "bmq"),
    ("bmp", "bpq", "mq"),  # summed over the batch as well
    ("mp", "p", "m"),
    ("p", "mp", "m"),
    ("p", "p", ""),
    ("mn", "mn", ""),
    ("m", "q", "mq"),  # outer
    ("q", "m", "mq"),
    ("mp", "qp", "qm"),  # transposed all round
    ("mp", "mp", "pm"),  # elementwise, transposed
    ("ABi", "oi", "ABo"),  # linear, leading axes
    ("oi", "ABi", "ABo"),
    ("ABo", "oi", "ABi"),
]


@st.composite
def products(draw):
    """Axes of a product and the size of each letter."""
    axes = draw(st.sampled_from(PRODUCTS))
    sizes = {
        c: draw(st.sampled_from([2, 3, 1])) for c in string.ascii_letters if c in "".join(axes)
    }
    return axes, sizes


def lay_out(draw, axes, sizes):
    """W with its axes in any order of memory."""
    order = draw(st.permutations(range(len(axes))))
    w = normal(draw, [sizes[axes[d]] for d in order])
    return w.permute([order.index(d) for d in range(len(axes))])


@law
@given(products(), st.data())
def test_einsum_is_einsum(product, data):
    (a, b, out), sizes = product
    t = data.draw(tangents(tuple(sizes[c] for c in a)))
    w = lay_out(data.draw, b, sizes)
    agree(t.lazy().einsum(a, w, b, out), torch.einsum(f"Z{a},{b}->Z{out}", t.dense(), w))


@law
@given(products(), st.data())
def test_einsum_with_its_roles_swapped_is_the_transpose(product, data):
    (a, b, out), sizes = product
    x = data.draw(tangents(tuple(sizes[c] for c in a)))
    y = data.draw(tangents(tuple(sizes[c] for c in out), x.K))
    w = lay_out(data.draw, b, sizes)
    adjoint(x.lazy().einsum(a, w, b, out), x, y.lazy().einsum(out, w, b, a), y)


# ---- linear maps along some axes -----------------------------------------------------------------


@law
@given(tangents(), st.data())
def test_a_flip_of_axes_is_the_flip(t, data):
    axes = [a for a in range(len(t.shape)) if data.draw(st.booleans())]
    agree(t.lazy().flip(axes), t.dense().flip([a + 1 for a in axes]))


@law
@given(tangents(), st.data())
def test_a_flip_is_its_own_transpose(t, data):
    axes = [a for a in range(len(t.shape)) if data.draw(st.booleans())]
    y = data.draw(tangents(t.shape, t.K))
    adjoint(t.lazy().flip(axes), t, y.lazy().flip(axes), y)


@st.composite
def axis_maps(draw):
    """A shape, an axis, and the matrix of each place on the others: [*carried or 1, out, in]."""
    shape = draw(shapes.filter(len))
    axis = draw(st.integers(0, len(shape) - 1))
    carried = [n if draw(st.booleans()) else 1 for a, n in enumerate(shape) if a != axis]
    w = normal(draw, (*carried, draw(st.sampled_from([2, 3, 1])), shape[axis]))
    return shape, axis, w


def mapped(rows, axis, w):
    """The map on [K, *S]."""
    along = rows.movedim(axis + 1, -1)
    return (w @ along.unsqueeze(-1)).squeeze(-1).movedim(-1, axis + 1)


@law
@given(axis_maps(), st.data())
def test_a_map_of_an_axis_is_the_map_of_each_line(case, data):
    shape, axis, w = case
    t = data.draw(tangents(shape))
    agree(t.lazy().map_axis(axis, w), mapped(t.dense(), axis, w))


@law
@given(axis_maps(), st.data())
def test_a_map_by_the_transposed_matrices_is_the_transpose(case, data):
    shape, axis, w = case
    x = data.draw(tangents(shape))
    out = (*shape[:axis], w.shape[-2], *shape[axis + 1 :])
    y = data.draw(tangents(out, x.K))
    adjoint(x.lazy().map_axis(axis, w), x, y.lazy().map_axis(axis, w.mT.contiguous()), y)


@law
@given(tangents(), st.data())
def test_a_map_of_all_axes_is_the_map_of_rows(t, data):
    w = normal(data.draw, (3, math.prod(t.shape)))
    agree(t.lazy().map_rows(w), flat(t.dense()) @ w.T)


# ---- places by index -----------------------------------------------------------------------------


@st.composite
def picks(draw, shape):
    """An axis, and an index of places on it, some of them twice or never."""
    axis = draw(st.integers(0, len(shape) - 1))
    places = draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=5))
    return axis, torch.tensor(places)


def unpicked(rows, axis, index, size):
    shape = list(rows.shape)
    shape[axis + 1] = size
    return torch.zeros(shape, dtype=rows.dtype).index_add(axis + 1, index, rows)


@law
@given(tangents().filter(lambda t: t.shape), st.data())
def test_pick_axis_reads_places_by_index(t, data):
    axis, index = data.draw(picks(t.shape))
    agree(t.lazy().pick_axis(axis, index), t.dense().index_select(axis + 1, index))


@law
@given(tangents().filter(lambda t: t.shape), st.data())
def test_unpick_axis_adds_at_places_by_index(t, data):
    axis = data.draw(st.integers(0, len(t.shape) - 1))
    size = data.draw(st.integers(1, 5))
    index = torch.tensor(
        [data.draw(st.integers(0, size - 1)) for _ in range(t.shape[axis])], dtype=torch.long
    )
    agree(t.lazy().unpick_axis(axis, index, size), unpicked(t.dense(), axis, index, size))


@law
@given(st.data())
def test_pick_axis_and_unpick_axis_are_adjoint(data):
    x = data.draw(tangents().filter(lambda t: t.shape))
    axis, index = data.draw(picks(x.shape))
    y = data.draw(tangents((*x.shape[:axis], len(index), *x.shape[axis + 1 :]), x.K))
    back = y.lazy().unpick_axis(axis, index, x.shape[axis])
    adjoint(x.lazy().pick_axis(axis, index), x, back, y)


AFTERWARDS = {
    "scale": (lambda t, c: t.scale(c), lambda rows, c: rows * c),
    "scale, broadcast": (lambda t, c: t.scale(c[..., :1]), lambda rows, c: rows * c[..., :1]),
    "view": (lambda t, c: t.view([c.numel()]), lambda rows, c: flat(rows)),
    "sum of an axis": (lambda t, c: t.sum([0], False), lambda rows, c: rows.sum(1)),
    "sum of the other": (lambda t, c: t.sum([1], True), lambda rows, c: rows.sum(2, True)),
    "part": (lambda t, c: t.take([2, 2], [2, 1], 2), lambda rows, c: rows[:, 1:3]),
    "part of the other": (lambda t, c: t.take([4], [2], 1), lambda rows, c: rows[:, :, 1]),
    "permutation": (lambda t, c: t.take([2, 4], [1, 2], 0), lambda rows, c: rows.mT),
    "put": (
        lambda t, c: t.put([4, 2], [4, 1], 1, [4, 4]),
        lambda rows, c: torch.nn.functional.pad(rows, (1, 1)),
    ),
    "flip": (lambda t, c: t.flip([0]), lambda rows, c: rows.flip(1)),
    "product": (
        lambda t, c: t.einsum("ij", c, "ik", "jk"),
        lambda rows, c: torch.einsum("Zij,ik->Zjk", rows, c),
    ),
    "reshape, then scale": (
        lambda t, c: t.view([c.numel()]).scale(c.flatten()),
        lambda rows, c: flat(rows) * c.flatten(),
    ),
    "reshape, then scale in part": (
        lambda t, c: t.view([2, 4]).scale(c.flatten()[:4]),
        lambda rows, c: rows.reshape(-1, 2, 4) * c.flatten()[:4],
    ),
    "reshape, then sum": (
        lambda t, c: t.view([2, 4]).sum([1], False),
        lambda rows, c: rows.reshape(-1, 2, 4).sum(2),
    ),
    "scattered again": (
        lambda t, c: t.unpick_axis(0, torch.tensor([1, 0, 1, 2]), 3),
        lambda rows, c: unpicked(rows, 0, torch.tensor([1, 0, 1, 2]), 3),
    ),
    "onto one place": (
        lambda t, c: t.unpick_axis(0, torch.zeros(4, dtype=torch.long), 1).scale(c[:1]),
        lambda rows, c: unpicked(rows, 0, torch.zeros(4, dtype=torch.long), 1) * c[:1],
    ),
    "gathered again": (
        lambda t, c: t.pick_axis(0, torch.tensor([1, 1, 3])),
        lambda rows, c: rows[:, [1, 1, 3]],
    ),
    "seeds cut": (lambda t, c: t.restrict_seeds(3), None),
    "real part": (lambda t, c: t.scale(c).real(), lambda rows, c: rows * c),
}


@pytest.mark.parametrize("verb", AFTERWARDS)
@pytest.mark.parametrize("scattered", [False, True], ids=["gathered", "scattered"])
def test_every_verb_takes_what_is_placed_by_index(verb, scattered):
    lazy, dense = AFTERWARDS[verb]
    places = torch.tensor([2, 0, 2, 3] if not scattered else [3, 1, 1, 0, 2])
    c, w = torch.randn(4, 2, dtype=f64), torch.randn(5, 2, dtype=f64)
    identity_rows = torch.eye(10, dtype=f64).view(10, 5, 2)
    x = identity(5, 2).lazy()
    if scattered:
        t = x.scale(w).unpick_axis(0, places, 4)
        rows = unpicked(identity_rows * w, 0, places, 4)
    else:
        t, rows = x.scale(w).pick_axis(0, places), (identity_rows * w)[:, places]
    agree(t, rows)
    result = lazy(t, c)
    if dense is None:
        torch.testing.assert_close(result.dense()[:3], rows[:3])
    else:
        agree(result, dense(rows, c))
    agree(result.add(result), 2 * result.dense())
    agree(
        lazy(t.add(x.scale(w).pick_axis(0, torch.arange(4))), c),
        lazy(t, c).dense() + lazy(x.scale(w).pick_axis(0, torch.arange(4)), c).dense(),
    )


# ---- chains --------------------------------------------------------------------------------------


@law
@given(tangents(), st.data())
def test_a_chain_of_verbs_is_the_chain_on_rows(t, data):
    lazy, rows = t.lazy(), t.dense()
    for _ in range(data.draw(st.integers(2, 5))):
        shape = list(lazy.shape)
        verbs = ["scale", "take", "sum", "product", "double", "view", "flip", "pick", "unpick"]
        verb = data.draw(st.sampled_from(verbs))
        if verb == "scale":
            c = normal(data.draw, shape)
            lazy, rows = lazy.scale(c), rows * c
        elif verb == "take":
            index = data.draw(views(tuple(shape)))
            lazy = lazy.take(*geometry(index))
            rows = flat(rows)[:, index.flatten()].reshape(t.K, *index.shape)
        elif verb == "sum" and shape:
            axis = data.draw(st.integers(0, len(shape) - 1))
            lazy, rows = lazy.sum([axis], False), rows.sum(axis + 1)
        elif verb == "product" and shape:
            axes = string.ascii_lowercase[: len(shape)]
            w = normal(data.draw, (shape[-1], 2))
            spec = (axes, f"{axes[-1]}Q", axes[:-1] + "Q")
            lazy = lazy.einsum(spec[0], w, spec[1], spec[2])
            rows = torch.einsum(f"Z{spec[0]},{spec[1]}->Z{spec[2]}", rows, w)
        elif verb == "flip" and shape:
            axis = data.draw(st.integers(0, len(shape) - 1))
            lazy, rows = lazy.flip([axis]), rows.flip(axis + 1)
        elif verb == "pick" and shape:
            axis, index = data.draw(picks(shape))
            lazy, rows = lazy.pick_axis(axis, index), rows.index_select(axis + 1, index)
        elif verb == "unpick" and shape:
            axis = data.draw(st.integers(0, len(shape) - 1))
            index = torch.arange(shape[axis]) % 3
            lazy = lazy.unpick_axis(axis, index, 3)
            rows = unpicked(rows, axis, index, 3)
        elif verb == "double":
            c = normal(data.draw, shape)
            lazy, rows = lazy.add(lazy.scale(c)), rows * (1 + c)
        else:
            lazy, rows = lazy.view([math.prod(shape)]), flat(rows)
        agree(lazy, rows)


# ---- structure that must survive -----------------------------------------------------------------


def identity(*shape):
    dims = tuple((n, s, s) for n, s in zip(shape, row_major(shape), strict=True))
    return Tangent(math.prod(shape), shape, (Term(dims, 0, 0, 1.0, None, None),))


def test_views_of_the_identity_store_nothing():
    x = identity(6, 4).lazy()
    chain = x.take([4, 3], [1, 8], 0).expand([5, 4, 3]).view([5, 12]).sum([0], False)
    assert x.stored == chain.stored == 0 and chain.num_terms == 1
    index = torch.arange(24).reshape(6, 4)[::2].t().flatten()
    agree(chain, 5 * torch.eye(24, dtype=f64)[:, index])


def test_a_product_over_a_tied_axis_stores_the_matrix_alone():
    w = torch.randn(4, 3, dtype=f64)
    y = identity(6, 4).lazy().einsum("bi", w, "io", "bo")
    assert y.num_terms == 1 and y.stored == w.numel()


def test_a_map_along_an_axis_keeps_the_ties_of_the_others():
    y = identity(6, 4).lazy().flip([1])
    assert y.num_terms == 1 and y.stored == 4 * 4
    w = torch.randn(6, 3, 4, dtype=f64)  # another matrix for each of the six
    y = identity(6, 4).lazy().map_axis(1, w)
    assert y.num_terms == 1 and y.stored == w.numel()


def test_gathered_and_scattered_rows_keep_their_ties():
    index = torch.tensor([3, 0, 3, 5, 1])
    edges = identity(6, 4).lazy().pick_axis(0, index)
    assert edges.num_terms == 1 and edges.stored == 0
    rows = torch.eye(24, dtype=f64).view(24, 6, 4)
    agree(edges, rows[:, index])
    w = torch.randn(5, 4, dtype=f64)
    energy = edges.scale(w).sum([1], False)
    agree(energy, (rows[:, index] * w).sum(2))
    back = energy.unpick_axis(0, index.flip(0), 6).view([2, 3])
    assert back.num_terms == 1 and back.stored == w.numel()
    expected = unpicked((rows[:, index] * w).sum(2), 0, index.flip(0), 6)
    agree(back, expected.view(24, 2, 3))


def test_many_small_terms_become_one_box():
    total = Tangent(40, (40,), ()).lazy()
    for i in range(40):
        row = Term(((40, 0, 1),), i, 0, float(i), None, torch.ones(40, dtype=f64))
        total = total.add(Tangent(40, (40,), (row,)).lazy())
    agree(total, torch.arange(40, dtype=f64)[:, None].expand(40, 40))
    assert total.num_terms == 1


def block_terms(offset):
    """Terms of [seeds (5, 4), values (3, 5, 2)] that share a tie of five; seeds begin at offset."""
    tie, normal = (5, 4, 2), torch.randn
    full = Term((tie, (3, 0, 10), (4, 1, 0), (2, 0, 1)), offset, 0, 0.5, None, normal(5, 3, 4, 2))
    slow = Term(((4, 1, 0), tie, (3, 0, 10)), offset, 1, 2.0, normal(1, 5, 3), normal(4, 5, 1))
    part = Term(((2, 2, 0), tie, (2, 0, 1)), offset + 1, 10, 1.0, None, normal(2, 5, 2))
    # One dimension that goes on within the blocks.
    fine = Term(((10, 2, 1),), offset, 20, 3.0, normal(10), None)
    terms = [full, slow, part, fine]
    return [
        Term(
            t.dims, t.k0, t.v0, t.alpha, *(f if f is None else f.to(f64) for f in (t.coef, t.core))
        )
        for t in terms
    ]


@pytest.mark.parametrize("offset", [0, 20, 7])
def test_terms_of_one_tie_become_one_box_of_its_blocks(offset):
    terms = [Tangent(40, (3, 5, 2), (t,)) for t in block_terms(offset)]
    total = Tangent(40, (3, 5, 2), ()).lazy()
    for t in terms:
        total = total.add(t.lazy())
    agree(total, sum(t.dense() for t in terms))
    # The first alone fills the blocks.
    assert total.num_terms == 1 and total.stored == 5 * 4 * 6


def test_boxes_of_blocks_do_not_span_seeds_of_different_terms():
    total, expected = Tangent(40, (3, 5, 2), ()).lazy(), torch.zeros(40, 3, 5, 2, dtype=f64)
    for t in (t for pair in zip(block_terms(0), block_terms(20), strict=True) for t in pair):
        one = Tangent(40, (3, 5, 2), (t,))
        total, expected = total.add(one.lazy()), expected + one.dense()
    agree(total, expected)
    assert total.num_terms == 2 and total.stored == 2 * 5 * 4 * 6


def test_an_empty_value_has_no_terms():
    one = Tangent(3, (1,), (Term(((3, 1, 0),), 0, 0, 1.0, None, None),)).lazy()
    for empty in (one.expand([0]), one.take([0], [1], 0), one.expand([2, 0])):
        assert empty.dense().numel() == 0
    agree(one.expand([0]).put([0], [1], 0, [4]), torch.zeros(3, 4, dtype=f64))
    agree(one.expand([0]).sum([0], False), torch.zeros(3, dtype=f64))
