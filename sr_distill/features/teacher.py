"""The teacher and its taps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..contracts import Prediction
from ..models import Teacher
from .substitution import ReplayTaps
from .taps import Taps


class TappedTeacher(nn.Module):
    """A frozen teacher that gives its output and the maps of chosen layers, running once and no deeper than needed.

    Args:
        teacher: the frozen network.
        paths: layers to read; none: the output alone.
        need_sr: whether its output is wanted; if not, and nothing is replayed, it stops at the deepest layer.
        replay: give the rest of the network from each layer on, too; it then always runs to the end.

    Raises:
        UserError: a layer does not exist.
    """

    def __init__(self, teacher: Teacher, paths: Sequence[str] = (), need_sr: bool = True, replay: bool = False) -> None:
        super().__init__()
        self.teacher = teacher
        self.need_sr = need_sr
        self.taps = (ReplayTaps if replay else Taps)(teacher.model, paths)

    @torch.no_grad()
    def forward(self, lr: Tensor, stored_sr: Tensor | None = None) -> Prediction:
        """Predict for RGB (B, 3, H, W) in [0, 1]; with its output at hand (``stored_sr``) only as deep as the deepest tap."""
        if not self.taps.paths:
            return Prediction(self.teacher(lr) if stored_sr is None else stored_sr)
        to_be_made = self.need_sr and stored_sr is None
        one_pass = to_be_made and not self.teacher.self_ensemble
        seen = self.taps.run(lr, need_sr=one_pass)
        if to_be_made:
            stored_sr = seen.sr.clamp(0, 1) if one_pass else self.teacher(lr)
        return dataclasses.replace(seen, sr=stored_sr)
