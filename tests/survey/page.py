"""The published table, docs/coverage.md: one row per op, written and read back."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from .outcomes import Outcome, Route

STOCK_ROUTES = ("loop", "vectorize=True", "torch.func.hessian")

HEAD = """\
# Coverage

Every differentiable op and module in PyTorch's own test tables (`op_db`, `module_db`), through
`hesse.hessian`: float64, every sample of up to {most} elements (of larger ones a corner varies),
f(x) = sum(sin(op(x))). Made by `make coverage` with torch {torch}; `tests/test_every_op.py`
fails where a row is not what it finds.

| samples | |
|---|---:|
| in all, of {entries} ops and modules | {total:,} |
| that stock's loop can take | {stock:,} |
| agreeing with it, by default, with `create_graph` and in forward mode | {agreeing:,} |
| beyond stock, agreeing with central differences of the gradient | {beyond:,} |
| that differ by a convention (see below) | {special:,} |
| that neither can take | {neither:,} |
| by native rules | {native_share:.1%} |
| ops and modules all of whose samples are | {native_ops:,} |
| of them without a dense tangent on the way | {structured_share:.1%} |

**Beyond stock** ({beyond_count}): {beyond_names}.

How to read a row. *native*: by rules of the engine, structure kept from end to end. *dense*: by
native rules, one of which had to make a structured tangent dense. *autograd rule*: a node without
a rule of its own was driven itself, which is slower, for that step. *plain autograd*: the whole
call left the engine. *not differentiable*: an error, as in stock. The last columns count the
samples that stock can take in its loop, batched, and in `torch.func`.

## Conventions

Where stock spreads a NaN over rows or columns that do not depend on it, hesse gives the number that
central differences confirm, or the zero that the structure of the function proves: {mended:,}
samples. Where the value of the function is itself not finite, which entries are NaN may differ.
Apart from that:

{conventions}

## By op

| op | samples | hesse | loop | vectorize=True | torch.func.hessian |
|---|---:|---|---:|---:|---:|
"""

WORDS = {
    Route.NATIVE: "native",
    Route.DENSE: "dense",
    Route.DRIVEN: "autograd rule",
    Route.FALLBACK: "plain autograd",
    Route.NONE: "not differentiable",
}


@dataclass(frozen=True)
class Row:
    """One op: what hesse does with its samples, and how many each stock route can take."""

    op: str
    samples: int
    hesse: str
    stock: tuple[int, ...]

    def counts(self) -> Counter[str]:
        """Samples by the word for their route."""
        words = "|".join(WORDS.values())
        found = re.findall(rf"({words})(?: (\d+))?", self.hesse)
        return Counter({word: int(number or self.samples) for word, number in found})

    def __str__(self) -> str:
        cells = (f"`{self.op}`", self.samples, self.hesse, *self.stock)
        return "| " + " | ".join(map(str, cells)) + " |"


def in_words(outcomes: Iterable[Outcome]) -> str:
    """Such as ``native 8, autograd rule 2 (FooBackward0)``; no number where all are the same."""
    outcomes = list(outcomes)
    counts = Counter(o.route for o in outcomes)
    parts = []
    for route, word in WORDS.items():
        if not counts[route]:
            continue
        part = word if len(counts) == 1 else f"{word} {counts[route]}"
        nodes = sorted({n for o in outcomes if o.route is route for n in o.driven})
        if route is Route.DRIVEN:
            part += f" ({', '.join(nodes)})"
        parts.append(part)
    if any(o.convention for o in outcomes):
        parts.append("see conventions")
    return ", ".join(parts)


def row(op: str, outcomes: list[Outcome], others: Iterable[int] = ()) -> Row:
    """``others``: how many samples each further route of stock can take."""
    loop = sum(o.stock is None for o in outcomes)
    return Row(op, len(outcomes), in_words(outcomes), (loop, *others))


def page(
    found: Mapping[str, list[Outcome]], others: Mapping[str, tuple[int, ...]], most: int
) -> str:
    """All of docs/coverage.md."""
    every = [o for outcomes in found.values() for o in outcomes]
    can = [o for o in every if o.stock is None]
    right = [o for o in every if o.error is None and not o.wrong and not o.convention]
    more = [o for o in right if o.stock is not None]
    refused = [o for o in every if o.error is not None]
    done = [o for o in every if o.error is None]
    native = [o for o in done if o.route in (Route.NATIVE, Route.DENSE)]
    names = sorted(op for op, outcomes in found.items() if any(o in more for o in outcomes))
    meant = {op: o.convention for op, outcomes in found.items() for o in outcomes if o.convention}
    head = HEAD.format(
        most=most,
        torch=torch.__version__.partition("+")[0],
        entries=len(found),
        total=len(every),
        stock=len(can),
        agreeing=len(right) - len(more),
        beyond=len(more),
        neither=len(refused),
        special=sum(o.convention is not None for o in every),
        native_share=len(native) / len(done),
        native_ops=sum(all(o in native for o in outcomes) for outcomes in found.values()),
        structured_share=sum(o.route is Route.NATIVE for o in done) / len(done),
        beyond_count=len(names),
        beyond_names=", ".join(f"`{n}`" for n in names),
        mended=sum(o.mended for o in every),
        conventions="\n".join(f"- `{op}`: {why}" for op, why in sorted(meant.items())) or "- none",
    )
    rows = [str(row(op, outcomes, others[op])) for op, outcomes in sorted(found.items())]
    return head + "\n".join(rows) + "\n"


def read(text: str) -> dict[str, Row]:
    """The rows of a page."""
    rows = {}
    for line in text.partition("## By op")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not cells[0].startswith("`"):
            continue
        op, samples, hesse, *stock = cells
        rows[op.strip("`")] = Row(op.strip("`"), int(samples), hesse, tuple(map(int, stock)))
    return rows
