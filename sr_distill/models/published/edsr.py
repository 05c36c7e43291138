"""EDSR, the enhanced deep residual network; parameter names are those of BasicSR, so that its checkpoints load."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...options.architectures import Architecture, Depth, Width
from ...registry import register_teacher
from ..base import StateDict

_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, RGB
_RANGE = 255.0


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between them and a skip; no batch normalisation."""

    def __init__(self, num_feat: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        for conv in (self.conv1, self.conv2):  # near the identity at first
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)
            with torch.no_grad():
                conv.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x))) * self.res_scale


class EDSR(nn.Module):
    """Residual blocks and sub-pixel upsampling; RGB in [0, 1], 0 to 255 less its mean inside.

    Source: Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017.
    """

    def __init__(self, scale: int, num_feat: int, num_block: int, res_scale: float) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(_ResidualBlock(num_feat, res_scale) for _ in range(num_block)))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        stages: list[nn.Module] = []
        for factor in (2, 2) if scale == 4 else (scale,):
            stages += [nn.Conv2d(num_feat, num_feat * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        self.upsample = nn.Sequential(*stages)
        self.conv_last = nn.Conv2d(num_feat, 3, 3, padding=1)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, H, W) to (B, 3, H*scale, W*scale)."""
        first = self.conv_first((x - self.mean) * _RANGE)
        out = self.conv_after_body(self.body(first)) + first
        return self.conv_last(self.upsample(out)) / _RANGE + self.mean


@register_teacher
class EDSROptions(Architecture):
    """Lim et al. 2017; the defaults are EDSR-baseline."""

    type: Literal["edsr"] = Field(description="Name of the network.")
    num_feat: Width = Field(64, description="Channels of the body.")
    num_block: Depth = Field(16, description="Residual blocks.")
    res_scale: float = Field(1.0, gt=0, le=1, description="Factor on each residual (0.1 for the 256-channel EDSR).")

    def build(self, scale: int) -> nn.Module:
        """The network for RGB."""
        return EDSR(scale, self.num_feat, self.num_block, self.res_scale)

    @classmethod
    def recognise(cls, state: StateDict) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """Read off checkpoints of BasicSR."""
        if (
            "conv_after_body.weight" not in state
            or "body.0.conv1.weight" not in state
            or "upsample.0.weight" not in state
        ):
            return None
        num_feat = state["conv_first.weight"].shape[0]
        found = {
            "num_feat": num_feat,
            "num_block": sum(key.startswith("body.") and key.endswith(".conv1.weight") for key in state),
            # Not stored in a checkpoint: 0.1 in the large EDSR of the paper (256 channels), 1 in EDSR-baseline.
            "res_scale": 0.1 if num_feat >= 256 else 1.0,
        }
        twice = "upsample.2.weight" in state
        return found, (4 if twice else math.isqrt(state["upsample.0.weight"].shape[0] // num_feat),)
