"""PSNR and SSIM as the SR papers compute them, LPIPS and NIQE: on uint8 images, batched, on the device, in float64 where it matters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..features import lpips_network
from ..models.basicsr import import_basicsr

_WINDOW, _SIGMA = 11, 1.5
_BLOCK = 32  # side of the blocks that the Gaussian window of SSIM works on

LPIPS_BACKBONES = ("alex", "squeeze", "vgg")


@dataclass(frozen=True)
class Metric:
    """One measure of an image against another, or of an image alone.

    Attributes:
        name: psnr_y, ssim_rgb, lpips_alex, ...
        border: rows and columns cut off at each side; None: the whole image is looked at.
        measure: from uint8 RGB (B, 3, H, W) twice, student's and HR, to (B,) float64.
        higher_is_better: False for distances.
        digits: decimals in a table.
        text: what it is, in a sentence.
    """

    name: str
    border: int | None
    measure: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool
    digits: int
    text: str

    @property
    def label(self) -> str:
        """The name with its convention, as in psnr_y_b4."""
        return self.name if self.border is None else f"{self.name}_b{self.border}"


METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", *(f"lpips_{name}" for name in LPIPS_BACKBONES), "niqe")
"""Every metric that there is, by name."""


def make_metric(name: str, scale: int) -> Metric:
    """The metric of this name (see :data:`METRICS`) with the conventions of the papers at this scale."""
    kind, _, variant = name.partition("_")
    what = {"y": "Y of BT.601 (16-235), not rounded", "rgb": "RGB", "": ""}.get(variant, variant)
    if kind == "psnr":
        measure = functools.partial({"y": psnr_y, "rgb": psnr_rgb}[variant], border=scale)
        return Metric(name, scale, measure, True, 3, f"PSNR in dB on {what}, a border of {scale} cut off.")
    if kind == "ssim":
        measure = functools.partial({"y": ssim_y, "rgb": ssim_rgb}[variant], border=scale)
        text = f"SSIM on {what}, Gaussian window 11x11, sigma 1.5, no padding, a border of {scale} cut off."
        return Metric(name, scale, measure, True, 4, text)
    if kind == "lpips":
        measure = functools.partial(lpips_distance, network=variant)
        return Metric(name, None, measure, False, 4, f"LPIPS v0.1, backbone {variant}, on the whole RGB image.")
    text = f"NIQE of the image alone (BasicSR's), on Y, a border of {scale} cut off."
    return Metric("niqe", scale, functools.partial(niqe, border=scale), False, 3, text)


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
    sr, hr = _inside(sr, hr, border)
    return _psnr(_luma_255(sr), _luma_255(hr))


def psnr_rgb(sr: Tensor, hr: Tensor, border: int) -> Tensor:
    """PSNR over all three channels; otherwise as :func:`psnr_y`. Equal to BasicSR's ``calculate_psnr``."""
    sr, hr = _inside(sr, hr, border)
    return _psnr(sr.double(), hr.double())


def ssim_y(sr: Tensor, hr: Tensor, border: int) -> Tensor:
    """SSIM of luma: Gaussian window 11x11 with sigma 1.5, no padding, K1 = 0.01, K2 = 0.03, range 255.

    Args and errors: as :func:`psnr_y`; inside the border at least 11x11 pixels must be left.

    Returns:
        (B,) float64 in [-1, 1]. Equal to BasicSR's ``calculate_ssim(..., test_y_channel=True)``.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, equation 13.
    """
    sr, hr = _inside(sr, hr, border, _WINDOW)
    return _ssim(_luma_255(sr), _luma_255(hr))


def ssim_rgb(sr: Tensor, hr: Tensor, border: int) -> Tensor:
    """Mean of the SSIM of each channel; otherwise as :func:`ssim_y`. Equal to BasicSR's ``calculate_ssim``."""
    sr, hr = _inside(sr, hr, border, _WINDOW)
    return _ssim(sr.double().flatten(0, 1), hr.double().flatten(0, 1)).unflatten(0, (-1, 3)).mean(1)


@torch.no_grad()
def lpips_distance(sr: Tensor, hr: Tensor, network: str) -> Tensor:
    """LPIPS v0.1 of uint8 RGB (B, 3, H, W), by the authors' package, which takes [-1, 1]: converted here; (B,) float64.

    Raises:
        UserError: the pretrained weights of the backbone cannot be had.
        ValueError: the image is smaller than the backbone can see (alex: 31 pixels).
    """
    if min(sr.shape[-2:]) < 32:
        raise ValueError(f"LPIPS needs at least 32x32 pixels, got {sr.shape[-1]}x{sr.shape[-2]}")
    module = lpips_network(network).to(sr.device)
    return module(sr.float() / 255.0, hr.float() / 255.0, normalize=True).flatten().double()


