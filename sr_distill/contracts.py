"""The values that cross the borders between modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Aligned training crops: ``lr`` (B, 3, h, w), ``hr`` and each of ``teacher_sr`` (B, 3, h*scale, w*scale).

    Made as uint8 (0-255) by the loader, because that is a quarter of the bytes to move; :meth:`to` gives the
    float in [0, 1] that every other module expects. ``teacher_sr`` has the outputs of those teachers, by name, whose
    outputs were stored beforehand; none ever takes the place of ``hr``.
    """

    lr: Tensor
    hr: Tensor
    teacher_sr: Mapping[str, Tensor] = field(default_factory=dict)

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory, from where a GPU fetches it while the program goes on."""
        stored = {name: image.pin_memory() for name, image in self.teacher_sr.items()}
        return Batch(self.lr.pin_memory(), self.hr.pin_memory(), stored)

    def to(self, device: torch.device, channels_last: bool = False) -> Batch:
        """Move to ``device`` and convert uint8 to float32 in [0, 1]."""
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def convert(image: Tensor) -> Tensor:
            image = image.to(device, non_blocking=True)
            if image.dtype == torch.uint8:
                image = image.float().div_(255.0)
            return image.contiguous(memory_format=layout)

        stored = {name: convert(image) for name, image in self.teacher_sr.items()}
        return Batch(convert(self.lr), convert(self.hr), stored)


@dataclass(frozen=True)
class Measured:
    """What a validation found of one model.

    Attributes:
        score: the one number that decides which student is best.
        values: everything that was measured, by name.
        samples: some of the outputs, uint8 (3, H, W), by name.
        dead: activation functions that gave nothing but 0 for every image.
    """

    score: float
    values: Mapping[str, float]
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    dead: tuple[str, ...] = ()


class ForwardFrom(Protocol):
    """The rest of a network: what it makes of a map that takes the place of its own.

    Attributes:
        sr: what the network gave in the pass that this continues, not clipped.
    """

    sr: Tensor

    def __call__(self, path: str, feature: Tensor, until: str | None = None) -> Prediction:
        """Run on from the layer ``path`` with ``feature`` as its map, to the output or to the layer ``until``."""


@dataclass(frozen=True)
class Prediction:
    """What a network gave for a batch.

    Attributes:
        sr: (B, 3, H, W), None where it was not asked for.
        features: maps (B, C, h, w) by module path, in the order in which the layers ran.
        forward_from: runs the network from a changed map on; None where nothing asks for it.
    """

    sr: Tensor | None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    forward_from: ForwardFrom | None = None
