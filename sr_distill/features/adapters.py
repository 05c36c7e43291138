"""Bring the student's maps to the teacher's channels and size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .pairs import FeaturePair


class Adapter(nn.Module):
    """A convolution to the teacher's channels, then bilinear interpolation to its size where that differs.

    Trained with the student and thrown away with the run: it is in checkpoints, not in the student's file.

    Args:
        pair: the two layers and the kind: conv1x1, conv3x3, or none, which needs equal channels.

    Raises:
        UserError: ``none`` with different channels.
    """

    def __init__(self, pair: FeaturePair) -> None:
        super().__init__()
        channels = pair.student.channels, pair.teacher.channels
        if pair.adapter == "none":
            if channels[0] != channels[1]:
                raise UserError(f"features.adapter none needs equal channels, but the pair is {pair}: choose conv1x1.")
            self.conv: nn.Module = nn.Identity()
        else:
            side = {"conv1x1": 1, "conv3x3": 3}[pair.adapter]
            self.conv = nn.Conv2d(*channels, side, padding=side // 2)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, Cs, hs, ws) to (B, Ct, ht, wt), the shape of ``teacher``."""
        student = self.conv(student)
        if student.shape[-2:] != teacher.shape[-2:]:
            student = F.interpolate(student, size=teacher.shape[-2:], mode="bilinear", align_corners=False)
        return student
