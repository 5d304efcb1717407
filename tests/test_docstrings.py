"""The examples in the docstrings run and assert what they show."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import hesse

pytestmark = [pytest.mark.ours, pytest.mark.cpu]

NO_LIBRARY = {"hesse.__main__", "hesse.demo"}  # the command: it needs more than torch
MODULES = ["hesse"] + [
    module.name
    for module in pkgutil.walk_packages(hesse.__path__, "hesse.")
    if module.name not in NO_LIBRARY
]
PUBLIC = [getattr(hesse, name) for name in hesse.__all__]
FUNCTIONS = [f for f in PUBLIC if inspect.isfunction(f)] + [
    hesse.func.hessian,
    hesse.optim.Newton,
    hesse.optim.NewtonCG,
    hesse.testing.check_rule,
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_a_public_function_has_an_example_that_asserts(function):
    examples = doctest.DocTestFinder(recurse=False).find(function)[0].examples
    assert any(e.source.startswith("assert ") or "check_rule(" in e.source for e in examples)
