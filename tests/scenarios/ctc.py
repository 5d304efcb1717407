"""Connectionist temporal classification, against its recursion written out.

torch has no second derivative of its own. Its first one takes the log probabilities for normalised:
it is that of the loss and the sum of all probabilities, which is then a constant.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import Scenario


@dataclass(frozen=True)
class Sequences:
    """What the samples of a batch hold: the classes and how long each lasts."""

    targets: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]
    blank: int = 0

    @property
    def letters(self) -> tuple[int, ...]:
        return tuple(map(len, self.targets))

    def padded(self, pad: int) -> torch.Tensor:
        wide = max(1, *self.letters)
        return torch.tensor([[*t, *[pad] * (wide - len(t))] for t in self.targets])

    def joined(self) -> torch.Tensor:
        return torch.tensor([c for t in self.targets for c in t])


def one(x: torch.Tensor, target: tuple[int, ...], blank: int) -> torch.Tensor:
    """-log P of one sample, x [T, C], over all paths."""
    labels = [blank]
    for c in target:
        labels += [c, blank]
    a = [x.new_zeros(())] + [None] * (len(labels) - 1)
    for row in x:
        after = []
        for s, label in enumerate(labels):
            from_ = [a[s - j] for j in (0, 1) if s >= j]
            if s > 1 and labels[s - 2] != label:
                from_.append(a[s - 2])
            from_ = [f for f in from_ if f is not None]
            after.append(torch.stack(from_).logsumexp(0) + row[label] if from_ else None)
        a = after
    ends = [e for e in a[-2:] if e is not None]
    return -torch.stack(ends).logsumexp(0) if ends else None


def reduced(
    losses: list[torch.Tensor | None], batch: Sequences, how: str, x: torch.Tensor
) -> torch.Tensor:
    y = torch.stack([0 * x.sum() if loss is None else loss for loss in losses])
    if how == "mean":
        return (y / torch.tensor(batch.letters).clamp_min(1)).mean()
    return y.sum() if how == "sum" else y


def ctc(
    case: str,
    batch: Sequences,
    node: str = "CtcLossBackward0",
    how: str = "none",
    joined: bool = False,
    pad: int = 0,
    normalise: bool = True,
    shape: tuple[int, ...] = (),
) -> Scenario:
    def prepared(x):
        return x.log_softmax(-1) if normalise else x

    def fn(x):
        targets = batch.joined() if joined else batch.padded(pad)
        if node == "CtcLossBackward1":
            lengths = torch.tensor(batch.steps), torch.tensor(batch.letters)
            losses, _ = torch.ops.aten._ctc_loss.Tensor(
                prepared(x), targets, *lengths, batch.blank, True
            )
            return reduced(list(losses), batch, how, x)
        return F.ctc_loss(
            prepared(x),
            targets if x.dim() == 3 else targets[0],
            batch.steps,
            batch.letters,
            batch.blank,
            how,
            zero_infinity=True,
        )

    def reference(x):
        p = prepared(x)
        p = p if x.dim() == 3 else p[:, None]
        losses = []
        for i, (target, steps) in enumerate(zip(batch.targets, batch.steps, strict=True)):
            loss, total = one(p[:steps, i], target, batch.blank), p[:steps, i].exp().sum()
            losses.append(loss if loss is None else loss + total - total.detach())
        y = reduced(losses, batch, how, p)
        return y if x.dim() == 3 or how != "none" else y[0]

    shape = shape or (max(batch.steps), len(batch.steps), 4)
    return Scenario(f"ctc_loss{case}", (node,), fn, (shape,), reference=reference)


THREE = Sequences(((1, 2), (3, 3, 1), (2,)), (4, 5, 3))

SCENARIOS = (
    *(ctc(f", {how}", THREE, how=how) for how in ("none", "mean", "sum")),
    ctc(", padded with what is no class", THREE, pad=-1),
    ctc(", lengths as tensors", THREE, "CtcLossBackward1", how="mean"),
    ctc(", one target after the other", THREE, joined=True),
    ctc(", one target after the other, lengths as tensors", THREE, "CtcLossBackward1", joined=True),
    ctc(", the last class blank", Sequences(((1, 2), (0, 0, 1)), (4, 5), blank=3)),
    ctc(" of an empty target", Sequences(((), (1, 2)), (3, 3))),
    ctc(" of empty targets", Sequences(((), ()), (3, 2))),
    ctc(" of a target that does not fit", Sequences(((1, 1), (2,), (1, 2, 3)), (2, 2, 2))),
    ctc(" of one step", Sequences(((1,), ()), (1, 1))),
    ctc(" of one sequence", Sequences(((1, 2),), (4,)), shape=(4, 4)),
    ctc(" of what is not normalised", THREE, normalise=False),
)
