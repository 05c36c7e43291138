"""Distillation losses as terms of the objective: how a feature map becomes what the paper works on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..options import losses as options
from .activation import activation_boundary, attention_transfer, fitnet, frequency
from .common import evenly_spread
from .distribution import channel_wise, hard_soft, logits, mutual, soft_target
from .pixel import l1
from .relation import pkt, rkd, similarity, spatial_affinity
from .scene import Scene, SceneLoss


class MapLoss(nn.Module):
    """A pure function of two maps (or images) as a term.

    Args:
        function: ``function(student, teacher)``, a scalar.
        adapted: whether the student's maps go through the adapter first; a loss that compares relations or attention takes
            maps with any numbers of channels as they are.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], adapted: bool = True) -> None:
        super().__init__()
        self.function = function
        self.adapted = adapted

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar from (B, Cs, h, w) and (B, Ct, h, w)."""
        return self.function(student, teacher)


def patches_as_samples(x: Tensor, side: int) -> Tensor:
    """Cut maps (B, C, H, W) into whole squares of ``side``: (B n, C side side), the squares of one map after the other."""
    side = min(side, *x.shape[-2:])
    return F.unfold(x, side, stride=side).transpose(1, 2).flatten(0, 1)


def build_fitnet(o: options.FitNet) -> MapLoss:
    """:func:`fitnet` on adapted maps."""
    return MapLoss(fitnet)


def build_logits(o: options.Logits) -> MapLoss:
    """:func:`logits`: the image, or the adapted map, in the place of logits."""
    return MapLoss(logits)


def build_frequency(o: options.Frequency) -> MapLoss:
    """:func:`frequency` of images or adapted maps."""
    return MapLoss(lambda s, t: frequency(s, t, o.amplitude, o.phase))


def build_attention_transfer(o: options.AttentionTransfer) -> MapLoss:
    """:func:`attention_transfer` on maps as they are."""
    return MapLoss(lambda s, t: attention_transfer(s, t, o.p), adapted=False)


def build_activation_boundary(o: options.ActivationBoundary) -> MapLoss:
    """:func:`activation_boundary` on adapted maps: tap layers before their activation."""
    return MapLoss(lambda s, t: activation_boundary(s, t, o.margin))


def build_soft_target(o: options.SoftTarget) -> MapLoss:
    """:func:`soft_target` on adapted maps: a distribution over channels at each place, or over places for each channel."""
    if o.over == "channels":
        return MapLoss(lambda s, t: soft_target(s, t, o.temperature))
    return MapLoss(lambda s, t: channel_wise(s, t, o.temperature))


def build_mutual(o: options.Mutual) -> MapLoss:
    """:func:`mutual` on adapted maps: as :func:`soft_target` at temperature 1."""
    if o.over == "channels":
        return MapLoss(mutual)
    return MapLoss(lambda s, t: mutual(s.flatten(2), t.flatten(2), dim=2))


class HardSoftLoss(SceneLoss):
    """:func:`hard_soft`: the channels of adapted maps in the place of classes, and L1 of the output to HR as the task's loss."""

    def __init__(self, options: options.HardSoft) -> None:
        super().__init__()
        self.options = options

    def forward(self, scene: Scene) -> Tensor:
        """A scalar, the mean over the pairs."""
        o, task_loss = self.options, l1(scene.student.sr, scene.hr)
        values = [hard_soft(task_loss, m.adapted, m.teacher, o.alpha, o.temperature, o.kind) for m in scene.maps]
        return torch.stack(values).mean()


def build_channel_wise(o: options.ChannelWise) -> MapLoss:
    """:func:`channel_wise` on adapted maps."""
    return MapLoss(lambda s, t: channel_wise(s, t, o.temperature))


def build_spatial_affinity(o: options.SpatialAffinity) -> MapLoss:
    """:func:`spatial_affinity` on maps as they are."""
    return MapLoss(lambda s, t: spatial_affinity(s, t, o.max_positions), adapted=False)


def build_similarity(o: options.Similarity) -> MapLoss:
    """:func:`similarity` between images or patches."""
    return _between_samples(o, similarity)


def build_pkt(o: options.PKT) -> MapLoss:
    """:func:`pkt` between images or patches."""
    return _between_samples(o, pkt)


def build_rkd(o: options.RKD) -> MapLoss:
    """:func:`rkd` between images or patches."""
    return _between_samples(o, lambda s, t: rkd(s, t, o.distance_weight, o.angle_weight, o.max_samples))


def _between_samples(o: options.RelationTerm, function: Callable[[Tensor, Tensor], Tensor]) -> MapLoss:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        samples = []
        for x in (student, teacher):
            if o.samples == "patches":
                vectors = patches_as_samples(x, o.patch)
            else:
                vectors = (x if o.pool is None else F.adaptive_avg_pool2d(x, o.pool)).flatten(1)
            samples.append(evenly_spread(vectors, o.max_samples))
        return function(*samples)

    return MapLoss(loss, adapted=False)


BUILDERS: dict[str, Callable[[Any], nn.Module]] = {
    "activation_boundary": build_activation_boundary,
    "attention_transfer": build_attention_transfer,
    "channel_wise": build_channel_wise,
    "fitnet": build_fitnet,
    "frequency": build_frequency,
    "hard_soft": HardSoftLoss,
    "logits": build_logits,
    "mutual": build_mutual,
    "pkt": build_pkt,
    "rkd": build_rkd,
    "similarity": build_similarity,
    "soft_target": build_soft_target,
    "spatial_affinity": build_spatial_affinity,
}
"""The losses of this file by their ``type`` in the options."""
