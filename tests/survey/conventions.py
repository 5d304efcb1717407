"""Where hesse and stock may differ, and why: documented conventions, each with its reason.

A key is the name of an entry, or of one of its samples.
"""

NORMALISED = (
    "the gradient takes the log probabilities for normalised, the value does not: differences "
    "leave the surface on which the one is that of the other"
)

DIFFERENT: dict[str, str] = {
    "native_layer_norm": "without a weight, stock loses the second derivatives of the bias; "
    "ours are those of differences",
    "nn_functional_ctc_loss": NORMALISED,
    "nn.nn_CTCLoss": NORMALISED,
}
