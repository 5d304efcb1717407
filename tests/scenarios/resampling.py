"""Interpolation, grid sampling and patches."""

import itertools

import torch
import torch.nn.functional as F

from . import Scenario
from .attention import NO_BACKWARD, STAND_INS

# ---- interpolation -------------------------------------------------------------------------------

LINE, IMAGE, SOLID = (2, 2, 4), (2, 2, 3, 4), (2, 2, 2, 3, 2)


def resize(op, node, shape, case, **options):
    return Scenario(
        f"{op}{case}",
        (f"Upsample{node}Backward0",),
        lambda x: F.interpolate(x, **options),
        (shape,),
    )


NEAREST = tuple(
    resize(f"{mode} {rank}d", f"{node}{rank}D", shape, f", {case}", mode=mode, **options)
    for mode, node in (("nearest", "Nearest"), ("nearest-exact", "NearestExact"))
    for rank, shape in ((1, LINE), (2, IMAGE), (3, SOLID))
    for case, options in (
        ("twice", {"scale_factor": 2}),
        ("to 4 times the size", {"size": tuple(4 * n for n in shape[2:])}),
        ("thrice", {"size": tuple(3 * n for n in shape[2:])}),
        ("by 1.7", {"scale_factor": 1.7}),
        ("to 2", {"size": (2,) * rank}),
    )
)

SMOOTH = tuple(
    resize(
        mode,
        node,
        shape,
        f", {case}{', corners aligned' if align else ''}",
        mode=mode,
        align_corners=align,
        **options,
    )
    for mode, node, shape in (
        ("linear", "Linear1D", LINE),
        ("bilinear", "Bilinear2D", IMAGE),
        ("bicubic", "Bicubic2D", IMAGE),
        ("trilinear", "Trilinear3D", SOLID),
    )
    for align in (False, True)
    for case, options in (
        ("twice", {"scale_factor": 2}),
        ("by 1.7", {"scale_factor": 1.7}),
        ("to 2", {"size": (2,) * (len(shape) - 2)}),
        ("same size", {"size": shape[2:]}),
    )
)

SMOOTHED = tuple(
    Scenario(
        f"antialiased {op}, {case}{', corners aligned' if align else ''}",
        (f"Upsample{node}AaBackward0",),
        lambda x, fn=fn, size=size, align=align: fn(x, size, align),
        ((2, 2, 4, 5),),
    )
    for op, node in (
        ("bilinear2d", "Bilinear2D"),
        ("bicubic2d", "Bicubic2D"),
        ("lanczos2d", "Lanczos2D"),
    )
    for fn in [getattr(torch.ops.aten, f"_upsample_{op}_aa", None)]  # torch 2.11 has no lanczos
    if fn is not None
    for align in (False, True)
    for case, size in (("smaller", (2, 3)), ("larger", (5, 6)))
)


def back(op, node, shape, *options):
    """The backward of an interpolation, where a gradient was differentiated: a node of its own."""
    fn = getattr(torch.ops.aten, f"{op}_backward", None)
    out = tuple(n + 1 for n in shape[2:])
    return [
        Scenario(
            f"{op} backward",
            (f"Upsample{node}BackwardBackward0",),
            lambda g: fn(g, out, shape, *options),
            ((*shape[:2], *out),),
        )
        for _ in range(fn is not None)
    ]


BACK = (
    *back("upsample_nearest1d", "Nearest1D", LINE),
    *back("upsample_nearest2d", "Nearest2D", IMAGE),
    *back("upsample_nearest3d", "Nearest3D", SOLID),
    *back("_upsample_nearest_exact1d", "NearestExact1D", LINE),
    *back("_upsample_nearest_exact2d", "NearestExact2D", IMAGE),
    *back("_upsample_nearest_exact3d", "NearestExact3D", SOLID),
    *back("upsample_linear1d", "Linear1D", LINE, False),
    *back("upsample_bilinear2d", "Bilinear2D", IMAGE, True),
    *back("upsample_bicubic2d", "Bicubic2D", IMAGE, False),
    *back("upsample_trilinear3d", "Trilinear3D", SOLID, True),
    *back("_upsample_bilinear2d_aa", "Bilinear2DAa", IMAGE, False),
    *back("_upsample_bicubic2d_aa", "Bicubic2DAa", IMAGE, False),
    *back("_upsample_lanczos2d_aa", "Lanczos2DAa", IMAGE, False),
)

# ---- grid sampling -------------------------------------------------------------------------------


def coordinate(g, size, padding, align, tap=False):
    """In pixels, as g is of a ``tap``; kept within the image, or mirrored at its edges."""
    if not tap:
        g = (g + 1) / 2 * (size - 1) if align else ((g + 1) * size - 1) / 2
    if padding == "reflection":
        low, span = (0, size - 1) if align else (-0.5, size)
        d = (g - low).abs()
        turns = torch.floor(d / span)
        g = torch.where(turns % 2 == 0, d - turns * span, (turns + 1) * span - d) + low
    return g if padding == "zeros" else g.clamp(0, size - 1)


