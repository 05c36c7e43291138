"""The frozen network that is imitated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .base import ModelSpec, SRModel
from .files import model_key


class Teacher(nn.Module):
    """A model that is never trained: in eval mode even after ``.train()``, without gradients.

    ``no_grad`` and not ``inference_mode``: a loss against an inference tensor could not be differentiated. The output is
    clipped to [0, 1], like the ground truth it stands beside.

    Args:
        model: the network.
        self_ensemble: average the outputs for the 8 flips and quarter turns of the input, see :func:`self_ensembled`.
    """

    def __init__(self, model: SRModel, self_ensemble: bool = False) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.self_ensemble = self_ensemble

    @property
    def spec(self) -> ModelSpec:
        """The contract of the network."""
        return self.model.spec

    @property
    def key(self) -> str:
        """A hash of the weights and of how they are used."""
        return model_key(self.model) + ("_x8" if self.self_ensemble else "")

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, lr: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 1] to RGB (B, 3, H*scale, W*scale) in [0, 1]."""
        if not self.self_ensemble:
            return clipped(self.model(lr))
        return clipped(self_ensembled(self.model, lr))


def self_ensembled(run: Callable[[Tensor], Tensor], lr: Tensor) -> Tensor:
    """The mean of the outputs for the 8 flips and quarter turns of the input, each turned back (x8; Lim et al. 2017, section 3.4)."""
    total = 0.0
    for turns in range(4):
        turned = torch.rot90(lr, turns, (-2, -1))
        total = total + torch.rot90(run(turned), -turns, (-2, -1))
        total = total + torch.rot90(run(turned.flip(-1)).flip(-1), -turns, (-2, -1))
    return total / 8


def clipped(sr: Tensor) -> Tensor:
    """``sr`` clipped to [0, 1]; what is not finite becomes NaN instead of 0 or 1, which would pass for an image."""
    return sr.clamp(0, 1) + (sr - sr)
