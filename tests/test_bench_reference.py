"""A sample of the rows, with products, accepts what is right and sees what is wrong."""

import pytest
import torch

from bench.case import flatten
from bench.measure import TOLERANCE
from bench.problems import PROBLEMS
from bench.reference import Whole, reference, sample

SIZES = {
    "rosenbrock": 64,
    "logistic": 256,
    "softmax": 250,
    "mlp_params": 433,
    "mlp_inputs": 256,
    "lennard_jones": 255,
    "network": 255,
    "attention": 256,
    "ackley": 1024,
    "mixture": 128,
    "cnn": 105,
}
ROWS, SIGNS = 12, 8


@pytest.mark.parametrize("name", SIZES)
def test_a_sample_accepts_the_hessian_in_float32_and_in_float64(name):
    exact = PROBLEMS[name].make(SIZES[name], torch.float64, "cpu")
    expected = sample(exact, ROWS, SIGNS)
    for dtype, limit in TOLERANCE.items():
        case = PROBLEMS[name].make(SIZES[name], dtype, "cpu")
        value = torch.autograd.functional.hessian(case.func, case.args)
        assert expected.error(flatten(value, case.inputs)) < limit


@pytest.mark.parametrize("name", ["rosenbrock", "mlp_params", "lennard_jones"])
def test_a_sample_has_the_rows_and_products_of_the_hessian(name):
    case = PROBLEMS[name].make(SIZES[name], torch.float64, "cpu")
    expected, whole = sample(case, ROWS, SIGNS), reference(case)
    assert isinstance(whole, Whole)
    torch.testing.assert_close(expected.rows, whole.matrix[expected.index])
    torch.testing.assert_close(expected.products, whole.matrix @ expected.directions)
    assert expected.index[0] == 0 and expected.index[-1] == case.numel - 1
    norms = whole.matrix.norm(dim=1)
    assert (expected.scale / norms).log().abs().max() < 1.5


@pytest.mark.parametrize("name", ["rosenbrock", "mlp_params", "lennard_jones"])
def test_a_sample_sees_one_wrong_element_in_any_row(name):
    case = PROBLEMS[name].make(SIZES[name], torch.float64, "cpu")
    expected, matrix = sample(case, ROWS, SIGNS), reference(case).matrix
    norms = matrix.norm(dim=1)
    for i, j in torch.randint(case.numel, (20, 2)).tolist():
        wrong = matrix.clone()
        wrong[i, j] += (norms[i] * norms[j]).sqrt()
        assert expected.error(wrong) > 1e-2 > TOLERANCE[torch.float32]


def test_a_sample_does_not_pass_nan():
    case = PROBLEMS["rosenbrock"].make(64, torch.float64, "cpu")
    expected, value = sample(case, 4, 2), reference(case).matrix
    value[1, 1] = float("nan")
    assert 1 not in expected.index
    assert not expected.error(value) <= 1e9
