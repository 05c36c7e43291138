"""What several losses need: safe normalisation, equal sizes, and errors that say what a loss needs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LossError


def unit(x: Tensor, dim: int) -> Tensor:
    """``x / ||x||_2`` along ``dim``; a vector no longer than 1e-12 is taken for zero, stays it and gets a zero gradient, not an infinite one."""
    squared = x.square().sum(dim, keepdim=True)
    safe = squared > 1e-24  # its gradient needs the third power of 1 / ||x||, which float32 holds up to 1e38
    return x * torch.where(safe, squared, 1.0).rsqrt() * safe


def pooled_alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Bring two maps (B, C, H, W) to the smaller height and the smaller width of the two by average pooling."""
    size = tuple(min(a, b) for a, b in zip(first.shape[-2:], second.shape[-2:]))
    return tuple(x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size) for x in (first, second))


def rows(x: Tensor) -> Tensor:
    """One vector a sample: (B, ...) to (B, D)."""
    return x.flatten(1)


def evenly_spread(x: Tensor, most: int) -> Tensor:
    """At most ``most`` of the rows of ``x``, evenly spaced."""
    if len(x) <= most:
        return x
    return x[torch.linspace(0, len(x) - 1, most, device=x.device).round().long()]


def need_same_shape(loss: str, student: Tensor, teacher: Tensor) -> None:
    """Raise LossError (a ValueError) where the shapes differ."""
    if student.shape != teacher.shape:
        raise LossError(
            f"{loss} compares value by value, but the student has {tuple(student.shape)} and the teacher {tuple(teacher.shape)}: "
            "an adapter makes them equal"
        )


def need_samples(loss: str, student: Tensor, teacher: Tensor, least: int) -> None:
    """Raise LossError (a ValueError) where the batches differ or are smaller than a loss on relations between samples needs."""
    if len(student) != len(teacher):
        raise LossError(f"{loss}: the student has {len(student)} samples and the teacher {len(teacher)}")
    if len(student) < least:
        raise LossError(
            f"{loss} compares relations between samples and needs at least {least} of them, got {len(student)}: "
            "take a larger batch, or patches as samples"
        )
