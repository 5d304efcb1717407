"""Convolution, which is bilinear in the image and the weights."""

import torch.nn.functional as F

from . import Scenario


def convolution(name, fn, *shapes, **kwargs):
    return Scenario(name, ("ConvolutionBackward0",), fn, shapes, **kwargs)


ADDED = {"create_graph": "torch raises where added output is differentiated a third time"}


IMAGE, WEIGHT, BIAS = (2, 2, 5, 4), (3, 2, 3, 2), (3,)

SCENARIOS = (
    convolution("conv2d", F.conv2d, IMAGE, WEIGHT),
    convolution("conv2d with bias", F.conv2d, IMAGE, WEIGHT, BIAS),
    convolution("conv2d, padded", lambda x, w: F.conv2d(x, w, padding=(1, 2)), IMAGE, WEIGHT),
    convolution(
        "conv2d, strided", lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1)), IMAGE, WEIGHT, BIAS
    ),
    convolution("conv2d, dilated", lambda x, w: F.conv2d(x, w, dilation=(2, 1)), IMAGE, WEIGHT),
    convolution(
        "conv2d, padded to the same size",
        lambda x, w: F.conv2d(x, w, padding="same"),
        IMAGE,
        (2, 2, 3, 3),
    ),
    convolution("conv2d of one image", F.conv2d, (2, 4, 4), (2, 2, 2, 2)),
    convolution("conv2d of 1 by 1", F.conv2d, IMAGE, (3, 2, 1, 1)),
    convolution(
        "conv2d in groups", lambda x, w: F.conv2d(x, w, groups=2), (1, 4, 3, 3), (2, 2, 2, 2)
    ),
    convolution("conv1d", F.conv1d, (2, 2, 5), (3, 2, 2), BIAS),
    convolution(
        "conv1d, strided", lambda x, w: F.conv1d(x, w, stride=2, padding=1), (2, 2, 5), (3, 2, 3)
    ),
    convolution("conv3d", F.conv3d, (1, 2, 3, 3, 3), (2, 2, 2, 2, 2)),
    convolution(
        "conv_transpose2d",
        lambda x, w: F.conv_transpose2d(x, w, stride=2),
        (1, 2, 3, 3),
        (2, 2, 2, 2),
    ),
    convolution("conv2d of one channel", F.conv2d, (2, 1, 4, 4), (1, 1, 3, 3)),
    convolution("conv2d by the whole image", F.conv2d, (2, 2, 3, 3), (4, 2, 3, 3), (4,)),
    convolution(
        "conv2d, strided, padded and dilated",
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1, dilation=2),
        (2, 2, 6, 5),
        (2, 2, 2, 2),
        (2,),
    ),
    convolution(
        "conv2d of each channel", lambda x, w: F.conv2d(x, w, groups=3), (2, 3, 3, 3), (3, 1, 2, 2)
    ),
    convolution("conv1d, dilated", lambda x, w: F.conv1d(x, w, dilation=3), (1, 2, 6), (2, 2, 2)),
    convolution("conv_transpose1d", F.conv_transpose1d, (2, 2, 3), (2, 2, 2)),
    convolution(
        "conv_transpose2d with bias, padded",
        lambda x, w, b: F.conv_transpose2d(x, w, b, padding=1),
        (2, 2, 3, 3),
        (2, 3, 3, 2),
        (3,),
    ),
    convolution(
        "conv_transpose2d in groups",
        lambda x, w: F.conv_transpose2d(x, w, stride=2, output_padding=1, groups=2),
        (2, 4, 2, 3),
        (4, 3, 2, 2),
        skips=ADDED,
    ),
    convolution(
        "conv_transpose2d, padded more than it reaches",
        lambda x, w: F.conv_transpose2d(x, w, padding=2),
        (1, 2, 5, 6),
        (2, 2, 2, 3),
    ),
    convolution(
        "conv_transpose1d with room for another window",
        lambda x, w: F.conv_transpose1d(x, w, stride=1, dilation=3, output_padding=2),
        (2, 2, 3),
        (2, 2, 2),
        skips=ADDED,
    ),
    convolution(
        "conv_transpose1d, strided, padded and dilated",
        lambda x, w: F.conv_transpose1d(x, w, stride=3, padding=2, dilation=2, output_padding=1),
        (2, 2, 3),
        (2, 2, 3),
        skips=ADDED,
    ),
    convolution(
        "conv_transpose3d",
        lambda x, w: F.conv_transpose3d(x, w, stride=(1, 2, 1)),
        (1, 2, 2, 2, 2),
        (2, 1, 2, 1, 2),
    ),
    convolution(
        "conv3d in groups, strided and padded",
        lambda x, w, b: F.conv3d(x, w, b, stride=(1, 2, 1), padding=(0, 1, 1), groups=2),
        (1, 4, 2, 3, 2),
        (2, 2, 2, 2, 2),
        (2,),
    ),
    convolution(
        "conv1d, padded more than it reaches",
        lambda x, w: F.conv1d(x, w, padding=2),
        (1, 2, 3),
        (2, 2, 2),
    ),
    convolution(
        "conv2d that leaves out the rim", lambda x, w: F.conv2d(x, w, stride=3), IMAGE, (2, 2, 2, 1)
    ),
)
