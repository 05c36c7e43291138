"""From the student's channels and size to the teacher's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..precision import FullPrecision
from .terms import Term


class _Adapted(FullPrecision):
    """A layer from the student's channels to the teacher's, and for maps bilinear interpolation to its size."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student = self.layer(student)
        if student.ndim == 4 and student.shape[-2:] != teacher.shape[-2:]:
            return F.interpolate(student, size=teacher.shape[-2:], mode="bilinear", align_corners=False)
        return student


def fitting(term: Term, own: Tensor, other: Tensor, pair: str) -> nn.Module | None:
    """The adapter of a pair; None where none is wanted."""
    kind = term.adapter
    if kind == "auto":
        if not term.needs_equal or own.shape == other.shape:
            return None
        kind = "conv1x1" if own.ndim == 4 else "linear"
    if kind == "none":
        return None
    is_map = kind.startswith("conv")
    if own.ndim != other.ndim or is_map != (own.ndim == 4):
        raise UserError(
            f"loss {term.name}, {pair}: no {kind} adapter leads from {tuple(own.shape)} to {tuple(other.shape)}: name other layers."
        )
    if is_map:
        side = int(kind[-1])
        return _Adapted(nn.Conv2d(own.shape[1], other.shape[1], side, padding=side // 2))
    return _Adapted(nn.Linear(own.shape[-1], other.shape[-1]))
