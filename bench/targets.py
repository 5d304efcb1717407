"""What the engine has to show, and whether a run shows it: reached, or missed by how much.

Ratios are within one run. `stock` is the best eager PyTorch route at that size.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.problems import PROBLEMS
from bench.run import Row, Run

LARGE = 500  # from this N on also ahead of the compilers
SLACK = 32 * 2**20


@dataclass(frozen=True)
class Target:
    """On one case: so many times faster than stock, and at most so many times the closed form."""

    problem: str
    size: int
    stock: float
    hand: float | None


TARGETS = (
    Target("rosenbrock", 1024, 25, 1.8),
    Target("logistic", 1024, 3, 0.9),
    Target("mlp_params", 1633, 4, 1.6),
    Target("mlp_inputs", 2048, 150, 1.6),
    Target("lennard_jones", 510, 350, 1.5),
    Target("attention", 1024, 5, None),
)


@dataclass(frozen=True)
class Verdict:
    """One line of the closing section.

    Attributes:
        case: problem and size.
        claim: what was asked.
        measured: what came out, in words.
        margin: wanted over measured, oriented so that 1 or more is reached; `None` if not measured.
    """

    case: str
    claim: str
    measured: str
    margin: float | None

    @property
    def outcome(self) -> str:
        """`reached`, `missed by a factor`, or `not measured`."""
        if self.margin is None:
            return "not measured"
        return "reached" if self.margin >= 1 else f"missed by {1 / self.margin:.2f}x"


def verdicts(run: Run) -> list[Verdict]:
    """Every target against a run, in the order in which they are stated."""
    lines = []
    for target in TARGETS:
        row = run.find(target.problem, target.size)
        case = f"{target.problem} {target.size}"
        lines.append(_faster(case, row, None, target.stock))
        if target.hand is not None:
            lines.append(_near_hand(case, row, target.hand))
    stated = {(t.problem, t.size) for t in TARGETS}
    for row in run.rows:
        case = f"{row.problem} {row.size}"
        if row.size >= LARGE:
            lines += [_faster(case, row, peer, 1) for peer in ("compile", "jax")]
        if (row.problem, row.size) not in stated:
            lines.append(_faster(case, row, None, 1))
    lines += [_memory(row) for row in run.rows if any(r.peak for r in row.results.values())]
    return lines


def _faster(case: str, row: Row | None, peer: str | None, wanted: float) -> Verdict:
    claim = f"{wanted:g}x {peer or 'best stock'}" if wanted != 1 else f"ahead of {peer or 'stock'}"
    ratio = row.ratio(peer) if row else None
    if ratio is None:
        refusal = row.results[peer].refusal if row and peer in row.results else ""
        return Verdict(case, claim, f"{peer}: {refusal}" if refusal else "-", None)
    name = peer or row.best_stock().peer
    return Verdict(case, claim, f"{ratio:.3g}x {name}", ratio / wanted)


def _near_hand(case: str, row: Row | None, wanted: float) -> Verdict:
    claim = f"within {wanted:g}x of hand"
    ratio = row.ratio("hand") if row else None
    if ratio is None:
        return Verdict(case, claim, "-", None)
    return Verdict(case, claim, f"{1 / ratio:.3g}x of hand", wanted * ratio)


def _memory(row: Row) -> Verdict:
    case, structured = f"{row.problem} {row.size}", PROBLEMS[row.problem].structured
    claim = "peak: 1.3 outputs + gradient + 32 MiB" + ("" if structured else " + chunk")
    ours, gradient = row.results.get("hesse"), row.results.get("gradient")
    if not (ours and gradient and ours.peak and gradient.peak is not None):
        return Verdict(case, claim, "-", None)
    allowed = 1.3 * row.output_bytes + gradient.peak + SLACK
    allowed += 0 if structured else ours.chunk_bytes
    words = f"{ours.peak / 2**20:.1f} of {allowed / 2**20:.1f} MiB"
    return Verdict(case, claim, words, allowed / ours.peak)
