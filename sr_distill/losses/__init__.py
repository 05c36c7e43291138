"""Terms of the objective: pure functions, and the classes that the options choose by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..options import LossOptions
from .activation import activation_boundary, attention_transfer, fitnet, frequency
from .contrastive import ContrastiveLoss, contrastive
from .distribution import channel_wise, hard_soft, logits, mutual, soft_target
from .fcfd import FCFDLoss
from .on_maps import BUILDERS
from .perceptual import LPIPSLoss, PerceptualLoss, each_image_looked_at_once, lpips, normalised_difference, perceptual
from .pixel import CharbonnierLoss, L1Loss, charbonnier, l1
from .relation import pkt, rkd, similarity, spatial_affinity
from .scene import Comparison, MatchedMaps, Scene, SceneLoss

LOSSES: dict[str, Callable[[Any], nn.Module]] = {
    "charbonnier": CharbonnierLoss,
    "contrastive": ContrastiveLoss,
    "fcfd": FCFDLoss,
    "l1": L1Loss,
    "lpips": LPIPSLoss,
    "perceptual": PerceptualLoss,
    **BUILDERS,
}
"""Every loss by its ``type`` in the options: a module that compares two tensors, or a :class:`SceneLoss` that looks at more."""


def build_term(options: LossOptions) -> SceneLoss:
    """The loss that the options name as a term of the objective: an unweighted scalar; the task applies the weight."""
    loss = LOSSES[options.type](options)
    return loss if isinstance(loss, SceneLoss) else Comparison(loss, options.space_of_maps)


__all__ = [
    "LOSSES",
    "Comparison",
    "MatchedMaps",
    "Scene",
    "SceneLoss",
    "activation_boundary",
    "attention_transfer",
    "build_term",
    "channel_wise",
    "charbonnier",
    "contrastive",
    "each_image_looked_at_once",
    "fitnet",
    "frequency",
    "hard_soft",
    "l1",
    "logits",
    "lpips",
    "mutual",
    "normalised_difference",
    "perceptual",
    "pkt",
    "rkd",
    "similarity",
    "soft_target",
    "spatial_affinity",
]
