"""Losses on the values of pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..options import losses as options


def l1(sr: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference: ``mean |sr - target|``.

    Args:
        sr, target: same shape, (B, C, H, W); any range, here [0, 1].

    Returns:
        A scalar.
    """
    return (sr - target).abs().mean()


def charbonnier(sr: Tensor, target: Tensor, eps: float = 1e-3) -> Tensor:
    """Smooth L1: ``mean sqrt((sr - target)^2 + eps^2)``; its value at identical images is ``eps``.

    Args:
        sr, target: same shape, (B, C, H, W); any range, here [0, 1].
        eps: in units of the image.

    Returns:
        A scalar.

    Source: Lai et al., "Deep Laplacian Pyramid Networks", CVPR 2017, equation 2 (eps = 1e-3). Other packages define it with eps
    added without the square (BasicSR), or minus its value at 0 and eps = 1 (kornia).
    """
    return torch.sqrt((sr - target).square() + eps**2).mean()


class L1Loss(nn.Module):
    """:func:`l1` as a term of the objective."""

    def __init__(self, options: options.L1) -> None:
        super().__init__()

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """A scalar from two (B, 3, H, W) in [0, 1]."""
        return l1(sr, target)


class CharbonnierLoss(nn.Module):
    """:func:`charbonnier` as a term of the objective."""

    def __init__(self, options: options.Charbonnier) -> None:
        super().__init__()
        self.eps = options.eps

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """A scalar from two (B, 3, H, W) in [0, 1]."""
        return charbonnier(sr, target, self.eps)
