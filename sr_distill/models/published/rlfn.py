"""RLFN, winner of the runtime track of the NTIRE 2022 efficient super-resolution challenge."""

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

_ATTENTION = 16  # channels of the spatial attention


class _SpatialAttention(nn.Module):
    """Enhanced spatial attention (ESA): a mask in (0, 1) from a strided, pooled and resized copy of the feature."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, _ATTENTION, 1)
        self.conv_f = nn.Conv2d(_ATTENTION, _ATTENTION, 1)
        self.conv2 = nn.Conv2d(_ATTENTION, _ATTENTION, 3, stride=2)
        self.conv3 = nn.Conv2d(_ATTENTION, _ATTENTION, 3, padding=1)
        self.conv4 = nn.Conv2d(_ATTENTION, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.conv1(x)
        coarse = self.conv3(F.max_pool2d(self.conv2(reduced), kernel_size=7, stride=3))
        coarse = F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(coarse + self.conv_f(reduced)))


class _Block(nn.Module):
    """Residual local feature block (RLFB): three 3x3 convolutions, a skip, a 1x1 and the attention."""

    def __init__(self, num_feat: int, num_mid: int) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(num_feat, num_mid, 3, padding=1)
        self.c2_r = nn.Conv2d(num_mid, num_mid, 3, padding=1)
        self.c3_r = nn.Conv2d(num_mid, num_feat, 3, padding=1)
        self.c5 = nn.Conv2d(num_feat, num_feat, 1)
        self.esa = _SpatialAttention(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv in (self.c1_r, self.c2_r, self.c3_r):
            out = F.leaky_relu(conv(out), 0.05)
        return self.esa(self.c5(out + x))


class RLFN(nn.Module):
    """Residual local feature network; RGB in [0, 255]. The blocks are ``block_1`` ... as in the authors' checkpoints.

    Source: Kong et al., "Residual Local Feature Network for Efficient Super-Resolution", CVPRW 2022.
    """

    def __init__(self, scale: int, num_feat: int, num_mid: int, num_block: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, num_feat, 3, padding=1)
        for index in range(1, num_block + 1):
            self.add_module(f"block_{index}", _Block(num_feat, num_mid))
        self.num_block = num_block
        self.conv_2 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(num_feat, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, H, W) to (B, 3, H*scale, W*scale); H and W at least 15."""
        first = self.conv_1(x)
        out = first
        for index in range(1, self.num_block + 1):
            out = self.get_submodule(f"block_{index}")(out)
        return self.upsampler(self.conv_2(out) + first)


@register_teacher
class RLFNOptions(Architecture):
    """Kong et al. 2022, residual local feature network; works on 0-255 inside."""

    type: Literal["rlfn"] = Field(description="Name of the network.")
    num_feat: Width = Field(
        52, description="Channels of the body (52 for RLFN, 48 for RLFN-S, 46 for the NTIRE 2022 entry)."
    )
    num_mid: Width | None = Field(
        None, description="Channels inside a block; None: as num_feat (48 for the NTIRE 2022 entry)."
    )
    num_block: Depth = Field(6, description="Residual local feature blocks.")

    value_range = 255.0
    min_size = 15  # of the attention: 3x3 with stride 2, then pooling over 7

    def build(self, scale: int) -> nn.Module:
        """The network for RGB."""
        return RLFN(scale, self.num_feat, self.num_mid or self.num_feat, self.num_block)

    @classmethod
    def recognise(cls, state: StateDict) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """Read off the authors' checkpoints."""
        if "block_1.esa.conv_f.weight" not in state or "block_1.c1_r.weight" not in state:
            return None
        num_mid, num_feat = state["block_1.c1_r.weight"].shape[:2]
        num_block = sum(key.endswith(".c5.weight") for key in state)
        scale = math.isqrt(state["upsampler.0.weight"].shape[0] // 3)
        return {"num_feat": num_feat, "num_mid": num_mid, "num_block": num_block}, (scale,)
