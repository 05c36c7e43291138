"""Losses between distributions (softmax over classes, channels or positions) and on logits."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from ..options.losses import TermOptions
from ..registry import LOSSES, OneOf
from .base import FeatureLoss, Loss, LossInputs, register_loss
from .common import need_same_shape
from .pixel import PixelLoss


def soft_target(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, dim: int = 1, t_squared: bool = True
) -> Tensor:
    """KL of softened distributions: ``T^2 mean sum_dim p_t log(p_t / p_s)`` with ``p = softmax(x / T, dim)``.

    Summed over ``dim``, mean over all other dimensions; for (N, C) logits that is "batchmean".

    Args:
        student, teacher: same shape, (N, C) or (B, C, H, W); any range.
        temperature: T; the factor T^2 keeps the size of gradients when T changes.
        dim: dimension of the softmax.
        t_squared: False: without T^2, as some published code has it; weights from there are smaller by it here.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    need_same_shape("soft_target", student, teacher)
    log_s = F.log_softmax(student / temperature, dim)
    log_t = F.log_softmax(teacher / temperature, dim)
    divergence = (log_t.exp() * (log_t - log_s)).sum(dim).mean()
    return divergence * temperature**2 if t_squared else divergence


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
    task_loss: Tensor,
    student: Tensor,
    teacher: Tensor,
    alpha: float = 0.7,
    temperature: float = 3.0,
    kind: str = "kl",
    alpha_of: str = "soft",
    t_squared: bool | None = None,
    dim: int = 1,
) -> Tensor:
    """Weighted sum of a soft and a hard loss: ``alpha soft + (1 - alpha) task_loss``.

    Args:
        task_loss: a scalar, the loss against the labels.
        student, teacher: logits of the same shape, softmax over dimension ``dim``.
        alpha: share of the soft loss.
        temperature: T of both softmaxes.
        kind: "kl": :func:`soft_target`. "mse": mean squared difference of the softened probabilities.
        alpha_of: "hard": alpha is the share of ``task_loss``, as in other code.
        t_squared: the factor T^2 of the soft loss; None: as usual, with "kl" and not with "mse".

    Raises:
        ValueError: ``kind`` or ``alpha_of`` is unknown.

    Source: Hinton et al. 2015, section 2.
    """
    if kind == "kl":
        soft = soft_target(student, teacher, temperature, dim, t_squared is not False)
    elif kind == "mse":
        soft = logits(F.softmax(student / temperature, dim), F.softmax(teacher / temperature, dim))
        soft = soft * temperature**2 if t_squared else soft
    else:
        raise ValueError(f"kind is '{kind}'; allowed: kl, mse")
    if alpha_of not in ("soft", "hard"):
        raise ValueError(f"alpha_of is '{alpha_of}'; allowed: soft, hard")
    share = alpha if alpha_of == "soft" else 1 - alpha
    return share * soft + (1 - share) * task_loss


def channel_wise(student: Tensor, teacher: Tensor, temperature: float = 1.0, t_squared: bool = True) -> Tensor:
    """KL between each channel's distribution over positions: ``T^2 / (B C) sum_bc KL(softmax_HW(t / T) || softmax_HW(s / T))``.

    Args:
        student, teacher: same shape (B, C, H, W); any range (log-softmax: large activations stay finite).
        temperature: T; the paper has 4.
        t_squared: False: without the factor T^2.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, equation 4.
    """
    need_same_shape("channel_wise", student, teacher)
    return soft_target(student.flatten(2), teacher.flatten(2), temperature, dim=2, t_squared=t_squared)


@register_loss(logits)
class Logits(PixelLoss):
    """Mean squared difference; the image, or the adapted map, in the place of logits (``mse`` by its name in distillation)."""

    type: Literal["logits"] = Field(description="Name of the loss.")


