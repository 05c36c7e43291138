"""Contrastive self-distillation: near the teacher, away from blurred images, in VGG space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..data.bicubic import imresize
from ..features import vgg19_features
from ..options import losses as options
from .common import evenly_spread
from .perceptual import layer_index, vgg_maps
from .scene import Scene, SceneLoss

CSD_LAYERS: Mapping[str, float] = {
    "relu1_1": 1 / 32,
    "relu2_1": 1 / 16,
    "relu3_1": 1 / 8,
    "relu4_1": 1 / 4,
    "relu5_1": 1.0,
}
"""Layers of the paper and their factors."""


def contrastive(sr: Tensor, teacher_sr: Tensor, negatives: Tensor, layers: Mapping[str, float] = CSD_LAYERS) -> Tensor:
    """``sum_l w_l mean |phi_l(sr) - phi_l(t)| / (mean sum_k |phi_l(n_k) - phi_l(sr)| + 1e-7)`` over VGG19 layers.

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


class ContrastiveLoss(SceneLoss):
    """:func:`contrastive` as a term: the output against the teacher's; negatives are LR images of the batch, upscaled by bicubic.

    Attributes:
        vgg_layers: indices of the layers of VGG19 that it looks at.
    """

    adapted = False

    def __init__(self, options: options.Contrastive) -> None:
        super().__init__()
        self.layers, self.negatives = options.layers or CSD_LAYERS, options.negatives
        self.vgg_layers = {layer_index(name) for name in self.layers}
        vgg19_features()  # missing weights are an error now, not at the first step

    def forward(self, scene: Scene) -> Tensor:
        """A scalar."""
        sr, (teacher_sr,) = scene.student.sr, scene.targets
        lr = evenly_spread(scene.lr, self.negatives)
        return contrastive(sr, teacher_sr, imresize(lr, sr.shape[-1] // lr.shape[-1]), self.layers)