def cubic(d):
    a = -0.75
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    return torch.where(d <= 1, near, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a)


def taps(g, size, mode, padding, align):
    """Pixels and their weights, along one axis."""
    if mode == "bicubic":
        p = coordinate(g, size, "zeros", align)
        for k in range(-1, 3):
            i = torch.floor(p.detach()) + k
            weight = cubic((p - i).abs())
            yield coordinate(i, size, padding, align, tap=True), weight
        return
    p = coordinate(g, size, padding, align)
    if mode == "nearest":
        yield torch.round(p.detach()), 1 + 0 * p
        return
    i = torch.floor(p.detach())
    yield i, 1 - (p - i)
    yield i + 1, p - i


def sampled(x, grid, mode, padding, align):
    """``F.grid_sample``, from elements picked and weights."""
    space = x.shape[2:]
    axes = [list(taps(grid[..., -1 - s], n, mode, padding, align)) for s, n in enumerate(space)]
    total = 0
    for combination in itertools.product(*axes):
        index, weight = 0, 1
        for (i, w), n in zip(combination, space, strict=True):
            index = index * n + i.clamp(0, n - 1).long()
            weight = weight * torch.where((i >= 0) & (i < n), w, 0)
        flat = index.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
        picked = x.flatten(2).gather(2, flat).unflatten(2, index.shape[1:])
        total = total + picked * weight.unsqueeze(1)
    return total


def sampling(rank, mode, padding, align, x, grid):
    options = {"mode": mode, "padding_mode": padding, "align_corners": align}
    return Scenario(
        f"grid_sample {rank}d, {mode}, {padding}{', corners aligned' if align else ''}",
        (f"GridSampler{rank}DBackward0",),
        lambda x, g: F.grid_sample(x, g, **options),
        (x, grid),
        ((-2.0, 2.0), (-1.7, 1.7)),
        reference=lambda x, g: sampled(x, g, mode, padding, align),
    )


STAND_INS.impl("cudnn_grid_sampler", lambda x, g: F.grid_sample(x, g, align_corners=True), "CPU")
CUDNN = Scenario(
    "cuDNN's grid_sample",
    ("CudnnGridSamplerBackward0",),
    torch.ops.aten.cudnn_grid_sampler,
    ((2, 2, 3, 4), (2, 3, 2, 2)),
    ((-2.0, 2.0), (-1.7, 1.7)),
    reference=lambda x, g: sampled(x, g, "bilinear", "zeros", True),
    skips=NO_BACKWARD,
    on="cpu",
)

GRIDS = tuple(
    sampling(rank, mode, padding, align, x, grid)
    for rank, modes, x, grid in (
        (2, ("bilinear", "nearest", "bicubic"), (2, 2, 3, 4), (2, 3, 2, 2)),
        (3, ("bilinear", "nearest"), (2, 2, 2, 3, 2), (2, 2, 1, 3, 3)),
    )
    for mode in modes
    for padding in ("zeros", "border", "reflection")
    for align in (False, True)
)

AFFINE = tuple(
    Scenario(
        f"affine_grid of {size}{', corners aligned' if align else ''}",
        ("AffineGridGeneratorBackward0",),
        lambda theta, size=size, align=align: F.affine_grid(theta, size, align_corners=align),
        (theta,),
    )
    for size, theta in (((2, 3, 3, 4), (2, 2, 3)), ((2, 1, 2, 3, 2), (2, 3, 4)))
    for align in (False, True)
)

# ---- patches -------------------------------------------------------------------------------------

WINDOWS = (
    ("", {"kernel_size": 2}),
    ("side by side", {"kernel_size": (2, 3), "stride": (2, 3)}),
    ("padded, apart", {"kernel_size": 2, "stride": 3, "padding": 1}),
    ("padded, dilated", {"kernel_size": (2, 1), "dilation": (2, 1), "padding": (1, 0)}),
)

PATCHES = tuple(
    scenario
    for case, window in WINDOWS
    for shape in ((2, 2, 4, 5), (2, 4, 5))
    for columns in [F.unfold(torch.zeros(shape), **window).shape]
    for scenario in (
        Scenario(
            f"unfold of {len(shape)} axes, {case}",
            ("Im2ColBackward0",),
            lambda x, window=window: F.unfold(x, **window),
            (shape,),
        ),
        Scenario(
            f"fold of {len(shape)} axes, {case}",
            ("Col2ImBackward0",),
            lambda x, window=window: F.fold(x, (4, 5), **window),
            (columns,),
        ),
    )
)

SCENARIOS = (*NEAREST, *SMOOTH, *SMOOTHED, *BACK, *GRIDS, CUDNN, *AFFINE, *PATCHES)
