"""One table of scenarios drives the tests of every rule.

A scenario is an op, the autograd nodes it must exercise, and the inputs to try it on. Each module
of this package lists those of one family as ``SCENARIOS``: to add a family, add a file. What is
the same for all of them (layouts, dtypes, which inputs are active) is derived here, as *layouts*.
"""

import importlib
import pkgutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

Interval = tuple[float, float]
REAL: Interval = (-2.0, 2.0)
POSITIVE: Interval = (0.2, 3.0)


@dataclass(frozen=True, eq=False)
class Scenario:
    """One op on one set of inputs.

    Args:
        name: of the test, unique in the table.
        nodes: autograd nodes with a native rule that it exercises, such as ``"MulBackward0"``.
        fn: ``fn(*inputs) -> Tensor`` or tuple of them. It makes constants from its inputs.
        shapes: of the inputs, float64 unless the layout says otherwise.
        domains: one interval per input that its values are drawn from; a single one is for all.
        elementwise: takes inputs of any shape, with broadcasting: more layouts apply.
        edges: points (one number per input) at which value, gradient and Hessian must be torch's,
            infinities and NaN included.
        mended: points and the Hessian (numbers) there, at which torch's own holds a NaN, or is
            asymmetric, only because of how its backward masks; ours is the value or the limit.
        reference: the same function, such that torch differentiates it twice; ``fn`` if None.
        skips: layout -> the reason why it does not apply.
        driven: no rule covers these nodes as they are here: they run by the autograd rule.
        on: type of the only device that has the op, or a stand-in for it; "": any.
    """

    name: str
    nodes: tuple[str, ...]
    fn: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
    shapes: tuple[tuple[int, ...], ...] = ((3, 4),)
    domains: tuple[Interval, ...] = (REAL,)
    elementwise: bool = False
    edges: tuple[tuple[float, ...], ...] = ()
    mended: tuple[tuple[tuple[float, ...], tuple[tuple[float, ...], ...]], ...] = ()
    reference: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]] | None = None
    skips: Mapping[str, str] = field(default_factory=dict)
    driven: bool = False
    on: str = ""

    def domain(self, i: int) -> Interval:
        return self.domains[i if len(self.domains) > 1 else 0]


LAYOUTS = (
    "plain",
    "0-d",
    "empty",
    "broadcast",
    "expanded",
    "non-contiguous",
    "negated",
    "float32",
    "float16",
    "mixed dtypes",
    "only input 0",
    "only input 1",
    "only input 2",
)


def compatible(scenario: Scenario, layout: str) -> bool:
    """Whether a layout says something of this scenario. What it says may still be skipped."""
    n = len(scenario.shapes)
    if layout.startswith("only input"):
        return 1 < n and int(layout[-1]) < n
    if layout in ("broadcast", "mixed dtypes"):
        return scenario.elementwise and n > 1
    if layout in ("0-d", "empty", "float16"):
        return scenario.elementwise
    if layout in ("expanded", "non-contiguous", "negated"):
        return any(scenario.shapes)
    return True


@dataclass(frozen=True)
class Case:
    """A scenario in one layout."""

    scenario: Scenario
    layout: str

    def __str__(self) -> str:
        return f"{self.scenario.name}-{self.layout}"

    @property
    def tolerance(self) -> dict[str, float]:
        if self.layout == "float16":
            return {"rtol": 2e-2, "atol": 2e-2}
        if self.layout in ("float32", "mixed dtypes"):
            return {"rtol": 2e-4, "atol": 2e-5}
        return {"rtol": 1e-9, "atol": 1e-11}

    def inputs(self) -> list[torch.Tensor]:
        """Leaves on the default device, the same on each; those that are active require grad."""
        s = self.scenario
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))
        inputs = []
        for i, shape in enumerate(self._shapes()):
            low, high = s.domain(i)
            x = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
            x = (x * (high - low) + low).to(torch.get_default_device())
            x = self._lay_out(x).to(self._dtype(i)).detach()
            active = not self.layout.startswith("only input") or int(self.layout[-1]) == i
            inputs.append(x.requires_grad_(active))
        return inputs

    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        shapes = self.scenario.shapes
        if self.layout == "0-d":
            return ((),) * len(shapes)
        if self.layout == "empty":
            return ((0, 3),) * len(shapes)
        if self.layout == "broadcast":
            return ((3, 1), (4,), (2, 1, 1))[: len(shapes)]
        return shapes

    def _dtype(self, i: int) -> torch.dtype:
        if self.layout == "mixed dtypes":
            return torch.float64 if i == 0 else torch.float32
        return {"float32": torch.float32, "float16": torch.float16}.get(self.layout, torch.float64)

    def _lay_out(self, x: torch.Tensor) -> torch.Tensor:
        if self.layout == "expanded" and x.dim() > 0:
            return x[:1].expand(x.shape)
        if self.layout == "negated":  # a view whose memory has the other sign
            return torch.complex(torch.zeros_like(x), -x).conj().imag
        if self.layout == "non-contiguous" and x.dim() > 0:
            if x.dim() == 1:
                return torch.stack([x, x], -1)[:, 0]
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        return x


def _collect() -> Iterator[Scenario]:
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        yield from importlib.import_module(f"{__name__}.{module.name}").SCENARIOS


ALL: tuple[Scenario, ...] = tuple(_collect())
TABLE: tuple[Scenario, ...] = tuple(s for s in ALL if s.on in ("", torch.get_default_device().type))
CASES: dict[Scenario, list[Case]] = {
    s: [Case(s, layout) for layout in LAYOUTS if compatible(s, layout) and layout not in s.skips]
    for s in TABLE
}
