"""What the engine has to show, and whether a run shows it: reached, or missed by how much.

Ratios are within one run. `stock` is the best eager PyTorch route at that size. What is asked on a
GPU is of an H100.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.measure import Result
from bench.problems import PROBLEMS
from bench.run import Row, Run, geometric_mean

LARGE = 500  # from this N on also ahead of the compilers
SLACK = 32 * 2**20
# On a GPU: geometric means over all cases; the largest size of each problem; replay of small ones.
GPU_STOCK, GPU_COMPILED = 20, 5
GPU_WRITES, GPU_ROOFLINE = 1.5, 0.6
REPLAYED, REPLAY_N, REPLAY_SECONDS = ("rosenbrock", "lennard_jones"), 64, 60e-6


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
    lines = _on_cpu(run) if run.settings["device"] == "cpu" else _on_gpu(run)
    lines += _no_slower_compiled(run)
    return lines + [_memory(row) for row in run.rows if any(r.peak for r in row.results.values())]


def _on_cpu(run: Run) -> list[Verdict]:
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
    return lines


def _no_slower_compiled(run: Run) -> list[Verdict]:
    """Of the case that speaks most against it."""
    claim = "hesse.compile no slower than hesse"
    rows = [row for row in run.rows if row.timed("hesse") and row.timed("hesse.compile")]
    ratios = [(1 / row.ratio("hesse.compile"), f"{row.problem} {row.size}") for row in rows]
    return [Verdict(case, claim, f"{x:.3g}x hesse", x) for x, case in sorted(ratios)[:1]]


def _on_gpu(run: Run) -> list[Verdict]:
    lines = [
        _geometric_mean(run, f"{GPU_STOCK}x best stock", ("hesse",), ("stock",), GPU_STOCK),
        _geometric_mean(
            run,
            f"{GPU_COMPILED}x best compiled or captured",
            ("hesse", "hesse.compile"),
            ("compiled", "captured"),
            GPU_COMPILED,
        ),
    ]
    for problem in PROBLEMS.values():
        size = problem.gpu_sizes[-1]
        case, row = f"{problem.name} {size}", run.find(problem.name, size)
        lines.append(_writes(case, row) if problem.structured else _roofline(case, row, run))
    for name in REPLAYED:
        for size in (n for n in PROBLEMS[name].gpu_sizes if n <= REPLAY_N):
            lines.append(_replay(f"{name} {size}", run.find(name, size)))
    return lines + [_faster(f"{r.problem} {r.size}", r, None, 1) for r in run.rows]


def _ours(row: Row | None, *peers: str) -> Result | None:
    timed = [r for peer in peers if row and (r := row.timed(peer))]
    return min(timed, key=lambda r: r.median, default=None)


def _geometric_mean(
    run: Run, claim: str, ours: tuple[str, ...], kinds: tuple[str, ...], wanted: float
) -> Verdict:
    pairs = [(_ours(row, *ours), row.best(*kinds)) for row in run.rows]
    ratios = [theirs.median / own.median for own, theirs in pairs if own and theirs]
    mean = geometric_mean(ratios)
    if mean is None:
        return Verdict("geometric mean", claim, "-", None)
    words = f"{mean:.3g}x over {len(ratios)} of {len(run.rows)} cases"
    return Verdict("geometric mean", claim, words, mean / wanted)


def _writes(case: str, row: Row | None) -> Verdict:
    claim = f"within {GPU_WRITES:g}x of writing the output"
    ours, write = _ours(row, "hesse", "hesse.compile"), row.timed("write") if row else None
    if not (ours and write):
        return Verdict(case, claim, "-", None)
    ratio = ours.median / write.median
    return Verdict(case, claim, f"{ratio:.3g}x, {ours.peer}", GPU_WRITES / ratio)


def _roofline(case: str, row: Row | None, run: Run) -> Verdict:
    claim = f"{GPU_ROOFLINE:.0%} of the roofline"
    ours, floor = _ours(row, "hesse", "hesse.compile"), row.floor(run.rates) if row else None
    if not (ours and floor):
        return Verdict(case, claim, "-", None)
    share = floor.seconds / ours.median
    return Verdict(case, claim, f"{share:.0%} of {floor.bound}, {ours.peer}", share / GPU_ROOFLINE)


def _replay(case: str, row: Row | None) -> Verdict:
    claim = f"replay in {1e6 * REPLAY_SECONDS:.0f} us"
    ours = _ours(row, "hesse.compile")
    if ours is None:
        refusal = row.results["hesse.compile"].refusal if _took_part(row, "hesse.compile") else "-"
        return Verdict(case, claim, refusal or "-", None)
    return Verdict(case, claim, f"{1e6 * ours.median:.3g} us", REPLAY_SECONDS / ours.median)


def _took_part(row: Row | None, peer: str) -> bool:
    return row is not None and peer in row.results


def _faster(case: str, row: Row | None, peer: str | None, wanted: float) -> Verdict:
    claim = f"{wanted:g}x {peer or 'best stock'}" if wanted != 1 else f"ahead of {peer or 'stock'}"
    ratio = row.ratio(peer) if row else None
    if ratio is None:
        refusal = row.results[peer].refusal if _took_part(row, peer or "") else ""
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
