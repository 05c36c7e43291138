"""FSRCNN, the first network made for fast super-resolution."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ...options.architectures import Architecture, Color, Depth, Width
from ...registry import register_student


class FSRCNN(nn.Module):
    """FSRCNN(d, s, m): feature 5x5, shrink 1x1, m mappings 3x3, expand 1x1, deconvolution 9x9; PReLU between.

    Args:
        channels: 1 for luma as in the paper, 3 for RGB; values in [0, 1].
        num_feat: d. num_shrink: s. num_block: m.

    Source: Dong et al., "Accelerating the Super-Resolution Convolutional Neural Network", ECCV 2016, section 3.
    """

    def __init__(self, scale: int, channels: int, num_feat: int, num_shrink: int, num_block: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, num_feat, 5, padding=2), nn.PReLU(num_feat)]
        layers += [nn.Conv2d(num_feat, num_shrink, 1), nn.PReLU(num_shrink)]
        for _ in range(num_block):
            layers += [nn.Conv2d(num_shrink, num_shrink, 3, padding=1), nn.PReLU(num_shrink)]
        layers += [nn.Conv2d(num_shrink, num_feat, 1), nn.PReLU(num_feat)]
        self.body = nn.Sequential(*layers)
        self.upsampler = nn.ConvTranspose2d(num_feat, channels, 9, stride=scale, padding=4, output_padding=scale - 1)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, channels, H, W) to (B, channels, H*scale, W*scale)."""
        return self.upsampler(self.body(x))

    def _initialise(self) -> None:
        """He et al. 2015 for convolutions before PReLU, Gaussian 0.001 for the deconvolution, as in the paper."""
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                fan_out = layer.out_channels * layer.kernel_size[0] ** 2
                nn.init.normal_(layer.weight, std=math.sqrt(2.0 / fan_out))
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.upsampler.weight, std=1e-3)
        nn.init.zeros_(self.upsampler.bias)


@register_student
class FSRCNNOptions(Architecture):
    """Dong et al. 2016, FSRCNN(d, s, m); d=56, s=12, m=4 is the paper's (12 K parameters)."""

    type: Literal["fsrcnn"] = Field(description="Name of the network.")
    color: Color = "y"
    num_feat: Width = Field(56, description="d: channels of the feature and the deconvolution layer.")
    num_shrink: Width = Field(12, description="s: channels of the mapping layers.")
    num_block: Depth = Field(4, description="m: number of mapping layers.")

    def build(self, scale: int) -> nn.Module:
        """The network for RGB or luma."""
        channels = 3 if self.color == "rgb" else 1
        return FSRCNN(scale, channels, self.num_feat, self.num_shrink, self.num_block)
