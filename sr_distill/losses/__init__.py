"""Terms of the objective: pure functions, and the classes that the options choose by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .activation import activation_boundary, attention_transfer, fitnet, frequency
from .contrastive import contrastive
from .distribution import channel_wise, hard_soft, logits, mutual, soft_target
from .on_maps import BUILDERS
from .perceptual import LPIPSLoss, PerceptualLoss, lpips, perceptual
from .pixel import CharbonnierLoss, L1Loss, charbonnier, l1
from .relation import pkt, rkd, similarity, spatial_affinity

LOSSES: dict[str, Callable[[Any], nn.Module]] = {
    "charbonnier": CharbonnierLoss,
    "l1": L1Loss,
    "lpips": LPIPSLoss,
    "perceptual": PerceptualLoss,
    **BUILDERS,
}
"""Every loss by its ``type`` in the options. A term returns an unweighted scalar; the task applies the weight."""

__all__ = [
    "LOSSES",
    "activation_boundary",
    "attention_transfer",
    "channel_wise",
    "charbonnier",
    "contrastive",
    "fitnet",
    "frequency",
    "hard_soft",
    "l1",
    "logits",
    "lpips",
    "mutual",
    "perceptual",
    "pkt",
    "rkd",
    "similarity",
    "soft_target",
    "spatial_affinity",
]
