"""Transparency: what a network is shown under it, and how it becomes as large as the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.bicubic import imresize

Alpha = Literal["network", "bicubic"]

_RADII = (1, 3, 8)
REACH = sum(_RADII)
"""Pixels from which colour comes to where there is none."""


def continued(color: Tensor, alpha: Tensor) -> Tensor:
    """Colour that goes on, where it is transparent, as what is visible beside it: no edge, and no dark fringe in what is made of it.

    A pixel of transparency 1 - a becomes ``a c + (1 - a) m``, with ``m`` the mean of the colours around, each weighted by its alpha
    (the mean of premultiplied colour over that of alpha). What is farther than ``REACH`` from anything visible becomes black.

    Args:
        color: (B, C, H, W) in [0, 1], not premultiplied.
        alpha: (B, 1, H, W) in [0, 1].
    """
    seen, weight = color * alpha, alpha
    for radius in _RADII:
        around, visible = _mean(seen, radius), _mean(weight, radius)
        missing = (1 - weight) * (visible > 1e-6)
        seen = seen + missing * around / visible.clamp(min=1e-6)
        weight = weight + missing
    return seen


def upscaled(alpha: Tensor, scale: int, run: Callable[[Tensor], Tensor], how: Alpha) -> Tensor:
    """Alpha (B, 1, H, W) to (B, 1, H*scale, W*scale), by the network or by bicubic.

    It stays between the least and the largest alpha of the 3x3 pixels around, so that what is opaque, or invisible, is so entirely.
    """
    if bool((alpha == 1).all()):
        return alpha.new_ones(*alpha.shape[:2], alpha.shape[2] * scale, alpha.shape[3] * scale)
    large = run(alpha) if how == "network" else imresize(alpha, scale)
    least, most = -F.max_pool2d(-alpha, 3, 1, 1), F.max_pool2d(alpha, 3, 1, 1)
    least, most = (F.interpolate(bound, scale_factor=scale, mode="nearest") for bound in (least, most))
    return torch.maximum(torch.minimum(large, most), least)


def _mean(image: Tensor, radius: int) -> Tensor:
    """Of (2 radius + 1)^2 pixels; beyond the border all is 0."""
    return F.avg_pool2d(image, 2 * radius + 1, 1, radius)
