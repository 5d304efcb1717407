"""Compiles every CUDA kernel, without a GPU and without torch, and reads the compiler's report.

Prints a table of what each kernel takes on each architecture. Fails where a kernel does not
compile, or keeps values of a thread in memory (a stack frame, or registers that are spilled).
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHS = "80-real;90"  # as in CMakeLists.txt

ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
TYPES = (
    (r"unsigned long(?: long)?|uint64_t", "u64"),
    (r"unsigned int|uint32_t", "u32"),
    (r"unsigned short|uint16_t", "u16"),
    (r"\((?:int|unsigned)\)", ""),
)


@dataclass
class Kernel:
    """One kernel on one architecture; sizes in bytes."""

    name: str
    arch: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spills: int = 0

    @property
    def spilled(self) -> bool:
        """Whether values of a thread lie in memory."""
        return self.stack > 0 or self.spills > 0


def targets(archs: str) -> list[str]:
    """Options of nvcc for CMake's way of naming architectures: ``80-real;90`` has PTX of 90 too."""
    options = []
    for arch in archs.split(";"):
        match = re.fullmatch(r"(\d+[af]?)(-real|-virtual)?", arch)
        if match is None:
            sys.exit(f"cuda-check: {arch!r} is no architecture: name them as in 80-real;90")
        number, kind = match.groups()
        codes = [] if kind == "-virtual" else [f"sm_{number}"]
        codes += [] if kind == "-real" else [f"compute_{number}"]
        options += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return options


def parse(report: str) -> list[Kernel]:
    """The kernels that a report of ``-Xptxas -v`` speaks of, by their mangled names."""
    kernels: list[Kernel] = []
    for line in report.splitlines():
        if entry := ENTRY.search(line):
            kernels.append(Kernel(entry[1], entry[2]))
        elif kernels and (memory := MEMORY.search(line)):
            stack, stores, loads = map(int, memory.groups())
            kernels[-1].stack = stack
            kernels[-1].spills = max(stores, loads)
        elif kernels and (used := USED.search(line)):
            kernels[-1].registers = int(used[1])
            if shared := SHARED.search(line):
                kernels[-1].shared = int(shared[1])
    return kernels


def short(demangled: str) -> str:
    """The body that a kernel runs: ``Map<float, u32, 4>``."""
    match = re.search(r"\bkernel<(.*)>\(", demangled)
    name = re.sub(r"(?:\w+|\(anonymous namespace\))::", "", match[1] if match else demangled)
    for long, new in TYPES:
        name = re.sub(long, new, name)
    return name.strip()


def demangled(names: list[str]) -> list[str]:
    """C++ names, where there is a tool that knows them."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return names
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True)
    return done.stdout.splitlines()


def compile_file(nvcc: str, source: Path, options: list[str]) -> str:
    """The report on one file; ends the program where it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc, "-std=c++20", "-O3", "-Xptxas", "-v", "-Xcompiler=-Wall,-Wextra,-fPIC",
            *options, "-I", str(ROOT / "csrc"), "-c", str(source), "-o", f"{folder}/kernel.o",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode or "warning" in said:
        sys.exit(f"{said}\ncuda-check: {source.name} does not compile without warnings")
    return said


def table(kernels: list[Kernel]) -> str:
    """Rows of Markdown, padded to be read as they are."""
    rows = [("kernel", "architecture", "registers", "shared", "stack", "spills")]
    rows += [
        (k.name, k.arch, str(k.registers), str(k.shared), str(k.stack), str(k.spills))
        for k in sorted(kernels, key=lambda k: (k.name, k.arch))
    ]
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, width)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in width) + "|")
    return "\n".join(lines)


def main() -> None:
    """Compiles, prints, and fails on spills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default=os.environ.get("HESSE_CUDA_ARCHS", ARCHS))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        sys.exit("cuda-check: no nvcc on PATH: install a CUDA toolkit, no GPU is needed")
    sources = sorted((ROOT / "csrc/kernels/cuda").glob("*.cu"))
    start = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        flags = targets(options.archs)
        reports = list(pool.map(lambda source: compile_file(nvcc, source, flags), sources))
    kernels = [kernel for report in reports for kernel in parse(report)]
    for kernel, name in zip(kernels, demangled([k.name for k in kernels]), strict=True):
        kernel.name = short(name)
    print(table(kernels))
    spilled = [f"{k.name} ({k.arch})" for k in kernels if k.spilled]
    took = time.monotonic() - start
    print(f"\ncuda-check: {len(sources)} files, {len(kernels)} kernels, {took:.0f} s")
    if spilled:
        sys.exit("cuda-check: values of a thread lie in memory in " + ", ".join(spilled))


if __name__ == "__main__":
    main()
