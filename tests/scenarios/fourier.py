"""Discrete Fourier transforms, of even and odd lengths, scaled in each way."""

from collections.abc import Callable

import torch
from torch import Tensor, fft

from . import Scenario
from .complex_values import both_parts


def of_real(name: str, fn: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (3, 5)) -> Scenario:
    return Scenario(
        name, ("FftR2CBackward0", "ViewAsRealBackward0"), lambda x: both_parts(fn(x)), (shape,)
    )


def of_complex(name: str, node: str, fn: Callable[[Tensor], Tensor], *shape: int) -> Scenario:
    def real(x: Tensor, y: Tensor) -> Tensor:
        z = fn(torch.complex(x, y))
        return both_parts(z) if z.is_complex() else z

    return Scenario(name, (node, "ComplexBackward0"), real, (shape, shape))


SCENARIOS = (
    of_real("fft", fft.fft),
    of_real("fft, even", fft.fft, (2, 4)),
    of_real("fft along the first axis", lambda x: fft.fft(x, dim=0)),
    of_real("ifft of reals", fft.ifft),
    Scenario("fft2 of reals", ("FftC2CBackward0",), lambda x: both_parts(fft.fft2(x)), ((3, 5),)),
    of_real("rfft", fft.rfft),
    of_real("rfft, even", lambda x: fft.rfft(x, norm="ortho"), (2, 4)),
    of_real("rfft2", lambda x: fft.rfft2(x, norm="forward"), (2, 3, 4)),
    of_real("rfftn, last axis in the middle", lambda x: fft.rfftn(x, dim=(2, 0)), (2, 3, 4)),
    of_real("ihfft", fft.ihfft),
    of_complex("complex fft", "FftC2CBackward0", fft.fft, 2, 5),
    of_complex("complex ifft", "FftC2CBackward0", lambda z: fft.ifft(z, norm="ortho"), 2, 5),
    of_complex("complex fftn", "FftC2CBackward0", lambda z: fft.fftn(z, dim=(2, 0)), 2, 3, 2),
    of_complex("irfft, even", "FftC2RBackward0", fft.irfft, 2, 3),
    of_complex("irfft, odd", "FftC2RBackward0", lambda z: fft.irfft(z, n=5), 2, 3),
    of_complex("irfft2", "FftC2RBackward0", lambda z: fft.irfft2(z, norm="ortho"), 2, 3, 3),
    of_complex("irfftn", "FftC2RBackward0", lambda z: fft.irfftn(z, dim=(2, 0)), 3, 2, 3),
    of_complex("hfft", "FftC2RBackward0", lambda z: fft.hfft(z, norm="forward"), 2, 3),
)
