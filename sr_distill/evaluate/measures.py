"""PSNR and SSIM as the SR papers compute them, LPIPS and NIQE: on uint8 images, batched, on the device, in float64 where it matters."""

from __future__ import annotations

import functools
import math
import types

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ImageError
from ..features import lpips_network
from ..losses.common import unit
from ..losses.feature_cache import VGG19_LAYERS, vgg_maps
from ..models.basicsr import import_basicsr

_WINDOW, _SIGMA = 11, 1.5


class ImagePair:
    """A model's images and their HR, uint8 RGB (B, 3, H, W); luma is computed once for all metrics.

    Raises:
        ValueError: the shapes differ (when a metric looks).
    """

    def __init__(self, sr: Tensor, hr: Tensor) -> None:
        self.sr, self.hr = sr, hr
        self._luma: dict[int, tuple[Tensor, Tensor]] = {}

    def inside(self, border: int) -> tuple[Tensor, Tensor]:
        """Both without their border."""
        return _inside(self.sr, self.hr, border)

    def luma(self, border: int) -> tuple[Tensor, Tensor]:
        """Y of both without their border, (B, H, W) float64 in 16-235."""
        if border not in self._luma:
            self._luma[border] = tuple(_luma_255(image) for image in self.inside(border))
        return self._luma[border]


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
    return psnr(*ImagePair(sr, hr).luma(border))


def psnr_of_luma(y: Tensor, hr: Tensor, border: int) -> Tensor:
    """PSNR of a luma image against the luma of HR, rounded to 8 bits as MATLAB's ``rgb2ycbcr`` of a uint8 image is.

    Args:
        y: uint8 (B, 1, H, W), Y of BT.601 (16-235).
        hr: uint8 RGB (B, 3, H, W).
        border: as in :func:`psnr_y`.

    Returns:
        (B,) float64. What papers on luma networks print (Dong et al., "Accelerating the Super-Resolution Convolutional Neural
        Network", ECCV 2016, and its code).
    """
    y, hr = _inside(y.expand_as(hr), hr, border)
    return psnr(y[:, 0].double(), _luma_255(hr).round_())


def psnr_rgb(sr: Tensor, hr: Tensor, border: int) -> Tensor:
    """PSNR over all three channels; otherwise as :func:`psnr_y`. Equal to BasicSR's ``calculate_psnr``."""
    sr, hr = _inside(sr, hr, border)
    return psnr(sr.double(), hr.double())


def ssim_y(sr: Tensor, hr: Tensor, border: int) -> Tensor:
    """SSIM of luma: Gaussian window 11x11 with sigma 1.5, no padding, K1 = 0.01, K2 = 0.03, range 255.

    Args and errors: as :func:`psnr_y`; inside the border at least 11x11 pixels must be left.

    Returns:
        (B,) float64 in [-1, 1]. Equal to BasicSR's ``calculate_ssim(..., test_y_channel=True)``.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, equation 13.
    """
    return ssim(*ImagePair(sr, hr).luma(border))


def ssim_rgb(sr: Tensor, hr: Tensor, border: int) -> Tensor:
    """Mean of the SSIM of each channel; otherwise as :func:`ssim_y`. Equal to BasicSR's ``calculate_ssim``."""
    sr, hr = _inside(sr, hr, border)
    return ssim(sr.double().flatten(0, 1), hr.double().flatten(0, 1)).unflatten(0, (-1, 3)).mean(1)


@torch.no_grad()
def lpips_distance(sr: Tensor, hr: Tensor, network: str) -> Tensor:
    """LPIPS v0.1 of uint8 RGB (B, 3, H, W), by the authors' package, which takes [-1, 1]: converted here; (B,) float64.

    Raises:
        UserError: the pretrained weights of the backbone cannot be had.
        ValueError: the image is smaller than the backbone can see (alex: 31 pixels).
    """
    if min(sr.shape[-2:]) < 32:
        raise ImageError(f"LPIPS needs at least 32x32 pixels, got {sr.shape[-1]}x{sr.shape[-2]}")
    module = lpips_network(network).to(sr.device)
    return module(sr.float() / 255.0, hr.float() / 255.0, normalize=True).flatten().double()


@torch.no_grad()
def vgg19_distance(sr: Tensor, hr: Tensor) -> Tensor:
    """Distance of VGG19's maps of uint8 RGB (B, 3, H, W): LPIPS's recipe without its learned weights; (B,) float64.

    Mean over relu1_2, relu2_2 and relu3_4 of ``mean_hw sum_c (u_sr - u_hr)^2`` with u of unit length over the channels; for judging
    what was trained with LPIPS itself.

    Raises:
        UserError: VGG19's pretrained weights cannot be had.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, equation 1.
    """
    if min(sr.shape[-2:]) < 4:
        raise ImageError(f"VGG19 needs at least 4x4 pixels, got {sr.shape[-1]}x{sr.shape[-2]}")
    layers = {VGG19_LAYERS[name] for name in ("relu1_2", "relu2_2", "relu3_4")}
    seen = [vgg_maps(image.float() / 255.0, layers) for image in (sr, hr)]
    values = [(unit(seen[0][k], 1) - unit(seen[1][k], 1)).square().sum(1).mean((1, 2)) for k in sorted(layers)]
    return torch.stack(values).mean(0).double()


