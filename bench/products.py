"""`python -m bench.products`: what one linearization answers beside the whole Hessian.

Hessian-vector products, the Hessians of a batch, and diagonals, each against what stock PyTorch
offers: agreement with float64 first, then interleaved rounds.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import hesse
from bench import report
from bench.command import limited_to, positive
from bench.measure import Limits, Result, admit, interleave, size_sample
from bench.peers import Peer
from bench.questions import QUESTIONS
from bench.questions.question import Question, deviation, seconds
from bench.run import Neighbours, settings
from bench.targets import Verdict

PEER_SECONDS = 12.0  # that one way may take over all rounds of a case
QUICK_SECONDS = 3.0
STYLES = {"ours": "bold green", "hand": "cyan", "floor": "dim"}


@dataclass(frozen=True)
class Answer:
    """What every way did in one case of a question."""

    question: Question
    case: str
    results: dict[str, Result]
    busy: float = 0.0  # share of the machine that other processes took meanwhile

    @property
    def verdicts(self) -> list[Verdict]:
        """The targets."""
        return self.question.verdicts(self.case, self.results)


def answer(
    question: Question,
    name: str,
    *,
    rounds: int,
    budget: float,
    quick: bool,
    tell: Callable[[str], None] = lambda _: None,
) -> Answer:
    """Times the ways of one case that agree with its answer in float64."""
    neighbours = Neighbours()
    make = question.cases[name]
    tell("reference")
    expected = question.expected(make(torch.float64, quick))
    case = make(torch.float32, quick)
    results, ready = {}, {}
    for way in question.ways:
        tell(way.name)
        result, prepared = admit(way, case, lambda v: deviation(question.read(v), expected))
        results[way.name] = result
        if prepared is not None:
            size_sample(prepared, result, compiles=False)
            ready[way.name] = prepared
    interleave(ready, results, Limits(rounds, budget), tell)
    return Answer(question, name, results, neighbours.share())


def table(question: Question, answers: list[Answer]) -> Table:
    """A row per case and way: the time of one answer, and in units of the question."""
    unit, words = question.unit
    out = Table(title=question.title, title_justify="left")
    for column in ("case", "way", "ms (quartiles)", words, "remark"):
        out.add_column(column, justify="right" if column.startswith(("ms", words)) else "left")
    for a in answers:
        one = seconds(a.results, unit)
        for i, way in enumerate(question.ways):
            r = a.results[way.name]
            if r.refusal.startswith("not with"):
                continue
            cells = _cells(r, one)
            style = "red" if r.wrong else STYLES.get(way.kind)
            out.add_row("" if i else a.case, way.name, *cells, style=style)
        out.add_section()
    return out


def _cells(r: Result, one: float | None) -> tuple[str, str, str]:
    if not r.samples:
        return "-", "-", r.refusal
    low, high = r.quartiles
    times = report.ms(r.median / r.answers)
    spread = f"{report.ms(low / r.answers)}-{report.ms(high / r.answers)}"
    share = f"{r.median / r.answers / one:.2f}" if one else "-"
    return f"{times} ({spread})", share, r.note


def markdown(answers: list[Answer]) -> str:
    """The same as a page."""
    lines = []
    for question in {a.question.name: a.question for a in answers}.values():
        unit, words = question.unit
        lines += [
            f"## {question.title}",
            "",
            f"| case | way | ms | {words} | |",
            "|---|---|---|---|---|",
        ]
        for a in answers:
            if a.question is not question:
                continue
            one = seconds(a.results, unit)
            for way in question.ways:
                r = a.results[way.name]
                if not r.refusal.startswith("not with"):
                    lines.append(f"| {a.case} | {way.name} | {' | '.join(_cells(r, one))} |")
        lines.append("")
    lines += ["## Targets", "", "| case | asked | measured | outcome |", "|---|---|---|---|"]
    for v in (v for a in answers for v in a.verdicts):
        lines.append(f"| {v.case} | {v.claim} | {v.measured} | {v.outcome} |")
    return "\n".join(lines) + "\n"


def write(answers: list[Answer], folder: Path, where: dict[str, object]) -> None:
    """`products.jsonl` and `products.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"line": "run", **where}]
    for a in answers:
        for r in a.results.values():
            place = {"line": "result", "question": a.question.name, "case": a.case}
            rest = {"answers": r.answers, "others_busy": round(a.busy, 3)}
            lines.append(place | report.measured(r) | rest)
        lines += [report.stated(v) for v in a.verdicts]
    report.write_lines(lines, folder / "products.jsonl")
    (folder / "products.md").write_text(markdown(answers))


def main(argv: list[str] | None = None) -> int:
    """Prints a table per question and the targets; 1 if a way of ours gave wrong values."""
    p = argparse.ArgumentParser(prog="python -m bench.products", description=__doc__)
    p.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    p.add_argument("--quick", action="store_true", help="smaller cases, fewer rounds")
    p.add_argument("--rounds", type=positive, help="samples of each way (15, quick 7)")
    p.add_argument("--threads", type=positive, default=2)
    p.add_argument("--out", type=Path, help="folder for products.jsonl and products.md")
    options = p.parse_args(argv)
    rounds = options.rounds or (7 if options.quick else 15)
    console = Console(width=None if sys.stdout.isatty() else 150)
    answers = []
    with limited_to(options.threads), warnings.catch_warnings(), hesse.fallback("error"):
        warnings.simplefilter("ignore")
        for name in options.only:
            question = QUESTIONS[name]
            for case in question.cases:
                with console.status(f"{name}: {case}") as status:
                    answers.append(
                        answer(
                            question,
                            case,
                            rounds=rounds,
                            budget=QUICK_SECONDS if options.quick else PEER_SECONDS,
                            quick=options.quick,
                            tell=lambda word, c=case: status.update(f"{c}: {word}"),
                        )
                    )
            console.print(table(question, [a for a in answers if a.question is question]))
    console.print(report.targets([v for a in answers for v in a.verdicts]))
    busy = [f"{a.case} ({a.busy:.0%})" for a in answers if a.busy > report.BUSY]
    if busy:
        console.print(f"Other processes were busy during: {', '.join(busy)}", style="yellow")
    if options.out:
        write(answers, options.out, settings(torch.float32, "cpu", options.threads, rounds))
        console.print(f"Wrote products.jsonl and products.md to {options.out}")
    return int(any(_ours(a.question.ways, r).wrong for a in answers for r in a.results.values()))


def _ours(ways: tuple[Peer, ...], r: Result) -> Result:
    kind = next(way.kind for way in ways if way.name == r.peer)
    return r if kind == "ours" else Result(r.peer)


if __name__ == "__main__":
    sys.exit(main())
