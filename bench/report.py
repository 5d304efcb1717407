"""A run for the reader: tables on the terminal, JSON lines for programs, a plot of times."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.measure import Result
from bench.peers import PEERS
from bench.roofline import Floor
from bench.run import Row, Run, title
from bench.targets import Verdict, verdicts

BUSY = 0.05  # neighbours that take more than this share of the machine are mentioned
STYLES = {
    "ours": "bold green",
    "hand": "cyan",
    "compiled": "yellow",
    "captured": "yellow",
    "floor": "dim",
}
RATIOS = (
    ("stock / hesse", None),
    ("hesse.compile / hesse", "hesse.compile"),
    ("compile / hesse", "compile"),
    ("compile-rev / hesse", "compile-rev"),
    ("captured / hesse", "captured"),
    ("jax / hesse", "jax"),
    ("hand / hesse", "hand"),
    ("gradient / hesse", "gradient"),
)


def show(run: Run, console: Console) -> None:
    """Prints times, memory and the targets."""
    said = run.settings | run.measured_rates()
    console.print(" · ".join(f"{k} {v}" for k, v in said.items()), style="dim")
    for name, rows in run.by_problem().items():
        console.print(times(name, rows))
        console.print(_notes(rows), style="dim", highlight=False)
    if any(r.peak is not None for row in run.rows for r in row.results.values()):
        console.print(memory(run))
    if run.rates and run.rows:
        console.print(floors(run))
    console.print(targets(verdicts(run)))
    if run.missed:
        console.print(f"Not measured: {', '.join(run.missed)}", style="yellow")
    busy = [f"{r.problem} {r.size} ({r.busy:.0%})" for r in run.rows if r.busy > BUSY]
    if busy:
        console.print(f"Other processes were busy during: {', '.join(busy)}", style="yellow")


def times(name: str, rows: list[Row]) -> Table:
    """One problem: a row per peer, a column per size, then the ratios."""
    table = Table(title=f"{title(name)}: ms, median (quartiles)", title_justify="left")
    table.add_column("peer", no_wrap=True)
    for row in rows:
        table.add_column(f"N = {row.size}", justify="right", max_width=32)
    for peer in rows[0].results:
        cells = [_time_cell(row.results[peer]) for row in rows]
        table.add_row(peer, *cells, style=STYLES.get(PEERS[peer].kind))
    table.add_section()
    for label, peer in RATIOS:
        table.add_row(label, *[_ratio_cell(row, peer) for row in rows])
    return table


def memory(run: Run) -> Table:
    """Peak memory beyond the inputs where it was measured."""
    table = Table(title="Peak beyond the inputs, MiB (x output)", title_justify="left")
    rows = [row for row in run.rows if any(r.peak is not None for r in row.results.values())]
    table.add_column("peer", no_wrap=True)
    for row in rows:
        table.add_column(f"{row.problem} {row.size}", justify="right")
    for peer in rows[0].results:
        cells = [_peak_cell(row.results[peer], row.output_bytes) for row in rows]
        table.add_row(peer, *cells, style=STYLES.get(PEERS[peer].kind))
    return table


FLOORS = ("case", "MB", "GFLOP", "floor, ms", "bound by", "hesse / floor", "hesse.compile / floor")


def floors(run: Run) -> Table:
    """What each case must move and do, the time for that at the measured rates, and ours."""
    table = Table(title="Floors: bytes and FLOPs at the measured rates", title_justify="left")
    for i, column in enumerate(FLOORS):
        table.add_column(column, justify="right" if i else "left")
    for row in run.rows:
        at = row.floor(run.rates)
        table.add_row(f"{row.problem} {row.size}", *floor_cells(at), *over_floor(row, at))
    return table


def floor_cells(at: Floor) -> tuple[str, ...]:
    """Bytes, FLOPs, time and what bounds it."""
    moved, done = f"{at.bytes / 1e6:.3g}", f"{at.flops / 1e9:.3g}"
    return moved, done, f"{1e3 * at.seconds:.3g}", at.bound


def over_floor(row: Row, at: Floor) -> list[str]:
    """The times of ours in floors."""
    timed = [row.timed(peer) for peer in ("hesse", "hesse.compile")]
    return [f"{r.median / at.seconds:.3g}x" if r else "-" for r in timed]


def targets(lines: list[Verdict]) -> Table:
    """Every stated target: reached, or missed by how much."""
    table = Table(title="Targets", title_justify="left")
    for column in ("case", "asked", "measured", "outcome"):
        table.add_column(column)
    for line in lines:
        style = "dim" if line.margin is None else "green" if line.margin >= 1 else "red"
        table.add_row(line.case, line.claim, line.measured, Text(line.outcome, style))
    return table


def write_json(run: Run, path: Path) -> None:
    """A line for the settings and rates, for each case and peer, each floor and each target."""
    said = run.settings | run.measured_rates() | {"not_measured": run.missed}
    lines: list[dict[str, Any]] = [{"line": "run", **said}]
    for row in run.rows:
        if at := row.floor(run.rates):
            lines.append({"line": "floor", "problem": row.problem, "n": row.size} | placed(at))
        for r in row.results.values():
            where = {"line": "result", "problem": row.problem, "n": row.size}
            lines.append(where | measured(r) | {"others_busy": round(row.busy, 3)})
    write_lines([*lines, *map(stated, verdicts(run))], path)


def measured(r: Result) -> dict[str, Any]:
    """A result as a part of a line."""
    low, high = r.quartiles
    return {
        "peer": r.peer,
        "median_s": r.median,
        "q1_s": low,
        "q3_s": high,
        "samples": len(r.samples),
        "calls_per_sample": r.calls,
        "first_call_s": r.first,
        "scaled_error": r.error,
        "peak_bytes": r.peak,
        "note": r.note or None,
        "refusal": r.refusal or None,
    }


def placed(at: Floor) -> dict[str, Any]:
    """A floor as a part of a line."""
    return {
        "bytes": at.bytes,
        "flops": at.flops,
        "bytes_s": at.bytes_seconds,
        "flops_s": at.flops_seconds,
        "floor_s": at.seconds,
        "bound_by": at.bound,
    }


def stated(v: Verdict) -> dict[str, Any]:
    """A target as a line."""
    line = {"line": "target", "case": v.case, "asked": v.claim, "measured": v.measured}
    return line | {"margin": v.margin, "outcome": v.outcome}


def write_lines(lines: list[dict[str, Any]], path: Path) -> None:
    """One JSON object a line; what is not a number is null."""
    path.write_text("".join(json.dumps(_plain(line)) + "\n" for line in lines))


def plot(run: Run, path: Path) -> None:
    """Time against N on log-log axes, a panel per problem."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = run.by_problem()
    columns = min(4, len(groups))
    lines = math.ceil(len(groups) / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 3.4 * lines + 0.8), squeeze=False
    )
    palette = dict(zip(PEERS, ("black", *plt.get_cmap("tab20").colors), strict=False))
    for axis, (name, rows) in zip(axes.flat, groups.items(), strict=False):
        for peer in rows[0].results:
            points = [(row.size, 1e3 * r.median) for row in rows if (r := row.timed(peer))]
            ours = PEERS[peer].kind == "ours"
            dashes = {"floor": ":", "hand": "--"}.get(PEERS[peer].kind, "-")
            axis.loglog(
                [n for n, _ in points],
                [ms for _, ms in points],
                dashes,
                color=palette[peer],
                linewidth=2.5 if ours else 1.2,
                marker="o",
                markersize=4 if ours else 2.5,
                label=peer,
            )
        axis.set(title=title(name), xlabel="N", ylabel="ms")
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(groups) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=6, frameon=False)
    figure.tight_layout(rect=(0, 0.8 / (3.4 * lines + 0.8), 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _notes(rows: list[Row]) -> str:
    """What peers remarked, each remark once with the sizes it belongs to."""
    sizes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for r in row.results.values():
            if r.note:
                sizes.setdefault((r.peer, r.note), []).append(str(row.size))
    return "\n".join(f"  {p}, N = {', '.join(ns)}: {note}" for (p, note), ns in sizes.items())


def _time_cell(result: Result) -> Text:
    if result.refusal:
        return Text(result.refusal, "red" if result.wrong else "dim")
    low, high = result.quartiles
    text = f"{ms(result.median)} ({ms(low)}-{ms(high)})"
    if PEERS[result.peer].compiles:
        text += f"\nfirst call {result.first:.1f} s"
    return Text(text)


def _ratio_cell(row: Row, peer: str | None) -> str:
    ratio = row.ratio(peer)
    if ratio is None:
        return "-"
    return f"{ratio:.3g}x" if peer else f"{ratio:.3g}x {row.best_stock().peer}"


def _peak_cell(result: Result, output: int) -> str:
    if result.peak is None:
        return "-"
    return f"{result.peak / 2**20:.1f} ({result.peak / output:.3g}x)"


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()}