class SoftmaxLoss(Loss):
    """A loss between distributions, of maps or of images: over the channels of each place, or over the places of each channel.

    Of an image only the latter says something: how light is spread over it. Brightness counts for nothing there, and contrast for
    little; three colours are no classes. (A distribution over quantised values at each pixel would be the squared difference by
    another name: the KL divergence of two Gaussians of width w around x and y is (x - y)^2 / (2 w^2).)
    """

    on: Literal["features", "sr"] = Field("features", description="Adapted feature maps, or the output.")
    over: Literal["channels", "positions"] | None = Field(
        None, description="Over what the softmax runs; None: channels of maps, positions of images."
    )

    @model_validator(mode="after")
    def _of_images_over_positions(self) -> SoftmaxLoss:
        if self.on == "sr" and self.over is not None:
            if self.over == "channels":
                raise ValueError(
                    "over: channels would compare how red, green and blue share each pixel: leave out over"
                )
            raise ValueError("over has no effect with on: sr, where it is positions: leave it out")
        return self

    def arguments(self, inputs: LossInputs, student: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """The dimension of the softmax is the first after the samples."""
        if self.on == "features" and self.over != "positions":
            return student, target
        return student.flatten(2).transpose(1, 2), target.flatten(2).transpose(1, 2)


@register_loss(soft_target)
class SoftTarget(SoftmaxLoss):
    """KL of softened distributions (Hinton et al. 2015) over the channels of each place, or over the places of each channel."""

    type: Literal["soft_target"] = Field(description="Name of the loss.")
    temperature: float = Field(4.0, gt=0, description="Temperature of both softmaxes.")
    t_squared: bool = Field(True, description="The factor temperature squared, which some published code lacks.")


@register_loss(mutual)
class Mutual(SoftmaxLoss):
    """KL at temperature 1 (Zhang et al. 2018) over the channels of each place, or over the places of each channel."""

    type: Literal["mutual"] = Field(description="Name of the loss.")


@register_loss(hard_soft)
class HardSoft(SoftmaxLoss):
    """alpha x soft loss + (1 - alpha) x a loss of the output to HR (Hinton et al. 2015)."""

    type: Literal["hard_soft"] = Field(description="Name of the loss.")
    against: Literal["teacher", "peers"] = Field("teacher", description="Whose: the teacher's, or the peers'.")
    task: Annotated[TermOptions, OneOf(LOSSES, short=True, but=("hard_soft", "fcfd"))] = Field(
        "l1", validate_default=True, description="The hard loss: a loss of the output to HR, by name or with options."
    )
    alpha: float = Field(0.7, gt=0, le=1, description="Share of the soft loss.")
    alpha_of: Literal["soft", "hard"] = Field("soft", description="hard: alpha is the share of the hard loss.")
    temperature: float = Field(3.0, gt=0, description="Temperature of both softmaxes.")
    kind: Literal["kl", "mse"] = Field("kl", description="KL, or squared difference of the softened probabilities.")
    t_squared: bool | None = Field(
        None, description="The factor temperature squared of the soft loss; None: with kl, and not with mse."
    )

    @model_validator(mode="after")
    def _both_parts(self) -> HardSoft:
        own = {name for name in TermOptions.model_fields if name not in ("type", "on", "against")}
        given = [name for name in own if getattr(self.task, name) != TermOptions.model_fields[name].get_default()]
        if self.task.reads_maps or self.task.source != "hr" or given:
            raise ValueError(
                "task is a loss of the output to HR, with its own options alone: no on, against, weight, ..."
            )
        if self.alpha == 1 and self.alpha_of == "hard":
            raise ValueError("the soft loss has no share with alpha: 1, alpha_of: hard; choose a smaller alpha")
        if self.alpha == 1 and self.task.type != "l1":
            raise ValueError("task has no share with alpha: 1; leave it out, or choose a smaller alpha")
        return self

    @property
    def reads_output(self) -> bool:
        """Yes: the loss of the task."""
        return True

    @property
    def vgg_layers(self) -> frozenset[int]:
        """Those of the loss of the task."""
        return self.task.vgg_layers

    @property
    def least_side(self) -> int:
        """That of the loss of the task."""
        return self.task.least_side

    def weights_used(self) -> list[str]:
        """Those of the loss of the task."""
        return self.task.weights_used()

    def prepare(self) -> None:
        """What the loss of the task needs."""
        self.task.prepare()

    def arguments(self, inputs: LossInputs, student: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """The loss of the task comes first."""
        hard = self.task(*self.task.arguments(inputs, inputs.student.sr, inputs.hr))
        return hard, *super().arguments(inputs, student, target)


@register_loss(channel_wise)
class ChannelWise(FeatureLoss):
    """KL between each channel's distribution over places (Shu et al. 2021)."""

    type: Literal["channel_wise"] = Field(description="Name of the loss.")
    temperature: float = Field(1.0, gt=0, description="Temperature of both softmaxes.")
    t_squared: bool = Field(True, description="The factor temperature squared, which some published code lacks.")
