"""Where hesse and stock may differ, and why: documented conventions, each with its reason.

A key is the name of an entry, or of one of its samples. Where a convention names differences as its
judge, they must confirm what stock does not.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Convention:
    """A difference that is meant.

    Args:
        reason: why.
        judged: whether central differences of the gradient must confirm ours.
    """

    reason: str
    judged: bool


NORMALISED = (
    "the gradient takes the log probabilities for normalised, the value does not: differences "
    "leave the surface on which the one is that of the other"
)

DIFFERENT: dict[str, Convention] = {
    "native_layer_norm": Convention(
        "without a weight, stock loses the second derivatives of the bias; ours are those of "
        "differences",
        judged=True,
    ),
    "nn_functional_ctc_loss": Convention(NORMALISED, judged=False),
    "nn.nn_CTCLoss": Convention(NORMALISED, judged=False),
}
