"""`python -m bench`: problems x peers, agreement first, then interleaved rounds."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import memory, report, summary
from bench.command import limited_to, positive
from bench.device import rates, release, set_up
from bench.measure import Limits, agree, brief, measure
from bench.peers import PEERS, Peer, Refusal
from bench.problems import PROBLEMS
from bench.reference import Sample, Whole, reference
from bench.run import Neighbours, Row, Run, settings

DTYPES = {"float32": torch.float32, "float64": torch.float64}
CHECKED = 64  # the largest N that --check looks at
PEER_SECONDS, QUICK_SECONDS = 1.0, 0.5  # for one peer over all rounds of a case
# On a GPU, for one peer on a case: a route that takes longer would take the others' time.
GPU_PEER_SECONDS, GPU_FIRST_SECONDS = 0.4, 8.0
COMPILING = 0.35  # of a run with --seconds: the share of all first calls of compilers

Cases = list[tuple[str, int]]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names, peers = ", ".join(PROBLEMS), ", ".join(PEERS)
    p.add_argument("--problems", nargs="+", choices=PROBLEMS, metavar="P", help=names)
    p.add_argument("--sizes", nargs="+", type=int, metavar="N", help="only these values of N")
    p.add_argument("--peers", nargs="+", choices=PEERS, metavar="W", help=peers)
    p.add_argument("--rounds", type=positive, help="samples of each peer (15, quick 7)")
    p.add_argument("--dtype", choices=DTYPES, default="float32")
    p.add_argument(
        "--threads", type=positive, default=2, help="threads to use, on the CPU also processors (2)"
    )
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for results.jsonl, .md and times.png"
    )
    p.add_argument("--quick", action="store_true", help="two sizes each, no compile, no memory")
    p.add_argument(
        "--seconds", type=positive, help="start no case later; the largest and smallest come first"
    )
    p.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    p.add_argument("--check", action="store_true", help="only agreement, float64, small sizes")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; 1 if a peer of ours gave wrong values, or if nothing was measured."""
    options = parser().parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser().error("--device cuda: this torch finds no GPU")
    set_up(options.device)
    console = Console(width=None if sys.stdout.isatty() else 180)
    names = options.problems or PROBLEMS
    cases = [(name, size) for name in names for size in _sizes(name, options)]
    if not cases:
        console.print("No problem has one of these sizes; see --help and bench/problems.")
        return 2
    peers = [PEERS[n] for n in options.peers or PEERS]
    if not options.peers and (options.quick or options.check):
        peers = [p for p in peers if p.kind != "compiled" or p.name == "jax"]
    with limited_to(options.threads, pinned=options.device == "cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options.check:
            return check(cases, peers, options.device, console)
        return _measure_and_report(cases, peers, options, console)


def _measure_and_report(
    cases: Cases, peers: list[Peer], options: argparse.Namespace, console: Console
) -> int:
    options.rounds = options.rounds or (7 if options.quick else 15)
    where = settings(DTYPES[options.dtype], options.device, options.threads, options.rounds)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)
        if options.device == "cpu":
            os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        run = Run(where, rates(options.device))
        _measure_all(run, cases, peers, options, console)
    report.show(run, console)
    if not run.rows:
        return 1
    if options.out:
        report.write_json(run, options.out / "results.jsonl")
        report.plot(run, options.out / "times.png")
        summary.write(run, options.out / "results.md")
        console.print(f"Wrote results.jsonl, results.md and times.png to {options.out}")
    return int(any(_ours_is_wrong(row) for row in run.rows))


def check(cases: Cases, peers: list[Peer], device: str, console: Console) -> int:
    """Every peer against the float64 row loop at the small sizes; 1 if one disagrees."""
    wrong = 0
    for name, size in cases:
        if size > CHECKED:
            continue
        case = PROBLEMS[name].make(size, torch.float64, device)
        expected = reference(case)
        for peer in peers:
            result, _ = agree(peer, case, expected)
            wrong += result.wrong
            words = result.refusal or f"scaled error {result.error or 0:.1e}"
            if peer.kind != "floor":
                console.print(f"{name:14} {size:5}  {peer.name:14} {words}", highlight=False)
    console.print(f"{wrong} disagree" if wrong else "All that ran agree.")
    return int(wrong > 0)


