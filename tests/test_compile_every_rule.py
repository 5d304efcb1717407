"""A recording of any rule, played for other values, gives what an eager call gives there."""

import pytest
import torch
from scenarios import CASES, TABLE

import hesse

pytestmark = pytest.mark.ours


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seed():
    torch.manual_seed(0)


def scalar(fn):
    """A function with curvature of every output of fn."""

    def func(*xs):
        ys = fn(*xs)
        ys = [ys] if isinstance(ys, torch.Tensor) else list(ys)
        ys = [y for y in ys if y.is_floating_point() or y.is_complex()]
        ys = [torch.view_as_real(y) if y.is_complex() else y for y in ys]
        return sum((y.sum() + 0.5 * (y * y).sum() for y in ys), torch.zeros((), dtype=xs[0].dtype))

    return func


def moved(x):
    """Other values in the same intervals."""
    return 0.8 * x + 0.2 * x.flip(list(range(x.dim())))


EAGER = {
    "ctc_loss, mean",  # PyTorch writes the lengths into a tensor by hand
    "_unsafe_masked_index",  # autograd keeps a copy of the mask that the op makes
    "_unsafe_masked_index_put_accumulate",
}
# The op has a stand-in for as long as the function runs.
PLAYABLE = [s for s in TABLE if "oneDNN's layer" not in s.name]


@pytest.mark.parametrize("scenario", PLAYABLE, ids=lambda s: s.name)
def test_a_played_recording_is_an_eager_call(scenario):
    case = CASES[scenario][0]
    here = tuple(x.detach() for x in case.inputs())
    there = tuple(moved(x) for x in here)
    func = scalar(scenario.fn)
    with hesse.fallback("silent"):
        seed()
        compiled = hesse.compile(func, here)
        assert (compiled.eager is not None) == (scenario.name in EAGER), compiled.eager
        seed()
        expected = hesse.hessian(func, there)
        seed()
        results = compiled(there)
    assert compiled.recordings <= 1
    torch.testing.assert_close(results, expected, equal_nan=True, **case.tolerance)
