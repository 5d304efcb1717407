"""`python -m bench.gpu FOLDER`: build, tests, sanitizers and benchmark on a GPU, in one go.

Each stage has a time limit, and all of them have one together; what was cut off or could not run
is said at the end and in `environment.json`. Nothing is installed and nothing is fetched: torch,
pytest, cmake, ninja and a CUDA toolkit have to be there. `--device cpu` is a dry run.

Files (8 at most, each under 16 MiB): `environment.json`, `log.txt`, `junit.xml`, `memcheck.txt`,
`racecheck.txt`, and `results.jsonl`, `results.md`, `times.png` of the benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.command import positive
from bench.device import nvidia

ROOT = Path(__file__).resolve().parent.parent
KERNEL_TESTS = ("tests/test_kernels_cuda.py", "tests/test_kernel_places.py")
LARGEST = 15 * 2**20  # bytes of a file
GRACE = 15  # seconds between asking a stage to end and ending it
LEFT = 10  # seconds kept for writing what is there
FOUND = 99  # the exit status of compute-sanitizer for an error it found


@dataclass(frozen=True)
class Job:
    """What the stages need to know: where, on what, and for how long."""

    folder: Path
    device: str
    deadline: float
    problems: tuple[str, ...] = ()

    def left(self) -> int:
        """Seconds until all has to be over."""
        return max(0, int(self.deadline - time.monotonic()) - LEFT)


@dataclass(frozen=True)
class Stage:
    """One step.

    Attributes:
        name: as in `--only`.
        seconds: its limit, if so much is left.
        command: what is run, given the job and the seconds it has.
        refusal: why it cannot run, or nothing.
    """

    name: str
    seconds: int
    command: Callable[[Job, int], list[str]]
    refusal: Callable[[Job], str] = lambda job: ""


@dataclass
class Outcome:
    """What became of a stage, in words, and how long it took."""

    stage: str
    outcome: str
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """It ended by itself and found nothing wrong, or was not to run here."""
        return self.outcome == "passed" or self.outcome.startswith("skipped")


def build(job: Job, seconds: int) -> list[str]:
    """In place, for this Python; nvcc comes in with CMake."""
    return [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]


def tests(job: Job, seconds: int) -> list[str]:
    """The kernels' tests first, then everything; a dry run has the former only."""
    chosen = [*_kernel_tests(), *(["tests"] if job.device != "cpu" else [])]
    spread = ["-n", str(min(8, os.cpu_count() or 1)), "--dist", "worksteal"] if _xdist() else []
    report = ["--continue-on-collection-errors", f"--junitxml={job.folder / 'junit.xml'}"]
    return [*_pytest(), *spread, *report, *chosen]


def sanitize(tool: str) -> Callable[[Job, int], list[str]]:
    """compute-sanitizer around the kernels' tests, in one process."""

    def command(job: Job, seconds: int) -> list[str]:
        options = ["--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "all"]
        log = ["--log-file", str(job.folder / f"{tool}.txt")]
        return ["compute-sanitizer", *options, *log, *_pytest(), "-p", "no:xdist", *_kernel_tests()]

    return command


def benchmark(job: Job, seconds: int) -> list[str]:
    """The benchmark, told to start no case that would run into the limit."""
    small = ["--quick", "--rounds", "3"] if job.device == "cpu" else []
    problems = ["--problems", *job.problems] if job.problems else []
    where = ["--device", job.device, "--seconds", str(max(1, int(0.85 * seconds)))]
    return [
        *(sys.executable, "-m", "bench", *where, *small, *problems),
        *("--out", str(job.folder)),
    ]


def needs_a_gpu(job: Job) -> str:
    """Why a sanitizer cannot run."""
    if job.device == "cpu":
        return "a sanitizer watches kernels on a GPU"
    return "" if shutil.which("compute-sanitizer") else "no compute-sanitizer on PATH"


STAGES = (
    Stage("build", 180, build),
    Stage("tests", 120, tests),
    Stage("memcheck", 50, sanitize("memcheck"), needs_a_gpu),
    Stage("racecheck", 50, sanitize("racecheck"), needs_a_gpu),
    Stage("bench", 600, benchmark),
)


def environment(job: Job) -> dict[str, str]:
    """Variables for the stages: hesse from here, kernels for this chip, tests on the device."""
    variables = {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": "passive",
        "HESSE_TEST_DEVICE": job.device,
        "HESSE_WERROR": "0",
        "MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count() or 1)),
    }
    if job.device == "cuda":
        variables["HESSE_CUDA"] = "on"
        if capability := nvidia("compute_cap"):
            variables["HESSE_CUDA_ARCHS"] = capability.replace(".", "")
    return os.environ | variables


def run(stage: Stage, job: Job) -> Outcome:
    """Runs a stage within its limit; what it prints goes to the log."""
    if reason := stage.refusal(job):
        return Outcome(stage.name, f"skipped: {reason}")
    seconds = min(stage.seconds, job.left())
    if seconds <= GRACE:
        return Outcome(stage.name, "skipped: no time left")
    command = stage.command(job, seconds)
    variables = environment(job)
    if stage.name == "memcheck":  # or else it sees the allocator's blocks, not the tensors
        variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    start = time.monotonic()
    with (job.folder / "log.txt").open("a") as log:
        print(f"\n== {stage.name}: {' '.join(command)}", file=log, flush=True)
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True
            )
        except OSError as error:
            return Outcome(stage.name, f"failed: {error}")
        status = _wait(process, seconds - GRACE)
    return Outcome(stage.name, _words(status, seconds), round(time.monotonic() - start, 1))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Exit status; `None` if time ran out. pytest writes its report when it is interrupted."""
    for patience, word in ((seconds, signal.SIGINT), (GRACE, signal.SIGKILL)):
        try:
            status = process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, word)
        else:
            return status if word == signal.SIGINT else None
    process.wait()
    return None


def last_lines(log: Path, count: int = 25) -> str:
    """The end of the log, for the terminal."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])


