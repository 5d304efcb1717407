"""The reader of the CUDA compiler's report."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ours

ROOT = Path(__file__).resolve().parents[1]
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z6kernelI3MapIfEEvT_' for 'sm_80'
ptxas info    : Function properties for _Z6kernelI3MapIfEEvT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 34 registers, used 0 barriers, 584 bytes cmem[0], 8 bytes cmem[2]
ptxas info    : Compile time = 12.345 ms
ptxas info    : Compiling entry function '_Z6kernelI4SumsIdEEvT_' for 'sm_90'
ptxas info    : Function properties for _Z6kernelI4SumsIdEEvT_
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 2048 bytes smem
"""


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("cuda_check", ROOT / "tools/cuda_check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_check"] = module  # where dataclasses looks for it
    spec.loader.exec_module(module)
    return module


def test_each_kernel_has_what_the_compiler_says_of_it(check):
    first, second = check.parse(REPORT)
    assert (first.name, first.arch) == ("_Z6kernelI3MapIfEEvT_", "sm_80")
    assert (first.registers, first.shared, first.stack, first.spills) == (34, 0, 0, 0)
    assert (second.registers, second.shared, second.stack, second.spills) == (255, 2048, 8, 12)
    assert not first.spilled and second.spilled


def test_a_name_is_that_of_the_body(check):
    long = "void hesse::cuda::(anonymous namespace)::kernel<hesse::(anonymous namespace)::Map<"
    assert check.short(long + "hesse::Half, unsigned int, (int)8> >(hesse::Map)") == (
        "Map<Half, u32, 8>"
    )
    assert check.short("_Z6kernel") == "_Z6kernel"


def test_architectures_are_named_as_in_cmake(check):
    assert check.targets("80-real;90;100-virtual") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
        "-gencode=arch=compute_100,code=compute_100",
    ]
    with pytest.raises(SystemExit, match="'all' is no architecture"):
        check.targets("all")


def test_the_table_has_a_row_for_each(check):
    lines = check.table(check.parse(REPORT)).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1


def test_the_default_is_that_of_the_build(check):
    assert f'set(HESSE_CUDA_ARCHS "{check.ARCHS}"' in (ROOT / "CMakeLists.txt").read_text()


@pytest.mark.skipif(shutil.which("nvcc") is not None, reason="there is a compiler here")
def test_no_compiler_is_said_in_one_line():
    done = subprocess.run(
        [sys.executable, ROOT / "tools/cuda_check.py"], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith("cuda-check: no nvcc on PATH")
