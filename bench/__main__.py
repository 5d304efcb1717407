"""`python -m bench`: problems x peers, agreement first, then interleaved rounds."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import measure, memory, report, summary
from bench.command import limited_to, positive
from bench.peers import PEERS, Peer, Refusal
from bench.problems import PROBLEMS
from bench.run import Neighbours, Row, Run, settings

DTYPES = {"float32": torch.float32, "float64": torch.float64}
CHECKED = 64  # the largest N that --check looks at
PEER_SECONDS, QUICK_SECONDS = 1.0, 0.5  # for one peer over all rounds of a case


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
        "--threads", type=positive, default=2, help="threads, and processors, to use (2)"
    )
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for results.jsonl, .md and times.png"
    )
    p.add_argument("--quick", action="store_true", help="two sizes each, no compile, no memory")
    p.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    p.add_argument("--check", action="store_true", help="only agreement, float64, small sizes")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; 1 if a peer of ours gave wrong values."""
    options = parser().parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser().error("--device cuda: this torch finds no GPU")
    console = Console(width=None if sys.stdout.isatty() else 180)
    names = options.problems or PROBLEMS
    cases = [(name, size) for name in names for size in _sizes(name, options)]
    if not cases:
        console.print("No problem has one of these sizes; see --help and bench/problems.")
        return 2
    peers = [PEERS[n] for n in options.peers or PEERS]
    if not options.peers and (options.quick or options.check):
        peers = [p for p in peers if p.name != "compile"]
    with limited_to(options.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options.check:
            return check(cases, peers, options.device, console)
        return _measure_and_report(cases, peers, options, console)


def _measure_and_report(
    cases: list[tuple[str, int]], peers: list[Peer], options: argparse.Namespace, console: Console
) -> int:
    options.rounds = options.rounds or (7 if options.quick else 15)
    run = Run(settings(DTYPES[options.dtype], options.device, options.threads, options.rounds))
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", cache)
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        _measure_all(run, cases, peers, options, console)
    report.show(run, console)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        report.write_json(run, options.out / "results.jsonl")
        report.plot(run, options.out / "times.png")
        summary.write(run, options.out / "results.md")
        console.print(f"Wrote results.jsonl, results.md and times.png to {options.out}")
    return int(any(_ours_is_wrong(row) for row in run.rows))


def check(cases: list[tuple[str, int]], peers: list[Peer], device: str, console: Console) -> int:
    """Every peer against the float64 row loop at the small sizes; 1 if one disagrees."""
    wrong = 0
    for name, size in cases:
        if size > CHECKED:
            continue
        expected = measure.reference(PROBLEMS[name], size, device)
        case = PROBLEMS[name].make(size, torch.float64, device)
        for peer in peers:
            result, _ = measure.agree(peer, case, expected)
            wrong += result.wrong
            words = result.refusal or f"scaled error {result.error or 0:.1e}"
            if peer.kind != "floor":
                console.print(f"{name:14} {size:5}  {peer.name:14} {words}", highlight=False)
    console.print(f"{wrong} disagree" if wrong else "All that ran agree.")
    return int(wrong > 0)


def _measure_all(
    run: Run,
    cases: list[tuple[str, int]],
    peers: list[Peer],
    options: argparse.Namespace,
    console: Console,
) -> None:
    dtype = DTYPES[options.dtype]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for name, size in cases:

            def tell(word: str, case: str = f"{name} {size}") -> None:
                progress.update(task, description=f"{case}: {word}")

            neighbours = Neighbours()
            results = measure.measure(
                PROBLEMS[name],
                size,
                peers,
                rounds=options.rounds,
                budget=QUICK_SECONDS if options.quick else PEER_SECONDS,
                dtype=dtype,
                device=options.device,
                tell=tell,
            )
            row = Row(name, size, {r.peer: r for r in results}, dtype.itemsize)
            row.busy = neighbours.share()
            run.rows.append(row)
            if size == PROBLEMS[name].sizes[-1] and not (options.no_memory or options.quick):
                _add_peaks(row, options, tell)
            progress.advance(task)


def _add_peaks(row: Row, options: argparse.Namespace, tell: Callable[[str], None]) -> None:
    where = {"dtype": DTYPES[options.dtype], "device": options.device, "threads": options.threads}
    for result in row.results.values():
        if not result.refusal:
            tell(f"memory of {result.peer}")
            try:
                result.peak = memory.peak(row.problem, row.size, result.peer, **where)
            except Refusal as refusal:
                result.note = f"{result.note} no peak memory: {refusal}".strip()


def _sizes(name: str, options: argparse.Namespace) -> list[int]:
    problem = PROBLEMS[name]
    sizes = problem.quick if options.quick else problem.sizes
    return [n for n in (problem.sizes if options.sizes else sizes) if n in (options.sizes or sizes)]


def _ours_is_wrong(row: Row) -> bool:
    return "hesse" in row.results and row.results["hesse"].wrong


if __name__ == "__main__":
    sys.exit(main())
