"""Measure models on benchmark sets by the protocol of the papers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ..errors import UserError
from ..features import lpips_network
from ..models import SRModel, upscale_uint8
from .metrics import psnr_y, ssim_y
from .sets import BenchmarkImage, BenchmarkSet


def metric_names(scale: int, lpips: str = "alex") -> tuple[str, str, str]:
    """Names that carry their convention: luma, border cut by the scale, LPIPS backbone."""
    return f"psnr_y_b{scale}", f"ssim_y_b{scale}", f"lpips_{lpips}"


def describe_protocol(scale: int, lpips: str | None) -> list[str]:
    """The protocol in sentences, printed with every table."""
    lines = [
        "PSNR and SSIM: per image, then the mean over images; output clipped and rounded to 8 bits; Y of BT.601 (16-235), "
        f"not rounded; border of {scale} pixels (the scale) cut off.",
        "SSIM: Gaussian window 11x11, sigma 1.5, no padding. Gray images are converted like colour ones.",
        "LR: the set's own files (MATLAB bicubic), or made here in the same way, to the bit.",
    ]
    if lpips is not None:
        lines.append(f"LPIPS: v0.1, backbone {lpips}, on the whole RGB image; lower is better.")
    return lines


@dataclass(frozen=True)
class Score:
    """What was measured on one image; ``lpips`` is None where it could not be."""

    image: str
    psnr: float
    ssim: float
    lpips: float | None


@dataclass
class SetResult:
    """One model on one set: a score per image, and sentences about images that could not be measured."""

    model: str
    set: str
    scores: list[Score] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def mean(self, metric: str) -> float | None:
        """Mean over images of psnr, ssim or lpips. Infinite PSNRs (identical images) are left out; None if nothing is left."""
        values = [getattr(score, metric) for score in self.scores]
        kept = [value for value in values if value is not None and value != float("inf")]
        return sum(kept) / len(kept) if kept else None


def find_lpips(choice: str) -> tuple[str | None, str | None]:
    """Choose the LPIPS backbone.

    Args:
        choice: alex, vgg or squeeze, downloaded if need be; 'auto': the first of alex, squeeze, vgg that is on this machine,
            nothing is downloaded; 'none'.

    Returns:
        The backbone, or None, and a sentence about what is missing, or None.
    """
    if choice == "none":
        return None, None
    reasons = []
    for network in ("alex", "squeeze", "vgg") if choice == "auto" else (choice,):
        try:
            lpips_network(network, download=choice != "auto")
            return network, None
        except UserError as error:
            reasons.append(f"LPIPS is n/a: {error}")
    advice = " With a network, --lpips alex downloads them." if choice == "auto" else ""
    return None, reasons[0] + advice


@torch.no_grad()
def evaluate_set(
    model: SRModel,
    benchmark: BenchmarkSet,
    device: torch.device,
    lpips: str | None = None,
    on_image: Callable[[str], None] = lambda name: None,
) -> SetResult:
    """Measure one model on one set.

    An image that cannot be measured is put down in ``problems``, and the others are measured all the same.

    Args:
        model: in eval mode; moved to ``device``.
        lpips: backbone, None: not measured.
        on_image: called with each image's name when it is done.
    """
    model = model.to(device)
    network = lpips_network(lpips).to(device) if lpips else None
    result = SetResult(model.spec.name, benchmark.name)
    for image in benchmark.images:
        try:
            result.scores.append(_score(model, image, device, network))
        except (UserError, ValueError) as error:
            result.problems.append(str(error) if isinstance(error, UserError) else f"{image.hr}: {error}.")
        except torch.OutOfMemoryError:
            result.problems.append(f"{image.hr}: not enough memory on {device} for {model.spec.name} on this image.")
        on_image(image.name)
    return result


def _score(model: SRModel, image: BenchmarkImage, device: torch.device, network: nn.Module | None) -> Score:
    scale = model.spec.scale
    lr, hr = image.load(scale)
    sr = upscale_uint8(model, lr, device).unsqueeze(0)
    hr = hr.to(device).unsqueeze(0)
    distance = None
    if network is not None:
        distance = network(sr.float() / 255.0, hr.float() / 255.0, normalize=True).item()
    if device.type == "mps":  # has no float64
        sr, hr = sr.cpu(), hr.cpu()
    return Score(image.name, psnr_y(sr, hr, scale).item(), ssim_y(sr, hr, scale).item(), distance)
