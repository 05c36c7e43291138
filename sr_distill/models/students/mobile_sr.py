"""mobile_sr: plain 3x3 convolutions, a nearest-neighbour anchor and a clipped image-space residual."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...options.architectures import Architecture, Color, Depth, Width
from ...registry import register_student


class MobileSR(nn.Module):
    """``clip(shuffle(body(x) + repeat(x)))``: what every phone runtime runs without a fallback.

    ``body`` is num_block + 2 convolutions of 3x3; ``repeat`` gives each channel scale^2 times, which after PixelShuffle is the
    nearest-neighbour upscaled input. The image-space residual and the clip keep the output in range after quantisation to
    8 bits. The clip is left out in training, where it would stop the gradient of pixels that are out of range.

    Args:
        channels: 3 for RGB, 1 for luma; values in [0, 1].

    Source of the anchor: Du et al., "Anchor-based Plain Net for Mobile Image Super-Resolution", CVPRW 2021.
    """

    def __init__(self, scale: int, channels: int, num_feat: int, num_block: int, activation: str) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = []
        for index in range(num_block + 1):
            layers.append(nn.Conv2d(num_feat if index else channels, num_feat, 3, padding=1))
            layers.append(nn.PReLU(num_feat) if activation == "prelu" else nn.ReLU())
        layers.append(nn.Conv2d(num_feat, channels * scale**2, 3, padding=1))
        self.body = nn.Sequential(*layers)
        self.upsampler = nn.PixelShuffle(scale)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, channels, H, W) to (B, channels, H*scale, W*scale)."""
        sr = self.upsampler(self.body(x) + x.repeat_interleave(self.scale**2, dim=1))
        return sr if self.training else sr.clamp(0, 1)

    def _initialise(self) -> None:
        """He et al. 2015, so that the signal survives the depth; the last layer small: the start is near the anchor."""
        convs = [layer for layer in self.body if isinstance(layer, nn.Conv2d)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        with torch.no_grad():
            convs[-1].weight.mul_(0.1)


@register_student
class MobileSROptions(Architecture):
    """Plain 3x3 convolutions and a nearest-neighbour anchor; every phone runtime runs it."""

    type: Literal["mobile_sr"] = Field(description="Name of the network.")
    color: Color = "rgb"
    num_feat: Width = Field(32, description="Channels of the body.")
    num_block: Depth = Field(4, description="Number of 3x3 convolutions between the first and the last.")
    activation: Literal["relu", "prelu"] = Field("relu", description="relu quantises best; prelu fits a little better.")

    def build(self, scale: int) -> nn.Module:
        """The network for RGB or luma."""
        channels = 3 if self.color == "rgb" else 1
        return MobileSR(scale, channels, self.num_feat, self.num_block, self.activation)