def niqe(sr: Tensor, border: int) -> Tensor:
    """NIQE of uint8 RGB (B, 3, H, W), without a reference, by BasicSR, on the CPU; (B,) float64.

    Raises:
        ValueError: inside the border there are not two patches of 96x96 pixels, whose statistics it compares.

    Source: Mittal et al., "Making a Completely Blind Image Quality Analyzer", 2013.
    """
    if math.prod((side - 2 * border) // 96 for side in sr.shape[-2:]) < 2:
        raise ImageError(
            f"NIQE needs at least two patches of 96x96 pixels inside a border of {border}, got {sr.shape[-1]}x{sr.shape[-2]}"
        )
    calculate = import_basicsr("metrics.niqe").calculate_niqe
    bgr = sr.flip(1).permute(0, 2, 3, 1).cpu().numpy()
    try:
        values = torch.tensor([float(calculate(image, border)) for image in bgr], dtype=torch.float64)
    except np.linalg.LinAlgError:
        values = torch.tensor([math.nan])
    if not values.isfinite().all():
        raise ImageError("NIQE has no value for an image without structure")
    return values


def _inside(sr: Tensor, hr: Tensor, border: int) -> tuple[Tensor, Tensor]:
    """Both images without their border."""
    if sr.shape != hr.shape:
        raise ImageError(f"sizes differ: {tuple(sr.shape)} and {tuple(hr.shape)}")
    if min(sr.shape[-2:]) <= 2 * border:
        raise ImageError(f"an image of {sr.shape[-1]}x{sr.shape[-2]} pixels has nothing inside a border of {border}")
    inside = slice(border, -border or None)
    return sr[..., inside, inside], hr[..., inside, inside]


def _luma_255(image: Tensor) -> Tensor:
    """Y of BT.601 in 16-235 from uint8 RGB (B, 3, H, W); (B, H, W) float64.

    Rounded to float32 on the way in and out, as BasicSR does: without, PSNR of a small image differs in the sixth decimal.
    """
    red, green, blue = image.float().div_(255).double().unbind(1)
    luma = red.mul_(65.481).add_(green, alpha=128.553).add_(blue, alpha=24.966).add_(16)
    return luma.div_(255).float().mul_(255).double()


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """PSNR in dB of float64 (B, ...) in 0-255, infinite where they are equal; (B,)."""
    return 10 * torch.log10(255.0**2 / (x - y).square_().flatten(1).mean(1))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of float64 (B, H, W) in 0-255; (B,)."""
    if min(x.shape[-2:]) < _WINDOW:
        raise ImageError(
            f"SSIM needs at least {_WINDOW}x{_WINDOW} pixels inside the border, got {x.shape[-1]}x{x.shape[-2]}"
        )
    # Only the sum of the two variances is needed: four maps are blurred, not five.
    mean_x, mean_y, squares, product = (_blur(m) for m in (x, y, (x * x).addcmul_(y, y), x * y))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    means = mean_x * mean_y
    mean_squares = mean_x.square_().add_(mean_y.square_())
    spread = squares.sub_(mean_squares).add_(c2).mul_(mean_squares.add_(c1))
    covariance = product.sub_(means).mul_(2).add_(c2)
    return means.mul_(2).add_(c1).mul_(covariance).div_(spread).mean((1, 2))


@functools.cache
def _opencv() -> types.ModuleType | None:
    try:
        import cv2
    except ImportError:
        return None
    return cv2


def _blur(maps: Tensor) -> Tensor:
    """The Gaussian window, no padding: (B, H, W) to (B, H-10, W-10), float64.

    On the CPU by OpenCV: PyTorch's convolution in float64 takes several times as long there, and serves where OpenCV cannot be imported
    (it wants libraries of a desktop).
    """
    offset = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    window = torch.exp(-offset.square() / (2 * _SIGMA**2))
    window = window / window.sum()
    cv2 = _opencv() if maps.device.type == "cpu" else None
    if cv2 is not None:
        kernel, rim = window.numpy(), slice(_WINDOW // 2, -(_WINDOW // 2))
        return torch.from_numpy(np.stack([cv2.sepFilter2D(m, -1, kernel, kernel)[rim, rim] for m in maps.numpy()]))
    rows = F.conv2d(maps.unsqueeze(1), window.view(1, 1, -1, 1))
    return F.conv2d(rows, window.view(1, 1, 1, -1)).squeeze(1)
