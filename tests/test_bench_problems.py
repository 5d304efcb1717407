"""The benchmark's own arithmetic: every closed form is the Hessian, every JAX twin the function."""

import dataclasses
import json

import pytest
import torch

from bench import measure
from bench.__main__ import main
from bench.case import Problem, flatten
from bench.peers import PEERS
from bench.problems import PROBLEMS

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


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_size_is_the_number_of_input_elements(problem: Problem):
    for size in problem.sizes:
        assert problem.make(size, torch.float32, "cpu").numel == size
    assert set(problem.quick) <= set(problem.sizes)


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
    expected = measure.reference(problem, 4, "cpu")
    assert measure.agree(PEERS["hand"], case, expected)[1] is not None
    result, ready = measure.agree(PEERS["hand"], wrong, expected)
    assert ready is None and result.wrong and result.refusal.startswith("disagrees")


def test_a_small_block_beside_a_large_one_counts():
    expected = torch.diag(torch.tensor([1e6, 1.0], dtype=torch.float64))
    value = expected.clone()
    value[1, 1] = 2
    assert measure.disagreement(value, expected) == pytest.approx(1)


def test_a_run_writes_a_line_for_each_peer(tmp_path, capsys):
    arguments = "--problems rosenbrock --sizes 4 --peers hand gradient --rounds 3 --no-memory --out"
    assert main([*arguments.split(), str(tmp_path)]) == 0
    lines = [json.loads(x) for x in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [x["peer"] for x in lines if x["line"] == "result"] == ["hand", "gradient"]
    assert all(x["samples"] == 3 for x in lines if x["line"] == "result")
    assert "Rosenbrock" in capsys.readouterr().out
