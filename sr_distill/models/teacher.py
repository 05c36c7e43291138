"""The frozen network that is imitated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import SRModel


class Teacher(nn.Module):
    """A model that is never trained: in eval mode even after ``.train()``, without gradients.

    ``no_grad`` and not ``inference_mode``: a loss against an inference tensor could not be differentiated. The output is
    clipped to [0, 1], like the ground truth it stands beside.
    """

    def __init__(self, model: SRModel) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, lr: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 1] to RGB (B, 3, H*scale, W*scale) in [0, 1]."""
        return self.model(lr).clamp(0, 1)
