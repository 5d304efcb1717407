"""The kernels against slow references, in every loop order, tile and instruction set."""

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = [pytest.mark.ours, pytest.mark.cpu]

LARGEST = 40_000  # elements of one pass
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = (1, 2, 3, 7, 8, 9, 16, 17, 33, 65, 130)


@st.composite
def passes(draw):
    """Sizes, which axes are summed over, and how `out` and both factors lie in memory."""
    sizes, total = [], 1
    for _ in range(draw(st.integers(0, 5))):
        sizes.append(draw(st.sampled_from([n for n in SIZES if n * total <= LARGEST])))
        total *= sizes[-1]
    axes = range(len(sizes))
    return {
        "sizes": sizes,
        "summed": [draw(st.booleans()) for _ in axes],
        "order": draw(st.permutations(axes)),
        "factors": [
            draw(
                st.none()
                | st.tuples(
                    st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)),
                    st.permutations(axes),
                    st.integers(1, 3),
                    st.integers(0, 2),
                )
            )
            for _ in range(2)
        ],
        "alpha": draw(st.sampled_from([1.0, -2.5])),
        "add": draw(st.booleans()),
        "offset": draw(st.integers(0, 5)),
    }


def strided(values, order, step, start):
    """The same values in memory of their own: axes in this order, every `step`-th from `start`."""
    memory = torch.zeros(start + values.numel() * step, dtype=values.dtype, device=values.device)
    memory = memory[start:].view([values.shape[d] for d in order] + [step])[..., 0]
    view = memory.permute([list(order).index(d) for d in range(values.dim())])
    return view.copy_(values)


def factor(drawn, sizes, dtype, device):
    if drawn is None:
        return None
    varies, order, step, start = drawn
    shape = [n if v else 1 for n, v in zip(sizes, varies, strict=True)]
    return strided(torch.randn(shape, dtype=torch.float64).to(device, dtype), order, step, start)


def check(p, dtype, device="cpu"):
    from hesse import _C

    sizes, summed = p["sizes"], p["summed"]
    alpha = p["alpha"] / (8 if dtype == torch.float16 else 1)  # sums stay below its largest number
    a, b = (factor(f, sizes, dtype, device) for f in p["factors"])
    strides, step = [0] * len(sizes), 1
    for d in reversed(p["order"]):
        if not summed[d]:
            strides[d], step = step, step * sizes[d]
    offset = p["offset"] if p["add"] else 0
    out = torch.randn(offset + step + (3 if p["add"] else 0), dtype=torch.float64).to(device, dtype)

    product = torch.full(sizes, alpha, dtype=torch.float64, device=device)
    for f in (a, b):
        product = product if f is None else product * f.double()
    gone = [d for d in range(len(sizes)) if summed[d]]
    total = product.sum(gone) if gone else product
    magnitude = product.abs().sum(gone) if gone else product.abs()
    kept = [d for d in range(len(sizes)) if not summed[d]]
    place = [sizes[d] for d in kept], [strides[d] for d in kept], offset
    expected = out.double()
    target = expected.as_strided(*place)
    target.copy_(target + total if p["add"] else total)

    _C.combine(p["add"], out, sizes, strides, offset, a, b, alpha)
    # n products summed in any order: n eps sum |a b| (Higham, Accuracy and Stability, 3.1).
    terms = 4 + product.numel() // max(total.numel(), 1)
    bound = terms * torch.finfo(dtype).eps * (1 + magnitude.max().item())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=4 * bound)


law = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@law
@given(p=passes())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_combine_is_a_product_placed_and_summed(kernels, dtype, p):
    kernels.take(dtype)
    check(p, dtype, kernels.device)


@law
@given(p=passes())
def test_combine_without_loops_of_its_own_is_the_same(p):
    check(p, torch.float16)


SHARED = {  # sizes, the order in which `out` has them, the axes that each factor has
    "smooth": ((400, 700), (0, 1), "11", "01"),
    "transposed": ((400, 700), (1, 0), "11", "10"),
    "transposed by tiles": ((5, 64, 96), (0, 2, 1), "111", "110"),
    "both transposed by tiles": ((64, 3, 64), (2, 1, 0), "101", "111"),
    "pairs of atoms": ((170, 3, 170, 3), (0, 1, 2, 3), "1110", "1011"),
    "pairs, transposed": ((170, 3, 170, 3), (2, 3, 0, 1), "1110", "1011"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("add", [False, True], ids=["write", "add"])
@pytest.mark.parametrize("name", SHARED)
def test_threads_share_a_large_pass(kernels, name, add, dtype):
    sizes, order, *axes = SHARED[name]
    factors = [([c == "1" for c in has], tuple(range(len(sizes))), 1, 0) for has in axes]
    p = {"sizes": list(sizes), "summed": [False] * len(sizes), "order": order}
    threads = torch.get_num_threads()
    for n in (1, 2):
        torch.set_num_threads(n)
        try:
            drawn = {**p, "factors": factors, "alpha": 1.5, "add": add, "offset": 0}
            check(drawn, dtype, kernels.device)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 31, 32, 33, 64, 65, 96, 97, 300])
def test_mirror_completes_a_symmetric_matrix(kernels, n, dtype):
    from hesse import _C

    matrix = torch.randn(n, n, dtype=torch.float64).to(kernels.device, dtype)
    expected = matrix.triu() + matrix.triu(1).T
    _C.mirror_upper(matrix)
    assert torch.equal(matrix, expected)


# ---- large blocks that are reused ----------------------------------------------------------------

LARGE = 1 << 19  # float32 elements: 2 MiB


def block(*size):
    from hesse import _C

    return _C.fresh(list(size), torch.empty(0))


def test_a_large_block_that_was_given_back_is_used_again():
    from hesse import _C

    _C.drop_idle_blocks()  # of other tests
    first = block(LARGE)
    address = first.data_ptr()
    del first
    second = block(LARGE // 4, 4)
    assert second.data_ptr() == address and second.is_contiguous()


def test_blocks_in_use_do_not_overlap():
    blocks = [block(LARGE).fill_(i) for i in range(5)]
    del blocks[1]
    blocks.append(block(LARGE).fill_(9))
    assert [b.unique().tolist() for b in blocks] == [[0], [2], [3], [4], [9]]


def test_a_large_block_is_an_ordinary_tensor():
    t = block(LARGE).zero_()
    assert t.untyped_storage().nbytes() == 4 * LARGE and t.data_ptr() % 64 == 0
    t.resize_(2 * LARGE)
    assert t[:LARGE].abs().sum() == 0
    assert torch.equal(t.clone()[:LARGE], t[:LARGE])


def test_threads_take_and_give_back_blocks_at_once():
    wrong = []

    def work(value):
        for _ in range(50):
            t = block(LARGE).fill_(value)
            if t[0] != value or t[-1] != value:
                wrong.append(value)

    workers = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert wrong == []
