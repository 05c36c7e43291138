"""PSNR and SSIM as the SR papers compute them: on uint8 images, on the device, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.color import luma

_WINDOW, _SIGMA = 11, 1.5


def psnr_y(sr: Tensor, hr: Tensor, border: int) -> Tensor:
    """PSNR of luma: ``10 log10(255^2 / mean (Y_sr - Y_hr)^2)`` in dB, infinite for equal images.

    Args:
        sr, hr: uint8 RGB (B, 3, H, W). Y is BT.601 (16-235), not rounded.
        border: rows and columns cut off at each side first; papers use the scale.

    Returns:
        (B,) float64. Equal to BasicSR's ``calculate_psnr(..., test_y_channel=True)``.

    Raises:
        ValueError: the shapes differ, or nothing is left inside the border.
    """
    first, second = _luma_255(sr, hr, border)
    error = (first - second).square().mean((1, 2, 3))
    return 10 * torch.log10(255.0**2 / error)


def ssim_y(sr: Tensor, hr: Tensor, border: int) -> Tensor:
    """SSIM of luma: Gaussian window 11x11 with sigma 1.5, no padding, K1 = 0.01, K2 = 0.03, range 255.

    Args and errors: as :func:`psnr_y`; inside the border at least 11x11 pixels must be left.

    Returns:
        (B,) float64 in [-1, 1]. Equal to BasicSR's ``calculate_ssim(..., test_y_channel=True)``.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, equation 13.
    """
    x, y = _luma_255(sr, hr, border)
    if min(x.shape[-2:]) < _WINDOW:
        raise ValueError(
            f"SSIM needs at least {_WINDOW}x{_WINDOW} pixels inside a border of {border}, got {x.shape[-1]}x{x.shape[-2]}"
        )
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = _blur(torch.cat([x, y, x * x, y * y, x * y], dim=1)).unbind(1)
    var_x, var_y, cov = mean_xx - mean_x**2, mean_yy - mean_y**2, mean_xy - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2))


def _luma_255(sr: Tensor, hr: Tensor, border: int) -> tuple[Tensor, Tensor]:
    if sr.shape != hr.shape:
        raise ValueError(f"sizes differ: {tuple(sr.shape)} and {tuple(hr.shape)}")
    if min(sr.shape[-2:]) <= 2 * border:
        raise ValueError(f"an image of {sr.shape[-1]}x{sr.shape[-2]} pixels has nothing inside a border of {border}")
    inside = slice(border, -border or None)
    first, second = (luma(image[..., inside, inside].double() / 255.0) * 255.0 for image in (sr, hr))
    return first, second


def _blur(maps: Tensor) -> Tensor:
    """The Gaussian window, rows then columns, no padding; (B, C, H, W) to (B, C, H-10, W-10)."""
    offset = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    window = torch.exp(-offset.square() / (2 * _SIGMA**2))
    window = (window / window.sum()).expand(maps.shape[1], 1, -1)
    maps = F.conv2d(maps, window.unsqueeze(-1), groups=maps.shape[1])
    return F.conv2d(maps, window.unsqueeze(-2), groups=maps.shape[1])
