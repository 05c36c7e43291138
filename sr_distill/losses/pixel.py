"""Losses on the values of pixels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from .base import Loss, register_loss


def l1(sr: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference: ``mean |sr - target|``.

    Args:
        sr, target: same shape, (B, C, H, W); any range, here [0, 1].

    Returns:
        A scalar.
    """
    return (sr - target).abs().mean()


def mse(sr: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference: ``mean (sr - target)^2``, whose minimum is the maximum of PSNR.

    Args:
        sr, target: same shape, (B, C, H, W); any range, here [0, 1].

    Returns:
        A scalar.
    """
    return (sr - target).square().mean()


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


class PixelLoss(Loss):
    """A loss that compares images, or feature maps, value by value."""

    on: Literal["sr", "features", "decoded"] = Field(
        "sr",
        description="What is compared: the output (sr), its adapted feature maps with the teacher's (features, mean over pairs), or the "
        "images that the rest of the teacher makes of them (decoded).",
    )


@register_loss(l1)
class L1(PixelLoss):
    """Mean absolute difference."""

    of_differences: ClassVar[bool] = True
    type: Literal["l1"] = Field(description="Name of the loss.")


@register_loss(mse)
class MSE(PixelLoss):
    """Mean squared difference."""

    of_differences: ClassVar[bool] = True
    type: Literal["mse"] = Field(description="Name of the loss.")
    on: Literal["sr", "decoded"] = Field(  # on features it would be fitnet
        "sr",
        description="What is compared: the output (sr), or the images that the rest of the teacher makes of the maps (decoded).",
    )


@register_loss(charbonnier)
class Charbonnier(PixelLoss):
    """Smooth L1: mean of sqrt(d^2 + eps^2)."""

    of_differences: ClassVar[bool] = True
    type: Literal["charbonnier"] = Field(description="Name of the loss.")
    eps: float = Field(1e-3, gt=0, description="Width of the smooth part, in units of the image (0-1).")
