"""What a call did, counted: which rules ran, how much structure survived, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Report:
    """The counts of one Hessian, as returned by :func:`hesse.explain`.

    Attributes:
        steps: autograd nodes between the inputs and the output.
        native_ops: node name -> count, run by a rule of the engine.
        user_ops: node name -> count, run by a rule of :func:`hesse.register_rule`.
        autograd_ops: node name -> count, run by driving the node itself (slower, that step only).
        looped_ops: node name -> count, those of them whose seeds ran one after another, because
            they cannot be batched (slowest): a custom Function, an op that vmap does not know.
        fallback: None, or why the whole call goes through plain autograd.
        core_elements: elements of all tangent cores of the sweep.
        flops: floating-point operations of the sweep.
        densified: node names at which a structured tangent became dense.
        widest_terms: terms alive at the widest point.
        widest_bytes: bytes alive at the widest point, the output not counted.
        chunk_size: seeds pushed at a time.
        chunks: number of such pushes.
        gemms: matrix products run.
        symmetric: whether the graph is a true gradient, so that one triangle is enough.
        output_bytes: bytes of all blocks.
    """

    steps: int = 0
    native_ops: Mapping[str, int] = field(default_factory=dict)
    user_ops: Mapping[str, int] = field(default_factory=dict)
    autograd_ops: Mapping[str, int] = field(default_factory=dict)
    looped_ops: Mapping[str, int] = field(default_factory=dict)
    fallback: str | None = None
    core_elements: int = 0
    flops: int = 0
    densified: tuple[str, ...] = ()
    widest_terms: int = 0
    widest_bytes: int = 0
    chunk_size: int = 0
    chunks: int = 0
    gemms: int = 0
    symmetric: bool = True
    output_bytes: int = 0

    @classmethod
    def of(cls, counts: Mapping[str, Any], output_bytes: int) -> Report:
        """Read the engine's counts; a count this version does not know is left out."""
        known = {f.name: counts[f.name] for f in fields(cls) if f.name in counts}
        known["densified"] = tuple(known.get("densified", ()))
        known["output_bytes"] = output_bytes
        return cls(**known)

    def __str__(self) -> str:
        """Aligned lines, one count each."""
        if self.fallback is not None:
            lines = [("route", "plain autograd"), ("fallback", self.fallback)]
        else:
            lines = [
                ("route", "engine"),
                ("steps", f"{self.steps:,}"),
                ("native ops", _names(self.native_ops)),
                *([("user ops", _names(self.user_ops))] if self.user_ops else []),
                ("autograd ops", _names(self.autograd_ops)),
                ("looped ops", _names(self.looped_ops)),
                ("densified", ", ".join(self.densified) or "none"),
                ("core elements", f"{self.core_elements:,}"),
                ("flops", f"{self.flops:,}"),
                ("matrix products", f"{self.gemms:,}"),
                ("chunks", f"{self.chunks:,} of {self.chunk_size:,} seeds"),
                ("widest point", f"{self.widest_terms:,} terms, {_bytes(self.widest_bytes)}"),
                ("symmetric", "yes" if self.symmetric else "no"),
                ("output", _bytes(self.output_bytes)),
            ]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _names(counts: Mapping[str, int]) -> str:
    most_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(n if c == 1 else f"{n} x{c}" for n, c in most_first) or "none"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
