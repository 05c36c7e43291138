"""ECBSR: edge-oriented convolution blocks that collapse to plain 3x3 convolutions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ...options.architectures import Architecture, Color, Depth, Width
from ...registry import register_student
from ..blocks import EdgeBlock, NearestAnchor


class ECBSR(nn.Module):
    """ECBSR-M<num_block>C<num_feat>: num_block + 2 edge-oriented blocks and a nearest-neighbour anchor, then PixelShuffle.

    Args:
        channels: 1 for luma as in the paper, 3 for RGB; values in [0, 1].

    Source: Zhang et al., ACM MM 2021, section 3.1.
    """

    def __init__(self, scale: int, channels: int, num_feat: int, num_block: int) -> None:
        super().__init__()
        blocks = [EdgeBlock(channels, num_feat, activation=True)]
        blocks += [EdgeBlock(num_feat, num_feat, activation=True) for _ in range(num_block)]
        blocks += [EdgeBlock(num_feat, channels * scale**2, activation=False)]
        self.backbone = nn.Sequential(*blocks)
        self.anchor = NearestAnchor(channels, scale)
        self.upsampler = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, channels, H, W) to (B, channels, H*scale, W*scale)."""
        return self.upsampler(self.backbone(x) + self.anchor(x))


@register_student
class ECBSROptions(Architecture):
    """Zhang et al. 2021, ECBSR-M<num_block>C<num_feat>; re-parameterised 3x3 convolutions."""

    type: Literal["ecbsr"] = Field(description="Name of the network.")
    color: Color = "y"
    num_feat: Width = Field(16, description="C: channels of the body.")
    num_block: Depth = Field(4, description="M: number of edge-oriented blocks in the body.")

    def build(self, scale: int) -> nn.Module:
        """The network for RGB or luma."""
        return ECBSR(scale, 3 if self.color == "rgb" else 1, self.num_feat, self.num_block)
