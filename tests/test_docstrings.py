"""Every public call shows an example, and every example holds."""

import doctest
import importlib
import inspect
import operator
import pkgutil

import pytest

import hesse

pytestmark = pytest.mark.ours

MODULES = [
    info.name
    for info in pkgutil.walk_packages(hesse.__path__, "hesse.")
    if info.name.rsplit(".", 1)[1] not in ("_C", "_build", "__main__", "demo")
]
# Types that a call returns are shown there.
CALLS = [name for name in hesse.__all__ if inspect.isfunction(getattr(hesse, name))]
CALLS += ["func.hessian", *(f"optim.{name}" for name in hesse.optim.__all__)]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_the_docstrings_hold(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("name", CALLS)
def test_every_public_call_has_an_example_that_asserts(name):
    doc = inspect.getdoc(operator.attrgetter(name)(hesse))
    examples = doctest.DocTestParser().get_examples(doc)
    assert any(example.source.startswith("assert ") for example in examples)
