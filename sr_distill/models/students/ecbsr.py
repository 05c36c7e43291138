"""ECBSR: edge-oriented convolution blocks that collapse to plain 3x3 convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from ...options.architectures import ECBSR as ECBSROptions
from ..base import Architecture
from ..blocks import EdgeBlock


class ECBSR(nn.Module):
    """ECBSR-M<num_block>C<num_feat>: num_block + 2 edge-oriented blocks and a nearest-neighbour anchor, then PixelShuffle.

    Args:
        channels: 1 for luma as in the paper, 3 for RGB; values in [0, 1].

    Source: Zhang et al., ACM MM 2021, section 3.1.
    """

    def __init__(self, scale: int, channels: int, num_feat: int, num_block: int) -> None:
        super().__init__()
        self.scale = scale
        blocks = [EdgeBlock(channels, num_feat, activation=True)]
        blocks += [EdgeBlock(num_feat, num_feat, activation=True) for _ in range(num_block)]
        blocks += [EdgeBlock(num_feat, channels * scale**2, activation=False)]
        self.backbone = nn.Sequential(*blocks)
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, channels, H, W) to (B, channels, H*scale, W*scale)."""
        return self.upsampler(self.backbone(x) + x.repeat_interleave(self.scale**2, dim=1))


def _build(options: ECBSROptions, scale: int) -> nn.Module:
    return ECBSR(scale, 3 if options.color == "rgb" else 1, options.num_feat, options.num_block)


ARCHITECTURE = Architecture(_build)
