"""Losses between distributions (softmax over classes, channels or positions) and on logits."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .base import FeatureLoss, LossInputs, register_loss
from .common import need_same_shape
from .pixel import PixelLoss, l1


def soft_target(student: Tensor, teacher: Tensor, temperature: float = 4.0, dim: int = 1) -> Tensor:
    """KL of softened distributions: ``T^2 mean sum_dim p_t log(p_t / p_s)`` with ``p = softmax(x / T, dim)``.

    Summed over ``dim``, mean over all other dimensions; for (N, C) logits that is "batchmean".

    Args:
        student, teacher: same shape, (N, C) or (B, C, H, W); any range.
        temperature: T; the factor T^2 keeps the size of gradients when T changes.
        dim: dimension of the softmax.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    need_same_shape("soft_target", student, teacher)
    log_s = F.log_softmax(student / temperature, dim)
    log_t = F.log_softmax(teacher / temperature, dim)
    return (log_t.exp() * (log_t - log_s)).sum(dim).mean() * temperature**2


def logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference: ``mean (s - t)^2``; same shape, any range.

    Source: Ba & Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014, equation 1.
    """
    need_same_shape("logits", student, teacher)
    return (student - teacher).square().mean()


def mutual(student: Tensor, peer: Tensor, dim: int = 1) -> Tensor:
    """KL at temperature 1 from a peer that is trained alongside: ``mean sum_dim p_peer log(p_peer / p_s)``.

    Args and shapes: as :func:`soft_target`. Pass ``peer`` detached: each network takes its own step.

    Source: Zhang et al., "Deep Mutual Learning", CVPR 2018, equation 4.
    """
    return soft_target(student, peer, temperature=1.0, dim=dim)


def hard_soft(
    task_loss: Tensor, student: Tensor, teacher: Tensor, alpha: float = 0.7, temperature: float = 3.0, kind: str = "kl"
) -> Tensor:
    """Weighted sum of a soft and a hard loss: ``alpha soft + (1 - alpha) task_loss``.

    Args:
        task_loss: a scalar, the loss against the labels.
        student, teacher: logits of the same shape, softmax over dimension 1.
        alpha: share of the soft loss.
        temperature: T of both softmaxes.
        kind: "kl": :func:`soft_target`. "mse": mean squared difference of the softened probabilities, without T^2.

    Raises:
        ValueError: ``kind`` is neither.

    Source: Hinton et al. 2015, section 2.
    """
    if kind == "kl":
        soft = soft_target(student, teacher, temperature)
    elif kind == "mse":
        soft = logits(F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1))
    else:
        raise ValueError(f"kind is '{kind}'; allowed: kl, mse")
    return alpha * soft + (1 - alpha) * task_loss


def channel_wise(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL between each channel's distribution over positions: ``T^2 / (B C) sum_bc KL(softmax_HW(t / T) || softmax_HW(s / T))``.

    Args:
        student, teacher: same shape (B, C, H, W); any range (log-softmax: large activations stay finite).
        temperature: T; the paper has 4.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, equation 4.
    """
    need_same_shape("channel_wise", student, teacher)
    return soft_target(student.flatten(2), teacher.flatten(2), temperature, dim=2)


@register_loss(logits)
class Logits(PixelLoss):
    """Mean squared difference; the image, or the adapted map, in the place of logits (``mse`` by its name in distillation)."""

    type: Literal["logits"] = Field(description="Name of the loss.")


@register_loss(soft_target)
class SoftTarget(FeatureLoss):
    """KL of softened distributions (Hinton et al. 2015) over the channels of each place, or over the places of each channel."""

    type: Literal["soft_target"] = Field(description="Name of the loss.")
    temperature: float = Field(4.0, gt=0, description="Temperature; the loss carries its square.")
    over: Literal["channels", "positions"] = Field("channels", description="Over what the softmax runs.")

    def arguments(self, inputs: LossInputs, student: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """The dimension of the softmax is the first after the samples."""
        return _softmax_first(self.over, student, target)


@register_loss(mutual)
class Mutual(FeatureLoss):
    """KL at temperature 1 (Zhang et al. 2018) over the channels of each place, or over the places of each channel."""

    type: Literal["mutual"] = Field(description="Name of the loss.")
    over: Literal["channels", "positions"] = Field("channels", description="Over what the softmax runs.")

    def arguments(self, inputs: LossInputs, student: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """The dimension of the softmax is the first after the samples."""
        return _softmax_first(self.over, student, target)


@register_loss(hard_soft)
class HardSoft(FeatureLoss):
    """alpha x soft loss over the channels of each place + (1 - alpha) x L1 of the output to HR (Hinton et al. 2015)."""

    type: Literal["hard_soft"] = Field(description="Name of the loss.")
    alpha: float = Field(0.7, gt=0, le=1, description="Share of the soft loss.")
    temperature: float = Field(3.0, gt=0, description="Temperature of both softmaxes.")
    kind: Literal["kl", "mse"] = Field("kl", description="KL, or squared difference of the softened probabilities.")

    @property
    def reads_output(self) -> bool:
        """Yes: the loss of the task."""
        return True

    def arguments(self, inputs: LossInputs, student: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """The loss of the task comes first."""
        return l1(inputs.student.sr.float(), inputs.hr), student, target


@register_loss(channel_wise)
class ChannelWise(FeatureLoss):
    """KL between each channel's distribution over places (Shu et al. 2021)."""

    type: Literal["channel_wise"] = Field(description="Name of the loss.")
    temperature: float = Field(1.0, gt=0, description="Temperature; the loss carries its square.")


def _softmax_first(over: str, *maps: Tensor) -> tuple[Tensor, ...]:
    """Maps (B, C, H, W) as they are for a softmax over channels, as (B, H W, C) for one over positions."""
    return maps if over == "channels" else tuple(x.flatten(2).transpose(1, 2) for x in maps)
