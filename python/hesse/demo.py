"""The demo: exact Hessians of two classifiers on the digits images, checked, timed and drawn.

    images -> Problem (loss, parameters) -> Hessian -> facts, agreement, times -> table and picture

``python -m hesse --help`` lists the options.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import functional

import hesse

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

NEEDS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}
DECAY = 1e-4  # weight decay: the curvature of a direction that the images say nothing about
ROUNDS = 5  # timed runs of each route; a route slower than PATIENCE seconds runs once
PATIENCE = 1.0
CHUNK = 128  # rows per batch of the chunked route

Params = tuple[Tensor, ...]
Blocks = tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True)
class Problem:
    """A scalar function of several parameters, and the point to look at."""

    name: str
    loss: Callable[..., Tensor]
    params: Params
    labels: tuple[str, ...]
    width: int  # elements per image of the widest layer that the parameters reach

    @property
    def size(self) -> int:
        """N, the number of parameters."""
        return sum(p.numel() for p in self.params)


@dataclass
class Route:
    """One way to compute the Hessian: its times in seconds, and its distance from hesse's."""

    name: str
    run: Callable[[], Blocks]
    times: list[float] = field(default_factory=list)
    difference: float | None = None  # max |H - H_hesse|
    skipped: str | None = None


# --- the two losses, written as one writes them ---


def softmax_regression(images: Tensor, digits: Tensor) -> Problem:
    """Multinomial logistic regression, 64 pixels to 10 classes: N = 650."""

    def loss(W: Tensor, b: Tensor) -> Tensor:
        scores = F.linear(images, W, b)
        return F.cross_entropy(scores, digits) + DECAY / 2 * (W.square().sum() + b.square().sum())

    start = (images.new_zeros(10, 64), images.new_zeros(10))
    return Problem("softmax regression", loss, descend(loss, start), ("W", "b"), width=10)


def tanh_mlp(images: Tensor, digits: Tensor) -> Problem:
    """A perceptron with one hidden layer of 26 tanh units, 64-26-10: N = 1,960."""

    def loss(W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(images, W1, b1))
        scores = F.linear(hidden, W2, b2)
        decay = sum(p.square().sum() for p in (W1, b1, W2, b2))
        return F.cross_entropy(scores, digits) + DECAY / 2 * decay

    random = torch.Generator().manual_seed(0)
    start = (
        torch.randn(26, 64, generator=random).to(images) / 8,
        images.new_zeros(26),
        torch.randn(10, 26, generator=random).to(images) / 5,
        images.new_zeros(10),
    )
    return Problem("tanh MLP", loss, descend(loss, start), ("W₁", "b₁", "W₂", "b₂"), width=26)


def descend(loss: Callable[..., Tensor], start: Params, steps: int = 15) -> Params:
    """A point on the way down: a few optimiser steps from ``start``."""
    params = tuple(p.clone().requires_grad_() for p in start)
    optimizer = torch.optim.LBFGS(params, max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(*params)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return tuple(p.detach() for p in params)


# --- routes and measurement ---


def routes(problem: Problem) -> list[Route]:
    """What hesse does, then what PyTorch offers."""
    loss, params = problem.loss, problem.params
    every = tuple(range(len(params)))
    jacrev: Any = torch.func.jacrev
    stock: Any = functional.hessian
    return [
        Route("hesse.hessian", lambda: hesse.hessian(loss, params)),
        Route("functional, loop", lambda: stock(loss, params)),
        Route("functional, vectorize", lambda: stock(loss, params, vectorize=True)),
        Route(
            "vectorize, forward-mode",
            lambda: stock(loss, params, vectorize=True, outer_jacobian_strategy="forward-mode"),
        ),
        Route("torch.func.hessian", lambda: torch.func.hessian(loss, every)(*params)),
        Route(
            f"jacrev(jacrev), chunks of {CHUNK}",
            lambda: jacrev(jacrev(loss, every), every, chunk_size=CHUNK)(*params),
        ),
    ]


def compare(
    console: Console, problem: Problem, images: int, rounds: int
) -> tuple[Tensor, list[Route]]:
    """Run every route in interleaved rounds, under a progress bar.

    Args:
        console: where the bar is drawn.
        problem: what to differentiate.
        images: how many images the loss sees, for the memory estimate.
        rounds: timed runs of each route.

    Returns:
        hesse's Hessian, ``[N, N]``, and the routes with their times.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    every = routes(problem)
    for route in every[2:5]:  # these batch all N rows at once, about ten tensors wide
        need = 10 * 8 * problem.size * images * problem.width
        if need > available_memory():
            route.skipped = f"skipped: needs about {need / 2**30:.0f} GiB"
    text = TextColumn("{task.description}")
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), text)
    hide = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hide) as progress:
        bar = progress.add_task(problem.name, total=rounds * len(every))
        H = matrix(every[0].run(), problem.params)  # also warms up
        for turn in range(rounds):
            for route in every:
                progress.update(bar, description=f"{problem.name}: {route.name}", refresh=True)
                if route.skipped is None and (turn == 0 or route.times[0] < PATIENCE):
                    start = time.perf_counter()
                    blocks = route.run()
                    route.times.append(time.perf_counter() - start)
                    if turn == 0:
                        other = matrix(blocks, problem.params)
                        route.difference = float((other - H).abs().max())
                    del blocks
                progress.advance(bar)
    return H, every


def matrix(blocks: Blocks, params: Params) -> Tensor:
    """The blocks ``H[i][j]`` of shape ``p_i.shape + p_j.shape`` as one ``[N, N]`` matrix."""
    rows = [
        torch.cat([b.reshape(p.numel(), q.numel()) for b, q in zip(row, params, strict=True)], 1)
        for row, p in zip(blocks, params, strict=True)
    ]
    return torch.cat(rows).detach()


def available_memory() -> float:
    """Bytes that can be had without swapping; infinity where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            return next(1024.0 * int(s.split()[1]) for s in lines if s.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


# --- words ---


def describe(console: Console, problem: Problem, H: Tensor, eigenvalues: Tensor) -> None:
    """Print the facts of one Hessian."""
    params = tuple(p.clone().requires_grad_() for p in problem.params)
    value = problem.loss(*params)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, params)])
    shapes = ", ".join(
        f"{label} {'x'.join(map(str, p.shape))}"
        for label, p in zip(problem.labels, params, strict=True)
    )
    report = hesse.explain(problem.loss, problem.params)
    native, other = sum(report.native_ops.values()), sum(report.autograd_ops.values())
    console.print(f"\n[bold]{problem.name}[/], {problem.size:,} parameters ({shapes})")
    for name, text in (
        ("value", f"{value.item():.6f}"),
        ("gradient norm", f"{float(gradient.norm()):.3e}"),
        ("eigenvalues", f"{float(eigenvalues[0]):.3e} to {float(eigenvalues[-1]):.3e}"),
        ("asymmetry", f"{float((H - H.T).abs().max()):.1e}"),
        ("route", report.fallback or f"engine: {native} ops by rules, {other} by autograd"),
    ):
        console.print(f"  {name:<14} {text}", highlight=False, soft_wrap=True)


