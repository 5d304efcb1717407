"""Where the function under test comes from.

``HESSE_UNDER_TEST=stock`` runs the tests on torch's own function: those whose oracle it is must
then pass, which tests the tests. Those about hesse alone (mark ``ours``) are skipped.
"""

import os
import warnings

import pytest
import setuptools  # noqa: F401  torch.testing imports it, which fails once pytest has imported other tests
import torch

UNDER_TEST = os.environ.get("HESSE_UNDER_TEST", "hesse")


def pytest_configure(config):
    config.addinivalue_line("markers", "ours: about hesse itself, nothing to ask of stock")


def pytest_collection_modifyitems(items):
    if UNDER_TEST == "stock":
        skip = pytest.mark.skip(reason="about hesse itself; stock is under test")
        for item in items:
            if item.get_closest_marker("ours"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def hessian():
    """The function under test."""
    if UNDER_TEST == "stock":
        return torch.autograd.functional.hessian
    import hesse

    return hesse.hessian


@pytest.fixture
def fallback_is_fine():
    """For calls that only stock can do, where the fallback is not the subject."""
    if UNDER_TEST == "stock":
        yield
        return
    import hesse

    with hesse.fallback("silent"):
        yield


@pytest.fixture(autouse=True)
def _fresh_state():
    """A fixed seed, and fallbacks that neither hide nor spill from one test to the next."""
    torch.manual_seed(0)
    if UNDER_TEST == "stock":
        yield
        return
    import hesse

    with hesse.fallback("warn"), warnings.catch_warnings():
        warnings.simplefilter("error", hesse.FallbackWarning)
        yield