def niqe(sr: Tensor, hr: Tensor | None, border: int) -> Tensor:
    """NIQE of uint8 RGB (B, 3, H, W), without reference (``hr`` is not looked at), by BasicSR, on the CPU; (B,) float64.

    Raises:
        ValueError: inside the border there are not two patches of 96x96 pixels, whose statistics it compares.

    Source: Mittal et al., "Making a Completely Blind Image Quality Analyzer", 2013.
    """
    if math.prod((side - 2 * border) // 96 for side in sr.shape[-2:]) < 2:
        raise ValueError(
            f"NIQE needs at least two patches of 96x96 pixels inside a border of {border}, got {sr.shape[-1]}x{sr.shape[-2]}"
        )
    calculate = import_basicsr("metrics.niqe").calculate_niqe
    bgr = sr.flip(1).permute(0, 2, 3, 1).cpu().numpy()
    return torch.tensor([float(calculate(image, border)) for image in bgr], dtype=torch.float64)


def _inside(sr: Tensor, hr: Tensor, border: int, least: int = 1) -> tuple[Tensor, Tensor]:
    """Both images without their border."""
    if sr.shape != hr.shape:
        raise ValueError(f"sizes differ: {tuple(sr.shape)} and {tuple(hr.shape)}")
    width, height = sr.shape[-1], sr.shape[-2]
    if min(width, height) <= 2 * border:
        raise ValueError(f"an image of {width}x{height} pixels has nothing inside a border of {border}")
    if min(width, height) - 2 * border < least:
        raise ValueError(
            f"SSIM needs at least {least}x{least} pixels inside a border of {border}, "
            f"got {width - 2 * border}x{height - 2 * border}"
        )
    inside = slice(border, -border or None)
    return sr[..., inside, inside], hr[..., inside, inside]


def _luma_255(image: Tensor) -> Tensor:
    """Y of BT.601 in 16-235 from uint8 RGB (B, 3, H, W); (B, H, W) float64.

    Rounded to float32 on the way in and out, as BasicSR does: without, PSNR of a small image differs in the sixth decimal.
    """
    red, green, blue = image.float().div_(255).unbind(1)
    luma = red.double().mul_(65.481).add_(green, alpha=128.553).add_(blue, alpha=24.966).add_(16)
    return luma.div_(255).float().mul_(255).double()


def _psnr(x: Tensor, y: Tensor) -> Tensor:
    return 10 * torch.log10(255.0**2 / (x - y).square_().flatten(1).mean(1))


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of (B, H, W) in 0-255, one image after the other: the maps of one stay in the processor's cache."""
    return torch.stack([_mean_similarity(a, b) for a, b in zip(x, y)])


def _mean_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Mean of the map of SSIM. Only the sum of the two variances is needed: four maps are blurred, not five."""
    height, width = (size - _WINDOW + 1 for size in x.shape)
    mean_x, mean_y, squares, product = _blur(torch.stack([x, y, x * x + y * y, x * y]))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    means = mean_x * mean_y
    mean_squares = mean_x.square_().add_(mean_y.square_())
    spread = squares.sub_(mean_squares).add_(c2).mul_(mean_squares.add_(c1))
    covariance = product.sub_(means).mul_(2).add_(c2)
    similarity = means.mul_(2).add_(c1).mul_(covariance).div_(spread)[:, :height]
    last = width - (len(similarity) - 1) * _BLOCK
    return (similarity[:-1].sum() + similarity[-1, :, :last].sum()) / (height * width)


def _blur(maps: Tensor) -> Tensor:
    """The Gaussian window over (M, H, W), no padding, as blocks of columns: (M, N, H', _BLOCK), N blocks side by side.

    Each direction is one product with the window written as a banded matrix, on overlapping blocks that are not copied: in float64
    several times as fast as PyTorch's convolution on a CPU. Rows from H - 10 on and what lies right of column W - 10 are of no
    meaning.
    """
    count, height, width = maps.shape
    down, across = (-(-(size - _WINDOW + 1) // _BLOCK) for size in (height, width))
    rim, pitch = _WINDOW - 1, across * _BLOCK + _WINDOW - 1
    padded = maps.new_zeros(count, down * _BLOCK + rim, pitch)
    padded[:, :height, :width] = maps
    band = _band(maps.device)
    rows = maps.new_empty(count, down * _BLOCK, pitch)
    for source, out in zip(padded, rows):
        overlapping = source.as_strided((down, _BLOCK + rim, pitch), (_BLOCK * pitch, pitch, 1))
        torch.bmm(band.T.expand(down, -1, -1), overlapping, out=out.view(down, _BLOCK, pitch))
    overlapping = rows.as_strided((across, count * down * _BLOCK, _BLOCK + rim), (_BLOCK, pitch, 1))
    blurred = torch.bmm(overlapping, band.expand(across, -1, -1))
    return blurred.view(across, count, down * _BLOCK, _BLOCK).movedim(1, 0)


@functools.lru_cache(maxsize=4)
def _band(device: torch.device) -> Tensor:
    """(_BLOCK + 10, _BLOCK): column i holds the window from row i on."""
    offset = torch.arange(_WINDOW, dtype=torch.float64, device=device) - _WINDOW // 2
    window = torch.exp(-offset.square() / (2 * _SIGMA**2))
    band = torch.zeros(_BLOCK + _WINDOW - 1, _BLOCK, dtype=torch.float64, device=device)
    for column in range(_BLOCK):
        band[column : column + _WINDOW, column] = window / window.sum()
    return band
