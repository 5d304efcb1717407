"""Where the function under test comes from.

``HESSE_UNDER_TEST=stock`` runs the tests on torch's own function: those whose oracle it is must
then pass, which tests the tests. Those about hesse alone (mark ``ours``) are skipped.

``HESSE_TEST_DEVICE=cuda`` runs the same tests there: it is the default device of all that tests
make. Those about the CPU, or about nothing that depends on a device, (mark ``cpu``) are skipped.
"""

import os
import warnings
from dataclasses import dataclass

import pytest
import setuptools  # noqa: F401  torch.testing imports it, which fails once pytest has imported other tests
import torch

UNDER_TEST = os.environ.get("HESSE_UNDER_TEST", "hesse")
DEVICE = torch.device(os.environ.get("HESSE_TEST_DEVICE", "cpu"))
if "HESSE_TEST_DEVICE" in os.environ:  # before tests are imported: they make tensors then
    torch.set_default_device(DEVICE)


def pytest_configure(config):
    config.addinivalue_line("markers", "ours: about hesse itself, nothing to ask of stock")
    config.addinivalue_line("markers", "cpu: about the CPU, or about no device")


def pytest_collection_modifyitems(items):
    reasons = {}
    if UNDER_TEST == "stock":
        reasons["ours"] = "about hesse itself; stock is under test"
    if DEVICE.type != "cpu":
        reasons["cpu"] = f"not about {DEVICE.type}"
    for item in items:
        for mark, reason in reasons.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


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


@dataclass(frozen=True)
class Kernels:
    """Those under test: where their tensors lie, and whether they take half precision."""

    name: str
    device: str = "cpu"
    halves: bool = False

    def take(self, dtype):
        if dtype.itemsize == 2 and not self.halves:
            pytest.skip("the CPU's loops leave half precision to ATen")


@pytest.fixture(params=["bodies", "baseline", "avx2", "avx512", "cuda"])
def kernels(request):
    """Each instruction set of the CPU, the bodies of the CUDA kernels on the host, and a GPU."""
    from hesse import _C

    available = _C.instruction_sets()
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU here")
        yield Kernels("cuda", "cuda", halves=True)
        return
    if request.param not in available:
        pytest.skip(f"this processor has {', '.join(available)}")
    _C.use_instruction_set(request.param)
    yield Kernels(request.param, halves=request.param == "bodies")
    _C.use_instruction_set(available[-1])
