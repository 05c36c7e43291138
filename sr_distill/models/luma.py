"""What a luma network and bicubic chroma make of a colour image, as two convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..data.bicubic import imresize, mirrored
from ..data.color import rgb_to_ycbcr, ycbcr_to_rgb

REACH = 2
"""Pixels that bicubic upscaling looks at to either side of the nearest one."""


class LumaAndChroma(nn.Module):
    """``RGB = a Y' + K * RGB``: what a luma network and bicubic chroma make of an image, with ``K`` a 5x5 convolution to sub-pixels.

    Equal to the conversion to YCbCr (BT.601), bicubic upscaling of Cb and Cr, and the conversion back, of :class:`SRModel`, at a fraction of
    their passes over the large image.

    Args:
        scale: of the network.
    """

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

    def join(self, luma: Tensor, framed: Tensor) -> Tensor:
        """RGB (B, 3, H*scale, W*scale) from the network's luma (B, 1, H*scale, W*scale) and the image in its frame.

        Args:
            luma: Y of BT.601 in [16/255, 235/255].
            framed: RGB (B, 3, H+4, W+4) in [0, 1], continued by its mirror image by ``REACH`` pixels at every end.
        """
        return self.shuffle(self.chroma(framed)) + luma * self.gain


def framed(image: Tensor) -> Tensor:
    """(B, C, H, W) of any size, continued by its mirror image by ``REACH`` pixels at every end."""
    for dim in (-2, -1):
        size = image.shape[dim]
        index = torch.arange(-REACH, size + REACH, device=image.device)
        image = image.index_select(dim, mirrored(index, size))
    return image


def _affine(convert: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Matrix (3, 3) and offset (3,) of a conversion of colours."""
    basis = torch.cat([torch.zeros(3, 1), torch.eye(3)], dim=1).double().view(3, 1, 4)
    columns = convert(basis)[:, 0]
    return columns[:, 1:] - columns[:, :1], columns[:, 0]


def _bicubic_phases(scale: int) -> Tensor:
    """What each of the ``scale^2`` sub-pixels of bicubic upscaling is of the 5x5 pixels around: (scale^2, 5, 5)."""
    side, middle = 4 * REACH + 1, 2 * REACH
    columns = torch.eye(side, dtype=torch.float64)[:, :, None].expand(-1, -1, side)  # images with one white row
    upscaled = imresize(columns, scale)[:, middle * scale : (middle + 1) * scale, middle * scale]  # row, phase
    taps = upscaled[middle - REACH : middle + REACH + 1]
    return torch.einsum("ki,lj->ijkl", taps, taps).flatten(0, 1)


def _conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[-1])
    conv.weight, conv.bias = (nn.Parameter(value.float(), requires_grad=False) for value in (weight, bias))
    return conv
