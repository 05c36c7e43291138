"""The values that cross the borders between modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Aligned training crops: ``lr`` (B, 3, h, w), ``hr`` and ``teacher_sr`` (B, 3, h*scale, w*scale).

    Made as uint8 (0-255) by the loader, because that is a quarter of the bytes to move; :meth:`to` gives the
    float in [0, 1] that every other module expects. ``teacher_sr`` is there only when the teacher's output was
    stored beforehand, and never takes the place of ``hr``.
    """

    lr: Tensor
    hr: Tensor
    teacher_sr: Tensor | None = None

    def to(self, device: torch.device, channels_last: bool = False) -> Batch:
        """Move to ``device`` and convert uint8 to float32 in [0, 1]."""
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def convert(image: Tensor | None) -> Tensor | None:
            if image is None:
                return None
            image = image.to(device, non_blocking=True)
            if image.dtype == torch.uint8:
                image = image.float().div_(255.0)
            return image.contiguous(memory_format=layout)

        return Batch(convert(self.lr), convert(self.hr), convert(self.teacher_sr))


@dataclass(frozen=True)
class Prediction:
    """What a network gave for a batch: ``sr`` (B, 3, H, W), None where it was not asked for, and feature maps by module path."""

    sr: Tensor | None
    features: Mapping[str, Tensor] = field(default_factory=dict)
