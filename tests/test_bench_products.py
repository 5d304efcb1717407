"""The ways of every question of ``bench.products`` agree with its answer, at tiny sizes."""

import pytest
import torch

import hesse
from bench import networks
from bench.measure import admit
from bench.questions import QUESTIONS, batch, diagonal, hvp
from bench.questions.question import deviation

pytestmark = pytest.mark.ours

SMALL = {
    "hvp": {
        "MLP": lambda dtype: hvp.directed(networks.mlp(dtype, widths=(5, 4, 3)), 16),
    },
    "batch": {
        "network": lambda dtype: batch.network(dtype, 6, (2, 5, 5, 3)),
        "Rosenbrock": lambda dtype: batch.rosenbrock(dtype, 5, 4),
        "particles": lambda dtype: batch.particles(dtype, 4, 3),
    },
    "diagonal": {
        "separable": lambda dtype: diagonal.separable(dtype, 20),
        "per-sample": lambda dtype: diagonal.per_sample(dtype, 5, 3, 4),
        "logistic": lambda dtype: diagonal.logistic(dtype, 12, 5),
    },
}
CASES = [(name, case) for name, cases in SMALL.items() for case in cases]


@pytest.mark.parametrize("name, case", CASES)
def test_every_way_agrees(name, case):
    question, make = QUESTIONS[name], SMALL[name][case]
    exact = make(torch.float64)
    expected = question.expected(exact)
    ours = 0
    with hesse.fallback("error"):
        for way in question.ways:
            result, _ = admit(way, exact, lambda v: deviation(question.read(v), expected))
            assert not result.wrong, f"{way.name}: {result.refusal}"
            if way.kind == "ours" and not result.refusal.startswith("not with"):
                assert not result.refusal and result.error < 1e-9, way.name
                ours += 1
    assert ours > 0


def test_every_question_is_tested():
    assert set(SMALL) == set(QUESTIONS)
