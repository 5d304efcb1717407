"""The ways of every question of ``bench.products`` agree with its answer, at tiny sizes."""

import dataclasses
import json
from functools import partial

import pytest
import torch

import hesse
from bench import networks, products
from bench.measure import admit
from bench.peers import Peer, Refusal
from bench.questions import QUESTIONS, batch, diagonal, hvp
from bench.questions.question import deviation

pytestmark = [pytest.mark.ours, pytest.mark.cpu]

GPT = {"vocabulary": 7, "length": 4, "width": 8, "heads": 2, "batch": 2}
NETWORKS = {
    "MLP": partial(networks.mlp, widths=(5, 4, 3)),
    "ResNet": partial(networks.resnet, width=2, batch=2, side=8),
    "GPT, flash": partial(networks.gpt, **GPT),
    "GPT, math": partial(networks.gpt, **GPT, math=True),
}
SMALL = {
    "hvp": {
        name: lambda dtype, make=make: hvp.directed(make(dtype), 16)
        for name, make in NETWORKS.items()
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


def test_attention_in_plain_ops_has_the_value_of_the_fused():
    flash, plain = (NETWORKS[f"GPT, {kernel}"](torch.float64) for kernel in ("flash", "math"))
    value = plain.func(*plain.inputs)
    torch.testing.assert_close(flash.func(*flash.inputs), value)
    torch.testing.assert_close(flash.for_stock(*flash.inputs), value)


def test_more_directions_begin_with_the_same_ones():
    few, many = (hvp.directed(NETWORKS["MLP"](torch.float64), K) for K in (2, 5))
    assert all(map(torch.equal, few.directions, many.first(2)))


def test_an_error_in_a_small_input_shows_beside_a_large_one():
    expected = [torch.tensor([[1e2], [1e2]]), torch.ones(2, 2)]
    value = [e.clone() for e in expected]
    value[1][1, 0] = 1.5
    assert deviation(value, expected) == pytest.approx(0.5)
    assert deviation([v[:1] for v in value], expected) == 0


def test_a_run_writes_a_line_for_each_way_and_says_why_one_has_no_time(
    tmp_path, capsys, monkeypatch
):
    def refuse(case):
        raise Refusal("has no such kernel")

    question = QUESTIONS["diagonal"]
    ways = (*question.ways, Peer("other", "stock", refuse, ""))
    cases = {"logistic": lambda dtype, quick: diagonal.logistic(dtype, 12, 5)}
    tiny = dataclasses.replace(question, cases=cases, ways=ways)
    monkeypatch.setitem(products.QUESTIONS, "diagonal", tiny)
    arguments = "--quick --rounds 3 --only diagonal --out"
    assert products.main([*arguments.split(), str(tmp_path)]) == 0
    lines = [json.loads(x) for x in (tmp_path / "products.jsonl").read_text().splitlines()]
    assert [x["peer"] for x in lines if x["line"] == "result"] == [way.name for way in ways]
    assert (
        "| logistic | other | - | - | has no such kernel |"
        in (tmp_path / "products.md").read_text()
    )
    assert "has no such kernel" in capsys.readouterr().out
