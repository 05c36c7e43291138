"""The network as it leaves PyTorch: fused, with its conversion of colours inside, in operators that the runtime has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..data.bicubic import imresize
from ..data.color import rgb_to_ycbcr, ycbcr_to_rgb
from ..errors import UserError
from ..models import SRModel, collapse
from .lowering import Lowering, lower

Io = Literal["rgb", "y", "uint8"]
IOS: tuple[Io, ...] = get_args(Io)
_REACH = 2
"""Pixels that bicubic upscaling looks at to either side of the nearest one."""


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
        model: on the CPU; it is copied and brought to the deployed form.
        io: what goes in and out, see :class:`Signature`.
        lowering: how operators are written for the runtime.

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
        self.net = lower(collapse(model.net).requires_grad_(False), lowering)
        self.color = _LumaAndChroma(model.spec.scale) if io != "y" and model.spec.color == "y" else None

    def forward(self, image: Tensor) -> Tensor:
        """See :class:`Signature`."""
        if self.io == "uint8":
            image = image.permute(0, 3, 1, 2).float() / 255
        sr = self._run(image) if self.color is None else self.color.join(self._run(self.color.luma(image)), image)
        sr = sr.clamp(0, 1)
        return (sr * 255).round().to(torch.uint8).permute(0, 2, 3, 1) if self.io == "uint8" else sr

    def _run(self, image: Tensor) -> Tensor:
        value_range = self.spec.value_range
        return self.net(image) if value_range == 1 else self.net(image * value_range) * (1 / value_range)


class _LumaAndChroma(nn.Module):
    """``RGB = a Y' + K * RGB``: what a luma network and bicubic chroma make of an image, with ``K`` a 5x5 convolution to sub-pixels."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        to, to_offset = _affine(rgb_to_ycbcr)
        back, back_offset = _affine(ycbcr_to_rgb)
        self.luma = _conv(to[:1, :, None, None], to_offset[:1])
        mix = back[:, 1:] @ to[1:]
        kernel = mix[:, None, :, None, None] * _bicubic_phases(scale)[None, :, None]  # 3, phases, 3, 5, 5
        offset = (back[:, 1:] @ to_offset[1:] + back_offset).repeat_interleave(scale**2)
        self.chroma = _conv(kernel.flatten(0, 1), offset)
        self.shuffle = nn.PixelShuffle(scale)
        gain = back[:, 0]
        if not torch.allclose(gain, gain[:1].expand(3)):
            raise AssertionError("R, G and B are raised alike by luma")
        self.gain = float(gain[0])

    def join(self, luma: Tensor, image: Tensor) -> Tensor:
        """RGB (B, 3, H*scale, W*scale) from the network's luma and the image (B, 3, H, W)."""
        return self.shuffle(self.chroma(_mirrored(_mirrored(image, 2), 3))) + luma * self.gain


def _affine(convert: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Matrix (3, 3) and offset (3,) of a conversion of colours."""
    basis = torch.cat([torch.zeros(3, 1), torch.eye(3)], dim=1).double().view(3, 1, 4)
    columns = convert(basis)[:, 0]
    return columns[:, 1:] - columns[:, :1], columns[:, 0]


def _bicubic_phases(scale: int) -> Tensor:
    """What each of the ``scale^2`` sub-pixels of bicubic upscaling is of the 5x5 pixels around: (scale^2, 5, 5)."""
    side, middle = 4 * _REACH + 1, 2 * _REACH
    columns = torch.eye(side, dtype=torch.float64)[:, :, None].expand(-1, -1, side)  # images with one white row
    upscaled = imresize(columns, scale)[:, middle * scale : (middle + 1) * scale, middle * scale]  # row, phase
    taps = upscaled[middle - _REACH : middle + _REACH + 1]
    return torch.einsum("ki,lj->ijkl", taps, taps).flatten(0, 1)


def _conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[-1])
    conv.weight, conv.bias = (nn.Parameter(value.float(), requires_grad=False) for value in (weight, bias))
    return conv


def _mirrored(image: Tensor, dim: int) -> Tensor:
    """The image with its mirror image continued by ``_REACH`` pixels at both ends: by slices, which every runtime has."""
    cut = (slice(None),) * dim
    before = [image[(*cut, slice(index, index + 1))] for index in reversed(range(_REACH))]
    after = [image[(*cut, slice(-1 - index, -index or None))] for index in range(_REACH)]
    return torch.cat([*before, image, *after], dim=dim)
