"""Kernels that place: sums of parts, scattering by index, packed triangles; and half precision."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenarios import CASES

pytestmark = pytest.mark.ours

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

law = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def compiled():
    from hesse import _C

    return _C


def normal(shape, dtype, device="cpu"):
    return torch.randn(shape, dtype=torch.float64).to(device, dtype)


def close(found, exact, magnitude, terms, dtype):
    """Within the bound for sums of so many products, rounded once each time they are stored."""
    bound = (4 + terms) * torch.finfo(dtype).eps * (1 + magnitude)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=4 * bound)


# ---- sums of parts -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _cpu_is_the_default():
    """Oracles are on the host, whatever device is under test; the others say where they are."""
    with torch.device("cpu"):
        yield


@st.composite
def parts_of(draw, shape):
    """A strided view of a contiguous tensor: some places along each axis, perhaps a diagonal."""
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    sizes, steps, offset = [], [], 0
    for n, stride in zip(shape, strides, strict=True):
        start, step = draw(st.integers(0, n - 1)), draw(st.integers(1, 3))
        most = (n - 1 - start) // step + 1
        sizes.append(draw(st.sampled_from([most, draw(st.integers(1, most))])))
        steps.append(step * stride)
        offset += start * stride
    if draw(st.booleans()):  # the whole of it
        sizes, steps, offset = list(shape), strides, 0
    if len(sizes) > 1 and draw(st.booleans()):  # along a diagonal of the last two axes
        sizes[-2:], steps[-2:] = [min(sizes[-2:])], [steps[-1] + steps[-2]]
    if draw(st.integers(0, 9)) == 0:  # a sum
        sizes.append(3)
        steps.append(0)
    order = draw(st.permutations(range(len(sizes))))
    sizes, steps = [sizes[d] for d in order], [steps[d] for d in order]
    varies = [[draw(st.booleans()) for _ in sizes] if draw(st.booleans()) else None for _ in "ab"]
    return {
        "sizes": sizes,
        "steps": steps,
        "offset": offset,
        "varies": varies,
        "start": draw(st.integers(0, 2)),
        "alpha": draw(st.sampled_from([1.0, -0.5])),
    }


@st.composite
def sums(draw):
    rank = draw(st.integers(0, 4))
    shape = [draw(st.sampled_from([1, 2, 3, 4, 8, 9, 16, 33])) for _ in range(rank)]
    if math.prod(shape) > 20_000:
        shape[0] = 1
    return {
        "shape": shape,
        "start": draw(st.integers(0, 3)),
        "parts": [draw(parts_of(shape)) for _ in range(draw(st.integers(0, 11)))],
    }


@law
@given(s=sums())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_written_is_the_sum_of_the_parts_and_zero_elsewhere(kernels, dtype, s):
    kernels.take(dtype)
    n = math.prod(s["shape"])
    memory = torch.full([s["start"] + n + 3], math.nan, dtype=dtype, device=kernels.device)
    out = memory[s["start"] : s["start"] + n]
    exact, magnitude = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    given = []
    for p in s["parts"]:
        product, factors = torch.full(p["sizes"], p["alpha"], dtype=torch.float64), []
        for varies in p["varies"]:
            if varies is None:
                factors.append(None)
                continue
            shape = [m if v else 1 for m, v in zip(p["sizes"], varies, strict=True)]
            values = normal([p["start"] + math.prod(shape)], dtype)[p["start"] :].view(shape)
            factors.append(values.to(kernels.device))
            product = product * values.double()
        gone = [d for d, step in enumerate(p["steps"]) if step == 0]
        kept = [d for d, step in enumerate(p["steps"]) if step != 0]
        place = [p["sizes"][d] for d in kept], [p["steps"][d] for d in kept], p["offset"]
        for total, term in ((exact, product), (magnitude, product.abs())):
            view = total.as_strided(*place)
            view += term.sum(gone) if gone else term
        given.append((p["sizes"], p["steps"], p["offset"], *factors, p["alpha"]))
    compiled().write_sum(out, given)
    worst = magnitude.max().item() if n else 0
    close(out.cpu(), exact, worst, 4 * len(given), dtype)
    assert memory[: s["start"]].isnan().all() and memory[s["start"] + n :].isnan().all()


def test_a_block_of_many_diagonals_is_written_in_one_go(kernels):
    n = 513
    diagonals = [normal([n - abs(d)], torch.float64, kernels.device) for d in range(-3, 4)]
    parts = [
        ([v.numel()], [n + 1], max(d, 0) + max(-d, 0) * n, v, None, 1.0)
        for d, v in zip(range(-3, 4), diagonals, strict=True)
    ]
    out = torch.full([n, n], math.nan, dtype=torch.float64, device=kernels.device)
    compiled().write_sum(out, parts)
    expected = sum(torch.diag(v.cpu(), d) for d, v in zip(range(-3, 4), diagonals, strict=True))
    assert torch.equal(out.cpu(), expected)


def test_passes_of_many_axes_are_cut_into_passes_of_fewer(kernels):
    sizes, order = [2, 3] * 5 + [2], [6, 3, 9, 0, 5, 10, 2, 8, 1, 7, 4]
    strides = [0] * len(sizes)
    step = 1
    for d in reversed(order):
        strides[d], step = step, step * sizes[d]
    a, b = (normal(sizes, torch.float64) for _ in range(2))
    expected = (a * b).permute(order).reshape(-1)
    out = torch.full([step], math.nan, dtype=torch.float64, device=kernels.device)
    factors = [f.to(kernels.device) for f in (a, b)]
    compiled().combine(False, out, sizes, strides, 0, *factors, 1.0)
    assert torch.equal(out.cpu(), expected)
    strides[3] = strides[8] = 0  # summed over: what is left has gaps, so add
    out = torch.zeros([step], dtype=torch.float64, device=kernels.device)
    compiled().combine(True, out, sizes, strides, 0, *factors, 1.0)
    kept = [d for d in range(len(sizes)) if strides[d]]
    expected = torch.zeros([step], dtype=torch.float64)
    place = [sizes[d] for d in kept], [strides[d] for d in kept]
    expected.as_strided(*place).copy_((a * b).sum([3, 8]))
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-13, atol=1e-13)


def test_strides_beyond_32_bits_are_followed(kernels):
    step = 1 << 31
    try:
        far = torch.empty(2 * step + 1, dtype=torch.float16, device=kernels.device)
    except RuntimeError:
        pytest.skip("no room for 8 GiB of addresses")
    kernels.take(torch.float16)
    factor = far.as_strided([3], [step])
    factor.copy_(torch.tensor([1.0, 2.0, 3.0]))
    out = torch.full([3], math.nan, dtype=torch.float16, device=kernels.device)
    compiled().combine(False, out, [3], [1], 0, factor, None, 2.0)
    assert out.tolist() == [2, 4, 6]
    compiled().combine(False, out[:1], [3], [0], 0, factor, factor, 1.0)
    assert out.tolist() == [14, 4, 6]
    compiled().write_sum(out, [([3], [1], 0, factor, None, 1.0), ([1], [1], 2, None, None, 5.0)])
    assert out.tolist() == [1, 2, 8]
    compiled().combine(False, factor, [3], [step], 0, out, None, 1.0)
    assert factor.tolist() == [1, 2, 8]


# ---- scattering by index -------------------------------------------------------------------------


@st.composite
def scatters(draw):
    """Axes placed by a stride, by an index, or by two; places may meet."""
    axes = []
    for _ in range(draw(st.integers(0, 4))):
        n = draw(st.integers(0, 9))
        places = st.lists(st.integers(0, 6), min_size=n, max_size=n)
        by = [(draw(places), draw(st.integers(1, 5))) for _ in range(draw(st.integers(0, 2)))]
        axes.append((n, draw(st.integers(0, 3)), by))
    varies = [[draw(st.booleans()) for _ in axes] if draw(st.booleans()) else None for _ in "ab"]
    return axes, varies, draw(st.integers(0, 4)), draw(st.sampled_from([1.0, -0.5]))


@law
@given(s=scatters(), in_order=st.booleans())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elements_are_added_where_the_indices_say(kernels, dtype, s, in_order):
    kernels.take(dtype)
    axes, varies, offset, alpha = s
    sizes = [n for n, _, _ in axes]
    place = torch.full([1] * len(axes), offset)
    raw = []
    for d, (n, stride, by) in enumerate(axes):
        along = [n if e == d else 1 for e in range(len(axes))]
        own = torch.arange(n) * stride
        for index, step in by:
            own = own + torch.tensor(index, dtype=torch.int64) * step
        place = place + own.view(along)
        tensors = [
            (torch.tensor(i, dtype=torch.int64, device=kernels.device), step) for i, step in by
        ]
        raw.append((n, stride, tensors))
    factors, product = [], torch.full(sizes, alpha, dtype=torch.float64)
    for v in varies:
        if v is None:
            factors.append(None)
            continue
        # Small whole numbers: sums are exact in any order, in half precision too.
        values = torch.randint(-2, 3, [n if x else 1 for n, x in zip(sizes, v, strict=True)])
        factors.append(values.to(kernels.device, dtype))
        product = product * values
    expected = torch.zeros(offset + 400, dtype=torch.float64)
    expected.index_add_(0, place.expand(sizes).reshape(-1), product.reshape(-1))
    out = torch.zeros(expected.numel(), dtype=dtype, device=kernels.device)
    torch.use_deterministic_algorithms(in_order)
    try:
        compiled().scatter_add(out, raw, offset, *factors, alpha)
    finally:
        torch.use_deterministic_algorithms(False)
    if expected.abs().max() <= 128:  # as whole numbers and halves in bfloat16
        assert torch.equal(out.cpu().double(), expected)


# ---- packed triangles ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize(
    ("row", "column", "rows", "columns"),
    [(0, 0, 1, 1), (0, 0, 70, 70), (3, 0, 33, 5), (40, 7, 30, 63), (0, 31, 97, 66), (5, 0, 0, 5)],
)
def test_parts_of_a_triangle_go_to_their_places(kernels, row, column, rows, columns, turned, dtype):
    n = max(row + rows, column + columns)
    matrix = torch.zeros(n, n, dtype=dtype)
    part = normal([columns, rows] if turned else [rows, columns], dtype)
    part = part.T if turned else part
    matrix[row : row + rows, column : column + columns] = part
    at = torch.tril_indices(n, n)
    packed = torch.zeros(n * (n + 1) // 2, dtype=dtype, device=kernels.device)
    compiled().pack_lower(packed, part.to(kernels.device), row, column)
    assert torch.equal(packed.cpu(), matrix[at[0], at[1]])


# ---- half precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number_is_read_and_written_as_it_is(kernels, dtype):
    kernels.take(dtype)
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    given = every.to(kernels.device)
    out = torch.empty_like(given)
    compiled().combine(False, out, [given.numel()], [1], 0, given, None, 1.0)
    out = out.cpu()
    nan = every.isnan()
    assert torch.equal(out[~nan].view(torch.int16), every[~nan].view(torch.int16))
    assert out[nan].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_products_in_half_precision_are_rounded_once_to_the_nearest(kernels, dtype):
    kernels.take(dtype)
    bits = torch.randint(-(1 << 15), 1 << 15, [2, 100_000], dtype=torch.int32).to(torch.int16)
    a, b = bits.view(dtype)
    b = torch.where(torch.rand(b.shape) < 0.5, b, torch.randn(b.shape).to(dtype))
    expected = (a.float() * b.float()).to(dtype)
    out = torch.empty_like(a, device=kernels.device)
    factors = [f.to(kernels.device) for f in (a, b)]
    compiled().combine(False, out, [a.numel()], [1], 0, *factors, 1.0)
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sums", [1, 3, 5000])
def test_sums_of_half_precision_are_formed_in_single(kernels, dtype, sums):
    kernels.take(dtype)
    n = 4096  # ones: in the type itself the sum would stop at 2048, or 256
    out = torch.empty(sums, dtype=dtype, device=kernels.device)
    compiled().combine(False, out, [sums, n], [1, 0], 0, None, None, 0.25)
    assert (out == n / 4).all()


def test_sums_do_not_depend_on_who_is_first(kernels):
    a, b = (normal([64, 5000], torch.float32, kernels.device) for _ in range(2))
    found = []
    for _ in range(3):
        out = torch.empty(64, device=kernels.device)
        compiled().combine(False, out, [64, 5000], [1, 0], 0, a, b, 1.0)
        found.append(out)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


# ---- the engine on the bodies of the CUDA kernels ------------------------------------------------

SAMPLE = [
    case
    for cases in CASES.values()
    for case in cases
    if case.layout in ("plain", "float32", "non-contiguous")
][::3]


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_the_rules_agree_on_the_bodies_of_the_cuda_kernels(case):
    inputs = case.inputs()
    torch.manual_seed(0)
    ys = case.scenario.fn(*inputs)
    ys = [y for y in ([ys] if isinstance(ys, torch.Tensor) else ys) if y.requires_grad]
    xs = [x for x in inputs if x.requires_grad]
    gys = [torch.randn_like(y) for y in ys]
    lin = compiled().linearize(ys, xs, gys, False)
    available = compiled().instruction_sets()
    found = {}
    for name in ("bodies", available[-1]):
        compiled().use_instruction_set(name)
        try:
            found[name] = lin.hessian(None, False), lin.hessian(2, False)
        finally:
            compiled().use_instruction_set(available[-1])
    torch.testing.assert_close(
        found["bodies"], found[available[-1]], equal_nan=True, **case.tolerance
    )
