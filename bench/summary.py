"""A run as Markdown: a table of times, the machine's rates, the targets."""

from __future__ import annotations

from pathlib import Path

from bench.problems import PROBLEMS
from bench.report import floor_cells, over_floor
from bench.run import Row, Run
from bench.targets import verdicts

COLUMNS = (
    "problem",
    "N",
    "hesse, ms",
    "best stock, ms",
    "stock / hesse",
    "compile / hesse",
    "jax / hesse",
    "hand / hesse",
    "peak / output",
    "hesse.compile, ms",
    "captured / hesse",
    "floor, ms",
    "bound by",
    "hesse / floor",
)


def write(run: Run, path: Path) -> None:
    """Writes the smallest and the largest size of each problem, settings and rates, and targets."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name, rows in run.by_problem().items():
        for row in rows[:: max(1, len(rows) - 1)]:
            lines.append("| " + " | ".join(_cells(PROBLEMS[name].summary, row, run)) + " |")
    said = run.settings | run.measured_rates()
    lines += ["", ", ".join(f"{k} {v}" for k, v in said.items() if v is not None), ""]
    if run.missed:
        lines += [f"Not measured: {', '.join(run.missed)}", ""]
    lines += ["| case | asked | measured | outcome |", "|---|---|---|---|"]
    lines += [f"| {v.case} | {v.claim} | {v.measured} | {v.outcome} |" for v in verdicts(run)]
    path.write_text("\n".join([*lines, ""]))


def _cells(title: str, row: Row, run: Run) -> list[str]:
    ours, stock, compiled = row.timed("hesse"), row.best_stock(), row.timed("hesse.compile")
    peak = ours.peak if ours else None
    at = row.floor(run.rates)
    return [
        title,
        f"{row.size:,}",
        _ms(ours.median) if ours else "-",
        f"{_ms(stock.median)} ({stock.peer})" if stock else "-",
        *(_ratio(row.ratio(peer)) for peer in (None, "compile", "jax", "hand")),
        "-" if peak is None else f"{peak / row.output_bytes:.2g}",
        _ms(compiled.median) if compiled else "-",
        _ratio(row.ratio("captured")),
        *((*floor_cells(at)[2:], over_floor(row, at)[0]) if at else "---"),
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
