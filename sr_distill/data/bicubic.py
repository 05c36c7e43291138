"""MATLAB's ``imresize`` (bicubic, antialiased), on any device, batched and differentiable."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def imresize(image: Tensor, scale: float) -> Tensor:
    """Resize by ``scale`` as MATLAB's ``imresize(image, scale)`` does, without rounding.

    Each output pixel is ``sum_k w_k x_k`` with Keys' cubic kernel (a = -0.5); when shrinking, the kernel is
    stretched by ``1/scale`` (antialiasing); borders are mirrored. Equal to BasicSR's ``imresize`` to float precision.

    Args:
        image: shape (..., H, W), any range; computed in the dtype of ``image``.
        scale: output size over input size; the output has ``ceil(H * scale)`` rows.

    Source: Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """
    for dim in (-2, -1):
        image = _resize_dim(image, dim, scale)
    return image


def downscale_to_uint8(hr: Tensor, factor: int) -> Tensor:
    """uint8 (..., H, W) to uint8 (..., H/factor, W/factor), equal to MATLAB's ``imresize`` of a uint8 image to the bit.

    MATLAB shrinks the rows first and rounds and clips to uint8 before it shrinks the columns. :func:`imresize` (and BasicSR's),
    rounded once at the end, differs from that in 10-15 % of the values, mostly by one level.
    """
    image = hr
    for dim in (-2, -1):
        image = _resize_dim(image.double(), dim, 1.0 / factor).add_(0.5).floor_().clamp_(0, 255)
    return image.to(torch.uint8)


def _resize_dim(image: Tensor, dim: int, scale: float) -> Tensor:
    indices, weights = _taps(image.shape[dim], scale, image.device, image.dtype)
    shape = (-1, 1) if dim == -2 else (-1,)
    # A loop over the few taps of the kernel, not a matrix of all rows by all columns: memory stays linear.
    out = image.index_select(dim, indices[0]) * weights[0].view(shape)
    for index, weight in zip(indices[1:], weights[1:]):
        out = out + image.index_select(dim, index) * weight.view(shape)
    return out


@functools.lru_cache(maxsize=64)
def _taps(length: int, scale: float, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Input index and weight of each tap for each output position; both (taps, output length), kept on the device."""
    # What was made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        indices, weights = taps(length, math.ceil(length * scale), scale)
        return indices.to(device), weights.to(device, dtype)


def taps(length: int, size: int, scale: float) -> tuple[Tensor, Tensor]:
    """Input index and weight (float64) of each tap for each of ``size`` output positions; both (taps, size), on the CPU.

    Args:
        length: of the input.
        scale: output size over input size.
    """
    stretch = max(1.0, 1.0 / scale)
    support = 4.0 * stretch
    position = torch.arange(1, size + 1, dtype=torch.float64)
    centre = position / scale + 0.5 * (1 - 1 / scale) - 1
    first = torch.floor(centre - support / 2)
    index = first + torch.arange(math.ceil(support) + 2, dtype=torch.float64).view(-1, 1)
    weight = _cubic((centre - index) / stretch)
    weight = weight / weight.sum(0)
    used = weight.abs().sum(1) > 0
    return mirrored(index.long()[used], length), weight[used]


def mirrored(index: Tensor, length: int) -> Tensor:
    """Any integer index to one inside 0 ... length-1, with borders mirrored: ... 1 0 | 0 1 ... n-1 | n-1 n-2 ..."""
    period = index % (2 * length)
    return torch.where(period < length, period, 2 * length - 1 - period)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return near * (x <= 1) + far * ((x > 1) & (x <= 2))
