"""The teacher and its taps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..contracts import Prediction
from ..models import Teacher
from .taps import Taps


class TappedTeacher(nn.Module):
    """A frozen teacher that gives its output and the maps of chosen layers, running once and no deeper than needed.

    Args:
        teacher: the frozen network.
        paths: layers to read; none: the output alone.

    Raises:
        UserError: a layer does not exist.
    """

    def __init__(self, teacher: Teacher, paths: Sequence[str] = ()) -> None:
        super().__init__()
        self.teacher = teacher
        self.taps = Taps(teacher.model, paths)

    @torch.no_grad()
    def forward(self, lr: Tensor, stored_sr: Tensor | None = None) -> Prediction:
        """Predict for RGB (B, 3, H, W) in [0, 1]; with its output at hand (``stored_sr``) only as deep as the deepest tap."""
        if not self.taps.paths:
            return Prediction(self.teacher(lr) if stored_sr is None else stored_sr)
        one_pass = stored_sr is None and not self.teacher.self_ensemble
        sr, maps = self.taps.run(lr, need_sr=one_pass)
        if stored_sr is not None:
            return Prediction(stored_sr, maps)
        return Prediction(sr.clamp(0, 1) if one_pass else self.teacher(lr), maps)
