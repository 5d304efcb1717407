"""Elements moved about: shuffles, turns, and pads with what is there."""

import torch
import torch.nn.functional as F

from . import Scenario


def op(name, node, fn, shape):
    return Scenario(name, (node,), fn, (shape,))


def padded(name, mode, rank, pad, shape):
    kind = {"reflect": "Reflection", "replicate": "Replication"}[mode]
    return op(
        f"pad, {name}",
        f"{kind}Pad{rank}DBackward0",
        lambda x: F.pad(x, pad, mode=mode),
        shape,
    )


SCENARIOS = (
    op(
        "channel_shuffle",
        "ChannelShuffleBackward0",
        lambda x: F.channel_shuffle(x, 2),
        (2, 6, 2, 1),
    ),
    op("pixel_shuffle", "PixelShuffleBackward0", lambda x: F.pixel_shuffle(x, 2), (2, 4, 2, 3)),
    op("pixel_unshuffle", "PixelUnshuffleBackward0", lambda x: F.pixel_unshuffle(x, 2), (2, 2, 4)),
    *(
        op(f"rot90, {k} times", "Rot90Backward0", lambda x, k=k: x.rot90(k, (0, 2)), (2, 2, 3))
        for k in (-1, 1, 2)
    ),
    padded("a line reflected", "reflect", 1, (2, 1), (2, 3, 4)),
    padded("a line reflected far", "reflect", 1, (5, 4), (2, 6)),
    padded("an image reflected", "reflect", 2, (1, 0, 2, 1), (2, 3, 3)),
    padded("a volume reflected", "reflect", 3, (1, 0, 0, 1, 1, 0), (1, 1, 2, 2, 2)),
    padded("a line replicated", "replicate", 1, (2, 1), (2, 3)),
    padded("an image replicated", "replicate", 2, (1, 2, 0, 1), (2, 1, 2, 3)),
    padded("an image replicated and cropped", "replicate", 2, (-1, 2, 0, -1), (1, 3, 3)),
    padded("a volume replicated", "replicate", 3, (1, 0, 0, 1, 1, 0), (1, 2, 2, 2)),
    op("frexp", "FrexpBackward0", lambda x: torch.frexp(x * 5).mantissa, (3, 4)),
)
