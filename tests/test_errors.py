"""Misuse raises what stock raises, in its words and order; the rest says what to do."""

import importlib
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from outcome import FLAGS, flags_id, outcome
from torch.autograd.functional import hessian as stock

x3 = torch.tensor([0.5, 1.0, 2.0])


def cubes(x):
    return (x**3).sum()


# name -> (func, inputs, flags or {} for every combination)
MISUSE = {
    "a list of inputs": (cubes, [x3]),
    "a dict of inputs": (cubes, {"x": x3}),
    "a number as input": (cubes, 2.0),
    "no input": (cubes, None),
    "a number among the inputs": (lambda x, y: cubes(x), (x3, 2)),
    "an empty tuple": (lambda: x3.sum(), ()),
    "an integer input": (cubes, torch.arange(3)),
    "a boolean among the inputs": (lambda x, y: cubes(x), (x3, x3 > 1)),
    "a number returned": (lambda x: 1.0, x3),
    "None returned": (lambda x: None, x3),
    "a list returned": (lambda x: [x.sum()], x3),
    "two tensors returned": (lambda x: (cubes(x), cubes(x)), x3),
    "a tuple of one returned": (lambda x: (cubes(x),), x3),
    "a tensor and a string returned": (lambda x: (cubes(x), "y"), x3),
    "a tensor and a detached one returned": (lambda x: (cubes(x), cubes(x).detach()), x3),
    "several elements returned": (lambda x: x * x, x3),
    "no element returned": (lambda x: (x * x)[:0], x3),
    "a detached vector returned": (lambda x: x.detach(), x3),
    "a complex number returned": (lambda x: (x * (1 + 2j)).sum(), x3),
    "a wrong number of arguments": (lambda x, y: cubes(x), x3),
    "an exception in func": (lambda x: cubes(x) / 0 if x.sum().item() < 0 else 1 / 0, x3),
}


@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize("name", MISUSE)
def test_misuse_raises_what_stock_raises(hessian, name, flags):
    func, inputs = MISUSE[name]
    got = outcome(hessian, func, lambda: inputs, flags)
    want = outcome(stock, func, lambda: inputs, flags)
    assert _plain(want.error) is not None
    assert _plain(got.error) == _plain(want.error)


def _plain(error):
    """Without the addresses and the name of the lambda."""
    return error and re.sub(r"0x[0-9a-f]+|test_errors\.\S*", "", error)


EMPTY = {
    "one": (lambda x: cubes(x), torch.rand(0)),
    "the second of two": (lambda x, y: cubes(x) + cubes(y), (x3, torch.rand(0, 2))),
    "the first of two": (lambda x, y: cubes(x) + cubes(y), (torch.rand(0), x3)),
    "an unused one": (lambda x, y: cubes(x), (x3, torch.rand(0))),
}


@pytest.mark.parametrize("flags", FLAGS, ids=flags_id)
@pytest.mark.parametrize("name", EMPTY)
def test_empty_inputs_give_what_stock_gives(hessian, name, flags):
    func, inputs = EMPTY[name]
    if flags["outer_jacobian_strategy"] == "forward-mode" and flags["vectorize"]:
        pytest.skip("stock's own message depends on the ops that func runs")
    got = outcome(hessian, func, lambda: inputs, flags)
    want = outcome(stock, func, lambda: inputs, flags)
    assert (got.error, got.layout) == (want.error, want.layout)
    assert got.describe() == want.describe()


@pytest.mark.parametrize("strategy", ["forward", "reverse", "", None, "Reverse-mode"])
def test_an_unknown_strategy_raises_what_stock_raises(hessian, strategy):
    flags = {"outer_jacobian_strategy": strategy}
    want = outcome(stock, cubes, lambda: x3, flags).error
    assert want and outcome(hessian, cubes, lambda: x3, flags).error == want


def test_the_checks_come_in_the_order_of_stock(hessian):
    """Each call has every later fault as well; only the first may show."""
    forward = {"outer_jacobian_strategy": "forward-mode"}
    calls = [
        (lambda x: x, [x3], {"outer_jacobian_strategy": "x", "strict": True}),
        (lambda x: x, x3, {"outer_jacobian_strategy": "x", "create_graph": True, "strict": True}),
        (lambda x: x, x3, dict(create_graph=True, strict=True, **forward)),
        (lambda x: x, x3, dict(strict=True, **forward)),
        (lambda x: x, x3, forward),
        (lambda x: ([x.detach()], 1), x3, {"strict": True, "vectorize": True}),
        (lambda x: (x.detach(), x), x3, {"strict": True, "vectorize": True}),
        (lambda x: (x, x), x3, {"strict": True, "vectorize": True}),
        (lambda x: x, x3, {"strict": True, "vectorize": True}),
        (lambda x: x.sum(), x3, {"strict": True, "vectorize": True}),
        (cubes, x3, {"strict": True, "vectorize": True}),
    ]
    errors = []
    for func, inputs, flags in calls:
        want = outcome(stock, func, lambda inputs=inputs: inputs, flags).error
        assert outcome(hessian, func, lambda inputs=inputs: inputs, flags).error == want
        errors.append(want)
    assert all(errors) and all(a != b for a, b in pairwise(errors))


# --- strict: every message ------------------------------------------------------------------------


class OneWay(torch.autograd.Function):
    """Its first gradient depends on both inputs, its second on the second input alone."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return (x * y).sum()

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g * x * x * y, g * y * y


class FlatSecond(torch.autograd.Function):
    """Its second gradient is linear: connected to both inputs, with a constant derivative."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return (x * y).sum()

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g * x * x * y * y, x + y