def print_agreement(console: Console, H: Tensor, stock: Route) -> None:
    """Print how far hesse and stock's loop are apart."""
    if stock.difference is None:
        return
    relative = stock.difference / float(H.abs().max())
    console.print(
        f"  {'agreement':<14} with torch.autograd.functional.hessian: "
        f"max |diff| {stock.difference:.1e}, relative {relative:.1e}",
        highlight=False,
        soft_wrap=True,
    )


def print_times(console: Console, every: list[Route]) -> None:
    """Print the table of one problem."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=True, header_style="dim")
    table.add_column(" route", no_wrap=True)
    for heading in ("median ms", "min - max", "/ hesse", "max |diff|"):
        table.add_column(heading, justify="right")
    base = statistics.median(every[0].times)
    for route in every:
        if route.skipped is not None:
            table.add_row(route.name, "", route.skipped)
            continue
        middle, low, high = statistics.median(route.times), min(route.times), max(route.times)
        spread = f"{low * 1e3:,.1f} - {high * 1e3:,.1f}" if len(route.times) > 1 else ""
        table.add_row(
            route.name,
            f"{middle * 1e3:,.1f}",
            spread,
            "" if route is every[0] else f"{middle / base:,.1f}x",
            "" if route is every[0] else f"{route.difference:.1e}",
            style="bold" if route is every[0] else "",
        )
    console.print(table)


# --- picture ---

INK, GREY, WARM, COLD = "#1d2433", "#7b8494", "#c8501e", "#1f66ad"
DIVERGING = ("#06203f", "#1f66ad", "#93c4e6", "#ffffff", "#f8bd92", "#c8501e", "#4d1005")
FONT: Any = {
    "font.size": 14, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.8, "axes.labelsize": 14,
}  # fmt: skip


def draw(problem: Problem, images: int, H: Tensor, eigenvalues: Tensor, path: str) -> None:
    """Write the heat map of ``H`` by parameter blocks, and its spectrum."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    width, height, side = 17.2, 10.5, 8.6  # inches; the heat map is side x side
    heads = (
        (
            0.85,
            f"Hessian of a {problem.name}",
            f"cross-entropy of {images:,} digits images, {problem.size:,} parameters",
        ),
        (
            11.75,
            "Its eigenvalues",
            f"largest first; {int((eigenvalues < 0).sum()):,} of {problem.size:,} are negative",
        ),
    )
    with rc_context(FONT):
        figure = Figure(figsize=(width, height), facecolor="white")

        def axes(left: float, wide: float) -> Axes:
            return figure.add_axes((left / width, 0.55 / height, wide / width, side / height))

        draw_heat_map(axes(0.85, side), axes(9.6, 0.18), problem, H)
        draw_spectrum(axes(11.75, 5.05), eigenvalues)
        for left, title, note in heads:
            figure.text(left / width, 10.03 / height, title, fontsize=21, fontweight="bold")
            figure.text(left / width, 9.69 / height, note, fontsize=13, color=GREY)
        figure.savefig(path, dpi=120)


