"""BT.601 studio-range colour, as MATLAB's rgb2ycbcr and the SR papers use it."""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor

# Rows Y, Cb, Cr for RGB in [0, 1] and an output in [0, 255] (ITU-R BT.601; Y spans 16-235).
_FORWARD = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
_OFFSET = (16.0, 128.0, 128.0)
_FULL_RANGE = 255.0 / 219.0


def rgb_to_ycbcr(image: Tensor) -> Tensor:
    """RGB in [0, 1] to YCbCr in [0, 1] (Y: 16/255 to 235/255); shape (..., 3, H, W).

    Y = (65.481 R + 128.553 G + 24.966 B + 16) / 255 and so on (ITU-R BT.601).
    """
    forward, _, offset = _constants(image.device, image.dtype)
    return _mix(image, forward) + offset


def ycbcr_to_rgb(image: Tensor) -> Tensor:
    """The exact inverse of :func:`rgb_to_ycbcr`; values outside [0, 1] are kept. Shape (..., 3, H, W)."""
    _, backward, offset = _constants(image.device, image.dtype)
    return _mix(image - offset, backward)


def luma(image: Tensor) -> Tensor:
    """Y of :func:`rgb_to_ycbcr`: RGB (..., 3, H, W) in [0, 1] to (..., 1, H, W) in [16/255, 235/255]."""
    forward, _, _ = _constants(image.device, image.dtype)
    return _mix(image, forward[:1]) + 16.0 / 255.0


def luma_to_gray(y: Tensor) -> Tensor:
    """Luma in [16/255, 235/255] to gray in [0, 1], which is what R, G and B are where there is no chroma; any shape."""
    return (y - 16.0 / 255.0) * _FULL_RANGE


def rgb_to_gray(image: Tensor) -> Tensor:
    """RGB (..., 3, H, W) in [0, 1] to gray (..., 1, H, W) in [0, 1], of the same luma."""
    return luma_to_gray(luma(image))


def gray_to_luma(gray: Tensor) -> Tensor:
    """The inverse of :func:`luma_to_gray`."""
    return gray / _FULL_RANGE + 16.0 / 255.0


def with_luma_of(image: Tensor, source: Tensor) -> Tensor:
    """``image`` with its chroma kept and its luma replaced by that of ``source``; both RGB (..., 3, H, W).

    In BT.601 a change of luma by d moves R, G and B by 255/219 d each, so no conversion and back is needed. A
    student that upscales luma only is compared with this: the target that it could reach.
    """
    return image + _FULL_RANGE * (luma(source) - luma(image))


@functools.lru_cache(maxsize=16)
def _constants(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix to YCbCr in [0, 1], its inverse, and the offset (3, 1, 1), kept on the device."""
    # What was made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        forward = torch.tensor(_FORWARD, dtype=torch.float64) / 255.0
        offset = torch.tensor(_OFFSET, dtype=torch.float64).view(3, 1, 1) / 255.0
        return tuple(value.to(device, dtype) for value in (forward, torch.linalg.inv(forward), offset))


def _mix(image: Tensor, matrix: Tensor) -> Tensor:
    # Autocast would round colours to 8 bits of mantissa, which is coarser than a level of the image. The meta device has none.
    has_autocast = torch.amp.is_autocast_available(image.device.type)
    with torch.autocast(image.device.type, enabled=False) if has_autocast else contextlib.nullcontext():
        return torch.einsum("oc,...chw->...ohw", matrix, image)
