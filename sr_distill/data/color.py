"""BT.601 studio-range colour, as MATLAB's rgb2ycbcr and the SR papers use it."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows Y, Cb, Cr for RGB in [0, 1] and an output in [0, 255] (ITU-R BT.601; Y spans 16-235).
_FORWARD = torch.tensor(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=torch.float64
)
_OFFSET = torch.tensor([16.0, 128.0, 128.0], dtype=torch.float64)
_FULL_RANGE = 255.0 / 219.0


def rgb_to_ycbcr(image: Tensor) -> Tensor:
    """RGB in [0, 1] to YCbCr in [0, 1] (Y: 16/255 to 235/255); shape (..., 3, H, W).

    Y = (65.481 R + 128.553 G + 24.966 B + 16) / 255 and so on (ITU-R BT.601).
    """
    return _mix(image, _FORWARD / 255.0) + _column(_OFFSET / 255.0, image)


def ycbcr_to_rgb(image: Tensor) -> Tensor:
    """The exact inverse of :func:`rgb_to_ycbcr`; values outside [0, 1] are kept. Shape (..., 3, H, W)."""
    return _mix(image - _column(_OFFSET / 255.0, image), torch.linalg.inv(_FORWARD / 255.0))


def luma(image: Tensor) -> Tensor:
    """Y of :func:`rgb_to_ycbcr`: RGB (..., 3, H, W) in [0, 1] to (..., 1, H, W) in [16/255, 235/255]."""
    return _mix(image, _FORWARD[:1] / 255.0) + 16.0 / 255.0


def with_luma_of(image: Tensor, source: Tensor) -> Tensor:
    """``image`` with its chroma kept and its luma replaced by that of ``source``; both RGB (..., 3, H, W).

    In BT.601 a change of luma by d moves R, G and B by 255/219 d each, so no conversion and back is needed. A
    student that upscales luma only is compared with this: the target that it could reach.
    """
    return image + _FULL_RANGE * (luma(source) - luma(image))


def _mix(image: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("oc,...chw->...ohw", matrix.to(image), image)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).view(-1, 1, 1)