STRICT = [
    (
        "Output 0 of the user-provided function does not require gradients",
        lambda x: x.detach().sum(),
        x3,
        False,
    ),
    (
        "jacobian of the user-provided function with respect to input 0 is independent",
        lambda x: (3 * x).sum(),
        x3,
        False,
    ),
    (
        "jacobian of the user-provided function with respect to input 1 is independent",
        lambda x, y: cubes(x) + y.sum(),
        (x3, x3),
        False,
    ),
    (
        "Output 0 of the user-provided function is independent of input 1",
        lambda x, y: cubes(x) + cubes(y),
        (x3, x3),
        False,
    ),
    (
        "Output 1 of the user-provided function is independent of input 0",
        OneWay.apply,
        (x3, x3),
        False,
    ),
    (
        "The jacobian of the user-provided function is independent of input 0. This is not allowed "
        "in strict mode when create_graph=True",
        lambda x: (x * x).sum(),
        x3,
        True,
    ),
    (
        "The jacobian of the user-provided function is independent of input 1. This is not allowed "
        "in strict mode when create_graph=True",
        FlatSecond.apply,
        (x3, x3),
        True,
    ),
]


@pytest.mark.parametrize("words, func, inputs, create_graph", STRICT, ids=range(len(STRICT)))
def test_strict_says_what_is_independent_of_what(hessian, words, func, inputs, create_graph):
    flags = {"strict": True, "create_graph": create_graph}
    want = outcome(stock, func, lambda: inputs, flags).error
    assert words in want
    assert outcome(hessian, func, lambda: inputs, flags).error == want


CONNECTED = [torch.relu, torch.abs, torch.prod, torch.sin, torch.sigmoid, torch.logsumexp]
NOT_CONNECTED = [torch.max, torch.floor, torch.neg, lambda x: x.clamp(max=1.0)]


@pytest.mark.parametrize("op", CONNECTED + NOT_CONNECTED)
def test_strict_asks_for_a_connection_not_for_curvature(hessian, op):
    def func(x):
        return op(x, 0) if op is torch.logsumexp else op(x).sum()

    got, want = (outcome(r, func, lambda: x3, {"strict": True}) for r in (hessian, stock))
    assert got.error == want.error
    assert (want.error is None) == (op in CONNECTED)


# --- hesse's own checks ---------------------------------------------------------------------------


@pytest.mark.ours
@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, "4", True])
def test_a_wrong_chunk_size_says_what_is_allowed(chunk_size):
    import hesse

    for call in (hesse.hessian, hesse.explain):
        with pytest.raises(ValueError, match="chunk_size must be None or a positive integer, got"):
            call(cubes, x3, chunk_size=chunk_size)


@pytest.mark.ours
@pytest.mark.parametrize("name", MISUSE)
def test_explain_refuses_what_hessian_refuses(name):
    import hesse

    func, inputs = MISUSE[name]
    with pytest.raises(Exception) as by_hessian:
        hesse.hessian(func, inputs)
    with pytest.raises(type(by_hessian.value)) as by_explain:
        hesse.explain(func, inputs)
    assert str(by_explain.value) == str(by_hessian.value)


@pytest.mark.ours
def test_the_signature_is_that_of_stock_plus_chunk_size():
    import inspect

    import hesse

    ours, theirs = inspect.signature(hesse.hessian), inspect.signature(stock)
    shared = [(p.name, p.default, p.kind) for p in theirs.parameters.values()]
    assert [(p.name, p.default, p.kind) for p in ours.parameters.values()][:-1] == shared
    assert ours.parameters["chunk_size"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.ours
@pytest.mark.parametrize(
    "built, found, match",
    [
        ("2.13.0", "2.13.0", True),
        ("2.13.0", "2.13.1+cu130", True),
        ("2.13.0+cpu", "2.13.0a0+git123", True),
        ("2.13.0", "2.12.1+cpu", False),
        ("2.1.0", "2.13.0", False),
        ("2.13.0", "3.13.0", False),
    ],
)
def test_another_torch_than_the_one_built_for_is_named_in_one_line(built, found, match):
    from hesse import _match

    if match:
        _match.check(built, found)
        return
    with pytest.raises(ImportError) as error:
        _match.check(built, found)
    message = str(error.value)
    assert f"built for torch {built}, found torch {found}" in message
    assert "pip install" in message and "\n" not in message


@pytest.fixture
def copy_of_the_package(tmp_path, monkeypatch):
    """Imports a copy of the Python sources beside a given ``_build`` and a broken module."""
    import hesse

    monkeypatch.syspath_prepend(tmp_path)
    sources = list(Path(hesse.__file__).parent.glob("*.py"))

    def load(name, build):
        package = tmp_path / name
        package.mkdir()
        for source in sources:
            if source.name not in ("_build.py", "_C.py"):
                shutil.copy(source, package)
        if build is not None:
            (package / "_build.py").write_text(f"TORCH_VERSION = {build!r}\n")
        (package / "_C.py").write_text('raise ImportError("undefined symbol: _ZN3c10")\n')
        with pytest.raises(ImportError) as error:
            importlib.import_module(name)
        return str(error.value)

    return load


@pytest.mark.ours
def test_the_torch_version_is_checked_before_the_compiled_module_is_loaded(copy_of_the_package):
    message = copy_of_the_package("built_for_another", "1.2.0")
    assert message.startswith(f"hesse was built for torch 1.2.0, found torch {torch.__version__}: ")

    message = copy_of_the_package("built_for_this", torch.__version__)
    assert message.startswith("hesse cannot load its compiled module (undefined symbol: _ZN3c10): ")

    message = copy_of_the_package("not_built", None)
    assert message.startswith("hesse has no compiled module here: ")