def _words(status: int | None, seconds: int) -> str:
    if status is None:
        return f"cut off at its limit of {seconds} s"
    if status == FOUND:
        return "failed: compute-sanitizer found errors"
    return "passed" if status == 0 else f"failed with status {status}"


def _pytest() -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "--tb=short"]


def _kernel_tests() -> list[str]:
    return [name for name in KERNEL_TESTS if (ROOT / name).exists()]


def _xdist() -> bool:
    try:
        return bool(metadata.version("pytest-xdist"))
    except metadata.PackageNotFoundError:
        return False


def facts(device: str, commit: str | None) -> dict[str, Any]:
    """What a reader needs to place the files, and the folder of `bench/results` they belong in."""
    torch = metadata.version("torch")
    chip = nvidia("name") if device == "cuda" else platform.machine()
    commit = commit or _said("git", "rev-parse", "--short", "HEAD") or "unknown"
    return {
        "chip": chip,
        "driver": nvidia("driver_version"),
        "nvcc": (_said("nvcc", "--version") or "none").splitlines()[-1],
        "torch": torch,
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "commit": commit,
        "folder": folder_name(chip or device, torch, commit),
    }


def folder_name(chip: str, torch: str, commit: str) -> str:
    """`<chip>-torch<version>-<commit>`, in lower case and without blanks."""
    short = re.sub(r"[^a-z0-9]+", "_", chip.lower().removeprefix("nvidia ")).strip("_")
    return f"{short}-torch{torch.split('+')[0]}-{commit}"


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def tidy(path: Path, largest: int = LARGEST) -> None:
    """Takes the names of the machine and its folders out, and the middle if it is too large."""
    text = path.read_text(errors="replace")
    for found, name in ((str(path.parent), "OUT"), (str(ROOT), "."), (sys.prefix, "PYTHON")):
        text = text.replace(found, name)
    data = re.sub(r' hostname="[^"]*"', "", text).encode()
    if len(data) > largest:
        half = (largest - 100) // 2
        data = data[:half] + b"\n[... cut: the file was too large ...]\n" + data[-half:]
    path.write_bytes(data)


def main(argv: list[str] | None = None) -> int:
    """Runs the stages in order; 1 if one failed or was cut off."""
    names = [stage.name for stage in STAGES]
    p = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    p.add_argument("folder", type=Path, help="for the files; made if it is not there")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--seconds", type=positive, default=530, help="for all stages together (530)")
    p.add_argument("--only", nargs="+", choices=names, default=names, metavar="S", help=str(names))
    p.add_argument("--problems", nargs="+", default=(), metavar="P", help="of the benchmark")
    p.add_argument("--commit", help="what git would say, where the sources came without it")
    options = p.parse_args(argv)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    job = Job(folder, options.device, deadline, tuple(options.problems))
    about = facts(options.device, options.commit)
    (folder / "log.txt").write_text(f"{json.dumps(about)}\n")
    outcomes: list[Outcome] = []
    for stage in (s for s in STAGES if s.name in options.only):
        built = all(o.good for o in outcomes if o.stage == "build")
        skipped = Outcome(stage.name, "skipped: the build did not pass")
        outcomes.append(run(stage, job) if built else skipped)
        if not outcomes[-1].good:
            print(last_lines(folder / "log.txt"))
        print(f"{stage.name}: {outcomes[-1].outcome} ({outcomes[-1].seconds:.0f} s)", flush=True)
        stages = [asdict(outcome) for outcome in outcomes]
        text = json.dumps(about | {"stages": stages}, indent=1) + "\n"
        (folder / "environment.json").write_text(text)
    for name in ("log.txt", "junit.xml", "memcheck.txt", "racecheck.txt"):
        if (folder / name).exists():
            tidy(folder / name)
    print(f"To keep these files, commit them as bench/results/{about['folder']}")
    return int(not all(outcome.good for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
