"""Contrastive self-distillation: near the teacher, away from blurred images, in VGG space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..data.bicubic import imresize
from ..samples import all_samples
from .base import Loss, LossInputs, register_loss
from .common import evenly_spread
from .feature_cache import layer_index, vgg_maps
from .perceptual import LooksThroughVGG

CSD_LAYERS: Mapping[str, float] = {
    "relu1_1": 1 / 32,
    "relu2_1": 1 / 16,
    "relu3_1": 1 / 8,
    "relu4_1": 1 / 4,
    "relu5_1": 1.0,
}
"""Layers of the paper and their factors."""


def contrastive(sr: Tensor, teacher_sr: Tensor, negatives: Tensor, layers: Mapping[str, float] = CSD_LAYERS) -> Tensor:
    """Ratio of two distances: ``sum_l w_l mean |phi_l(sr) - phi_l(t)| / (mean sum_k |phi_l(n_k) - phi_l(sr)| + 1e-7)`` over VGG19 layers.

    Args:
        sr, teacher_sr: RGB (B, 3, H, W) in [0, 1]; the teacher gets no gradient.
        negatives: (K, 3, H, W) in [0, 1], each set against every image; in the paper LR images of the batch, upscaled by bicubic.
        layers: name of each layer (see VGG19_LAYERS) and its factor w_l.

    Returns:
        A scalar. Input is normalised to ImageNet's statistics, which the authors' code leaves out.

    Raises:
        UserError: a layer does not exist, or the pretrained weights cannot be had.

    Source: Wang et al., "Towards Compact Single Image Super-Resolution via Contrastive Self-distillation", IJCAI 2021,
    equation 6, and its repository.
    """
    factors = {layer_index(name): weight for name, weight in layers.items()}
    student = vgg_maps(sr, set(factors))
    with torch.no_grad():
        teacher, others = (vgg_maps(image, set(factors)) for image in (teacher_sr, negatives))
    total = sr.new_zeros(())
    for index, factor in factors.items():
        near = (student[index] - teacher[index]).abs().mean()
        # (K, 1, ...) against (B, ...): one negative at a time would save memory, but K is small.
        far = (others[index].unsqueeze(1) - student[index]).abs().sum(0).mean()
        total = total + factor * near / (far + 1e-7)
    return total


@register_loss(contrastive)
class Contrastive(LooksThroughVGG, Loss):
    """Near the teacher, away from bicubic images of the batch, in VGG19 (CSD, Wang et al. 2021)."""

    type: Literal["contrastive"] = Field(description="Name of the loss.")
    on: Literal["sr"] = Field("sr", description="What is compared: the output.")
    against: Literal["teacher"] = Field("teacher", description="The teacher.")
    negatives: int = Field(
        4, ge=1, le=64, description="How many LR images of the batch, upscaled by bicubic; memory grows with it."
    )
    layers: dict[str, Annotated[float, Field(gt=0)]] = Field(
        dict(CSD_LAYERS), min_length=1, description="Layer of VGG19 and its factor; by default those of the paper."
    )

    def arguments(self, inputs: LossInputs, student: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """The images of all processes, whose means are set against each other, and the negatives."""
        lr = evenly_spread(all_samples(inputs.lr), self.negatives)
        negatives = imresize(lr, student.shape[-1] // inputs.lr.shape[-1])
        return all_samples(student), all_samples(target), negatives