def ends_first(cases: Cases) -> Cases:
    """The largest size of every problem, then the smallest, then the next largest, and so on."""
    sizes: dict[str, list[int]] = {}
    for name, size in cases:
        sizes.setdefault(name, []).append(size)
    turns = {
        (name, size): 2 * min(i, len(of) - 1 - i) + (i < len(of) - 1 - i)
        for name, of in sizes.items()
        for i, size in enumerate(sorted(of))
    }
    return sorted(cases, key=turns.__getitem__)


def _measure_all(
    run: Run, cases: Cases, peers: list[Peer], options: argparse.Namespace, console: Console
) -> None:
    deadline = time.monotonic() + options.seconds if options.seconds else float("inf")
    limits = _limits(options)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for name, size in ends_first(cases) if options.seconds else cases:

            def tell(word: str, case: str = f"{name} {size}") -> None:
                progress.update(task, description=f"{case}: {word}")

            if time.monotonic() > deadline:
                run.missed.append(f"{name} {size} (no time left)")
                continue
            try:
                run.rows.append(_measure_one(name, size, peers, limits, options, tell))
            except KeyboardInterrupt:  # the cases before it are reported
                run.missed.append(f"{name} {size} (interrupted)")
                deadline = 0.0
            except Exception as error:  # in the case itself or its reference
                run.missed.append(f"{name} {size} ({brief(error)})")
            release()
            run.rows.sort(key=lambda row: cases.index((row.problem, row.size)))
            if options.out:  # what is there counts, also if the process is ended
                report.write_json(run, options.out / "results.jsonl")
            progress.advance(task)


def _measure_one(
    name: str,
    size: int,
    peers: list[Peer],
    limits: Limits,
    options: argparse.Namespace,
    tell: Callable[[str], None],
) -> Row:
    problem, dtype, on_cpu = PROBLEMS[name], DTYPES[options.dtype], options.device == "cpu"
    peaks = not (options.no_memory or options.quick)
    neighbours = Neighbours()
    tell("reference")
    expected: Whole | Sample | None = None
    if any(p.kind != "floor" for p in peers):
        expected = reference(problem.make(size, torch.float64, options.device))
    case = problem.make(size, dtype, options.device)
    results = measure(case, expected, peers, limits, peaks=peaks and not on_cpu, tell=tell)
    row = Row(name, size, {r.peer: r for r in results}, dtype, neighbours.share(), case.work)
    if peaks and on_cpu and size == problem.sizes[-1]:
        _add_peaks(row, options, tell)
    return row


def _limits(options: argparse.Namespace) -> Limits:
    seconds = QUICK_SECONDS if options.quick else PEER_SECONDS
    limits = Limits(options.rounds, seconds)
    if options.device != "cpu":
        limits = Limits(options.rounds, GPU_PEER_SECONDS, GPU_FIRST_SECONDS)
    if options.seconds:
        limits.compiling = COMPILING * options.seconds
    return limits


def _add_peaks(row: Row, options: argparse.Namespace, tell: Callable[[str], None]) -> None:
    where = {"dtype": DTYPES[options.dtype], "threads": options.threads}
    for result in row.results.values():
        if not result.refusal:
            tell(f"memory of {result.peer}")
            try:
                result.peak = memory.peak(row.problem, row.size, result.peer, **where)
            except Refusal as refusal:
                result.note = f"{result.note} no peak memory: {refusal}".strip()


def _sizes(name: str, options: argparse.Namespace) -> list[int]:
    problem = PROBLEMS[name]
    if options.sizes:
        return [n for n in problem.sizes_on(options.device) if n in options.sizes]
    return list(problem.sizes_on(options.device, options.quick))


def _ours_is_wrong(row: Row) -> bool:
    return any(r.wrong for r in row.results.values() if PEERS[r.peer].kind == "ours")


if __name__ == "__main__":
    sys.exit(main())
