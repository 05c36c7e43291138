"""BSRN as entered in the NTIRE 2022 efficient super-resolution challenge: winner of its model complexity track."""

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
from .rfdn import MIN_SIZE, DistillationBlock

_COPIES = 4  # of the image, at the input


class _Pointwise(nn.Linear):
    """A 1x1 convolution of (B, C, H, W) whose kernel is a matrix, as in the authors' checkpoints."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class _BlueprintConv(nn.Module):
    """Blueprint separable convolution (BSConv-U): a 1x1, then a 3x3 on each channel alone."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pw = _Pointwise(in_channels, out_channels)
        self.dw = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.dw(self.pw(x))


class _Block(DistillationBlock):
    """Efficient separable distillation block (ESDB): RFDN's of blueprint convolutions, learned channel weights, a 1x1 and a skip."""

    def __init__(self, num_feat: int) -> None:
        super().__init__(num_feat, _Pointwise, _BlueprintConv, F.gelu, F.gelu)
        self.cw = nn.Parameter(torch.normal(1.0, 0.2, (1, num_feat)))
        self.conv_out = _Pointwise(num_feat, num_feat)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(super().forward(x) * self.cw[:, :, None, None]) + x


class BSRN(nn.Module):
    """Blueprint separable residual network; RGB in [0, 1]. The blocks are ``B1`` ... as in the authors' checkpoints.

    This is the entry in the challenge (BSRN-S): learned channel weights stand in the place of contrast-aware channel attention.

    Source: Li et al., "Blueprint Separable Residual Network for Efficient Image Super-Resolution", CVPRW 2022.
    """

    def __init__(self, scale: int, num_feat: int, num_block: int) -> None:
        super().__init__()
        self.fea_conv = _BlueprintConv(3 * _COPIES, num_feat)
        for index in range(1, num_block + 1):
            self.add_module(f"B{index}", _Block(num_feat))
        self.num_block = num_block
        self.c1 = _Pointwise(num_feat * num_block, num_feat)
        self.c2 = _BlueprintConv(num_feat, num_feat)
        step = nn.Sequential(nn.Conv2d(num_feat, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.upsampler = nn.ModuleDict({"upsampleOneStep": step})

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (B, 3, H, W) to (B, 3, H*scale, W*scale); H and W at least 15."""
        first = self.fea_conv(x.repeat(1, _COPIES, 1, 1))
        outs, out = [], first
        for index in range(1, self.num_block + 1):
            out = self.get_submodule(f"B{index}")(out)
            outs.append(out)
        out = self.c2(F.gelu(self.c1(torch.cat(outs, dim=1)))) + first
        return self.upsampler["upsampleOneStep"](out)


@register_teacher
class BSRNOptions(Architecture):
    """Li et al. 2022, blueprint separable residual network; the defaults are the NTIRE 2022 entry (BSRN-S)."""

    type: Literal["bsrn"] = Field(description="Name of the network.")
    num_feat: Width = Field(48, ge=4, description="Channels of the body.")
    num_block: Depth = Field(5, description="Efficient separable distillation blocks.")

    min_size = MIN_SIZE

    def build(self, scale: int) -> nn.Module:
        """The network for RGB."""
        return BSRN(scale, self.num_feat, self.num_block)

    @classmethod
    def recognise(cls, state: StateDict) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """Read off the authors' checkpoints."""
        if "B1.cw" not in state or "B1.c1_r.pw.weight" not in state:
            return None
        num_block = sum(key.endswith(".cw") for key in state)
        scale = math.isqrt(state["upsampler.upsampleOneStep.0.weight"].shape[0] // 3)
        return {"num_feat": state["B1.cw"].shape[1], "num_block": num_block}, (scale,)
