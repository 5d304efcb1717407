"""What the build makes is complete, is not made twice, and is refused by another torch."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "hesse"


def python(*args, path=None, cwd=ROOT):
    env = {**os.environ, "PYTHONPATH": str(path)} if path else None
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True)


def import_of(package_root):
    """The last line that ``import hesse`` from this folder leaves on stderr."""
    done = python("-c", "import hesse", path=package_root, cwd=package_root)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def sources(tmp_path):
    """The Python files of the package alone, in a folder of their own."""
    copy = tmp_path / "hesse"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def test_another_torch_is_refused_in_one_line(sources):
    (sources / "hesse" / "_build.py").write_text('TORCH_VERSION = "1.13.0"\n')
    said = import_of(sources)
    found = torch.__version__.split("+")[0]
    assert said.startswith(f"ImportError: hesse was built for torch 1.13.0, found torch {found}")
    assert "rebuild with `pip install --no-build-isolation" in said


def test_sources_without_a_build_say_so_in_one_line(sources):
    (sources / "hesse" / "_build.py").unlink(missing_ok=True)
    assert import_of(sources).startswith("ImportError: hesse has no compiled module here")


@pytest.mark.skipif(
    not all(importlib.util.find_spec(tool) for tool in ("cmake", "ninja", "setuptools", "pip")),
    reason="building needs cmake, ninja, setuptools and pip in this environment",
)
def test_a_second_build_does_nothing_and_the_wheel_is_complete(tmp_path):
    # One test, because two of them at once would share a build folder.
    command = ("setup.py", "build_ext", "--inplace")
    first = python(*command)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "ninja: no work to do" in python(*command).stdout

    done = python(
        "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, "."
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("hesse-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert len([n for n in names if n.startswith("hesse/_C.") and n.endswith(".so")]) == 1
    assert {"hesse/_build.py", "hesse/py.typed", "hesse/_C.pyi"} <= set(names)
    assert not [n for n in names if n.startswith(("csrc", "tests", "bench", "build"))]

    code = "import hesse, torch; print(hesse.hessian(lambda x: (x**3).sum(), torch.ones(1)).item())"
    done = python("-c", code, path=tmp_path / "installed", cwd=tmp_path)
    assert done.stdout == "6.0\n", done.stderr