def draw_heat_map(axes: Axes, bar: Axes, problem: Problem, H: Tensor) -> None:
    """Draw the entries on a symmetric-log scale, with a line between parameter blocks."""
    from matplotlib.colors import LinearSegmentedColormap, SymLogNorm

    peak = float(H.abs().max())
    norm = SymLogNorm(linthresh=peak / 1e3, linscale=0.5, vmin=-peak, vmax=peak)
    colors = LinearSegmentedColormap.from_list("hesse", DIVERGING)
    picture = axes.imshow(H.numpy(), cmap=colors, norm=norm, interpolation_stage="rgba")
    axes.figure.colorbar(picture, cax=bar)
    bar.tick_params(length=3, labelsize=12)
    bar.minorticks_off()

    edges, middles = [0], []
    for p in problem.params:
        edges.append(edges[-1] + p.numel())
        middles.append((edges[-1] + edges[-2]) / 2 - 0.5)
    for edge in edges[1:-1]:
        axes.axhline(edge - 0.5, color=INK, linewidth=0.7)
        axes.axvline(edge - 0.5, color=INK, linewidth=0.7)
    axes.set_xticks(middles, problem.labels)
    axes.set_yticks(middles, problem.labels)
    axes.tick_params(
        length=4, labelsize=15, top=True, labeltop=True, bottom=False, labelbottom=False
    )
    axes.set_xlabel(
        f"each square of {problem.labels[0]} is a pair of hidden units, pixel by pixel",
        fontsize=13,
        color=GREY,
        labelpad=8,
    )


def draw_spectrum(axes: Axes, eigenvalues: Tensor) -> None:
    """Draw the eigenvalues in descending order on a symmetric-log scale."""
    values = eigenvalues.flip(0)
    ranks = torch.arange(1, len(values) + 1)
    low, high = float(values[-1]), float(values[0])
    axes.set_yscale("symlog", linthresh=DECAY / 10, linscale=0.6)
    for sign, color in ((values >= 0, WARM), (values < 0, COLD)):
        x, y = ranks[sign].numpy(), values[sign].numpy()
        axes.fill_between(x, y, color=color, alpha=0.35, linewidth=0)
        axes.plot(x, y, ".", color=color, markersize=4)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("rank")
    axes.set_xlim(-0.03 * len(values), 1.03 * len(values))
    axes.grid(axis="y", color=INK, alpha=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    label(axes, f"{high:.3g}", (1, high), (10, 0), color=WARM, va="center")
    label(
        axes,
        f"{low:.2g}".replace("-", "\N{MINUS SIGN}"),
        (len(values), low),
        (-10, 0),
        color=COLD,
        va="center",
        ha="right",
    )
    unseen = "weight decay:\ndirections that\nno image sees"
    label(axes, unseen, (0.5 * len(values), DECAY), (0, 12), color=GREY, va="bottom")


def label(
    axes: Axes, text: str, at: tuple[float, float], shift: tuple[int, int], **how: Any
) -> None:
    """Write ``text`` so many points beside the point ``at``."""
    axes.annotate(text, at, shift, textcoords="offset points", **how)


# --- the command ---


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def main(argv: list[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: command-line arguments; None takes them from ``sys.argv``.

    Returns:
        The exit status: 0, or 2 when a package is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m hesse", description="Exact Hessians of two classifiers of digits images."
    )
    parser.add_argument("--out", default="hesse-demo.png", help="the picture to write")
    parser.add_argument("--quick", action="store_true", help="128 images, one run of each route")
    parser.add_argument("--threads", type=_positive, help="CPU threads (default: torch's choice)")
    options = parser.parse_args(argv)

    missing = [name for module, name in NEEDS.items() if not importlib.util.find_spec(module)]
    if missing:
        print(f"hesse: the demo needs {', '.join(missing)}: pip install 'hesse[demo]'")
        return 2
    if not os.path.isdir(os.path.dirname(options.out) or "."):
        parser.error(f"--out {options.out}: there is no such folder")
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    from rich.console import Console
    from sklearn.datasets import load_digits

    count = 128 if options.quick else 1797
    data = load_digits()
    images = torch.tensor(data.data[:count] / 16, dtype=torch.float64)
    digits = torch.tensor(data.target[:count])
    console = Console()
    console.print(
        f"hesse {hesse.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"float64, {count:,} images of 8x8 pixels",
        highlight=False,
        soft_wrap=True,
    )
    for make in (softmax_regression, tanh_mlp):
        problem = make(images, digits)
        H, every = compare(console, problem, count, 1 if options.quick else ROUNDS)
        eigenvalues = torch.linalg.eigvalsh(H)
        describe(console, problem, H, eigenvalues)
        print_agreement(console, H, every[1])
        print_times(console, every)
    draw(problem, count, H, eigenvalues, options.out)
    console.print(f"\npicture: {os.path.abspath(options.out)}", highlight=False, soft_wrap=True)
    return 0
