"""Terms of the objective: pure functions, and the classes that the options choose by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .perceptual import LPIPSLoss, PerceptualLoss, lpips, perceptual
from .pixel import CharbonnierLoss, L1Loss, charbonnier, l1

LOSSES: dict[str, Callable[[Any], nn.Module]] = {
    "charbonnier": CharbonnierLoss,
    "l1": L1Loss,
    "lpips": LPIPSLoss,
    "perceptual": PerceptualLoss,
}
"""Every loss by its ``type`` in the options. A term returns an unweighted scalar; the task applies the weight."""

__all__ = ["LOSSES", "charbonnier", "l1", "lpips", "perceptual"]
