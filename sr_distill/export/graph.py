"""The network as it leaves PyTorch: fused, with its conversion of colours inside, in operators that the runtime has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models import SRModel, collapse, ranges
from ..models.luma import REACH, LumaAndChroma
from .lowering import Lowering, lower

Io = Literal["rgb", "y", "uint8"]
IOS: tuple[Io, ...] = get_args(Io)


@dataclass(frozen=True)
class Signature:
    """What goes into an exported model and comes out.

    ``rgb``: (1, 3, H, W) float in [0, 1]; ``y``: (1, 1, H, W) float, luma of BT.601 in [16/255, 235/255]; ``uint8``: (1, H, W, 3) bytes,
    as bitmaps lie in memory. The output is the same, ``scale`` times as high and wide.

    Attributes:
        io: of the three.
        size: height and width that the model takes; None: any.
        smallest: least height and width, where any are taken.
    """

    io: Io
    scale: int
    size: tuple[int, int] | None
    smallest: int = 8

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Of the input for an image of this size."""
        return (1, height, width, 3) if self.io == "uint8" else (1, 1 if self.io == "y" else 3, height, width)

    def example(self, height: int = 64, width: int = 48) -> Tensor:
        """An input of the model's size, or of this one where it takes any; all zero."""
        dtype = torch.uint8 if self.io == "uint8" else torch.float32
        return torch.zeros(self.shape(*(self.size or (height, width))), dtype=dtype)

    @property
    def sides(self) -> tuple[int, int]:
        """The dimensions that are height and width."""
        return (1, 2) if self.io == "uint8" else (2, 3)


class ExportGraph(nn.Module):
    """A model as a single graph of operators for one image, its output clipped to [0, 1].

    A luma network under ``rgb`` and ``uint8`` is given Y of BT.601 by a 1x1 convolution; the chroma of its output is that of the input,
    upscaled by bicubic, which is one 5x5 convolution with the conversion back to RGB inside.

    Args:
        model: on the CPU; it is copied and brought to the deployed form, in floats.
        io: what goes in and out, see :class:`Signature`.
        lowering: how operators are written for the runtime.

    Attributes:
        ranges: of the maps of ``net`` in 8 bits, where the model was trained with that rounding.

    Raises:
        UserError: ``io`` is y, but the network takes RGB.
    """

    def __init__(self, model: SRModel, io: Io, lowering: Lowering) -> None:
        super().__init__()
        model = model.eval()
        if io == "y" and model.spec.color != "y":
            raise UserError(
                f"{model.spec.name} takes RGB: export it with --io rgb or uint8; y is for networks that upscale luma."
            )
        self.io, self.spec = io, model.spec
        self.ranges = ranges(model.net)
        self.net = lower(collapse(model.net).requires_grad_(False), lowering)
        self.color = LumaAndChroma(model.spec.scale) if io != "y" and model.spec.color == "y" else None

    def forward(self, image: Tensor) -> Tensor:
        """See :class:`Signature`."""
        if self.io == "uint8":
            image = image.permute(0, 3, 1, 2).float() / 255
        sr = self._run(image if self.color is None else self.color.luma(image))
        if self.color is not None:
            sr = self.color.join(sr, _mirrored(_mirrored(image, 2), 3))
        sr = sr.clamp(0, 1)
        return (sr * 255).round().to(torch.uint8).permute(0, 2, 3, 1) if self.io == "uint8" else sr

    def _run(self, image: Tensor) -> Tensor:
        value_range = self.spec.value_range
        return self.net(image) if value_range == 1 else self.net(image * value_range) * (1 / value_range)


def _mirrored(image: Tensor, dim: int) -> Tensor:
    """The image with its mirror image continued by ``REACH`` pixels at both ends: by slices, which every runtime has."""
    cut = (slice(None),) * dim
    before = [image[(*cut, slice(index, index + 1))] for index in reversed(range(REACH))]
    after = [image[(*cut, slice(-1 - index, -index or None))] for index in range(REACH)]
    return torch.cat([*before, image, *after], dim=dim)
