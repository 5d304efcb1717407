"""The benchmark's own arithmetic: every closed form is the Hessian, every JAX twin the function."""

import dataclasses
import json

import pytest
import torch

from bench import device, measure
from bench.__main__ import main
from bench.case import Draw, Problem, flatten
from bench.peers import PEERS
from bench.problems import PROBLEMS
from bench.reference import disagreement
from bench.reference import reference as reference_of

pytestmark = pytest.mark.cpu

TINY = [(name, size) for name, p in PROBLEMS.items() for size in p.sizes if size <= 16]
SMALL = TINY + [(name, 128) for name in ("mixture",)] + [("mlp_params", 51), ("softmax", 250)]


def reference(case):
    return flatten(torch.autograd.functional.hessian(case.func, case.args), case.inputs)


@pytest.mark.parametrize(("name", "size"), SMALL)
def test_the_closed_form_is_the_hessian(name, size):
    case = PROBLEMS[name].make(size, torch.float64, "cpu")
    if case.hand is None:
        pytest.skip(f"{name} has no closed form")
    torch.testing.assert_close(
        flatten(case.hand(*case.inputs), case.inputs), reference(case), rtol=1e-9, atol=1e-11
    )


@pytest.fixture
def without_data(monkeypatch):
    """Cases on the meta device, at sizes whose data would take long to draw."""

    def shape(self, *shape, **_):
        return torch.empty(*shape, dtype=self._dtype, device=self._device)

    monkeypatch.setattr(Draw, "normal", shape)
    monkeypatch.setattr(Draw, "uniform", shape)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_size_is_the_number_of_input_elements(problem: Problem, without_data):
    for size in {*problem.sizes, *problem.gpu_sizes}:
        assert problem.make(size, torch.float32, "meta").numel == size


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_sizes_of_a_gpu_have_a_gradient_and_a_closed_form(problem: Problem, without_data):
    for size in problem.gpu_sizes:
        case = problem.make(size, torch.float32, "meta")
        assert case.work.bytes(size, 4) > 4 * size**2
        inputs = [x.requires_grad_() for x in case.inputs]
        gradient = torch.autograd.grad(case.func(*inputs), inputs)
        assert [g.shape for g in gradient] == [x.shape for x in inputs]
        if case.hand is not None:
            with torch.no_grad():
                value = case.hand(*inputs)
            assert value.numel() == size**2 and value.is_meta


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_sizes_ascend_and_the_largest_on_a_gpu_fills_it(problem: Problem):
    for sizes in (problem.sizes, problem.quick, problem.gpu_sizes):
        assert list(sizes) == sorted(set(sizes))
    assert set(problem.quick) <= set(problem.sizes)
    assert problem.sizes_on("cpu") == problem.sizes
    assert problem.sizes_on("cpu", quick=True) == problem.quick
    assert problem.sizes_on("cuda") == problem.gpu_sizes
    assert problem.sizes_on("cuda", quick=True) == problem.gpu_sizes[:2]
    low, high = (16_000, 16_384) if problem.structured else (6_000, 8_192)
    assert low <= problem.gpu_sizes[-1] <= high
    assert problem.gpu_sizes[0] < 128


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_data_is_the_same_in_every_dtype(problem: Problem):
    single = problem.make(problem.sizes[0], torch.float32, "cpu")
    double = problem.make(problem.sizes[0], torch.float64, "cpu")
    for x, y in zip(single.inputs, double.inputs, strict=True):
        assert torch.equal(x, y.float())
    assert single.func(*single.inputs).item() == pytest.approx(
        double.func(*double.inputs).item(), rel=1e-4, abs=1e-5
    )


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_jax_twin_has_the_value_of_the_function(problem: Problem):
    jax = pytest.importorskip("jax")
    from bench.case import array

    case = problem.make(problem.sizes[0], torch.float32, "cpu")
    value = case.jax(jax)(*(array(jax, x) for x in case.inputs))
    assert float(value) == pytest.approx(case.func(*case.inputs).item(), rel=1e-4, abs=1e-5)


def test_flatten_joins_the_blocks_of_a_tuple():
    inputs = (torch.randn(2, 3), torch.randn(4))
    h = torch.autograd.functional.hessian(lambda a, b: (a.sum() * b).prod(), inputs)
    whole = flatten(h, inputs)
    assert whole.shape == (10, 10)
    assert torch.equal(whole[:6, 6:], h[0][1].reshape(6, 4).double())
    assert torch.equal(whole, flatten(whole.float(), inputs))


def test_a_peer_that_disagrees_is_not_timed():
    problem = PROBLEMS["rosenbrock"]
    case = problem.make(4, torch.float64, "cpu")
    wrong = dataclasses.replace(case, hand=lambda x: case.hand(x) * (1 + 1e-6))
    expected = reference_of(case)
    assert measure.agree(PEERS["hand"], case, expected)[1] is not None
    result, ready = measure.agree(PEERS["hand"], wrong, expected)
    assert ready is None and result.wrong and result.refusal.startswith("disagrees")


def test_a_small_block_beside_a_large_one_counts():
    expected = torch.diag(torch.tensor([1e6, 1.0], dtype=torch.float64))
    value = expected.clone()
    value[1, 1] = 2
    assert disagreement(value, expected) == pytest.approx(1)


def test_a_run_writes_a_line_for_each_peer(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(device.COPIED, "cpu", 2**16)
    monkeypatch.setitem(device.SIDE, "cpu", 32)
    arguments = "--problems rosenbrock --sizes 4 --peers hand gradient --rounds 3 --no-memory --out"
    assert main([*arguments.split(), str(tmp_path)]) == 0
    lines = [json.loads(x) for x in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [x["peer"] for x in lines if x["line"] == "result"] == ["hand", "gradient"]
    assert all(x["samples"] == 3 for x in lines if x["line"] == "result")
    assert "Rosenbrock" in capsys.readouterr().out
