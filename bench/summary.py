"""A run as one Markdown table: what a README or a page of notes shows."""

from __future__ import annotations

from pathlib import Path

from bench.problems import PROBLEMS
from bench.run import Row, Run

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
)


def write(run: Run, path: Path) -> None:
    """Writes the smallest and the largest size of each problem, and the settings under them."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name, rows in run.by_problem().items():
        for row in rows[:: max(1, len(rows) - 1)]:
            lines.append("| " + " | ".join(_cells(PROBLEMS[name].summary, row)) + " |")
    settings = ", ".join(f"{k} {v}" for k, v in run.settings.items() if v is not None)
    path.write_text("\n".join([*lines, "", settings, ""]))


def _cells(title: str, row: Row) -> list[str]:
    ours, stock = row.timed("hesse"), row.best_stock()
    peak = ours.peak if ours else None
    return [
        title,
        f"{row.size:,}",
        _ms(ours.median) if ours else "-",
        f"{_ms(stock.median)} ({stock.peer})" if stock else "-",
        *(_ratio(row.ratio(peer)) for peer in (None, "compile", "jax", "hand")),
        "-" if peak is None else f"{peak / row.output_bytes:.2g}",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
