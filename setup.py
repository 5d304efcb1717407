"""Builds the compiled module with CMake and Ninja; all other metadata is in pyproject.toml.

Settings, from the environment: HESSE_NATIVE=1, HESSE_WERROR=0, HESSE_CUDA=auto|on|off,
HESSE_CUDA_ARCHS="80;90", MAX_JOBS=n.
"""

import filecmp
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SETTINGS = ("HESSE_NATIVE", "HESSE_WERROR", "HESSE_CUDA", "HESSE_CUDA_ARCHS")


def tool(name: str) -> str:
    """Path of a build tool: the one beside this Python, else the one on PATH."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        sys.exit(f"hesse: {name} is needed to build: pip install {name}")
    return found


def torch_version() -> str:
    """Base version of the torch that this Python would import, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(
            "hesse: builds against the torch you use: install torch first, "
            "then `pip install --no-build-isolation .`"
        )
    text = Path(spec.origin).with_name("version.py").read_text()
    match = re.search(r"__version__ = '([^'+]+)", text)
    if match is None:
        sys.exit(f"hesse: no version found in {Path(spec.origin).with_name('version.py')}")
    return match[1]


class CMakeBuild(build_ext):
    """Configures once, then lets Ninja decide what is out of date."""

    def build_extension(self, ext: Extension) -> None:
        python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
        environment = f"{zlib.crc32(sys.prefix.encode()):08x}"
        build = ROOT / "build" / f"{python}-torch{torch_version()}-{environment}"
        build.mkdir(parents=True, exist_ok=True)
        self.configure(build)
        jobs = os.environ.get("MAX_JOBS")
        command = [tool("cmake"), "--build", str(build), *(["-j", jobs] if jobs else [])]
        if subprocess.run(command).returncode:
            sys.exit("hesse: the build failed, see the compiler's messages above")
        self.place(build, Path(self.get_ext_fullpath(ext.name)))

    def copy_extensions_to_source(self) -> None:
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            package = self.get_finalized_command("build_py").get_package_dir("hesse")
            self.place(built.parent, Path(package, built.name))

    def configure(self, build: Path) -> None:
        args = [
            tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *(f"-D{name}={os.environ[name]}" for name in SETTINGS if name in os.environ),
        ]  # fmt: skip
        stamp = build / "configured-with.txt"
        if stamp.exists() and stamp.read_text() == "\n".join(args):
            return
        # A changed setting, or none where there was one, must not leave its old value in the cache.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        if subprocess.run(args).returncode:
            sys.exit("hesse: CMake failed, see its messages above")
        stamp.write_text("\n".join(args))

    def place(self, source: Path, target: Path) -> None:
        """Copy the module, and write the torch version that `import hesse` asks for beside it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or not filecmp.cmp(source / target.name, target):
            fresh = target.with_name(target.name + ".new")
            shutil.copy2(source / target.name, fresh)
            fresh.replace(target)  # a running Python keeps the module that it has loaded
        stamp = target.with_name("_build.py")
        text = f'"""Written by the build."""\n\nTORCH_VERSION = "{torch_version()}"\n'
        if not stamp.exists() or stamp.read_text() != text:
            stamp.write_text(text)


setup(ext_modules=[Extension("hesse._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
